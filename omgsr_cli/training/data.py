"""Pairs of low-quality and sharp crops. A sample is decided by the run's seed and its own number, by nothing else."""

from __future__ import annotations

import hashlib
import json
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from omgsr_cli.datasets.crops import OnSmall, draw_window, fit_small
from omgsr_cli.degradation import DegradationConfig, degrade, in_one_thread
from omgsr_cli.degradation.pipeline import draw_mode, interpolate
from omgsr_cli.errors import OmgsrError
from omgsr_cli.files.remembered import Remembered
from omgsr_cli.imaging import resize, to_samples
from omgsr_cli.training.draws import Purpose, choose, draw_rng
from omgsr_cli.training.lq_pixels import add_lq_noise, draw_surface
from omgsr_cli.training.pictures import Order, TrainingPicture, plan_epoch
from omgsr_cli.training.pixels import BrokenImageError, Pixels, read_pixels
from omgsr_cli.training.sections import LqNoise
from omgsr_cli.training.teacher import KeptPictures, LowFrequencies, blur_gaussian, teacher_target

_LUMA = (0.299, 0.587, 0.114)
_NO_NOISE = LqNoise()
_CROP_FORMAT = 1
"""Raise it when the same seed and number give other crops, so that a teacher's old images are no longer found."""

_NOT_OF_THE_CROP = ("flip", "turn", "smooth", "cache", "noise", "teaching", "upscale")
"""Options that change what is made of a crop, not the crop that a teacher sees. All others are part of its key."""

_PLACES = 3
_SKIPPED_PX = 4
"""Detail is estimated from every fourth pixel."""


@dataclass(frozen=True)
class Teaching:
    """A teacher's pictures of a fixed number of crops.

    Attributes:
        kept: the pictures.
        crops: how many there are.
        sigma_px: as for `teacher_target`.
        low_frequencies: likewise.
    """

    kept: KeptPictures
    crops: int
    sigma_px: float
    low_frequencies: LowFrequencies


@dataclass(frozen=True)
class CropOptions:
    """How samples are made of pictures.

    Attributes:
        resolution: side of a sample, pixels.
        scales: enlargements and their probabilities.
        degradations: what makes low-quality pictures, and the probability of each; none leaves pictures as they are.
        flip: mirror half of the crops.
        turn: turn them by a multiple of 90 degrees.
        detail: probability of taking, of three places, the one with the most detail: skies teach little.
        halve: probability of taking a crop of twice the side at half size, where the picture is large enough.
        gray: probability of a crop in black and white.
        smooth: probability of a drawn surface in the crop's place.
        on_small: "resize" enlarges pictures that are smaller than a crop, "pad" continues them by reflection.
        cache: folder of decoded pixels, or None.
        margin_px: crops are this much larger on each axis while they are degraded, and then cut at any offset: real
            pictures begin anywhere in the grids of JPEG, of resizing and of latents.
        noise: at the low-quality crop's own pixels.
        upscale: "bicubic" enlarges low-quality crops as users' images are, "random" by one of the published filters.
        sampling: "area" takes large images more often, as `plan_epoch` does, "equal" all alike.
        teaching: where a teacher's pictures of them come from, or None.
    """

    resolution: int
    scales: tuple[tuple[float, float], ...]
    degradations: tuple[tuple[DegradationConfig, float], ...]
    flip: bool = True
    turn: bool = False
    detail: float = 0.0
    halve: float = 0.0
    gray: float = 0.0
    smooth: float = 0.0
    on_small: OnSmall = "skip"
    cache: Path | None = None
    margin_px: int = 16
    noise: LqNoise = _NO_NOISE
    upscale: Literal["bicubic", "random"] = "bicubic"
    sampling: Literal["area", "equal"] = "area"
    teaching: Teaching | None = None


@dataclass(frozen=True)
class Batch:
    """Samples of one process for one forward pass.

    Attributes:
        lq: (B, 3, R, R) float32, enlarged low-quality crops, sRGB in [-1, 1].
        hq: same shape, the sharp ones.
        target: likewise, what a teacher would make of them; None without a teacher.
        numbers: of the samples in the run.
        broken: images that could not be read and were replaced by others, with the reason.
    """

    lq: Tensor
    hq: Tensor
    target: Tensor | None
    numbers: tuple[int, ...]
    broken: Mapping[Path, str] = field(default_factory=dict)

    def to(self, device: torch.device) -> Batch:
        """Move the pixels to a device."""
        lq, hq, target = (
            None if image is None else image.to(device, non_blocking=device.type == "cuda")
            for image in (self.lq, self.hq, self.target)
        )
        assert lq is not None
        assert hq is not None
        return replace(self, lq=lq, hq=hq, target=target)


Sample = tuple[int, *tuple[Tensor, ...]]
"""Its number in the run, and its pictures: low-quality, sharp and, with a teacher, target."""


class TrainingCrops(Dataset[Sample]):
    """Samples by their numbers in the run: there is one for every number.

    A sample is a window of a crop. Every sample has a crop of its own, or with a teacher one of those that it saw.
    """

    def __init__(self, pictures: Sequence[TrainingPicture], options: CropOptions, seed: int) -> None:
        self._pictures, self.options, self._seed = pictures, options, seed
        epoch = plan_epoch(pictures, options.resolution) if options.sampling == "area" else range(len(pictures))
        self._order = Order(epoch, seed)
        teaching = options.teaching
        self._pool = None if teaching is None else Order(range(teaching.crops), seed, Purpose.POOL)
        self.broken: dict[Path, str] = {}
        """Images that this process could not read, with the reason; their samples come from others."""

    def __getitem__(self, number: int) -> Sample:
        """Give a sample's number, and (3, R, R) in [-1, 1]: enlarged low-quality crop, sharp crop and target.

        The values depend on the seed and the number alone, to the bit, whatever the number of threads, workers and
        processes.
        """
        return in_one_thread(self._draw_sample, number)

    def _draw_sample(self, number: int) -> Sample:
        options = self.options
        lq, *images = self._draw_images(number)
        height, width = images[0].shape[1:]
        noisy = add_lq_noise(lq, options.noise, draw_rng(self._seed, Purpose.NOISE, number))
        rng = draw_rng(self._seed, Purpose.WINDOW, number)
        y, x = (int(rng.integers(side - options.resolution + 1)) for side in (height, width))
        window = (slice(None), slice(y, y + options.resolution), slice(x, x + options.resolution))
        images = [image[window] * 2 - 1 for image in (self._enlarge(noisy, (height, width), number), *images)]
        return number, *_turn(images, options, rng)

    def _enlarge(self, lq: Tensor, size_px: tuple[int, int], number: int) -> Tensor:
        if self.options.upscale == "bicubic":
            return resize(lq, size_px)
        return interpolate(lq, size_px, draw_mode(draw_rng(self._seed, Purpose.FILTER, number))).clamp(0, 1)

    def _draw_images(self, number: int) -> tuple[Tensor, ...]:
        """Give a sample's low-quality picture at its own size, the sharp one and, with a teacher, the target."""
        options = self.options
        rng = draw_rng(self._seed, Purpose.SURFACE, number)
        if rng.random() < options.smooth:
            lq, hq = draw_surface(options.resolution, choose(options.scales, rng), rng)
            return (lq, hq) if options.teaching is None else (lq, hq, hq)
        if options.teaching is None or self._pool is None:
            return self._draw_pair(number)
        crop = self._pool.picture(number)
        lq, hq = self._draw_pair(crop)
        taught = options.teaching.kept.read(self.crop_key(crop), (hq.shape[1], hq.shape[2]))
        return lq, hq, teacher_target(taught, hq, options.teaching.sigma_px, options.teaching.low_frequencies)

    def crop_key(self, number: int) -> str:
        """Name a crop by what defines it: the content of its files, the seed, its number and the options.

        No pixel is part of the name: the crop need not be computed, and a rounding difference on another machine does
        not change it.

        Returns:
            64 hexadecimal digits.
        Raises:
            FileError: an image cannot be read.
        """
        picture = self._picture_of(number)
        defined_by = {
            "format": _CROP_FORMAT,
            "seed": self._seed,
            "number": number,
            "hq": self._content(picture.hq),
            "lq": None if picture.lq is None else self._content(picture.lq),
            "options": self._described_options,
        }
        return hashlib.sha256(json.dumps(defined_by, sort_keys=True).encode()).hexdigest()

    @cached_property
    def _described_options(self) -> dict[str, Any]:
        kept = {name: value for name, value in vars(self.options).items() if name not in _NOT_OF_THE_CROP}
        return kept | {"degradations": [(config.model_dump(), share) for config, share in self.options.degradations]}

    def _content(self, path: Path) -> str:
        if path not in self._contents:
            # The place of a broken image was taken by one that no other crop needs.
            self._contents |= _read_contents([path])
        return self._contents[path]

    @cached_property
    def _contents(self) -> dict[Path, str]:
        """SHA-256 of every file that a teacher's crops come from; read at once, before workers start."""
        assert self.options.teaching is not None, "only a teacher's crops need names"
        pictures = [self._pictures[self._order.picture(number)] for number in range(self.options.teaching.crops)]
        return _read_contents(sorted({file for picture in pictures for file in picture.files}))

    def _picture_of(self, number: int) -> TrainingPicture:
        """Give the image of a crop: by its turn, or if that is known to be broken one that the crop's number draws."""
        if len(self.broken) >= len(self._pictures):
            raise OmgsrError(f"none of {len(self._pictures)} images can be read", next(iter(self.broken.values())))
        picture = self._pictures[self._order.picture(number)]
        rng = draw_rng(self._seed, Purpose.REPLACEMENT, number)
        while not self.broken.keys().isdisjoint(picture.files):
            picture = self._pictures[int(rng.integers(len(self._pictures)))]
        return picture

    def draw_pair(self, number: int) -> tuple[Tensor, Tensor]:
        """Give a crop by its number: low-quality (3, h, w) at its own size, and sharp (3, H, W), in [0, 1]."""
        return in_one_thread(self._draw_pair, number)

    def _draw_pair(self, number: int) -> tuple[Tensor, Tensor]:
        # Which images are broken is a property of the files, so every process ends with the same one.
        while True:
            try:
                return self._cut_crop(self._picture_of(number), number)
            except BrokenImageError as error:
                self.broken[error.path] = error.message

    def _cut_crop(self, picture: TrainingPicture, number: int) -> tuple[Tensor, Tensor]:
        rng = draw_rng(self._seed, Purpose.CROP, number)
        gray = draw_rng(self._seed, Purpose.GRAY, number).random() < self.options.gray
        if picture.lq is None:
            return self._degrade_crop(picture, rng, number, gray=gray)
        lq, hq = self._cut_pair(picture, rng)
        return (to_gray(lq), to_gray(hq)) if gray else (lq, hq)

    def _degrade_crop(
        self, picture: TrainingPicture, rng: np.random.Generator, number: int, *, gray: bool
    ) -> tuple[Tensor, Tensor]:
        options = self.options
        hq = _to_tensor(self._draw_crop(read_pixels(picture.hq, options.cache), rng))
        hq = to_gray(hq) if gray else hq
        if not options.degradations:
            return hq, hq
        scale, config = choose(options.scales, rng), choose(options.degradations, rng)
        lq = degrade(hq[None], scale, config, seed=self._seed, epoch=int(Purpose.DEGRADATION), indices=[number])
        if config.target_blur_sigma[1]:
            sigma_px = draw_rng(self._seed, Purpose.TARGET, number).uniform(*config.target_blur_sigma)
            hq = blur_gaussian(hq, sigma_px) if sigma_px else hq
        return (to_gray(lq[0]) if gray else lq[0]), hq

    def _draw_crop(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        """A crop of the resolution and a margin, or of less margin where the picture has not enough."""
        options = self.options
        side_px = options.resolution + options.margin_px
        factor = 2 if rng.random() < options.halve and min(pixels.shape[:2]) >= 2 * side_px else 1
        pixels = grow(pixels, options.resolution, options.on_small)
        crop_px = min(factor * side_px, *pixels.shape[:2])
        places = _PLACES if rng.random() < options.detail else 1
        corners = [draw_window((pixels.shape[0], pixels.shape[1]), crop_px, rng) for _ in range(places)]
        windows = [_window(pixels, y, x, crop_px) for y, x in corners]
        crop = max(windows, key=_detail) if places > 1 else windows[0]
        return crop if factor == 1 else _halve(crop)

    def _cut_pair(self, picture: TrainingPicture, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        options, scale = self.options, picture.lq_scale
        assert picture.lq is not None
        least_px = -(-options.resolution // scale)
        lq_pixels = grow(read_pixels(picture.lq, options.cache), least_px, options.on_small)
        hq_pixels = grow(read_pixels(picture.hq, options.cache), least_px * scale, options.on_small)
        side_px = min(-(-(options.resolution + options.margin_px) // scale), *lq_pixels.shape[:2])
        y, x = draw_window((lq_pixels.shape[0], lq_pixels.shape[1]), side_px, rng)
        lq, hq = _window(lq_pixels, y, x, side_px), _window(hq_pixels, y * scale, x * scale, side_px * scale)
        return _to_tensor(lq), _to_tensor(hq)


class Numbers(Sampler[list[int]]):
    """Numbers of one process's batches, without end: batches go to the processes in turn.

    Args:
        batch: samples of one process in one forward pass.
        start: number of the run's next sample.
        rank: of this process.
        processes: how many there are.
    """

    def __init__(self, batch: int, start: int, rank: int, processes: int) -> None:
        self._batch, self._start, self._rank, self._processes = batch, start, rank, processes

    def __iter__(self) -> Iterator[list[int]]:
        first = self._start + self._rank * self._batch
        while True:
            yield list(range(first, first + self._batch))
            first += self._batch * self._processes


def load_batches(crops: TrainingCrops, numbers: Numbers, workers: int, device: torch.device) -> Iterator[Batch]:
    """Read batches without end, in other processes where there are workers."""
    more: Mapping[str, Any] = {"prefetch_factor": 4, "persistent_workers": True} if workers else {}
    loader = DataLoader(
        _Reported(crops),
        batch_sampler=numbers,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_start_worker,
        pin_memory=device.type == "cuda",
        # Without its own generator, the loader draws a seed for its workers from the global state.
        generator=torch.Generator(),
        **more,
    )
    for batch in loader:
        if isinstance(batch, OmgsrError):
            raise batch
        yield batch.to(device)


@dataclass(frozen=True)
class _Reported(Dataset["tuple[Sample, Mapping[Path, str]] | OmgsrError"]):
    """Samples with the images that were replaced so far; an error is a value, which a worker hands over as it is."""

    crops: TrainingCrops

    def __getitem__(self, number: int) -> tuple[Sample, Mapping[Path, str]] | OmgsrError:
        try:
            return self.crops[number], dict(self.crops.broken)
        except OmgsrError as error:
            return error


def grow(pixels: Pixels, least_px: int, on_small: OnSmall) -> Pixels:
    """Make both sides of (H, W, 3) at least `least_px`, as `fit_small` does; smaller pictures were skipped before."""
    if min(pixels.shape[:2]) >= least_px:
        return pixels
    fitted = fit_small(_to_tensor(pixels), least_px, "pad" if on_small == "skip" else on_small)
    assert fitted is not None
    whole: Pixels = to_samples(fitted, 8)
    return whole


def to_gray(image: Tensor) -> Tensor:
    """Give (3, H, W) in [0, 1] the same luma in every channel, in whole levels of 1/255."""
    luma = (image * torch.tensor(_LUMA)[:, None, None]).sum(0, keepdim=True)
    return luma.mul(255).round().div(255).expand_as(image).contiguous()


def _window(pixels: Pixels, y: int, x: int, side_px: int) -> Pixels:
    return pixels[y : y + side_px, x : x + side_px]


def _detail(crop: Pixels) -> float:
    return float(crop[::_SKIPPED_PX, ::_SKIPPED_PX, 1].std())


def _halve(crop: Pixels) -> Pixels:
    """Average blocks of 2x2: (H, W, 3) of even sides to half of them."""
    blocks = crop.reshape(crop.shape[0] // 2, 2, crop.shape[1] // 2, 2, 3)
    halved: Pixels = ((blocks.sum((1, 3), dtype=np.uint16) + 2) // 4).astype(np.uint8)
    return halved


def _to_tensor(pixels: Pixels) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float().div_(255)


def _turn(images: Sequence[Tensor], options: CropOptions, rng: np.random.Generator) -> list[Tensor]:
    quarters = int(rng.integers(4)) if options.turn else 0
    flipped = [2] if options.flip and rng.random() < 0.5 else []
    return [image.rot90(quarters, (1, 2)).flip(flipped).contiguous() for image in images]


def _collate(samples: Sequence[tuple[Sample, Mapping[Path, str]] | OmgsrError]) -> Batch | OmgsrError:
    done = []
    for sample in samples:
        if isinstance(sample, OmgsrError):
            return sample
        done.append(sample)
    numbers, *images = zip(*(sample for sample, _ in done), strict=True)
    lq, hq, *target = (torch.stack(each) for each in images)
    broken = {path: reason for _, each in done for path, reason in each.items()}
    return Batch(lq, hq, target[0] if target else None, numbers, broken)


def _read_contents(files: Sequence[Path]) -> dict[Path, str]:
    remembered = Remembered()
    try:
        return {file: remembered.content(file) for file in files}
    finally:
        remembered.close()


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)
    # Ctrl-C reaches every process of the terminal: the trainer decides when to stop, and tells the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
