"""PNG files, written row by row: Pillow writes none of 16 bits in colour, and whole pictures only."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omgsr_cli.files.records import png_chunk, png_text_chunk
from omgsr_cli.imaging.metadata import XMP_KEYWORD, iptc_resources, raw_profile_chunk
from omgsr_cli.imaging.picture import PictureMetadata
from omgsr_cli.imaging.samples import SampleLayout

#: Beyond 4, zlib takes several times longer for a percent or two.
COMPRESSION_LEVEL = 4

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_COLOR_TYPE = {1: 0, 2: 4, 3: 2, 4: 6}
_SUB, _UP, _PAETH = 1, 2, 4

#: Rows filtered at a time hold about this many bytes.
_BYTES_AT_ONCE = 1 << 19


def encode_png(layout: SampleLayout, bands: Iterator[NDArray[Any]], metadata: PictureMetadata) -> Iterator[bytes]:
    """Encode a picture as its rows come.

    Args:
        layout: of the samples.
        bands: of them, from the first rows to the last.
        metadata: all of it is written.
    Yields:
        The file's bytes: first the signature and header.
    """
    header = struct.pack(
        ">IIBBBBB", layout.width, layout.height, layout.bit_depth, _COLOR_TYPE[layout.channels], 0, 0, 0
    )
    yield _SIGNATURE + png_chunk(b"IHDR", header)
    yield _metadata_chunks(metadata)
    packer = zlib.compressobj(COMPRESSION_LEVEL)
    sample_bytes = layout.bit_depth // 8
    row_bytes = layout.width * layout.channels * sample_bytes
    above, count = np.zeros((1, row_bytes), np.uint8), max(_BYTES_AT_ONCE // row_bytes, 1)
    for band in bands:
        for top in range(0, len(band), count):
            samples = np.ascontiguousarray(band[top : top + count], band.dtype.newbyteorder(">"))
            rows = samples.reshape(len(samples), -1).view(np.uint8)
            if packed := packer.compress(_filtered(rows, above, layout.channels * sample_bytes).data):
                yield png_chunk(b"IDAT", packed)
            above = rows[-1:]
    yield png_chunk(b"IDAT", packer.flush())
    yield png_chunk(b"IEND", b"")


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
    if metadata.iptc:
        chunks.append(png_chunk(b"zTXt", raw_profile_chunk("iptc", iptc_resources(metadata.iptc))))
    chunks.extend(png_text_chunk(keyword, text) for keyword, text in metadata.text)
    return b"".join(chunks)


def _filtered(rows: NDArray[np.uint8], above: NDArray[np.uint8], pixel_bytes: int) -> NDArray[np.uint8]:
    """Filter rows, each by whichever of Sub, Up and Paeth leaves the smallest sum (PNG third edition, 12.7)."""
    up = np.concatenate([above, rows[:-1]])
    left, up_left = _shifted(rows, pixel_bytes), _shifted(up, pixel_bytes)
    residuals = (rows - left, rows - up, rows - _paeth(left, up, up_left))
    costs = [np.abs(residual.view(np.int8).astype(np.int16)).sum(axis=1, dtype=np.int64) for residual in residuals]
    best = np.argmin(costs, axis=0)
    filtered = np.empty((len(rows), rows.shape[1] + 1), np.uint8)
    filtered[:, 0] = np.array((_SUB, _UP, _PAETH), np.uint8)[best]
    for number, residual in enumerate(residuals):
        filtered[best == number, 1:] = residual[best == number]
    return filtered


def _shifted(rows: NDArray[np.uint8], pixel_bytes: int) -> NDArray[np.uint8]:
    """Every pixel's left neighbour, 0 at the edge."""
    shifted = np.zeros_like(rows)
    shifted[:, pixel_bytes:] = rows[:, :-pixel_bytes]
    return shifted


def _paeth(left: NDArray[np.uint8], up: NDArray[np.uint8], up_left: NDArray[np.uint8]) -> NDArray[np.uint8]:
    corner = up_left.astype(np.int16)
    to_left, to_up = up - corner, left - corner
    to_up_left = np.abs(to_left + to_up)
    np.abs(to_left, out=to_left)
    np.abs(to_up, out=to_up)
    take_left = (to_left <= to_up) & (to_left <= to_up_left)
    predicted: NDArray[np.uint8] = np.where(take_left, left, np.where(to_up <= to_up_left, up, up_left))
    return predicted
