"""The colours of an image: convert from ICC profiles and other colour descriptions to sRGB for the model, and back.

A description other than a profile (PNG's cICP and gAMA, the nclx of AVIF and HEIC, the EXIF of a DCF camera, the header
of a BMP) becomes a profile of the same meaning, which every format supports. The specifications define which one is
used:

- PNG, third edition, 13.14: cICP, then iCCP, then sRGB, then gAMA with cHRM;
- HEIF and AVIF (ISO/IEC 23008-12, 6.5.5): the ICC profile, then nclx;
- JPEG, TIFF and WebP: the ICC profile, then EXIF's ColorSpace and InteropIndex (DCF 2.0, Exif 2.32).

An image without a description is sRGB.
"""

from __future__ import annotations

import functools
import io
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms
from torch import Tensor

from omgsr_cli.errors import FileError
from omgsr_cli.files.containers import boxes, png_chunks
from omgsr_cli.imaging.image import Decoded

#: Number of points in a curve's tables: one per 16-bit value.
_POINTS = 65536


class ProfileError(ValueError):
    """The bytes are not a usable ICC profile."""


class Curve:
    """An increasing tone curve of a profile, as tables for both directions.

    Values between table points are interpolated linearly; both directions are accurate to 1/65535 of the range.

    Args:
        light: (65536,) the light in [0, 1] of evenly spaced encoded values in [0, 1].
    Raises:
        ProfileError: the curve does not increase from dark to bright.
    """

    def __init__(self, light: NDArray[np.float64]) -> None:
        if not np.isfinite(light).all():
            raise ProfileError("a tone curve is not finite")
        rising = np.maximum.accumulate(light.clip(0, 1))
        if rising[-1] - rising[0] < 0.5:
            raise ProfileError("a tone curve does not increase")
        encoded = np.linspace(0.0, 1.0, _POINTS)
        self._to_light = torch.from_numpy(rising.astype(np.float32))
        # Spaced evenly in the square root of the light, where curves such as sRGB's are nearly straight, also in
        # shadows.
        self._to_encoded = torch.from_numpy(np.interp(encoded**2, rising, encoded).astype(np.float32))

    def to_light(self, encoded: Tensor) -> Tensor:
        """Decode values in [0, 1] of any shape; values outside are clipped."""
        return _looked_up(self._to_light, encoded.clamp(0, 1))

    def to_encoded(self, light: Tensor) -> Tensor:
        """Encode light in [0, 1] of any shape; values outside are clipped."""
        return _looked_up(self._to_encoded, light.clamp(0, 1).sqrt_())


def srgb_to_light(encoded: Tensor) -> Tensor:
    """Decode sRGB (IEC 61966-2-1) of any range; the curve is mirrored below 0."""
    size = encoded.abs()
    light = torch.where(size <= 0.04045, size / 12.92, ((size + 0.055) / 1.055) ** 2.4)
    return light.copysign(encoded)


def light_to_srgb(light: Tensor) -> Tensor:
    """Encode sRGB (IEC 61966-2-1) of any range; the curve is mirrored below 0."""
    size = light.abs()
    encoded = torch.where(size <= 0.0031308, size * 12.92, 1.055 * size ** (1 / 2.4) - 0.055)
    return encoded.copysign(light)


def parse_curve(tag: bytes) -> NDArray[np.float64]:
    """Read a `curv` or `para` tag (ICC.1:2022, 10.6 and 10.18).

    Returns:
        The output of the curve for evenly spaced values, (65536,).
    Raises:
        ProfileError: the tag has another type or is too short.
    """
    try:
        if tag[:4] == b"curv":
            return _sampled_curve(tag)
        if tag[:4] == b"para":
            return _parametric_curve(tag)
    except (struct.error, ValueError, ZeroDivisionError) as error:
        raise ProfileError(f"a tone curve cannot be read: {error}") from error
    raise ProfileError(f"a tone curve is of the unknown type {tag[:4]!r}")


def _looked_up(table: Tensor, positions: Tensor) -> Tensor:
    """Interpolate between the evenly spaced values of a table, at positions in [0, 1]."""
    scaled = positions * (len(table) - 1)
    below = scaled.to(torch.int64).clamp_(max=len(table) - 2)
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


#: How many parameters each type of parametric curve has.
_PARAMETERS = (1, 3, 4, 5, 7)


def _parametric_curve(tag: bytes) -> NDArray[np.float64]:
    kind = struct.unpack_from(">H", tag, 8)[0]
    if kind >= len(_PARAMETERS):
        raise ProfileError(f"parametric curve {kind} is unknown")
    numbers = [float(number) / 65536 for number in np.frombuffer(tag, ">i4", _PARAMETERS[kind], 12)]
    gamma, a, b, c, d, e, f = numbers + [0.0] * (7 - len(numbers))
    if kind == 0:
        a = 1.0
    elif kind in (1, 2):
        # Below -b/a these curves are constant: 0, or c in the second, which is also added above.
        c, d, e, f = 0.0, -b / a, c, c
    encoded = np.linspace(0.0, 1.0, _POINTS)
    curved = np.power(np.maximum(a * encoded + b, 0.0), gamma) + e
    return np.where(encoded >= d, curved, c * encoded + f).astype(np.float64)


#: Linear sRGB to XYZ under D50, as in profiles (IEC 61966-2-1, Bradford-adapted).
_SRGB_TO_XYZ = np.array(
    [[0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169], [0.0139322, 0.0971045, 0.7141733]]
)

_LIGHT_TO_XYZ = torch.from_numpy(_SRGB_TO_XYZ.astype(np.float32))
_XYZ_TO_LIGHT = torch.from_numpy(np.linalg.inv(_SRGB_TO_XYZ).astype(np.float32))

#: Profiles closer to sRGB than this are sRGB. Vendors round its matrix differently, which changes dark colours, where
#: the curve is steep, by almost an 8-bit step.
_SRGB_TOLERANCE = 1 / 255


class GreyProfile:
    """A grey profile with one tone curve, as exact as float32 and `Curve`; images are (1, H, W)."""

    def __init__(self, curve: Curve) -> None:
        self._curve = curve

    def to_srgb(self, image: Tensor) -> Tensor:
        """Convert values in [0, 1] to grey in sRGB."""
        return light_to_srgb(self._curve.to_light(image))

    def from_srgb(self, image: Tensor) -> Tensor:
        """Convert grey in sRGB of any range to the profile's values in [0, 1]."""
        return self._curve.to_encoded(srgb_to_light(image))


class MatrixProfile:
    """An RGB profile with three tone curves and a matrix (Adobe RGB, Display P3, ProPhoto ...).

    The conversion is relative colorimetric and as exact as float32 and `Curve`: to sRGB and back, the error is below
    1/65535, except in the darkest shadows of steep curves. Colours outside sRGB survive unless the sRGB values are
    clipped.

    Args:
        curves: curves of red, green and blue.
        to_xyz: (3, 3) matrix from the profile's linear light to XYZ under D50.
    Raises:
        ProfileError: the matrix cannot be inverted.
    """

    def __init__(self, curves: tuple[Curve, Curve, Curve], to_xyz: np.ndarray[tuple[int, int], np.dtype[np.float64]]):
        matrix = np.linalg.inv(_SRGB_TO_XYZ) @ to_xyz
        white = matrix.sum(axis=1, keepdims=True)
        if abs(np.linalg.det(matrix)) < 1e-6 or (np.abs(white) < 1e-3).any():
            raise ProfileError("its primaries are degenerate")
        if (np.abs(white - 1) < 0.01).all():
            # Profiles round their matrix to 1/65536; without this correction, white and greys would get a slight tint.
            matrix = matrix / white
        self._curves = curves
        self._to_srgb = torch.from_numpy(matrix.astype(np.float32))
        self._from_srgb = torch.from_numpy(np.linalg.inv(matrix).astype(np.float32))

    def to_srgb(self, image: Tensor) -> Tensor:
        """Convert (3, H, W) in [0, 1] to sRGB; colours outside sRGB get values outside [0, 1]."""
        light = torch.stack([curve.to_light(plane) for curve, plane in zip(self._curves, image, strict=True)])
        return light_to_srgb(torch.einsum("ij,jhw->ihw", self._to_srgb, light))

    def from_srgb(self, image: Tensor) -> Tensor:
        """Convert sRGB (3, H, W) of any range to the profile's values in [0, 1]."""
        light = torch.einsum("ij,jhw->ihw", self._from_srgb, srgb_to_light(image))
        return torch.stack([curve.to_encoded(plane) for curve, plane in zip(self._curves, light, strict=True)])


class TableProfile:
    """An RGB profile with tables (A2B and B2A): relative colorimetric, in float, not limited to sRGB's gamut.

    The tables of a profile are not exact inverses, so the conversion back is refined until both agree.

    Attributes:
        goes_back: whether it has tables for the conversion from sRGB; those of scanners may have none.
    Raises:
        ProfileError: its tables cannot be used.
    """

    def __init__(self, icc: bytes) -> None:
        tags, self._is_lab = _tags(icc), icc[20:24] == b"Lab "
        there, back = (tags.get(name + b"1") or tags.get(name + b"0") for name in (b"A2B", b"B2A"))
        if there is None or icc[20:24] not in (b"Lab ", b"XYZ "):
            raise ProfileError("it has no tables")
        self._there = _Table(there)
        self._back = None if back is None else _Table(back)
        self.goes_back = self._back is not None
        if (self._there.inputs, self._there.outputs) != (3, 3):
            raise ProfileError("its tables are not for RGB")

    def to_srgb(self, image: Tensor) -> Tensor:
        """Convert (3, H, W) in [0, 1] to sRGB; colours outside sRGB get values outside [0, 1]."""
        color = self._color(image)
        return lab_to_srgb(color) if self._is_lab else xyz_to_srgb(color)

    def from_srgb(self, image: Tensor) -> Tensor:
        """Convert sRGB (3, H, W) of any range to the profile's values in [0, 1]."""
        first = own = self._encoded(srgb_to_lab(image) if self._is_lab else srgb_to_xyz(image))
        for _ in range(_REFINEMENTS):
            own = (own + first - self._encoded(self._color(own))).clamp_(0, 1)
        return own

    def _color(self, encoded: Tensor) -> Tensor:
        """Convert encoded values to Lab or XYZ."""
        found = self._there(encoded)
        if not self._is_lab:
            return found * (65535 / 32768)
        scale, shift = self._there.lab
        return found * scale - shift

    def _encoded(self, color: Tensor) -> Tensor:
        assert self._back is not None, "the caller checks goes_back"
        if not self._is_lab:
            return self._back(color * (32768 / 65535))
        scale, shift = self._back.lab
        return self._back((color + shift) / scale)


ColorProfile = GreyProfile | MatrixProfile | TableProfile

#: Number of refinements of the conversion back; each reduces the error to a few percent.
_REFINEMENTS = 2


class _Table:
    """The tables of a tag `mft1`, `mft2`, `mAB ` or `mBA ` (ICC.1:2022, 10.10 to 10.13).

    They map (C, H, W) in [0, 1] to (D, H, W) in [0, 1].

    Attributes:
        inputs: number of input channels.
        outputs: number of output channels.
        lab: scale and offset of Lab values, (3, 1, 1): L*, a* and b* are values times the scale minus the offset.
    """

    def __init__(self, tag: bytes) -> None:
        kind = tag[:4]
        wide = kind != b"mft2"
        # In the 16-bit encoding of version 2, the maximum is 0xFF00, also in later versions of the type.
        scale = (100.0, 255.0, 255.0) if wide else (100 * 65535 / 65280, 65535 / 256, 65535 / 256)
        self.lab = torch.tensor(scale)[:, None, None], torch.tensor((0.0, 128.0, 128.0))[:, None, None]
        try:
            self.inputs, self.outputs = tag[8], tag[9]
            if kind in (b"mft1", b"mft2"):
                self._steps = self._of_lut(tag)
            elif kind in (b"mAB ", b"mBA "):
                self._steps = self._of_elements(tag)
            else:
                raise ProfileError(f"its tables are of the unknown type {kind!r}")
        except (struct.error, ValueError, IndexError, OverflowError, MemoryError) as error:
            raise ProfileError(f"its tables cannot be read: {error}") from error

    def __call__(self, values: Tensor) -> Tensor:
        """Convert values; values outside [0, 1] are clipped before each table."""
        for step in self._steps:
            values = step(values)
        return values

    def _of_lut(self, tag: bytes) -> list[Callable[[Tensor], Tensor]]:
        grid, steps = tag[10], list[Callable[[Tensor], Tensor]]()
        dtype: np.dtype[Any]
        if tag[:4] == b"mft1":
            entries, dtype, position = (256, 256), np.dtype(np.uint8), 48
        else:
            entries, dtype, position = struct.unpack_from(">HH", tag, 48), np.dtype(">u2"), 52
        matrix = np.frombuffer(tag, ">i4", 9, 12).reshape(3, 3) / 65536
        if self.inputs == 3 and not np.allclose(matrix, np.eye(3)):
            steps.append(_affine(matrix, np.zeros(3)))

        def take(count: int) -> NDArray[np.float64]:
            nonlocal position
            found = np.frombuffer(tag, dtype, count, position)
            position += count * dtype.itemsize
            values: NDArray[np.float64] = found / (256**dtype.itemsize - 1)
            return values

        steps.append(_curves(list(take(self.inputs * entries[0]).reshape(self.inputs, -1))))
        nodes = take(grid**self.inputs * self.outputs).reshape(-1, self.outputs)
        steps.append(_grid(nodes, (grid,) * self.inputs))
        steps.append(_curves(list(take(self.outputs * entries[1]).reshape(self.outputs, -1))))
        return steps

    def _of_elements(self, tag: bytes) -> list[Callable[[Tensor], Tensor]]:
        b_at, matrix_at, m_at, grid_at, a_at = struct.unpack_from(">5I", tag, 12)
        forth = tag[:4] == b"mAB "
        pcs, device = (self.outputs, self.inputs) if forth else (self.inputs, self.outputs)
        steps = [_curves(_curves_at(tag, b_at, pcs))]
        if matrix_at:
            numbers = np.frombuffer(tag, ">i4", 12, matrix_at) / 65536
            steps.append(_affine(numbers[:9].reshape(3, 3), numbers[9:]))
        if m_at:
            steps.append(_curves(_curves_at(tag, m_at, pcs)))
        if grid_at:
            sides = tuple(tag[grid_at : grid_at + self.inputs])
            dtype = np.dtype(np.uint8 if tag[grid_at + 16] == 1 else ">u2")
            nodes = np.frombuffer(tag, dtype, int(np.prod(sides)) * self.outputs, grid_at + 20)
            steps.append(_grid((nodes / (256**dtype.itemsize - 1)).reshape(-1, self.outputs), sides))
        if a_at:
            steps.append(_curves(_curves_at(tag, a_at, device)))
        return steps[::-1] if forth else steps


def _curves_at(tag: bytes, position: int, count: int) -> list[NDArray[np.float64]]:
    """Read consecutive curves, each padded to four bytes."""
    found = []
    for _ in range(count):
        found.append(parse_curve(tag[position:]))
        if tag[position : position + 4] == b"curv":
            length = 12 + 2 * struct.unpack_from(">I", tag, position + 8)[0]
        else:
            length = 12 + 4 * _PARAMETERS[struct.unpack_from(">H", tag, position + 8)[0]]
        position += length + -length % 4
    return found


def _curves(tables: list[NDArray[np.float64]]) -> Callable[[Tensor], Tensor]:
    """Apply one curve to each channel, interpolating between evenly spaced values."""
    if any(len(table) < 2 or not np.isfinite(table).all() for table in tables):
        raise ProfileError("a curve of its tables is too short")
    made = [torch.from_numpy(table.astype(np.float32)) for table in tables]
    return lambda values: torch.stack(
        [_looked_up(table, plane.clamp(0, 1)) for table, plane in zip(made, values, strict=True)]
    )


def _affine(matrix: NDArray[np.float64], offset: NDArray[np.float64]) -> Callable[[Tensor], Tensor]:
    by, plus = (torch.from_numpy(numbers.astype(np.float32)) for numbers in (matrix, offset))
    return lambda values: torch.einsum("ij,jhw->ihw", by, values) + plus[:, None, None]


def _grid(nodes: NDArray[np.float64], sides: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
    """Interpolate in the tetrahedron of grid nodes around each colour, so greys stay on the diagonal.

    Args:
        nodes: (product of the sides, outputs); the last channel varies fastest.
        sides: number of nodes for each of three inputs, two or more.
    """
    if len(sides) != 3 or min(sides) < 2:
        raise ProfileError("its tables are not for three channels")
    table = torch.from_numpy(nodes.astype(np.float32))
    last = torch.tensor(sides)[:, None] - 1
    strides = (sides[1] * sides[2], sides[2], 1)

    def interpolate(values: Tensor) -> Tensor:
        scaled = values.clamp(0, 1).flatten(1) * last
        below = torch.minimum(scaled.to(torch.int64), last - 1)
        x, y, z = scaled - below
        start = below[0] * strides[0] + below[1] * strides[1] + below[2]
        # Go from the lower corner along the largest fraction, then the middle one, to the upper corner.
        largest, smallest = torch.maximum(torch.maximum(x, y), z), torch.minimum(torch.minimum(x, y), z)
        middle = x + y + z - largest - smallest
        along = torch.where((x >= y) & (x >= z), strides[0], torch.where(y >= z, strides[1], strides[2]))
        left_out = torch.where((z <= x) & (z <= y), strides[2], torch.where(y <= x, strides[1], strides[0]))
        corners = (start, start + along, start + (sum(strides) - left_out), start + sum(strides))
        weights = (1 - largest, largest - middle, middle - smallest, smallest)
        result = torch.zeros(len(start), table.shape[1])
        for corner, weight in zip(corners, weights, strict=True):
            result.addcmul_(table.index_select(0, corner), weight[:, None])
        return result.T.reshape(-1, *values.shape[1:])

    return interpolate


def xyz_to_srgb(xyz: Tensor) -> Tensor:
    """Convert (3, H, W) XYZ under D50 to sRGB; colours outside sRGB get values outside [0, 1]."""
    return light_to_srgb(torch.einsum("ij,jhw->ihw", _XYZ_TO_LIGHT, xyz))


def srgb_to_xyz(image: Tensor) -> Tensor:
    """Convert (3, H, W) sRGB of any range to XYZ under D50."""
    return torch.einsum("ij,jhw->ihw", _LIGHT_TO_XYZ, srgb_to_light(image))


def srgb_to_lab(image: Tensor) -> Tensor:
    """Convert (3, H, W) sRGB of any range to CIE 1976 L*a*b* under D50; the inverse of `lab_to_srgb`."""
    ratio = srgb_to_xyz(image) / _LIGHT_TO_XYZ.sum(dim=1)[:, None, None]
    root = torch.where(ratio > (6 / 29) ** 3, ratio.clamp(min=0) ** (1 / 3), ratio * ((29 / 6) ** 2 / 3) + 4 / 29)
    return torch.stack([116 * root[1] - 16, 500 * (root[0] - root[1]), 200 * (root[1] - root[2])])


def profile_space(icc: bytes) -> str:
    """The colour space of a profile's values: "RGB", "GRAY", "CMYK", "Lab" ...

    Raises:
        ProfileError: the bytes are not an ICC profile.
    """
    if len(icc) < 132 or icc[36:40] != b"acsp":
        raise ProfileError("it has no ICC header")
    return icc[16:20].decode("latin-1").strip()


@functools.lru_cache(maxsize=8)
def load_profile(icc: bytes) -> ColorProfile | None:
    """Build the conversion for an RGB or grey profile.

    Returns:
        The conversion, or None if the profile equals sRGB within an 8-bit step.
    Raises:
        ProfileError: the profile is corrupt, or for another colour space.
    """
    space, tags = profile_space(icc), _tags(icc)
    profile: ColorProfile
    if space == "GRAY":
        profile = GreyProfile(_grey_curve(icc, tags))
    elif space == "RGB" and b"rXYZ" in tags and b"A2B0" not in tags and icc[20:24] == b"XYZ ":
        profile = _matrix_profile(tags)
    elif space == "RGB":
        profile = TableProfile(icc)
    else:
        raise ProfileError(f"it is for {space}")
    return None if _is_srgb(profile, 1 if space == "GRAY" else 3) else profile


def convert_to_srgb(image: Image.Image, icc: bytes | None) -> Decoded:
    """Convert a CMYK or Lab image to 8-bit sRGB by its profile; without a usable one, as Pillow or LittleCMS does."""
    notes: tuple[str, ...] = (f"{image.mode} was converted to sRGB",)
    try:
        converted = _to_srgb(image, icc)
    except ProfileError as error:
        converted = _to_srgb(image, None)
        notes += (f"the ICC profile was ignored: {error}",)
    return Decoded(np.asarray(converted), True, notes)


def _to_srgb(image: Image.Image, icc: bytes | None) -> Image.Image:
    if image.mode == "CMYK" and icc is None:
        return image.convert("RGB")
    wanted = {"CMYK": "CMYK", "LAB": "Lab"}[image.mode]
    if icc is not None and profile_space(icc) != wanted:
        raise ProfileError(f"it is for {profile_space(icc)}")
    source = ImageCms.createProfile("LAB") if icc is None else io.BytesIO(icc)
    # Ink is never fully black, so black point compensation scales its range to that of a screen. Lab needs none.
    flags = ImageCms.Flags.BLACKPOINTCOMPENSATION if image.mode == "CMYK" else ImageCms.Flags.NONE
    try:
        converted = ImageCms.profileToProfile(
            image,
            ImageCms.ImageCmsProfile(source),
            ImageCms.createProfile("sRGB"),
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            "RGB",
            flags=flags,
        )
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError) as error:
        raise ProfileError(f"it cannot be used: {error}") from error
    if converted is None:
        raise ProfileError("it returns no image")
    return converted


def lab_to_srgb(lab: Tensor) -> Tensor:
    """Convert Lab to sRGB.

    Args:
        lab: (3, H, W) float32, CIE 1976 under D50: lightness 0 to 100, a and b.
    Returns:
        (3, H, W) float32; colours outside sRGB get values outside [0, 1].
    Source: CIE 15:2004, 8.2.1.
    """
    middle = (lab[0] + 16) / 116
    curved = torch.stack([middle + lab[1] / 500, middle, middle - lab[2] / 200])
    ratios = torch.where(curved > 6 / 29, curved**3, (curved - 4 / 29) * (3 * (6 / 29) ** 2))
    # White is the sum of the primaries, so a = b = 0 is neutral.
    matrix = np.linalg.inv(_SRGB_TO_XYZ) * _SRGB_TO_XYZ.sum(axis=1)
    return light_to_srgb(torch.einsum("ij,jhw->ihw", torch.from_numpy(matrix.astype(np.float32)), ratios))


def _tags(icc: bytes) -> dict[bytes, bytes]:
    try:
        count = struct.unpack_from(">I", icc, 128)[0]
        entries = [struct.unpack_from(">4sII", icc, 132 + 12 * index) for index in range(min(count, 1000))]
    except struct.error as error:
        raise ProfileError("its table of contents ends too early") from error
    return {name: icc[start : start + length] for name, start, length in entries}


def _grey_curve(icc: bytes, tags: dict[bytes, bytes]) -> Curve:
    """The tone curve of a grey profile (ICC.1:2022, F.2), which maps to Y, or to L* if the space is Lab."""
    if b"A2B0" in tags or b"kTRC" not in tags:
        return Curve(_grey_by_littlecms(icc))
    values = parse_curve(tags[b"kTRC"])
    if icc[20:24] != b"Lab ":
        return Curve(values)
    root = (values * 100 + 16) / 116
    return Curve(np.where(root > 6 / 29, root**3, (root - 4 / 29) * 3 * (6 / 29) ** 2))


def _grey_by_littlecms(icc: bytes) -> NDArray[np.float64]:
    """The light for all 16-bit values of a grey profile with tables, computed by LittleCMS."""
    ramp = Image.fromarray(np.arange(_POINTS, dtype=np.uint16)[None])
    try:
        own, linear = (ImageCms.ImageCmsProfile(io.BytesIO(data)) for data in (icc, build_profile(_power_curve(1.0))))
        transform = ImageCms.buildTransform(own, linear, "I;16", "I;16", ImageCms.Intent.RELATIVE_COLORIMETRIC)
        ImageCms.applyTransform(ramp, transform, inPlace=True)
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError) as error:
        raise ProfileError(f"it cannot be used: {error}") from error
    light: NDArray[np.float64] = np.asarray(ramp)[0] / np.float64(_POINTS - 1)
    return light


def _matrix_profile(tags: dict[bytes, bytes]) -> MatrixProfile:
    try:
        columns = [np.frombuffer(tags[name], ">i4", 3, 8) / 65536 for name in (b"rXYZ", b"gXYZ", b"bXYZ")]
        red, green, blue = (Curve(parse_curve(tags[name])) for name in (b"rTRC", b"gTRC", b"bTRC"))
    except (KeyError, ValueError) as error:
        raise ProfileError(f"its primaries cannot be read: {error}") from error
    return MatrixProfile((red, green, blue), np.stack(columns, axis=1))


def _is_srgb(profile: ColorProfile, channels: int) -> bool:
    """Whether a profile leaves a grid of colours unchanged."""
    steps = torch.linspace(0, 1, 18)
    grid = torch.stack(torch.meshgrid([steps] * channels, indexing="ij")).reshape(channels, 1, -1)
    return bool((profile.to_srgb(grid).clamp(0, 1) - grid).abs().max() < _SRGB_TOLERANCE)


# --- profiles of other descriptions ---

#: White point and primaries as x and y: white, red, green, blue.
_D65 = (0.3127, 0.3290)
_BT709 = (_D65, (0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
_ADOBE_RGB = (_D65, (0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
_SMPTE_C = (_D65, (0.630, 0.340), (0.310, 0.595), (0.155, 0.070))
_Chromaticities = tuple[tuple[float, float], tuple[float, float], tuple[float, float], tuple[float, float]]

#: ColourPrimaries of ITU-T H.273, table 2; 2 is "unspecified".
_CICP_PRIMARIES: dict[int, _Chromaticities] = {
    **dict.fromkeys((1, 2), _BT709),
    4: ((0.310, 0.316), (0.67, 0.33), (0.21, 0.71), (0.14, 0.08)),
    5: (_D65, (0.64, 0.33), (0.29, 0.60), (0.15, 0.06)),
    **dict.fromkeys((6, 7), _SMPTE_C),
    8: ((0.310, 0.316), (0.681, 0.319), (0.243, 0.692), (0.145, 0.049)),
    9: (_D65, (0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    10: ((1 / 3, 1 / 3), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0)),
    11: ((0.314, 0.351), (0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    12: (_D65, (0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    22: (_D65, (0.630, 0.340), (0.295, 0.605), (0.155, 0.077)),
}

_D50_XYZ, _D65_XYZ = np.array([0.9642, 1.0, 0.8249]), np.array([0.95047, 1.0, 1.08883])
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])

#: libpng treats a gAMA this close to sRGB's power of 1/2.2 as sRGB too.
_GAMMA_TOLERANCE = 0.05


def _fixed(*numbers: float) -> bytes:
    """Encode numbers of a profile: a sign, 15 bits, and 16 bits after the binary point."""
    return struct.pack(f">{len(numbers)}i", *(round(number * 65536) for number in numbers))


def _power_curve(gamma: float) -> bytes:
    return b"para" + bytes(4) + struct.pack(">HH", 0, 0) + _fixed(gamma)


def _split_curve(gamma: float, offset: float, slope: float, start: float) -> bytes:
    """A power curve with a linear start: ((x + offset) / (1 + offset)) ** gamma from `start` on, x / slope below."""
    numbers = (gamma, 1 / (1 + offset), offset / (1 + offset), 1 / slope, start)
    return b"para" + bytes(4) + struct.pack(">HH", 3, 0) + _fixed(*numbers)


_SRGB_CURVE = _split_curve(2.4, 0.055, 12.92, 0.04045)

#: TransferCharacteristics of ITU-T H.273, table 3; 2 is "unspecified". BT.709, BT.601 and BT.2020 define camera curves
#: but no display curve, so sRGB's curve is used, as in browsers.
_CICP_CURVES = {
    **dict.fromkeys((1, 2, 6, 11, 12, 13, 14, 15), _SRGB_CURVE),
    4: _power_curve(2.2),
    5: _power_curve(2.8),
    7: _split_curve(1 / 0.45, 0.1115, 4.0, 0.0912),
    8: _power_curve(1.0),
    17: _power_curve(2.6),
}
_CICP_UNSPECIFIED = 2
_HDR_CURVES = {16: "PQ", 18: "HLG"}


def _to_xyz(chromaticities: _Chromaticities) -> NDArray[np.float64]:
    """The (3, 3) matrix from linear RGB to XYZ under D50 for chromaticities, with Bradford adaptation.

    Raises:
        ProfileError: the primaries are degenerate.
    """
    try:
        white, *primaries = (np.array([x, y, 1 - x - y]) for x, y in chromaticities)
        # D65 rounded to four digits would tint sRGB's white slightly.
        white = _D65_XYZ if np.abs(white[:2] - _D65).max() < 0.0005 else white / white[1]
        columns = np.stack(primaries, axis=1)
        matrix = columns * np.linalg.solve(columns, white)
        adapted = np.linalg.solve(_BRADFORD, np.diag((_BRADFORD @ _D50_XYZ) / (_BRADFORD @ white)) @ _BRADFORD)
        result: NDArray[np.float64] = adapted @ matrix
    except (np.linalg.LinAlgError, ZeroDivisionError, FloatingPointError) as error:
        raise ProfileError("its primaries are degenerate") from error
    if not np.isfinite(result).all() or np.abs(result).max() > 100:
        raise ProfileError("its primaries are degenerate")
    return result


def build_profile(curve: bytes, chromaticities: _Chromaticities | None = None) -> bytes:
    """Build an ICC profile of version 4: grey with a tone curve, or RGB with a curve and primaries.

    Args:
        curve: a `curv` or `para` tag.
        chromaticities: x and y of white, red, green and blue; None for grey.
    Raises:
        ProfileError: the primaries are degenerate.
    """
    text = "omgsr".encode("utf-16-be")
    words = b"mluc" + bytes(4) + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(text), 28) + text
    tags = {b"desc": words, b"cprt": words, b"wtpt": b"XYZ " + bytes(4) + _fixed(*_D50_XYZ)}
    if chromaticities is None:
        tags[b"kTRC"] = curve
    else:
        columns = _to_xyz(chromaticities).T
        tags |= {color + b"XYZ": b"XYZ " + bytes(4) + _fixed(*xyz) for color, xyz in zip(_RGB, columns, strict=True)}
        tags |= {color + b"TRC": curve for color in _RGB}
    table, body, places = b"", b"", dict[bytes, int]()
    start = 132 + 12 * len(tags)
    for name, content in tags.items():
        if content not in places:
            places[content] = start + len(body)
            body += content + bytes(-len(content) % 4)
        table += name + struct.pack(">II", places[content], len(content))
    space = b"GRAY" if chromaticities is None else b"RGB "
    head = struct.pack(
        ">I4s4s4s4s4s12s4s", start + len(body), b"", b"\4\x30\0\0", b"mntr", space, b"XYZ ", b"", b"acsp"
    )
    head = head.ljust(68, b"\0") + _fixed(*_D50_XYZ)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


_RGB = (b"r", b"g", b"b")


@dataclass(frozen=True)
class ColorDescription:
    """The colour description of an image.

    Attributes:
        icc: the file's own profile, or one of the same meaning; None for sRGB.
        narrow_range: whether black is at 16/255 and white at 235/255, as in video.
        notes: notes about ignored descriptions.
    """

    icc: bytes | None = None
    narrow_range: bool = False
    notes: tuple[str, ...] = ()


def describe_color(
    image: Image.Image,
    file: BinaryIO,
    name: str,
    *,
    icc: bytes | None = None,
    is_grey: bool = False,
    is_adobe_rgb: bool = False,
) -> ColorDescription:
    """Find the colour description of an image, by the order of precedence of its format.

    Args:
        image: an opened image, grey or RGB; it may be loaded.
        file: the file that it was opened from; its position does not change.
        name: name of the file in messages.
        icc: the file's own profile, if one was found.
        is_grey: whether the image has one colour channel.
        is_adobe_rgb: whether its EXIF data means Adobe RGB.
    Raises:
        FileError: the image is HDR.
    """
    notes, wanted = [], "GRAY" if is_grey else "RGB"
    for found in _usable_descriptions(image, file, name, icc, is_adobe_rgb):
        try:
            icc = found.profile(is_grey)
            if icc is not None and (space := profile_space(icc)) != wanted:
                raise ProfileError(f"it is for {space}, the image is {wanted}")
            if icc is not None:
                load_profile(icc)
        except ProfileError as error:
            notes.append(f"the {found.what} was ignored: {error}")
            continue
        return ColorDescription(icc, found.narrow_range, tuple(notes))
    return ColorDescription(notes=tuple(notes))


def refuse_hdr(image: Image.Image, file: BinaryIO, name: str) -> None:
    """Refuse HDR images before they are decoded, because no model was trained on them.

    Raises:
        FileError: the image is HDR.
    """
    _usable_descriptions(image, file, name, image.info.get("icc_profile"))


def _usable_descriptions(
    image: Image.Image, file: BinaryIO, name: str, icc: bytes | None, is_adobe_rgb: bool = False
) -> list[_Described]:
    position = file.tell()
    try:
        found = list(_descriptions(image, file, icc, is_adobe_rgb))
    finally:
        file.seek(position)
    for described in found:
        if kind := _HDR_CURVES.get(described.transfer):
            raise FileError(
                f"{name}: it is an HDR image ({kind}), which cannot be restored",
                "export it as SDR first: sRGB, Display P3 or Adobe RGB",
            )
    return found


@dataclass(frozen=True)
class _Described:
    """One description in a file: a profile, or a curve with primaries; without either, it is sRGB.

    Attributes:
        what: name of the description, for notes.
        transfer: transfer characteristics of ITU-T H.273.
    """

    what: str
    icc: bytes | None = None
    curve: bytes | None = None
    chromaticities: _Chromaticities = _BT709
    transfer: int = _CICP_UNSPECIFIED
    narrow_range: bool = False

    def profile(self, is_grey: bool) -> bytes | None:
        """The profile of this description; None for sRGB."""
        if self.icc is not None or self.curve is None:
            return self.icc
        made = build_profile(self.curve, None if is_grey else self.chromaticities)
        return None if load_profile(made) is None else made


def _descriptions(image: Image.Image, file: BinaryIO, icc: bytes | None, is_adobe_rgb: bool) -> Iterator[_Described]:
    """All descriptions of a file, in their order of precedence."""
    kind = image.format
    chunks = _png_descriptions(image, file) if kind == "PNG" else {}
    if b"cICP" in chunks:
        yield chunks[b"cICP"]
    boxes = _box_descriptions(file) if kind in ("AVIF", "HEIF", "JPEG2000") else []
    yield from [_of_icc(icc)] if icc else [found for found in boxes if found.icc]
    yield from (found for found in boxes if not found.icc)
    yield from (chunks[chunk] for chunk in (b"sRGB", b"gAMA") if chunk in chunks)
    if kind == "BMP":
        yield from _bmp_descriptions(file)
    if is_adobe_rgb and kind != "PNG":
        yield _Described("EXIF colour space", curve=_power_curve(563 / 256), chromaticities=_ADOBE_RGB)


def _of_icc(icc: bytes) -> _Described:
    """The description of a profile; in version 4.4, a tag of four bytes shows whether it is PQ or HLG."""
    try:
        transfer = _tags(icc).get(b"cicp", b"")[9:10]
    except ProfileError:
        transfer = b""
    return _Described("ICC profile", icc, transfer=transfer[0] if transfer else _CICP_UNSPECIFIED)


def _of_cicp(what: str, primaries: int, transfer: int, narrow_range: bool = False) -> _Described | None:
    """The description of code points of ITU-T H.273; None if they are unspecified."""
    if primaries == transfer == _CICP_UNSPECIFIED and not narrow_range:
        return None
    curve, chromaticities = _CICP_CURVES.get(transfer), _CICP_PRIMARIES.get(primaries)
    if transfer not in _HDR_CURVES and (curve is None or chromaticities is None):
        # These bytes are not a profile, so the image is read without one, with a note.
        return _Described(f"{what} of {primaries}/{transfer}", b"")
    return _Described(
        what, curve=curve, chromaticities=chromaticities or _BT709, transfer=transfer, narrow_range=narrow_range
    )


def _png_descriptions(image: Image.Image, file: BinaryIO) -> dict[bytes, _Described]:
    found: dict[bytes, _Described] = {}
    for chunk, _, length in png_chunks(file):
        if chunk == b"IDAT":
            break
        if chunk == b"cICP" and length == 4:
            primaries, transfer, _, full_range = file.read(4)
            if described := _of_cicp("cICP chunk", primaries, transfer, not full_range):
                found[chunk] = described
        elif chunk == b"sRGB":
            found[chunk] = _Described("sRGB chunk")
    gamma, numbers = image.info.get("gamma"), image.info.get("chromaticity")
    if gamma:
        pairs: Any = tuple(zip(numbers[::2], numbers[1::2], strict=True)) if numbers else _BT709
        is_srgb_gamut = bool(np.abs(np.array(pairs) - np.array(_BT709)).max() < 0.002)
        # The PNG specification recommends this pair for sRGB images, so it means sRGB.
        if not is_srgb_gamut or abs(gamma * 2.2 - 1) >= _GAMMA_TOLERANCE:
            found[b"gAMA"] = _Described("gAMA chunk", curve=_power_curve(1 / gamma), chromaticities=pairs)
    return found


def _bmp_descriptions(file: BinaryIO) -> Iterator[_Described]:
    """The description in the header of a BMP of version 4 or 5: primaries and gammas, or an embedded profile."""
    file.seek(14)
    header = file.read(124)
    if len(header) < 108 or struct.unpack_from("<I", header)[0] < 108:
        return
    kind = header[56:60]
    if kind == b"DEBM" and len(header) == 124:
        start, length = struct.unpack_from("<II", header, 112)
        file.seek(14 + start)
        yield _of_icc(file.read(length))
    elif kind == bytes(4):
        points = np.frombuffer(header, "<i4", 9, 60).reshape(3, 3) / 2**30
        gamma = struct.unpack_from("<I", header, 96)[0] / 65536
        if gamma and (points.sum(axis=1) > 0).all():
            # The primaries are XYZ values, and their sum is white.
            red, green, blue, white = ((p[0] / p.sum(), p[1] / p.sum()) for p in (*points, points.sum(axis=0)))
            yield _Described("BMP colour space", curve=_power_curve(gamma), chromaticities=(white, red, green, blue))


# --- boxes of ISO files ---

#: Longer `meta` or `jp2h` boxes are not read: they contain more than descriptions.
_MAX_BOX_BYTES = 1 << 26


def _box_descriptions(file: BinaryIO) -> list[_Described]:
    """The `colr` boxes of an AVIF, HEIC or JPEG 2000 file's main image."""
    try:
        for kind, _, length in boxes(file):
            if kind in (b"meta", b"jp2h") and length <= _MAX_BOX_BYTES:
                content = file.read(length)
                found = _colr_of_main_item(content[4:]) if kind == b"meta" else _children(content, b"colr")
                return [described for box in found if (described := _of_colr(box))]
    except (struct.error, IndexError):
        pass
    return []


def _inside(content: bytes) -> list[tuple[bytes, bytes]]:
    """The kinds and contents of the boxes inside a box."""
    return [(kind, content[start : start + length]) for kind, start, length in boxes(io.BytesIO(content))]


def _children(content: bytes, kind: bytes) -> list[bytes]:
    return [inner for found, inner in _inside(content) if found == kind]


def _colr_of_main_item(meta: bytes) -> list[bytes]:
    """The colour properties of the primary item (ISO/IEC 23008-12, 9.3), or of any item if it has none."""
    inside = dict(_inside(meta))
    properties = inside.get(b"iprp", b"")
    listed = [box for store in _children(properties, b"ipco") for box in _inside(store)]
    pitm = inside.get(b"pitm", bytes(6))
    main = struct.unpack_from(">I" if pitm[0] else ">H", pitm, 4)[0]
    of_main = {index for table in _children(properties, b"ipma") for index in _associated(table, main)}
    own = [box for index, (kind, box) in enumerate(listed, 1) if kind == b"colr" and index in of_main]
    return own or [box for kind, box in listed if kind == b"colr"]


def _associated(ipma: bytes, item: int) -> Iterator[int]:
    """The numbers of an item's properties, starting at 1."""
    # The upper bit of an index shows whether the property is essential.
    item_bytes, index_bytes = 4 if ipma[0] else 2, 2 if ipma[3] & 1 else 1
    largest = 0x7FFF if ipma[3] & 1 else 0x7F
    content = io.BytesIO(ipma[8:])
    for _ in range(struct.unpack_from(">I", ipma, 4)[0]):
        found = int.from_bytes(content.read(item_bytes), "big")
        for _ in range(content.read(1)[0]):
            index = int.from_bytes(content.read(index_bytes), "big") & largest
            if found == item:
                yield index


def _of_colr(box: bytes) -> _Described | None:
    if box[:4] in (b"prof", b"rICC"):
        return _of_icc(box[4:])
    if box[:4] == b"nclx":
        primaries, transfer = struct.unpack_from(">HH", box, 4)
        return _of_cicp("nclx", primaries, transfer)
    # In JPEG 2000 (ITU-T T.800, I.5.3.3), methods 2 and 3 are profiles.
    return _of_icc(box[3:]) if box[:1] in (b"\2", b"\3") else None
