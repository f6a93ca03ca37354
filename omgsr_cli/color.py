"""Colour fixes: give the restored picture the colours of the picture it came from.

Both are those of StableSR (arXiv:2305.07015), which OSEDiff and OMGSR use after it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from omgsr_cli.errors import ShapeError, UsageError

ColorFix = Literal["adain", "wavelet", "none"]

#: Added to the variance before its root, as published; keeps flat pictures from dividing by zero.
VARIANCE_EPSILON = 1e-5

#: Levels of the published a-trous decomposition; a point reaches 2**levels - 1 pixels.
WAVELET_LEVELS = 5


@dataclass(frozen=True)
class ChannelStatistics:
    """Mean and spread of every channel, in a form that parts of a picture can be merged from.

    Attributes:
        count: pixels seen per channel.
        mean: (B, C) float64.
        sum_of_squares: (B, C) float64, the sum of squared distances from the mean.
    """

    count: int
    mean: Tensor
    sum_of_squares: Tensor

    @property
    def std(self) -> Tensor:
        """(B, C) float64: root of the unbiased variance plus `VARIANCE_EPSILON`; one pixel has variance 0."""
        return (self.sum_of_squares / max(self.count - 1, 1) + VARIANCE_EPSILON).sqrt()

    def merged(self, other: ChannelStatistics) -> ChannelStatistics:
        """The statistics of both sets of pixels together (Chan, Golub and LeVeque, 1979)."""
        count = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        cross = delta.square() * (self.count * other.count / count)
        return ChannelStatistics(count, mean, self.sum_of_squares + other.sum_of_squares + cross)


def channel_statistics(image: Tensor) -> ChannelStatistics:
    """Measure every channel, summing in float64 one row of pixels after the other.

    Args:
        image: (B, C, H, W) float, any range; a whole picture or a part to be `merged`.
    Returns:
        count H*W, mean and sum of squared distances, (B, C) float64 on image's device.
    Raises:
        ShapeError: not four dimensions, or no pixels.
    """
    if image.ndim != 4 or image.shape[-1] * image.shape[-2] == 0:
        raise ShapeError(f"channel statistics need (B, C, H, W) with pixels, not {tuple(image.shape)}")
    count = image.shape[-1] * image.shape[-2]
    # MPS has no float64: there the sums are taken in float32, row by row.
    dtype = torch.float32 if image.device.type == "mps" else torch.float64
    mean = image.mean(dim=-1, dtype=dtype).mean(dim=-1)
    # Rows first, so that the float64 copy is never larger than one channel's.
    squares = torch.stack(
        [
            (channel.to(dtype) - centre[:, None, None]).square().sum(dim=(-1, -2))
            for channel, centre in zip(image.unbind(1), mean.unbind(1), strict=True)
        ],
        dim=1,
    )
    return ChannelStatistics(count, mean.cpu().double(), squares.cpu().double())


def adain_from_statistics(image: Tensor, own: ChannelStatistics, wanted: ChannelStatistics) -> Tensor:
    """Move every channel of a picture, or of a part of it, from its own mean and spread to the wanted ones.

    (image - own.mean) / own.std * wanted.std + wanted.mean
    Source: AdaIN, arXiv:1703.06868, Eq. 8, on pixels as in StableSR, arXiv:2305.07015.

    Args:
        image: (B, C, H, W) float, sRGB in [0, 1].
        own: of the whole restored picture.
        wanted: of the whole reference.
    Returns:
        New tensor, shape, dtype and device of image; not clamped.
    """
    gain = wanted.std / own.std
    offset = wanted.mean - own.mean * gain
    gain, offset = (value.to(image)[:, :, None, None] for value in (gain, offset))
    return torch.addcmul(offset, image, gain)


def adain_color_fix(restored: Tensor, reference: Tensor) -> Tensor:
    """Give every channel of the restored picture the reference's mean and spread.

    Source: StableSR, arXiv:2305.07015; unbiased variance, 1e-5 added to it.

    Args:
        restored: (B, 3, H, W) float, sRGB in [0, 1].
        reference: (B, 3, H', W') float, sRGB in [0, 1]; any size.
    Returns:
        (B, 3, H, W), dtype and device of restored; not clamped.
    Raises:
        ShapeError: batch or channels differ, or a tensor is not (B, C, H, W).
    """
    if restored.shape[:2] != reference.shape[:2]:
        raise ShapeError(f"AdaIN needs equal batch and channels: {tuple(restored.shape)}, {tuple(reference.shape)}")
    return adain_from_statistics(restored, channel_statistics(restored), channel_statistics(reference))


def wavelet_color_fix(restored: Tensor, reference: Tensor, levels: int = WAVELET_LEVELS) -> Tensor:
    """Keep the restored picture's high frequencies and take the reference's low ones.

    An undecimated a-trous decomposition with the 3x3 kernel [[1,2,1],[2,4,2],[1,2,1]]/16, dilated by 2**i at level
    i, edges repeated. The high frequencies of all levels sum to restored - low(restored), and low() is linear, so
    high(restored) + low(reference) = restored + low(reference - restored): one pass instead of two.
    Source: StableSR, arXiv:2305.07015.

    Args:
        restored: (B, 3, H, W) float, sRGB in [0, 1].
        reference: same shape.
        levels: of the decomposition; a pixel reaches 2**levels - 1 pixels far.
    Returns:
        (B, 3, H, W), dtype and device of restored; not clamped.
    Raises:
        ShapeError: the shapes differ or are not (B, C, H, W).
    """
    if restored.shape != reference.shape or restored.ndim != 4:
        raise ShapeError(f"the wavelet fix needs equal shapes: {tuple(restored.shape)}, {tuple(reference.shape)}")
    fixed = torch.empty_like(restored)
    # One channel after the other: a large picture needs three extra planes, not nine.
    for channel in range(restored.shape[1]):
        plane = (reference[:, channel] - restored[:, channel]).float()
        torch.add(restored[:, channel], _low_frequencies(plane, levels), out=fixed[:, channel])
    return fixed


def match_color(restored: Tensor, reference: Tensor, method: ColorFix) -> Tensor:
    """Apply the named colour fix; "none" gives the restored picture itself.

    Args:
        restored: (B, 3, H, W) float, sRGB in [0, 1].
        reference: same shape for "wavelet".
        method: "adain", "wavelet" or "none".
    Returns:
        (B, 3, H, W), dtype and device of restored; not clamped.
    Raises:
        ShapeError: the shapes do not go together.
        UsageError: there is no such method.
    """
    if method == "adain":
        return adain_color_fix(restored, reference)
    if method == "wavelet":
        return wavelet_color_fix(restored, reference)
    if method == "none":
        return restored
    raise UsageError(f"no colour fix is called {method!r}", "use adain, wavelet or none")


def _low_frequencies(plane: Tensor, levels: int) -> Tensor:
    """Blur (B, H, W) with every level's kernel in turn; overwrites `plane` and returns its last state."""
    spare = torch.empty_like(plane)
    for level in range(levels):
        _blur_axis(plane, spare, 2**level, axis=1)
        _blur_axis(spare, plane, 2**level, axis=2)
    return plane


def _blur_axis(source: Tensor, target: Tensor, radius: int, axis: int) -> None:
    """Write 1/4, 1/2, 1/4 of the points `radius` before, at and after each point, edges repeated, to `target`."""
    length = source.shape[axis]
    torch.mul(source, 0.5, out=target)
    inside = max(length - radius, 0)
    outside = length - inside
    first, last = source.narrow(axis, 0, 1), source.narrow(axis, length - 1, 1)
    target.narrow(axis, 0, outside).add_(first, alpha=0.25)
    target.narrow(axis, inside, outside).add_(last, alpha=0.25)
    if inside:
        target.narrow(axis, radius, inside).add_(source.narrow(axis, 0, inside), alpha=0.25)
        target.narrow(axis, 0, inside).add_(source.narrow(axis, radius, inside), alpha=0.25)
