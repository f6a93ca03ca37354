"""Stores complete layers of a network between two passes: on the device, in host memory, or in a file."""

from __future__ import annotations

import tempfile
from typing import IO, NamedTuple

import torch
from torch import Tensor

from omgsr_cli.imaging.rows import no_room
from omgsr_cli.models.base import Workspace
from omgsr_cli.transfer import download, has_float64, upload

# Number of positions that are summed in float32. Matrix products are fastest, but add sequentially: for a strip of half
# a million positions the error of the sum of squares was 1e-4; for this number it is 2e-8.
_TOGETHER = 256


class MomentSums:
    """Computes the moments of every channel from strips, in float64 if the device supports it.

    Each strip is summed relative to its own pivot, a few hundred positions at a time in float32. The CPU merges the
    strips with the formula of Chan, Golub and LeVeque (1979), which avoids cancellation if the mean is large, and
    rounding errors if the sum is large. Sums stay on the device until `moments` is called, so no strip has to wait.
    """

    def __init__(self) -> None:
        self._parts: list[tuple[int, Tensor]] = []

    def add(self, rows: Tensor) -> None:
        """Add (1, C, rows, W) on any device."""
        values = rows.permute(0, 2, 3, 1).reshape(-1, rows.shape[1]).float()
        pivot = values[:: max(1, len(values) // 64)].mean(dim=0)
        centred = values - pivot
        offset = _sum(centred) / len(values)
        squares = _sum(centred.square_()) - offset.square() * len(values)
        self._parts.append((len(values), torch.stack((pivot.to(offset.dtype) + offset, squares))))

    def moments(self, groups: int) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of groups of channels, each repeated for the channels of its group: (C,) float32."""
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
    """Sum (N, C) float32 over N: (C,) on the same device, float64 if the device supports it."""
    whole = len(values) // _TOGETHER * _TOGETHER
    blocks, rest = values[:whole].view(-1, _TOGETHER, values.shape[1]), values[whole:]
    sums = torch.cat((values.new_ones(1, _TOGETHER) @ blocks, rest.sum(dim=0)[None, None]))[:, 0]
    return (sums.double() if has_float64(sums.device) else sums).sum(dim=0)


class _Chunk(NamedTuple):
    top: int
    bottom: int
    rows: Tensor | None
    """(1, C, rows, W), channels last; None if the rows are in the file."""


class StoredRows:
    """One complete layer, which is written from its first row to its last and read in any order.

    Rows are stored channels last, so any range of rows is contiguous, both in memory and in the file.

    Args:
        workspace: limits the memory.
        channels, height, width: size of the layer.
        dtype: number format of the layer.

    Attributes:
        sums: sums of every channel, for a norm that reads the layer.
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
        """Size of one row in bytes."""
        return self.channels * self.width * self.dtype.itemsize

    def append(self, rows: Tensor) -> None:
        """Add the next rows, (1, C, rows, W).

        Raises:
            OmgsrError: the rows need a file, and the disk is full.
        """
        top = self._chunks[-1].bottom if self._chunks else 0
        rows = rows.contiguous(memory_format=torch.channels_last)
        self.sums.add(rows)
        place = self._workspace.reserve(rows.nbytes)
        if place is None:
            self._write(rows, top)
        self._chunks.append(_Chunk(top, top + rows.shape[2], None if place is None else rows.to(place)))

    def read(self, top: int, bottom: int) -> Tensor:
        """Rows top to bottom, (1, C, bottom - top, W) on the workspace's device; callers must not modify them."""
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
        """Release the rows above this one, which are not read again."""
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
                # An unnamed file disappears when it is closed, also after a crash.
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
    """The memory of (1, C, rows, W), channels last, as bytes without a copy."""
    return rows.permute(0, 2, 3, 1).view(torch.uint8).numpy().data.cast("B")
