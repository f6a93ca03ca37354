"""Random crops, and images resized or padded to the size of a crop."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from torch import Tensor

from omgsr_cli.errors import ShapeError
from omgsr_cli.imaging import extend, resize

OnSmall = Literal["skip", "resize", "pad"]


def draw_window(size_px: tuple[int, int], crop_px: int, rng: np.random.Generator) -> tuple[int, int]:
    """Draw the top left corner of a square crop, uniformly.

    Args:
        size_px: height and width of the image, neither smaller than the crop.
        crop_px: side of the crop.
        rng: two integers are drawn from it.
    Returns:
        (top, left).
    Raises:
        ShapeError: the image is smaller than the crop.
    """
    if min(size_px) < crop_px:
        raise ShapeError(f"a crop of {crop_px} does not fit in {size_px[1]}x{size_px[0]} pixels")
    height, width = size_px
    return int(rng.integers(height - crop_px + 1)), int(rng.integers(width - crop_px + 1))


def fit_small(image: Tensor, crop_px: int, on_small: OnSmall) -> Tensor | None:
    """Make an image large enough for a crop, if it is smaller.

    Args:
        image: (3, H, W) float32 in [0, 1].
        crop_px: side of the crop.
        on_small: "resize" upscales the shorter side to it (bicubic), "pad" reflects at the right and the bottom as
            often as needed, "skip" returns None.
    Returns:
        (3, h, w) with both sides at least crop_px; the image itself if it is large enough; None for "skip".
    """
    height, width = image.shape[-2:]
    if min(height, width) >= crop_px:
        return image
    if on_small == "skip":
        return None
    if on_small == "resize":
        factor = crop_px / min(height, width)
        return resize(image, (max(crop_px, round(height * factor)), max(crop_px, round(width * factor))), 16)
    return extend(image, (max(height, crop_px), max(width, crop_px)))


def trim(image: Tensor, multiple: int) -> Tensor:
    """Crop (3, H, W) at the right and the bottom to a multiple; smaller sides are padded by reflection."""
    height, width = (max(multiple, length // multiple * multiple) for length in image.shape[-2:])
    if height <= image.shape[-2] and width <= image.shape[-1]:
        return image[:, :height, :width]
    return extend(image, (height, width))


def whole_factor(large_px: tuple[int, int], small_px: tuple[int, int]) -> int | None:
    """The whole factor by which an image is larger than another on both sides, or None."""
    factor = large_px[0] / small_px[0]
    if factor != large_px[1] / small_px[1] or not math.isclose(factor, round(factor)) or factor < 1:
        return None
    return round(factor)
