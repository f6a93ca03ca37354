"""PNG files: pixels of 8 bits by Pillow, of 16 by ourselves, and what lies beside them as chunks."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from omgsr_cli.imaging.metadata import XMP_KEYWORD
from omgsr_cli.imaging.picture import PictureMetadata
from omgsr_cli.imaging.settings_line import png_chunk, png_text_chunk

#: Beyond 4, zlib takes several times longer for a percent or two.
COMPRESSION_LEVEL = 4

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER_END = 33
_COLOR_TYPE = {1: 0, 2: 4, 3: 2, 4: 6}
_SUB, _UP, _PAETH = 1, 2, 4

#: Rows filtered at a time hold about this many bytes.
_BYTES_AT_ONCE = 1 << 22


def encode_png(samples: NDArray[Any], metadata: PictureMetadata) -> bytes:
    """Encode a picture.

    Args:
        samples: (H, W, C) uint8 or uint16; C is 1 grey, 2 grey with alpha, 3 RGB, 4 RGBA.
        metadata: all of it is written.
    """
    pixels = _deep_png(samples) if samples.dtype == np.uint16 else _shallow_png(samples)
    return b"".join((pixels[:_HEADER_END], _metadata_chunks(metadata), pixels[_HEADER_END:]))


def _shallow_png(samples: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(samples[:, :, 0] if samples.shape[2] == 1 else samples)
    image.save(buffer, "PNG", compress_level=COMPRESSION_LEVEL)
    return buffer.getvalue()


def _metadata_chunks(metadata: PictureMetadata) -> bytes:
    """The chunks between header and pixels (PNG third edition, 11.3)."""
    chunks = []
    if metadata.icc:
        chunks.append(png_chunk(b"iCCP", b"ICC profile\0\0" + zlib.compress(metadata.icc)))
    if metadata.dpi:
        across, down = (round(dpi / 0.0254) for dpi in metadata.dpi)
        chunks.append(png_chunk(b"pHYs", struct.pack(">IIB", across, down, 1)))
    if metadata.exif:
        chunks.append(png_chunk(b"eXIf", metadata.exif))
    if metadata.xmp:
        chunks.append(png_text_chunk(XMP_KEYWORD, metadata.xmp.decode("utf-8", "replace")))
    chunks.extend(png_text_chunk(keyword, text) for keyword, text in metadata.text)
    return b"".join(chunks)


def _deep_png(samples: NDArray[np.uint16]) -> bytes:
    height, width, channels = samples.shape
    header = struct.pack(">IIBBBBB", width, height, 16, _COLOR_TYPE[channels], 0, 0, 0)
    packer = zlib.compressobj(COMPRESSION_LEVEL)
    rows = max(_BYTES_AT_ONCE // (width * channels * 2), 1)
    above = np.zeros((1, width * channels * 2), np.uint8)
    packed = []
    for top in range(0, height, rows):
        band = samples[top : top + rows].astype(">u2").reshape(-1, width * channels).view(np.uint8)
        packed.append(packer.compress(_filtered(band, above, channels * 2).tobytes()))
        above = band[-1:]
    packed.append(packer.flush())
    pixels = b"".join(png_chunk(b"IDAT", piece) for piece in packed if piece)
    return _SIGNATURE + png_chunk(b"IHDR", header) + pixels + png_chunk(b"IEND", b"")


def _filtered(band: NDArray[np.uint8], above: NDArray[np.uint8], pixel_bytes: int) -> NDArray[np.uint8]:
    """Filter rows, each by whichever of Sub, Up and Paeth leaves the smallest sum (PNG third edition, 12.7)."""
    up = np.concatenate([above, band[:-1]]).astype(np.int16)
    left, up_left = _shifted(band, pixel_bytes), _shifted(up, pixel_bytes)
    choices = [(_SUB, band - left), (_UP, band - up), (_PAETH, band - _paeth(left, up, up_left))]
    residuals = np.stack([residual.astype(np.uint8) for _, residual in choices])
    costs = np.abs(residuals.view(np.int8).astype(np.int16)).sum(axis=2, dtype=np.int64)
    best = costs.argmin(axis=0)
    kinds = np.array([kind for kind, _ in choices], np.uint8)[best]
    return np.concatenate([kinds[:, None], residuals[best, np.arange(len(band))]], axis=1)


def _shifted(rows: NDArray[Any], pixel_bytes: int) -> NDArray[np.int16]:
    """Every pixel's left neighbour, 0 at the edge."""
    shifted = np.zeros(rows.shape, np.int16)
    shifted[:, pixel_bytes:] = rows[:, :-pixel_bytes]
    return shifted


def _paeth(left: NDArray[np.int16], up: NDArray[np.int16], up_left: NDArray[np.int16]) -> NDArray[np.int16]:
    to_left, to_up = np.abs(up - up_left), np.abs(left - up_left)
    to_up_left = np.abs(left + up - 2 * up_left)
    take_left = (to_left <= to_up) & (to_left <= to_up_left)
    return np.where(take_left, left, np.where(to_up <= to_up_left, up, up_left))
