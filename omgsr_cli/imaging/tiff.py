"""TIFF files: find the page with the image, read its samples at their own depth, and write TIFFs.

Pillow decodes the 8-bit kinds that it supports, and tifffile all others. Kinds that neither supports are refused by
name.
"""

from __future__ import annotations

import contextlib
import ctypes
import io
import logging
import struct
import sys
import tempfile
import threading
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import tifffile
import torch
from numpy.typing import NDArray
from PIL import ExifTags, Image, TiffImagePlugin, TiffTags, _imaging
from PIL.TiffImagePlugin import ImageFileDirectory_v2

from omgsr_cli.errors import FileError
from omgsr_cli.files.folders import has_reader, install_hint
from omgsr_cli.imaging.image import TURNS, Decoded, ImageMetadata, SampleLayout, unpremultiplied
from omgsr_cli.imaging.metadata import PREFIX, tags_of
from omgsr_cli.imaging.profiles import convert_to_srgb, lab_to_srgb
from omgsr_cli.imaging.rows import no_room

# Both libraries log their findings about a file, which Python would print.
for _logger in ("tifffile", "PIL.TiffImagePlugin"):
    logging.getLogger(_logger).addHandler(logging.NullHandler())
    logging.getLogger(_logger).propagate = False


class _LibtiffErrors(threading.local):
    """Collects the errors of libtiff in this thread; otherwise libtiff prints them, and Pillow may continue."""

    count = 0

    def note(self, *_: object) -> None:
        self.count += 1


libtiff_errors = _LibtiffErrors()
# Keep a reference for as long as the library may call it.
_LIBTIFF_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)(libtiff_errors.note)
# If libtiff is not a separate library file of Pillow, its error handler stays as it is.
with contextlib.suppress(OSError, AttributeError):
    _libtiff = ctypes.CDLL(_imaging.__file__)
    _libtiff.TIFFSetErrorHandler(_LIBTIFF_HANDLER)
    _libtiff.TIFFSetWarningHandler(None)

_STARTS = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_BIG_ENDIAN_BIG = b"MM\0+"
_ICC_TAG = 34675
_ASSOCIATED, _STRAIGHT = 1, 2
_UINT, _INT, _FLOAT = 1, 2, 3
_CMYK_INKS = 1

#: Compressions that Pillow's libtiff always supports; others may be missing.
_PILLOW_COMPRESSIONS = frozenset({1, 2, 3, 4, 5, 6, 7, 8, 32771, 32773, 32946})

_DEFLATED = (8, 32946)

#: Compressions that tifffile decodes without imagecodecs: none, deflate and PackBits, with integer predictors.
_PLAIN_COMPRESSIONS, _PLAIN_PREDICTORS, _PLAIN_BITS = {1, 8, 32773, 32946}, {1, 2}, {8, 16, 32, 64}

_SPACES = {
    **{0: "grey", 1: "grey", 2: "RGB", 3: "palette", 4: "transparency mask", 5: "CMYK", 6: "YCbCr", 8: "Lab"},
    **{9: "ICC Lab", 10: "ITU Lab", 32803: "camera raw", 32844: "LogL", 32845: "LogLuv", 34892: "linear raw"},
}
_KINDS = {_UINT: "", _INT: "signed ", _FLOAT: "float ", 5: "complex integer ", 6: "complex float "}

#: Limits for float samples: a larger share above 1, or larger values, mean another range instead of highlights.
_MOST_ABOVE, _FAR_ABOVE, _SOME = 0.25, 16.0, 0.01
_HALF_STEP = 0.5 / 65535

#: Number of samples that are converted at a time.
_SAMPLES_AT_ONCE = 1 << 19


class _Facts(NamedTuple):
    """The storage of a page's samples."""

    bits: int
    sample_format: int
    photometric: int
    channels: int
    extra: tuple[int, ...]

    @property
    def colors(self) -> int:
        """The number of colour channels."""
        return {2: 3, 5: 4, 6: 3, 8: 3, 9: 3}.get(self.photometric, 1)

    @property
    def alpha_at(self) -> int | None:
        """The index of the alpha channel."""
        found = (self.colors + i for i, kind in enumerate(self.extra) if kind in (_ASSOCIATED, _STRAIGHT))
        return next((channel for channel in found if channel < self.channels), None)

    @property
    def notes(self) -> tuple[str, ...]:
        """Notes about channels that are not used."""
        count = self.channels - self.colors - (self.alpha_at is not None)
        return (f"{count} extra channel{'s'[: count - 1]} dropped",) if count > 0 else ()

    @property
    def name(self) -> str:
        """A readable name, such as "32-bit float Lab"."""
        space = _SPACES.get(self.photometric, f"colour space {self.photometric}")
        return f"{self.bits}-bit {_KINDS.get(self.sample_format, '')}{space}"


class TiffImage(TiffImagePlugin.TiffImageFile):
    """A TIFF that is opened at its first full-resolution page, also if Pillow cannot decode it.

    Attributes:
        page: the page in tifffile; None if tifffile cannot read the structure of the file, but Pillow can.
        full_pages: number of full-resolution images in the file.
        has_mask: whether a page is a transparency mask, which is not used.
    """

    page: tifffile.TiffPage | None = None
    full_pages = 1
    has_mask = False
    _is_known = False

    def _setup(self) -> None:
        try:
            super()._setup()
            self._is_known = True
        except (SyntaxError, KeyError, OSError):
            self._is_known = False
            width, height = self.tag_v2[ExifTags.Base.ImageWidth], self.tag_v2[ExifTags.Base.ImageLength]
            if not isinstance(width, int) or not isinstance(height, int):
                raise
            self._mode, self.tile, self.palette, self.use_load_libtiff = "L", [], None, False
            self._set_size(width, height)
            sides = [self.tag_v2.get(tag, 0) for tag in (ExifTags.Base.XResolution, ExifTags.Base.YResolution)]
            unit = {2: 1.0, 3: 2.54}.get(self.tag_v2.get(ExifTags.Base.ResolutionUnit, 2))
            if unit and all(sides):
                self.info["dpi"] = tuple(side * unit for side in sides)
            if _ICC_TAG in self.tag_v2:
                self.info["icc_profile"] = self.tag_v2[_ICC_TAG]

    def _set_size(self, width: int, height: int) -> None:
        turned = self.tag_v2.get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
        self._tile_size, self._size = (width, height), (height, width) if turned else (width, height)

    def take_size(self, page: tifffile.TiffPage) -> None:
        """Set size and profile from a page that Pillow cannot open."""
        self._set_size(page.imagewidth, page.imagelength)
        self.tile = []
        if icc := page.tags.valueof(_ICC_TAG):
            self.info["icc_profile"] = bytes(icc)

    @property
    def is_pillows(self) -> bool:
        """Whether Pillow decodes the page without loss."""
        if not self._is_known or (self.page is not None and self.page.is_subifd):
            return False
        compression = self.tag_v2.get(ExifTags.Base.Compression, 1)
        bits, formats = self.tag_v2.get(ExifTags.Base.BitsPerSample, (1,)), self.tag_v2.get(339, (1,))
        return max(bits) <= 8 and set(formats) <= {_UINT, 4} and compression in _PILLOW_COMPRESSIONS

    @property
    def facts(self) -> _Facts:
        """The storage of the page's samples from its tags, or a minimum for Pillow if tifffile cannot read the page."""
        if self.page is None:
            bits = self.tag_v2.get(ExifTags.Base.BitsPerSample, (1,))
            return _Facts(max(bits), _UINT, self.tag_v2.get(ExifTags.Base.PhotometricInterpretation, 1), len(bits), ())
        return _facts(self.page)

    @property
    def is_deep(self) -> bool:
        """Whether it is read with 16 bits: all kinds above 8 bits except CMYK, which is converted with 8 bits."""
        return self.facts.bits > 8 and self.facts.photometric not in (5, 6)


def is_tiff(start: bytes) -> bool:
    """Whether these first bytes are those of a TIFF or BigTIFF."""
    return start[:4] in _STARTS


def open_tiff(file: BinaryIO) -> TiffImage:
    """Open a TIFF at its first full-resolution page.

    Thumbnails (bit 1 of NewSubfileType) and masks (bit 4) are skipped. If all pages are thumbnails, the first image
    among their sub-images is used.

    Raises:
        SyntaxError, ValueError, OSError, struct.error ...: the file is corrupt.
    """
    file.seek(0)
    is_foreign = file.read(4) == _BIG_ENDIAN_BIG
    file.seek(0)
    try:
        pages = _distinct(tifffile.TiffFile(file).pages)
        full = [page for page in pages if _is_full(page)]
        inner = [below for page in pages for below in _distinct(page.pages or ())]
    except (tifffile.TiffFileError, ValueError, IndexError, KeyError, TypeError, ZeroDivisionError):
        if is_foreign:
            raise
        pages = []
    file.seek(0)
    if not pages:
        return TiffImage(file)
    full = full or [page for page in inner if _is_full(page)] or pages
    page = full[0]
    image = TiffImage(_tags_as_file(page) if is_foreign else file)
    image.page, image.full_pages, image.has_mask = page, len(full), any(page.is_mask for page in pages)
    if page.is_subifd:
        image.take_size(page)
    elif page.index and not is_foreign:
        image.seek(page.index)
    return image


def read_tiff(image: TiffImage, name: str) -> Decoded:
    """Decode a page that Pillow cannot decode without loss: upright, not premultiplied, and CMYK and Lab as sRGB.

    Raises:
        FileError: the kind is not supported or needs imagecodecs, the range is unknown, or the page is damaged.
    """
    page, facts, own_notes = image.page, image.facts, tuple[str, ...]()
    if page is None:
        raise FileError(f"{name}: the TIFF file is damaged", "copy or download it again")
    _check_supported(page, facts, name)
    stored = _stored_samples(page, name)
    colors, alpha_at = facts.colors, facts.alpha_at
    own: NDArray[Any]
    if stored.shape[2] < facts.channels or facts.channels < colors:
        raise FileError(f"{name}: {facts.name} with {stored.shape[2]} channels is not supported")
    if facts.photometric in (8, 9):
        own, own_notes = _lab_samples(stored[:, :, :3], facts), ("Lab was converted to sRGB",)
    elif facts.photometric == 3:
        own = _palette_colors(page, stored[:, :, 0])
    else:
        own, own_notes = _ranged(stored[:, :, :colors], facts, name)
    if facts.photometric == 0:
        own = np.iinfo(own.dtype).max - own
    alpha = None
    if alpha_at is not None:
        alpha, _ = _ranged(stored[:, :, alpha_at : alpha_at + 1], facts, name)
        # 8-bit Lab has become 16-bit sRGB.
        alpha = alpha if alpha.dtype == own.dtype else alpha.astype(np.uint16) * 257
        if facts.extra[alpha_at - colors] == _ASSOCIATED:
            own = unpremultiplied(own, alpha)
    notes = (*own_notes, *facts.notes)
    if facts.photometric == 5:
        if own.dtype == np.uint16:
            own, notes = shallow(own), ("16 bits per channel were read as 8", *notes)
        inks = Image.fromarray(np.ascontiguousarray(own), "CMYK")
        own, _, more = convert_to_srgb(inks, image.info.get("icc_profile"))
        notes = (*more, *notes)
    if alpha is not None:
        own = np.concatenate([own, alpha if alpha.dtype == own.dtype else shallow(alpha)], axis=2)
    turn = TURNS.get(image.tag_v2.get(ExifTags.Base.Orientation, 1), TURNS[1])
    return Decoded(turn(own), facts.photometric in (5, 8, 9), notes)


def check_deflated(page: tifffile.TiffPage) -> None:
    """Compare the checksums of a page's strips or tiles, because Pillow does not.

    Raises:
        OSError: a checksum is wrong, or the data is damaged.
    """
    if page.compression not in _DEFLATED:
        return
    for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False):
        page.parent.filehandle.seek(offset)
        try:
            zlib.decompress(page.parent.filehandle.read(count))
        except zlib.error as error:
            raise OSError(f"broken data stream: {error}") from error


def needs_codecs(page: tifffile.TiffPage) -> bool:
    """Whether tifffile needs imagecodecs to decode a page."""
    is_plain = page.compression in _PLAIN_COMPRESSIONS and page.predictor in _PLAIN_PREDICTORS
    return not is_plain or page.bitspersample not in _PLAIN_BITS


def _distinct(pages: Iterable[Any]) -> list[tifffile.TiffPage]:
    """The pages up to the first that is listed twice: in a damaged file they may form a loop."""
    found: dict[int, tifffile.TiffPage] = {}
    for page in pages:
        if page.offset in found:
            break
        if isinstance(page, tifffile.TiffPage):
            found[page.offset] = page
    return list(found.values())


def _is_full(page: tifffile.TiffPage) -> bool:
    # The older tag has numbers instead of bits: 2 means a reduced image.
    return not (page.is_reduced or page.is_mask or page.tags.valueof(255) == 2)


def _facts(page: tifffile.TiffPage) -> _Facts:
    extra = tuple(int(kind) for kind in page.extrasamples)
    if not extra and page.photometric == 2 and page.samplesperpixel == 4:
        # Some programs do not set the tag.
        extra = (_STRAIGHT,)
    sample_format = _one(page.sampleformat)
    sample_format = _UINT if sample_format == 4 else sample_format
    return _Facts(_one(page.bitspersample), sample_format, _one(page.photometric), _one(page.samplesperpixel), extra)


def _one(value: int | tuple[int, ...]) -> int:
    """The value of a tag that should have one value; of several depths, the largest is used."""
    return max(value, default=0) if isinstance(value, tuple) else int(value)


def _tags_as_file(page: tifffile.TiffPage) -> BinaryIO:
    """The tags of a page as a small TIFF, because Pillow cannot read big-endian BigTIFF."""
    directory = ImageFileDirectory_v2(prefix=b"II")
    for tag in page.tags:
        # The places of strips, tiles and sub-images, and tags that tifffile has parsed.
        if tag.code in (273, 279, 324, 325, 330) or isinstance(tag.value, dict):
            continue
        with contextlib.suppress(TypeError, ValueError, KeyError):
            directory.tagtype[tag.code] = int(tag.dtype)
            directory[tag.code] = tag.value
    return io.BytesIO(b"II*\0" + struct.pack("<I", 8) + directory.tobytes(8))


def _check_supported(page: tifffile.TiffPage, facts: _Facts, name: str) -> None:
    """Refuse kinds that would be decoded incorrectly, by name."""
    known = facts.photometric in (0, 1, 2, 3, 5, 8, 9)
    numbers = facts.sample_format in ((_UINT,) if facts.photometric in (3, 8, 9) else (_UINT, _INT, _FLOAT))
    if facts.photometric in (8, 9):
        known, numbers = facts.bits in (8, 16), facts.sample_format in (_UINT, _INT)
    inks = page.tags.valueof(332, _CMYK_INKS)
    if facts.photometric == 5 and inks != _CMYK_INKS:
        raise FileError(f"{name}: {facts.channels} inks other than CMYK are not supported", "convert it to RGB first")
    if not known or not numbers or page.dtype is None or page.shaped[1] != 1:
        volume = f" in {page.shaped[1]} layers" if page.shaped[1] != 1 else ""
        raise FileError(f"{name}: {facts.name}{volume} is not supported", "convert it to 16-bit RGB first")
    if needs_codecs(page) and not has_reader("codecs"):
        what = f"{getattr(page.compression, 'name', page.compression)} compression of {facts.name}"
        raise FileError(f"{name}: {what} needs imagecodecs, which is not installed", install_hint(["codecs"]))


def _stored_samples(page: tifffile.TiffPage, name: str) -> NDArray[Any]:
    """The samples (H, W, C) as stored."""
    offsets, counts = page.dataoffsets, page.databytecounts
    end = page.parent.filehandle.size
    whole = all(offset and count and offset + count <= end for offset, count in zip(offsets, counts, strict=False))
    if not whole or min(len(offsets), len(counts)) < _segments(page):
        raise FileError(f"{name}: parts of its pixels are missing", "copy or download it again")
    try:
        stored = page.asarray(maxworkers=1)
    except NotImplementedError as error:
        raise FileError(f"{name}: {_facts(page).name}: {error}", "convert it to 16-bit RGB first") from error
    apart, _, height, width, together = page.shaped
    shaped = stored.reshape(apart, height, width, together)
    return shaped[0] if apart == 1 else shaped[..., 0].transpose(1, 2, 0)


def _segments(page: tifffile.TiffPage) -> int:
    """The number of strips or tiles that the page must have."""
    apart, _, height, width, _ = page.shaped
    if page.is_tiled:
        return int(apart * -(-height // page.tilelength) * -(-width // page.tilewidth))
    return int(apart * -(-height // min(max(page.rowsperstrip, 1), height)))


def _ranged(samples: NDArray[Any], facts: _Facts, name: str) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Scale samples of any type to the whole range of uint8 or uint16, with notes about values that did not fit."""
    if facts.sample_format == _FLOAT:
        return ranged_floats(samples, facts.name, name)
    largest, notes = (1 << facts.bits) - 1, tuple[str, ...]()
    if facts.sample_format == _INT:
        least, most = int(samples.min()), int(samples.max())
        if least < 0:
            reason = f"{facts.name} from {least} to {most}: its black and white levels are unknown"
            raise FileError(f"{name}: {reason}", "convert it to unsigned 16-bit first")
        # Pillow and numpy store 16 bits as int32.
        largest = 65535 if facts.bits > 16 and most <= 65535 else largest >> 1
        notes = (f"{facts.name}: 0 to {largest} was assumed to be black to white",)
    if largest <= 255:
        scaled = samples if largest == 255 else (samples.astype(np.uint16) * 255 + largest // 2) // largest
        return scaled.astype(np.uint8), notes
    if largest == 65535:
        return samples.astype(np.uint16), notes
    return _by_parts(samples, lambda part: part * (65535 / largest)), notes


def ranged_floats(samples: NDArray[Any], kind: str, name: str) -> tuple[NDArray[np.uint16], tuple[str, ...]]:
    """Scale floats in [0, 1], of any shape and type, to the whole range of uint16.

    Returns:
        The samples, and notes that count clipped values and NaN.
    Raises:
        FileError: the values clearly have another range, or none of them is finite.
    """
    finite = samples[np.isfinite(samples)]
    if finite.size == 0:
        raise FileError(f"{name}: none of its samples is a finite number")
    most = float(finite.max())
    above = finite[finite > 1 + _HALF_STEP]
    share = above.size / finite.size
    if above.size and (
        share > _MOST_ABOVE
        or (share > _SOME and float(np.median(above)) > _FAR_ABOVE)
        or (most >= 8 and bool((finite == np.rint(finite)).all()))
    ):
        span = "0 to 255" if most <= 256 else "0 to 65535" if most <= 65536 else f"up to {most:g}"
        reason = f"its {kind} samples look like {span}, where 0 to 1 is black to white (largest: {most:g})"
        raise FileError(
            f"{name}: {reason}", "divide the samples by their white level first, or save the image with 16 bits"
        )
    no_numbers = int(np.isnan(samples).sum())
    bright = above.size + int(np.isposinf(samples).sum())
    dark = int((finite < -_HALF_STEP).sum()) + int(np.isneginf(samples).sum())
    notes = []
    if bright or dark:
        parts = [f"{bright} above 1 (largest: {most:g})"] if bright else []
        parts += [f"{dark} below 0"] if dark else []
        notes.append(f"of {samples.size} float samples {' and '.join(parts)} were clipped")
    if no_numbers:
        notes.append(f"{no_numbers} NaN samples became 0")

    def whole(part: NDArray[Any]) -> NDArray[Any]:
        finite = np.nan_to_num(part.astype(np.float64), nan=0.0, posinf=1.0, neginf=0.0)
        return finite.clip(0, 1) * 65535

    return _by_parts(samples, whole), tuple(notes)


def shallow(samples: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Round 16 bits to 8, a row at a time."""
    result = np.empty(samples.shape, np.uint8)
    for row, levels in zip(result, samples, strict=True):
        row[:] = (levels.astype(np.uint32) + 128) // 257
    return result


def _by_parts(samples: NDArray[Any], convert: Callable[[NDArray[Any]], NDArray[Any]]) -> NDArray[np.uint16]:
    """Convert to uint16 a few rows at a time, so the whole image is never in memory as float64."""
    result = np.empty(samples.shape, np.uint16)
    rows = max(_SAMPLES_AT_ONCE // max(samples[0].size, 1), 1)
    for top in range(0, len(samples), rows):
        result[top : top + rows] = np.rint(convert(samples[top : top + rows]))
    return result


def _lab_samples(samples: NDArray[Any], facts: _Facts) -> NDArray[np.uint16]:
    """Convert 8 or 16-bit Lab (TIFF 6.0, section 23) or ICC Lab (TIFF/EP and Adobe's notes) to 16-bit sRGB."""
    half = 1 << (facts.bits - 1)
    step = 1 << (facts.bits - 8)
    # In ICC Lab, a and b have an offset, and 16-bit lightness 100 is 0xFF00.
    white = (1 << facts.bits) - (1 if facts.photometric == 8 or facts.bits == 8 else 1 << 8)

    def convert(part: NDArray[Any]) -> NDArray[Any]:
        whole = part.astype(np.int32) & ((1 << facts.bits) - 1)
        lightness = whole[..., :1] * (100.0 / white)
        opponents = (whole[..., 1:] - half if facts.photometric == 9 else (whole[..., 1:] ^ half) - half) / step
        lab = torch.from_numpy(np.concatenate([lightness, opponents], axis=2).astype(np.float32))
        rgb: NDArray[np.float32] = lab_to_srgb(lab.permute(2, 0, 1)).clamp(0, 1).permute(1, 2, 0).numpy()
        return rgb * 65535

    return _by_parts(samples, convert)


def _palette_colors(page: tifffile.TiffPage, indexes: NDArray[Any]) -> NDArray[Any]:
    colors: NDArray[np.uint16] = np.asarray(page.colormap, np.uint16).T[indexes]
    return (colors >> 8).astype(np.uint8) if not (colors % 257).any() or not (colors % 256).any() else colors


# --- writing ------------------------------------------------------------------------------------------------------

_XMP_TAG, _IPTC_TAG = 700, 33723
_DEFLATE, _HORIZONTAL_DIFFERENCES, _STRAIGHT_ALPHA, _INCH = 8, 2, 2, 2
_GREY, _RGB = 1, 2

#: Offsets in a TIFF have 32 bits.
_MAX_BYTES = 2**32 - 1
_HEADER_BYTES = 8

#: Approximate size of a strip in bytes, so that readers can read single strips.
_STRIP_BYTES = 1 << 20

#: Bytes of strips that are stored in memory; the rest goes into a file.
_IN_MEMORY = 64 << 20


def encode_tiff(
    layout: SampleLayout, bands: Iterator[NDArray[Any]], metadata: ImageMetadata, name: str
) -> Iterator[bytes]:
    """Encode bands of samples, from top to bottom, with all metadata except texts.

    The strips are deflated horizontal differences, which are stored until all are complete.

    Raises:
        FileError: the file would be larger than 4 GiB.
        OmgsrError: there is no space to store the strips.
    """
    if layout.channels == 2:
        # Few programs can read grey with alpha; Pillow cannot with 16 bits.
        layout, bands = layout._replace(channels=4), (band[:, :, [0, 0, 0, 1]] for band in bands)
    rows = max(_STRIP_BYTES // (layout.width * layout.channels * layout.bit_depth // 8), 1)
    lengths: list[int] = []
    size = 0
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as strips:
        for strip in map(_strip, _regrouped(bands, rows)):
            size += len(strip)
            # The size of the directory is unknown before it is packed; no metadata is nearly as large as this.
            if size > _MAX_BYTES - (1 << 28):
                raise FileError(f"{name}: it would be larger than the 4 GiB of a TIFF file", "use --format png")
            lengths.append(len(strip))
            try:
                strips.write(strip)
            except OSError as error:
                raise no_room(None, error) from error
        with warnings.catch_warnings(action="ignore"):  # Pillow warns about single EXIF values that it drops
            directory = _directory(layout, rows, lengths, metadata).tobytes(_HEADER_BYTES)
        yield b"II*\0" + struct.pack("<I", _HEADER_BYTES) + directory
        strips.seek(0)
        while part := strips.read(_STRIP_BYTES):
            yield part


def can_pack_exif(data: bytes) -> bool:
    """Whether Pillow can unpack an EXIF structure and pack it again, which TIFF and AVIF need."""
    directory = ImageFileDirectory_v2(prefix=b"II")
    try:
        with warnings.catch_warnings(action="ignore"):  # Pillow warns about single values that it drops
            _add_exif(directory, data)
            directory.tobytes(_HEADER_BYTES)
    except (OSError, ValueError, SyntaxError, TypeError, KeyError, IndexError, AttributeError, struct.error):
        # Cameras and editors write values of wrong types, for which Pillow raises various exceptions.
        return False
    return True


def _regrouped(bands: Iterator[NDArray[Any]], rows: int) -> Iterator[NDArray[Any]]:
    """Yield the same rows in groups of a fixed number; the last group may be smaller."""
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
    layout: SampleLayout, rows: int, lengths: Sequence[int], metadata: ImageMetadata
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
            # Offsets count from the end of the directory: Pillow adds it when it packs the directory.
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
