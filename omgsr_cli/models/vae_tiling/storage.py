"""Where whole layers of a network lie between two passes: on the device, in the host's memory, or in a file."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, NamedTuple

import torch
from torch import Tensor

from omgsr_cli.imaging.rows import no_room
from omgsr_cli.models.vae_tiling.moments import MomentSums

_STRIP_SHARE = 0.25
"""Of the memory that is given, this share may go to the strip in work; the rest holds layers."""


class Workspace:
    """How much memory may be used, and what of it is.

    Args:
        memory_bytes: on the device, for the strip in work and for whole layers together; input and result left out.
        device: where strips are computed.
        host_bytes: of the host's memory for whole layers that do not fit on another device; on a CPU without meaning.
        folder: for what fits in neither, in files that vanish with the workspace; None takes the system's own.
        on_short: told once when memory was shorter than expected and strips became smaller.
    """

    def __init__(
        self,
        memory_bytes: int,
        device: torch.device,
        *,
        host_bytes: int = 0,
        folder: Path | None = None,
        on_short: Callable[[], None] | None = None,
    ) -> None:
        self.device = device
        self.memory_bytes = memory_bytes
        self.folder = folder
        self.strip_bytes = int(memory_bytes * _STRIP_SHARE)
        self._free = {device: memory_bytes - self.strip_bytes}
        if device.type != "cpu":
            self._free[torch.device("cpu")] = host_bytes
        self._on_short = on_short

    def shrink(self) -> None:
        """Halve the strips and put nothing more on the device: memory was short."""
        self.strip_bytes //= 2
        self._free[self.device] = min(0, self._free[self.device])
        if self._on_short:
            self._on_short()
            self._on_short = None

    def reserve(self, size: int) -> torch.device | None:
        """Take bytes where there are some left, the device first; None means a file."""
        for place, free in self._free.items():
            if size <= free:
                self._free[place] -= size
                return place
        return None

    def give_back(self, size: int, place: torch.device) -> None:
        """Return what was reserved."""
        self._free[place] += size


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
        self.sums = MomentSums(channels)
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
        parts = [part.to(self._workspace.device) for part in parts]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)

    def forget(self, row: int) -> None:
        """Free what lies above a row: it is not read again."""
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
            self._file.write(_as_bytes(rows.cpu()))
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
    """The memory of (1, C, rows, W), channels last, as it lies."""
    return rows.permute(0, 2, 3, 1).view(torch.uint8).numpy().data.cast("B")
