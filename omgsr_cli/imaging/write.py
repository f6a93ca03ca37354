"""Write images: in their own colours, depth and format, with what they said beside their pixels."""

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
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from omgsr_cli.errors import FileError, UsageError, write_error
from omgsr_cli.files.atomic import exists_error, write_atomically
from omgsr_cli.files.containers import PNG_START, behind_first_segment, png_chunk
from omgsr_cli.files.records import with_record
from omgsr_cli.imaging.formats import FORMAT_LIMITS, check_output, output_format
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

MetadataPolicy = Literal["keep", "none"]

_NEARLY_OPAQUE = 1 - 0.5 / 65535

#: Bytes for a stream that are kept in memory until they are complete; more go into a file.
_STREAM_IN_MEMORY = 64 << 20


def write_image(
    image: SourceImage | ImageBands,
    destination: Path | BinaryIO,
    *,
    format: str = "same",
    quality: int | None = None,
    metadata: MetadataPolicy = "keep",
    dpi: Literal["keep", "scale"] | float = "keep",
    record: str | None = None,
    overwrite: bool = False,
) -> tuple[str, ...]:
    """Write an image: to a file whole or not at all, or to a stream.

    Grey stays grey, wide-gamut pixels go back into their profile, 16 bits stay 16 where the format has them.
    Pixels are rounded once, half to even. PNG and TIFF are written as the rows come; other formats hold all samples.

    Args:
        image: usually from `read_image`, with the pixels that `SourceImage.restored` gave it; or its bands, which are
            asked for when all else is known to be right.
        destination: a file, whose folder is made if missing, or an open binary stream.
        format: "same" as the image came in (PNG where that cannot be written), or the one to write.
        quality: 1 to 100 for jpg, webp and avif; None for the default of each (95, 95, 90).
        metadata: "none" leaves out EXIF, XMP, DPI and texts; the ICC profile stays, as the pixels mean nothing
            without it.
        dpi: dots per inch of the result: "keep" those of the input, "scale" them with its pixels so that the print
            keeps its size, or a number, which is written with `metadata="none"` too.
        record: a short text to keep in the file, see `read_record`; left out too where `metadata` is "none".
        overwrite: whether a file already there is replaced.
    Returns:
        Notes on what the format could not hold.
    Raises:
        FileError: it exists, cannot be written, or the format cannot hold it.
        UsageError: an unknown format, or a quality outside 1 to 100.
        Exception: whatever the bands raise; nothing is left then.
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
    """Write once everything is there: of an image that fails half way, a stream gets nothing."""
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
            # The reader has gone: the command line ends quietly on this.
            raise
        except OSError as error:
            raise write_error(name, error) from error


def encode_image(
    image: SourceImage | ImageBands,
    *,
    name: str,
    format: str = "same",
    quality: int | None = None,
    metadata: MetadataPolicy = "keep",
    dpi: Literal["keep", "scale"] | float = "keep",
    record: str | None = None,
) -> tuple[Iterator[bytes | memoryview], tuple[str, ...]]:
    """Encode an image as `write_image` does.

    Returns:
        The file's bytes in parts, encoded as they are asked for, and notes on what the format could not hold.
    Raises:
        FileError: the format cannot hold it; also while the parts are read.
        UsageError: an unknown format, or a quality outside 1 to 100.
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
    kept, notes = fitting_metadata(_kept_metadata(source, metadata), format_name, size_px, dpi)
    if kept.exif and format_name == "tiff" and not can_pack_exif(kept.exif):
        kept = replace(kept, exif=None)
        notes += ("the EXIF data is corrupt and was dropped",)
    segments = b""
    if format_name == "jpg":
        segments, dropped = metadata_segments(kept)
        notes += dropped
    if source.is_grey and format_name in ("webp", "avif"):
        # WebP has only RGB, and grey AVIF with a profile is read wrongly by many: these get plain sRGB.
        kept = replace(kept, icc=None)
    depth = source.bit_depth if source.bit_depth in limits.bit_depths else 8
    if depth < source.bit_depth and format_name == source.format:
        # Nobody asked for another format: the loss is not expected.
        notes += (f"{format_name} is written with 8 bits per channel: --format png or tiff keeps more",)
    layout = SampleLayout(*size_px, (1 if source.is_grey else 3) + (alpha is not None), depth)
    samples = _own_samples(replace(made, alpha=alpha), kept.icc, depth)
    parts: Iterator[bytes]
    if format_name == "png":
        parts = encode_png(layout, samples, kept)
    elif format_name == "tiff":
        parts = encode_tiff(layout, samples, kept, name)
    else:
        parts = _encode_whole(format_name, layout, samples, kept, quality or limits.quality or 0, name)
        if segments:
            parts = _with_segments(parts, segments)
    return (with_record(format_name, parts, record) if record and metadata == "keep" else parts), notes


def _encode_whole(
    format_name: str,
    layout: SampleLayout,
    bands: Iterator[NDArray[Any]],
    metadata: ImageMetadata,
    quality: int,
    name: str,
) -> Iterator[bytes]:
    """Encode in a format of which Pillow wants all samples at once."""
    samples = np.empty((layout.height, layout.width, layout.channels), np.uint8)
    row = 0
    for band in bands:
        samples[row : row + len(band)] = band
        row += len(band)
    try:
        with warnings.catch_warnings(action="ignore"):  # Pillow's, of single EXIF values that it leaves out
            data = _ENCODERS[format_name](samples, metadata, quality)
    except (OSError, ValueError, OverflowError, struct.error, MemoryError) as error:
        reason = str(error) or type(error).__name__
        raise FileError(f"{name}: cannot be encoded as {format_name}: {reason}") from error
    yield data


def _with_segments(parts: Iterator[bytes], segments: bytes) -> Iterator[bytes]:
    """Put segments into a JPEG, behind JFIF's, which must come first."""
    data = next(parts)
    first = behind_first_segment(data)
    yield data[:first] + segments + data[first:]


def _kept_metadata(image: SourceImage, policy: MetadataPolicy) -> ImageMetadata:
    if policy == "none":
        return ImageMetadata(icc=image.metadata.icc)
    return replace(image.metadata, size_px=image.metadata.size_px or image.size_px)


def _own_samples(image: ImageBands, icc: bytes | None, bit_depth: int) -> Iterator[NDArray[Any]]:
    """Bring pixels from sRGB to the space of the profile they are written with: bands of (n, W, 1 to 4)."""
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
            # Grey and RGB profiles alike: `read_image` keeps only one that fits the image.
            assert profile_space(icc or b"") == ("GRAY" if source.is_grey else "RGB")
            color = profile.from_srgb(color)
        if image.alpha is not None:
            color = torch.cat([color, image.alpha.read(row, bottom)])
        yield to_samples(color, bit_depth)
        row = bottom
        # They may be a part of much more, which is free before the next band is computed.
        del band, color


def _encode_jpeg(samples: NDArray[Any], metadata: ImageMetadata, quality: int) -> bytes:
    extra: dict[str, Any] = {}
    if metadata.dpi:
        extra["dpi"] = tuple(min(max(round(dpi), 1), 65535) for dpi in metadata.dpi)
    # 4:4:4: halving the colour's resolution would undo part of what was restored.
    return _saved(samples, "JPEG", quality=quality, subsampling=0, icc_profile=metadata.icc, **extra)


def _encode_webp(samples: NDArray[Any], metadata: ImageMetadata, quality: int) -> bytes:
    blocks = {"icc_profile": metadata.icc, "exif": metadata.exif or b"", "xmp": metadata.xmp or b""}
    return _saved(samples, "WEBP", quality=quality, **blocks)


def _encode_avif(samples: NDArray[Any], metadata: ImageMetadata, quality: int) -> bytes:
    blocks = {"icc_profile": metadata.icc, "exif": metadata.exif or b"", "xmp": metadata.xmp or b""}
    return _saved(samples, "AVIF", quality=quality, subsampling="4:0:0" if samples.shape[2] == 1 else "4:4:4", **blocks)


def _saved(samples: NDArray[Any], pillow_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(samples[:, :, 0] if samples.shape[2] == 1 else samples)
    image.save(buffer, pillow_format, **options)
    return buffer.getvalue()


_ENCODERS: dict[str, Callable[[NDArray[Any], ImageMetadata, int], bytes]] = {
    "jpg": _encode_jpeg,
    "webp": _encode_webp,
    "avif": _encode_avif,
}


# --- PNG, row by row: Pillow writes no colour of 16 bits, and whole images only ------------------------------------

#: Beyond 4, zlib takes several times longer for a percent or two. Level 2 of ISA-L takes a seventh of level 4's time,
#: for up to 6 % more bytes.
_ZLIB_LEVEL, _ISAL_LEVEL = 4, 2

_COLOR_TYPE = {1: 0, 2: 4, 3: 2, 4: 6}
_SUB, _UP, _AVERAGE = 1, 2, 3

#: Rows that are filtered and compressed at a time hold about this many bytes: a loss of one part in ten thousand.
_BYTES_AT_ONCE = 1 << 19
#: A block is compressed with what precedes it in mind, as far as deflate looks back.
_WINDOW_BYTES = 1 << 15
#: Blocks that are compressed at the same time; zlib lets other threads run.
_THREADS = min(4, os.cpu_count() or 1)


def encode_png(layout: SampleLayout, bands: Iterator[NDArray[Any]], metadata: ImageMetadata) -> Iterator[bytes]:
    """Encode an image as its rows come.

    Args:
        layout: of the samples.
        bands: of them, from the first rows to the last.
        metadata: all of it is written.
    Yields:
        The file's bytes: first the signature and header.
    """
    header = struct.pack(
        ">IIBBBBB", layout.width, layout.height, layout.bit_depth, _COLOR_TYPE[layout.channels], 0, 0, 0
    )
    yield PNG_START + png_chunk(b"IHDR", header)
    yield _metadata_chunks(metadata)
    for part in _deflated(_filtered_blocks(layout, bands)):
        yield png_chunk(b"IDAT", part)
    yield png_chunk(b"IEND", b"")


def _filtered_blocks(layout: SampleLayout, bands: Iterator[NDArray[Any]]) -> Iterator[bytes]:
    """The rows as PNG compresses them, some at a time."""
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
    """The fastest module that is installed with zlib's functions, and the level for it."""
    try:
        return importlib.import_module("isal.isal_zlib"), _ISAL_LEVEL
    except ImportError:
        return zlib, _ZLIB_LEVEL


def _deflated(blocks: Iterator[bytes]) -> Iterator[bytes]:
    """One zlib stream (RFC 1950) of blocks that are compressed by several threads."""
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
    # An empty last block, and the checksum.
    yield b"\x03\x00" + struct.pack(">I", check)


def _metadata_chunks(metadata: ImageMetadata) -> bytes:
    """The chunks between header and pixels (PNG third edition, 11.3)."""
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
    """Filter rows, each by whichever of Sub, Up and Average leaves the smallest sum (PNG third edition, 12.7).

    Average alone makes restored photographs 3 % smaller than Paeth in a tenth of its time.
    """
    up, left = np.concatenate([above, rows[:-1]]), np.zeros_like(rows)
    left[:, pixel_bytes:] = rows[:, :-pixel_bytes]
    # Half the sum in 8 bits: what both have in common, and half of what only one has.
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
