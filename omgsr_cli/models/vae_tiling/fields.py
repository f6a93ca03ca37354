"""Layers as fields: feature maps whose rows can be read in any order, either computed on demand or stored.

A field that is read computes its rows from other fields, including the neighbouring rows that it needs, and keeps
nothing. `store` computes a field strip by strip and keeps it; the result is also a field.
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
    """A feature map that is read by rows.

    Attributes:
        channels, height, width: size of the complete map.
    """

    channels: int
    height: int
    width: int

    @property
    def read_bytes(self) -> int:
        """Approximate peak memory for reading one row."""
        ...

    def read(self, top: int, bottom: int) -> Tensor:
        """Rows top to bottom as (1, C, bottom - top, W); 0 <= top < bottom <= height."""
        ...

    def forget(self, row: int) -> None:
        """Release everything that only the rows above this one need; they are not read again."""
        ...


class InputRows:
    """The input of a network, in the network's number format.

    Args:
        read: returns rows top to bottom, (1, C, bottom - top, W), on any device.
        shape: (C, H, W) of the complete input.
        device, dtype: device and number format of the network.
    """

    def __init__(
        self, read: Callable[[int, int], Tensor], shape: Sequence[int], device: torch.device, dtype: torch.dtype
    ) -> None:
        self._read, self._device, self._dtype = read, device, dtype
        self.channels, self.height, self.width = shape

    @property
    def read_bytes(self) -> int:
        """See `Field`."""
        return self.channels * self.width * self._dtype.itemsize

    def read(self, top: int, bottom: int) -> Tensor:
        """See `Field`."""
        rows = self._read(top, bottom).to(self._device, self._dtype)
        return rows.contiguous(memory_format=torch.channels_last)

    def forget(self, row: int) -> None:
        """See `Field`."""


class Normalised:
    """A group norm with the moments of the complete image, followed by an activation.

    Args:
        source: the input.
        norm: the group norm of diffusers' module.
        activation: the activation, or None.
        hold: True if a later pass reads the source again.
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
        """See `Field`."""
        # The rows that are read, the output of the norm, and the output of the activation.
        return 3 * self.source.read_bytes

    def read(self, top: int, bottom: int) -> Tensor:
        """See `Field`."""
        norm, rows = self.norm, self.source.read(top, bottom)
        # With given moments, batch norm is the same formula; it accepts float32 moments with bf16 rows.
        weight, bias = norm.weight.float(), norm.bias.float()
        rows = F.batch_norm(rows, self._mean, self._variance, weight, bias, training=False, eps=norm.eps)
        return rows if self.activation is None else self.activation(rows)

    def forget(self, row: int) -> None:
        """See `Field`."""
        self.source.forget(row)


class Convolved:
    """A convolution that pads the complete image with zeros, as in training.

    Args:
        source: the input.
        conv: the convolution of diffusers' module.
        pad_end_only: pad by one row below and one column at the right only, like diffusers' downsampler; otherwise
            like `conv`.
        enlarge: factor by which every row and column is repeated first.
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
        """See `Field`."""
        per_row = self.source.read_bytes
        if self.enlarge > 1:
            # One source row yields several rows, which are also wider.
            per_row = math.ceil(per_row / self.enlarge) + self.source.read_bytes * self.enlarge
        own = self.channels * self.width * self.conv.weight.dtype.itemsize
        # Some kernels copy input and output to another layout.
        return 2 * per_row * self._stride + 2 * own

    def _needed(self, top: int, bottom: int) -> tuple[int, int]:
        """First and last + 1 of the rows of the enlarged source; they can be outside of it."""
        first = top * self._stride - self._pad_before
        return first, (bottom - 1) * self._stride - self._pad_before + self._kernel

    def read(self, top: int, bottom: int) -> Tensor:
        """See `Field`."""
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
        """See `Field`."""
        first = max(self._needed(row, row + 1)[0], 0) // self.enlarge
        self.source.forget(first if row < self.height else self.source.height)


class Added:
    """The sum of two fields of the same size, divided by a factor."""

    def __init__(self, first: Field, second: Field, divisor: float) -> None:
        self.first, self.second, self.divisor = first, second, divisor
        self.channels, self.height, self.width = first.channels, first.height, first.width

    @property
    def read_bytes(self) -> int:
        """See `Field`."""
        return self.first.read_bytes + self.second.read_bytes

    def read(self, top: int, bottom: int) -> Tensor:
        """See `Field`."""
        rows = self.first.read(top, bottom) + self.second.read(top, bottom)
        return rows if self.divisor == 1 else rows / self.divisor

    def forget(self, row: int) -> None:
        """See `Field`."""
        self.first.forget(row)
        self.second.forget(row)


class Held:
    """A field that a later pass reads again: `forget` releases nothing."""

    def __init__(self, source: Field) -> None:
        self.source = source
        self.channels, self.height, self.width = source.channels, source.height, source.width

    @property
    def read_bytes(self) -> int:
        """See `Field`."""
        return self.source.read_bytes

    def read(self, top: int, bottom: int) -> Tensor:
        """See `Field`."""
        return self.source.read(top, bottom)

    def forget(self, row: int) -> None:
        """See `Field`."""


def strips(field: Field, workspace: Workspace) -> Iterator[Tensor]:
    """Compute a complete field from its first row to its last, in strips that fit in the workspace.

    If memory runs out nevertheless, only the current strip is computed again, with half of its rows.

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
    """Compute a complete field and store it; source rows that are no longer needed are released.

    Args:
        field: field with at least one row.
        workspace: limits the size of strips and stores the result.
    """
    rows: StoredRows | None = None
    for strip in strips(field, workspace):
        rows = rows or StoredRows(workspace, field.channels, field.height, field.width, strip.dtype)
        rows.append(strip)
    assert rows is not None
    release_memory()
    return rows
