"""A picture before and after, in one."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from omgsr_cli.imaging.picture import Picture, PictureBands, PictureMetadata
from omgsr_cli.imaging.rows import BandSpool, Rows

# White pixels between the two.
_LINE_PX = 4


def keeping(bands: Iterator[Tensor], kept: BandSpool) -> Iterator[Tensor]:
    """The same bands, which are put aside too."""
    for band in bands:
        kept.append(band)
        yield band


def side_by_side(before: Rows, source: Picture, after: PictureBands) -> PictureBands:
    """The enlarged input on the left, the result on the right, with a white line between.

    Args:
        before: (3, H, W) rows of the enlarged input, in [0, 1].
        source: the input, for what is kept of it beside its pixels.
        after: the result, (3, H, W) in bands.
    Returns:
        (3, H, 2 W + 4) in bands.
    """
    height, width = after.size_px

    def bands() -> Iterator[Tensor]:
        row = 0
        for band in after.rgb:
            bottom = row + band.shape[1]
            alpha = after.alpha.read(row, bottom) if after.alpha is not None else 1.0
            line = torch.ones(3, band.shape[1], _LINE_PX)
            yield torch.cat([before.read(row, bottom) * alpha, line, band * alpha], 2)
            row = bottom

    # Regions, sizes and places describe the input alone.
    metadata = PictureMetadata(icc=source.metadata.icc, dpi=source.metadata.dpi)
    plain = Picture(source.rgb, is_grey=source.is_grey, is_neutral=source.is_neutral, metadata=metadata)
    return PictureBands(plain, (height, 2 * width + _LINE_PX), bands())
