"""Layers as fields: an image of features of which any rows can be read, computed at that moment or stored before.

A field is computed from others when it is read, with the rows around that it needs. Nothing is held: what is to be
kept is stored by `store`, strip after strip, and then is a field itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from omgsr_cli.models.base import Workspace
from omgsr_cli.models.devices import is_out_of_memory, release_memory
from omgsr_cli.models.vae_tiling.storage import StoredRows
from omgsr_cli.transfer import upload


class Field(Protocol):
    """Features over an image, read by rows.

    Attributes:
        channels, height, width: of the whole.
    """

    channels: int
    height: int
    width: int

    @property
    def read_bytes(self) -> int:
        """Memory that reading one row takes at its peak, about."""
        ...

    def read(self, top: int, bottom: int) -> Tensor:
        """Rows top to bottom as (1, C, bottom - top, W); 0 <= top < bottom <= height."""
        ...

    def forget(self, row: int) -> None:
        """Rows from this one on are all that will be read: what only the others need may go."""
        ...


class InputRows:
    """What a network is given, in its own format.

    Args:
        read: given top and bottom, the rows between them, (1, C, bottom - top, W) of any device.
        shape: (C, H, W) of the whole.
        device, dtype: of the network.
    """

    def __init__(
        self, read: Callable[[int, int], Tensor], shape: Sequence[int], device: torch.device, dtype: torch.dtype
    ) -> None:
        self._read, self._device, self._dtype = read, device, dtype
        self.channels, self.height, self.width = shape

    @property
    def read_bytes(self) -> int:
        """As for `Field`."""
        return self.channels * self.width * self._dtype.itemsize

    def read(self, top: int, bottom: int) -> Tensor:
        """As for `Field`."""
        rows = self._read(top, bottom).to(self._device, self._dtype)
        return rows.contiguous(memory_format=torch.channels_last)

    def forget(self, row: int) -> None:
        """As for `Field`."""


class Normalised:
    """Group norm with the whole image's moments, and the activation after it.

    Args:
        source: what is normalised.
        norm: of diffusers' module.
        activation: None where there is none.
        hold: the source is read again in a later pass.
    """

    def __init__(
        self, source: StoredRows, norm: nn.GroupNorm, activation: nn.Module | None = None, *, hold: bool = False
    ) -> None:
        self.source: Field = Held(source) if hold else source
        self.norm, self.activation = norm, activation
        self.channels, self.height, self.width = source.channels, source.height, source.width
        mean, variance = source.sums.moments(norm.num_groups)
        self._mean, self._variance = upload(torch.stack((mean, variance)), norm.weight.device)

    @property
    def read_bytes(self) -> int:
        """As for `Field`."""
        # What is read, what comes out of the norm, and what of the activation.
        return 3 * self.source.read_bytes

    def read(self, top: int, bottom: int) -> Tensor:
        """As for `Field`."""
        norm, rows = self.norm, self.source.read(top, bottom)
        # With moments that are given, batch norm is the same formula; it takes them in float32 beside rows in bf16.
        weight, bias = norm.weight.float(), norm.bias.float()
        rows = F.batch_norm(rows, self._mean, self._variance, weight, bias, training=False, eps=norm.eps)
        return rows if self.activation is None else self.activation(rows)

    def forget(self, row: int) -> None:
        """As for `Field`."""
        self.source.forget(row)


class Convolved:
    """A convolution, with the zeros around the image that it was trained with.

    Args:
        source: what it reads.
        conv: of diffusers' module.
        pad_end_only: pads by one below and at the right alone, as diffusers' downsampler does; else as `conv` does.
        enlarge: repeats every row and column so many times first.
    """

    def __init__(self, source: Field, conv: nn.Conv2d, *, pad_end_only: bool = False, enlarge: int = 1) -> None:
        self.source, self.conv, self.enlarge = source, conv, enlarge
        self.channels = conv.out_channels
        self._kernel, self._stride = conv.kernel_size[0], conv.stride[0]
        pad = int(conv.padding[0])
        self._pad_before, self._pad_after = (0, 1) if pad_end_only else (pad, pad)
        self.height, self.width = (self._length(side * enlarge) for side in (source.height, source.width))

    def _length(self, side: int) -> int:
        return (side + self._pad_before + self._pad_after - self._kernel) // self._stride + 1

    @property
    def read_bytes(self) -> int:
        """As for `Field`."""
        per_row = self.source.read_bytes
        if self.enlarge > 1:
            # One row read gives several; each of them as wide as it becomes.
            per_row = math.ceil(per_row / self.enlarge) + self.source.read_bytes * self.enlarge
        own = self.channels * self.width * self.conv.weight.dtype.itemsize
        # Some kernels lay input and output out anew.
        return 2 * per_row * self._stride + 2 * own

    def _needed(self, top: int, bottom: int) -> tuple[int, int]:
        """First and last + 1 of the enlarged source's rows, beyond its edges too."""
        first = top * self._stride - self._pad_before
        return first, (bottom - 1) * self._stride - self._pad_before + self._kernel

    def read(self, top: int, bottom: int) -> Tensor:
        """As for `Field`."""
        first, last = self._needed(top, bottom)
        whole = self.source.height * self.enlarge
        inner_first, inner_last = max(first, 0), min(last, whole)
        rows = self._read_enlarged(inner_first, inner_last)
        before, after = self._pad_before, self._pad_after
        rows = F.pad(rows, (before, after, inner_first - first, last - inner_last))
        return F.conv2d(rows, self.conv.weight, self.conv.bias, self.conv.stride)

    def _read_enlarged(self, first: int, last: int) -> Tensor:
        if self.enlarge == 1:
            return self.source.read(first, last)
        top, bottom = first // self.enlarge, -(-last // self.enlarge)
        rows = F.interpolate(self.source.read(top, bottom), scale_factor=float(self.enlarge), mode="nearest")
        return rows[:, :, first - top * self.enlarge : last - top * self.enlarge]

    def forget(self, row: int) -> None:
        """As for `Field`."""
        first = max(self._needed(row, row + 1)[0], 0) // self.enlarge
        self.source.forget(first if row < self.height else self.source.height)


class Added:
    """The sum of two fields of one size, divided by a factor."""

    def __init__(self, first: Field, second: Field, divisor: float) -> None:
        self.first, self.second, self.divisor = first, second, divisor
        self.channels, self.height, self.width = first.channels, first.height, first.width

    @property
    def read_bytes(self) -> int:
        """As for `Field`."""
        return self.first.read_bytes + self.second.read_bytes

    def read(self, top: int, bottom: int) -> Tensor:
        """As for `Field`."""
        rows = self.first.read(top, bottom) + self.second.read(top, bottom)
        return rows if self.divisor == 1 else rows / self.divisor

    def forget(self, row: int) -> None:
        """As for `Field`."""
        self.first.forget(row)
        self.second.forget(row)


class Held:
    """A field that a later pass reads again: nothing of it is freed in this one."""

    def __init__(self, source: Field) -> None:
        self.source = source
        self.channels, self.height, self.width = source.channels, source.height, source.width

    @property
    def read_bytes(self) -> int:
        """As for `Field`."""
        return self.source.read_bytes

    def read(self, top: int, bottom: int) -> Tensor:
        """As for `Field`."""
        return self.source.read(top, bottom)

    def forget(self, row: int) -> None:
        """As for `Field`."""


def strips(field: Field, workspace: Workspace) -> Iterator[Tensor]:
    """Compute a whole field from its first row to its last, in strips that the workspace has room for.

    Where memory runs out all the same, the strip in work is begun again with half of its rows; what was yielded stays.

    Yields:
        (1, C, rows, W).
    """
    row = 0
    while row < field.height:
        count = max(1, min(workspace.strip_bytes // field.read_bytes, field.height - row))
        try:
            rows = field.read(row, row + count)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or count == 1:
                raise
            workspace.strip_bytes = min(workspace.strip_bytes, count * field.read_bytes)
            workspace.shrink()
            continue
        row += count
        field.forget(row)
        yield rows


def store(field: Field, workspace: Workspace) -> StoredRows:
    """Compute a whole field and keep it; what only this field reads is freed as it is passed.

    Args:
        field: at least one row.
        workspace: how large strips are and where the result is kept.
    """
    rows: StoredRows | None = None
    for strip in strips(field, workspace):
        rows = rows or StoredRows(workspace, field.channels, field.height, field.width, strip.dtype)
        rows.append(strip)
    assert rows is not None
    release_memory()
    return rows
