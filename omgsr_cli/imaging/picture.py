"""What a picture is once it has been read: pixels for the model, and everything that must survive it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from omgsr_cli.errors import ShapeError
from omgsr_cli.imaging.rows import Rows, WholeRows, bands_of


@dataclass(frozen=True)
class PictureMetadata:
    """What a file says beside its pixels.

    Attributes:
        exif: a TIFF structure without the "Exif" prefix, orientation 1, without a thumbnail.
        icc: the profile that the file's pixels are in, its own or one of the same meaning as its other description;
            None means sRGB (or grey on sRGB's curve).
        xmp: the XMP packet with its extension, orientation 1.
        dpi: horizontal and vertical dots per inch.
        text: keyword and text of PNG text chunks; a JPEG or GIF comment is "Comment".
        iptc: data sets of IPTC's IIM 4.2, without the preview image.
        size_px: height and width of the image that all this describes; None for that of the pixels.
    """

    exif: bytes | None = None
    icc: bytes | None = None
    xmp: bytes | None = None
    dpi: tuple[float, float] | None = None
    text: tuple[tuple[str, str], ...] = ()
    iptc: bytes | None = None
    size_px: tuple[int, int] | None = field(default=None, compare=False)


@dataclass(frozen=True)
class PictureHeader:
    """What can be told of a file without decoding its pixels.

    Attributes:
        size_px: height and width after the EXIF orientation.
        format: "png", "jpg", "webp", "tiff", "avif", "bmp", "gif", "jp2", "ppm", "heic", "jxl" or "raw".
        frames: pictures in the file; only the first is read.
        mode: Pillow's name of the pixel layout, for people.
        bit_depth: 8 or 16 per channel, as it will be read and can be written.
        has_alpha: whether there is transparency; it may turn out to be opaque everywhere.
        record: the settings that this program wrote it with, if it did.
        reading_bytes: memory that reading it takes at its peak, about.
        held_bytes: memory that its pixels take from then on, about.
    """

    size_px: tuple[int, int]
    format: str
    frames: int
    mode: str
    bit_depth: int
    has_alpha: bool
    record: str | None
    reading_bytes: int = 0
    held_bytes: int = 0


@dataclass(frozen=True)
class Picture:
    """A picture's pixels in sRGB and what is needed to write it as it came.

    Attributes:
        rgb: (3, H, W) float32, sRGB in [0, 1], upright, not premultiplied.
        alpha: (1, H, W) float32 in [0, 1], or None.
        format: as in `PictureHeader`.
        bit_depth: 8 or 16 per channel.
        is_grey: stored with one colour channel; written so again.
        is_neutral: no pixel has a hue (always so if is_grey); results are reduced to their luma.
        metadata: what the file says beside its pixels.
        frames: pictures in the file; this is the first.
        gamut: (3, H, W) float32, what had to be clipped from rgb to fit a wider gamut into sRGB; added again when
            the picture is written into its own profile. None where nothing was clipped.
        notes: what a person should be told, one short sentence each.
    """

    rgb: Tensor
    alpha: Tensor | None = None
    format: str = "png"
    bit_depth: int = 8
    is_grey: bool = False
    is_neutral: bool = False
    metadata: PictureMetadata = field(default_factory=PictureMetadata)
    frames: int = 1
    gamut: Tensor | None = None
    notes: tuple[str, ...] = ()

    @property
    def size_px(self) -> tuple[int, int]:
        """Height and width."""
        return self.rgb.shape[-2], self.rgb.shape[-1]

    def restored(self, rgb: Tensor, alpha: Tensor | None = None) -> Picture:
        """The same picture with new pixels, of any size.

        Args:
            rgb: (3, H, W) float, sRGB in [0, 1]; what lies outside is clipped when it is written.
            alpha: (1, H, W) float in [0, 1], or None for an opaque picture.
        Raises:
            ShapeError: the shapes are not these, or differ in height or width.
        """
        if rgb.ndim != 3 or rgb.shape[0] != 3 or rgb.numel() == 0:
            raise ShapeError(f"a picture is (3, H, W) with pixels, not {tuple(rgb.shape)}")
        if alpha is not None and tuple(alpha.shape) != (1, *rgb.shape[1:]):
            raise ShapeError(f"alpha is {tuple(alpha.shape)} beside a picture of {tuple(rgb.shape)}")
        return replace(self, rgb=rgb, alpha=alpha)

    def bands(self) -> PictureBands:
        """The same picture, to be written from its first rows to its last."""
        alpha = None if self.alpha is None else WholeRows(self.alpha)
        return PictureBands(self, self.size_px, bands_of(WholeRows(self.rgb)), alpha)


@dataclass(frozen=True)
class PictureBands:
    """A picture whose pixels come from the first rows to the last, once.

    Attributes:
        source: what it is made from: its format, depth, metadata and gamut are the result's too.
        size_px: height and width.
        rgb: (3, n, W) float, sRGB in [0, 1]; what lies outside is clipped when it is written.
        alpha: (1, n, W) of the same height and width, in [0, 1], or None for an opaque picture.
    """

    source: Picture
    size_px: tuple[int, int]
    rgb: Iterator[Tensor]
    alpha: Rows | None = None

    def whole(self) -> Picture:
        """All of it in memory."""
        alpha = None if self.alpha is None else self.alpha.read(0, self.size_px[0])
        return self.source.restored(torch.cat(list(self.rgb), dim=1), alpha)
