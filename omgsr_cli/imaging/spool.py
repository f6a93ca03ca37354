"""Bands of a picture put aside until all of it is known."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from omgsr_cli.errors import OmgsrError, reason_of

#: Bytes that are kept in memory; more goes into a file.
_IN_MEMORY = 256 << 20


class BandSpool:
    """Keeps bands and gives them again, as often as asked: in memory, or in a file that has no name.

    Args:
        bit_depth: at 8 values in [0, 1] are rounded to whole levels of 1/255, at 16 kept as float32.
    """

    def __init__(self, bit_depth: int) -> None:
        self._dtype: type[Any] = np.uint8 if bit_depth == 8 else np.float32
        self._shapes: list[tuple[int, ...]] = []
        # Without a name: it is gone when this is, also after a crash.
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY)  # noqa: SIM115 - closed with the object

    def append(self, band: Tensor) -> None:
        """Put (C, n, W) float32 on the CPU behind what is there.

        Raises:
            OmgsrError: the disk is full.
        """
        values = band.numpy() if self._dtype is np.float32 else (band * 255).round_().to(torch.uint8).numpy()
        try:
            self._file.write(np.ascontiguousarray(values).data.cast("B"))
        except OSError as error:
            raise no_room(None, error) from error
        self._shapes.append(tuple(band.shape))

    def __iter__(self) -> Iterator[Tensor]:
        """The bands in order, (C, n, W) float32."""
        self._file.flush()
        position = 0
        for shape in self._shapes:
            self._file.seek(position)
            held = bytearray(self._file.read(int(np.prod(shape)) * np.dtype(self._dtype).itemsize))
            position += len(held)
            values = torch.from_numpy(np.frombuffer(held, self._dtype).reshape(shape))
            yield values if self._dtype is np.float32 else values.float().div_(255)


def no_room(folder: Path | None, error: OSError) -> OmgsrError:
    """Say that what does not fit in memory does not fit on the disk either."""
    place = folder or tempfile.gettempdir()
    return OmgsrError(
        f"the picture does not fit in memory, and {place} has no room: {reason_of(error)}",
        "allow more with --memory, or set TMPDIR to a folder on a larger disk",
    )
