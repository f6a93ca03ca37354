"""The one resize: Pillow's filters on planes of [0, 1]."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

FILTERS: dict[str, Image.Resampling] = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}


def resize(image: Tensor, size_px: tuple[int, int], bit_depth: int = 8, method: str = "bicubic") -> Tensor:
    """Resize with a filter of Pillow's: bicubic with a = -0.5, or Lanczos; both are antialiased when reducing.

    Args:
        image: (C, H, W) float32 in [0, 1], on any device.
        size_px: height and width of the result.
        bit_depth: 8 computes in whole levels of 1/255, as the published scripts do; 16 in float32.
        method: a name in FILTERS.
    Returns:
        (C, height, width) float32 in [0, 1] on the CPU; the image itself where it has that size already.
    """
    height, width = size_px
    if tuple(image.shape[-2:]) == (height, width):
        return image
    planes = []
    for plane in image.cpu():
        values = (plane * 255).round_().to(torch.uint8).numpy() if bit_depth == 8 else plane.contiguous().numpy()
        planes.append(np.asarray(Image.fromarray(values).resize((width, height), FILTERS[method])))
    result = torch.from_numpy(np.stack(planes))
    return result.float().div_(255) if bit_depth == 8 else result.clamp_(0, 1)
