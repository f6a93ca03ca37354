"""Colour fixes: give a restored image the colours of its input.

Both methods come from StableSR (arXiv:2305.07015); OSEDiff and OMGSR use them too.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from omgsr_cli.errors import ShapeError, UsageError
from omgsr_cli.imaging import Rows
from omgsr_cli.imaging.rows import BandSpool
from omgsr_cli.options import ColorFix
from omgsr_cli.transfer import download, has_float64, upload

#: Added to the variance before the square root, as published; avoids a division by zero in flat images.
VARIANCE_EPSILON = 1e-5

#: Levels of the published a-trous decomposition; its reach is 2**levels - 1 pixels.
WAVELET_LEVELS = 5

# The wavelet fix returns at least this many rows at a time.
_WAVELET_ROWS = 256


@dataclass(frozen=True)
class ChannelStatistics:
    """Mean and spread of every channel of a whole image.

    Attributes:
        mean: (C,) float64.
        std: (C,) float64: square root of the unbiased variance plus `VARIANCE_EPSILON`; one pixel has variance 0.
    """

    mean: Tensor
    std: Tensor


class RowStatistics:
    """Accumulates the statistics of an image from bands of rows.

    Each row is summed separately, in float64 if the device has it, so the result does not depend on the bands. The sums
    stay on the device until the statistics are asked for.
    """

    def __init__(self) -> None:
        self._means: list[Tensor] = []
        self._squares: list[Tensor] = []
        self._width = 0

    def add(self, band: Tensor) -> None:
        """Add the next rows, (C, n, W) float, any range.

        Raises:
            ShapeError: the band does not have three dimensions, has no pixels, or has another width.
        """
        if band.ndim != 3 or band.numel() == 0 or self._width not in (0, band.shape[2]):
            raise ShapeError(f"channel statistics need rows of one width, (C, n, W), not {tuple(band.shape)}")
        self._width = band.shape[2]
        # A few rows at a time keep the float64 copy small.
        for rows in torch.split(band, 64, dim=1):
            values = (rows.double() if has_float64(rows.device) else rows.float()).contiguous()
            mean = values.mean(dim=-1)
            self._means.append(mean)
            self._squares.append((values - mean[..., None]).square_().sum(dim=-1))

    def whole(self) -> ChannelStatistics:
        """The statistics of all rows on the CPU, combined from parts of equal size (Chan, Golub and LeVeque, 1979)."""
        both = torch.stack((torch.cat(self._means, dim=1), torch.cat(self._squares, dim=1)))
        means, squares = download(both)[0].double()
        mean = means.mean(dim=1)
        total = squares.sum(dim=1) + (means - mean[:, None]).square().sum(dim=1) * self._width
        count = means.shape[1] * self._width
        return ChannelStatistics(mean, (total / max(count - 1, 1) + VARIANCE_EPSILON).sqrt())


def adain_from_statistics(band: Tensor, own: ChannelStatistics, wanted: ChannelStatistics) -> Tensor:
    """Give every channel of a band the wanted mean and standard deviation.

    (band - own.mean) / own.std * wanted.std + wanted.mean
    Source: AdaIN, arXiv:1703.06868, Eq. 8, on pixels as in StableSR, arXiv:2305.07015.

    Args:
        band: (C, n, W) float, sRGB in [0, 1].
        own: statistics of the whole restored image.
        wanted: statistics of the whole reference.
    Returns:
        A new tensor with the shape and dtype of band; not clamped.
    """
    gain = wanted.std / own.std
    offset = wanted.mean - own.mean * gain
    gain, offset = upload(torch.stack((gain, offset)).to(band.dtype)[..., None, None], band.device)
    return torch.addcmul(offset, band, gain)


def wavelet_color_fix(restored: Tensor, reference: Tensor, levels: int = WAVELET_LEVELS) -> Tensor:
    """Combine the high frequencies of the restored image with the low frequencies of the reference.

    The decomposition is undecimated (a-trous), with the 3x3 kernel [[1,2,1],[2,4,2],[1,2,1]]/16 dilated by 2**i at
    level i and repeated edges. The high frequencies of all levels sum to restored - low(restored), and low() is linear,
    so high(restored) + low(reference) = restored + low(reference - restored): one pass instead of two.
    Source: StableSR, arXiv:2305.07015.

    Args:
        restored: (B, 3, H, W) float, sRGB in [0, 1].
        reference: same shape.
        levels: levels of the decomposition, whose reach is 2**levels - 1 pixels.
    Returns:
        (B, 3, H, W), dtype and device of restored; not clamped.
    Raises:
        ShapeError: the shapes differ or are not (B, C, H, W).
    """
    if restored.shape != reference.shape or restored.ndim != 4:
        raise ShapeError(f"the wavelet fix needs equal shapes: {tuple(restored.shape)}, {tuple(reference.shape)}")
    fixed = torch.empty_like(restored)
    # One channel after the other: a large image needs three extra planes, not nine.
    for channel in range(restored.shape[1]):
        plane = (reference[:, channel] - restored[:, channel]).float()
        torch.add(restored[:, channel], _low_frequencies(plane, levels), out=fixed[:, channel])
    return fixed


def match_color(restored: Iterator[Tensor], reference: Rows, method: ColorFix, bit_depth: int) -> Iterator[Tensor]:
    """Give the bands of a restored image the colours of the reference.

    The result does not depend on the bands. AdaIN needs the statistics of the whole image before it returns the first
    row, so it stores the image meanwhile; the wavelet fix delays rows by its reach.

    Args:
        restored: bands of (3, n, W) float32 on one device, sRGB in [0, 1], from top to bottom.
        reference: an image of the same height and width.
        method: "adain", "wavelet" or "none".
        bit_depth: bit depth of the image. At 8 the fix works on 8-bit images, and the restored one is truncated, as
            published; the fix sets the mean, so the half level that truncation loses does not darken the result.
    Returns:
        Bands of the same rows on the same device, clamped to [0, 1].
    Raises:
        UsageError: the method does not exist.
        ShapeError: the widths differ.
        OmgsrError: there is no space to store the image.
    """
    if method == "none":
        return restored
    if method not in ("adain", "wavelet"):
        raise UsageError(f"no colour fix is called {method!r}", "use adain, wavelet or none")
    if bit_depth == 8:
        restored = ((band * 255).floor_().div_(255) for band in restored)
    fixed = _adain(restored, reference, bit_depth) if method == "adain" else _wavelet(restored, reference)
    return (band.clamp_(0, 1) for band in fixed)


def _adain(restored: Iterator[Tensor], reference: Rows, bit_depth: int) -> Iterator[Tensor]:
    own, wanted, spool = RowStatistics(), RowStatistics(), BandSpool(bit_depth)
    row, device = 0, torch.device("cpu")
    for band in restored:
        own.add(band)
        device = band.device
        wanted.add(upload(reference.read(row, row + band.shape[1]), device))
        spool.append(band)
        row += band.shape[1]
    before, after = own.whole(), wanted.whole()
    for band in spool.bands(device):
        yield adain_from_statistics(band, before, after)


def _wavelet(restored: Iterator[Tensor], reference: Rows) -> Iterator[Tensor]:
    height, reach = reference.size_px[0], 2**WAVELET_LEVELS - 1
    held, top, done = None, 0, 0
    for band in restored:
        held = band if held is None else torch.cat([held, band], dim=1)
        known = top + held.shape[1]
        ready = known if known == height else known - reach
        # Each band reads and blurs the rows around it again, so larger bands cost less.
        if known < height and ready - done < _WAVELET_ROWS:
            continue
        fixed = wavelet_color_fix(held[None], upload(reference.read(top, known)[None], held.device))[0]
        yield fixed[:, done - top : ready - top]
        keep = max(ready - reach, 0)
        held, top, done = held[:, keep - top :], keep, ready


def _low_frequencies(plane: Tensor, levels: int) -> Tensor:
    """Blur (B, H, W) with every level's kernel in turn; overwrites `plane` and returns its last state."""
    spare = torch.empty_like(plane)
    for level in range(levels):
        _blur_axis(plane, spare, 2**level, axis=1)
        _blur_axis(spare, plane, 2**level, axis=2)
    return plane


def _blur_axis(source: Tensor, target: Tensor, radius: int, axis: int) -> None:
    """Write 1/4, 1/2, 1/4 of the points `radius` before, at and after each point to `target`; edges are repeated."""
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
