"""Pictures that are read by rows, so that a large one need not lie in memory whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from omgsr_cli.imaging.borders import reflected

#: Pixels of a band that is handed on, about: small beside a picture, large beside what handing it on costs.
_BAND_PX = 1 << 20


class Rows(Protocol):
    """A picture of which any rows can be read, computed at that moment or there before."""

    @property
    def size_px(self) -> tuple[int, int]:
        """Height and width."""
        ...

    def read(self, top: int, bottom: int) -> Tensor:
        """Rows top to bottom, (C, bottom - top, W) float32 on the CPU; 0 <= top < bottom <= height.

        They may be a part of what they were read from: nobody writes to them.
        """
        ...


@dataclass(frozen=True)
class WholeRows:
    """Rows of a tensor that is there, (C, H, W) float on any device."""

    planes: Tensor

    @property
    def size_px(self) -> tuple[int, int]:
        """As for `Rows`."""
        return self.planes.shape[-2], self.planes.shape[-1]

    def read(self, top: int, bottom: int) -> Tensor:
        """As for `Rows`."""
        return self.planes[:, top:bottom].float().cpu()


class ExtendedRows:
    """What `extend` gives, read by rows.

    Args:
        source: at least one pixel.
        size_px: height and width of the result, not below the source's with what lies before.
        before_px: how much is added above and to the left; the rest is below and to the right.
    """

    def __init__(self, source: Rows, size_px: tuple[int, int], before_px: int = 0) -> None:
        self.size_px = size_px
        self._source, self._before = source, before_px
        self._rows = reflected(source.size_px[0], before_px, size_px[0])
        self._columns = reflected(source.size_px[1], before_px, size_px[1])

    def read(self, top: int, bottom: int) -> Tensor:
        """As for `Rows`."""
        rows = self._rows[top:bottom]
        first, last = int(rows.min()), int(rows.max()) + 1
        found = self._source.read(first, last)
        is_plain = last - first == len(rows) and bool((rows.diff() == 1).all())
        found = found if is_plain else found.index_select(-2, rows - first)
        width, after = found.shape[2], self.size_px[1] - found.shape[2] - self._before
        if max(self._before, after) < width:
            return F.pad(found, (self._before, after), mode="reflect") if self._before or after else found
        return found.index_select(-1, self._columns)


def bands_of(rows: Rows) -> Iterator[Tensor]:
    """A picture from its first rows to its last, (C, n, W)."""
    height, width = rows.size_px
    count = max(_BAND_PX // width, 1)
    for top in range(0, height, count):
        yield rows.read(top, min(top + count, height))


def split_bands(bands: Iterator[Tensor]) -> Iterator[Tensor]:
    """The same rows in bands that are no larger than those of `bands_of`."""
    for band in bands:
        yield from torch.split(band, max(_BAND_PX // band.shape[2], 1), dim=1)
        # Before the next one is computed.
        del band
