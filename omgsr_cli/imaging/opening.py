"""Open image files with Pillow: repair damage outside the pixels, and refuse unreadable files in one line."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import io
import re
import struct
import threading
import warnings
import zlib
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageFile, PngImagePlugin, UnidentifiedImageError

from omgsr_cli.errors import FileError, read_reason
from omgsr_cli.files.containers import PNG_START, START_OF_SCAN, jpeg_segments, png_chunks
from omgsr_cli.files.folders import EXTRA_OF_FORMAT, format_of_start, has_reader, install_hint
from omgsr_cli.imaging.tiff import TiffImage, is_tiff, libtiff_errors, open_tiff

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

#: Images with more pixels in their header are refused before any memory is used.
MAX_PIXELS = 1_000_000_000

#: A byte of deflate decodes to at most 1032 bytes, and one of JPEG to about 500 pixels; fax codes of blank lines decode
#: to more, but have one bit per pixel. WebP and AVIF have no such bound, but are smaller than 300 megapixels.
_PIXELS_PER_BYTE = 8_300
_DENSE_FORMATS = frozenset({"WEBP", "AVIF", "GIF"})
_ALWAYS_PIXELS = 16_000_000

#: Largest inflated size of a text or profile of a PNG, and of all texts together.
MAX_PNG_TEXT, MAX_PNG_TEXTS = 64 << 20, 256 << 20

_COPY_AGAIN = "copy or download it again"

_JPEG_START, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"

#: Markers of JPEG frames (ITU T.81, table B.1): those in Huffman codes, and those in arithmetic codes or lossless.
_PROGRESSIVE, _HUFFMAN_FRAMES = 0xC2, (0xC0, 0xC1, 0xC2)
_OTHER_FRAMES, _RESTART_INTERVAL = (0xC3, *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)), 0xDD

#: Bytes to append to a scan that may end too early: they decode to pixels wherever some are missing.
_CONTINUATIONS = (bytes(600), b"\xff\0" * 300, b"\xa9\x3c\x75" * 200)

#: Chunks other than pixels with a fixed length (PNG third edition, 11.3).
_LENGTHS = {b"pHYs": 9, b"gAMA": 4, b"cHRM": 32, b"sRGB": 1, b"tIME": 7, b"cICP": 4}

_NO_END = "the end marker is missing, but all pixels are present"

#: Ancillary chunks by name, which nevertheless change the pixels.
_FOR_PIXELS = frozenset({b"tRNS", b"acTL", b"fcTL", b"fdAT"})

#: Exceptions that Pillow raises for corrupt files.
DECODE_ERRORS = (
    *(OSError, EOFError, ValueError, SyntaxError, struct.error, zlib.error, TypeError, AttributeError, LookupError),
    *(ArithmeticError, RuntimeError, AssertionError, MemoryError),
)

#: Words in decoders' messages about truncated files.
_SHORT_WORDS = ("truncated", "unrecognized data stream", "ended prematurely", "unexpected end", "end of file")

#: Exceptions whose text describes the file, unless it names a library.
_PLAIN_ERRORS = (OSError, SyntaxError, ValueError, NotImplementedError)
_LIBRARY_WORDS = re.compile(r"lib\w|decoder|plugin|object|build|unpack|argument|0x[0-9a-f]|error", re.I)

#: Tags with the offsets and lengths of a TIFF's strips or tiles.
_TIFF_PLACES = ((273, 279), (324, 325))


class _PillowLimits:
    """Switches Pillow's own limits off while any thread is inside.

    Pillow warns on stderr about sizes far below our limit, and refuses an image because of one long PNG text or
    profile.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before: tuple[int | None, int, int] = (None, 0, 0)

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                self._before = _swap_limits(None, MAX_PNG_TEXT + 1, 2 * MAX_PNG_TEXTS)
            self._inside += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                _swap_limits(*self._before)


def _swap_limits(pixels: int | None, text: int, texts: int) -> tuple[int | None, int, int]:
    before = Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    Image.MAX_IMAGE_PIXELS, PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY = pixels, text, texts
    return before


pillow_limits = _PillowLimits()


def source_name(source: Path | bytes, name: str | None) -> str:
    """The name of an image in messages."""
    return name or (str(source) if isinstance(source, Path) else "<bytes>")


@contextlib.contextmanager
def decoding(name: str) -> Iterator[None]:
    """Turn Pillow's exceptions for corrupt files into a `FileError`; use it around calls of Pillow only."""
    try:
        # Pillow's warnings either precede an error or do not concern the pixels.
        with warnings.catch_warnings(action="ignore"), pillow_limits:
            yield
    except DECODE_ERRORS as error:
        raise _decode_error(name, error) from error


@contextlib.contextmanager
def opened(
    source: Path | bytes, name: str, *, for_pixels: bool = False
) -> Iterator[tuple[ImageFile.ImageFile, BinaryIO, tuple[str, ...]]]:
    """Open an image without decoding it.

    Yields:
        The image, the seekable file that it reads from, and notes about damaged parts that were dropped.
    Raises:
        FileError: the file is missing, empty, not an image, too large, truncated or otherwise corrupt; also for errors
            of Pillow inside of the context.
    """
    with opened_file(source, name) as whole, decoding(name):
        file, notes = repaired(whole, for_pixels)
        try:
            image = open_tiff(file) if is_tiff(file.read(4)) else _opened_by_pillow(file)
        except UnidentifiedImageError as error:
            raise _unidentified(file, name) from error
        check_size(name, image.size)
        _check_density(image, file, name)
        _check_length(image, file, name)
        if isinstance(image, PngImagePlugin.PngImageFile) and image.mode == "P" and image.palette is None:
            raise FileError(f"{name}: the palette of the PNG is missing", _COPY_AGAIN)
        yield image, file, notes


def _opened_by_pillow(file: BinaryIO) -> ImageFile.ImageFile:
    file.seek(0)
    add_readers()
    # Pillow opens an MPO as a JPEG, and then calls it MPO.
    lazy = {"HEIF": has_reader("heic"), "JXL": has_reader("jxl"), "MPO": False}
    return Image.open(file, formats=tuple(name for name in FORMAT_OF_PILLOW if lazy.get(name, True)))


def load_pixels(image: ImageFile.ImageFile) -> None:
    """Decode an opened image.

    Raises:
        One of DECODE_ERRORS: it is truncated or damaged.
    """
    before = libtiff_errors.count
    image.load()
    if libtiff_errors.count > before:
        raise OSError("broken data stream: reported by libtiff")


def check_size(name: str, size: tuple[int, int]) -> None:
    """Refuse an image with more than `MAX_PIXELS` pixels in its header, or none; sizes are width and height."""
    width, height = size
    if width * height > MAX_PIXELS:
        raise FileError(
            f"{name}: its header gives {width}x{height} pixels, more than {MAX_PIXELS // 10**6} megapixels",
            "if it is really that large, cut it into parts first",
        )
    if width * height <= 0:
        raise FileError(f"{name}: its header gives {width}x{height} pixels")


def _check_density(image: ImageFile.ImageFile, file: BinaryIO, name: str) -> None:
    """Refuse headers with gigapixels in a file of a kilobyte, before memory is allocated: no codec is that dense."""
    pixels = image.width * image.height
    if pixels <= _ALWAYS_PIXELS or image.format in _DENSE_FORMATS:
        return
    size = bytes_of(file)
    if pixels > size * (_PIXELS_PER_BYTE if image.mode != "1" else _PIXELS_PER_BYTE * 16):
        what = f"{image.width}x{image.height} pixels, more than {size} bytes can hold"
        raise FileError(f"{name}: its header gives {what}", _COPY_AGAIN)


def _check_length(image: ImageFile.ImageFile, file: BinaryIO, name: str) -> None:
    """Refuse a TIFF whose pixels are beyond the end of the file; libtiff would print a message on stderr too."""
    if not isinstance(image, TiffImage):
        return
    # If strips cover less than the size in the header, the rest would be black: gigapixels from one kilobyte.
    corners = [tile.extents[2:] for tile in image.tile if tile.extents is not None]
    if corners and max(right for right, _ in corners) * max(low for _, low in corners) < image.width * image.height:
        raise FileError(f"{name}: the file is truncated", _COPY_AGAIN)
    end = bytes_of(file)
    for offsets, lengths in _TIFF_PLACES:
        places = zip(image.tag_v2.get(offsets, ()), image.tag_v2.get(lengths, ()), strict=False)
        if any(offset + length > end for offset, length in places):
            raise FileError(f"{name}: the file is truncated", _COPY_AGAIN)


def bytes_of(file: BinaryIO) -> int:
    """The size of a file, whose position does not change."""
    position, size = file.tell(), file.seek(0, io.SEEK_END)
    file.seek(position)
    return size


def _decode_error(name: str, error: BaseException) -> FileError:
    """The error for an exception of Pillow, in one line."""
    if isinstance(error, MemoryError):
        return FileError(f"{name}: not enough memory to read it")
    reason = " ".join(str(error).split()) or type(error).__name__
    if any(word in reason.lower() for word in _SHORT_WORDS):
        return FileError(f"{name}: the file is truncated", _COPY_AGAIN)
    if reason.startswith(("decoder error", "broken data stream")):
        return FileError(f"{name}: its pixels are damaged", _COPY_AGAIN)
    if isinstance(error, _PLAIN_ERRORS) and not _LIBRARY_WORDS.search(reason):
        return FileError(f"{name}: cannot be read: {reason[:200]}")
    # A library's internal message does not help the user; OMGSR_DEBUG=1 shows it.
    return FileError(f"{name}: the file is damaged or truncated", _COPY_AGAIN)


@cache
def add_readers() -> None:
    """Register the readers of HEIC and JPEG XL with Pillow, if they are installed."""
    if has_reader("heic"):
        importlib.import_module("pillow_heif").register_heif_opener(thumbnails=False)
    if has_reader("jxl"):
        importlib.import_module("pillow_jxl")


def missing_reader(kind: str, name: str) -> FileError:
    """The error for a file that needs a reader which is not installed."""
    what = {"heic": "HEIC images", "jxl": "JPEG XL images", "raw": "a camera's raw files"}[kind]
    module = EXTRA_OF_FORMAT[kind][1].replace("_", "-")
    return FileError(f"{name}: {what} need {module}, which is not installed", install_hint([kind]))


def opened_file(source: Path | bytes, name: str) -> BinaryIO:
    """Open a path, or bytes as a file.

    Raises:
        FileError: the file is missing, unreadable or empty.
    """
    try:
        file = io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")  # noqa: SIM115 -- by the caller
    except OSError as error:
        raise FileError(f"{name}: {read_reason(error)}") from error
    try:
        start = file.read(1)
    except OSError as error:
        file.close()
        raise FileError(f"{name}: cannot be read: {read_reason(error)}") from error
    if not start:
        file.close()
        raise FileError(f"{name}: the file is empty (0 bytes)", _COPY_AGAIN)
    file.seek(0)
    return file


def _unidentified(file: BinaryIO, name: str) -> FileError:
    file.seek(0)
    kind = format_of_start(file.read(32))
    if kind in ("heic", "jxl") and not has_reader(kind):
        return missing_reader(kind, name)
    if kind:
        what = {"jpg": "JPEG", "webp": "WebP", "jxl": "JPEG XL", "jp2": "JPEG 2000"}.get(kind, kind.upper())
        return FileError(f"{name}: the {what} file is truncated, damaged, or of a kind that cannot be read")
    names = ", ".join(sorted(set(FORMAT_OF_PILLOW.values())))
    return FileError(f"{name}: not an image that can be read", f"formats: {names}")


# --- damage beside the pixels -------------------------------------------------------------------------------------


def repaired(file: BinaryIO, for_pixels: bool) -> tuple[BinaryIO, tuple[str, ...]]:
    """Drop damaged parts of a PNG other than its pixels, and add a missing end marker to a JPEG.

    A JPEG gets the marker only if no pixel depends on missing data, and is only examined if pixels will be decoded.

    Returns:
        The file itself, or a copy in memory without the damaged parts; and notes about them.
    Raises:
        OSError: the checksum of a PNG's pixels is wrong.
    """
    file.seek(0)
    start = file.read(8)
    file.seek(0)
    if start == PNG_START:
        return _repaired_png(file, for_pixels)
    if for_pixels and start.startswith(_JPEG_START):
        data = file.read()
        file.seek(0)
        if _lacks_only_its_end(data):
            return io.BytesIO(data.removesuffix(b"\xff") + _JPEG_END), (_NO_END,)
    return file, ()


def _repaired_png(file: BinaryIO, for_pixels: bool) -> tuple[BinaryIO, tuple[str, ...]]:
    kept: list[tuple[int, int]] = [(0, 8)]
    dropped: Counter[str] = Counter()
    texts, kind = 0, b""
    end = file.seek(0, io.SEEK_END)
    for kind, start, length in png_chunks(file):
        behind = start + length + 4
        is_beside = bool(kind[0] & 0x20) and kind not in _FOR_PIXELS
        # Pillow does not compare the checksums of pixels, so a flipped bit would change them without an error.
        # A chunk that reaches beyond the end of the file is left to the decoder.
        if behind <= end and (is_beside or (for_pixels and kind == b"IDAT")):
            content, checksum = file.read(length), int.from_bytes(file.read(4), "big")
            is_right = checksum == zlib.crc32(content, zlib.crc32(kind))
            if not is_beside and not is_right:
                raise OSError("broken data stream: wrong checksum")
            inflated = _inflated_bytes(kind, content) if is_beside else 0
            if kind in (b"tEXt", b"zTXt", b"iTXt"):
                texts += inflated or 0
            is_long = texts > MAX_PNG_TEXTS and kind in (b"tEXt", b"zTXt", b"iTXt")
            if not is_right or inflated is None or length != _LENGTHS.get(kind, length) or is_long:
                dropped["ICC profile" if kind == b"iCCP" else f"{kind.decode('latin-1')} chunk"] += 1
                continue
        kept.append((start - 8, min(behind, end)))
        if kind == b"IEND":
            break
    notes = tuple(
        f"{count} {what}s were dropped: damaged or too long"
        if count > 1
        else f"the {what} was dropped: it is damaged or too long"
        for what, count in dropped.items()
    )
    if kind != b"IEND":
        notes += (_NO_END,)
    file.seek(0)
    if not dropped:
        return file, notes
    parts = []
    for first, last in kept:
        file.seek(first)
        parts.append(file.read(last - first))
    return io.BytesIO(b"".join(parts)), notes


def _inflated_bytes(kind: bytes, content: bytes) -> int | None:
    """The inflated length of a text or profile; None if it is damaged or longer than `MAX_PNG_TEXT`."""
    packed: bytes | None = None
    if kind in (b"zTXt", b"iCCP"):
        _, mark, rest = content.partition(b"\0")
        packed = rest[1:] if mark else b""
    elif kind == b"iTXt":
        _, _, rest = content.partition(b"\0")
        if rest[:1] == b"\1":
            packed = [*rest[2:].split(b"\0", 2), b"", b""][2]
    if packed is None:
        return len(content) if len(content) <= MAX_PNG_TEXT else None
    try:
        unpacker = zlib.decompressobj()
        length = len(unpacker.decompress(packed, MAX_PNG_TEXT))
    except zlib.error:
        return None
    return length if unpacker.eof else None


def _lacks_only_its_end(data: bytes) -> bool:
    """Whether a JPEG without an end marker has all of its pixels.

    Its scans must contain every bit of every coefficient. The last scan is complete if the pixels do not depend on the
    bytes that follow it.
    """
    try:
        if not _lacks_its_end(data):
            return False
        has_restarts = any(kind[0] == _RESTART_INTERVAL for kind, _, _ in jpeg_segments(io.BytesIO(data)))
        # A decoder may wait for the next of eight restart markers, so try those too.
        restarts = [b"\xff" + bytes([0xD0 + number]) + _CONTINUATIONS[-1] for number in range(8)]
        pixels = set()
        for continuation in [*_CONTINUATIONS, *(restarts if has_restarts else [])]:
            with Image.open(io.BytesIO(data.removesuffix(b"\xff") + continuation + _JPEG_END)) as image:
                pixels.add(hashlib.sha256(image.tobytes()).digest())
            if len(pixels) > 1:
                return False
    except DECODE_ERRORS:
        return False
    return True


def _lacks_its_end(data: bytes) -> bool:
    """Whether a JPEG has no end marker, although the headers of its scans cover every bit of every coefficient."""
    # For each component's coefficients, how many of the lowest bits are still missing.
    missing: dict[int, list[int]] = {}
    is_progressive = has_scan = False
    for kind, start, length in jpeg_segments(io.BytesIO(data)):
        segment = data[start : start + length]
        if kind[0] in _HUFFMAN_FRAMES:
            is_progressive = kind[0] == _PROGRESSIVE
            missing = {segment[6 + 3 * index]: [16] * 64 for index in range(segment[5])}
        elif kind[0] in _OTHER_FRAMES:
            return False
        elif kind[0] == START_OF_SCAN:
            # For most files the examination ends here.
            if not has_scan and data.find(_JPEG_END, start) >= 0:
                return False
            has_scan, count = True, segment[0]
            first, last, bits = segment[1 + 2 * count : 4 + 2 * count]
            for component in segment[1 : 1 + 2 * count : 2]:
                for coefficient in range(first, last + 1) if is_progressive else range(64):
                    missing[component][coefficient] = bits & 15 if is_progressive else 0
    return has_scan and not any(any(bits) for bits in missing.values())
