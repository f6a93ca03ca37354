"""The parts of image files, and the record of its settings that this program stores in a result.

Parts are chunks of PNG and WebP, segments of JPEG, and boxes of AVIF, HEIC, JPEG XL and JPEG 2000. The record is
private data of a program, which viewers do not show, and the user's metadata is not changed:

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
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

PNG_START = b"\x89PNG\r\n\x1a\n"

#: JPEG markers (ITU T.81, table B.1).
START_OF_SCAN, END_OF_IMAGE = 0xDA, 0xD9

#: A JPEG is read up to this many scans, because each requires a search in the rest of the file.
_MAX_SCANS = 500


class Part(NamedTuple):
    """A part of a file, and where its content is."""

    kind: bytes
    start: int
    length: int


def png_chunks(file: BinaryIO) -> Iterator[Part]:
    """The chunks of a PNG; the file is positioned at the content of each, which is not read."""
    # A checksum follows the content.
    return _chunks(file, 8, lambda head: struct.unpack(">I4s", head), lambda length: length + 4)


def webp_chunks(file: BinaryIO) -> Iterator[Part]:
    """The chunks of a WebP, as for `png_chunks`."""
    return _chunks(file, 12, lambda head: struct.unpack("<4sI", head)[::-1], lambda length: length + length % 2)


def _chunks(
    file: BinaryIO, position: int, read_head: Callable[[bytes], Any], stored_length: Callable[[int], int]
) -> Iterator[Part]:
    while True:
        file.seek(position)
        head = file.read(8)
        if len(head) < 8:
            return
        length, kind = read_head(head)
        yield Part(kind, position + 8, length)
        position += 8 + stored_length(length)


def jpeg_segments(file: BinaryIO) -> Iterator[Part]:
    """The segments of a JPEG, as for `png_chunks`; their kind is the marker's second byte.

    The pixels of a scan are skipped, which requires reading the rest of the file.
    """
    position, scans = 2, 0
    while scans < _MAX_SCANS:
        file.seek(position)
        head = file.read(4)
        if len(head) < 4 or head[0] != 0xFF or head[1] == END_OF_IMAGE:
            return
        if head[1] == 0xFF:
            # Markers may be padded.
            position += 1
            continue
        length = max(struct.unpack(">H", head[2:])[0] - 2, 0)
        yield Part(head[1:2], position + 4, length)
        position += 4 + length
        if head[1] == START_OF_SCAN:
            scans += 1
            file.seek(position)
            position += _scan_length(file.read())


def _scan_length(data: bytes) -> int:
    """The length of a scan's pixels, up to the next marker outside the scan."""
    position = 0
    while (position := data.find(b"\xff", position)) >= 0 and position + 1 < len(data):
        if data[position + 1] == 0xFF:
            position += 1
        elif data[position + 1] == 0 or 0xD0 <= data[position + 1] <= 0xD7:
            position += 2
        else:
            return position
    return len(data)


def boxes(file: BinaryIO) -> Iterator[Part]:
    """The outermost boxes of a file (ISO/IEC 14496-12, 4.2), as for `png_chunks`; a box can be read like a file."""
    position, end = 0, file.seek(0, os.SEEK_END)
    while True:
        file.seek(position)
        head = file.read(16)
        if len(head) < 8:
            return
        length, kind = struct.unpack_from(">I4s", head)
        start = 8
        if length == 1 and len(head) == 16:
            length, start = struct.unpack_from(">Q", head, 8)[0], 16
        if length == 0:
            length = end - position
        if length < start:
            return
        file.seek(position + start)
        yield Part(kind, position + start, length - start)
        position += length


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """A PNG chunk with its length and checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))


def jpeg_segment(marker: int, content: bytes) -> bytes:
    """A JPEG segment with its marker and length; the content has at most 65533 bytes."""
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def behind_first_segment(data: bytes | memoryview) -> int:
    """The end of a JPEG's first segment; JFIF's segment must come first."""
    return 4 + int(struct.unpack_from(">H", data, 4)[0])


# --- the record ---

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
