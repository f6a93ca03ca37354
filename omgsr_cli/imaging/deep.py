"""16-bit colour from PNG and TIFF, which Pillow itself only gives as 8 bits.

Pillow's decoders unpack 16-bit samples by taking one byte of the two, the upper. Told that the byte order is the
other one, they take the lower. So the file is decoded twice, once for each byte: every filter, interlace and
compression that Pillow knows works, at its speed.
"""

from __future__ import annotations

import sys
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, PngImagePlugin, TiffImagePlugin

from omgsr_cli.imaging.source import decoding, load_pixels

_OTHER_ORDER = {"B": "L", "L": "B"}
_NATIVE = "L" if sys.byteorder == "little" else "B"
_BITS_TAG, _PLANAR_TAG, _EXTRA_SAMPLES_TAG = 258, 284, 338
_PREMULTIPLIED = 1


def is_deep(image: ImageFile.ImageFile) -> bool:
    """Whether a file opened as 8-bit colour holds 16 bits per channel."""
    if not image.tile or image.mode not in ("RGB", "RGBA", "CMYK"):
        return False
    if isinstance(image, PngImagePlugin.PngImageFile):
        return _rawmode(image.tile[0]).endswith(";16B")
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        return 16 in image.tag_v2.get(_BITS_TAG, ())
    return False


def can_read_deep(image: ImageFile.ImageFile) -> bool:
    """Whether `read_deep` can; not CMYK, nor TIFFs that are both compressed and split into planes."""
    planar = isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(_PLANAR_TAG, 1) == 2
    return image.mode != "CMYK" and not (planar and image.tile[0].codec_name == "libtiff")


def read_deep(image: ImageFile.ImageFile, file: BinaryIO, name: str) -> NDArray[np.uint16]:
    """Decode a file that `is_deep`.

    Args:
        image: opened, not yet loaded; loaded afterwards.
        file: that it was opened from.
        name: what to call it in messages.
    Returns:
        (H, W, C) uint16: C is 2 for grey with alpha, 3 for RGB, 4 for RGBA. Premultiplied colour is divided.
    Raises:
        FileError: it is truncated or broken.
    """
    rawmode = _rawmode(image.tile[0])
    if rawmode == "LA;16B":
        # Four bytes a pixel: taken as they are, they are both bytes of both channels.
        image.tile = [image.tile[0]._replace(args="RGBA")]
        load_pixels(image, name)
        return np.ascontiguousarray(np.asarray(image)).view(">u2").astype(np.uint16)
    # Where a TIFF's planes lie apart, Pillow names each by its letter and forgets the 16 bits.
    order, premultiplied = "B", False
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        order = "L" if image.tag_v2.prefix == b"II" else "B"
        premultiplied = image.tag_v2.get(_EXTRA_SAMPLES_TAG, ())[:1] == (_PREMULTIPLIED,)
    file.seek(0)
    with decoding(name):
        lower = Image.open(file, formats=[image.format or ""])
    with lower:
        lower.tile = [_tile_of_byte(tile, order, lower=True) for tile in lower.tile]
        # A copy: closing the image frees its pixels.
        load_pixels(lower, name)
        low = np.array(lower, dtype=np.uint16)
    image.tile = [_tile_of_byte(tile, order, lower=False) for tile in image.tile]
    load_pixels(image, name)
    samples = np.asarray(image).astype(np.uint16)
    samples <<= 8
    samples |= low
    return _divided(samples) if premultiplied else samples


def _rawmode(tile: Any) -> str:
    return str(tile.args if isinstance(tile.args, str) else tile.args[0])


def _tile_of_byte(tile: Any, file_order: str, lower: bool) -> Any:
    """The tile with the raw mode that takes the upper or the lower byte of every sample."""
    layout, _, told = _rawmode(tile).partition(";16")
    order = _NATIVE if told == "N" else told or file_order
    # RGBa would be divided by alpha in 8 bits: it is taken as RGBA and divided afterwards.
    wanted = f"{layout.upper()};16{_OTHER_ORDER[order] if lower else order}"
    return tile._replace(args=wanted if isinstance(tile.args, str) else (wanted, *tile.args[1:]))


def _divided(samples: NDArray[np.uint16]) -> NDArray[np.uint16]:
    alpha = np.maximum(samples[..., 3:].astype(np.float32), 1) / 65535
    samples[..., :3] = np.minimum(np.rint(samples[..., :3] / alpha), 65535)
    return samples
