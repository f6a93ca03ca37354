"""The one way in which pictures go on beyond their borders."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor


def extend(image: Tensor, size_px: tuple[int, int], before_px: int = 0) -> Tensor:
    """Extend an image by reflection that does not repeat the border, as often as it takes.

    Args:
        image: (C, H, W), H and W at least 1.
        size_px: height and width of the result; a side that is not longer than the image's is cut there.
        before_px: how much of that lies above and to the left; the rest is below and to the right.
    Returns:
        (C, height, width), same dtype and device; the image itself where nothing is added.
    """
    height, width = image.shape[-2:]
    below, right = size_px[0] - height - before_px, size_px[1] - width - before_px
    if below == right == before_px == 0:
        return image
    if 0 <= below < height and 0 <= right < width and before_px < min(height, width):
        return F.pad(image[None], (before_px, right, before_px, below), mode="reflect")[0]
    # torch reflects only once; an image smaller than its border needs more.
    rows, columns = (
        reflected(length, before_px, total).to(image.device)
        for length, total in ((height, size_px[0]), (width, size_px[1]))
    )
    return image.index_select(-2, rows).index_select(-1, columns)


def reflected(length: int, before: int, total: int) -> Tensor:
    """Indices of an axis of `length` from -before on, `total` of them, reflected at its ends."""
    position = torch.arange(-before, total - before)
    period = max(2 * (length - 1), 1)
    folded = position.remainder(period)
    return torch.minimum(folded, period - folded).clamp_max(length - 1)
