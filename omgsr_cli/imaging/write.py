"""Write images in their own colours, depth and format, with their metadata."""

from __future__ import annotations

import importlib
import io
import os
import shutil
import struct
import tempfile
import warnings
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, features

from omgsr_cli.errors import FileError, UsageError, write_error
from omgsr_cli.files.atomic import exists_error, write_atomically
from omgsr_cli.files.containers import PNG_START, behind_first_segment, png_chunk, with_record
from omgsr_cli.imaging.image import ImageBands, ImageMetadata, SampleLayout, SourceImage, luma, to_samples
from omgsr_cli.imaging.metadata import (
    XMP_KEYWORD,
    fitting_metadata,
    iptc_resources,
    metadata_segments,
    png_text_chunk,
    raw_profile_chunk,
)
from omgsr_cli.imaging.profiles import load_profile, profile_space
from omgsr_cli.imaging.resize import ResizedRows
from omgsr_cli.imaging.rows import bands_of, no_room, split_bands
from omgsr_cli.imaging.tiff import can_pack_exif, encode_tiff
from omgsr_cli.options import FORMAT_ALIASES, OutputFormat


@dataclass(frozen=True)
class FormatLimits:
    """The limits of an output format.

    Attributes:
        max_side_px: largest height and width.
        max_pixels: largest height times width, or None.
        alpha: whether it supports transparency.
        bit_depths: bits per channel that can be written.
        quality: the default of `--quality`, or None for lossless formats.
        by_rows: whether rows can be written as they arrive; otherwise all are needed at once.
    """

    max_side_px: int
    max_pixels: int | None
    alpha: bool
    bit_depths: tuple[int, ...]
    quality: int | None
    by_rows: bool = False


FORMAT_LIMITS = {
    "png": FormatLimits(2**31 - 1, None, True, (8, 16), None, by_rows=True),
    # 65500 is the limit of libjpeg; that of the format is 65535.
    "jpg": FormatLimits(65500, None, False, (8,), 95),
    "webp": FormatLimits(16383, None, True, (8,), 95),
    "tiff": FormatLimits(2**31 - 1, None, True, (8, 16), None, by_rows=True),
    # libavif, which most programs use to read AVIF, refuses more by default.
    "avif": FormatLimits(32768, 16384 * 16384, True, (8,), 90),
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


def check_output(name: str, format_name: str, size_px: tuple[int, int], has_alpha: bool) -> None:
    """Check the limits of a format for a height and a width, and whether some pixel is transparent; no model is needed.

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


_NEARLY_OPAQUE = 1 - 0.5 / 65535

#: Bytes of an image for a stream that are held in memory until it is complete; a larger image goes into a file.
_STREAM_IN_MEMORY = 64 << 20


def write_image(
    image: SourceImage | ImageBands,
    destination: Path | BinaryIO,
    *,
    format: str = "same",
    quality: int | None = None,
    metadata: Literal["keep", "none"] = "keep",
    dpi: Literal["keep", "scale"] | float = "keep",
    record: str | None = None,
    overwrite: bool = False,
) -> tuple[str, ...]:
    """Write an image to a stream, or to a file, which is never left incomplete.

    Grey images stay grey, wide-gamut images keep their profile, and 16-bit images keep 16 bits if the format supports
    them. Pixels are rounded once, half to even. PNG and TIFF are written row by row; other formats need all samples in
    memory.

    Args:
        image: usually from `read_image`, with the pixels of `SourceImage.restored`; or its bands, which are read after
            all other arguments are checked.
        destination: a file, whose folder is created if missing, or an open binary stream.
        format: "same" for the format of the input (PNG if it cannot be written), or the name of a format.
        quality: 1 to 100 for jpg, webp and avif; None for the default of the format (95, 95, 90).
        metadata: "none" drops EXIF, XMP, DPI and texts; the ICC profile stays, because it defines the colours.
        dpi: dots per inch of the result: "keep" those of the input, "scale" them with its pixels so that the print
            keeps its size, or a number, which is also written with `metadata="none"`.
        record: a short text that is stored in the file, see `read_record`; also dropped if `metadata` is "none".
        overwrite: True replaces an existing file.
    Returns:
        Notes on data that the format does not support.
    Raises:
        FileError: the file exists or cannot be written, or the format does not support the image.
        UsageError: the format is unknown, or the quality is outside 1 to 100.
        Exception: any error of the bands; no file is left then.
    """
    if isinstance(destination, Path) and not overwrite and os.path.lexists(destination):
        raise exists_error(destination)
    name = str(destination) if isinstance(destination, Path) else "standard output"
    parts, notes = encode_image(
        image, name=name, format=format, quality=quality, metadata=metadata, dpi=dpi, record=record
    )
    if isinstance(destination, Path):
        write_atomically(destination, parts, overwrite=overwrite)
    else:
        _write_stream(destination, parts, name)
    return notes


def _write_stream(stream: BinaryIO, parts: Iterator[bytes | memoryview], name: str) -> None:
    """Write only a complete image: if an image fails halfway, nothing is written to the stream."""
    with tempfile.SpooledTemporaryFile(_STREAM_IN_MEMORY) as held:
        try:
            for part in parts:
                held.write(part)
        except OSError as error:
            raise no_room(None, error) from error
        held.seek(0)
        try:
            shutil.copyfileobj(held, stream)
            stream.flush()
        except BrokenPipeError:
            # The reader closed the pipe; the command line exits without a message.
            raise
        except OSError as error:
            raise write_error(name, error) from error


def encode_image(
    image: SourceImage | ImageBands,
    *,
    name: str,
    format: str = "same",
    quality: int | None = None,
    metadata: Literal["keep", "none"] = "keep",
    dpi: Literal["keep", "scale"] | float = "keep",
    record: str | None = None,
) -> tuple[Iterator[bytes | memoryview], tuple[str, ...]]:
    """Encode an image like `write_image`.

    Returns:
        The file's bytes in parts, which are encoded on demand, and notes on data that the format does not support.
    Raises:
        FileError: the format does not support the image; also raised while the parts are read.
        UsageError: the format is unknown, or the quality is outside 1 to 100.
    """
    made = image.bands() if isinstance(image, SourceImage) else image
    source, size_px = made.source, made.size_px
    format_name = output_format(format, source.format)
    limits = FORMAT_LIMITS[format_name]
    if quality is not None and not 1 <= quality <= 100:
        raise UsageError(f"quality {quality} is not from 1 to 100")
    alpha = made.alpha
    if alpha is not None and not limits.alpha and all(bool(band.min() >= _NEARLY_OPAQUE) for band in bands_of(alpha)):
        alpha = None
    check_output(name, format_name, size_px, alpha is not None)
    kept = ImageMetadata(icc=source.metadata.icc)
    if metadata == "keep":
        kept = replace(source.metadata, size_px=source.metadata.size_px or source.size_px)
    kept, notes = fitting_metadata(kept, format_name, size_px, dpi)
    if kept.exif and format_name == "tiff" and not can_pack_exif(kept.exif):
        kept = replace(kept, exif=None)
        notes += ("the EXIF data is corrupt and was dropped",)
    segments = b""
    if format_name == "jpg":
        segments, dropped = metadata_segments(kept)
        notes += dropped
    if source.is_grey and format_name in ("webp", "avif"):
        # WebP supports only RGB, and many programs misread grey AVIF with a profile, so both are written in sRGB.
        kept = replace(kept, icc=None)
    depth = source.bit_depth if source.bit_depth in limits.bit_depths else 8
    if depth < source.bit_depth and format_name == source.format:
        # The user did not choose another format and does not expect the loss.
        notes += (f"{format_name} is written with 8 bits per channel: --format png or tiff keeps more",)
    layout = SampleLayout(*size_px, (1 if source.is_grey else 3) + (alpha is not None), depth)
    samples = _own_samples(replace(made, alpha=alpha), kept.icc, depth)
    parts: Iterator[bytes]
    if format_name == "png":
        parts = encode_png(layout, samples, kept)
    elif format_name == "tiff":
        parts = encode_tiff(layout, samples, kept, name)
    else:
        parts = _encode_whole(format_name, layout, samples, kept, quality or limits.quality or 0, name, segments)
    return (with_record(format_name, parts, record) if record and metadata == "keep" else parts), notes


def _encode_whole(
    format_name: str,
    layout: SampleLayout,
    bands: Iterator[NDArray[Any]],
    metadata: ImageMetadata,
    quality: int,
    name: str,
    segments: bytes,
) -> Iterator[bytes]:
    """Encode as JPEG, WebP or AVIF, for which Pillow needs all samples at once; `segments` hold a JPEG's metadata."""
    samples = np.empty((layout.height, layout.width, layout.channels), np.uint8)
    row = 0
    for band in bands:
        samples[row : row + len(band)] = band
        row += len(band)
    # Chroma subsampling would remove restored detail.
    subsampling = "4:0:0" if format_name == "avif" and layout.channels == 1 else "4:4:4"
    options: dict[str, Any] = {"quality": quality, "icc_profile": metadata.icc, "subsampling": subsampling}
    if format_name != "jpg":
        options |= {"exif": metadata.exif or b"", "xmp": metadata.xmp or b""}
    elif metadata.dpi:
        options["dpi"] = tuple(min(max(round(dpi), 1), 65535) for dpi in metadata.dpi)
    buffer = io.BytesIO()
    try:
        with warnings.catch_warnings(action="ignore"):  # Pillow warns about EXIF values that it drops
            image = Image.fromarray(samples[:, :, 0] if layout.channels == 1 else samples)
            image.save(buffer, {"jpg": "JPEG"}.get(format_name, format_name), **options)
    except (OSError, ValueError, OverflowError, struct.error, MemoryError) as error:
        reason = str(error) or type(error).__name__
        raise FileError(f"{name}: cannot be encoded as {format_name}: {reason}") from error
    data = buffer.getvalue()
    if segments:
        # The JFIF segment must come first.
        first = behind_first_segment(data)
        data = data[:first] + segments + data[first:]
    yield data


def _own_samples(image: ImageBands, icc: bytes | None, bit_depth: int) -> Iterator[NDArray[Any]]:
    """Convert pixels from sRGB to the colour space of the written profile, in bands of (n, W, 1 to 4)."""
    source, profile = image.source, load_profile(icc) if icc else None
    gamut = None
    if source.gamut is not None and icc is not None:
        gamut = ResizedRows(source.gamut, image.size_px, 16, "bilinear", clamp=False)
    row = 0
    for band in split_bands(image.rgb):
        if band.dtype == torch.uint8:
            if source.is_plain and image.alpha is None and profile is None and bit_depth == 8:
                row += band.shape[1]
                yield np.ascontiguousarray(band.permute(1, 2, 0).numpy())
                continue
            band = band.float().div_(255)
        color, bottom = band.detach().to("cpu", torch.float32), row + band.shape[1]
        if gamut is not None:
            color = color.clamp(0, 1) + gamut.read(row, bottom)
        if source.is_neutral:
            color = luma(color)
        if source.is_neutral and not source.is_grey:
            color = color.expand(3, -1, -1)
        if profile is not None:
            # The profile is grey or RGB: `read_image` only keeps a profile that matches the image.
            assert profile_space(icc or b"") == ("GRAY" if source.is_grey else "RGB")
            color = profile.from_srgb(color)
        if image.alpha is not None:
            color = torch.cat([color, image.alpha.read(row, bottom)])
        yield to_samples(color, bit_depth)
        row = bottom
        # Free the band before the next one is computed; it may be a view of a larger tensor.
        del band, color


# --- PNG, row by row: Pillow does not write 16-bit colour, and needs complete images --------------------------------

#: Above level 4, zlib takes several times longer for 1 to 2 % fewer bytes. Level 2 of ISA-L takes a seventh of the time
#: of zlib's level 4, for up to 6 % more bytes.
_ZLIB_LEVEL, _ISAL_LEVEL = 4, 2

_COLOR_TYPE = {1: 0, 2: 4, 3: 2, 4: 6}
_SUB, _UP, _AVERAGE = 1, 2, 3

#: Approximate bytes of rows that are filtered and compressed at a time; files become 0.01 % larger.
_BYTES_AT_ONCE = 1 << 19
#: Preceding bytes that serve as the dictionary of a block: the window of deflate.
_WINDOW_BYTES = 1 << 15
#: Blocks that are compressed in parallel; zlib releases the GIL.
_THREADS = min(4, os.cpu_count() or 1)


def encode_png(layout: SampleLayout, bands: Iterator[NDArray[Any]], metadata: ImageMetadata) -> Iterator[bytes]:
    """Encode bands of samples with all metadata; the first bytes are the signature and the header."""
    header = struct.pack(
        ">IIBBBBB", layout.width, layout.height, layout.bit_depth, _COLOR_TYPE[layout.channels], 0, 0, 0
    )
    yield PNG_START + png_chunk(b"IHDR", header)
    yield _metadata_chunks(metadata)
    for part in _deflated(_filtered_blocks(layout, bands)):
        yield png_chunk(b"IDAT", part)
    yield png_chunk(b"IEND", b"")


def _filtered_blocks(layout: SampleLayout, bands: Iterator[NDArray[Any]]) -> Iterator[bytes]:
    """Filter the rows for compression, a few at a time."""
    sample_bytes = layout.bit_depth // 8
    row_bytes = layout.width * layout.channels * sample_bytes
    above, count = np.zeros((1, row_bytes), np.uint8), max(_BYTES_AT_ONCE // row_bytes, 1)
    for band in bands:
        for top in range(0, len(band), count):
            samples = np.ascontiguousarray(band[top : top + count], band.dtype.newbyteorder(">"))
            rows = samples.reshape(len(samples), -1).view(np.uint8)
            yield _filtered(rows, above, layout.channels * sample_bytes).tobytes()
            above = rows[-1:].copy()


@cache
def _deflate_library() -> tuple[Any, int]:
    """The fastest installed module with the functions of zlib, and its compression level."""
    try:
        return importlib.import_module("isal.isal_zlib"), _ISAL_LEVEL
    except ImportError:
        return zlib, _ZLIB_LEVEL


def _deflated(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """Compress blocks in several threads into one zlib stream (RFC 1950)."""
    library, level = _deflate_library()

    def compress(block: bytes, before: bytes) -> bytes:
        packer = library.compressobj(level, zlib.DEFLATED, -zlib.MAX_WBITS, zdict=before)
        return bytes(packer.compress(block)) + bytes(packer.flush(zlib.Z_SYNC_FLUSH))

    check, before, start = zlib.adler32(b""), b"", b"\x78\x5e"
    waiting: deque[Future[bytes]] = deque()
    with ThreadPoolExecutor(_THREADS) as pool:
        for block in blocks:
            check = zlib.adler32(block, check)
            waiting.append(pool.submit(compress, block, before))
            before = block[-_WINDOW_BYTES:]
            if len(waiting) > _THREADS:
                yield start + waiting.popleft().result()
                start = b""
        for future in waiting:
            yield start + future.result()
            start = b""
    # The empty last block and the checksum.
    yield b"\x03\x00" + struct.pack(">I", check)


def _metadata_chunks(metadata: ImageMetadata) -> bytes:
    """The chunks between the header and the pixels (PNG third edition, 11.3)."""
    chunks = []
    if metadata.icc:
        chunks.append(png_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(metadata.icc)))
    if metadata.dpi:
        across, down = (round(dpi / 0.0254) for dpi in metadata.dpi)
        chunks.append(png_chunk(b"pHYs", struct.pack(">IIB", across, down, 1)))
    if metadata.exif:
        chunks.append(png_chunk(b"eXIf", metadata.exif))
    if metadata.xmp:
        chunks.append(png_text_chunk(XMP_KEYWORD, metadata.xmp.decode("utf-8", "replace")))
    if metadata.iptc:
        chunks.append(png_chunk(b"zTXt", raw_profile_chunk("iptc", iptc_resources(metadata.iptc))))
    chunks.extend(png_text_chunk(keyword, text) for keyword, text in metadata.text)
    return b"".join(chunks)


def _filtered(rows: NDArray[np.uint8], above: NDArray[np.uint8], pixel_bytes: int) -> NDArray[np.uint8]:
    """Filter each row with Sub, Up or Average, whichever has the smallest sum (PNG third edition, 12.7).

    Average alone makes restored photographs 3 % smaller than Paeth and takes a tenth of its time.
    """
    up, left = np.concatenate([above, rows[:-1]]), np.zeros_like(rows)
    left[:, pixel_bytes:] = rows[:, :-pixel_bytes]
    # Half of the sum without overflow in 8 bits: the common bits, and half of the differing bits.
    average = (left & up) + ((left ^ up) >> 1)
    residuals = (rows - left, rows - up, rows - average)
    costs = [np.abs(residual.view(np.int8)).view(np.uint8).sum(axis=1, dtype=np.int64) for residual in residuals]
    best = np.argmin(costs, axis=0)
    filtered = np.empty((len(rows), rows.shape[1] + 1), np.uint8)
    filtered[:, 0] = np.array((_SUB, _UP, _AVERAGE), np.uint8)[best]
    for number, residual in enumerate(residuals):
        is_best = best == number
        filtered[is_best, 1:] = residual[is_best]
    return filtered
