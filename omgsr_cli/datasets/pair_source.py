"""Clean and low-quality images of a data set: real pairs, or random crops that are degraded."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from omgsr_cli.datasets.crops import OnSmall, draw_window, fit_small, trim, whole_factor
from omgsr_cli.degradation import DegradationConfig, degrade, describe_degradation
from omgsr_cli.errors import FileError
from omgsr_cli.imaging import read_image, resize

_CROP, _ORDER = 1, 2


@dataclass(frozen=True)
class ImagePair:
    """One clean image and its low-quality partner.

    Attributes:
        path: of the clean picture.
        window: (top, left) of the crop in it.
        drawn: what the degradation drew, by name; empty for a real pair.
        clean: (3, H, W) float32, sRGB in [-1, 1].
        degraded: same shape: enlarged to it where it was smaller.
    """

    path: Path
    window: tuple[int, int]
    drawn: dict[str, str]
    clean: Tensor
    degraded: Tensor


@dataclass(frozen=True)
class PairSource:
    """Every sample of a data set, in an order that only the seed decides.

    Item i is picture i of the first epoch and goes on with further crops of the same pictures in the next ones;
    each depends on (seed, epoch, its picture) alone, not on processes or batches.

    Attributes:
        pictures: the clean pictures.
        partners: the low-quality picture of each, or None to degrade crops.
        config: of the degradation.
        resolution_px: side of the crops; None takes whole pictures, which only real pairs can be.
        scale: the crop's side over the degraded one's.
        on_small: what becomes of a picture that is smaller than a crop.
        multiple_of_px: heights and widths are made multiples of it.
        seed: of order, crops and degradation.
        count: how many samples there are.
    """

    pictures: tuple[Path, ...]
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
        # A file that cannot be read is a result, not the end of the run.
        epoch, index = self.place_of(item)
        try:
            return self._pair(index, epoch) if self.partners is not None else self._degraded(index, epoch)
        except FileError as error:
            return error

    def place_of(self, item: int) -> tuple[int, int]:
        """How often all pictures came before sample `item`, and which of them it is."""
        epoch, place = divmod(item, len(self.pictures))
        return epoch, int(self._order[place])

    def files_of(self, item: int) -> tuple[Path, ...]:
        """The picture of sample `item`, and its partner where there are real pairs."""
        _, index = self.place_of(item)
        return (self.pictures[index],) if self.partners is None else (self.pictures[index], self.partners[index])

    @cached_property
    def _order(self) -> Any:
        return self._rng(_ORDER, 0, 0).permutation(len(self.pictures))

    def _rng(self, purpose: int, epoch: int, index: int) -> np.random.Generator:
        return np.random.Generator(np.random.SFC64(np.random.SeedSequence((self.seed, purpose, epoch, index))))

    def _window(self, image: Tensor, epoch: int, index: int) -> tuple[slice, slice]:
        side = self.resolution_px or 0
        top, left = draw_window((image.shape[1], image.shape[2]), side, self._rng(_CROP, epoch, index))
        return slice(top, top + side), slice(left, left + side)

    def _degraded(self, index: int, epoch: int) -> ImagePair:
        path, side = self.pictures[index], self.resolution_px or 0
        picture = read_image(path).rgb
        fitted = fit_small(picture, side, self.on_small)
        if fitted is None:
            raise _too_small(path, picture, side)
        rows, columns = self._window(fitted, epoch, index)
        clean = fitted[:, rows, columns]
        low = degrade(clean[None], self.scale, self.config, seed=self.seed, epoch=epoch, indices=[index])[0]
        drawn = _named(describe_degradation(self.config, seed=self.seed, epoch=epoch, index=index))
        return self._sample(path, (rows.start, columns.start), drawn, clean, resize(low, (side, side), 16))

    def _pair(self, index: int, epoch: int) -> ImagePair:
        assert self.partners is not None
        path, partner = self.pictures[index], self.partners[index]
        clean, low = read_image(path).rgb, read_image(partner).rgb
        if whole_factor((clean.shape[1], clean.shape[2]), (low.shape[1], low.shape[2])) is None:
            sizes = (f"{image.shape[2]}x{image.shape[1]}" for image in (low, clean))
            raise FileError(
                f"{partner} has {' pixels, its partner '.join(sizes)}", "the same, or smaller by a whole factor"
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


def _too_small(path: Path, picture: Tensor, side: int) -> FileError:
    height, width = picture.shape[-2:]
    return FileError(
        f"{path} has {width}x{height} pixels, smaller than a crop of {side}",
        "--on-small resize or pad takes it all the same, or give a smaller --resolution",
    )


def _named(plan: dict[str, Any]) -> dict[str, str]:
    """The choices of a degradation that may matter for the ratio, as names of groups."""
    first, last = plan["first"], plan["second"]
    return {
        "first noise": "gaussian" if first["gaussian"] else "poisson",
        "first resize": "reduced" if first["factor"] < 1 else "enlarged" if first["factor"] > 1 else "kept",
        "last JPEG": "below 60" if last["quality"] < 60 else "60 and more",
        "final sinc": "none" if plan["final_kernel"] is None else "filtered",
    }
