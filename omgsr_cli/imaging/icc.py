"""Colour profiles: a picture's own colours to sRGB for the model, and back when it is written."""

from __future__ import annotations

import functools
import io
import struct
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from PIL import Image, ImageCms
from torch import Tensor

from omgsr_cli.imaging.curves import Curve, ProfileError, light_to_srgb, parse_curve, srgb_to_light
from omgsr_cli.imaging.samples import from_samples, to_samples

#: Linear sRGB to XYZ under D50, as profiles keep it (IEC 61966-2-1, Bradford-adapted).
_SRGB_TO_XYZ = np.array(
    [[0.4360747, 0.3850649, 0.1430804], [0.2225045, 0.7168786, 0.0606169], [0.0139322, 0.0971045, 0.7141733]]
)

#: Pixels converted at a time, so that a large picture needs little memory beside itself.
_PIXELS_AT_ONCE = 1 << 20

#: A profile nearer to sRGB than this is sRGB: makers round its matrix differently, which near black, where the
#: curve is steep, comes to most of an 8-bit step.
_SRGB_TOLERANCE = 1 / 255


class ColorProfile(Protocol):
    """Between a profile's own encoded values and sRGB."""

    def to_srgb(self, image: Tensor) -> Tensor:
        """(C, H, W) in [0, 1] to sRGB of the same shape, outside [0, 1] where sRGB cannot show the colour."""
        ...

    def from_srgb(self, image: Tensor) -> Tensor:
        """SRGB (C, H, W), any range, to the profile's values in [0, 1]."""
        ...


class GreyProfile:
    """A grey profile: one tone curve. As exact as float32 and `Curve` are; C is 1."""

    def __init__(self, curve: Curve) -> None:
        self._curve = curve

    def to_srgb(self, image: Tensor) -> Tensor:
        """See `ColorProfile`."""
        return by_rows(lambda rows: light_to_srgb(self._curve.to_light(rows)), image)

    def from_srgb(self, image: Tensor) -> Tensor:
        """See `ColorProfile`."""
        return by_rows(lambda rows: self._curve.to_encoded(srgb_to_light(rows)), image)


class MatrixProfile:
    """An RGB profile of three tone curves and a matrix (Adobe RGB, Display P3, ProPhoto ...).

    Relative colorimetric. As exact as float32 and `Curve` are: to sRGB and back loses less than 1/65535 except in
    the darkest shadows of steep curves, and nothing outside sRGB's gamut as long as to_srgb is not clipped.

    Args:
        curves: red, green, blue.
        to_xyz: (3, 3) linear light of the profile to XYZ under D50.
    Raises:
        ProfileError: the matrix cannot be inverted.
    """

    def __init__(self, curves: tuple[Curve, Curve, Curve], to_xyz: np.ndarray[tuple[int, int], np.dtype[np.float64]]):
        matrix = np.linalg.inv(_SRGB_TO_XYZ) @ to_xyz
        white = matrix.sum(axis=1, keepdims=True)
        if abs(np.linalg.det(matrix)) < 1e-6 or (np.abs(white) < 1e-3).any():
            raise ProfileError("its primaries are degenerate")
        if (np.abs(white - 1) < 0.01).all():
            # Profiles round their matrix to 1/65536: without this, white and greys would get a trace of colour.
            matrix = matrix / white
        self._curves = curves
        self._to_srgb = torch.from_numpy(matrix.astype(np.float32))
        self._from_srgb = torch.from_numpy(np.linalg.inv(matrix).astype(np.float32))

    def to_srgb(self, image: Tensor) -> Tensor:
        """See `ColorProfile`."""
        return by_rows(self._rows_to_srgb, image)

    def from_srgb(self, image: Tensor) -> Tensor:
        """See `ColorProfile`."""
        return by_rows(self._rows_from_srgb, image)

    def _rows_to_srgb(self, rows: Tensor) -> Tensor:
        light = torch.stack([curve.to_light(plane) for curve, plane in zip(self._curves, rows, strict=True)])
        return light_to_srgb(torch.einsum("ij,jhw->ihw", self._to_srgb, light))

    def _rows_from_srgb(self, rows: Tensor) -> Tensor:
        light = torch.einsum("ij,jhw->ihw", self._from_srgb, srgb_to_light(rows))
        return torch.stack([curve.to_encoded(plane) for curve, plane in zip(self._curves, light, strict=True)])


class TableProfile:
    """Any other RGB profile, through LittleCMS: relative colorimetric, 8 bits each way, clipped to sRGB's gamut."""

    def __init__(self, icc: bytes) -> None:
        try:
            own, srgb = ImageCms.ImageCmsProfile(io.BytesIO(icc)), ImageCms.createProfile("sRGB")
            intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
            self._to_srgb = ImageCms.buildTransform(own, srgb, "RGB", "RGB", intent)
            self._from_srgb = ImageCms.buildTransform(srgb, own, "RGB", "RGB", intent)
        except (ImageCms.PyCMSError, OSError, TypeError, ValueError) as error:
            raise ProfileError(f"it cannot be used: {error}") from error

    def to_srgb(self, image: Tensor) -> Tensor:
        """See `ColorProfile`."""
        return by_rows(lambda rows: _transformed(rows, self._to_srgb), image)

    def from_srgb(self, image: Tensor) -> Tensor:
        """See `ColorProfile`."""
        return by_rows(lambda rows: _transformed(rows, self._from_srgb), image)


def profile_space(icc: bytes) -> str:
    """The colour space that a profile's values are in: "RGB", "GRAY", "CMYK", "Lab" ...

    Raises:
        ProfileError: the bytes are no ICC profile.
    """
    if len(icc) < 132 or icc[36:40] != b"acsp":
        raise ProfileError("it has no ICC header")
    return icc[16:20].decode("latin-1").strip()


@functools.lru_cache(maxsize=8)
def load_profile(icc: bytes) -> ColorProfile | None:
    """Build the conversion that an RGB or grey profile asks for.

    Returns:
        The conversion, or None where the profile is sRGB to within an 8-bit step.
    Raises:
        ProfileError: it is broken, or for another colour space.
    """
    space, tags = profile_space(icc), _tags(icc)
    profile: ColorProfile
    if space == "GRAY" and b"kTRC" in tags:
        profile = GreyProfile(parse_curve(tags[b"kTRC"]))
    elif space == "RGB" and b"rXYZ" in tags and b"A2B0" not in tags and icc[20:24] == b"XYZ ":
        profile = _matrix_profile(tags)
    elif space == "RGB":
        profile = TableProfile(icc)
    else:
        raise ProfileError(f"it is for {space}")
    return None if _is_srgb(profile, 1 if space == "GRAY" else 3) else profile


def by_rows(convert: Callable[[Tensor], Tensor], image: Tensor) -> Tensor:
    """Apply a pixel-wise conversion to (C, H, W) in bands of rows; the result has the same shape."""
    rows = max(_PIXELS_AT_ONCE // max(image.shape[2], 1), 1)
    result = torch.empty_like(image)
    for top in range(0, image.shape[1], rows):
        result[:, top : top + rows] = convert(image[:, top : top + rows])
    return result


def convert_to_srgb(image: Image.Image, icc: bytes | None) -> Image.Image:
    """Turn a CMYK or Lab image into 8-bit sRGB through its profile; without one, as Pillow or LittleCMS does.

    Raises:
        ProfileError: the profile is broken or for another colour space.
    """
    if image.mode == "CMYK" and icc is None:
        return image.convert("RGB")
    wanted = {"CMYK": "CMYK", "LAB": "Lab"}[image.mode]
    if icc is not None and profile_space(icc) != wanted:
        raise ProfileError(f"it is for {profile_space(icc)}")
    source = ImageCms.createProfile("LAB") if icc is None else io.BytesIO(icc)
    # Ink is never quite black: compensation spreads its range over the screen's. Lab has no black of its own.
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
        raise ProfileError("it gives no picture")
    return converted


def _tags(icc: bytes) -> dict[bytes, bytes]:
    try:
        count = struct.unpack_from(">I", icc, 128)[0]
        entries = [struct.unpack_from(">4sII", icc, 132 + 12 * index) for index in range(min(count, 1000))]
    except struct.error as error:
        raise ProfileError("its table of contents ends too early") from error
    return {name: icc[start : start + length] for name, start, length in entries}


def _matrix_profile(tags: dict[bytes, bytes]) -> MatrixProfile:
    try:
        columns = [np.frombuffer(tags[name], ">i4", 3, 8) / 65536 for name in (b"rXYZ", b"gXYZ", b"bXYZ")]
        red, green, blue = (parse_curve(tags[name]) for name in (b"rTRC", b"gTRC", b"bTRC"))
    except (KeyError, ValueError) as error:
        raise ProfileError(f"its primaries cannot be read: {error}") from error
    return MatrixProfile((red, green, blue), np.stack(columns, axis=1))


def _is_srgb(profile: ColorProfile, channels: int) -> bool:
    """Whether a profile leaves a grid of colours where they are."""
    steps = torch.linspace(0, 1, 18)
    grid = torch.stack(torch.meshgrid([steps] * channels, indexing="ij")).reshape(channels, 1, -1)
    return bool((profile.to_srgb(grid).clamp(0, 1) - grid).abs().max() < _SRGB_TOLERANCE)


def _transformed(rows: Tensor, transform: ImageCms.ImageCmsTransform) -> Tensor:
    image = Image.fromarray(to_samples(rows, 8))
    ImageCms.applyTransform(image, transform, inPlace=True)
    return from_samples(np.asarray(image))
