"""Validation: restore held-out images as in inference, measure and show them; measure patterns in restored noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from omgsr_cli.benchmark.cases import Case, find_cases
from omgsr_cli.benchmark.metrics import KnownMetric, choose_metrics
from omgsr_cli.benchmark.scoring import PyiqaMetric
from omgsr_cli.datasets import trim
from omgsr_cli.degradation import degrade
from omgsr_cli.errors import FileError, NotFiniteError, OmgsrError, UsageError
from omgsr_cli.fidelity import psnr, ssim
from omgsr_cli.imaging import SourceImage, from_samples, resize, write_image
from omgsr_cli.training.config import TrainConfig
from omgsr_cli.training.data import BrokenImageError, CropOptions, Pixels, Purpose, choose, draw_rng, read_pixels
from omgsr_cli.training.losses import Measure
from omgsr_cli.training.sources import Stored, TrainingImage, find_training_images

LARGEST_PX = 512
"""Largest side of a validation image in px, or the training resolution if that is larger; the centre is used."""

SHOWN = 4
"""Number of rows in the grid."""

PATTERN = "noise_pattern_db"
"""Name of the result of `measure_noise_pattern` in the scores of a validation."""

_NOISES = ((0.5, 10), (0.5, 20), (0.35, 15), (0.7, 30))
"""Grey tones in [0, 1], and the standard deviation of their noise in 8-bit levels."""

_NOISE_LQ_PX, _NOISE_MARGIN_PX, _NOISE_SCALE = 160, 64, 4
_LEAST_SEEN = 1 / 7
"""Amplitude in grey levels below which a ring of the spectrum is invisible."""


@dataclass
class Validation:
    """Validation results of one process.

    Attributes:
        sums: metric to the sum over its images; NaN if the metric failed on one.
        images: number of its images.
        rows: rows of the grid, each (3, H, 3 W) in [0, 1]: LQ | output | HQ; (3, H, 2 W) without references.
        broken: images that could not be read and are not in the sums, with the reason.
        failed: metrics that failed on an image, with the first reason.
    """

    sums: dict[str, float] = field(default_factory=dict)
    images: int = 0
    rows: list[Tensor] = field(default_factory=list)
    broken: dict[Stored, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ImageMeasure:
    """A metric of one restored image.

    Attributes:
        compute: function of the restored image and its reference, (1, 3, H, W) in [-1, 1], not clamped.
        lower_is_better: whether smaller values are better.
        needs_reference: whether it needs the reference; otherwise the reference may be None.
    """

    compute: Callable[..., Tensor | float]
    lower_is_better: bool = False
    needs_reference: bool = True


COLUMNS = {"psnr": "psnr_y", "ssim": "ssim_y"}
"""Columns of the validation table whose names differ from those in `omgsr bench`."""


def build_measures(
    config: TrainConfig, distances: Mapping[str, Measure], device: torch.device, *, has_references: bool
) -> dict[str, ImageMeasure]:
    """Build the metrics of validations: PSNR and SSIM of Y, the loaded distances of the losses, and those of the log.

    PSNR, SSIM and the log's metrics are computed on 8-bit images, as in `omgsr bench`, the log's on `device`.

    Raises:
        UsageError: a metric is unknown, scores sets of images, or needs references that do not exist.
        MetricError: this machine cannot compute a metric.
    """
    found = {COLUMNS[name]: ImageMeasure(_of_8_bits(measure)) for name, measure in (("psnr", psnr), ("ssim", ssim))}
    found |= {name: ImageMeasure(distance, lower_is_better=True) for name, distance in distances.items()}
    for known in choose_log_metrics(config):
        info = known.info
        if info.needs_references and not has_references:
            raise UsageError(
                f"log.metrics: {info.name} compares with references", "data.validation has none: remove it"
            )
        if info.name not in COLUMNS:
            score = _of_8_bits(PyiqaMetric(known, device).score)
            found[info.name] = ImageMeasure(score, info.lower_is_better, info.needs_references)
    found = {name: measure for name, measure in found.items() if has_references or not measure.needs_reference}
    if config.save.best is not None and best_column(config.save.best, found) is None:
        raise UsageError(f"save.best: {config.save.best} compares with references", "add them to data.validation")
    return found


def best_column(name: str, measures: Collection[str]) -> str | None:
    """Return the column of the metric in `save.best`, or None."""
    wanted = COLUMNS.get(name.casefold(), name.casefold())
    return next((column for column in measures if column.casefold() == wanted), None)


def choose_log_metrics(config: TrainConfig) -> tuple[KnownMetric, ...]:
    """Look up the metrics of the log by their names.

    Raises:
        UsageError: a name is unknown, or a metric scores sets of images.
    """
    chosen = choose_metrics(config.log.metrics) if config.log.metrics else ()
    of_sets = [known.info.name for known in chosen if known.info.scores_sets]
    if of_sets:
        raise UsageError(f"{of_sets[0]} scores sets of images, not single ones", "use `omgsr bench` for it")
    return chosen


def _of_8_bits(measure: Callable[..., Tensor | float]) -> Callable[..., Tensor | float]:
    """Wrap a metric on [0, 1] to round images to 8 bits first, as files do."""
    return lambda *images: measure(
        *(image if image is None else to_unit(image).mul(255).round_().div_(255) for image in images)
    )


def to_unit(image: Tensor) -> Tensor:
    """Map [-1, 1] to [0, 1] and clamp."""
    return image.float().mul(0.5).add_(0.5).clamp_(0, 1)


_LOW_NAMES = ("test_lr", "lr", "lq")
"""Names in lower case of the low-quality folder, by which a test set is recognised."""


def find_held_out(config: TrainConfig) -> tuple[TrainingImage | Case, ...]:
    """List the held-out images; none without validation.

    Raises:
        OmgsrError: as for `find_training_images` and `find_cases`.
    """
    data = config.data
    if not data.validation or not config.log.validate_every:
        return ()
    folder, lq = Path(data.validation), data.validation_lq
    if lq is None and folder.is_dir() and any(each.name.casefold() in _LOW_NAMES for each in folder.iterdir()):
        found = find_cases(folder, None, {}, model_scale=data.scales[0][0])
        if found.failures:
            raise OmgsrError(found.failures[0].line(), found.failures[0].hint)
        return tuple(case for case in found.cases if case.input is not None)
    return find_training_images([data.validation], [lq] if lq else None, 1, "pad")


def has_references(held_out: Sequence[TrainingImage | Case]) -> bool:
    """Return whether the held-out images have references; either all have one or none."""
    return all(not isinstance(image, Case) or image.reference is not None for image in held_out)


@torch.no_grad()
def validate(
    restore: Callable[[Tensor], Tensor],
    images: Sequence[TrainingImage | Case],
    options: CropOptions,
    measures: Mapping[str, ImageMeasure],
    *,
    multiple_px: int,
    device: torch.device,
    seed: int,
    rank: int = 0,
    processes: int = 1,
    together: bool = False,
) -> Validation:
    """Restore and measure every image, or this process's share; their counterparts are the same in the whole run.

    Args:
        restore: function of (1, 3, H, W) in [-1, 1] that returns the same shape and range, on `device`.
        images: held-out images.
        options: options of the training samples.
        measures: metrics by name.
        multiple_px: sides of images for `restore` are multiples of this.
        device: device of `restore`.
        seed: seed of the run.
        rank: rank of this process, which starts at this image and takes every `processes`-th one.
        processes: number of processes.
        together: all processes call `restore` the same number of times, because the weights are sharded over them.
    Raises:
        NotFiniteError: the model returns NaN or infinity, so that its weights or its precision are unusable.
    """
    result = Validation()
    for index in range(rank, len(images) + (-len(images) % processes if together else 0), processes):
        pair = None
        if index < len(images):
            try:
                pair = _load(images[index], options, multiple_px, seed, index)
            except BrokenImageError as error:
                result.broken[error.path] = error.message
        if pair is None:
            if together:
                side = -(-options.data.resolution // multiple_px) * multiple_px
                restore(torch.zeros(1, 3, side, side, device=device))
            continue
        lq, *references = (image[None].mul(2).sub_(1).to(device) for image in pair)
        restored, hq = restore(lq), references[0] if references else None
        if not bool(restored.isfinite().all()):
            raise NotFiniteError(
                f"validation: the model returns values that are not finite for {_name(images[index])}",
                "resume from an earlier checkpoint with a lower learning rate, or set precision to fp32",
            )
        for name, measure in measures.items():
            try:
                score = float(measure.compute(restored, hq))
            except FileError as error:  # of pyiqa, on this image; a long run continues
                score, _ = math.nan, result.failed.setdefault(name, f"{_name(images[index])}: {error.message}")
            result.sums[name] = result.sums.get(name, 0.0) + score
        result.images += 1
        if len(result.rows) < SHOWN:
            result.rows.append(torch.cat([to_unit(image)[0].cpu() for image in (lq, restored, *references)], 2))
    return result


def _name(image: TrainingImage | Case) -> str:
    return image.name if isinstance(image, Case) else str(image.hq)


def _load(
    image: TrainingImage | Case, options: CropOptions, multiple_px: int, seed: int, index: int
) -> tuple[Tensor, ...]:
    """Read a held-out image: upscaled low-quality image and reference, if any, (3, H, W) in [0, 1]."""
    if not isinstance(image, Case):
        return load_pair(image, options, multiple_px, seed, index)
    assert image.input is not None and image.output_px is not None, "test sets have inputs"
    images = [resize(from_samples(read_pixels(image.input, options.cache)), image.output_px)]
    if image.reference is not None:
        images.append(from_samples(read_pixels(image.reference, options.cache)))
    height, width = image.compared_px or image.output_px
    largest_px = max(options.data.resolution, LARGEST_PX)
    top, left = (max(0, side - largest_px) // 2 for side in (height, width))
    rows, columns = (slice(start, min(start + largest_px, side)) for start, side in ((top, height), (left, width)))
    return tuple(trim(each[:, rows, columns], multiple_px) for each in images)


def load_pair(
    image: TrainingImage, options: CropOptions, multiple_px: int, seed: int, index: int
) -> tuple[Tensor, Tensor]:
    """Read a held-out image, and read or make its low-quality counterpart.

    Returns:
        The upscaled counterpart and the high-quality image, (3, H, W) in [0, 1].
    """
    largest_px = max(options.data.resolution, LARGEST_PX)
    hq_pixels = read_pixels(image.hq, options.cache)
    if image.lq is None:
        hq = trim(from_samples(_middle(hq_pixels, largest_px)), multiple_px)
        rng = draw_rng(seed, Purpose.VALIDATION, index)
        if not options.degradations:
            return hq, hq
        scale, config = options.data.scales[0][0], choose(options.degradations, rng)
        lq = degrade(hq[None], scale, config, seed=seed, epoch=int(Purpose.VALIDATION), indices=[index])[0]
    else:
        lq = from_samples(_middle(read_pixels(image.lq, options.cache), largest_px // image.lq_scale))
        hq = from_samples(_middle(hq_pixels, largest_px // image.lq_scale * image.lq_scale, image.lq_scale))
    return trim(resize(lq, (hq.shape[1], hq.shape[2])), multiple_px), trim(hq, multiple_px)


@torch.no_grad()
def measure_noise_pattern(restore: Callable[[Tensor], Tensor], device: torch.device) -> float:
    """Measure the strongest direction in restored noise on plain grey, which should have none.

    Args:
        restore: function of (1, 3, H, W) in [-1, 1] that returns the same shape and range.
        device: device of `restore`.
    Returns:
        The largest value of `strongest_direction_db` over four combinations of tone and noise, in dB.
    """
    side, margin = _NOISE_LQ_PX * _NOISE_SCALE, slice(_NOISE_MARGIN_PX, -_NOISE_MARGIN_PX)
    worst = 0.0
    for tone, sigma in _NOISES:
        lq = resize(draw_noisy_grey(tone, sigma, _NOISE_LQ_PX, seed=1), (side, side))
        restored = to_unit(restore(lq[None].mul(2).sub_(1).to(device)))[0].cpu()
        worst = max(worst, strongest_direction_db(restored.mean(0)[margin, margin] * 255))
    return worst


def draw_noisy_grey(tone: float, sigma: float, side_px: int, seed: int) -> Tensor:
    """Draw white noise of `sigma` 8-bit levels on a plain tone in [0, 1]: (3, side, side) in [0, 1]."""
    noise = np.random.default_rng(seed).normal(tone, sigma / 255, (3, side_px, side_px))
    return torch.from_numpy(noise.clip(0, 1).astype(np.float32))


def strongest_direction_db(luma: Tensor, window: int = 128) -> float:
    """Measure how much one direction dominates a ring of the spectrum of an image that should have no direction.

    Args:
        luma: (H, W) in grey levels, both at least `window`.
        window: side in px of the squares whose spectra are averaged.
    Returns:
        Power of the strongest of 12 sectors over their median in dB, in the worst ring of 0.04 cycles per pixel. Rings
        with an amplitude below a seventh of a grey level are skipped, because they are invisible.
    """
    patches = luma.unfold(0, window, window // 2).unfold(1, window, window // 2).reshape(-1, window, window)
    hann = torch.hann_window(window)[:, None] * torch.hann_window(window)
    patches = (patches - patches.mean((1, 2), keepdim=True)) * hann
    power = torch.fft.fft2(patches).abs().square().mean(0) / (hann.square().sum() * window**2)
    rows, columns = torch.fft.fftfreq(window)[:, None], torch.fft.fftfreq(window)[None]
    radius, angle = (rows**2 + columns**2).sqrt(), torch.atan2(rows, columns) % math.pi
    sector = (angle * 12 / math.pi).long()
    worst = 0.0
    for low in np.arange(0.03, 0.5, 0.04):
        ring = (radius >= low) & (radius < low + 0.04)
        if power[ring].sum().sqrt() < _LEAST_SEEN:
            continue
        means = torch.stack([power[ring & (sector == k)].mean() for k in range(12)])
        worst = max(worst, 10 * math.log10(float(means.max() / means.median())))
    return worst


def write_grid(rows: Sequence[Tensor], path: Path) -> None:
    """Write rows of (3, H, W) in [0, 1], stacked vertically, as a PNG; narrower rows are padded with white.

    Raises:
        FileError: the file cannot be written.
    """
    width = max(row.shape[2] for row in rows)
    padded = [torch.nn.functional.pad(row, (0, width - row.shape[2]), value=1.0) for row in rows]
    write_image(SourceImage(torch.cat(padded, 1)), path, overwrite=True)


def _middle(pixels: Pixels, largest_px: int, multiple_px: int = 1) -> Pixels:
    """Crop the centre of (H, W, 3), starting at a multiple of `multiple_px`."""
    for axis in (0, 1):
        start = max(0, pixels.shape[axis] - largest_px) // (2 * multiple_px) * multiple_px
        pixels = pixels.take(range(start, min(start + largest_px, pixels.shape[axis])), axis)
    return pixels
