"""Colour under transparency: what lies under transparent pixels must not bleed into the edge of what is visible."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from omgsr_cli.imaging.resize import ResizedRows


class EnlargedWithAlpha:
    """Colour enlarged with the weight of its alpha, read by rows.

    Where nothing is opaque nearby, what lies around is drawn in smoothly.

    Args:
        rgb: (3, H, W) float32 in [0, 1], not premultiplied.
        alpha: (1, H, W) float32 in [0, 1].
        size_px: height and width of the result; its rows are (3, n, width) float32 in [0, 1], not premultiplied.
    """

    def __init__(self, rgb: Tensor, alpha: Tensor, size_px: tuple[int, int]) -> None:
        self.size_px = size_px
        filled = _fill_transparent(rgb, alpha)
        self._filled, self._alpha, self._premultiplied = (
            ResizedRows(planes, size_px, 16) for planes in (filled, alpha, filled * alpha)
        )

    def read(self, top: int, bottom: int) -> Tensor:
        """As for `Rows`."""
        filled, alpha, premultiplied = (
            rows.read(top, bottom) for rows in (self._filled, self._alpha, self._premultiplied)
        )
        # Below two levels of alpha the quotient is noise, and invisible.
        straight = torch.where(alpha > 2 / 255, premultiplied / alpha.clamp(min=1 / 255), filled)
        return straight.clamp_(0, 1)


def _fill_transparent(rgb: Tensor, alpha: Tensor) -> Tensor:
    """Give transparent pixels the colours around them: averages by alpha over ever larger squares, coarse to fine."""
    levels = [(rgb * alpha, alpha)]
    while max(levels[-1][1].shape[-2:]) > 1:
        color, weight = levels[-1]
        levels.append((_halve(color), _halve(weight)))
    fill = levels[-1][0] / levels[-1][1].clamp(min=1e-6)
    for color, weight in reversed(levels[:-1]):
        fill = F.interpolate(fill[None], size=color.shape[-2:], mode="bilinear", align_corners=False)[0]
        own = color / weight.clamp(min=1e-6)
        fill = torch.lerp(fill, own, (weight * 4).clamp(max=1))
    # Whatever is visible at all keeps its own colour.
    return torch.where(alpha > 0, rgb, fill)


def _halve(planes: Tensor) -> Tensor:
    return F.avg_pool2d(planes[None], 2, ceil_mode=True)[0]
