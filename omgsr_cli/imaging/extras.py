"""Formats that are read by a library of their own, each an extra of the package: HEIC, JPEG XL, cameras' raw files."""

from __future__ import annotations

import importlib
import warnings
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from omgsr_cli.errors import FileError
from omgsr_cli.files.folders import EXTRA_OF_FORMAT, RAW_SUFFIXES, has_reader, install_hint

# sRGB's own curve, as LibRaw takes it: the inverse of its power, and the slope near black.
_SRGB_GAMMA = (2.4, 12.92)
_TURNED = (5, 6)


@cache
def add_readers() -> None:
    """Tell Pillow of HEIC and JPEG XL, where what reads them is installed."""
    if has_reader("heic"):
        importlib.import_module("pillow_heif").register_heif_opener(thumbnails=False)
    if has_reader("jxl"):
        importlib.import_module("pillow_jxl")


def missing_reader(kind: str, name: str) -> FileError:
    """Say what to install for a file that cannot be read without it."""
    what = {"heic": "HEIC pictures", "jxl": "JPEG XL pictures", "raw": "a camera's raw files"}[kind]
    module = EXTRA_OF_FORMAT[kind][1].replace("_", "-")
    return FileError(f"{name}: {what} need {module}, which is not installed", install_hint([kind]))


def heif_depth(image: Image.Image) -> int:
    """Bits per channel of an opened HEIC picture; 8 for all others."""
    return int(image.info.get("bit_depth", 8)) if image.format == "HEIF" else 8


def read_deep_heif(file: BinaryIO) -> NDArray[np.uint16]:
    """Decode a HEIC picture of 10 or 12 bits, upright.

    Args:
        file: the whole of it, seekable.
    Returns:
        (H, W, C) uint16 over the whole range.
    Raises:
        ValueError, RuntimeError, EOFError, SyntaxError, OSError: it is broken.
    """
    file.seek(0)
    picture = importlib.import_module("pillow_heif").open_heif(file, convert_hdr_to_8bit=False)
    samples: NDArray[np.uint16] = np.asarray(picture)
    depth = int(picture.info["bit_depth"])
    largest = (1 << depth) - 1
    # The library shifts levels to the upper bits, which leaves white a little grey.
    levels = (samples >> (16 - depth)).astype(np.uint32)
    scaled = ((levels * 65535 + largest // 2) // largest).astype(np.uint16)
    return scaled[:, :, None] if scaled.ndim == 2 else scaled


def is_raw(source: Path | bytes) -> bool:
    """Whether a file is a camera's raw one, by its name: most begin as TIFF, and would be read as their thumbnail."""
    return isinstance(source, Path) and source.suffix.lower() in RAW_SUFFIXES


def raw_size(file: BinaryIO, name: str) -> tuple[int, int]:
    """Height and width of a raw file once it is developed, upright.

    Raises:
        FileError: it is broken, of no known camera, or rawpy is not installed.
    """
    rawpy = _rawpy(name)
    try:
        with rawpy.imread(file) as raw:
            sizes = raw.sizes
    except rawpy.LibRawError as error:
        raise _broken_raw(name, error) from error
    height, width = sizes.height, sizes.width
    return (width, height) if sizes.flip in _TURNED else (height, width)


def develop_raw(file: BinaryIO, name: str) -> NDArray[np.uint16]:
    """Develop a raw file as the camera would: its white balance, sRGB, upright.

    Returns:
        (H, W, 3) uint16.
    Raises:
        FileError: as for `raw_size`.
    """
    rawpy = _rawpy(name)
    try:
        with rawpy.imread(file) as raw, warnings.catch_warnings(action="ignore"):
            developed: NDArray[np.uint16] = raw.postprocess(use_camera_wb=True, output_bps=16, gamma=_SRGB_GAMMA)
    except rawpy.LibRawError as error:
        raise _broken_raw(name, error) from error
    return developed


def _rawpy(name: str) -> Any:
    if not has_reader("raw"):
        raise missing_reader("raw", name)
    return importlib.import_module("rawpy")


def _broken_raw(name: str, error: Exception) -> FileError:
    reason = error.args[0].decode() if error.args and isinstance(error.args[0], bytes) else str(error)
    return FileError(f"{name}: the raw file cannot be read: {reason}", "develop it to TIFF in another program first")
