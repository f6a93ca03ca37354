"""Score restored images: load the metrics, apply them, and keep every score."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Protocol

from torch import Tensor

from omgsr_cli.benchmark.cache import Cache, key_of
from omgsr_cli.benchmark.metrics import CORE, KnownMetric, core_settings
from omgsr_cli.benchmark.perceptual import MetricError, PyiqaMetric, weights_identity
from omgsr_cli.benchmark.results import Failure, MetricInfo
from omgsr_cli.errors import OmgsrError
from omgsr_cli.fidelity import psnr, ssim
from omgsr_cli.files.atomic import scratch_folder
from omgsr_cli.geometry import Size
from omgsr_cli.imaging import SourceImage, probe_image, read_image, write_image
from omgsr_cli.models.devices import choose_device
from omgsr_cli.options import BenchOptions
from omgsr_cli.packages import version_of

_Scored = tuple[Path, Path | None, Size | None]
"""A restored image, its reference if the metric needs one, and the size that both are cropped to from the top left."""


class Scorer(Protocol):
    """A loaded metric."""

    def score(self, restored: Tensor, reference: Tensor | None) -> float:
        """Score (1, 3, H, W) images in [0, 1]."""
        ...

    def score_set(self, restored: Sequence[Path], references: Sequence[Path]) -> float:
        """Score all images together."""
        ...


@dataclass(frozen=True)
class ReadyMetric:
    """A loaded metric with its description.

    Attributes:
        info: the meaning of its scores, with their settings.
        scorer: computes the scores.
        depends_on: hash of everything except the images that a kept score depends on.
    """

    info: MetricInfo
    scorer: Scorer
    depends_on: str


class CoreMetric:
    """psnr or ssim, without weights."""

    def __init__(self, name: str, options: BenchOptions) -> None:
        self._measure, self._options = {"psnr": psnr, "ssim": ssim}[name], options

    def score(self, restored: Tensor, reference: Tensor | None) -> float:
        """Score (1, 3, H, W) images in [0, 1]."""
        assert reference is not None, "used only for images with a reference"
        space, border = self._options.color_space, self._options.crop_border
        return float(self._measure(restored, reference, color_space=space, crop_border_px=border))

    def score_set(self, restored: Sequence[Path], references: Sequence[Path]) -> float:
        """Raise an error: these metrics score single images."""
        raise NotImplementedError


def make_metrics(chosen: Sequence[KnownMetric], options: BenchOptions) -> tuple[list[ReadyMetric], list[Failure]]:
    """Load every metric that this machine can compute, in the given order; return the others as failures."""
    device = choose_device(options.device)
    ready: list[ReadyMetric] = []
    failed: dict[tuple[str, str | None], list[str]] = {}
    for known in chosen:
        name = known.info.name
        if name in CORE:
            info = replace(known.info, settings=core_settings(options.color_space, options.crop_border))
            ready.append(ReadyMetric(info, CoreMetric(name, options), key_of(metric=name, settings=info.settings)))
            continue
        try:
            scorer = PyiqaMetric(known, device, options.seed)
        except MetricError as error:
            failed.setdefault((error.message, error.hint), []).append(name)
            continue
        versions = {library: version_of(library) for library in ("pyiqa", "torch", "torchvision", "timm")}
        identity = key_of(
            metric=name, device=device.type, versions=versions, weights=weights_identity(known), seed=options.seed
        )
        ready.append(ReadyMetric(known.info, scorer, identity))
    return ready, [Failure(", ".join(names), message, hint) for (message, hint), names in failed.items()]


@dataclass
class Scorebook:
    """Scores images with the loaded metrics; each pair of files is scored only once across runs.

    Attributes:
        metrics: the loaded metrics.
        cache: cache of scores.
        failed: (metric name, file or model, reason), in order.
    """

    metrics: Sequence[ReadyMetric]
    cache: Cache
    failed: list[tuple[str, str, str]] = field(default_factory=list)

    def score(self, restored: Path, reference: Path | None, compared_px: Size | None = None) -> dict[str, float | None]:
        """Return all scores of one image; None if a metric fails, or needs a reference and none exists.

        Args:
            restored: the image.
            reference: the high-quality image, or None.
            compared_px: the size that both are cropped to, from the top left; None compares full images.
        """

        @cache
        def read(path: Path) -> Tensor:
            return _cropped(read_image(path).rgb, compared_px)[None].clamp(0, 1)

        def compute(metric: ReadyMetric, needed: Path | None) -> float:
            return metric.scorer.score(read(restored), read(needed) if needed else None)

        found: dict[str, float | None] = {}
        for metric in (metric for metric in self.metrics if not metric.info.scores_sets):
            needed = reference if metric.info.needs_references else None
            found[metric.info.name] = None
            if needed or not metric.info.needs_references:
                # The name of a restored file is a hash, so prefer the name of the reference in errors.
                found[metric.info.name] = self._once(
                    metric, [(restored, needed, compared_px)], str(needed or restored), partial(compute, metric, needed)
                )
        return found

    def score_set(self, metric: ReadyMetric, images: Sequence[_Scored], model: str) -> float | None:
        """Return one score for all images of a model with a metric of sets; None if it fails."""
        if len(images) < 2:
            what = "images with references" if metric.info.needs_references else "images"
            self.failed.append((metric.info.name, model, f"needs at least two {what}"))
            return None

        def compute() -> float:
            with scratch_folder() as scratch:
                restored = [_cropped_file(path, size, scratch) for path, _, size in images]
                references = [_cropped_file(path, size, scratch) for _, path, size in images if path]
                return metric.scorer.score_set(restored, references)

        return self._once(metric, images, model, compute)

    def _once(
        self, metric: ReadyMetric, images: Sequence[_Scored], place: str, compute: Callable[[], float]
    ) -> float | None:
        """Return the kept score of images, or compute it; None if this fails."""
        content = self.cache.content
        try:
            files = [[content(path), other and content(other), size and list(size)] for path, other, size in images]
            key = key_of(metric=metric.depends_on, images=files)
            value: float | None = self.cache.find("score", key)
            if value is None:
                value = compute()
                self.cache.keep("score", key, value)
        except OmgsrError as error:
            self.failed.append((metric.info.name, place, error.message))
            return None
        return value


def scoring_failures(failed: Sequence[tuple[str, str, str]]) -> list[Failure]:
    """Return one failure for each metric that fails on some images."""
    found = []
    for name in dict.fromkeys(name for name, _, _ in failed):
        (first, reason), *others = [(place, reason) for metric, place, reason in failed if metric == name]
        more = f" and {len(others)} more" if others else ""
        found.append(Failure(name, f"no score for {first}{more}: {reason}"))
    return found


def _cropped(image: Tensor, size: Size | None) -> Tensor:
    return image if size is None else image[..., : size.height, : size.width]


def _cropped_file(path: Path, size: Size | None, scratch: Path) -> Path:
    """Return the file itself, or a copy of the part that is compared."""
    if size is None or tuple(probe_image(path).size_px) == tuple(size):
        return path
    copy = scratch / f"{len(list(scratch.iterdir())):06d}.png"
    write_image(SourceImage(_cropped(read_image(path).rgb, size)), copy, format="png", metadata="none")
    return copy
