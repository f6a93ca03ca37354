"""Open picture files with Pillow, and say in one line why one cannot be read."""

from __future__ import annotations

import contextlib
import io
import os
import re
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageFile, PngImagePlugin, UnidentifiedImageError

from omgsr_cli.errors import FileError, read_reason
from omgsr_cli.files.folders import format_of_start, has_reader
from omgsr_cli.imaging.extras import add_readers, missing_reader
from omgsr_cli.imaging.formats import FORMAT_OF_PILLOW
from omgsr_cli.imaging.read_tiff import TiffImage, is_tiff, open_tiff
from omgsr_cli.imaging.repair import MAX_PNG_TEXT, MAX_PNG_TEXTS, repaired

#: Larger pictures are refused by what their header says, before any memory is taken.
MAX_PIXELS = 1_000_000_000

#: A byte of deflate holds at most 1032 bytes, of JPEG some 500 pixels; fax codes of blank lines hold more, and are
#: of one bit. WebP and AVIF have no such bound, and are smaller than 300 megapixels.
_PIXELS_PER_BYTE = 8_300
_DENSE_FORMATS = frozenset({"WEBP", "AVIF", "GIF"})
_ALWAYS_PIXELS = 16_000_000

#: What Pillow raises on files that are broken in one way or another.
DECODE_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    struct.error,
    zlib.error,
    TypeError,
    KeyError,
    IndexError,
    EOFError,
    OverflowError,
    AttributeError,
    RuntimeError,
    MemoryError,
    AssertionError,
    ZeroDivisionError,
)

#: What decoders say where a file ends too early.
_SHORT_WORDS = ("truncated", "unrecognized data stream", "ended prematurely", "unexpected end", "end of file")

#: Errors whose text is about the file, unless it names what read it.
_PLAIN_ERRORS = (OSError, SyntaxError, ValueError, NotImplementedError)
_LIBRARY_WORDS = re.compile(r"lib\w|decoder|plugin|object|build|unpack|argument|0x[0-9a-f]|error", re.I)


#: Tags of where the strips or tiles of a TIFF begin, and how long they are.
_TIFF_PLACES = ((273, 279), (324, 325))


class _PillowLimits:
    """Pillow's own limits, off while any thread is in here.

    Of sizes it warns on stderr far below ours, and a long text or profile of a PNG would cost the whole image.
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
    """What a picture is called in messages."""
    return name or (str(source) if isinstance(source, Path) else "<bytes>")


@contextlib.contextmanager
def decoding(name: str) -> Iterator[None]:
    """Turn what Pillow raises on a broken file into a `FileError`; only Pillow's work belongs in the block.

    Args:
        name: what to call the file in messages.
    """
    try:
        # What Pillow warns of is either an error a moment later or of no consequence for the pixels.
        with warnings.catch_warnings(action="ignore"), pillow_limits:
            yield
    except DECODE_ERRORS as error:
        raise _decode_error(name, error) from error


@contextlib.contextmanager
def opened(
    source: Path | bytes, name: str, *, for_pixels: bool = False
) -> Iterator[tuple[ImageFile.ImageFile, BinaryIO, tuple[str, ...]]]:
    """Open an image without decoding it.

    Args:
        source: a file, or a whole file's bytes.
        name: what to call it in messages.
        for_pixels: whether the pixels will be decoded.
    Yields:
        The image, the seekable file that it reads from, and notes on what was left out because it is damaged.
    Raises:
        FileError: it is missing, empty, no picture, too large, truncated or otherwise broken.
    """
    with opened_file(source, name) as whole:
        with decoding(name):
            file, notes = repaired(whole, for_pixels)
            try:
                image = open_tiff(file) if is_tiff(file.read(4)) else _opened_by_pillow(file)
            except UnidentifiedImageError as error:
                raise _unidentified(file, name) from error
            check_size(name, image.size)
            _check_density(image, file, name)
            _check_length(image, file, name)
        yield image, file, notes


def _opened_by_pillow(file: BinaryIO) -> ImageFile.ImageFile:
    file.seek(0)
    return Image.open(file, formats=_openers())


def load_pixels(image: ImageFile.ImageFile, name: str) -> None:
    """Decode an opened image.

    Raises:
        FileError: it is truncated or broken.
    """
    with decoding(name):
        image.load()


def frame_count(image: ImageFile.ImageFile, name: str) -> int:
    """How many pictures a file holds.

    Raises:
        FileError: a frame's head is broken.
    """
    if isinstance(image, TiffImage):
        return image.full_pages
    with decoding(name):
        return int(getattr(image, "n_frames", 1))


def check_size(name: str, size: tuple[int, int]) -> None:
    """Refuse a picture whose header asks for too many pixels.

    Args:
        name: what to call it.
        size: width and height.
    Raises:
        FileError: there are more than `MAX_PIXELS`, or none.
    """
    width, height = size
    if width * height > MAX_PIXELS:
        raise FileError(
            f"{name}: its header asks for {width}x{height} pixels, more than {MAX_PIXELS // 10**6} megapixels",
            "if it is really that large, cut it into parts first",
        )
    if width * height <= 0:
        raise FileError(f"{name}: its header says {width}x{height} pixels")


def _check_density(image: ImageFile.ImageFile, file: BinaryIO, name: str) -> None:
    """Refuse gigapixels from a kilobyte before memory is taken for them: no codec packs pixels that densely."""
    pixels = image.width * image.height
    if pixels <= _ALWAYS_PIXELS or image.format in _DENSE_FORMATS:
        return
    position, size = file.tell(), file.seek(0, os.SEEK_END)
    file.seek(position)
    if pixels > size * (_PIXELS_PER_BYTE if image.mode != "1" else _PIXELS_PER_BYTE * 16):
        raise FileError(
            f"{name}: its header asks for {image.width}x{image.height} pixels, more than {size} bytes can hold",
            "copy or download it again",
        )


def _check_length(image: ImageFile.ImageFile, file: BinaryIO, name: str) -> None:
    """Refuse a TIFF whose pixels lie beyond the file's end: libtiff would also say so on stderr."""
    if not isinstance(image, TiffImage):
        return
    # Strips that cover less than the header asks for would leave the rest black, gigapixels of it from one kilobyte.
    corners = [tile.extents[2:] for tile in image.tile if tile.extents is not None]
    if corners and max(right for right, _ in corners) * max(low for _, low in corners) < image.width * image.height:
        raise FileError(f"{name}: the file is truncated", "copy or download it again")
    position, end = file.tell(), file.seek(0, os.SEEK_END)
    file.seek(position)
    for offsets, lengths in _TIFF_PLACES:
        places = zip(image.tag_v2.get(offsets, ()), image.tag_v2.get(lengths, ()), strict=False)
        if any(offset + length > end for offset, length in places):
            raise FileError(f"{name}: the file is truncated", "copy or download it again")


def _decode_error(name: str, error: BaseException) -> FileError:
    """Say in one line what Pillow met in a file."""
    if isinstance(error, MemoryError):
        return FileError(f"{name}: there is not enough memory to read it")
    reason = " ".join(str(error).split()) or type(error).__name__
    if any(word in reason.lower() for word in _SHORT_WORDS):
        return FileError(f"{name}: the file is truncated", "copy or download it again")
    if reason.startswith(("decoder error", "broken data stream")):
        return FileError(f"{name}: its pixels are damaged", "copy or download it again")
    if isinstance(error, _PLAIN_ERRORS) and not _LIBRARY_WORDS.search(reason):
        return FileError(f"{name}: cannot be read: {reason[:200]}")
    # What a library says of itself helps nobody with a file; OMGSR_DEBUG=1 shows it.
    return FileError(f"{name}: the file is damaged or truncated", "copy or download it again")


def _openers() -> tuple[str, ...]:
    """Pillow's names of the formats that it may open a file as."""
    add_readers()
    # Pillow opens an MPO as a JPEG, and then calls it MPO.
    lazy = {"HEIF": has_reader("heic"), "JXL": has_reader("jxl"), "MPO": False}
    return tuple(name for name in FORMAT_OF_PILLOW if lazy.get(name, True))


def opened_file(source: Path | bytes, name: str) -> BinaryIO:
    """Open a file, or bytes as one, and refuse one that is empty.

    Raises:
        FileError: it is missing, cannot be read or has no bytes.
    """
    if isinstance(source, bytes):
        file: BinaryIO = io.BytesIO(source)
    else:
        try:
            file = open(source, "rb")  # noqa: SIM115 -- closed by the caller
        except OSError as error:
            raise FileError(f"{name}: {read_reason(error)}") from error
    try:
        start = file.read(1)
    except OSError as error:
        file.close()
        raise FileError(f"{name}: cannot be read: {read_reason(error)}") from error
    if not start:
        file.close()
        raise FileError(f"{name}: the file is empty (0 bytes)")
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
    return FileError(f"{name}: not a picture that can be read", f"formats: {names}")
