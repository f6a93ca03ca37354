"""Pixels of training pictures: decoded for a crop, or decoded once into files that every worker maps."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from omgsr_cli.errors import FileError, reason_of
from omgsr_cli.files.atomic import partial_file
from omgsr_cli.imaging import read_picture, to_samples

Pixels = npt.NDArray[np.uint8]


class BrokenImageError(FileError):
    """An image whose header can be read and whose pixels cannot.

    Args:
        path: of the image.
        reason: why, one line.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(reason)
        self.path = path

    def __reduce__(self) -> tuple[type[BrokenImageError], tuple[Path, str]]:
        return type(self), (self.path, self.message)


def read_pixels(path: Path, cache: Path | None = None) -> Pixels:
    """Give a picture's pixels in sRGB, upright; transparency is left aside.

    Args:
        path: of the picture.
        cache: folder in which decoded pixels are kept, 3 bytes a pixel; a changed file is decoded again.
    Returns:
        (H, W, 3) uint8, read-only where it is mapped from the cache.
    Raises:
        BrokenImageError: it cannot be read.
        FileError: the cache cannot be written.
    """
    if cache is None:
        return _decode(path)
    kept = cache / f"{_key(path)}.npy"
    if not kept.is_file():
        _keep(kept, _decode(path))
    mapped: Pixels = np.load(kept, mmap_mode="r")
    return mapped


def is_broken(path: Path, cache: Path | None = None) -> bool:
    """Whether an image's pixels cannot be read; see `read_pixels`."""
    try:
        read_pixels(path, cache)
    except BrokenImageError:
        return True
    return False


def _decode(path: Path) -> Pixels:
    try:
        pixels: Pixels = to_samples(read_picture(path).rgb, 8)
    except FileError as error:
        raise BrokenImageError(path, error.message) from error
    return pixels


def _key(path: Path) -> str:
    try:
        state = path.stat()
    except OSError as error:
        raise BrokenImageError(path, f"{path}: {reason_of(error)}") from error
    # The change time moves even where a program sets the modification time back.
    text = f"{path.resolve()}\n{state.st_size}\n{state.st_mtime_ns}\n{state.st_ctime_ns}\n{state.st_ino}"
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _keep(kept: Path, pixels: Pixels) -> None:
    """Write beside and rename: several workers may decode the same picture, and the last one's file stays."""
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with partial_file(kept) as partial:
            with partial.open("wb") as file:
                np.save(file, pixels)
            os.replace(partial, kept)
    except OSError as error:
        raise FileError(f"{kept.parent}: pixels cannot be kept there: {reason_of(error)}") from error
