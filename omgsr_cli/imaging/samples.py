"""Between floats in [0, 1] and the integers that files hold; each way is taken exactly once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from omgsr_cli.errors import NotFiniteError

#: Weights of BT.601, on gamma-encoded values: what JPEG and Pillow call grey.
_LUMA_RED, _LUMA_BLUE = 0.299, 0.114
#: Samples that are converted at a time.
_SAMPLES_AT_ONCE = 1 << 20

#: What each EXIF orientation asks to be done to an (H, W, C) array.
TURNS: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    1: lambda samples: samples,
    2: lambda samples: samples[:, ::-1],
    3: lambda samples: samples[::-1, ::-1],
    4: lambda samples: samples[::-1],
    5: lambda samples: samples.swapaxes(0, 1),
    6: lambda samples: samples[::-1].swapaxes(0, 1),
    7: lambda samples: samples[::-1, ::-1].swapaxes(0, 1),
    8: lambda samples: samples[:, ::-1].swapaxes(0, 1),
}


class SampleLayout(NamedTuple):
    """Of a picture's samples, (H, W, C) uint8 or uint16; C is 1 grey, 2 grey with alpha, 3 RGB, 4 RGBA."""

    height: int
    width: int
    channels: int
    bit_depth: int


def from_samples(samples: NDArray[Any]) -> Tensor:
    """Turn a file's integers into floats.

    Args:
        samples: (H, W, C) or (H, W), uint8 or uint16.
    Returns:
        (C, H, W) float32 in [0, 1]: samples / 255 or / 65535.
    """
    planes = samples[:, :, None] if samples.ndim == 2 else samples
    height, width, channels = planes.shape
    result = torch.empty(channels, height, width)
    rows = max(_SAMPLES_AT_ONCE // max(width, 1), 1)
    # A few rows of one channel at a time, so that beside samples and result nothing is held.
    for channel in range(channels):
        for top in range(0, height, rows):
            # int32 for 16 bits: torch cannot take every operation on uint16.
            part = planes[top : top + rows, :, channel].astype(np.int32)
            result[channel, top : top + rows] = torch.from_numpy(part)
    return result.div_(np.iinfo(planes.dtype).max)


def to_samples(image: Tensor, bit_depth: int) -> NDArray[Any]:
    """Turn floats into a file's integers, rounding half to even.

    Args:
        image: (C, H, W) float in [0, 1]; what lies outside is clipped.
        bit_depth: 8 or 16.
    Returns:
        (H, W, C) uint8 or uint16, contiguous.
    Raises:
        NotFiniteError: a value is NaN, which no integer stands for.
    """
    largest, dtype = (255, np.uint8) if bit_depth == 8 else (65535, np.uint16)
    planes = []
    # Channel by channel, so that a large picture is not held twice in float.
    for channel in image.detach():
        values = channel.to("cpu", torch.float32, copy=True).clamp_(0, 1).mul_(largest).round_()
        # Clipped values cannot overflow their sum, and one NaN makes it NaN.
        if bool(values.sum().isnan()):
            raise NotFiniteError("the image has samples that are not numbers (NaN)")
        planes.append(values.to(torch.int32 if bit_depth == 16 else torch.uint8).numpy().astype(dtype, copy=False))
    return np.stack(planes, axis=-1)


def luma(rgb: Tensor) -> Tensor:
    """Reduce (3, H, W) to (1, H, W): BT.601 on gamma-encoded values; equal channels keep their value."""
    red, green, blue = rgb[0:1], rgb[1:2], rgb[2:3]
    # Written as differences so that a neutral pixel keeps exactly its value.
    return green + (red - green) * _LUMA_RED + (blue - green) * _LUMA_BLUE
