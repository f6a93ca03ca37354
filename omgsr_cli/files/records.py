"""A line of our own in a picture file: the settings that it was made with.

It lies where a format keeps data that is private to a program, so that no viewer shows it and nothing of the user's is
touched:

- PNG: a chunk "omGR" before the pixels, of the kind that an editor drops when it changes them;
- JPEG: an APP9 segment that starts with "omgsr" and a zero;
- WebP: a chunk "OMGS" at the end, which readers skip as the format asks them to;
- AVIF: a top-level `uuid` box at the end, skipped likewise;
- TIFF: bytes at the end that no directory points to, closed by their length and "omgsrREC".

Earlier versions wrote a PNG text, a JPEG comment and the TIFF tag 65117; these are still read.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

PNG_KEYWORD = "omgsr"
_TIFF_TAG = 65117
_COMMENT_PREFIX = b"omgsr "
_PNG_CHUNK = b"omGR"
_JPEG_MARKER, _JPEG_PREFIX = 0xE9, b"omgsr\0"
_TIFF_END = b"omgsrREC"
_WEBP_CHUNK = b"OMGS"
# Made once with uuid4.
_AVIF_UUID = bytes.fromhex("2097a9f12f414e79b1de1dde96f40375")

#: A comment segment of a JPEG holds at most this many bytes.
MAX_RECORD_BYTES = 65533 - len(_COMMENT_PREFIX)

#: A record is never searched for further into a file than this many parts.
_MAX_PARTS = 100_000


def is_record_comment(comment: bytes) -> bool:
    """Whether a JPEG's comment is this program's record."""
    return comment.startswith(_COMMENT_PREFIX)


def png_chunk(kind: bytes, content: bytes) -> bytes:
    """A PNG chunk with its length and checksum."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))


def png_text_chunk(keyword: str, text: str) -> bytes:
    """An uncompressed iTXt chunk."""
    return png_chunk(b"iTXt", keyword.encode("latin-1", "replace")[:79] + b"\0\0\0\0\0" + text.encode())


def with_record(format_name: str, parts: Iterable[bytes], record: str) -> Iterator[bytes | memoryview]:
    """Put a record into an encoded picture.

    Args:
        format_name: "png", "jpg", "webp", "avif" or "tiff".
        parts: the file's bytes; of a PNG the first is its signature and header, other formats but TIFF have just one.
        record: short text.
    Yields:
        The new file's bytes in parts, so that a large picture is not copied.
    Raises:
        ValueError: the record is longer than `MAX_RECORD_BYTES`, or the format has no place.
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
        # After the first segment: JFIF's own must directly follow the start.
        after_first = 4 + struct.unpack_from(">H", view, 4)[0]
        yield view[:after_first]
        yield struct.pack(">BBH", 0xFF, _JPEG_MARKER, 2 + len(_JPEG_PREFIX) + len(content)) + _JPEG_PREFIX + content
        yield view[after_first:]
    elif format_name == "webp":
        yield from _webp_with_record(memoryview(next(stream)), content)
    elif format_name == "avif":
        yield next(stream)
        yield struct.pack(">I", 24 + len(content)) + b"uuid" + _AVIF_UUID + content
    else:
        raise ValueError(f"no place for a record in {format_name}")


def read_record(source: Path | bytes) -> str | None:
    """Read the record that a picture was written with.

    Args:
        source: a file, or a whole file's bytes.
    Returns:
        The record, or None where there is none: no such file, not ours, or no picture.
    """
    try:
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            return record_of_file(file)
    except OSError:
        return None


def record_of_file(file: BinaryIO) -> str | None:
    """Read the record from an open, seekable file."""
    file.seek(0)
    start = file.read(16)
    finders = (
        (start[:8] == b"\x89PNG\r\n\x1a\n", _record_of_png),
        (start[:2] == b"\xff\xd8", _record_of_jpeg),
        (start[:4] == b"RIFF" and start[8:12] == b"WEBP", _record_of_webp),
        (start[4:8] == b"ftyp", _record_of_avif),
        (start[:4] in (b"II*\x00", b"MM\x00*"), _record_of_tiff),
    )
    for matches, find in finders:
        if matches:
            try:
                content = find(file)
                return None if content is None else content.decode()
            except (struct.error, UnicodeDecodeError):
                return None
    return None


def _webp_with_record(view: memoryview, content: bytes) -> tuple[bytes | memoryview, ...]:
    """Append a chunk; a simple file is made an extended one first, since only that may have more chunks."""
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
    # Sides have 24 bits: four bytes packed, three kept.
    packed = (struct.pack("<I", side - 1)[:3] for side in (width, height))
    return b"VP8X" + struct.pack("<IB3x", 10, flags) + b"".join(packed)


def png_chunks(file: BinaryIO) -> Iterator[tuple[bytes, int]]:
    """The kind and length of every chunk of a PNG, the file being at the chunk's content; nothing else is read."""
    position = 8
    for _ in range(_MAX_PARTS):
        file.seek(position)
        head = file.read(8)
        if len(head) < 8:
            return
        length = struct.unpack(">I", head[:4])[0]
        yield head[4:], length
        position += 12 + length


def _record_of_png(file: BinaryIO) -> bytes | None:
    for kind, length in png_chunks(file):
        if kind == b"IDAT":
            return None
        if kind == _PNG_CHUNK and length <= MAX_RECORD_BYTES:
            return file.read(length)
        if kind == b"iTXt" and length <= MAX_RECORD_BYTES + 16:
            keyword, _, rest = file.read(length).partition(b"\0")
            if keyword == PNG_KEYWORD.encode() and rest[:4] == b"\0\0\0\0":
                return rest[4:]
    return None


def _record_of_jpeg(file: BinaryIO) -> bytes | None:
    file.seek(2)
    for _ in range(_MAX_PARTS):
        head = file.read(4)
        # Start of scan: only pixels follow.
        if len(head) < 4 or head[0] != 0xFF or head[1] == 0xDA:
            return None
        length = max(struct.unpack(">H", head[2:])[0] - 2, 0)
        if head[1] in (_JPEG_MARKER, 0xFE):
            prefix, content = (_JPEG_PREFIX if head[1] == _JPEG_MARKER else _COMMENT_PREFIX), file.read(length)
            if content.startswith(prefix):
                return content.removeprefix(prefix)
        else:
            file.seek(length, os.SEEK_CUR)
    return None


def _record_of_webp(file: BinaryIO) -> bytes | None:
    file.seek(12)
    for _ in range(_MAX_PARTS):
        head = file.read(8)
        if len(head) < 8:
            return None
        length = struct.unpack("<I", head[4:])[0]
        if head[:4] == _WEBP_CHUNK:
            return file.read(min(length, MAX_RECORD_BYTES))
        file.seek(length + length % 2, os.SEEK_CUR)
    return None


def _record_of_avif(file: BinaryIO) -> bytes | None:
    position = 0
    for _ in range(_MAX_PARTS):
        file.seek(position)
        head = file.read(24)
        if len(head) < 8:
            return None
        length = struct.unpack(">I", head[:4])[0]
        if head[4:8] == b"uuid" and head[8:] == _AVIF_UUID:
            return file.read(min(max(length - 24, 0), MAX_RECORD_BYTES))
        if length == 1 and len(head) >= 16:
            length = struct.unpack(">Q", head[8:16])[0]
        # A length of 0 means: to the end of the file.
        if length < 8:
            return None
        position += length
    return None


def _record_of_tiff(file: BinaryIO) -> bytes | None:
    ending = len(_TIFF_END) + 4
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - ending))
    length, mark = file.read(4), file.read()
    if mark == _TIFF_END and (size := struct.unpack(">I", length)[0]) <= min(MAX_RECORD_BYTES, end - ending):
        file.seek(end - ending - size)
        return file.read(size)
    return _tag_of_tiff(file)


def _tag_of_tiff(file: BinaryIO) -> bytes | None:
    """The record where earlier versions kept it: in a private tag of the first directory."""
    file.seek(0)
    order = "<" if file.read(2) == b"II" else ">"
    file.seek(4)
    file.seek(struct.unpack(order + "I", file.read(4))[0])
    for _ in range(struct.unpack(order + "H", file.read(2))[0]):
        entry = file.read(12)
        tag, _, count, offset = struct.unpack(order + "HHII", entry)
        if tag == _TIFF_TAG and count <= MAX_RECORD_BYTES:
            if count <= 4:  # so short a value lies in the entry itself
                return entry[8 : 8 + count]
            file.seek(offset)
            return file.read(count)
    return None
