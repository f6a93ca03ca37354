"""Tone curves of ICC profiles, and sRGB's own: between encoded values and light."""

from __future__ import annotations

import struct

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

#: Points of a curve's tables: one per 16-bit value.
_POINTS = 65536


class ProfileError(ValueError):
    """The bytes are no ICC profile that can be used."""


class Curve:
    """A rising tone curve of a profile, as tables in both directions.

    Between table points it is linear: against the exact curve both directions are right to 1/65535 of the range.

    Args:
        light: (65536,) the light in [0, 1] of evenly spaced encoded values in [0, 1].
    Raises:
        ProfileError: it does not rise from dark to bright.
    """

    def __init__(self, light: NDArray[np.float64]) -> None:
        if not np.isfinite(light).all():
            raise ProfileError("a tone curve is not finite")
        rising = np.maximum.accumulate(light.clip(0, 1))
        if rising[-1] - rising[0] < 0.5:
            raise ProfileError("a tone curve does not rise")
        encoded = np.linspace(0.0, 1.0, _POINTS)
        self._to_light = torch.from_numpy(rising.astype(np.float32))
        # Spaced by the root of the light: there curves like sRGB's are nearly straight, in the shadows too.
        self._to_encoded = torch.from_numpy(np.interp(encoded**2, rising, encoded).astype(np.float32))

    def to_light(self, encoded: Tensor) -> Tensor:
        """Decode values in [0, 1], any shape; what lies outside is clipped."""
        return _looked_up(self._to_light, encoded.clamp(0, 1))

    def to_encoded(self, light: Tensor) -> Tensor:
        """Encode light in [0, 1], any shape; what lies outside is clipped."""
        return _looked_up(self._to_encoded, light.clamp(0, 1).sqrt_())


def srgb_to_light(encoded: Tensor) -> Tensor:
    """Decode sRGB (IEC 61966-2-1), any range; below 0 it is mirrored."""
    size = encoded.abs()
    light = torch.where(size <= 0.04045, size / 12.92, ((size + 0.055) / 1.055) ** 2.4)
    return light.copysign(encoded)


def light_to_srgb(light: Tensor) -> Tensor:
    """Encode sRGB (IEC 61966-2-1), any range; below 0 it is mirrored."""
    size = light.abs()
    encoded = torch.where(size <= 0.0031308, size * 12.92, 1.055 * size ** (1 / 2.4) - 0.055)
    return encoded.copysign(light)


def parse_curve(tag: bytes) -> Curve:
    """Read a `curv` or `para` tag (ICC.1:2022, 10.6 and 10.18).

    Raises:
        ProfileError: it is neither, or too short.
    """
    try:
        if tag[:4] == b"curv":
            return Curve(_sampled_curve(tag))
        if tag[:4] == b"para":
            return Curve(_parametric_curve(tag))
    except (struct.error, ValueError, ZeroDivisionError) as error:
        raise ProfileError(f"a tone curve cannot be read: {error}") from error
    raise ProfileError(f"a tone curve is of the unknown type {tag[:4]!r}")


def _looked_up(table: Tensor, positions: Tensor) -> Tensor:
    scaled = positions * (_POINTS - 1)
    below = scaled.to(torch.int64).clamp_(max=_POINTS - 2)
    low = table[below]
    return low + (table[below + 1] - low) * (scaled - below)


def _sampled_curve(tag: bytes) -> NDArray[np.float64]:
    count = struct.unpack_from(">I", tag, 8)[0]
    encoded = np.linspace(0.0, 1.0, _POINTS)
    if count == 0:
        return encoded
    if count == 1:
        return np.power(encoded, float(struct.unpack_from(">H", tag, 12)[0]) / 256)
    samples = np.frombuffer(tag, ">u2", count, 12) / 65535
    return np.interp(encoded, np.linspace(0.0, 1.0, count), samples).astype(np.float64)


def _parametric_curve(tag: bytes) -> NDArray[np.float64]:
    kind = struct.unpack_from(">H", tag, 8)[0]
    if kind > 4:
        raise ProfileError(f"parametric curve {kind} is unknown")
    numbers = [float(number) / 65536 for number in np.frombuffer(tag, ">i4", (1, 3, 4, 5, 7)[kind], 12)]
    gamma, a, b, c, d, e, f = numbers + [0.0] * (7 - len(numbers))
    if kind == 0:
        a = 1.0
    elif kind in (1, 2):
        # Below -b/a these are constant: 0, or c in the second, which is also added above.
        c, d, e, f = 0.0, -b / a, c, c
    encoded = np.linspace(0.0, 1.0, _POINTS)
    curved = np.power(np.maximum(a * encoded + b, 0.0), gamma) + e
    return np.where(encoded >= d, curved, c * encoded + f).astype(np.float64)
