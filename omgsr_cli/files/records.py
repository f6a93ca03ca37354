"""A record in an image file: the settings that the image was made with.

It is stored as private data of a program, which viewers do not show, and the user's metadata is not changed:

- PNG: a chunk "omGR" before the pixels, of a kind that editors drop when they change them;
- JPEG: an APP9 segment that starts with "omgsr" and a zero;
- WebP: a chunk "OMGS" at the end, which readers must skip;
- AVIF: a top-level `uuid` box at the end, which readers must skip;
- TIFF: bytes at the end that no directory refers to, followed by their length and "omgsrREC".
"""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from omgsr_cli.files.containers import (
    PNG_START,
    START_OF_SCAN,
    Part,
    behind_first_segment,
    boxes,
    jpeg_segment,
    jpeg_segments,
    png_chunk,
    png_chunks,
    webp_chunks,
)

_PNG_CHUNK = b"omGR"
_JPEG_MARKER, _JPEG_PREFIX = 0xE9, b"omgsr\0"
_TIFF_END = b"omgsrREC"
_WEBP_CHUNK = b"OMGS"
# Made once with uuid4.
_AVIF_UUID = bytes.fromhex("2097a9f12f414e79b1de1dde96f40375")

#: Maximum number of bytes in a JPEG segment after the prefix.
MAX_RECORD_BYTES = 65533 - len(_JPEG_PREFIX)


def with_record(format_name: str, parts: Iterable[bytes], record: str) -> Iterator[bytes | memoryview]:
    """Add a record to an encoded image.

    Args:
        format_name: "png", "jpg", "webp", "avif" or "tiff".
        parts: the bytes of the file; the first part of a PNG is its signature and header, JPEG, WebP and AVIF have one
            part.
        record: a short text.
    Yields:
        The bytes of the new file in parts, so large images are not copied.
    Raises:
        ValueError: the record is longer than `MAX_RECORD_BYTES`, or the format does not support records.
    """
    content = record.encode()
    if len(content) > MAX_RECORD_BYTES:
        raise ValueError(f"a record of {len(content)} bytes is too long")
    stream = iter(parts)
    if format_name == "png":
        yield next(stream)
        yield png_chunk(_PNG_CHUNK, content)
        yield from stream
    elif format_name == "tiff":
        yield from stream
        yield content + struct.pack(">I", len(content)) + _TIFF_END
    elif format_name == "jpg":
        view = memoryview(next(stream))
        after_first = behind_first_segment(view)
        yield view[:after_first]
        yield jpeg_segment(_JPEG_MARKER, _JPEG_PREFIX + content)
        yield view[after_first:]
    elif format_name == "webp":
        yield from _webp_with_record(memoryview(next(stream)), content)
    elif format_name == "avif":
        yield next(stream)
        yield struct.pack(">I", 24 + len(content)) + b"uuid" + _AVIF_UUID + content
    else:
        raise ValueError(f"{format_name} does not support records")


def read_record(source: Path | bytes) -> str | None:
    """Read the record of an image.

    Args:
        source: a path, or the bytes of a file.
    Returns:
        The record, or None if the file does not exist, was not written by this program, or is not an image.
    """
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            return record_of_file(file)
    except OSError:
        return None


class _Place(NamedTuple):
    """Where a format keeps the record: in a part of this kind that starts with a prefix, before a part that stops."""

    parts: Callable[[BinaryIO], Iterator[Part]]
    kind: bytes
    prefix: bytes = b""
    stop: bytes | None = None


def record_of_file(file: BinaryIO) -> str | None:
    """Read the record from an open, seekable file."""
    file.seek(0)
    start = file.read(16)
    try:
        if start[:4] in (b"II*\x00", b"MM\x00*"):
            content = _record_of_tiff(file)
        else:
            place = _place_in(start)
            content = None if place is None else _find_record(file, place)
        return None if content is None else content.decode()
    except (struct.error, UnicodeDecodeError):
        return None


def _place_in(start: bytes) -> _Place | None:
    """Where a file that starts with these 16 bytes keeps the record."""
    if start[:8] == PNG_START:
        return _Place(png_chunks, _PNG_CHUNK, stop=b"IDAT")
    if start[:2] == b"\xff\xd8":
        return _Place(jpeg_segments, bytes([_JPEG_MARKER]), _JPEG_PREFIX, stop=bytes([START_OF_SCAN]))
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return _Place(webp_chunks, _WEBP_CHUNK)
    return _Place(boxes, b"uuid", _AVIF_UUID) if start[4:8] == b"ftyp" else None


def _find_record(file: BinaryIO, place: _Place) -> bytes | None:
    for kind, _, length in place.parts(file):
        if kind == place.stop:
            return None
        if kind == place.kind and file.read(len(place.prefix)) == place.prefix:
            return file.read(min(max(length - len(place.prefix), 0), MAX_RECORD_BYTES))
    return None


def _webp_with_record(view: memoryview, content: bytes) -> tuple[bytes | memoryview, ...]:
    """Append a chunk; a simple file becomes an extended one first, because only those can have more chunks."""
    chunk = _WEBP_CHUNK + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)
    header = b"" if bytes(view[12:16]) == b"VP8X" else _vp8x_header(view)
    length = len(view) - 8 + len(header) + len(chunk)
    return b"RIFF" + struct.pack("<I", length) + b"WEBP", header, view[12:], chunk


def _vp8x_header(view: memoryview) -> bytes:
    """The extended header of a simple WebP file, from the size and the alpha bit in its image chunk."""
    if bytes(view[12:16]) == b"VP8L":
        bits = struct.unpack_from("<I", view, 21)[0]
        width, height, flags = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1, (bits >> 28 & 1) << 4
    else:
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", view, 26))
        flags = 0
    # Sides have 24 bits: pack four bytes and keep three.
    packed = (struct.pack("<I", side - 1)[:3] for side in (width, height))
    return b"VP8X" + struct.pack("<IB3x", 10, flags) + b"".join(packed)


def _record_of_tiff(file: BinaryIO) -> bytes | None:
    ending = len(_TIFF_END) + 4
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - ending))
    length, mark = file.read(4), file.read()
    if mark == _TIFF_END and (size := struct.unpack(">I", length)[0]) <= min(MAX_RECORD_BYTES, end - ending):
        file.seek(end - ending - size)
        return file.read(size)
    return None
