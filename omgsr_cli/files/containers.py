"""The parts of image files: chunks of PNG and WebP, segments of JPEG, boxes of AVIF, HEIC, JPEG XL and JPEG 2000."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Iterator
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
