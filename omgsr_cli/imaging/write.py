"""Write pictures: in their own colours, depth and format, with what they said beside their pixels."""

from __future__ import annotations

import io
import os
import struct
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from omgsr_cli.errors import FileError, UsageError
from omgsr_cli.imaging.atomic import exists_error, write_atomically, write_error
from omgsr_cli.imaging.exif import PREFIX, ExifError, exif_with_dpi, upright_exif
from omgsr_cli.imaging.formats import FORMAT_LIMITS, check_output, output_format
from omgsr_cli.imaging.icc import load_profile, profile_space
from omgsr_cli.imaging.picture import Picture, PictureMetadata
from omgsr_cli.imaging.png import encode_png
from omgsr_cli.imaging.samples import luma, to_samples
from omgsr_cli.imaging.settings_line import with_record
from omgsr_cli.imaging.tiff import can_pack_exif, encode_tiff

MetadataPolicy = Literal["keep", "none"]

#: A segment of a JPEG holds at most 65533 bytes; EXIF and XMP have a prefix in theirs.
_MAX_JPEG_EXIF = 65533 - len(PREFIX)
_MAX_JPEG_XMP = 65533 - len(b"http://ns.adobe.com/xap/1.0/\0")

_NEARLY_OPAQUE = 1 - 0.5 / 65535


def write_picture(
    picture: Picture,
    destination: Path | BinaryIO,
    *,
    format: str = "same",
    quality: int | None = None,
    metadata: MetadataPolicy = "keep",
    record: str | None = None,
    overwrite: bool = False,
) -> tuple[str, ...]:
    """Write a picture: to a file whole or not at all, or to a stream.

    Grey stays grey, wide-gamut pixels go back into their profile, 16 bits stay 16 where the format has them.
    Pixels are rounded once, half to even.

    Args:
        picture: usually from `read_picture`, with the pixels that `Picture.restored` gave it.
        destination: a file, whose folder is made if missing, or an open binary stream.
        format: "same" as the picture came in (PNG where that cannot be written), or the one to write.
        quality: 1 to 100 for jpg, webp and avif; None for the default of each (95, 95, 90).
        metadata: "none" leaves out EXIF, XMP, DPI and texts; the ICC profile stays, as the pixels mean nothing
            without it.
        record: a short text to keep in the file, see `read_record`; left out too where `metadata` is "none".
        overwrite: whether a file already there is replaced.
    Returns:
        Notes on what the format could not hold.
    Raises:
        FileError: it exists, cannot be written, or the format cannot hold it.
        UsageError: an unknown format, or a quality outside 1 to 100.
    """
    if isinstance(destination, Path) and not overwrite and os.path.lexists(destination):
        raise exists_error(destination)
    name = str(destination) if isinstance(destination, Path) else "<stream>"
    parts, notes = encode_picture(picture, name=name, format=format, quality=quality, metadata=metadata, record=record)
    if isinstance(destination, Path):
        write_atomically(destination, parts, overwrite=overwrite)
        return notes
    try:
        for part in parts:
            destination.write(part)
        destination.flush()
    except BrokenPipeError:
        # The reader has gone: the command line ends quietly on this.
        raise
    except OSError as error:
        raise write_error(name, error) from error
    return notes


def encode_picture(
    picture: Picture,
    *,
    name: str,
    format: str = "same",
    quality: int | None = None,
    metadata: MetadataPolicy = "keep",
    record: str | None = None,
) -> tuple[tuple[bytes | memoryview, ...], tuple[str, ...]]:
    """Encode a picture as `write_picture` does.

    Returns:
        The file's bytes in parts, and notes on what the format could not hold.
    Raises:
        FileError: the format cannot hold it.
        UsageError: an unknown format, or a quality outside 1 to 100.
    """
    format_name = output_format(format, picture.format)
    limits = FORMAT_LIMITS[format_name]
    if quality is not None and not 1 <= quality <= 100:
        raise UsageError(f"quality {quality} is not from 1 to 100")
    alpha = picture.alpha
    if alpha is not None and not limits.alpha and bool(alpha.min() >= _NEARLY_OPAQUE):
        alpha = None
    check_output(name, format_name, picture.size_px, alpha is not None)
    kept, notes = _fitting(_kept_metadata(picture, metadata), format_name, picture.size_px)
    if picture.is_grey and format_name in ("webp", "avif"):
        # WebP has only RGB, and grey AVIF with a profile is read wrongly by many: these get plain sRGB.
        kept = replace(kept, icc=None)
    depth = picture.bit_depth if picture.bit_depth in limits.bit_depths else 8
    samples = to_samples(_own_colors(picture, alpha, kept.icc), depth)
    try:
        with warnings.catch_warnings(action="ignore"):  # Pillow's, of single EXIF values that it leaves out
            if format_name == "tiff":
                data = encode_tiff(samples, kept, name)
            else:
                data = _ENCODERS[format_name](samples, kept, quality or limits.quality or 0)
    except (OSError, ValueError, OverflowError, struct.error, MemoryError) as error:
        reason = str(error) or type(error).__name__
        raise FileError(f"{name}: cannot be encoded as {format_name}: {reason}") from error
    return (with_record(format_name, data, record) if record and metadata == "keep" else (data,)), notes


def _kept_metadata(picture: Picture, policy: MetadataPolicy) -> PictureMetadata:
    if policy == "none":
        return PictureMetadata(icc=picture.metadata.icc)
    return picture.metadata


def _fitting(
    metadata: PictureMetadata, format_name: str, size_px: tuple[int, int]
) -> tuple[PictureMetadata, tuple[str, ...]]:
    """Change metadata to what is true of the result and fits into its format."""
    notes: list[str] = []
    if metadata.exif:
        try:
            metadata = replace(metadata, exif=upright_exif(metadata.exif, size_px))
        except ExifError:
            metadata = replace(metadata, exif=None)
            notes.append("the EXIF data is broken and was left out")
    if metadata.exif and format_name in ("tiff", "avif") and not can_pack_exif(metadata.exif):
        metadata = replace(metadata, exif=None)
        notes.append("the EXIF data is broken and was left out")
    if metadata.dpi and not metadata.exif and format_name in ("webp", "avif"):
        metadata = replace(metadata, exif=exif_with_dpi(metadata.dpi))
    if format_name == "jpg" and len(metadata.exif or b"") > _MAX_JPEG_EXIF:
        metadata = replace(metadata, exif=None)
        notes.append("the EXIF data is too long for a JPEG and was left out")
    if format_name == "jpg" and len(metadata.xmp or b"") > _MAX_JPEG_XMP:
        metadata = replace(metadata, xmp=None)
        notes.append("the XMP data is too long for a JPEG and was left out")
    return metadata, tuple(notes)


def _own_colors(picture: Picture, alpha: Tensor | None, icc: bytes | None) -> Tensor:
    """Bring pixels from sRGB to the space of the profile they are written with: (1 to 4, H, W)."""
    color = picture.rgb.detach().to("cpu", torch.float32)
    if picture.gamut is not None and icc is not None:
        color = color.clamp(0, 1) + _resized(picture.gamut, picture.size_px)
    if picture.is_neutral:
        color = luma(color)
    profile = load_profile(icc) if icc else None
    if picture.is_neutral and not picture.is_grey:
        color = color.expand(3, -1, -1)
    if profile is not None:
        # Grey and RGB profiles alike: `read_picture` keeps only one that fits the picture.
        assert profile_space(icc or b"") == ("GRAY" if picture.is_grey else "RGB")
        color = profile.from_srgb(color)
    return color if alpha is None else torch.cat([color, alpha.detach().to("cpu", torch.float32)])


def _resized(gamut: Tensor, size_px: tuple[int, int]) -> Tensor:
    if gamut.shape[1:] == size_px:
        return gamut
    return functional.interpolate(gamut[None], size_px, mode="bilinear", align_corners=False)[0]


def _encode_jpeg(samples: NDArray[Any], metadata: PictureMetadata, quality: int) -> bytes:
    extra: dict[str, Any] = {}
    if metadata.exif:
        extra["exif"] = PREFIX + metadata.exif
    if metadata.xmp:
        extra["xmp"] = metadata.xmp
    if metadata.dpi:
        extra["dpi"] = tuple(min(max(round(dpi), 1), 65535) for dpi in metadata.dpi)
    comments = [text for keyword, text in metadata.text if keyword == "Comment"]
    if comments:
        extra["comment"] = comments[0].encode()[:65000]
    # 4:4:4: halving the colour's resolution would undo part of what was restored.
    return _saved(samples, "JPEG", quality=quality, subsampling=0, icc_profile=metadata.icc, **extra)


def _encode_webp(samples: NDArray[Any], metadata: PictureMetadata, quality: int) -> bytes:
    blocks = {"icc_profile": metadata.icc, "exif": metadata.exif or b"", "xmp": metadata.xmp or b""}
    return _saved(samples, "WEBP", quality=quality, **blocks)


def _encode_avif(samples: NDArray[Any], metadata: PictureMetadata, quality: int) -> bytes:
    blocks = {"icc_profile": metadata.icc, "exif": metadata.exif or b"", "xmp": metadata.xmp or b""}
    return _saved(samples, "AVIF", quality=quality, subsampling="4:0:0" if samples.shape[2] == 1 else "4:4:4", **blocks)


def _saved(samples: NDArray[Any], pillow_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(samples[:, :, 0] if samples.shape[2] == 1 else samples)
    image.save(buffer, pillow_format, **options)
    return buffer.getvalue()


_ENCODERS: dict[str, Callable[[NDArray[Any], PictureMetadata, int], bytes]] = {
    "png": lambda samples, metadata, _: encode_png(samples, metadata),
    "jpg": _encode_jpeg,
    "webp": _encode_webp,
    "avif": _encode_avif,
}
