"""An image in memory: pixels for the model, and everything that a result must keep."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from omgsr_cli.errors import NotFiniteError, ShapeError
from omgsr_cli.imaging.rows import Rows, WholeRows, bands_of


@dataclass(frozen=True)
class ImageMetadata:
    """The metadata of a file.

    Attributes:
        exif: a TIFF structure without the "Exif" prefix, with orientation 1 and without a thumbnail.
        icc: the profile of the file's pixels: its own, or one that means the same as its other colour description; None
            means sRGB (or grey with sRGB's curve).
        xmp: the XMP packet with its extension, orientation 1.
        dpi: horizontal and vertical dots per inch.
        text: keywords and texts of PNG text chunks; a JPEG or GIF comment has the keyword "Comment".
        iptc: data sets of IPTC's IIM 4.2, without the preview image.
        size_px: height and width of the image that the metadata describes; None if it is that of the pixels.
    """

    exif: bytes | None = None
    icc: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    text: tuple[tuple[str, str], ...] = ()
    iptc: bytes | None = None
    size_px: tuple[int, int] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class ImageHeader:
    """The properties of a file that can be read without decoding its pixels.

    Attributes:
        size_px: height and width after the EXIF orientation.
        format: "png", "jpg", "webp", "tiff", "avif", "bmp", "gif", "jp2", "ppm", "heic", "jxl" or "raw".
        bit_depth: 8 or 16 per channel, as it will be read and can be written.
        reading_bytes: estimated peak memory of reading it.
        held_bytes: estimated memory of its pixels afterwards.
    """

    size_px: tuple[int, int]
    format: str
    bit_depth: int
    reading_bytes: int
    held_bytes: int


@dataclass(frozen=True)
class SourceImage:
    """An image's pixels in sRGB, and what is needed to write the result like its input.

    Attributes:
        rgb: (3, H, W) float32, sRGB in [0, 1], upright, not premultiplied.
        alpha: (1, H, W) float32 in [0, 1], or None.
        format: as in `ImageHeader`.
        bit_depth: 8 or 16 per channel.
        is_grey: the file has one colour channel, and so will the result.
        is_neutral: no pixel has a hue (always true if is_grey); results are reduced to their luma.
        metadata: the metadata of the file.
        gamut: (3, H, W) float32, the part of a wider gamut that was clipped from rgb to fit into sRGB; it is added
            again when the image is written with its own profile. None if nothing was clipped.
        notes: notes for the user, one short sentence each.
    """

    rgb: Tensor
    alpha: Tensor | None = None
    format: str = "png"
    bit_depth: int = 8
    is_grey: bool = False
    is_neutral: bool = False
    metadata: ImageMetadata = field(default_factory=ImageMetadata)
    gamut: Tensor | None = None
    notes: tuple[str, ...] = ()

    @property
    def is_plain(self) -> bool:
        """Whether its samples are those of sRGB: colours of 8 bits without alpha, a profile or colours beyond."""
        of_srgb = self.gamut is None and self.metadata.icc is None and not self.is_neutral
        return of_srgb and self.alpha is None and self.bit_depth == 8

    @property
    def size_px(self) -> tuple[int, int]:
        """Height and width."""
        return self.rgb.shape[-2], self.rgb.shape[-1]

    def restored(self, rgb: Tensor, alpha: Tensor | None = None) -> SourceImage:
        """The same image with new pixels, of any size.

        Args:
            rgb: (3, H, W) float, sRGB in [0, 1]; values outside are clipped when the image is written.
            alpha: (1, H, W) float in [0, 1], or None for an opaque image.
        Raises:
            ShapeError: a shape is wrong, or the shapes differ in height or width.
        """
        if rgb.ndim != 3 or rgb.shape[0] != 3 or rgb.numel() == 0:
            raise ShapeError(f"an image must be (3, H, W) and not empty, not {tuple(rgb.shape)}")
        if alpha is not None and tuple(alpha.shape) != (1, *rgb.shape[1:]):
            raise ShapeError(f"alpha {tuple(alpha.shape)} does not match the image {tuple(rgb.shape)}")
        return replace(self, rgb=rgb, alpha=alpha)

    def bands(self) -> ImageBands:
        """The same image as bands, from top to bottom."""
        alpha = None if self.alpha is None else WholeRows(self.alpha)
        return ImageBands(self, self.size_px, bands_of(WholeRows(self.rgb)), alpha)


@dataclass(frozen=True)
class ImageBands:
    """An image as bands of rows, from top to bottom, which can be read once.

    Attributes:
        source: the input, whose format, depth, metadata and gamut the result has too.
        size_px: height and width.
        rgb: bands (3, n, W) float, sRGB in [0, 1]; values outside are clipped when the image is written. Bands of a
            plain image may also be uint8.
        alpha: bands (1, n, W) of the same height and width, in [0, 1], or None for an opaque image.
    """

    source: SourceImage
    size_px: tuple[int, int]
    rgb: Iterator[Tensor]
    alpha: Rows | None = None

    def whole(self) -> SourceImage:
        """The whole image in memory."""
        alpha = None if self.alpha is None else self.alpha.read(0, self.size_px[0])
        return self.source.restored(torch.cat(list(self.rgb), dim=1), alpha)


# White pixels between the two.
_LINE_PX = 4


def side_by_side(before: Rows, source: SourceImage, after: ImageBands) -> ImageBands:
    """The upscaled input on the left and the result on the right, with a white line between them.

    Args:
        before: (3, H, W) rows of the upscaled input, in [0, 1].
        source: the input, whose profile and resolution are kept.
        after: the result, (3, H, W) in bands.
    Returns:
        (3, H, 2 W + 4) in bands.
    """
    height, width = after.size_px

    def bands() -> Iterator[Tensor]:
        row = 0
        for band in after.rgb:
            bottom = row + band.shape[1]
            alpha = after.alpha.read(row, bottom) if after.alpha is not None else 1.0
            line = torch.ones(3, band.shape[1], _LINE_PX)
            yield torch.cat([before.read(row, bottom) * alpha, line, band * alpha], 2)
            row = bottom

    # Other metadata, such as regions and sizes, describes the input alone.
    metadata = ImageMetadata(icc=source.metadata.icc, dpi=source.metadata.dpi)
    plain = SourceImage(source.rgb, is_grey=source.is_grey, is_neutral=source.is_neutral, metadata=metadata)
    return ImageBands(plain, (height, 2 * width + _LINE_PX), bands())


# --- integers of files <-> floats ----------------------------------------------------------------------------------

#: Weights of BT.601 for gamma-encoded values, the grey of JPEG and Pillow.
_LUMA_RED, _LUMA_BLUE = 0.299, 0.114
#: Number of samples that are converted at a time.
_SAMPLES_AT_ONCE = 1 << 20

#: The operation on an (H, W, C) array for each EXIF orientation.
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
    """The layout of samples, (H, W, C) uint8 or uint16; C is 1 grey, 2 grey with alpha, 3 RGB, 4 RGBA."""

    height: int
    width: int
    channels: int
    bit_depth: int


class Decoded(NamedTuple):
    """A file's samples, (H, W, C) uint8 or uint16, where C is 1 or 3, plus 1 with alpha; and notes for the user."""

    samples: NDArray[Any]
    is_srgb: bool = False
    notes: tuple[str, ...] = ()


def from_samples(samples: NDArray[Any]) -> Tensor:
    """Convert a file's integers to floats.

    Args:
        samples: (H, W, C) or (H, W), uint8 or uint16.
    Returns:
        (C, H, W) float32 in [0, 1]: samples / 255 or / 65535.
    """
    planes = np.atleast_3d(samples)
    height, width, channels = planes.shape
    result = torch.empty(channels, height, width)
    rows = max(_SAMPLES_AT_ONCE // max(width, 1), 1)
    # Converting a few rows of one channel at a time needs no memory beside samples and result.
    for channel in range(channels):
        for top in range(0, height, rows):
            # Use int32 for 16 bits, because torch does not support all operations on uint16.
            part = planes[top : top + rows, :, channel].astype(np.int32)
            result[channel, top : top + rows] = torch.from_numpy(part)
    return result.div_(np.iinfo(planes.dtype).max)


def to_samples(image: Tensor, bit_depth: int) -> NDArray[Any]:
    """Convert floats to a file's integers, rounding half to even.

    Args:
        image: (C, H, W) float in [0, 1]; values outside are clipped.
        bit_depth: 8 or 16.
    Returns:
        (H, W, C) uint8 or uint16, contiguous.
    Raises:
        NotFiniteError: a value is NaN.
    """
    largest, dtype = (255, torch.uint8) if bit_depth == 8 else (65535, torch.uint16)
    # In the layout that it has; only the integers, which are small, are moved.
    values = image.detach().to("cpu", torch.float32).clamp(0, 1).mul_(largest).round_()
    # Clipped values cannot overflow their sum, and one NaN makes it NaN.
    if bool(values.sum().isnan()):
        raise NotFiniteError("the image has samples that are not numbers (NaN)")
    integers = values.to(torch.int32).to(dtype) if bit_depth == 16 else values.to(dtype)
    return integers.permute(1, 2, 0).contiguous().numpy()


def luma(rgb: Tensor) -> Tensor:
    """Convert (3, H, W) to (1, H, W) with BT.601 on gamma-encoded values; equal channels keep their value."""
    red, green, blue = rgb[0:1], rgb[1:2], rgb[2:3]
    # Computed from differences, so a neutral pixel keeps its exact value.
    return green + (red - green) * _LUMA_RED + (blue - green) * _LUMA_BLUE


def spread(samples: NDArray[Any], largest: int) -> NDArray[np.uint16]:
    """Scale integers from 0..largest to the whole range of uint16, a row at a time."""
    result = np.empty(samples.shape, np.uint16)
    for row, levels in zip(result, samples, strict=True):
        row[:] = np.minimum((levels.astype(np.uint32) * 65535 + largest // 2) // largest, 65535)
    return result


def unpremultiplied(colors: NDArray[Any], alpha: NDArray[Any]) -> NDArray[Any]:
    """Divide (H, W, C) integers by their alpha, (H, W, 1) of the same type."""
    largest = np.iinfo(colors.dtype).max
    share = np.maximum(alpha.astype(np.float32), 1) / largest
    divided: NDArray[Any] = np.minimum(np.rint(colors / share), largest).astype(colors.dtype)
    return divided
