"""Read metadata, and adapt it to the size and orientation of the result.

EXIF is changed in place, byte by byte, so camera maker notes with their own offsets stay valid. XMP is parsed, and
rewritten only if something changed. Values that depend on pixels or sides are turned and scaled; metadata about parts
that results do not have (a thumbnail, a gain map, a video) is removed.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, BinaryIO, Literal
from xml.dom import minidom
from xml.parsers.expat import ExpatError

from PIL import ExifTags, Image, PngImagePlugin, TiffImagePlugin

from omgsr_cli.files.containers import jpeg_segment, png_chunk, png_chunks
from omgsr_cli.imaging.image import ImageMetadata

PREFIX = b"Exif\x00\x00"
XMP_KEYWORD = "XML:com.adobe.xmp"
_RAW_KEYWORD = "Raw profile type "

#: Maximum number of bytes in a JPEG segment, without its length field.
_MAX_SEGMENT = 65533
_XMP_PREFIX, _MORE_XMP_PREFIX = b"http://ns.adobe.com/xap/1.0/\0", b"http://ns.adobe.com/xmp/extension/\0"
_PHOTOSHOP_PREFIX = b"Photoshop 3.0\0"


@dataclass(frozen=True)
class Placement:
    """How an image's pixels were turned and resized.

    Attributes:
        orientation: the EXIF orientation, 1 to 8, that was applied.
        before_px: height and width as stored in the file.
        after_px: height and width of the result.
    """

    orientation: int
    before_px: tuple[int, int]
    after_px: tuple[int, int]

    @property
    def is_turned(self) -> bool:
        """Whether height and width were exchanged."""
        return self.orientation >= 5

    @property
    def scales(self) -> tuple[float, float]:
        """The pixels of the result divided by those before, horizontally and vertically in the result."""
        height, width = self.before_px[::-1] if self.is_turned else self.before_px
        return self.after_px[1] / width, self.after_px[0] / height

    def unit_point(self, x: float, y: float) -> tuple[float, float]:
        """Convert a point whose coordinates are fractions of width and height."""
        turned: dict[int, tuple[float, float]] = {
            2: (1 - x, y),
            3: (1 - x, 1 - y),
            4: (x, 1 - y),
            5: (y, x),
            6: (1 - y, x),
            7: (1 - y, 1 - x),
            8: (y, 1 - x),
        }
        return turned.get(self.orientation, (x, y))

    def point(self, x: float, y: float) -> tuple[float, float]:
        """Convert a point in pixels."""
        height, width = self.before_px
        across, down = self.unit_point(x / width, y / height)
        return across * self.after_px[1], down * self.after_px[0]

    def extent(self, width: float, height: float) -> tuple[float, float]:
        """Convert a width and a height in pixels."""
        across, down = self.scales
        width, height = self.unit_extent(width, height)
        return width * across, height * down

    def unit_extent(self, width: float, height: float) -> tuple[float, float]:
        """Convert a width and a height given as fractions."""
        return (height, width) if self.is_turned else (width, height)


# --- EXIF ---------------------------------------------------------------------------------------------------------

_ORIENTATION = ExifTags.Base.Orientation
_THUMBNAIL_OFFSET, _THUMBNAIL_LENGTH = 0x0201, 0x0202
_SHORT, _LONG, _RATIONAL = 3, 4, 5
_CODES = {_SHORT: "H", _LONG: "I", _RATIONAL: "2I"}
_MAKER_NOTE, _COMPRESSED_BITS = 0x927C, 0x9102
_SUBJECT_AREA, _SUBJECT_LOCATION = 0x9214, 0xA214
_WIDTH_TAGS = frozenset({0x0100, 0xA002, 0x1001})
_HEIGHT_TAGS = frozenset({0x0101, 0xA003, 0x1002})
_FOCAL_PLANE_X, _FOCAL_PLANE_Y = 0xA20E, 0xA20F
_X_RESOLUTION, _Y_RESOLUTION, _RESOLUTION_UNIT = 0x011A, 0x011B, 0x0128
_IPTC_TAG, _PHOTOSHOP_TAG = 33723, 34377

#: Maker notes that can be moved, because they have no offsets or count them from the note itself.
_MOVABLE_NOTES = (b"Nikon\0\x02", b"OLYMPUS\0", b"OM SYSTEM\0", b"FUJIFILM", b"Apple iOS\0", b"PENTAX \0")


class ExifError(ValueError):
    """The bytes are not readable EXIF data."""


@dataclass(frozen=True)
class _Entry:
    """One entry of a directory: the position of its 12 bytes, and their byte order and type."""

    tag: int
    kind: int
    count: int
    position: int


class _Directories:
    """The directories of a TIFF structure, which are read and changed in one buffer.

    Some programs write the prefix of JPEG into other formats too.
    """

    def __init__(self, data: bytes) -> None:
        data = data.removeprefix(PREFIX)
        if data[:4] not in (b"II*\x00", b"MM\x00*"):
            raise ExifError("no TIFF header")
        self.data = bytearray(data)
        self.order = "<" if data[:2] == b"II" else ">"

    @property
    def first(self) -> int:
        """The position of the first directory."""
        return self._unpack("I", 4)

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

    def first_entries(self) -> dict[int, _Entry]:
        """The entries of the first directory by their tag."""
        return {entry.tag: entry for entry in self.entries(self.first)}

    def reachable(self) -> list[tuple[int, _Entry]]:
        """The entries of the first, the Exif and the interoperability directories, each with its directory."""
        found, directories = list[tuple[int, _Entry]](), [self.first]
        for directory in directories:
            for entry in self.entries(directory):
                found.append((directory, entry))
                is_inner = entry.tag in (ExifTags.IFD.Exif, ExifTags.IFD.Interop)
                if is_inner and len(directories) < 3 and (offset := self.number(entry)):
                    directories.append(offset)
        return found

    def content(self, entry: _Entry, size: int) -> int:
        """The position of an entry's content, which has `size` bytes."""
        position = entry.position + 8 if size <= 4 else self._unpack("I", entry.position + 8)
        if position + size > len(self.data):
            raise ExifError("it ends too early")
        return position

    def numbers(self, entry: _Entry) -> tuple[int, ...]:
        """Up to four SHORTs or LONGs, or numerators and denominators of RATIONALs; empty for anything else."""
        if entry.kind not in _CODES or entry.count > 4:
            return ()
        layout = self.order + _CODES[entry.kind] * entry.count
        return struct.unpack_from(layout, self.data, self.content(entry, struct.calcsize(layout)))

    def number(self, entry: _Entry) -> int | None:
        """A single SHORT or LONG; None for anything else."""
        return self.numbers(entry)[0] if entry.count == 1 and entry.kind in (_SHORT, _LONG) else None

    def set_numbers(self, entry: _Entry, values: Sequence[int]) -> bool:
        """Change the numbers of an entry; return False if a value does not fit."""
        layout = self.order + _CODES[entry.kind] * entry.count
        try:
            packed = struct.pack(layout, *values)
        except struct.error:
            return False
        start = self.content(entry, len(packed))
        self.data[start : start + len(packed)] = packed
        return True

    def set_number(self, entry: _Entry, value: int) -> None:
        """Change a single SHORT or LONG; a SHORT that is too small for the value becomes a LONG."""
        if self.number(entry) is None:
            return
        kind = _LONG if value > 65535 else entry.kind
        struct.pack_into(self.order + "H", self.data, entry.position + 2, kind)
        self.set_numbers(replace(entry, kind=kind), [value])

    def remove(self, stale: Iterable[tuple[int, _Entry]]) -> None:
        """Remove entries from their directories; everything except the entries after them stays in place."""
        for directory, entry in sorted(stale, key=lambda pair: -pair[1].position):
            count = self._unpack("H", directory)
            end = directory + 2 + 12 * count + 4
            self.data[entry.position : end - 12] = self.data[entry.position + 12 : end]
            self.data[end - 12 : end] = bytes(len(self.data[end - 12 : end]))
            struct.pack_into(self.order + "H", self.data, directory, count - 1)

    def add(self, added: dict[int, tuple[int, int, bytes]]) -> None:
        """Add entries (type, count and content by tag) to the first directory, which moves to the end."""
        old = {tag: bytes(self.data[e.position : e.position + 12]) for tag, e in self.first_entries().items()}
        link = self._unpack("I", self._link())
        for tag, (kind, count, content) in added.items():
            value = content.ljust(4, b"\0")
            if len(content) > 4:
                self.data += bytes(len(self.data) % 2)
                value = struct.pack(self.order + "I", len(self.data))
                self.data += content
            old[tag] = struct.pack(self.order + "HHI", tag, kind, count) + value
        self.data += bytes(len(self.data) % 2)
        struct.pack_into(self.order + "I", self.data, 4, len(self.data))
        self.data += struct.pack(self.order + "H", len(old)) + b"".join(old[tag] for tag in sorted(old))
        self.data += struct.pack(self.order + "I", link)

    def _link(self) -> int:
        """The position of the offset of the second directory."""
        return self.first + 2 + 12 * self._unpack("H", self.first)

    def drop_thumbnail(self) -> None:
        """Unlink the second directory, and blank its image."""
        link = self._link()
        # Some cameras omit the link if no directory follows.
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


def _rational(value: float) -> tuple[int, int] | None:
    """A numerator and a denominator of 32 bits each, or None."""
    if not math.isfinite(value) or not 0 <= value < 2**32:
        return None
    near = Fraction(value).limit_denominator(1_000_000 if value < 4000 else 1)
    return near.numerator, near.denominator


def exif_orientation(data: bytes) -> int | None:
    """The orientation (1 to 8) in an EXIF structure, or None.

    Raises:
        ExifError: the data cannot be read.
    """
    directories = _Directories(data)
    for entry in directories.entries(directories.first):
        if entry.tag == _ORIENTATION:
            value = directories.number(entry)
            return value if value is not None and 1 <= value <= 8 else None
    return None


def has_adobe_rgb(data: bytes | None) -> bool:
    """Whether the colours are Adobe RGB according to an EXIF structure.

    DCF 2.0 uses ColorSpace 65535 (uncalibrated) with the interoperability index "R03"; some cameras and programs use
    ColorSpace 2.
    """
    if data is None:
        return False
    try:
        directories = _Directories(data)
        found = {entry.tag: entry for _, entry in directories.reachable()}
        space = found.get(ExifTags.Base.ColorSpace)
        value = None if space is None else directories.number(space)
        # Tag 1 only exists in the interoperability directory.
        index = found.get(ExifTags.Interop.InteropIndex)
        named = index is not None and bytes(directories.data[index.position + 8 : index.position + 11]) == b"R03"
        return value == 2 or (value in (None, 65535) and named)
    except ExifError:
        return False


def placed_exif(data: bytes, place: Placement) -> bytes:
    """The same EXIF for an image that was turned and resized, without its stale thumbnail.

    Unchanged parts stay in place.

    Raises:
        ExifError: the data cannot be read.
    """
    directories = _Directories(data)
    found = directories.reachable()
    directories.remove([(at, entry) for at, entry in found if not _is_placed(directories, entry, place)])
    directories.drop_thumbnail()
    return bytes(directories.data)


def _is_placed(directories: _Directories, entry: _Entry, place: Placement) -> bool:
    """Convert one value for the result; return False if it has no meaning there."""
    height, width = place.after_px
    if entry.tag == _ORIENTATION:
        directories.set_number(entry, 1)
    elif entry.tag in _WIDTH_TAGS | _HEIGHT_TAGS:
        directories.set_number(entry, width if entry.tag in _WIDTH_TAGS else height)
    elif entry.tag in (_SUBJECT_AREA, _SUBJECT_LOCATION):
        values = directories.numbers(entry) if entry.kind == _SHORT else ()
        return bool(values) and directories.set_numbers(entry, _placed_subject(values, place))
    elif entry.tag in (_FOCAL_PLANE_X, _FOCAL_PLANE_Y):
        if place.is_turned or entry.kind != _RATIONAL or entry.count != 1:
            return False
        above, below = directories.numbers(entry)
        scale = place.scales[entry.tag == _FOCAL_PLANE_Y]
        pair = _rational(above / below * scale) if below else None
        return pair is not None and directories.set_numbers(entry, pair)
    return entry.tag != _COMPRESSED_BITS


def _placed_subject(values: Sequence[int], place: Placement) -> list[int]:
    """Convert a SubjectArea (Exif 2.32) in pixels: a point, or a point with a diameter or with a width and a height."""
    if len(values) < 2:
        return list(values)
    across, down = place.scales
    placed = list(place.point(values[0], values[1]))
    if len(values) == 3:
        placed.append(values[2] * math.sqrt(across * down))
    elif len(values) == 4:
        placed.extend(place.extent(values[2], values[3]))
    return [round(value) for value in placed]


def without_orientation(data: bytes) -> bytes:
    """EXIF data without the orientation, because Pillow's AVIF writer would repack data that has it.

    Raises:
        ExifError: the data cannot be read.
    """
    directories = _Directories(data)
    first = directories.first
    directories.remove([(first, entry) for entry in directories.entries(first) if entry.tag == _ORIENTATION])
    return bytes(directories.data)


def without_fixed_note(data: bytes) -> tuple[bytes, bool]:
    """EXIF data that can be repacked, without a maker note that cannot be moved, and whether it had such a note.

    Raises:
        ExifError: the data cannot be read.
    """
    directories = _Directories(data)
    for directory, entry in directories.reachable():
        if entry.tag == _MAKER_NOTE and entry.count > 4:
            start = directories.content(entry, entry.count)
            if not bytes(directories.data[start : start + 12]).startswith(_MOVABLE_NOTES):
                directories.remove([(directory, entry)])
                return bytes(directories.data), True
    return data, False


def exif_with_dpi(data: bytes | None, dpi: tuple[float, float], *, add: bool) -> bytes | None:
    """EXIF data with another horizontal and vertical resolution; data without one gets it only if `add` is set.

    Raises:
        ExifError: the data cannot be read.
    """
    if data is None and not add:
        return None
    directories = _Directories(data or b"II*\0\x08\0\0\0\0\0\0\0\0\0")
    found = directories.first_entries()
    new: dict[int, tuple[int, int, bytes]] = {}
    for tag, value in zip((_X_RESOLUTION, _Y_RESOLUTION), dpi, strict=True):
        if (tag in found or add) and (pair := _rational(value)):
            new[tag] = (_RATIONAL, 1, struct.pack(directories.order + "2I", *pair))
    if _RESOLUTION_UNIT in found:
        directories.set_number(found[_RESOLUTION_UNIT], 2)
    elif new or _X_RESOLUTION in found:
        new[_RESOLUTION_UNIT] = (_SHORT, 1, struct.pack(directories.order + "H", 2))
    if new:
        directories.add(new)
    return bytes(directories.data)


def _exif_dpi(data: bytes) -> tuple[float, float] | None:
    """The resolution in an EXIF structure."""
    try:
        directories = _Directories(data)
        found = directories.first_entries()
        values = []
        for tag in (_X_RESOLUTION, _Y_RESOLUTION):
            position = directories.content(found[tag], 8)
            above, below = struct.unpack_from(directories.order + "2I", directories.data, position)
            values.append(above / below)
        unit = directories.number(found[_RESOLUTION_UNIT]) if _RESOLUTION_UNIT in found else 2
    except (ExifError, KeyError, ZeroDivisionError, struct.error):
        return None
    factor = 2.54 if unit == 3 else 1.0
    return (values[0] * factor, values[1] * factor) if unit in (2, 3) else None


def tags_of(exif: Image.Exif) -> dict[int, Any]:
    """All tags of loaded EXIF data, with inner directories as dictionaries instead of offsets."""
    tags = {int(tag): exif[tag] for tag in exif}
    for tag in (ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo):
        if tag in tags:
            tags[tag] = dict(exif.get_ifd(tag))
    inner = tags.get(ExifTags.IFD.Exif, {})
    if ExifTags.IFD.Interop in inner:
        inner[ExifTags.IFD.Interop] = dict(exif.get_ifd(ExifTags.IFD.Interop))
    return tags


# --- XMP ----------------------------------------------------------------------------------------------------------


class XmpError(ValueError):
    """The bytes are not readable XMP data."""


#: The namespaces of XMP that are read here, by the prefix that they have in this module.
_NAMESPACES = {
    "x": "adobe:ns:meta/",
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "tiff": "http://ns.adobe.com/tiff/1.0/",
    "exif": "http://ns.adobe.com/exif/1.0/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "xmpNote": "http://ns.adobe.com/xmp/note/",
    "dc": "http://purl.org/dc/elements/1.1/",
    "crs": "http://ns.adobe.com/camera-raw-settings/1.0/",
    "GPano": "http://ns.google.com/photos/1.0/panorama/",
    "GCamera": "http://ns.google.com/photos/1.0/camera/",
    "hdrgm": "http://ns.adobe.com/hdr-gain-map/1.0/",
    "stArea": "http://ns.adobe.com/xmp/sType/Area#",
    "stDim": "http://ns.adobe.com/xap/1.0/sType/Dimensions#",
    "acdsee-stArea": "http://ns.acdsee.com/sType/Area#",
    "acdsee-stDim": "http://ns.acdsee.com/sType/Dimensions#",
    "apple-fi": "http://ns.apple.com/faceinfo/1.0/",
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    "MPReg": "http://ns.microsoft.com/photo/1.2/t/Region#",
}
_PREFIX_OF = {namespace: prefix for prefix, namespace in _NAMESPACES.items()}
_RDF = _NAMESPACES["rdf"]

_ANYTHING_BESIDE = "additional data beside the main image"

#: Names of images and videos that are not kept, by the start of the properties that describe them.
_GONE = {
    **dict.fromkeys(("GCamera:MotionPhoto", "GCamera:MicroVideo"), "the video of a motion photo"),
    **dict.fromkeys(("hdrgm:", "http://ns.adobe.com/hdr-gain-map/", "http://ns.apple.com/HDRGainMap/"), "a gain map"),
    "http://ns.google.com/photos/1.0/container/": _ANYTHING_BESIDE,
    "http://ns.google.com/photos/1.0/depthmap/": "a depth map",
    "http://ns.google.com/photos/1.0/image/": "the image before an effect",
    "http://ns.google.com/photos/dd/": "a depth map",
    "http://ns.oplus.com/photos/1.0/camera/": "the video of a motion photo",
}

#: Properties about the compression of the old file, and digests of values that change.
_STALE = {
    *("tiff:BitsPerSample", "tiff:SamplesPerPixel", "tiff:Compression", "tiff:PhotometricInterpretation"),
    *("tiff:PlanarConfiguration", "tiff:YCbCrSubSampling", "tiff:YCbCrPositioning", "tiff:NativeDigest"),
    *("exif:CompressedBitsPerPixel", "exif:NativeDigest", "xmp:Thumbnails"),
}
_STALE_WHEN_TURNED = {
    *(f"crs:Crop{side}" for side in ("Top", "Left", "Bottom", "Right", "Angle", "Width", "Height", "Units")),
    *("crs:HasCrop", "crs:RetouchAreas", "crs:RetouchInfo", "crs:RedEyeInfo", "crs:PaintBasedCorrections"),
    *(f"crs:{name}Corrections" for name in ("GradientBased", "CircularGradientBased", "MaskGroupBased")),
    *("apple-fi:AngleInfoRoll", "apple-fi:AngleInfoYaw"),
}
#: The axis of sizes and positions in pixels: 0 is vertical.
_SIDES = {"tiff:ImageWidth": 1, "tiff:ImageLength": 0, "exif:PixelXDimension": 1, "exif:PixelYDimension": 0}
_PANORAMA_LENGTH = re.compile(
    r"GPano:(?:FullPano|CroppedArea|LargestValidInteriorRect)(?:Image)?(Width|Left|Height|Top)(?:Pixels)?"
)


class _Property:
    """A property of XMP: an attribute, or an element with its text.

    Attributes:
        name: with a prefix of `_NAMESPACES`, or else with the whole namespace.
        owner: the element around it.
    """

    def __init__(self, node: Any) -> None:
        self._node, self._is_attribute = node, node.nodeType == node.ATTRIBUTE_NODE
        self.owner = node.ownerElement if self._is_attribute else node.parentNode
        self.name = f"{_PREFIX_OF.get(node.namespaceURI, node.namespaceURI)}:{node.localName}"
        self.is_removed = False

    @property
    def text(self) -> str:
        if self._is_attribute:
            return str(self._node.value).strip()
        return "".join(child.data for child in self._node.childNodes if child.nodeType == child.TEXT_NODE).strip()

    @text.setter
    def text(self, value: str) -> None:
        if self._is_attribute:
            self._node.value = value
            return
        for child in list(self._node.childNodes):
            self._node.removeChild(child)
        self._node.appendChild(self._node.ownerDocument.createTextNode(value))

    @property
    def items(self) -> list[_Property]:
        """The items of a list."""
        return [] if self._is_attribute else list(map(_Property, self._node.getElementsByTagNameNS(_RDF, "li")))

    def remove(self) -> None:
        """Remove the property, unless it was removed before."""
        self.is_removed = True
        # A new text of the element around it removes it too.
        owner = self._node.ownerElement if self._is_attribute else self._node.parentNode
        if owner is not None:
            (owner.removeAttributeNode if self._is_attribute else owner.removeChild)(self._node)


def parse_xmp(xmp: bytes) -> minidom.Document:
    """Parse a packet.

    Raises:
        XmpError: the packet is not XML, or has a document type, whose entities could expand without limit.
    """
    for encoding in ("utf-8-sig", "utf-16", "latin-1"):
        try:
            text = xmp.decode(encoding).strip("\0 \r\n\t\ufeff")
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            break
    if "<!DOCTYPE" in text or "<!ENTITY" in text:
        raise XmpError("it has a document type")
    # The decoded text no longer has the encoding of its declaration.
    text = re.sub(r"^<\?xml[^>]*\?>", "", text)
    # Some programs do not declare all prefixes.
    declared = set(re.findall(r"\sxmlns:([\w.-]+)\s*=", text))
    used = set(re.findall(r"[<\s]/?([A-Za-z_][\w.-]*):[A-Za-z_][\w.-]*(?=[\s=/>])", text))
    if missing := used - declared - {"xml", "xmlns"}:
        names = "".join(f' xmlns:{name}="{_NAMESPACES.get(name, f"urn:{name}")}"' for name in sorted(missing))
        text = re.sub(r"(<[A-Za-z_][\w.:-]*)(?=[\s/>])", lambda start: start[0] + names, text, count=1)
    try:
        return minidom.parseString(text.encode("utf-8", "surrogatepass"))
    except (ExpatError, ValueError, RecursionError, AttributeError) as error:
        raise XmpError(str(error)) from error


def _packed(document: minidom.Document) -> bytes:
    try:
        return "\n".join(node.toxml() for node in document.childNodes).encode()
    except RecursionError as error:
        raise XmpError("its elements are nested too deeply") from error


def _properties(document: minidom.Document) -> Iterator[_Property]:
    for element in document.getElementsByTagName("*"):
        yield _Property(element)
        attributes: list[Any] = list(element.attributes.values())
        for node in attributes:
            if node.namespaceURI and node.prefix != "xmlns" and node.name != "xmlns":
                yield _Property(node)


def placed_xmp(
    xmp: bytes, place: Placement, mime: str | None = None, dpi: tuple[float, float] | None = None
) -> tuple[bytes, tuple[str, ...]]:
    """The same XMP for an image that was turned and resized, without descriptions of parts that the result lacks.

    Args:
        xmp: a packet.
        place: how the image was turned and resized.
        mime: type of the result's format, for dc:format.
        dpi: replaces a resolution, if there is one.
    Returns:
        The packet, unmodified if nothing changed; and notes on what was removed.
    Raises:
        XmpError: the packet cannot be parsed.
    """
    document = parse_xmp(xmp)
    before = _packed(document)
    found = list(_properties(document))
    gone = set[str]()
    for item in found:
        if what := next((what for start, what in _GONE.items() if item.name.startswith(start)), None):
            item.remove()
            gone.add(what)
    if place.orientation > 1:
        panorama = [item for item in found if item.name.startswith("GPano:")]
        gone |= {"the geometry of a turned panorama"} if panorama else set()
        for item in panorama + [item for item in found if item.name in _STALE_WHEN_TURNED]:
            item.remove()
    for item in found:
        if item.name in _STALE:
            item.remove()
        elif not item.is_removed:
            _place_property(item, place, mime, dpi)
    structures: dict[int, dict[str, _Property]] = {}
    for item in _properties(document):
        structures.setdefault(id(item.owner), {})[item.name] = item
    for fields in structures.values():
        _place_structure(fields, place)
    after = _packed(document)
    if len(gone) > 1:
        gone.discard(_ANYTHING_BESIDE)
    notes = tuple(f"{what} is not kept, and XMP about it was removed" for what in sorted(gone))
    return (xmp if after == before else after), notes


def _place_property(item: _Property, place: Placement, mime: str | None, dpi: tuple[float, float] | None) -> None:
    """Convert one value for the result; a value that is not a number is removed."""
    try:
        if item.name == "tiff:Orientation":
            item.text = "1"
        elif item.name in _SIDES:
            item.text = str(place.after_px[_SIDES[item.name]])
        elif length := _PANORAMA_LENGTH.fullmatch(item.name):
            item.text = str(round(float(item.text) * place.scales[length[1] in ("Height", "Top")]))
        elif item.name in ("exif:SubjectArea", "exif:SubjectLocation"):
            numbers = item.items
            for number, value in zip(numbers, _placed_subject([int(n.text) for n in numbers], place), strict=True):
                number.text = str(value)
        elif item.name in ("exif:FocalPlaneXResolution", "exif:FocalPlaneYResolution"):
            pair = _rational(float(Fraction(item.text)) * place.scales[item.name == "exif:FocalPlaneYResolution"])
            if place.is_turned or pair is None:
                item.remove()
            else:
                item.text = f"{pair[0]}/{pair[1]}"
        elif dpi is not None and item.name in ("tiff:XResolution", "tiff:YResolution"):
            if pair := _rational(dpi[item.name == "tiff:YResolution"]):
                item.text = f"{pair[0]}/{pair[1]}"
        elif dpi is not None and item.name == "tiff:ResolutionUnit":
            item.text = "2"
        elif item.name == "MPReg:Rectangle":
            left, top, width, height = (float(part) for part in item.text.split(","))
            x, y = place.unit_point(left + width / 2, top + height / 2)
            width, height = place.unit_extent(width, height)
            item.text = ", ".join(map(_short, (x - width / 2, y - height / 2, width, height)))
        elif mime is not None and item.name == "dc:format":
            item.text = mime
    except (ValueError, ZeroDivisionError, OverflowError):
        item.remove()


def _place_structure(fields: dict[str, _Property], place: Placement) -> None:
    """Turn and scale a region (MWG guidelines, IPTC photo metadata), and the size that regions were drawn on.

    Args:
        fields: the attributes and elements of one owner, by their name.
        place: how the image was turned and resized.
    """
    try:
        for structure in ("st", "acdsee-st"):
            _place_area([fields.get(f"{structure}Area:{name}") for name in ("x", "y", "w", "h", "d", "unit")], place)
            width, height, unit = (fields.get(f"{structure}Dim:{name}") for name in ("w", "h", "unit"))
            if width and height and (unit is None or unit.text.lower().startswith("pixel")):
                width.text, height.text = str(place.after_px[1]), str(place.after_px[0])
        _place_boundary([fields.get(f"Iptc4xmpExt:rb{name}") for name in ("X", "Y", "W", "H", "Rx")], place)
    except (ValueError, ZeroDivisionError, OverflowError):
        for item in fields.values():
            item.remove()


def _place_area(parts: list[_Property | None], place: Placement) -> None:
    """Convert a centre with a width and a height, or with a diameter as a fraction of the shorter side."""
    x, y, width, height, diameter, unit = parts
    if x is None or y is None:
        return
    in_pixels = unit is not None and unit.text.lower().startswith("pixel")
    point, extent = (place.point, place.extent) if in_pixels else (place.unit_point, place.unit_extent)
    x.text, y.text = map(_short, point(float(x.text), float(y.text)))
    if width is not None and height is not None:
        width.text, height.text = map(_short, extent(float(width.text), float(height.text)))
    if diameter is not None and in_pixels:
        diameter.text = _short(float(diameter.text) * min(place.scales))


def _place_boundary(parts: list[_Property | None], place: Placement) -> None:
    """Convert a corner with a width and a height, the centre of a circle, or one corner of a polygon."""
    x, y, width, height, radius = parts
    if x is None or y is None:
        return
    in_pixels = _is_in_pixels(x.owner)
    point, extent = (place.point, place.extent) if in_pixels else (place.unit_point, place.unit_extent)
    left, top = float(x.text), float(y.text)
    placed = point(left, top)
    if width is not None and height is not None:
        across, down = float(width.text), float(height.text)
        corners = placed, point(left + across, top + down)
        placed = min(corner[0] for corner in corners), min(corner[1] for corner in corners)
        width.text, height.text = map(_short, extent(across, down))
    x.text, y.text = map(_short, placed)
    if radius is not None:
        # The radius is a fraction of the width, which was the height before a quarter turn.
        turned = place.before_px[1] / place.before_px[0] if place.is_turned else 1
        radius.text = _short(float(radius.text) * (place.scales[0] if in_pixels else turned))


def _is_in_pixels(node: Any) -> bool:
    """Whether a boundary is in pixels, according to the structure around its corners."""
    while node is not None and node.nodeType == node.ELEMENT_NODE:
        inside = [_Property(child) for child in node.childNodes if child.nodeType == child.ELEMENT_NODE]
        units = [item.text for item in inside if item.name == "Iptc4xmpExt:rbUnit"]
        if unit := [*units, node.getAttributeNS(_NAMESPACES["Iptc4xmpExt"], "rbUnit")][0]:
            return bool(unit == "pixel")
        node = node.parentNode
    return False


def _short(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".") or "0"


def _joined_xmp(main: bytes, parts: list[bytes]) -> tuple[bytes, tuple[str, ...]]:
    """Join a JPEG's packet and its extension in other segments (XMP specification, part 3, 1.1.3.1)."""
    document = parse_xmp(main)
    marks = [item for item in _properties(document) if item.name == "xmpNote:HasExtendedXMP"]
    if not marks:
        return main, ()
    wanted, pieces, length = marks[0].text.encode(), dict[int, bytes](), 0
    for mark in marks:
        mark.remove()
    for part in parts:
        if part[:32] == wanted and len(part) >= 40:
            length, offset = struct.unpack_from(">II", part, 32)
            pieces[offset] = part[40:]
    more = b"".join(pieces[offset] for offset in sorted(pieces))
    target = document.getElementsByTagNameNS(_RDF, "RDF")
    try:
        if not more or len(more) != length or not target:
            raise XmpError("it is incomplete")
        descriptions: list[Any] = list(parse_xmp(more).getElementsByTagNameNS(_RDF, "Description"))
        for description in descriptions:
            if description.parentNode.localName == "RDF":
                target[0].appendChild(_imported(document, description, deep=True))
    except XmpError as error:
        return _packed(document), (f"the extended XMP was dropped: {error}",)
    return _packed(document), ()


def _imported(document: Any, element: Any, *, deep: bool) -> Any:
    """A copy of an element for another document, with all namespaces that apply to it."""
    copy = document.importNode(element, deep)
    while element is not None and element.nodeType == element.ELEMENT_NODE:
        for name, value in element.attributes.items():
            if name.startswith("xmlns") and not copy.hasAttribute(name):
                copy.setAttribute(name, value)
        element = element.parentNode
    return copy


def _split_xmp(xmp: bytes, limit: int) -> tuple[bytes, bytes]:
    """Split a packet into one of at most `limit` bytes and an extension with its largest properties.

    Raises:
        XmpError: the packet cannot be parsed or split.
    """
    document: Any = parse_xmp(xmp)
    frames = document.getElementsByTagNameNS(_RDF, "RDF")
    tops = [node for node in frames[0].childNodes if node.localName == "Description"] if frames else []
    bulk = [(top, node) for top in tops for node in top.childNodes if node.nodeType == node.ELEMENT_NODE]
    attributes = [(top, node) for top in tops for node in list(top.attributes.values())]
    bulk += [(top, node) for top, node in attributes if node.namespaceURI and node.prefix not in ("xmlns", "rdf")]
    if not bulk:
        raise XmpError("it cannot be split")
    frame = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{_RDF}"></rdf:RDF></x:xmpmeta>'
    more: Any = minidom.parseString(frame)
    holder = more.getElementsByTagNameNS(_RDF, "RDF")[0]
    size = len(_packed(document))
    for top, node in sorted(bulk, key=lambda pair: -_length(pair[1])):
        # The rest is for the mark of the extension.
        if size <= limit - 200:
            break
        size -= _length(node)
        # A shallow copy, because only the namespaces are needed.
        copy = _imported(more, top, deep=False)
        for attribute in list(copy.attributes.values()):
            if not attribute.name.startswith(("xmlns", "rdf:about")):
                copy.removeAttributeNode(attribute)
        if node.nodeType == node.ATTRIBUTE_NODE:
            copy.setAttributeNS(node.namespaceURI, node.name, node.value)
            top.removeAttributeNode(node)
        else:
            copy.appendChild(more.importNode(node, True))
            top.removeChild(node)
        holder.appendChild(copy)
    extension = more.documentElement.toxml().encode()
    tops[0].setAttribute("xmlns:xmpNote", _NAMESPACES["xmpNote"])
    tops[0].setAttributeNS(_NAMESPACES["xmpNote"], "xmpNote:HasExtendedXMP", _digest(extension).hex().upper())
    packed = _packed(document)
    if len(packed) > limit:
        raise XmpError("it cannot be split")
    return packed, extension


def _digest(content: bytes) -> bytes:
    return hashlib.md5(content, usedforsecurity=False).digest()


def _length(node: Any) -> int:
    return len(node.value if node.nodeType == node.ATTRIBUTE_NODE else node.toxml().encode())


# --- IPTC ---------------------------------------------------------------------------------------------------------

_IPTC_RESOURCE, _IPTC_DIGEST = 0x0404, 0x0425
#: Numbers of Photoshop's paths.
_PATHS = range(0x07D0, 0x0BB7)


def _resources(block: bytes) -> Iterator[tuple[int, bytes]]:
    """The numbers and contents of Photoshop's image resources."""
    position = 0
    while block[position : position + 4] == b"8BIM" and position + 12 <= len(block):
        number, name_length = struct.unpack_from(">HB", block, position + 4)
        position += 6 + name_length + 1 + (name_length + 1) % 2
        size = int.from_bytes(block[position : position + 4], "big")
        yield number, block[position + 4 : position + 4 + size]
        position += 4 + size + size % 2


def _iptc_of_resources(block: bytes) -> tuple[bytes | None, tuple[str, ...]]:
    found = dict(_resources(block))
    notes = ("Photoshop's paths were dropped",) if any(number in _PATHS for number in found) else ()
    return _without_preview(found.get(_IPTC_RESOURCE, b"")) or None, notes


def _without_preview(iim: bytes) -> bytes:
    """IPTC data sets (IIM 4.2) without the preview image of the old file (2:200 to 2:202)."""
    kept, position = b"", 0
    while position + 5 <= len(iim) and iim[position] == 0x1C:
        record, number, length = struct.unpack_from(">BBH", iim, position + 1)
        end = position + 5 + length
        if length & 0x8000:
            size = length & 0x7FFF
            end = position + 5 + size + int.from_bytes(iim[position + 5 : position + 5 + size], "big")
        if not (record == 2 and 200 <= number <= 202):
            kept += iim[position:end]
        position = end
    return kept


def iptc_resources(iim: bytes) -> bytes:
    """Photoshop's image resources with IPTC data, and its digest, which shows that it was not changed."""
    parts = ((_IPTC_RESOURCE, iim), (_IPTC_DIGEST, _digest(iim)))
    return b"".join(
        b"8BIM" + struct.pack(">HHI", number, 0, len(content)) + content + bytes(len(content) % 2)
        for number, content in parts
    )


# --- reading ------------------------------------------------------------------------------------------------------

#: Tags of a TIFF's directory that describe the image; the others describe the storage of its pixels.
_DESCRIPTIVE_NAMES = (
    "DocumentName ImageDescription Make Model PageName Software DateTime Artist HostComputer Rating RatingPercent "
    "Copyright XPTitle XPComment XPAuthor XPKeywords XPSubject"
)
_DESCRIPTIVE_TAGS = {
    *(ExifTags.Base[name] for name in _DESCRIPTIVE_NAMES.split()),
    *(ExifTags.IFD.Exif, ExifTags.IFD.GPSInfo),
}

_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=[\"']|>)\s*([1-8])")
MAKER_NOTE_DROPPED = "the camera maker note was dropped: it cannot be moved"


@dataclass
class _Raw:
    """The metadata of a file before any conversion.

    Attributes:
        exif: the TIFF structure, without prefix.
        iptc: data sets of the IIM.
        more_xmp: segments of a JPEG's extended XMP, starting with their GUID.
    """

    exif: bytes | None = None
    xmp: bytes | None = None
    iptc: bytes | None = None
    icc: bytes | None = None
    more_xmp: list[bytes] = field(default_factory=list)
    notes: tuple[str, ...] = ()


def _raw_metadata(image: Image.Image) -> _Raw:
    info, raw = image.info, _Raw()
    xmp = info.get("xmp") or info.get(XMP_KEYWORD)
    raw.xmp = (xmp.encode() if isinstance(xmp, str) else bytes(xmp)) if xmp else None
    raw.icc = info.get("icc_profile") or None
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        raw.exif, raw.notes = _described(image.getexif())
        raw.iptc = _iptc_of_tiff(image)
        return raw
    raw.exif = info["exif"].removeprefix(PREFIX) if info.get("exif") else None
    segments: list[Any] = [content for _, content in getattr(image, "applist", [])]
    resources = b"".join(c.removeprefix(_PHOTOSHOP_PREFIX) for c in segments if c.startswith(_PHOTOSHOP_PREFIX))
    raw.more_xmp = [c.removeprefix(_MORE_XMP_PREFIX) for c in segments if c.startswith(_MORE_XMP_PREFIX)]
    if resources:
        raw.iptc, raw.notes = _iptc_of_resources(resources)
    if isinstance(image, PngImagePlugin.PngImageFile):
        _add_raw_profiles(raw, image)
    return raw


def _add_raw_profiles(raw: _Raw, image: PngImagePlugin.PngImageFile) -> None:
    """Read ImageMagick's raw profiles in PNG texts: a name, a length, then hexadecimal lines."""
    for keyword, text in image.info.items():
        if not (isinstance(keyword, str) and isinstance(text, str) and keyword.startswith(_RAW_KEYWORD)):
            continue
        kind = keyword.removeprefix(_RAW_KEYWORD).lower()
        try:
            content = bytes.fromhex("".join(text.strip("\n").split("\n")[2:]))
        except ValueError:
            raw.notes += (f"the text {keyword!r} is corrupt and was dropped",)
            continue
        if content.startswith(PREFIX) or kind == "exif":
            raw.exif = raw.exif or content.removeprefix(PREFIX)
        elif content.startswith(_XMP_PREFIX) or kind == "xmp":
            raw.xmp = raw.xmp or content.removeprefix(_XMP_PREFIX)
        elif kind in ("iptc", "8bim"):
            block = content.removeprefix(_PHOTOSHOP_PREFIX)
            found, notes = _iptc_of_resources(block) if block[:4] == b"8BIM" else (_without_preview(block), ())
            raw.iptc, raw.notes = raw.iptc or found, raw.notes + notes
        elif kind in ("icc", "icm"):
            raw.icc = raw.icc or content
        else:
            raw.notes += (f"the text {keyword!r} was dropped: its content is unknown",)


def _iptc_of_tiff(image: TiffImagePlugin.TiffImageFile) -> bytes | None:
    """The IPTC data of a TIFF, for any type of its tag; some programs wrote it as numbers in the other byte order."""
    # Pillow itself reads a single number if it expects one.
    content = bytes(image.tag_v2._tagdata.get(_IPTC_TAG, b""))
    if not content:
        content = dict(_resources(bytes(image.tag_v2._tagdata.get(_PHOTOSHOP_TAG, b"")))).get(_IPTC_RESOURCE, b"")
    if content[:1] != b"\x1c" and content[3:4] == b"\x1c":
        content = b"".join(content[start : start + 4][::-1] for start in range(0, len(content), 4))
    return _without_preview(content) or None


def stored_orientation(image: Image.Image, file: BinaryIO | None = None) -> int:
    """The orientation of the pixels in the file, 1 to 8; from XMP if EXIF has none. Call it before a TIFF is loaded.

    Args:
        image: the image.
        file: that an image is opened from and not loaded: a PNG's EXIF can follow its pixels; its position stays.
    """
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        value = image.tag_v2.get(_ORIENTATION, 1)
        return value if isinstance(value, int) and 1 <= value <= 8 else 1
    raw = _raw_metadata(image)
    if isinstance(image, PngImagePlugin.PngImageFile) and file is not None and "exif" not in image.info:
        position = file.tell()
        raw.exif = next((file.read(length) for kind, _, length in png_chunks(file) if kind == b"eXIf"), raw.exif)
        file.seek(position)
    try:
        found = exif_orientation(raw.exif) if raw.exif else None
    except ExifError:
        found = None
    if found is None and (match := _XMP_ORIENTATION.search(raw.xmp or b"")):
        found = int(match[1])
    return found or 1


def read_metadata(
    image: Image.Image, size_px: tuple[int, int], turned: int = 1
) -> tuple[ImageMetadata, tuple[str, ...]]:
    """Read the metadata of a loaded image.

    Args:
        image: a loaded image, because metadata can follow the pixels.
        size_px: height and width of the upright image.
        turned: the orientation that was applied to its pixels.
    Returns:
        The metadata, with an unchecked ICC profile, and notes on what was dropped.
    """
    place = Placement(turned, size_px[::-1] if turned >= 5 else size_px, size_px)
    try:
        with warnings.catch_warnings(action="ignore"):  # Pillow warns about single values that it drops
            raw = _raw_metadata(image)
        notes = raw.notes
    except (struct.error, ValueError, TypeError, KeyError, SyntaxError, OSError):
        raw, notes = _Raw(icc=image.info.get("icc_profile")), ("the EXIF data is corrupt and was dropped",)
    exif = xmp = None
    if raw.exif:
        try:
            exif = placed_exif(raw.exif, place)
        except ExifError:
            notes += ("the EXIF data is corrupt and was dropped",)
    if raw.xmp:
        try:
            joined, dropped = _joined_xmp(raw.xmp, raw.more_xmp)
            xmp, removed = placed_xmp(joined, place)
            notes += dropped + removed
        except XmpError as error:
            notes += (f"the XMP data was dropped: {error}",)
    dpi = _dpi(image, exif)
    return ImageMetadata(
        exif=exif,
        icc=raw.icc,
        xmp=xmp,
        iptc=raw.iptc,
        dpi=(dpi[1], dpi[0]) if dpi and place.is_turned else dpi,
        text=_text(image),
        size_px=size_px,
    ), notes


def exif_of_tiff_structure(file: BinaryIO) -> tuple[bytes | None, tuple[str, ...]]:
    """The EXIF data in the first directory of a file that begins as a TIFF, for any kind of pixels.

    Returns:
        EXIF data, and notes on what was dropped.
    Raises:
        SyntaxError, OSError, struct.error: the file does not begin as a TIFF, or is corrupt.
    """
    file.seek(0)
    exif, directory = Image.Exif(), TiffImagePlugin.ImageFileDirectory_v2(file.read(8))
    exif.endian = "<" if directory.prefix == b"II" else ">"
    exif.load_from_fp(file, directory.next)
    return _described(exif)


def _described(exif: Image.Exif) -> tuple[bytes | None, tuple[str, ...]]:
    source, kept = tags_of(exif), Image.Exif()
    for tag in _DESCRIPTIVE_TAGS & set(source):
        kept[tag] = source[tag]
    if not len(kept):
        return None, ()
    # The data is repacked, which would invalidate the offsets of a maker note that cannot be moved.
    packed, dropped = without_fixed_note(kept.tobytes().removeprefix(PREFIX))
    return packed, ((MAKER_NOTE_DROPPED,) if dropped else ())


def _dpi(image: Image.Image, exif: bytes | None) -> tuple[float, float] | None:
    dpi: Any = image.info.get("dpi")
    if image.format in ("JPEG", "MPO"):
        # Pillow returns 72 if neither JFIF nor EXIF has a resolution.
        if image.info.get("jfif_unit") not in (1, 2):
            dpi = _exif_dpi(exif) if exif else None
    elif dpi is None and exif and image.format != "TIFF":
        dpi = _exif_dpi(exif)
    if dpi is None:
        return None
    try:
        across, down = (float(value) for value in dpi)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    # Pillow returns 1 if a TIFF has no resolution; no scan has 1 dpi.
    return (across, down) if all(math.isfinite(value) and value > 1 for value in (across, down)) else None


def _text(image: Image.Image) -> tuple[tuple[str, str], ...]:
    if isinstance(image, PngImagePlugin.PngImageFile):
        texts = ((str(key), str(value)) for key, value in image.text.items())
        return tuple(pair for pair in texts if pair[0] != XMP_KEYWORD and not pair[0].startswith(_RAW_KEYWORD))
    comments = [content for name, content in getattr(image, "applist", []) if name == "COM"]
    if not comments and isinstance(image.info.get("comment"), bytes):
        comments = [image.info["comment"]]
    return tuple(("Comment", _decoded(comment)) for comment in comments if comment)


def _decoded(comment: bytes) -> str:
    with suppress(UnicodeDecodeError):
        return comment.decode()
    return comment.decode("latin-1")


# --- writing ------------------------------------------------------------------------------------------------------

_MIME = {"png": "image/png", "jpg": "image/jpeg", "webp": "image/webp", "tiff": "image/tiff", "avif": "image/avif"}


def fitting_metadata(
    metadata: ImageMetadata,
    format_name: str,
    size_px: tuple[int, int],
    dpi: Literal["keep", "scale"] | float = "keep",
) -> tuple[ImageMetadata, tuple[str, ...]]:
    """Adapt metadata to the result, and drop what its format does not support.

    Args:
        metadata: metadata of the input.
        format_name: format of the result.
        size_px: height and width of the result.
        dpi: dots per inch of the result: "keep" the input's, "scale" them with the pixels, or a number.

    Returns:
        The metadata and notes on what was dropped.
    """
    notes: list[str] = []
    exif, xmp, place = metadata.exif, metadata.xmp, Placement(1, metadata.size_px or size_px, size_px)
    new_dpi = metadata.dpi if isinstance(dpi, str) else (dpi, dpi)
    if dpi == "scale" and new_dpi:
        new_dpi = (new_dpi[0] * place.scales[0], new_dpi[1] * place.scales[1])
    try:
        if exif:
            exif = placed_exif(exif, place)
            if format_name == "tiff":
                exif, dropped = without_fixed_note(exif)
                notes += [MAKER_NOTE_DROPPED] if dropped else []
            elif format_name == "avif":
                exif = without_orientation(exif)
        # Kept values stay as in each block of the file, even if two blocks differ.
        has_no_place = format_name in ("webp", "avif")
        if new_dpi and (dpi != "keep" or (has_no_place and not (exif and _exif_dpi(exif)))):
            exif = exif_with_dpi(exif, new_dpi, add=has_no_place)
    except ExifError:
        exif = None
        notes.append("the EXIF data is corrupt and was dropped")
    if exif and format_name == "jpg" and len(PREFIX) + len(exif) > _MAX_SEGMENT:
        exif = None
        notes.append("the EXIF data is too long for a JPEG and was dropped")
    if xmp:
        try:
            xmp, removed = placed_xmp(xmp, place, _MIME[format_name], None if dpi == "keep" else new_dpi)
            notes += removed
        except XmpError as error:
            xmp = None
            notes.append(f"the XMP data was dropped: {error}")
    iptc, text = metadata.iptc, metadata.text
    if iptc and format_name in ("webp", "avif"):
        iptc = None
        notes.append(f"IPTC was dropped: {format_name} does not support it")
    if format_name != "png":
        text = tuple(pair for pair in text if pair[0] == "Comment") if format_name == "jpg" else ()
        if lost := sorted({pair[0] for pair in metadata.text} - {pair[0] for pair in text}):
            notes.append(f"texts were dropped: {format_name} does not support {', '.join(lost)[:100]}")
    if dpi == "scale" and not new_dpi:
        notes.append("the resolution was not scaled: the image has none")
    fitting = replace(metadata, exif=exif, xmp=xmp, dpi=new_dpi, text=text, iptc=iptc, size_px=size_px)
    return fitting, tuple(notes)


def metadata_segments(metadata: ImageMetadata) -> tuple[bytes, tuple[str, ...]]:
    """EXIF, XMP, IPTC and comments as JPEG segments, which follow the first one; and notes on what did not fit."""
    segments: list[bytes] = []
    notes: tuple[str, ...] = ()
    if metadata.exif:
        segments.append(jpeg_segment(0xE1, PREFIX + metadata.exif))
    if metadata.xmp:
        limit = _MAX_SEGMENT - len(_XMP_PREFIX)
        try:
            main, more = (metadata.xmp, b"") if len(metadata.xmp) <= limit else _split_xmp(metadata.xmp, limit)
            segments.append(jpeg_segment(0xE1, _XMP_PREFIX + main))
            name, step = _digest(more).hex().upper().encode(), 65000
            for start in range(0, len(more), step):
                head = _MORE_XMP_PREFIX + name + struct.pack(">II", len(more), start)
                segments.append(jpeg_segment(0xE1, head + more[start : start + step]))
        except XmpError:
            notes = ("the XMP data is too long for a JPEG and was dropped",)
    if metadata.iptc:
        block, step = iptc_resources(metadata.iptc), _MAX_SEGMENT - len(_PHOTOSHOP_PREFIX)
        for start in range(0, len(block), step):
            segments.append(jpeg_segment(0xED, _PHOTOSHOP_PREFIX + block[start : start + step]))
    for _, text in metadata.text:
        comment = text.encode()
        if len(comment) > _MAX_SEGMENT:
            notes += (f"a comment of {len(comment)} bytes was cut to {_MAX_SEGMENT}, the maximum in a JPEG",)
        segments.append(jpeg_segment(0xFE, comment[:_MAX_SEGMENT].decode("utf-8", "ignore").encode()))
    return b"".join(segments), notes


def png_text_chunk(keyword: str, text: str) -> bytes:
    """The content of an uncompressed iTXt chunk."""
    return png_chunk(b"iTXt", keyword.encode("latin-1", "replace")[:79] + b"\0\0\0\0\0" + text.encode())


def raw_profile_chunk(kind: str, content: bytes) -> bytes:
    """The content of a PNG's zTXt chunk in ImageMagick's format, which exiftool and others can read."""
    digits = content.hex()
    lines = "\n".join(digits[start : start + 72] for start in range(0, len(digits), 72))
    text = f"\n{kind}\n{len(content):8}\n{lines}\n"
    return f"{_RAW_KEYWORD}{kind}".encode() + b"\0\0" + zlib.compress(text.encode())
