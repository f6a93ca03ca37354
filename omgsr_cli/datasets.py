"""Clean and low-quality images for training and the mid-timestep: real pairs, or random crops that are degraded."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from omgsr_cli.degradation import DegradationConfig, degrade, describe_degradation
from omgsr_cli.errors import FileError, ShapeError
from omgsr_cli.imaging import extend, read_image, resize

OnSmall = Literal["skip", "resize", "pad"]


def draw_window(size_px: tuple[int, int], crop_px: int, rng: np.random.Generator) -> tuple[int, int]:
    """Draw the top left corner of a square crop in an image of (height, width), uniformly.

    Raises:
        ShapeError: the image is smaller than the crop.
    """
    if min(size_px) < crop_px:
        raise ShapeError(f"a crop of {crop_px} does not fit in {size_px[1]}x{size_px[0]} pixels")
    height, width = size_px
    return int(rng.integers(height - crop_px + 1)), int(rng.integers(width - crop_px + 1))


def fit_small(image: Tensor, crop_px: int, on_small: OnSmall) -> Tensor | None:
    """Make an image large enough for a crop, if it is smaller.

    Args:
        image: (3, H, W) float32 in [0, 1].
        crop_px: side of the crop.
        on_small: "resize" upscales the shorter side to it (bicubic), "pad" reflects at the right and the bottom as
            often as needed, "skip" returns None.
    Returns:
        (3, h, w) with both sides at least crop_px; the image itself if it is large enough; None for "skip".
    """
    height, width = image.shape[-2:]
    if min(height, width) >= crop_px:
        return image
    if on_small == "skip":
        return None
    if on_small == "resize":
        factor = crop_px / min(height, width)
        return resize(image, (max(crop_px, round(height * factor)), max(crop_px, round(width * factor))), 16)
    return extend(image, (max(height, crop_px), max(width, crop_px)))


def trim(image: Tensor, multiple: int) -> Tensor:
    """Crop (3, H, W) at the right and the bottom to a multiple; smaller sides are padded by reflection."""
    height, width = (max(multiple, length // multiple * multiple) for length in image.shape[-2:])
    return extend(image[:, :height, :width], (height, width))


def whole_factor(large_px: tuple[int, int], small_px: tuple[int, int]) -> int | None:
    """The whole factor by which an image is larger than another on both sides, or None."""
    factor = large_px[0] / small_px[0]
    if factor != large_px[1] / small_px[1] or not math.isclose(factor, round(factor)) or factor < 1:
        return None
    return round(factor)


_CROP, _ORDER = 1, 2


@dataclass(frozen=True)
class ImagePair:
    """One clean image and its low-quality partner.

    Attributes:
        path: of the clean image.
        window: (top, left) of the crop in it.
        drawn: the random choices of the degradation, by name; empty for a real pair.
        clean: (3, H, W) float32, sRGB in [-1, 1].
        degraded: same shape; smaller images are upscaled to it.
    """

    path: Path
    window: tuple[int, int]
    drawn: dict[str, str]
    clean: Tensor
    degraded: Tensor


@dataclass(frozen=True)
class PairSource:
    """All samples of a dataset, in an order that depends on the seed only.

    The first epoch has one sample per image; later epochs have other crops of the same images. Each sample depends on
    (seed, epoch, image) only, not on processes or batches.

    Attributes:
        images: the clean images.
        partners: the low-quality image of each, or None to degrade crops.
        config: of the degradation.
        resolution_px: side of the crops; None uses whole images, for real pairs only.
        scale: the side of a crop over the side of its degraded version.
        on_small: what to do with images that are smaller than a crop.
        multiple_of_px: heights and widths are cropped to multiples of it.
        count: number of samples.
    """

    images: tuple[Path, ...]
    partners: tuple[Path, ...] | None
    config: DegradationConfig
    resolution_px: int | None
    scale: float
    on_small: OnSmall
    multiple_of_px: int
    seed: int
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, item: int) -> ImagePair | FileError:
        # An unreadable file is a result and does not end the run.
        epoch, index = self.place_of(item)
        try:
            return self._pair(index, epoch) if self.partners is not None else self._degraded(index, epoch)
        except FileError as error:
            return error

    def place_of(self, item: int) -> tuple[int, int]:
        """The epoch of sample `item`, and the index of its image."""
        epoch, place = divmod(item, len(self.images))
        return epoch, int(self._order[place])

    def files_of(self, item: int) -> tuple[Path, ...]:
        """The image of sample `item`, with its partner for real pairs."""
        _, index = self.place_of(item)
        return (self.images[index],) if self.partners is None else (self.images[index], self.partners[index])

    @cached_property
    def _order(self) -> Any:
        return self._rng(_ORDER, 0, 0).permutation(len(self.images))

    def _rng(self, purpose: int, epoch: int, index: int) -> np.random.Generator:
        return np.random.Generator(np.random.SFC64(np.random.SeedSequence((self.seed, purpose, epoch, index))))

    def _window(self, image: Tensor, epoch: int, index: int) -> tuple[slice, slice]:
        side = self.resolution_px or 0
        top, left = draw_window((image.shape[1], image.shape[2]), side, self._rng(_CROP, epoch, index))
        return slice(top, top + side), slice(left, left + side)

    def _degraded(self, index: int, epoch: int) -> ImagePair:
        path, side = self.images[index], self.resolution_px or 0
        image = read_image(path).rgb
        fitted = fit_small(image, side, self.on_small)
        if fitted is None:
            raise _too_small(path, image, side)
        rows, columns = self._window(fitted, epoch, index)
        clean = fitted[:, rows, columns]
        low = degrade(clean[None], self.scale, self.config, seed=self.seed, epoch=epoch, indices=[index])[0]
        drawn = _named(describe_degradation(self.config, seed=self.seed, epoch=epoch, index=index))
        return self._sample(path, (rows.start, columns.start), drawn, clean, resize(low, (side, side), 16))

    def _pair(self, index: int, epoch: int) -> ImagePair:
        assert self.partners is not None
        path, partner = self.images[index], self.partners[index]
        clean, low = read_image(path).rgb, read_image(partner).rgb
        if whole_factor((clean.shape[1], clean.shape[2]), (low.shape[1], low.shape[2])) is None:
            sizes = (f"{image.shape[2]}x{image.shape[1]}" for image in (low, clean))
            raise FileError(
                f"{partner} has {' pixels, its partner '.join(sizes)}",
                "it must have the same size, or be smaller by a whole factor",
            )
        low = resize(low, (clean.shape[1], clean.shape[2]), 16)
        side, window = self.resolution_px, (0, 0)
        if side is not None:
            fitted, low_fitted = fit_small(clean, side, self.on_small), fit_small(low, side, self.on_small)
            if fitted is None or low_fitted is None:
                raise _too_small(path, clean, side)
            rows, columns = self._window(fitted, epoch, index)
            clean, low, window = fitted[:, rows, columns], low_fitted[:, rows, columns], (rows.start, columns.start)
        return self._sample(path, window, {}, clean, low)

    def _sample(
        self, path: Path, window: tuple[int, int], drawn: dict[str, str], clean: Tensor, low: Tensor
    ) -> ImagePair:
        both = (trim(image, self.multiple_of_px) * 2 - 1 for image in (clean, low))
        return ImagePair(path, window, drawn, *both)


def _too_small(path: Path, image: Tensor, side: int) -> FileError:
    height, width = image.shape[-2:]
    return FileError(
        f"{path} has {width}x{height} pixels, smaller than a crop of {side}",
        "use --on-small resize or pad, or a smaller --resolution",
    )


def _named(plan: dict[str, Any]) -> dict[str, str]:
    """The random choices of a degradation that may affect the ratio, as group names."""
    first, last = plan["first"], plan["second"]
    return {
        "first noise": "gaussian" if first["gaussian"] else "poisson",
        "first resize": "reduced" if first["factor"] < 1 else "enlarged" if first["factor"] > 1 else "kept",
        "last JPEG": "below 60" if last["quality"] < 60 else "60 and more",
        "final sinc": "none" if plan["final_kernel"] is None else "filtered",
    }
