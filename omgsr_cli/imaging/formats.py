"""Image formats: names, suffixes and limits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from PIL import features

from omgsr_cli.errors import FileError, UsageError
from omgsr_cli.files.folders import FORMAT_OF_SUFFIX
from omgsr_cli.options import FORMAT_ALIASES
from omgsr_cli.options import OutputFormat as OutputFormat

#: Supported input formats, by Pillow's name. The others are not used for photographs, have no signature (TGA), or start
#: other programs to be decoded (EPS).
FORMAT_OF_PILLOW = {
    "PNG": "png",
    "JPEG": "jpg",
    "MPO": "jpg",
    "WEBP": "webp",
    "TIFF": "tiff",
    "AVIF": "avif",
    "BMP": "bmp",
    "GIF": "gif",
    "JPEG2000": "jp2",
    "PPM": "ppm",
    "HEIF": "heic",
    "JXL": "jxl",
}


@dataclass(frozen=True)
class FormatLimits:
    """The limits of an output format.

    Attributes:
        suffix: suffix of file names.
        max_side_px: largest height and width.
        max_pixels: largest height times width, or None.
        alpha: whether it supports transparency.
        bit_depths: bits per channel that can be written.
        quality: the default of `--quality`, or None for lossless formats.
        by_rows: whether rows can be written as they arrive; otherwise all are needed at once.
    """

    suffix: str
    max_side_px: int
    max_pixels: int | None
    alpha: bool
    bit_depths: tuple[int, ...]
    quality: int | None
    by_rows: bool = False


FORMAT_LIMITS = {
    "png": FormatLimits(".png", 2**31 - 1, None, True, (8, 16), None, by_rows=True),
    # 65500 is the limit of libjpeg; that of the format is 65535.
    "jpg": FormatLimits(".jpg", 65500, None, False, (8,), 95),
    "webp": FormatLimits(".webp", 16383, None, True, (8,), 95),
    "tiff": FormatLimits(".tif", 2**31 - 1, None, True, (8, 16), None, by_rows=True),
    # libavif, which most programs use to read AVIF, refuses more by default.
    "avif": FormatLimits(".avif", 32768, 16384 * 16384, True, (8,), 90),
}


def output_format(requested: str, source_format: str) -> str:
    """The output format: the requested one, or for "same" the source's, or PNG if that cannot be written.

    Raises:
        UsageError: the format does not exist.
    """
    requested = FORMAT_ALIASES.get(requested, requested)
    if requested not in get_args(OutputFormat):
        names = ", ".join(get_args(OutputFormat))
        raise UsageError(f"no output format is called {requested!r}", f"use one of {names}")
    wanted = source_format if requested == "same" else requested
    return wanted if wanted in FORMAT_LIMITS else "png"


def format_of_path(path: Path) -> str | None:
    """The format of a file's suffix, or None."""
    return FORMAT_OF_SUFFIX.get(path.suffix.lower())


def output_suffix(format_name: str, source: Path | None = None) -> str:
    """The suffix of a result: the source's own if it has the same format (".jpeg"), otherwise the usual one."""
    if source is not None and format_of_path(source) == format_name:
        return source.suffix
    return FORMAT_LIMITS[format_name].suffix


def check_output(name: str, format_name: str, size_px: tuple[int, int], has_alpha: bool) -> None:
    """Check the limits of a format, before a model runs.

    Args:
        name: name of the file, for the message.
        format_name: a key of `FORMAT_LIMITS`.
        size_px: height and width of the result.
        has_alpha: whether some pixel is transparent.
    Raises:
        FileError: the format does not support the size or transparency, or this Pillow cannot write it.
    """
    limits = FORMAT_LIMITS[format_name]
    height, width = size_px
    too_wide = max(height, width) > limits.max_side_px
    if too_wide or (limits.max_pixels is not None and height * width > limits.max_pixels):
        raise FileError(
            f"{name}: {width}x{height} is too large for {format_name} (at most {limits.max_side_px} px per side)",
            "use --format png or tiff, or a smaller --scale",
        )
    if has_alpha and not limits.alpha:
        raise FileError(f"{name}: {format_name} has no transparency", "use --format png, webp, tiff or avif")
    if format_name in ("webp", "avif") and not features.check(format_name):
        raise FileError(
            f"{name}: this Pillow cannot write {format_name}", "use --format png, or `pip install -U pillow`"
        )
