"""Resize images in [0, 1] with Pillow's filters: complete images, any range of rows, or a sequence of bands."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

FILTERS: dict[str, Image.Resampling] = {"bicubic": Image.Resampling.BICUBIC, "lanczos": Image.Resampling.LANCZOS}

_PILLOW_FILTERS = FILTERS | {"bilinear": Image.Resampling.BILINEAR}

_Floats = NDArray[np.float64]

#: Pillow's weights for 8 bits are fixed-point numbers with this many fractional bits.
_WEIGHT_BITS = 22

#: Rows of the result that are summed at a time; a small number saves memory.
_ROWS_AT_ONCE = 64


def resize(image: Tensor, size_px: tuple[int, int], bit_depth: int = 8, method: str = "bicubic") -> Tensor:
    """Resize with one of Pillow's filters: bicubic with a = -0.5, or Lanczos; both antialias when downscaling.

    Args:
        image: (C, H, W) float32 in [0, 1], on any device.
        size_px: height and width of the result.
        bit_depth: 8 computes in integer levels of 1/255, like the published scripts; 16 computes in float32.
        method: a name in FILTERS.
    Returns:
        (C, height, width) float32 in [0, 1] on the CPU; the image itself if it already has that size.
    """
    if tuple(image.shape[-2:]) == tuple(size_px):
        return image
    planes = [_by_pillow(plane, size_px, method) for plane in _pillow_planes(image, bit_depth)]
    return _as_tensor(planes, bit_depth, clamp=True)


def resize_bands(
    bands: Iterator[Tensor],
    source_px: tuple[int, int],
    size_px: tuple[int, int],
    bit_depth: int = 8,
    method: str = "bicubic",
) -> Iterator[Tensor]:
    """Resize an image that arrives in bands from its first rows to its last; bit-identical to `resize`.

    Only the rows that the filter still needs are held.

    Args:
        bands: (C, n, W) float32 in [0, 1], on any device; at 8 bits also uint8 on the CPU.
        source_px: height and width of the image.
        size_px: height and width of the result.
        bit_depth: as for `resize`.
        method: "bicubic" or "bilinear".
    Yields:
        (C, n, width) float32 in [0, 1] on the CPU; the bands themselves if the size does not change.
    """
    if source_px == size_px:
        yield from bands
        return
    height, (high, wide) = source_px[0], size_px
    is_height_first = _is_height_first(source_px, size_px)
    _, ends = _reach(height, high, 0, high, method)
    held: list[NDArray[Any]] = []
    top = known = done = 0
    for band in bands:
        planes = _pillow_planes(band, bit_depth)
        known += band.shape[1]
        del band
        if not is_height_first:
            planes = [_to_width(plane, wide, method) for plane in planes]
        held = [np.concatenate(pair) for pair in zip(held, planes, strict=True)] if held else planes
        ready = known if high == height else int(np.searchsorted(ends, known, side="right"))
        if ready == done:
            continue
        if high == height:
            made, top, held = held, known, []
        else:
            starts, weights = _weights(height, high, done, min(ready + 1, high), method)
            count = ready - done
            made = [_vertically(plane, starts[:count] - top, weights[:count]) for plane in held]
            # The first source row that the next row of the result needs.
            kept = int(starts[-1])
            held, top = [plane[kept - top :] for plane in held], kept
        done = ready
        if is_height_first:
            made = [_to_width(plane, wide, method) for plane in made]
        yield _as_tensor(made, bit_depth, clamp=True)


class ResizedRows:
    """A resized image whose rows are computed when they are read; bit-identical to `resize`.

    If the height decreases, the first read computes the complete result, which is smaller than its source.

    Args:
        image: (C, H, W) float32 in [0, 1], or any range without clamping.
        size_px: height and width of the result.
        bit_depth: as for `resize`.
        method: "bicubic" or "bilinear".
        clamp: True clamps values to [0, 1]; at 8 bits they are always clamped.
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
        self._source = image

    @cached_property
    def _image(self) -> Tensor:
        if self.size_px[0] >= self._source.shape[1]:
            return self._source
        planes = _pillow_planes(self._source, self._depth)
        return _as_tensor([_by_pillow(plane, self.size_px, self._method) for plane in planes], self._depth, self._clamp)

    def read(self, top: int, bottom: int) -> Tensor:
        """See `Rows`."""
        height, width = self._image.shape[-2:]
        if (height, width) == tuple(self.size_px):
            return self._image[:, top:bottom].cpu()
        if height == self.size_px[0]:
            first, last = top, bottom
        else:
            starts, weights = _weights(height, self.size_px[0], top, bottom, self._method)
            first, last = int(starts[0]), min(int(starts[-1]) + weights.shape[1], height)
        planes = []
        for plane in _pillow_planes(self._image[:, first:last], self._depth):
            wide = _to_width(plane, self.size_px[1], self._method)
            planes.append(wide if height == self.size_px[0] else _vertically(wide, starts - first, weights))
        return _as_tensor(planes, self._depth, self._clamp)


def _pillow_planes(image: Tensor, bit_depth: int) -> list[NDArray[Any]]:
    if image.dtype == torch.uint8:
        return [plane.numpy() for plane in image]
    if bit_depth == 8:
        return [(plane * 255).round_().to(torch.uint8).numpy() for plane in image.cpu()]
    return [plane.contiguous().numpy() for plane in image.cpu()]


def _by_pillow(plane: NDArray[Any], size_px: tuple[int, int], method: str) -> NDArray[Any]:
    """Resize one axis after the other; values are rounded in between, so the order matters."""
    (height, width), image = size_px, Image.fromarray(plane)
    between = (image.width, height) if _is_height_first((image.height, image.width), size_px) else (width, image.height)
    for size in (between, (width, height)):
        image = image.resize(size, _PILLOW_FILTERS[method])
    return np.asarray(image)


def _is_height_first(source_px: tuple[int, int], size_px: tuple[int, int]) -> bool:
    """Whether the height is resized before the width, as in Pillow 13; older versions always start with the width."""
    (height, width), (high, wide) = source_px, size_px
    return high < height and height - high > 2 * (width - wide)


def _to_width(plane: NDArray[Any], width: int, method: str) -> NDArray[Any]:
    if plane.shape[1] == width:
        return plane
    return np.asarray(Image.fromarray(plane).resize((width, plane.shape[0]), _PILLOW_FILTERS[method]))


def _as_tensor(planes: list[NDArray[Any]], bit_depth: int, clamp: bool) -> Tensor:
    result = torch.from_numpy(np.stack(planes))
    if bit_depth == 8:
        return result.float().div_(255)
    return result.clamp_(0, 1) if clamp else result


def _weights(source: int, target: int, top: int, bottom: int, method: str) -> tuple[NDArray[np.int64], _Floats]:
    """Compute which source elements contribute to elements `top` to `bottom` of a resized axis, and their weights.

    Source: Pillow's Resample.c, with the same arithmetic in double precision.

    Returns:
        The first source element for each, and the weights from there on, (bottom - top, K); 0 beyond the axis' end.
    """
    kernel, support = _KERNELS[method]
    scale = source / target
    stretch = max(scale, 1.0)
    centre = (np.arange(top, bottom) + 0.5) * scale
    first, last = _reach(source, target, top, bottom, method)
    tap = np.arange(math.ceil(support * stretch) * 2 + 1)
    weights = kernel(np.abs((tap + first[:, None] - centre[:, None] + 0.5) * (1 / stretch)))
    weights = np.where(tap < (last - first)[:, None], weights, 0.0)
    total = np.zeros(len(first))
    for column in weights.T:
        total += column
    return first, weights / total[:, None]


def _reach(source: int, target: int, top: int, bottom: int, method: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The first source element that contributes to each of elements `top` to `bottom`, and the last + 1."""
    scale = source / target
    support = _KERNELS[method][1] * max(scale, 1.0)
    centre = (np.arange(top, bottom) + 0.5) * scale
    first = np.maximum((centre - support + 0.5).astype(np.int64), 0)
    return first, np.minimum((centre + support + 0.5).astype(np.int64), source)


def _vertically(plane: NDArray[Any], starts: NDArray[np.int64], weights: _Floats) -> NDArray[Any]:
    """Compute weighted sums of rows of (h, W) uint8 or float32 like Pillow: in integers or in double precision."""
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


class ColorUnderAlpha:
    """Colour that is resized with alpha as its weight.

    Colours of transparent pixels do not bleed into visible edges. Areas without opaque pixels nearby are filled
    smoothly with the surrounding colours.

    Args:
        rgb: (3, H, W) float32 in [0, 1], not premultiplied.
        alpha: (1, H, W) float32 in [0, 1].
    """

    def __init__(self, rgb: Tensor, alpha: Tensor) -> None:
        filled = _fill_transparent(rgb, alpha)
        self._planes = (filled, alpha, filled * alpha)

    def resized(self, size_px: tuple[int, int]) -> _ResizedUnderAlpha:
        """The resized colour, whose rows are (3, n, width) float32 in [0, 1], not premultiplied."""
        return _ResizedUnderAlpha(self._planes, size_px)


class _ResizedUnderAlpha:
    def __init__(self, planes: tuple[Tensor, Tensor, Tensor], size_px: tuple[int, int]) -> None:
        self.size_px = size_px
        self._filled, self._alpha, self._premultiplied = (ResizedRows(some, size_px, 16) for some in planes)

    def read(self, top: int, bottom: int) -> Tensor:
        """See `Rows`."""
        filled, alpha, premultiplied = (
            rows.read(top, bottom) for rows in (self._filled, self._alpha, self._premultiplied)
        )
        # Below two levels of alpha, the quotient is noise and invisible.
        straight = torch.where(alpha > 2 / 255, premultiplied / alpha.clamp(min=1 / 255), filled)
        return straight.clamp_(0, 1)


def _fill_transparent(rgb: Tensor, alpha: Tensor) -> Tensor:
    """Fill transparent pixels with surrounding colours: alpha-weighted means of squares, from coarse to fine."""
    levels = [(rgb * alpha, alpha)]
    while max(levels[-1][1].shape[-2:]) > 1:
        color, weight = levels[-1]
        levels.append((_halve(color), _halve(weight)))
    fill = levels[-1][0] / levels[-1][1].clamp(min=1e-6)
    for color, weight in reversed(levels[:-1]):
        fill = F.interpolate(fill[None], size=color.shape[-2:], mode="bilinear", align_corners=False)[0]
        own = color / weight.clamp(min=1e-6)
        fill = torch.lerp(fill, own, (weight * 4).clamp(max=1))
    # Every visible pixel keeps its own colour.
    return torch.where(alpha > 0, rgb, fill)


def _halve(planes: Tensor) -> Tensor:
    return F.avg_pool2d(planes[None], 2, ceil_mode=True)[0]
