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


Draws = Sequence[torch.Generator]
"""One for each image, of the CPU, so that every device draws alike, and a sample is changed alike in any batch."""


def augment(images: Tensor, changes: Sequence[str], draws: Draws) -> Tensor:
    """Change each image of a batch at random, one change after the other.

    Args:
        images: (B, 3, H, W) float, sRGB in [-1, 1].
        changes: out of CHANGES.
        draws: decide everything.
    Returns:
        The same shape and dtype; not clamped.
    """
    for change in changes:
        images = _FUNCTIONS[change](images, draws)
    return images


def change_color(images: Tensor, draws: Draws) -> Tensor:
    """Add a brightness in [-0.5, 0.5], multiply the saturation by [0, 2] and the contrast by [0.5, 1.5]."""
    brightness, saturation, contrast = (_uniform(images, draws) for _ in range(3))
    images = images + (brightness - 0.5)
    grey = images.mean(dim=1, keepdim=True)
    images = (images - grey) * (saturation * 2) + grey
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return (images - mean) * (contrast + 0.5) + mean


def translate(images: Tensor, draws: Draws) -> Tensor:
    """Move each image by up to an eighth of its side in each direction; zeros, mid-grey, move in."""
    height, width = images.shape[2:]
    largest = [int(side * _LARGEST_SHIFT + 0.5) for side in (height, width)]
    tops, lefts = (_integers(2 * most + 1, draws) for most in largest)
    padded = F.pad(images, (largest[1], largest[1], largest[0], largest[0]))
    moved = [
        image[:, top : top + height, left : left + width] for image, top, left in zip(padded, tops, lefts, strict=True)
    ]
    return torch.stack(moved)


def cut_out(images: Tensor, draws: Draws) -> Tensor:
    """Put zeros, mid-grey, into a rectangle of half the sides, with its centre anywhere in the image."""
    kept = torch.ones(len(images), 1, *images.shape[2:], dtype=images.dtype)
    sizes = [int(side * _CUTOUT + 0.5) for side in images.shape[2:]]
    # A rectangle of an even size has its centre between two pixels, of which there is one place more.
    rows, columns = (_integers(side + 1 - size % 2, draws) for side, size in zip(images.shape[2:], sizes, strict=True))
    for mask, row, column in zip(kept, rows, columns, strict=True):
        top, left = row - sizes[0] // 2, column - sizes[1] // 2
        mask[:, max(0, top) : top + sizes[0], max(0, left) : left + sizes[1]] = 0
    return images * kept.to(images.device)


_FUNCTIONS: dict[str, Callable[[Tensor, Draws], Tensor]] = {
    "color": change_color,
    "translation": translate,
    "cutout": cut_out,
}

CHANGES = tuple(_FUNCTIONS)
"""Names of the changes, in the published order."""


def _uniform(images: Tensor, draws: Draws) -> Tensor:
    """A number in [0, 1) for each image: (B, 1, 1, 1), dtype and device of the images."""
    return torch.stack([torch.rand(1, 1, 1, generator=draw) for draw in draws]).to(images)


def _integers(end: int, draws: Draws) -> list[int]:
    """An integer from 0 to end - 1 for each image."""
    return [int(torch.randint(0, end, (), generator=draw)) for draw in draws]
