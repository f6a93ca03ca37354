"""EXIF as bytes: changed in place, so that camera makers' notes with offsets of their own stay right."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from PIL import ExifTags, Image

PREFIX = b"Exif\x00\x00"

_ORIENTATION = ExifTags.Base.Orientation
_THUMBNAIL_OFFSET, _THUMBNAIL_LENGTH = 0x0201, 0x0202
_SHORT, _LONG = 3, 4
_WIDTH_TAGS = (ExifTags.Base.ImageWidth, ExifTags.Base.ExifImageWidth)
_HEIGHT_TAGS = (ExifTags.Base.ImageLength, ExifTags.Base.ExifImageHeight)


class ExifError(ValueError):
    """The bytes are no EXIF that can be followed."""


@dataclass(frozen=True)
class _Entry:
    """One value of a directory: where its 12 bytes lie, and how they are packed."""

    tag: int
    kind: int
    count: int
    position: int


class _Directories:
    """A TIFF structure's directories, read from and written to one buffer."""

    def __init__(self, data: bytes) -> None:
        if data[:4] not in (b"II*\x00", b"MM\x00*"):
            raise ExifError("no TIFF header")
        self.data = bytearray(data)
        self.order = "<" if data[:2] == b"II" else ">"
        self.first = self._unpack("I", 4)

    def _unpack(self, kind: str, position: int) -> int:
        try:
            return int(struct.unpack_from(self.order + kind, self.data, position)[0])
        except struct.error as error:
            raise ExifError("it ends too early") from error

    def entries(self, directory: int) -> Iterator[_Entry]:
        for index in range(self._unpack("H", directory)):
            position = directory + 2 + 12 * index
            tag, kind = self._unpack("H", position), self._unpack("H", position + 2)
            yield _Entry(tag, kind, self._unpack("I", position + 4), position)

    def number(self, entry: _Entry) -> int | None:
        """A single SHORT or LONG; None for anything else."""
        if entry.count != 1 or entry.kind not in (_SHORT, _LONG):
            return None
        return self._unpack("H" if entry.kind == _SHORT else "I", entry.position + 8)

    def set_number(self, entry: _Entry, value: int) -> None:
        if entry.count != 1 or entry.kind not in (_SHORT, _LONG):
            return
        kind = "H" if entry.kind == _SHORT else "I"
        struct.pack_into(self.order + kind, self.data, entry.position + 8, min(value, 65535) if kind == "H" else value)

    def next_position(self, directory: int) -> int:
        """Where the offset of the directory after this one is kept."""
        return directory + 2 + 12 * self._unpack("H", directory)

    def drop_thumbnail(self) -> None:
        """Unlink the second directory, and blank the picture that it points to."""
        link = self.next_position(self.first)
        # Some cameras leave the link out where nothing follows.
        second = self._unpack("I", link) if link + 4 <= len(self.data) else 0
        if not second:
            return
        struct.pack_into(self.order + "I", self.data, link, 0)
        try:
            found = {entry.tag: self.number(entry) for entry in self.entries(second)}
        except ExifError:
            return
        start, length = found.get(_THUMBNAIL_OFFSET), found.get(_THUMBNAIL_LENGTH)
        if not start or not length or start + length > len(self.data):
            return
        if start + length >= len(self.data) - 1:
            del self.data[start:]
        else:
            self.data[start : start + length] = bytes(length)


def without_prefix(data: bytes) -> bytes:
    """The TIFF structure itself, as PNG, WebP and AVIF keep it."""
    return data.removeprefix(PREFIX)


def exif_orientation(data: bytes) -> int | None:
    """The orientation (1 to 8) that an EXIF structure gives, or None.

    Raises:
        ExifError: the bytes cannot be followed.
    """
    directories = _Directories(without_prefix(data))
    for entry in directories.entries(directories.first):
        if entry.tag == _ORIENTATION:
            value = directories.number(entry)
            return value if value is not None and 1 <= value <= 8 else None
    return None


def has_adobe_rgb(data: bytes | None) -> bool:
    """Whether an EXIF structure says that the colours are Adobe RGB.

    DCF 2.0 does so by ColorSpace 65535 (uncalibrated) with the interoperability index "R03"; some cameras and
    programs by ColorSpace 2.
    """
    if data is None:
        return False
    try:
        directories = _Directories(without_prefix(data))
        found = {entry.tag: entry for entry in directories.entries(directories.first)}
        for tag in (ExifTags.IFD.Exif, ExifTags.IFD.Interop):
            if tag in found and (offset := directories.number(found[tag])):
                # Tag 1 belongs to the interoperability directory alone.
                found |= {entry.tag: entry for entry in directories.entries(offset)}
        space = found.get(ExifTags.Base.ColorSpace)
        value = None if space is None else directories.number(space)
        index = found.get(ExifTags.Interop.InteropIndex)
        named = index is not None and bytes(directories.data[index.position + 8 : index.position + 11]) == b"R03"
        return value == 2 or (value in (None, 65535) and named)
    except ExifError:
        return False


def upright_exif(data: bytes, size_px: tuple[int, int]) -> bytes:
    """The same EXIF for a picture that is upright and of another size, without its stale thumbnail.

    Args:
        data: EXIF with or without prefix.
        size_px: the picture's height and width.
    Returns:
        The TIFF structure; everything but orientation, size and thumbnail lies where it lay.
    Raises:
        ExifError: the bytes cannot be followed.
    """
    directories = _Directories(without_prefix(data))
    entries = list(directories.entries(directories.first))
    for entry in list(entries):
        if entry.tag == ExifTags.IFD.Exif and (offset := directories.number(entry)):
            entries.extend(directories.entries(offset))
    new_values: dict[int, int] = {_ORIENTATION: 1}
    new_values.update(dict.fromkeys(_HEIGHT_TAGS, size_px[0]))
    new_values.update(dict.fromkeys(_WIDTH_TAGS, size_px[1]))
    for entry in entries:
        if entry.tag in new_values:
            directories.set_number(entry, new_values[entry.tag])
    directories.drop_thumbnail()
    return bytes(directories.data)


def tags_of(exif: Image.Exif) -> dict[int, Any]:
    """All tags of a loaded EXIF, the directories within it as dictionaries instead of as offsets."""
    tags = {int(tag): exif[tag] for tag in exif}
    for tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        if tag in tags:
            tags[tag] = dict(exif.get_ifd(tag))
    inner = tags.get(ExifTags.IFD.Exif, {})
    if ExifTags.IFD.Interop in inner:
        inner[ExifTags.IFD.Interop] = dict(exif.get_ifd(ExifTags.IFD.Interop))
    return tags


def exif_with_dpi(dpi: tuple[float, float]) -> bytes:
    """A new EXIF that tells nothing but the resolution, for formats that have no other place for it."""
    exif = Image.Exif()
    exif[ExifTags.Base.XResolution], exif[ExifTags.Base.YResolution] = dpi
    exif[ExifTags.Base.ResolutionUnit] = 2
    return without_prefix(exif.tobytes())
