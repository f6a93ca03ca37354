"""Read image files: upright, in sRGB, with the metadata that results keep."""

from __future__ import annotations

import re
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFile
from torch import Tensor

from omgsr_cli.files.folders import has_reader, install_hint
from omgsr_cli.imaging.decoders import (
    coded_depth,
    develop_raw,
    is_deep,
    is_raw,
    keeps_depth,
    raw_size,
    read_coded,
    read_deep,
)
from omgsr_cli.imaging.image import TURNS, Decoded, ImageHeader, ImageMetadata, SourceImage, from_samples
from omgsr_cli.imaging.metadata import (
    ExifError,
    Placement,
    exif_of_tiff_structure,
    has_adobe_rgb,
    placed_exif,
    read_metadata,
    stored_orientation,
)
from omgsr_cli.imaging.opening import (
    DECODE_ERRORS,
    FORMAT_OF_PILLOW,
    bytes_of,
    check_size,
    load_pixels,
    opened,
    opened_file,
    source_name,
)
from omgsr_cli.imaging.profiles import (
    ColorDescription,
    ProfileError,
    TableProfile,
    convert_to_srgb,
    describe_color,
    load_profile,
    profile_space,
    refuse_hdr,
)
from omgsr_cli.imaging.rows import split_bands
from omgsr_cli.imaging.tiff import TiffImage, check_deflated, needs_codecs, ranged_floats, read_tiff

#: Pillow's modes with one channel of 16 bits or more.
_WIDE_GREY_MODES = frozenset({"I;16", "I;16B", "I;16L", "I;16N", "I", "F"})

_GREY_MODES, _PALETTE = frozenset({"1", "L", "LA", "La"}), 3

#: Bytes per pixel in Pillow's memory; 4 in all other modes.
_STORED_BYTES = {"1": 1, "L": 1, "P": 1} | dict.fromkeys(("I;16", "I;16B", "I;16L", "I;16N"), 2)

#: Formats whose decoders keep the whole image in memory in addition to Pillow's.
_HELD_WHOLE = frozenset({"WEBP", "AVIF", "HEIF", "JXL", "JPEG2000", "GIF"})

#: libjxl computes in floats, on all channels at once.
_JXL_BYTES = 24

#: Bytes per pixel of LibRaw's mosaic, its four planes, and the result as integers and floats.
_RAW_BYTES = 36

#: The start of a video that follows a JPEG: Samsung's mark, or the brand of the video itself.
_VIDEO_BEHIND = re.compile(rb"MotionPhoto_Data|ftyp(?:isom|mp4[12]|qt  )")
_VIDEO_NOTE = "the video of a motion photo is not kept"

#: Smaller parts outside sRGB are not kept. The limit is low because of dark colours: one step of sRGB is many steps of
#: a pure gamma curve there, for which float16 would be too coarse, too.
_GAMUT_TOLERANCE = 1e-4


def read_image(source: Path | bytes, name: str | None = None) -> SourceImage:
    """Read an image; of several frames, the first.

    Colours are converted from the image's profile to sRGB in float32. The profile is kept in the metadata, and
    `write_image` converts back to it. CMYK and Lab become sRGB permanently, in 8 bits.

    Args:
        source: a path, or the bytes of a file; camera raw files are recognised by their name and developed.
        name: name of the file in messages; the path by default.
    Raises:
        FileError: the file is missing, a folder, empty, not an image, truncated, corrupt or too large.
    """
    name = source_name(source, name)
    if is_raw(source):
        return _read_raw(source, name)
    # The decoded image is freed when this returns, before its samples become floats.
    image, samples = _read_samples(source, name)
    return with_pixels(image, samples)


def _read_samples(source: Path | bytes, name: str) -> tuple[SourceImage, NDArray[Any]]:
    """The result of `read_image` without its pixels, and the samples (H, W, C)."""
    with opened(source, name, for_pixels=True) as (image, file, repairs):
        format_name = FORMAT_OF_PILLOW[image.format or ""]
        frames = image.full_pages if isinstance(image, TiffImage) else int(getattr(image, "n_frames", 1))
        turned = stored_orientation(image)
        decoded = _decode(image, file, name)
        samples = decoded.samples
        if image.format != "TIFF":
            # EXIF may follow the pixels. A TIFF is decoded upright.
            turned = stored_orientation(image)
            samples = TURNS[turned](samples)
        metadata, notes = read_metadata(image, samples.shape[:2], turned)
        if format_name == "jpg" and not any(note.startswith(_VIDEO_NOTE) for note in notes) and _has_video(file):
            notes += (_VIDEO_NOTE,)
        if image.info.get("icc_profile", b"") is None:
            # This is how Pillow reports it.
            repairs += ("the ICC profile was dropped: parts of it are missing",)
        samples = _as_profiled(samples, metadata.icc, has_palette=image.mode in ("P", "PA"))
        color = ColorDescription()
        if not decoded.is_srgb:
            is_grey, is_adobe = samples.shape[2] < 3, has_adobe_rgb(metadata.exif)
            color = describe_color(image, file, name, icc=metadata.icc, is_grey=is_grey, is_adobe_rgb=is_adobe)
    metadata = replace(metadata, icc=color.icc)
    notes = repairs + decoded.notes + notes + color.notes
    if frames > 1:
        notes += (f"{frames} frames: only the first is used",)
    if color.narrow_range:
        samples = _full_range(samples)
    return SourceImage(torch.empty(3, 1, 1), format=format_name, metadata=metadata, notes=notes), samples


def probe_image(source: Path | bytes, name: str | None = None) -> ImageHeader:
    """Read the header of an image without decoding its pixels.

    Args:
        source: a path, or the bytes of a file.
        name: name of the file in messages; the path by default.
    Raises:
        FileError: as for `read_image`, except for errors that only the pixels reveal.
    """
    name = source_name(source, name)
    if is_raw(source):
        with opened_file(source, name) as file:
            size = raw_size(file, name)
        check_size(name, size)
        pixels = size[0] * size[1]
        return ImageHeader(size, "raw", 16, reading_bytes=_RAW_BYTES * pixels, held_bytes=12 * pixels)
    with opened(source, name) as (image, file, _):
        refuse_hdr(image, file, name)
        width, height = image.size
        if image.format != "TIFF" and stored_orientation(image, file) >= 5:
            width, height = height, width
        deep, has_alpha = is_deep(image) or keeps_depth(image, coded_depth(image, file)), image.has_transparency_data
        if isinstance(image, TiffImage):
            deep, has_alpha = image.is_deep, image.facts.alpha_at is not None
        deep = deep or image.mode in _WIDE_GREY_MODES
        reading, held = _memory(image, file, deep, has_alpha)
        return ImageHeader((height, width), FORMAT_OF_PILLOW[image.format or ""], 16 if deep else 8, reading, held)


def _memory(image: ImageFile.ImageFile, file: BinaryIO, is_deep_result: bool, has_alpha: bool) -> tuple[int, int]:
    """The bytes that reading an opened image needs at its peak, and those that its pixels need afterwards.

    This counts everything that `_decode` and `with_pixels` hold at the same time; the measured memory is lower.
    """
    is_grey = image.mode in _GREY_MODES or image.mode in _WIDE_GREY_MODES
    stored = _STORED_BYTES.get(image.mode, 4)
    if isinstance(image, TiffImage):
        is_grey = image.facts.colors == 1 and image.facts.photometric != _PALETTE
    channels = (1 if is_grey else 3) + has_alpha
    samples = channels * (2 if is_deep_result else 1)
    if isinstance(image, TiffImage) and not image.is_pillows:
        # The stored samples, masks and copies of the finite ones, and the samples in their final range.
        decoding_bytes = 3 * -(-image.facts.bits // 8) * image.facts.channels + 2 * samples
    elif image.format in _HELD_WHOLE:
        decoding_bytes = 2 * stored + (12 if is_deep_result else 6) * channels
        decoding_bytes += _JXL_BYTES if image.format == "JXL" else 0
    elif is_deep_result:
        decoding_bytes = 2 * stored + 6 * channels
    elif image.mode in ("RGB", "RGBA", "L", "LA", *_WIDE_GREY_MODES):
        decoding_bytes = stored + samples
    else:
        decoding_bytes = stored + 4 + 2 * samples
    wide = 12 if image.info.get("icc_profile") and not is_grey else 0
    held = 4 * channels + wide
    # Upscaling a transparent image needs three more copies, and the colours that fill it.
    filled = 64 if has_alpha else 0
    pixels = image.width * image.height
    # Some decoders need all bytes of the file at once.
    reading = pixels * max(decoding_bytes, samples + held, held + filled) + 2 * bytes_of(file)
    return reading, pixels * (held + filled // 2)


def _read_raw(source: Path | bytes, name: str) -> SourceImage:
    with opened_file(source, name) as file:
        check_size(name, raw_size(file, name))
        file.seek(0)
        samples = develop_raw(file, name)
        exif, notes = _exif_of_raw(file, samples.shape[:2])
    metadata = ImageMetadata(exif=exif)
    return with_pixels(SourceImage(torch.empty(3, 1, 1), format="raw", metadata=metadata, notes=notes), samples)


def _exif_of_raw(file: BinaryIO, size_px: tuple[int, int]) -> tuple[bytes | None, tuple[str, ...]]:
    """The EXIF data of a raw file that begins as a TIFF, and notes; other raw formats store it differently."""
    try:
        with warnings.catch_warnings(action="ignore"):
            exif, notes = exif_of_tiff_structure(file)
        return (placed_exif(exif, Placement(1, size_px, size_px)) if exif else None), notes
    except (ExifError, *DECODE_ERRORS):
        return None, ()


def _has_video(file: BinaryIO) -> bool:
    """Whether a video follows the JPEG data; phones do not always describe it in XMP."""
    file.seek(0)
    return _VIDEO_BEHIND.search(file.read()) is not None


def _decode(image: ImageFile.ImageFile, file: BinaryIO, name: str) -> Decoded:
    if isinstance(image, TiffImage):
        return _decode_tiff(image, file, name)
    if (depth := coded_depth(image, file)) > 8:
        return _decode_coded(image, file, depth, name)
    if is_deep(image):
        samples = read_deep(image, file)
        key = image.info.get("transparency") if samples.shape[2] == 3 else None
        return Decoded(_with_key_alpha(samples, key))
    return _decode_shallow(image, name)


def _decode_coded(image: ImageFile.ImageFile, file: BinaryIO, depth: int, name: str) -> Decoded:
    """Decode an image of a format whose depth only its own header contains."""
    samples = read_coded(image, file, depth) if keeps_depth(image, depth) else None
    if samples is None:
        decoded = _decode_shallow(image, name)
        if decoded.samples.dtype == np.uint16:
            return decoded
        remedy = "" if has_reader("codecs") else f"; {install_hint(['codecs'])} keeps them"
        return decoded._replace(notes=(f"{depth} bits per channel were read as 8{remedy}", *decoded.notes))
    if samples.dtype.kind == "f":
        whole, notes = ranged_floats(samples, "float", name)
        return Decoded(whole, notes=notes)
    return Decoded(samples)


def _decode_tiff(image: TiffImage, file: BinaryIO, name: str) -> Decoded:
    notes = ("a transparency mask was dropped",) if image.has_mask else ()
    if image.is_pillows or image.page is None:
        if image.page is not None:
            check_deflated(image.page)
        decoded = _decode_shallow(image, name)
        return decoded._replace(notes=(*decoded.notes, *image.facts.notes, *notes))
    if needs_codecs(image.page) and not has_reader("codecs") and is_deep(image):
        return Decoded(read_deep(image, file), notes=notes)
    decoded = read_tiff(image, name)
    return decoded._replace(notes=(*decoded.notes, *notes))


def _decode_shallow(image: ImageFile.ImageFile, name: str) -> Decoded:
    load_pixels(image)
    if image.mode in _WIDE_GREY_MODES:
        return _wide_grey(image, name)
    if image.mode in ("CMYK", "LAB"):
        return convert_to_srgb(image, image.info.get("icc_profile"))
    mode = ("L" if image.mode in _GREY_MODES else "RGB") + ("A" if image.has_transparency_data else "")
    samples = np.atleast_3d(np.asarray(image if image.mode == mode else image.convert(mode)))
    return Decoded(_without_hue(samples) if image.mode in ("P", "PA") else samples)


def _without_hue(samples: NDArray[Any]) -> NDArray[Any]:
    """Reduce a palette image whose colours are all grey to one channel."""
    if bool((samples[..., 0] == samples[..., 1]).all() and (samples[..., 1] == samples[..., 2]).all()):
        return samples[..., 2:]
    return samples


def _with_key_alpha(samples: NDArray[Any], key: Any) -> NDArray[Any]:
    """Add the alpha channel of a PNG's transparent colour; samples are as stored in the file."""
    if key is None or isinstance(key, bytes):
        return samples
    opaque = (samples != np.asarray(key)).any(axis=2, keepdims=True)
    return np.concatenate([samples, opaque * np.iinfo(samples.dtype).max], axis=2).astype(samples.dtype)


def _wide_grey(image: Image.Image, name: str) -> Decoded:
    values = np.asarray(image)
    notes: tuple[str, ...] = ()
    if image.mode == "F":
        values, notes = ranged_floats(values, "32-bit float grey", name)
    elif image.mode == "I" and (values.min() < 0 or values.max() > 65535):
        notes = ("samples were clipped to 16 bits",)
        values = values.clip(0, 65535)
    samples = values.astype(np.uint16)[:, :, None]
    return Decoded(_with_key_alpha(samples, image.info.get("transparency")), notes=notes)


def _as_profiled(samples: NDArray[Any], icc: bytes | None, *, has_palette: bool) -> NDArray[Any]:
    """Convert RGB samples of a palette or a grey WebP image to the channels of their profile."""
    try:
        space = None if icc is None else profile_space(icc)
    except ProfileError:
        return samples
    if space == "RGB" and has_palette and samples.shape[2] < 3:
        return samples[:, :, [0, 0, 0, 1][: samples.shape[2] + 2]]
    return _without_hue(samples) if space == "GRAY" and samples.shape[2] > 2 else samples


def _full_range(samples: NDArray[Any]) -> NDArray[Any]:
    """Scale video levels, 16/255 to 235/255, to the full range; alpha does not change."""
    unit = np.iinfo(samples.dtype).max // 255
    colors = 1 if samples.shape[2] < 3 else 3
    spread = np.rint((samples[..., :colors].astype(np.float32) - 16 * unit) * np.float32(255 / 219))
    spread = spread.clip(0, np.iinfo(samples.dtype).max).astype(samples.dtype)
    return np.concatenate([spread, samples[..., colors:]], axis=2)


def with_pixels(image: SourceImage, samples: NDArray[Any]) -> SourceImage:
    """The image with samples of its own profile, (H, W, C) integers as in `to_samples`, converted to sRGB."""
    planes = from_samples(samples)
    colors = 1 if samples.shape[2] < 3 else 3
    color, alpha = planes[:colors], planes[colors:] if samples.shape[2] > colors else None
    is_neutral = colors == 1 or bool(torch.equal(color[0], color[1]) and torch.equal(color[1], color[2]))
    profile = load_profile(image.metadata.icc) if image.metadata.icc else None
    gamut, metadata, notes = None, image.metadata, image.notes
    if profile is not None:
        for rows in split_bands([color]):
            rows.copy_(profile.to_srgb(rows))
        gamut = _take_outside(color)
    if isinstance(profile, TableProfile) and not profile.goes_back:
        gamut, metadata = None, replace(metadata, icc=None)
        notes += ("the ICC profile converts one way only: the result is sRGB",)
    return replace(
        image,
        # Grey is stored once.
        rgb=color.expand(3, -1, -1),
        alpha=None if alpha is None else alpha.contiguous(),
        bit_depth=8 if samples.dtype == np.uint8 else 16,
        is_grey=colors == 1,
        is_neutral=is_neutral,
        gamut=gamut,
        metadata=metadata,
        notes=notes,
    )


def _take_outside(color: Tensor) -> Tensor | None:
    """Clip colours to [0, 1] in place, and return the clipped part; None for greys and for rounding errors."""
    largest = max(float((rows - rows.clamp(0, 1)).abs().max()) for rows in split_bands([color]))
    outside = None
    if color.shape[0] == 3 and largest > _GAMUT_TOLERANCE:
        outside = torch.empty_like(color)
        for rows, rest in zip(split_bands([color]), split_bands([outside]), strict=True):
            torch.sub(rows, rows.clamp(0, 1), out=rest)
    color.clamp_(0, 1)
    return outside
