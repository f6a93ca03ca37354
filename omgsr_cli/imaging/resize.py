"""The one resize: Pillow's filters on planes of [0, 1], of a whole picture or of any of the result's rows."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

FILTERS: dict[str, Image.Resampling] = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}

_PILLOW_FILTERS = FILTERS | {"bilinear": Image.Resampling.BILINEAR}

_Floats = NDArray[np.float64]

#: Pillow's weights for 8 bits are integers of this many binary places.
_WEIGHT_BITS = 22

#: Rows of the result that are summed up together, so that the sums need little memory.
_ROWS_AT_ONCE = 64


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
    if tuple(image.shape[-2:]) == tuple(size_px):
        return image
    planes = [_by_pillow(plane, size_px, method) for plane in _pillow_planes(image, bit_depth)]
    return _as_tensor(planes, bit_depth, clamp=True)


class ResizedRows:
    """What `resize` gives, to the bit, but computed as its rows are read.

    Where the height shrinks it is computed at once: the result is smaller than what it comes from.

    Args:
        image: (C, H, W) float32 in [0, 1], or any range where it is not clamped.
        size_px: height and width of the result.
        bit_depth: as for `resize`.
        method: "bicubic" or "bilinear".
        clamp: whether values are kept in [0, 1]; at 8 bits they always are.
    """

    def __init__(
        self,
        image: Tensor,
        size_px: tuple[int, int],
        bit_depth: int = 8,
        method: str = "bicubic",
        *,
        clamp: bool = True,
    ) -> None:
        self.size_px = size_px
        self._depth, self._method, self._clamp = bit_depth, method, clamp
        if size_px[0] < image.shape[1]:
            planes = [_by_pillow(plane, size_px, method) for plane in _pillow_planes(image, bit_depth)]
            image = _as_tensor(planes, bit_depth, clamp)
        self._image = image

    def read(self, top: int, bottom: int) -> Tensor:
        """As for `Rows`."""
        height, width = self._image.shape[-2:]
        if (height, width) == tuple(self.size_px):
            return self._image[:, top:bottom].cpu()
        if height == self.size_px[0]:
            first, last = top, bottom
        else:
            starts, weights = _weights(height, self.size_px[0], top, bottom, self._method)
            first, last = int(starts[0]), min(int(starts[-1]) + weights.shape[1], height)
        planes = []
        # Pillow, too, goes over the width first where the height grows.
        for plane in _pillow_planes(self._image[:, first:last], self._depth):
            wide = (
                _by_pillow(plane, (last - first, self.size_px[1]), self._method) if self.size_px[1] != width else plane
            )
            planes.append(wide if height == self.size_px[0] else _vertically(wide, starts - first, weights))
        return _as_tensor(planes, self._depth, self._clamp)


def _pillow_planes(image: Tensor, bit_depth: int) -> list[NDArray[Any]]:
    if bit_depth == 8:
        return [(plane * 255).round_().to(torch.uint8).numpy() for plane in image.cpu()]
    return [plane.contiguous().numpy() for plane in image.cpu()]


def _by_pillow(plane: NDArray[Any], size_px: tuple[int, int], method: str) -> NDArray[Any]:
    return np.asarray(Image.fromarray(plane).resize((size_px[1], size_px[0]), _PILLOW_FILTERS[method]))


def _as_tensor(planes: list[NDArray[Any]], bit_depth: int, clamp: bool) -> Tensor:
    result = torch.from_numpy(np.stack(planes))
    if bit_depth == 8:
        return result.float().div_(255)
    return result.clamp_(0, 1) if clamp else result


def _weights(source: int, target: int, top: int, bottom: int, method: str) -> tuple[NDArray[np.int64], _Floats]:
    """Which elements of an axis make elements `top` to `bottom` of the resized one, and with which weights.

    Source: Pillow's Resample.c, whose double arithmetic this repeats.

    Returns:
        The first element for each, and the weights from there on, (bottom - top, K); 0 beyond the axis' end.
    """
    kernel, support = _KERNELS[method]
    scale = source / target
    stretch = max(scale, 1.0)
    support *= stretch
    centre = (np.arange(top, bottom) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + support + 0.5).astype(np.int64), source)
    tap = np.arange(math.ceil(support) * 2 + 1)
    weights = kernel(np.abs((tap + first[:, None] - centre[:, None] + 0.5) * (1 / stretch)))
    weights = np.where(tap < (last - first)[:, None], weights, 0.0)
    total = np.zeros(len(first))
    for column in weights.T:
        total += column
    return first, weights / total[:, None]


def _vertically(plane: NDArray[Any], starts: NDArray[np.int64], weights: _Floats) -> NDArray[Any]:
    """Sum up rows of (h, W) uint8 or float32 by their weights, as Pillow does: in whole numbers, or in double."""
    parts = []
    for at in range(0, len(starts), _ROWS_AT_ONCE):
        some, share = starts[at : at + _ROWS_AT_ONCE], weights[at : at + _ROWS_AT_ONCE]
        low, high = int(some[0]), min(int(some[-1]) + share.shape[1], len(plane))
        near = (some - low)[:, None] + np.arange(share.shape[1])
        sum_up = _sum_whole if plane.dtype == np.uint8 else _sum_double
        parts.append(sum_up(plane[low:high], np.minimum(near, high - low - 1), share))
    return np.concatenate(parts)


def _sum_whole(rows: NDArray[np.uint8], near: NDArray[np.int64], share: _Floats) -> NDArray[np.uint8]:
    scaled = share * (1 << _WEIGHT_BITS)
    whole = np.trunc(scaled + np.where(scaled < 0, -0.5, 0.5)).astype(np.int32)
    wide = rows.astype(np.int32)
    total = np.full((len(near), rows.shape[1]), 1 << (_WEIGHT_BITS - 1), np.int32)
    for tap in range(near.shape[1]):
        total += wide[near[:, tap]] * whole[:, tap, None]
    return (total >> _WEIGHT_BITS).clip(0, 255).astype(np.uint8)


def _sum_double(rows: NDArray[np.float32], near: NDArray[np.int64], share: _Floats) -> NDArray[np.float32]:
    total = np.zeros((len(near), rows.shape[1]))
    for tap in range(near.shape[1]):
        total += rows[near[:, tap]].astype(np.float64) * share[:, tap, None]
    return total.astype(np.float32)


def _cubic(distance: _Floats) -> _Floats:
    near = (1.5 * distance - 2.5) * distance * distance + 1
    far = (((distance - 5) * distance + 8) * distance - 4) * -0.5
    return np.where(distance < 1, near, np.where(distance < 2, far, 0.0))


def _triangle(distance: _Floats) -> _Floats:
    return np.where(distance < 1, 1 - distance, 0.0)


_KERNELS: dict[str, tuple[Callable[[_Floats], _Floats], float]] = {
    "bicubic": (_cubic, 2.0),
    "bilinear": (_triangle, 1.0),
}
