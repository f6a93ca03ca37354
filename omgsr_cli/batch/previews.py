"""Images for web pages: which files browsers show correctly, previews of the others, and thumbnails."""

from __future__ import annotations

import io
import math
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageCms, ImageFile

from omgsr_cli.errors import FileError
from omgsr_cli.imaging import (
    FORMAT_LIMITS,
    ImageMetadata,
    SourceImage,
    encode_image,
    from_samples,
    probe_image,
    read_image,
    resize,
    resize_bands,
    to_samples,
)
from omgsr_cli.imaging.decoders import is_raw
from omgsr_cli.imaging.image import TURNS
from omgsr_cli.imaging.metadata import has_adobe_rgb, stored_orientation
from omgsr_cli.imaging.opening import load_pixels, opened
from omgsr_cli.imaging.profiles import describe_color
from omgsr_cli.imaging.read import with_pixels
from omgsr_cli.imaging.tiff import TiffImage

#: Formats that browsers show, by Pillow's name, and the suffixes by which they recognise images.
_SHOWN = ("PNG", "JPEG", "MPO", "WEBP", "AVIF", "GIF")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".gif")

_THUMBNAIL_PX, _THUMBNAIL_QUALITY = 192, 70
_PREVIEW_PIXELS, _PREVIEW_QUALITY = 24_000_000, 90

#: The kind of alpha of a TIFF whose colours are not multiplied by it.
_STRAIGHT = 2

#: Memory for decoding an image for its preview.
_MOST_BYTES = 2 << 30


def look_at_image(path: Path, name: str) -> tuple[tuple[int, int], bool]:
    """The upright height and width of an image, and whether browsers show the file correctly; its header is read.

    Args:
        path: the image.
        name: its name in messages.
    Raises:
        FileError: the image cannot be read.
    """
    if is_raw(path):
        return probe_image(path, name).size_px, False
    with opened(path, name) as (image, file, _):
        turn, (width, height) = stored_orientation(image, file), image.size
        if _is_shown(path, image, turn):
            return ((width, height) if turn >= 5 else (height, width)), True
    return probe_image(path, name).size_px, False


def encode_preview(path: Path, name: str) -> bytes:
    """A WebP of an image in sRGB, with at most 24 megapixels.

    Raises:
        FileError: the image cannot be read, or decoding it needs too much memory.
    """
    header = probe_image(path, name)
    height, width = header.size_px
    factor = max(math.sqrt(height * width / _PREVIEW_PIXELS), max(height, width) / FORMAT_LIMITS["webp"].max_side_px, 1)
    size_px = max(1, int(height / factor)), max(1, int(width / factor))
    if header.reading_bytes > _MOST_BYTES:
        image = _read_strips(path, name, size_px)
    else:
        image = read_image(path, name)
        rgb, alpha = (None if each is None else resize(each, size_px, 16) for each in (image.rgb, image.alpha))
        assert rgb is not None
        image = replace(image, rgb=rgb, alpha=alpha)
    plain = replace(image, metadata=ImageMetadata(), gamut=None)
    parts, _ = encode_image(plain, name=name, format="webp", quality=_PREVIEW_QUALITY, metadata="none")
    return b"".join(parts)


def _read_strips(path: Path, name: str, size_px: tuple[int, int]) -> SourceImage:
    """A TIFF of any size, reduced while its strips are read; only the kind that results have.

    Raises:
        FileError: the image cannot be read, or is of another kind.
    """
    with opened(path, name) as (image, file, _):
        page = image.page if isinstance(image, TiffImage) and stored_orientation(image) == 1 else None
        if page is None or not all(
            (
                page.photometric in (1, 2),
                page.planarconfig == 1,
                str(page.dtype) in ("uint8", "uint16"),
                not page.is_tiled,
                set(page.extrasamples) <= {_STRAIGHT},
            )
        ):
            raise FileError(f"{name}: too large for a preview: {image.width}x{image.height}")
        strips = (samples for samples, _, _ in page.segments(maxworkers=1) if samples is not None)
        bands = (from_samples(each.reshape(-1, page.imagewidth, page.samplesperpixel)) for each in strips)
        reduced = torch.cat(list(resize_bands(bands, (image.height, image.width), size_px, 16)), dim=1)
        icc, is_grey = image.info.get("icc_profile"), page.photometric == 1
        # A profile that does not fit the image is ignored, as when the whole image is read.
        metadata = ImageMetadata(icc=describe_color(image, file, name, icc=icc, is_grey=is_grey).icc)
    return with_pixels(SourceImage(torch.empty(3, 1, 1), metadata=metadata), to_samples(reduced, 16))


def encode_thumbnail(path: Path, name: str) -> bytes:
    """A WebP in sRGB with at most 192 px per side, of an image that browsers show; a JPEG is decoded at a reduced size.

    Raises:
        FileError: the image cannot be read.
    """
    with opened(path, name, for_pixels=True) as (image, file, _):
        turn = stored_orientation(image, file)
        image.draft(image.mode, (2 * _THUMBNAIL_PX, 2 * _THUMBNAIL_PX))
        load_pixels(image)
        small: Image.Image = image
        if image.mode in ("I", "I;16", "I;16B"):
            # Pillow would clip 16 bits of grey.
            small = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        elif image.mode not in ("L", "RGB", "RGBA"):
            small = image.convert("RGBA" if image.has_transparency_data else "RGB")
        small.thumbnail((_THUMBNAIL_PX, _THUMBNAIL_PX))
        icc = image.info.get("icc_profile")
    if icc and small.mode == "RGB":
        # A profile of several kilobytes would be larger than the thumbnail.
        with suppress(ImageCms.PyCMSError, OSError, ValueError):
            small = ImageCms.profileToProfile(small, io.BytesIO(icc), ImageCms.createProfile("sRGB")) or small
    content = io.BytesIO()
    turned = np.ascontiguousarray(TURNS[turn](np.asarray(small)))
    Image.fromarray(turned).save(content, "WEBP", quality=_THUMBNAIL_QUALITY)
    return content.getvalue()


def _is_shown(path: Path, image: ImageFile.ImageFile, turn: int) -> bool:
    """Whether all browsers show an image upright, in its colours, and still."""
    if image.format not in _SHOWN or path.suffix.lower() not in _SUFFIXES:
        return False
    is_jpeg, exif = image.format in ("JPEG", "MPO"), image.info.get("exif", b"").removeprefix(b"Exif\0\0")
    # Browsers turn a JPEG by its EXIF data, but not by XMP, and not all of them turn other formats.
    is_turned = turn != 1 and not (is_jpeg and image.getexif().get(ExifTags.Base.Orientation) == turn)
    is_adobe = not image.info.get("icc_profile") and has_adobe_rgb(exif or None)
    moves = not is_jpeg and getattr(image, "n_frames", 1) > 1
    return not (is_turned or is_adobe or moves or image.mode in ("CMYK", "LAB"))
