"""Whole layers of a network between two passes: on the device, in the host's memory, or in a file."""

from __future__ import annotations

import tempfile
from typing import IO, NamedTuple

import torch
from torch import Tensor

from omgsr_cli.imaging.rows import no_room
from omgsr_cli.models.base import Workspace
from omgsr_cli.transfer import download, has_float64, upload

# Positions whose sum is left to float32. Matrix products, which are quickest, add one after the other: over a whole
# strip of half a million the sum of squares was 1e-4 off, over so many it is 2e-8.
_TOGETHER = 256


class MomentSums:
    """Adds up strips to the moments of every channel, in float64 where the device has it.

    Each strip is summed around a value of its own, a few hundred positions at a time in float32. The strips are merged
    on the CPU by the formula of Chan, Golub and LeVeque (1979): nothing cancels where the mean is large, or is lost
    where the sum is. Sums stay on the device until they are asked for, so that no strip waits.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[int, Tensor]] = []

    def add(self, rows: Tensor) -> None:
        """Add (1, C, rows, W) of any device."""
        values = rows.permute(0, 2, 3, 1).reshape(-1, rows.shape[1]).float()
        pivot = values[:: max(1, len(values) // 64)].mean(dim=0)
        centred = values - pivot
        offset = _sum(centred) / len(values)
        squares = _sum(centred.square_()) - offset.square() * len(values)
        self._parts.append((len(values), torch.stack((pivot.to(offset.dtype) + offset, squares))))

    def moments(self, groups: int) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of equal groups of channels, each repeated for its channels: (C,) float32."""
        parts = download(torch.stack([part for _, part in self._parts]))[0].double()
        merged, total, counted = torch.zeros_like(parts[0, 0]), torch.zeros_like(parts[0, 0]), 0
        for (length, _), (mean, squares) in zip(self._parts, parts, strict=True):
            count = counted + length
            delta = mean - merged
            total += squares + delta.square() * (counted * length / count)
            merged += delta * (length / count)
            counted = count
        means = merged.view(groups, -1)
        mean = means.mean(dim=1, keepdim=True)
        variance = (total.view(groups, -1) / counted + (means - mean).square()).mean(dim=1, keepdim=True)
        return mean.expand_as(means).reshape(-1).float(), variance.expand_as(means).reshape(-1).float()


def _sum(values: Tensor) -> Tensor:
    """(N, C) float32 to the sums over N, (C,) on the same device, float64 where it has that."""
    whole = len(values) // _TOGETHER * _TOGETHER
    blocks, rest = values[:whole].view(-1, _TOGETHER, values.shape[1]), values[whole:]
    sums = torch.cat((values.new_ones(1, _TOGETHER) @ blocks, rest.sum(dim=0)[None, None]))[:, 0]
    return (sums.double() if has_float64(sums.device) else sums).sum(dim=0)


class _Chunk(NamedTuple):
    top: int
    bottom: int
    rows: Tensor | None
    """(1, C, rows, W), channels last; None where they are in the file."""


class StoredRows:
    """One whole layer, written from its first row to its last and read in any order.

    Rows are kept channels last, so that any range of them is one piece, in memory as in the file.

    Args:
        workspace: bounds what is kept in memory.
        channels, height, width: of the layer.
        dtype: of its values.

    Attributes:
        sums: of every channel, for a norm that reads the layer.
    """

    def __init__(self, workspace: Workspace, channels: int, height: int, width: int, dtype: torch.dtype) -> None:
        self.channels, self.height, self.width = channels, height, width
        self.dtype = dtype
        self.sums = MomentSums()
        self._workspace = workspace
        self._chunks: list[_Chunk] = []
        self._file: IO[bytes] | None = None

    @property
    def read_bytes(self) -> int:
        """Bytes of one row as it is read."""
        return self.channels * self.width * self.dtype.itemsize

    def append(self, rows: Tensor) -> None:
        """Add the next rows, (1, C, rows, W).

        Raises:
            OmgsrError: they have to go into a file, and there is no room for it.
        """
        top = self._chunks[-1].bottom if self._chunks else 0
        rows = rows.contiguous(memory_format=torch.channels_last)
        self.sums.add(rows)
        place = self._workspace.reserve(rows.nbytes)
        if place is None:
            self._write(rows, top)
        self._chunks.append(_Chunk(top, top + rows.shape[2], None if place is None else rows.to(place)))

    def read(self, top: int, bottom: int) -> Tensor:
        """Rows top to bottom, (1, C, bottom - top, W) on the workspace's device; not to be written to."""
        parts = []
        for chunk in self._chunks:
            first, last = max(top, chunk.top), min(bottom, chunk.bottom)
            if first >= last:
                continue
            if chunk.rows is None:
                parts.append(self._read_file(first, last))
            else:
                parts.append(chunk.rows[:, :, first - chunk.top : last - chunk.top])
        parts = [upload(part, self._workspace.device) for part in parts]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    def forget(self, row: int) -> None:
        """Free the rows above this one, which are not read again."""
        while self._chunks and self._chunks[0].bottom <= row:
            rows = self._chunks.pop(0).rows
            if rows is not None:
                self._workspace.give_back(rows.nbytes, rows.device)
        if not self._chunks and self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, rows: Tensor, top: int) -> None:
        try:
            if self._file is None:
                # Without a name: it is gone when it is closed, also after a crash.
                self._file = tempfile.TemporaryFile(dir=self._workspace.folder)  # noqa: SIM115 - closed by forget
            self._file.seek(top * self.read_bytes)
            self._file.write(_as_bytes(download(rows)[0]))
        except OSError as error:
            raise no_room(self._workspace.folder, error) from error

    def _read_file(self, top: int, bottom: int) -> Tensor:
        assert self._file is not None
        rows = torch.empty(
            (1, self.channels, bottom - top, self.width), dtype=self.dtype, memory_format=torch.channels_last
        )
        self._file.seek(top * self.read_bytes)
        self._file.readinto(_as_bytes(rows))  # type: ignore[attr-defined]  # the stub of IO lacks what files have
        return rows


def _as_bytes(rows: Tensor) -> memoryview:
    """The memory of (1, C, rows, W), channels last, without a copy."""
    return rows.permute(0, 2, 3, 1).view(torch.uint8).numpy().data.cast("B")
