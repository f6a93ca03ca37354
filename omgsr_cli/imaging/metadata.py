"""What a file says beside its pixels, read from an opened Pillow image."""

from __future__ import annotations

import math
import re
import struct
import warnings
from typing import Any, BinaryIO

from PIL import ExifTags, Image, PngImagePlugin, TiffImagePlugin

from omgsr_cli.imaging.exif import ExifError, exif_orientation, tags_of, upright_exif, without_prefix
from omgsr_cli.imaging.picture import PictureMetadata
from omgsr_cli.imaging.settings_line import PNG_KEYWORD, is_record_comment

XMP_KEYWORD = "XML:com.adobe.xmp"
_RAW_EXIF_KEYWORD = "Raw profile type exif"

#: A text longer than this is data of some program, not a person's words.
_MAX_TEXT = 1 << 20

#: Tags of a TIFF's directory that describe the picture; the rest say how its pixels lie in the file.
_DESCRIPTIVE_TAGS = frozenset(
    {
        ExifTags.Base.DocumentName,
        ExifTags.Base.ImageDescription,
        ExifTags.Base.Make,
        ExifTags.Base.Model,
        ExifTags.Base.PageName,
        ExifTags.Base.Software,
        ExifTags.Base.DateTime,
        ExifTags.Base.Artist,
        ExifTags.Base.HostComputer,
        ExifTags.Base.Rating,
        ExifTags.Base.RatingPercent,
        ExifTags.Base.Copyright,
        ExifTags.Base.XPTitle,
        ExifTags.Base.XPComment,
        ExifTags.Base.XPAuthor,
        ExifTags.Base.XPKeywords,
        ExifTags.Base.XPSubject,
        ExifTags.IFD.Exif,
        ExifTags.IFD.GPSInfo,
    }
)

_XMP_ORIENTATION = re.compile(rb"(tiff:Orientation(?:=[\"']|>)\s*)([1-8])")


def raw_exif(image: Image.Image) -> bytes | None:
    """The EXIF bytes of an opened image, without prefix; for a TIFF, what of its own directory describes it."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return _exif_of_tiff(image)
    if exif := image.info.get("exif"):
        return without_prefix(exif)
    if profile := image.info.get(_RAW_EXIF_KEYWORD):
        # ImageMagick's way before PNG had a chunk for it: a name, a length, then hexadecimal lines.
        try:
            return without_prefix(bytes.fromhex("".join(profile.split("\n")[3:])))
        except ValueError:
            return None
    return None


def orientation(image: Image.Image) -> int:
    """The orientation still to be applied to an image's pixels, 1 to 8; XMP's word counts where EXIF has none."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return 1  # Pillow turns a TIFF while it loads it, and tells its size turned.
    try:
        exif = raw_exif(image)
        found = exif_orientation(exif) if exif else None
    except ExifError:
        found = None
    if found is None and (match := _XMP_ORIENTATION.search(raw_xmp(image) or b"")):
        found = int(match[2])
    return found or 1


def raw_xmp(image: Image.Image) -> bytes | None:
    """The XMP packet of an opened image."""
    xmp = image.info.get("xmp") or image.info.get(XMP_KEYWORD)
    if isinstance(xmp, str):
        return xmp.encode()
    return xmp if isinstance(xmp, bytes) and xmp else None


def read_metadata(image: Image.Image, size_px: tuple[int, int]) -> tuple[PictureMetadata, tuple[str, ...]]:
    """Take what is kept from a loaded image.

    Args:
        image: loaded, so that what follows the pixels is known too.
        size_px: height and width once it is upright.
    Returns:
        The metadata, its ICC profile not yet looked at, and notes on what had to be left out.
    """
    notes: tuple[str, ...] = ()
    exif = None
    try:
        with warnings.catch_warnings(action="ignore"):  # Pillow's, of single values that it leaves out
            found = raw_exif(image)
        exif = upright_exif(found, size_px) if found else None
    except (ExifError, struct.error, ValueError, TypeError, KeyError, SyntaxError, OSError):
        notes = ("the EXIF data is broken and was left out",)
    xmp = raw_xmp(image)
    metadata = PictureMetadata(
        exif=exif,
        icc=image.info.get("icc_profile") or None,
        xmp=_XMP_ORIENTATION.sub(rb"\g<1>1", xmp) if xmp else None,
        dpi=_dpi(image),
        text=_text(image),
    )
    return metadata, notes


def exif_of_tiff_structure(file: BinaryIO) -> bytes | None:
    """What the first directory of a file that begins as a TIFF says of its picture, whatever its pixels are.

    Raises:
        SyntaxError, OSError, struct.error: it does not begin so, or is broken.
    """
    file.seek(0)
    exif, directory = Image.Exif(), TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
    exif.endian = "<" if directory.prefix == b"II" else ">"
    exif.load_from_fp(file, directory.next)
    return _described(exif)


def _exif_of_tiff(image: TiffImagePlugin.TiffImageFile) -> bytes | None:
    return _described(image.getexif())


def _described(exif: Image.Exif) -> bytes | None:
    source, kept = tags_of(exif), Image.Exif()
    for tag in _DESCRIPTIVE_TAGS & set(source):
        kept[tag] = source[tag]
    return without_prefix(kept.tobytes()) if len(kept) else None


def _dpi(image: Image.Image) -> tuple[float, float] | None:
    dpi: Any = image.info.get("dpi")
    if dpi is None:
        return None
    try:
        across, down = (float(value) for value in dpi)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    # Pillow tells 1 where a TIFF has no resolution; no scan has that.
    return (across, down) if all(math.isfinite(value) and value > 1 for value in (across, down)) else None


def _text(image: Image.Image) -> tuple[tuple[str, str], ...]:
    if isinstance(image, PngImagePlugin.PngImageFile):
        ours = {PNG_KEYWORD, XMP_KEYWORD}
        return tuple(
            (str(key), str(value))
            for key, value in image.text.items()
            if key not in ours and not key.startswith("Raw profile type") and len(value) <= _MAX_TEXT
        )
    comments = [content for name, content in getattr(image, "applist", []) if name == "COM"]
    if not comments and isinstance(image.info.get("comment"), bytes):
        comments = [image.info["comment"]]
    return tuple(("Comment", _decoded(comment)) for comment in comments if comment and not is_record_comment(comment))


def _decoded(comment: bytes) -> str:
    try:
        return comment.decode()
    except UnicodeDecodeError:
        return comment.decode("latin-1")
