"""DiffAugment, arXiv:2006.10738: what the discriminator sees is changed at random, real and restored alike.

Every change is differentiable, so that the generator learns through it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

_LARGEST_SHIFT = 1 / 8
"""Of the side."""

_CUTOUT = 1 / 2
"""Of the side."""


def augment(images: Tensor, changes: Sequence[str], draw: torch.Generator) -> Tensor:
    """Change each image of a batch at random, one change after the other.

    Args:
        images: (B, 3, H, W) float, sRGB in [-1, 1].
        changes: out of CHANGES.
        draw: of the CPU, so that every device draws alike; decides everything.
    Returns:
        The same shape and dtype; not clamped.
    """
    for change in changes:
        images = _FUNCTIONS[change](images, draw)
    return images


def change_color(images: Tensor, draw: torch.Generator) -> Tensor:
    """Add a brightness in [-0.5, 0.5], multiply the saturation by [0, 2] and the contrast by [0.5, 1.5]."""
    brightness, saturation, contrast = (_uniform(images, draw) for _ in range(3))
    images = images + (brightness - 0.5)
    grey = images.mean(dim=1, keepdim=True)
    images = (images - grey) * (saturation * 2) + grey
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * (contrast + 0.5) + mean


def translate(images: Tensor, draw: torch.Generator) -> Tensor:
    """Move each image by up to an eighth of its side in each direction; zeros, mid-grey, move in."""
    height, width = images.shape[2:]
    largest = [int(side * _LARGEST_SHIFT + 0.5) for side in (height, width)]
    tops, lefts = (_integers(2 * most + 1, images, draw) for most in largest)
    padded = F.pad(images, (largest[1], largest[1], largest[0], largest[0]))
    moved = [
        image[:, top : top + height, left : left + width] for image, top, left in zip(padded, tops, lefts, strict=True)
    ]
    return torch.stack(moved)


def cut_out(images: Tensor, draw: torch.Generator) -> Tensor:
    """Put zeros, mid-grey, into a rectangle of half the sides, with its centre anywhere in the image."""
    kept = torch.ones(len(images), 1, *images.shape[2:], dtype=images.dtype)
    sizes = [int(side * _CUTOUT + 0.5) for side in images.shape[2:]]
    # A rectangle of an even size has its centre between two pixels, of which there is one place more.
    rows, columns = (
        _integers(side + 1 - size % 2, images, draw) for side, size in zip(images.shape[2:], sizes, strict=True)
    )
    for mask, row, column in zip(kept, rows, columns, strict=True):
        top, left = row - sizes[0] // 2, column - sizes[1] // 2
        mask[:, max(0, top) : top + sizes[0], max(0, left) : left + sizes[1]] = 0
    return images * kept.to(images.device)


_FUNCTIONS: dict[str, Callable[[Tensor, torch.Generator], Tensor]] = {
    "color": change_color,
    "translation": translate,
    "cutout": cut_out,
}

CHANGES = tuple(_FUNCTIONS)
"""Names of the changes, in the published order."""


def _uniform(images: Tensor, draw: torch.Generator) -> Tensor:
    """A number in [0, 1) for each image: (B, 1, 1, 1), dtype and device of the images."""
    return torch.rand(len(images), 1, 1, 1, generator=draw).to(images)


def _integers(end: int, images: Tensor, draw: torch.Generator) -> list[int]:
    """An integer from 0 to end - 1 for each image."""
    return [int(value) for value in torch.randint(0, end, (len(images),), generator=draw)]
