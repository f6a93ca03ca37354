"""TIFF files of 8 and 16 bits: Pillow writes no colour of 16 bits."""

from __future__ import annotations

import struct
import sys
import tempfile
import warnings
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, TiffTags
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from omgsr_cli.errors import FileError
from omgsr_cli.imaging.metadata import PREFIX, tags_of
from omgsr_cli.imaging.picture import PictureMetadata
from omgsr_cli.imaging.rows import no_room
from omgsr_cli.imaging.samples import SampleLayout

_XMP_TAG, _IPTC_TAG, _ICC_TAG = 700, 33723, 34675
_DEFLATE, _HORIZONTAL_DIFFERENCES, _STRAIGHT_ALPHA, _INCH = 8, 2, 2, 2
_GREY, _RGB = 1, 2

#: Offsets in a TIFF have 32 bits.
_MAX_BYTES = 2**32 - 1
_HEADER_BYTES = 8

#: Strips of about this many bytes can be read one at a time.
_STRIP_BYTES = 1 << 20

#: Bytes of strips that are put aside in memory; more go into a file.
_IN_MEMORY = 64 << 20


def encode_tiff(
    layout: SampleLayout, bands: Iterator[NDArray[Any]], metadata: PictureMetadata, name: str
) -> Iterator[bytes]:
    """Encode a picture as strips of deflated horizontal differences, which are put aside until all are there.

    Args:
        layout: of the samples.
        bands: of them, from the first rows to the last.
        metadata: all but text is written.
        name: of the file, for a message.
    Yields:
        The file's bytes.
    Raises:
        FileError: it would be larger than 4 GiB.
        OmgsrError: there is no room to put the strips aside.
    """
    if layout.channels == 2:
        # Few programs read grey with alpha, Pillow not with 16 bits.
        layout, bands = layout._replace(channels=4), (band[:, :, [0, 0, 0, 1]] for band in bands)
    rows = max(_STRIP_BYTES // (layout.width * layout.channels * layout.bit_depth // 8), 1)
    lengths: list[int] = []
    size = 0
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as strips:
        for strip in map(_strip, _regrouped(bands, rows)):
            size += len(strip)
            # The directory's own size is not known before it is packed; no metadata comes near this.
            if size > _MAX_BYTES - (1 << 28):
                raise FileError(f"{name}: it would be larger than the 4 GiB of a TIFF file", "use --format png")
            lengths.append(len(strip))
            try:
                strips.write(strip)
            except OSError as error:
                raise no_room(None, error) from error
        with warnings.catch_warnings(action="ignore"):  # Pillow's, of single EXIF values that it leaves out
            directory = _directory(layout, rows, lengths, metadata).tobytes(_HEADER_BYTES)
        yield b"II*\0" + struct.pack("<I", _HEADER_BYTES) + directory
        strips.seek(0)
        while part := strips.read(_STRIP_BYTES):
            yield part


def can_pack_exif(data: bytes) -> bool:
    """Whether Pillow can take an EXIF structure apart and pack it again, as TIFF and AVIF need it."""
    directory = ImageFileDirectory_v2(prefix=b"II")
    try:
        with warnings.catch_warnings(action="ignore"):  # Pillow's, of single values that it leaves out
            _add_exif(directory, data)
            directory.tobytes(_HEADER_BYTES)
    except (OSError, ValueError, SyntaxError, TypeError, KeyError, IndexError, AttributeError, struct.error):
        # Cameras and editors leave values of wrong types behind; what Pillow raises then depends on the value.
        return False
    return True


def _regrouped(bands: Iterator[NDArray[Any]], rows: int) -> Iterator[NDArray[Any]]:
    """The same rows, so many at a time; the last ones may be fewer."""
    held: list[NDArray[Any]] = []
    count = 0
    for band in bands:
        held.append(band)
        count += len(band)
        if count < rows:
            continue
        joined = np.concatenate(held)
        whole = count - count % rows
        for top in range(0, whole, rows):
            yield joined[top : top + rows]
        held, count = [joined[whole:]], count - whole
    if count:
        yield np.concatenate(held)


def _strip(rows: NDArray[Any]) -> bytes:
    differences = rows.copy()
    differences[:, 1:] -= rows[:, :-1]
    if sys.byteorder == "big":
        differences = differences.byteswap()
    return zlib.compress(differences.tobytes(), 6)


def _directory(
    layout: SampleLayout, rows: int, lengths: Sequence[int], metadata: PictureMetadata
) -> ImageFileDirectory_v2:
    height, width, channels, bit_depth = layout
    directory = ImageFileDirectory_v2(prefix=b"II")
    if metadata.exif:
        _add_exif(directory, metadata.exif)
    ends = np.cumsum([0, *lengths])
    directory.update(
        {
            ExifTags.Base.ImageWidth: width,
            ExifTags.Base.ImageLength: height,
            ExifTags.Base.BitsPerSample: (bit_depth,) * channels,
            ExifTags.Base.Compression: _DEFLATE,
            ExifTags.Base.PhotometricInterpretation: _GREY if channels == 1 else _RGB,
            ExifTags.Base.SamplesPerPixel: channels,
            ExifTags.Base.RowsPerStrip: rows,
            # Counted from the directory's end: Pillow adds that when it packs the directory.
            ExifTags.Base.StripOffsets: tuple(int(end) for end in ends[:-1]),
            ExifTags.Base.StripByteCounts: tuple(lengths),
            ExifTags.Base.PlanarConfiguration: 1,
            ExifTags.Base.Predictor: _HORIZONTAL_DIFFERENCES,
            ExifTags.Base.SampleFormat: (1,) * channels,
        }
    )
    if channels == 4:
        directory[ExifTags.Base.ExtraSamples] = _STRAIGHT_ALPHA
    if metadata.dpi:
        directory[ExifTags.Base.XResolution], directory[ExifTags.Base.YResolution] = metadata.dpi
        directory[ExifTags.Base.ResolutionUnit] = _INCH
    for tag, content in ((_ICC_TAG, metadata.icc), (_XMP_TAG, metadata.xmp), (_IPTC_TAG, metadata.iptc)):
        if content:
            directory.tagtype[tag] = TiffTags.UNDEFINED
            directory[tag] = content
    return directory


def _add_exif(directory: ImageFileDirectory_v2, data: bytes) -> None:
    exif = Image.Exif()
    exif.load(PREFIX + data)
    directory.update(tags_of(exif))
