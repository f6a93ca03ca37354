"""Pairs of low-quality and high-quality crops; a sample depends only on the seed of the run and its own number.

Sample numbers are unique over the run and all processes. Different processes and steps therefore draw different random
numbers, and a resumed run draws the same ones as an uninterrupted run.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from enum import IntEnum
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from omgsr_cli.datasets import OnSmall, draw_window, fit_small
from omgsr_cli.degradation import DegradationConfig, degrade, in_one_thread, load_degradation
from omgsr_cli.degradation.pipeline import draw_mode, interpolate, jpeg
from omgsr_cli.errors import FileError, OmgsrError, reason_of
from omgsr_cli.files.atomic import partial_file
from omgsr_cli.files.remembered import Remembered
from omgsr_cli.imaging import read_image, resize, to_samples
from omgsr_cli.training.config import DataConfig, LqNoise, TrainConfig
from omgsr_cli.training.sources import Stored, TrainingImage, plan_epoch, read_stored, reduced_size
from omgsr_cli.training.teacher import TeacherImages, blur_gaussian, identify_teacher, teacher_target
from omgsr_cli.transfer import upload

Choice = TypeVar("Choice")


class Purpose(IntEnum):
    """Purpose of random numbers; each purpose has its own stream."""

    ORDER = 1
    CROP = 2
    LATENT = 3
    AUGMENT = 4
    DEGRADATION = 5
    LOSS = 6
    VALIDATION = 7
    JUDGEMENT = 8
    WINDOW = 9
    NOISE = 10
    POOL = 11
    SURFACE = 12
    GRAY = 13
    REPLACEMENT = 14
    FILTER = 15
    TARGET = 16


def draw_rng(seed: int, purpose: Purpose, number: int) -> np.random.Generator:
    """Return a numpy generator for a sample, an epoch or a step."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence((seed, int(purpose), number))))


def draw_generator(seed: int, purpose: Purpose, number: int) -> torch.Generator:
    """Return a torch generator on the CPU, so that the numbers are the same for every device."""
    state = np.random.SeedSequence((seed, int(purpose), number)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))


def draw_generators(seed: int, purpose: Purpose, numbers: Sequence[int]) -> list[torch.Generator]:
    """Return a generator for each sample, so that its numbers do not depend on the other samples of the batch."""
    return [draw_generator(seed, purpose, number) for number in numbers]


def draw_noise(like: Tensor, draws: Sequence[torch.Generator]) -> Tensor:
    """Draw standard normal noise like (B, ...), for each sample from its own generator."""
    noise = [torch.randn(like.shape[1:], generator=draw) for draw in draws]
    return upload(torch.stack(noise).to(like.dtype), like.device)


def choose(weighted: Sequence[tuple[Choice, float]], rng: np.random.Generator) -> Choice:
    """Draw one of several items with probabilities proportional to their weights."""
    chance = np.array([weight for _, weight in weighted])
    return weighted[int(rng.choice(len(weighted), p=chance / chance.sum()))][0]


class Order:
    """The order of samples: each epoch has a new permutation that depends only on the seed and the epoch's number.

    Epochs follow each other without a gap: a batch may continue in the next epoch, so that all batches have the same
    size and no image is skipped.
    """

    def __init__(self, epoch: Sequence[int], seed: int, purpose: Purpose = Purpose.ORDER) -> None:
        self._epoch, self._seed, self._purpose = np.array(epoch), seed, purpose
        self._permutation = (-1, self._epoch)

    def index(self, number: int) -> int:
        """Return the index of a sample's image."""
        epoch, position = divmod(number, len(self._epoch))
        if self._permutation[0] != epoch:
            self._permutation = (epoch, draw_rng(self._seed, self._purpose, epoch).permutation(self._epoch))
        return int(self._permutation[1][position])


Pixels = npt.NDArray[np.uint8]


class BrokenImageError(FileError):
    """The header of an image can be read, but its pixels cannot.

    Args:
        path: path of the image, or its place in a shard or a data set.
        reason: the reason, one line.
    """

    def __init__(self, path: Stored, reason: str) -> None:
        super().__init__(reason)
        self.path = path

    def __reduce__(self) -> tuple[type[BrokenImageError], tuple[Stored, str]]:
        return type(self), (self.path, self.message)


def read_pixels(path: Stored, cache: Path | None = None, resize_px: int | None = None) -> Pixels:
    """Read an image's pixels in sRGB, upright and without transparency.

    Args:
        path: path of the image, or its place in a shard or a data set.
        cache: folder of decoded pixels, 3 bytes per pixel; a changed file is decoded again.
        resize_px: shorter side to which a larger image is reduced; None keeps the size.
    Returns:
        (H, W, 3) uint8, read-only if it is mapped from the cache.
    Raises:
        BrokenImageError: the image cannot be read.
        FileError: the cache cannot be written.
    """
    if cache is None:
        return _decode(path, resize_px)
    cached = cache / f"{_key(path, resize_px)}.npy"
    if not cached.is_file():
        _write_pixels(cached, _decode(path, resize_px))
    mapped: Pixels = np.load(cached, mmap_mode="r")
    return mapped


def is_broken(path: Stored, cache: Path | None = None) -> bool:
    """Return whether `read_pixels` cannot read an image."""
    try:
        read_pixels(path, cache)
    except BrokenImageError:
        return True
    return False


def _decode(path: Stored, resize_px: int | None) -> Pixels:
    try:
        rgb = read_image(read_stored(path), str(path)).rgb
        pixels: Pixels = to_samples(resize(rgb, reduced_size(rgb.shape[1:], resize_px)), 8)
    except FileError as error:
        raise BrokenImageError(path, error.message) from error
    return pixels


def _key(path: Stored, resize_px: int | None) -> str:
    file = path if isinstance(path, Path) else getattr(path, "shard", None)
    text = repr(path)
    if file is not None:
        try:
            state = file.stat()
        except OSError as error:
            raise BrokenImageError(path, f"{path}: {reason_of(error)}") from error
        # The change time is updated even if a program resets the modification time.
        text = f"{file.resolve()}\n{state.st_size}\n{state.st_mtime_ns}\n{state.st_ctime_ns}\n{state.st_ino}"
        text += "" if file is path else f"\n{path}"
    text += f"\n{resize_px}" if resize_px else ""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def _write_pixels(cached: Path, pixels: Pixels) -> None:
    """Write a partial file and rename it: several workers may decode the same image, and the last file remains."""
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with partial_file(cached) as partial:
            with partial.open("wb") as file:
                np.save(file, pixels)
            os.replace(partial, cached)
    except OSError as error:
        # Windows does not replace a file that another worker has mapped; that file has the same pixels.
        if isinstance(error, PermissionError) and cached.is_file():
            return
        raise FileError(f"{cached.parent}: pixels cannot be cached there: {reason_of(error)}") from error


_SURFACE_SPREAD = 0.25
_SURFACE_NOISE = 12
_GRAY_SURFACES = 0.4


def add_lq_noise(lq: Tensor, noise: LqNoise, rng: np.random.Generator) -> Tensor:
    """Add noise at the low-quality image's own resolution, then compress it as JPEG, each with its own probability.

    Args:
        lq: (3, h, w) float32 in [0, 1].
        noise: probability, strength and kinds of the noise.
        rng: random generator; the number of draws does not depend on whether noise is added.
    Returns:
        (3, h, w) float32 in [0, 1]. "blurred" noise keeps its standard deviation after the blur. "grain" is blurred
        and equal in all channels; it has its full deviation in mid-tones and 0.7 of it in black and white.
    """
    chance, sigma = rng.random(), rng.uniform(*noise.sigma) / 255
    kind = choose(tuple(noise.kinds.items()), rng)
    drawn = torch.from_numpy(rng.standard_normal((3, *lq.shape[1:]), dtype=np.float32))
    saved, quality = rng.random() < noise.jpeg, int(rng.integers(noise.quality[0], noise.quality[1] + 1))
    if chance < noise.probability:
        lq = (lq + _shape_noise(drawn, kind, lq) * sigma).clamp(0, 1)
    return jpeg(lq, quality) if saved else lq


def _shape_noise(drawn: Tensor, kind: str, lq: Tensor) -> Tensor:
    """Convert (3, h, w) white noise to a kind of noise with unit standard deviation."""
    if kind == "white":
        return drawn
    if kind == "grey":
        return drawn[:1]
    blurred = F.avg_pool2d(F.pad(drawn, (1, 0, 1, 0), "replicate"), 2, 1) * 2
    if kind == "blurred":
        return blurred
    tone = lq.mean(0, keepdim=True)
    return blurred[:1] * (0.7 + 1.2 * tone * (1 - tone))


def draw_surface(side_px: int, scale: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Draw a surface without detail, such as sky or a wall: one tone or a smooth gradient of a few tones.

    The network learns from such samples not to turn plain noise into texture.

    Args:
        side_px: side of the high-quality image.
        scale: side of the high-quality image divided by that of the low-quality image.
        rng: random generator.
    Returns:
        Low-quality (3, h, h), rounded to 1/255, with a little noise, and high-quality (3, side, side); both in [0, 1].
    """
    knots = int(rng.integers(1, 4))
    spread = float(rng.uniform(0, _SURFACE_SPREAD))
    tones = torch.from_numpy(rng.random((1, 3, knots, knots), dtype=np.float32)) * spread
    tones = tones + torch.from_numpy(rng.uniform(0.03, 0.85, (1, 3, 1, 1)).astype(np.float32))
    if rng.random() < _GRAY_SURFACES:
        tones = tones.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    sharp = F.interpolate(tones, size=(side_px, side_px), mode="bicubic", align_corners=True).clamp(0, 1)
    small_px = max(1, round(side_px / scale))
    lq = F.interpolate(sharp, size=(small_px, small_px), mode="area")[0]
    noise = rng.standard_normal(tuple(lq.shape), dtype=np.float32) * float(rng.uniform(0, _SURFACE_NOISE)) / 255
    return (lq + torch.from_numpy(noise)).clamp(0, 1).mul(255).round().div(255), sharp[0]


_LUMA = (0.299, 0.587, 0.114)
_CROP_FORMAT = 2
"""Increase this when the same seed and number produce different crops, so that old images of a teacher are not used."""

_NOT_OF_THE_CROP = {
    *("train", "train_lq", "validation", "validation_lq", "batch_size", "workers", "cache"),
    *("flip", "turn", "smooth", "upscale", "sampling"),
}
"""Keys of [data] that do not change the crop that the teacher restores. All others are part of the crop's key, besides
the content of its files."""

_PLACES = 3


@dataclass(frozen=True)
class CropOptions:
    """Options for making samples from images.

    Attributes:
        data: the [data] section.
        degradations: degradations and their probabilities; an empty tuple keeps images unchanged.
        noise: noise at the resolution of the low-quality crop.
        teacher: the teacher's images, or None.
    """

    data: DataConfig
    degradations: tuple[tuple[DegradationConfig, float], ...]
    noise: LqNoise = LqNoise()  # noqa: RUF009 - frozen
    teacher: TeacherImages | None = None

    @property
    def cache(self) -> Path | None:
        """Folder of decoded pixels."""
        return None if self.data.cache is None else Path(self.data.cache)


def build_crop_options(config: TrainConfig) -> CropOptions:
    """Build the options for making samples from images.

    Raises:
        OmgsrError: a degradation or the teacher does not exist.
    """
    presets, teacher = config.degradation.presets, config.loss.teacher
    # Pre-training has no degradation.
    degradations = () if config.loss.denoise else tuple((load_degradation(p), share) for p, share in presets.items())
    images = None if teacher is None else TeacherImages(teacher, identify_teacher(teacher.model, teacher.precision))
    return CropOptions(config.data, degradations, config.degradation.lq_noise, images)


@dataclass(frozen=True)
class Batch:
    """Samples of one process for one forward pass.

    Attributes:
        lq: (B, 3, R, R) float32, upscaled low-quality crops, sRGB in [-1, 1].
        hq: same shape, the high-quality crops.
        target: same shape, the targets from a teacher; None without a teacher.
        numbers: sample numbers in the run.
        broken: images that could not be read and were replaced by others, with the reason.
    """

    lq: Tensor
    hq: Tensor
    target: Tensor | None
    numbers: tuple[int, ...]
    broken: Mapping[Stored, str] = field(default_factory=dict)

    def to(self, device: torch.device) -> Batch:
        """Move the pixels to a device."""
        lq, hq, target = (None if image is None else upload(image, device) for image in (self.lq, self.hq, self.target))
        assert lq is not None
        assert hq is not None
        return replace(self, lq=lq, hq=hq, target=target)


Sample = tuple[int, *tuple[Tensor, ...]]
"""The sample's number in the run and its images: low-quality, high-quality and, with a teacher, the target."""


class TrainingCrops(Dataset[Sample]):
    """Samples by their numbers: windows of crops, each of its own crop or, with a teacher, of one of the teacher's."""

    def __init__(self, images: Sequence[TrainingImage], options: CropOptions, seed: int) -> None:
        self.images, self.options, self._data, self._seed = images, options, options.data, seed
        self._order = Order(plan_epoch(images, self._data.resolution, by_area=self._data.sampling == "area"), seed)
        self._pool = None
        if options.teacher is not None:
            self._pool = Order(range(options.teacher.config.crops), seed, Purpose.POOL)
        self.broken: dict[Stored, str] = {}
        """Images that this process could not read, with the reason; other images replace them."""

    def __getitem__(self, number: int) -> Sample:
        """Return a sample's number and (3, R, R) in [-1, 1]: upscaled low-quality crop, high-quality crop, target.

        The values depend bit for bit only on the seed and the number, not on the number of threads, workers and
        processes.
        """
        return in_one_thread(self._draw_sample, number)

    def _draw_sample(self, number: int) -> Sample:
        side_px = self._data.resolution
        lq, *images = self._draw_images(number)
        height, width = images[0].shape[1:]
        noisy = add_lq_noise(lq, self.options.noise, draw_rng(self._seed, Purpose.NOISE, number))
        rng = draw_rng(self._seed, Purpose.WINDOW, number)
        y, x = (int(rng.integers(side - side_px + 1)) for side in (height, width))
        window = (slice(None), slice(y, y + side_px), slice(x, x + side_px))
        images = [image[window] * 2 - 1 for image in (self._upscale(noisy, (height, width), number), *images)]
        return number, *_turn(images, self._data, rng)

    def _upscale(self, lq: Tensor, size_px: tuple[int, int], number: int) -> Tensor:
        if self._data.upscale == "bicubic":
            return resize(lq, size_px)
        return interpolate(lq, size_px, draw_mode(draw_rng(self._seed, Purpose.FILTER, number))).clamp(0, 1)

    def _draw_images(self, number: int) -> tuple[Tensor, ...]:
        """Return a sample's low-quality image at its own size, the high-quality one and, with a teacher, the target."""
        teacher, rng = self.options.teacher, draw_rng(self._seed, Purpose.SURFACE, number)
        if rng.random() < self._data.smooth:
            lq, hq = draw_surface(self._data.resolution, choose(self._data.scales, rng), rng)
            return (lq, hq) if teacher is None else (lq, hq, hq)
        if teacher is None or self._pool is None:
            return self._draw_pair(number)
        crop = self._pool.index(number)
        lq, hq = self._draw_pair(crop)
        taught = teacher.read(self.crop_key(crop), (hq.shape[1], hq.shape[2]))
        if teacher.config.low_frequencies == "hq":
            taught = teacher_target(taught, hq, teacher.config.sigma_px)
        return lq, hq, taught

    def crop_key(self, number: int) -> str:
        """Compute a crop's key, 64 hexadecimal digits, from its files' contents, the seed, its number and the options.

        Pixels are not part of the key: the crop need not be computed, and rounding differences between machines do not
        change the key.

        Raises:
            FileError: an image cannot be read.
        """
        image = self._image_of(number)
        files = [self._content(file) for file in image.files]
        defined_by = [_CROP_FORMAT, self._seed, number, files, image.resize_px, self._described_options]
        return hashlib.sha256(json.dumps(defined_by, sort_keys=True).encode()).hexdigest()

    @cached_property
    def _described_options(self) -> list[Any]:
        kinds = [(config.model_dump(), share) for config, share in self.options.degradations]
        return [self._data.model_dump(exclude=_NOT_OF_THE_CROP), kinds]

    def _content(self, path: Stored) -> str:
        if path not in self._contents:
            # A broken image was replaced by an image that no other crop uses.
            self._contents |= _read_contents([path])
        return self._contents[path]

    @cached_property
    def _contents(self) -> dict[Stored, str]:
        """SHA-256 of every file of the teacher's crops; all are read together before workers start."""
        assert self.options.teacher is not None, "only a teacher's crops need names"
        images = [self.images[self._order.index(number)] for number in range(self.options.teacher.config.crops)]
        return _read_contents(sorted({file for image in images for file in image.files}, key=str))

    def _image_of(self, number: int) -> TrainingImage:
        """Return the image of a crop by its order; if it is broken, draw another one from the crop's number."""
        if len(self.broken) >= len(self.images):
            raise OmgsrError(f"none of {len(self.images)} images can be read", next(iter(self.broken.values())))
        image = self.images[self._order.index(number)]
        rng = draw_rng(self._seed, Purpose.REPLACEMENT, number)
        while not self.broken.keys().isdisjoint(image.files):
            image = self.images[int(rng.integers(len(self.images)))]
        return image

    def draw_pair(self, number: int) -> tuple[Tensor, Tensor]:
        """Return a crop by number: low-quality (3, h, w) at its own size and high-quality (3, H, W), in [0, 1]."""
        return in_one_thread(self._draw_pair, number)

    def _draw_pair(self, number: int) -> tuple[Tensor, Tensor]:
        # Every process ends with the same image, because the files alone determine which images are broken.
        while True:
            try:
                return self._cut_crop(self._image_of(number), number)
            except BrokenImageError as error:
                self.broken[error.path] = error.message

    def _cut_crop(self, image: TrainingImage, number: int) -> tuple[Tensor, Tensor]:
        rng = draw_rng(self._seed, Purpose.CROP, number)
        gray = draw_rng(self._seed, Purpose.GRAY, number).random() < self._data.gray
        if image.lq is None:
            return self._degrade_crop(image, rng, number, gray=gray)
        lq, hq = self._cut_pair(image, rng)
        return (to_gray(lq), to_gray(hq)) if gray else (lq, hq)

    def _degrade_crop(
        self, image: TrainingImage, rng: np.random.Generator, number: int, *, gray: bool
    ) -> tuple[Tensor, Tensor]:
        options = self.options
        hq = _to_tensor(self._draw_crop(read_pixels(image.hq, options.cache, image.resize_px), rng))
        hq = to_gray(hq) if gray else hq
        if not options.degradations:
            return hq, hq
        scale, config = choose(self._data.scales, rng), choose(options.degradations, rng)
        lq = degrade(hq[None], scale, config, seed=self._seed, epoch=int(Purpose.DEGRADATION), indices=[number])
        if config.target_blur_sigma[1]:
            sigma_px = draw_rng(self._seed, Purpose.TARGET, number).uniform(*config.target_blur_sigma)
            hq = blur_gaussian(hq, sigma_px) if sigma_px else hq
        return (to_gray(lq[0]) if gray else lq[0]), hq

    def _draw_crop(self, pixels: Pixels, rng: np.random.Generator) -> Pixels:
        """Cut a crop of the resolution plus the margin; the margin is smaller if the image is too small."""
        data = self._data
        side_px = data.resolution + data.margin
        factor = 2 if rng.random() < data.halve and min(pixels.shape[:2]) >= 2 * side_px else 1
        pixels = grow(pixels, data.resolution, data.on_small)
        crop_px = min(factor * side_px, *pixels.shape[:2])
        places = _PLACES if rng.random() < data.detail else 1
        corners = [draw_window((pixels.shape[0], pixels.shape[1]), crop_px, rng) for _ in range(places)]
        windows = [_window(pixels, y, x, crop_px) for y, x in corners]
        # The detail is estimated from every fourth pixel.
        crop = max(windows, key=lambda each: each[::4, ::4, 1].std()) if places > 1 else windows[0]
        return crop if factor == 1 else _halve(crop)

    def _cut_pair(self, image: TrainingImage, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        data, cache, scale = self._data, self.options.cache, image.lq_scale
        assert image.lq is not None
        least_px = -(-data.resolution // scale)
        lq_pixels = grow(read_pixels(image.lq, cache), least_px, data.on_small)
        hq_pixels = grow(read_pixels(image.hq, cache), least_px * scale, data.on_small)
        side_px = min(-(-(data.resolution + data.margin) // scale), *lq_pixels.shape[:2])
        y, x = draw_window((lq_pixels.shape[0], lq_pixels.shape[1]), side_px, rng)
        lq, hq = _window(lq_pixels, y, x, side_px), _window(hq_pixels, y * scale, x * scale, side_px * scale)
        return _to_tensor(lq), _to_tensor(hq)


def number_batches(batch: int, start: int, rank: int, processes: int) -> Iterator[list[int]]:
    """Yield the sample numbers of one process's batches without end; batches are distributed to the processes in turn.

    Args:
        batch: number of samples per process and forward pass.
        start: number of the run's next sample.
        rank, processes: the rank of this process, and their number.
    """
    for first in count(start + rank * batch, batch * processes):
        yield list(range(first, first + batch))


def load_batches(
    crops: TrainingCrops, numbers: Iterable[list[int]], workers: int, device: torch.device
) -> Iterator[Batch]:
    """Yield batches of samples, read by `workers` worker processes, or by this process if there are none."""
    more: Mapping[str, Any] = {"prefetch_factor": 4, "persistent_workers": True} if workers else {}
    loader = DataLoader(
        _Reported(crops),
        batch_sampler=numbers,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_start_worker,
        pin_memory=device.type == "cuda",
        # Without its own generator, the loader draws a seed for its workers from the global generator.
        generator=torch.Generator(),
        **more,
    )
    for batch in loader:
        if isinstance(batch, OmgsrError):
            raise batch
        yield batch.to(device)


@dataclass(frozen=True)
class _Reported(Dataset["tuple[Sample, Mapping[Stored, str]] | OmgsrError"]):
    """Samples with the images replaced so far; errors are returned as values, because workers pass these unchanged."""

    crops: TrainingCrops

    def __getitem__(self, number: int) -> tuple[Sample, Mapping[Stored, str]] | OmgsrError:
        try:
            return self.crops[number], dict(self.crops.broken)
        except OmgsrError as error:
            return error


def grow(pixels: Pixels, least_px: int, on_small: OnSmall) -> Pixels:
    """Extend both sides of (H, W, 3) to at least `least_px` with `fit_small`.

    Smaller images were already skipped for "skip", so that it pads here.
    """
    if min(pixels.shape[:2]) >= least_px:
        return pixels
    fitted = fit_small(_to_tensor(pixels), least_px, "pad" if on_small == "skip" else on_small)
    assert fitted is not None
    whole: Pixels = to_samples(fitted, 8)
    return whole


def to_gray(image: Tensor) -> Tensor:
    """Convert (3, H, W) in [0, 1] to grayscale: luma in every channel, rounded to 1/255."""
    luma = (image * torch.tensor(_LUMA)[:, None, None]).sum(0, keepdim=True)
    return luma.mul(255).round().div(255).expand_as(image).contiguous()


def _window(pixels: Pixels, y: int, x: int, side_px: int) -> Pixels:
    return pixels[y : y + side_px, x : x + side_px]


def _halve(crop: Pixels) -> Pixels:
    """Average blocks of 2x2 pixels: (H, W, 3) with even sides to (H / 2, W / 2, 3)."""
    blocks = crop.reshape(crop.shape[0] // 2, 2, crop.shape[1] // 2, 2, 3)
    halved: Pixels = ((blocks.sum((1, 3), dtype=np.uint16) + 2) // 4).astype(np.uint8)
    return halved


def _to_tensor(pixels: Pixels) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float().div_(255)


def _turn(images: Sequence[Tensor], data: DataConfig, rng: np.random.Generator) -> list[Tensor]:
    quarters = int(rng.integers(4)) if data.turn else 0
    flipped = [2] if data.flip and rng.random() < 0.5 else []
    return [image.rot90(quarters, (1, 2)).flip(flipped).contiguous() for image in images]


def _collate(samples: Sequence[tuple[Sample, Mapping[Stored, str]] | OmgsrError]) -> Batch | OmgsrError:
    done = []
    for sample in samples:
        if isinstance(sample, OmgsrError):
            return sample
        done.append(sample)
    numbers, *images = zip(*(sample for sample, _ in done), strict=True)
    lq, hq, *target = (torch.stack(each) for each in images)
    broken = {path: reason for _, each in done for path, reason in each.items()}
    return Batch(lq, hq, target[0] if target else None, numbers, broken)


def _read_contents(files: Sequence[Stored]) -> dict[Stored, str]:
    with closing(Remembered()) as remembered:
        return {
            file: remembered.content(file) if isinstance(file, Path) else hashlib.sha256(file.read()).hexdigest()
            for file in files
        }


def _start_worker(_: int) -> None:
    torch.set_num_threads(1)
    # Ctrl-C reaches every process of the terminal; only the trainer stops its workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
