"""Decode what Pillow cannot: more than 8 bits per channel, 10-bit HEIC, and camera raw files.

AVIF, JPEG XL and JPEG 2000 with more than 8 bits are decoded by imagecodecs, if it is installed.

PNG and TIFF: when Pillow's decoders unpack 16-bit samples, they keep the upper byte only. With the opposite byte order
they keep the lower one. So the file is decoded twice, once for each byte. This works at Pillow's speed with every
filter, interlacing and compression that Pillow supports.
"""

from __future__ import annotations

import contextlib
import importlib
import struct
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, PngImagePlugin, TiffImagePlugin

from omgsr_cli.errors import FileError
from omgsr_cli.files.folders import RAW_SUFFIXES, av1_depth, has_reader
from omgsr_cli.imaging.image import spread, unpremultiplied
from omgsr_cli.imaging.opening import load_pixels, missing_reader

_OTHER_ORDER = {"B": "L", "L": "B"}
_NATIVE = "L" if sys.byteorder == "little" else "B"
_BITS_TAG, _PLANAR_TAG, _EXTRA_SAMPLES_TAG = 258, 284, 338
_PREMULTIPLIED = 1


def is_deep(image: ImageFile.ImageFile) -> bool:
    """Whether `read_deep` can read 16 bits per channel from a file that was opened as 8-bit colour.

    It cannot read CMYK, nor TIFFs that are both compressed and split into planes.
    """
    if not image.tile or image.mode not in ("RGB", "RGBA"):
        return False
    if isinstance(image, PngImagePlugin.PngImageFile):
        return _rawmode(image.tile[0]).endswith(";16B")
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        is_split = image.tag_v2.get(_PLANAR_TAG, 1) == 2 and image.tile[0].codec_name == "libtiff"
        return 16 in image.tag_v2.get(_BITS_TAG, ()) and not is_split
    return False


def read_deep(image: ImageFile.ImageFile, file: BinaryIO) -> NDArray[np.uint16]:
    """Decode a file that `is_deep`.

    Args:
        image: opened but not loaded; it is loaded afterwards.
        file: the file that the image was opened from.
    Returns:
        (H, W, C) uint16: C is 2 for grey with alpha, 3 for RGB, 4 for RGBA. Premultiplied colours are divided by alpha.
    """
    rawmode = _rawmode(image.tile[0])
    if rawmode == "LA;16B":
        # The four bytes per pixel are both bytes of both channels.
        image.tile = [image.tile[0]._replace(args="RGBA")]
        load_pixels(image)
        return np.ascontiguousarray(np.asarray(image)).view(">u2").astype(np.uint16)
    # For separate planes of a TIFF, Pillow names each plane by its letter and omits the 16 bits.
    order, premultiplied = "B", False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        order = "L" if image.tag_v2.prefix == b"II" else "B"
        premultiplied = image.tag_v2.get(_EXTRA_SAMPLES_TAG, ())[:1] == (_PREMULTIPLIED,)
    file.seek(0)
    with Image.open(file, formats=[image.format or ""]) as lower:
        lower.tile = [_tile_of_byte(tile, order, lower=True) for tile in lower.tile]
        # Copy, because closing the image frees its pixels.
        load_pixels(lower)
        low = np.array(lower, dtype=np.uint16)
    image.tile = [_tile_of_byte(tile, order, lower=False) for tile in image.tile]
    load_pixels(image)
    samples = np.asarray(image).astype(np.uint16)
    samples <<= 8
    samples |= low
    if premultiplied:
        samples[..., :3] = unpremultiplied(samples[..., :3], samples[..., 3:])
    return samples


def _rawmode(tile: Any) -> str:
    return str(tile.args if isinstance(tile.args, str) else tile.args[0])


def _tile_of_byte(tile: Any, file_order: str, lower: bool) -> Any:
    """The tile with a raw mode that reads the upper or the lower byte of every sample."""
    layout, _, order_mark = _rawmode(tile).partition(";16")
    order = _NATIVE if order_mark == "N" else order_mark or file_order
    # Pillow would divide RGBa by alpha in 8 bits, so read it as RGBA and divide afterwards.
    wanted = f"{layout.upper()};16{_OTHER_ORDER[order] if lower else order}"
    return tile._replace(args=wanted if isinstance(tile.args, str) else (wanted, *tile.args[1:]))


#: The function of imagecodecs that decodes a format.
_DECODERS = {"AVIF": "avif_decode", "JXL": "jpegxl_decode", "JPEG2000": "jpeg2k_decode"}

#: The header is searched in this many bytes; a profile may come first.
_HEADER_BYTES = 8 << 20

#: Allowed mean difference between two decoders, of 255: their colour conversions differ.
_MOST_APART, _COMPARED_PX = 1.5, 1_000_000


def coded_depth(image: ImageFile.ImageFile, file: BinaryIO) -> int:
    """Bits per channel in the header of an AVIF, HEIC, JPEG XL, JPEG 2000 or PPM file; 8 for all others.

    JPEG XL in floats counts as 32.
    """
    if image.format == "HEIF":
        return int(image.info.get("bit_depth", 8))
    if image.format == "PPM":
        arguments = image.tile[0].args if image.tile else ()
        return int(arguments[-1]).bit_length() if isinstance(arguments, tuple) and arguments[-1] else 8
    if image.format not in _DECODERS:
        return 8
    position = file.tell()
    file.seek(0)
    header = file.read(_HEADER_BYTES)
    file.seek(position)
    try:
        return {"AVIF": av1_depth, "JXL": _depth_of_jxl, "JPEG2000": _depth_of_jp2}[image.format](header)
    except (IndexError, struct.error):
        return 8


def keeps_depth(image: ImageFile.ImageFile, depth: int) -> bool:
    """Whether `read_coded` can read more than 8 bits from a file with this depth in its header."""
    if image.format == "PPM":
        return depth > 8 and image.mode == "RGB" and image.tile[0].codec_name == "ppm"
    return depth > 8 and (image.format == "HEIF" or (image.format in _DECODERS and has_reader("codecs")))


def read_coded(image: ImageFile.ImageFile, file: BinaryIO, depth: int) -> NDArray[Any] | None:
    """Decode a file at its own depth.

    Args:
        image: opened; AVIF, JPEG XL and JPEG 2000 are loaded afterwards, for a comparison.
        file: the file that the image was opened from.
        depth: from `coded_depth`.
    Returns:
        (H, W, C) uint16 over the whole range, or float32 if the file has floats; upright if it is HEIC. None if the
        result differs too much from Pillow's.
    """
    if image.format == "HEIF":
        return _read_heif(file, depth)
    if image.format == "PPM":
        return _read_ppm(image, file)
    load_pixels(image)
    shallow = np.asarray(image)
    file.seek(0)
    decode = getattr(importlib.import_module("imagecodecs"), _DECODERS[image.format or ""])
    samples: NDArray[Any] = decode(file.read())
    samples, shallow = np.atleast_3d(samples), np.atleast_3d(shallow)
    if shallow.shape != samples.shape or samples.dtype.kind not in "uf":
        return None
    if samples.dtype.kind == "u":
        samples = spread(samples, (1 << depth) - 1)
    # Compare a part of the pixels only, which saves memory.
    step = max(int((shallow.shape[0] * shallow.shape[1] / _COMPARED_PX) ** 0.5), 1)
    ours, theirs = samples[::step, ::step].astype(np.float32), shallow[::step, ::step].astype(np.float32)
    ours /= 1 if samples.dtype.kind == "f" else 65535
    apart = np.abs(ours.clip(0, 1) - theirs / np.iinfo(shallow.dtype).max).mean()
    return samples if apart * 255 <= _MOST_APART else None


def _read_heif(file: BinaryIO, depth: int) -> NDArray[np.uint16]:
    """Read 10 or 12 bits, upright."""
    file.seek(0)
    image = importlib.import_module("pillow_heif").open_heif(file, convert_hdr_to_8bit=False)
    samples: NDArray[np.uint16] = np.asarray(image)
    # The library shifts levels to the upper bits, which leaves white slightly below the maximum.
    return np.atleast_3d(spread(samples >> (16 - depth), (1 << depth) - 1))


def _read_ppm(image: ImageFile.ImageFile, file: BinaryIO) -> NDArray[np.uint16]:
    """Read binary RGB with two big-endian bytes per sample (netpbm's `ppm`)."""
    count = image.width * image.height * 3
    file.seek(image.tile[0].offset)
    content = file.read(2 * count)
    if len(content) < 2 * count:
        raise OSError("image file is truncated")
    arguments: Any = image.tile[0].args
    return spread(np.frombuffer(content, ">u2").reshape(image.height, image.width, 3), int(arguments[-1]))


def _depth_of_jp2(header: bytes) -> int:
    """The depth of the deepest component in the codestream's SIZ segment (ITU T.800, A.5.1)."""
    place = header.find(b"\xff\x4f\xff\x51")
    if place < 0:
        return 8
    count = struct.unpack_from(">H", header, place + 40)[0]
    return max((header[place + 42 + 3 * index] & 0x7F) + 1 for index in range(count))


class _Bits:
    """Reads the bits of a JPEG XL header, the lowest bit of each byte first."""

    def __init__(self, content: bytes) -> None:
        self._number, self._position, self._end = int.from_bytes(content, "little"), 0, 8 * len(content)

    def take(self, count: int) -> int:
        if self._position + count > self._end:
            raise IndexError
        value = self._number >> self._position & ((1 << count) - 1)
        self._position += count
        return value

    def choose(self, *choices: tuple[int, int]) -> int:
        """Read a number: two bits choose a pair of an offset and the number of bits to add to it."""
        base, count = choices[self.take(2)]
        return base + self.take(count)


def _depth_of_jxl(header: bytes) -> int:
    """The depth in the codestream's ImageMetadata (ISO/IEC 18181-1, annex D)."""
    place = 0
    if not header.startswith(b"\xff\x0a"):
        # The codestream is in boxes, in one piece or in parts.
        whole, part = header.find(b"jxlc"), header.find(b"jxlp")
        place = whole + 4 if whole >= 0 else part + 8
        if max(whole, part) < 0:
            return 8
    bits = _Bits(header[place + 2 : place + 130])
    _skip_size(bits)
    if bits.take(1):
        return 8
    if bits.take(1):
        bits.take(3)
        if bits.take(1):
            _skip_size(bits)
        if bits.take(1):
            # No encoder writes a preview.
            return 8
        if bits.take(1):
            bits.choose((100, 0), (1000, 0), (1, 10), (1, 30))
            bits.choose((1, 0), (1001, 0), (1, 8), (1, 10))
            bits.choose((0, 0), (0, 3), (0, 16), (0, 32))
            bits.take(1)
    return 32 if bits.take(1) else bits.choose((8, 0), (10, 0), (12, 0), (1, 6))


def _skip_size(bits: _Bits) -> None:
    is_small = bits.take(1)
    for is_width in (False, True):
        if is_width and bits.take(3):
            return
        if is_small:
            bits.take(5)
        else:
            bits.choose((1, 9), (1, 13), (1, 18), (1, 30))


# --- raw files ----------------------------------------------------------------------------------------------------

# sRGB's curve in LibRaw's form: the inverse of its power, and the slope near black.
_SRGB_GAMMA = (2.4, 12.92)
_TURNED = (5, 6)


def is_raw(source: Path | bytes) -> bool:
    """Whether a file is a camera raw file, by its name: most begin as TIFF and would be read as their thumbnail."""
    return isinstance(source, Path) and source.suffix.lower() in RAW_SUFFIXES


def raw_size(file: BinaryIO, name: str) -> tuple[int, int]:
    """Height and width of a raw file after development, upright.

    Raises:
        FileError: it is corrupt, its camera is unknown, or rawpy is not installed.
    """
    with _opened_raw(file, name) as raw:
        sizes = raw.sizes
    height, width = sizes.height, sizes.width
    return (width, height) if sizes.flip in _TURNED else (height, width)


def develop_raw(file: BinaryIO, name: str) -> NDArray[np.uint16]:
    """Develop a raw file with the camera's white balance, in sRGB, upright.

    Returns:
        (H, W, 3) uint16.
    Raises:
        FileError: as for `raw_size`.
    """
    with _opened_raw(file, name) as raw:
        developed: NDArray[np.uint16] = raw.postprocess(use_camera_wb=True, output_bps=16, gamma=_SRGB_GAMMA)
    return developed


@contextlib.contextmanager
def _opened_raw(file: BinaryIO, name: str) -> Iterator[Any]:
    if not has_reader("raw"):
        raise missing_reader("raw", name)
    rawpy = importlib.import_module("rawpy")
    try:
        with rawpy.imread(file) as raw, warnings.catch_warnings(action="ignore"):
            yield raw
    except rawpy.LibRawError as error:
        reason = error.args[0].decode() if error.args and isinstance(error.args[0], bytes) else str(error)
        hint = "develop it to TIFF in another program first"
        raise FileError(f"{name}: the raw file cannot be read: {reason}", hint) from error
