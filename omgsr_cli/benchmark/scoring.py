"""Scores of restored images: metrics are loaded first, then applied, and every score is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from torch import Tensor

from omgsr_cli.benchmark.cache import Cache, key_of
from omgsr_cli.benchmark.metrics import CORE, KnownMetric, core_settings
from omgsr_cli.benchmark.perceptual import MetricError, PyiqaMetric, weights_identity
from omgsr_cli.benchmark.results import Failure, MetricInfo
from omgsr_cli.errors import FileError, OmgsrError, ShapeError
from omgsr_cli.fidelity import psnr, ssim
from omgsr_cli.files.atomic import scratch_folder
from omgsr_cli.geometry import Size
from omgsr_cli.imaging import SourceImage, probe_image, read_image, write_image
from omgsr_cli.models.devices import choose_device
from omgsr_cli.options import ColorSpace
from omgsr_cli.packages import version_of


class ImageScorer(Protocol):
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
        info: what its scores mean, with their settings.
        scorer: computes them.
        depends_on: hash of what a kept score depends on besides the images.
    """

    info: MetricInfo
    scorer: ImageScorer
    depends_on: str


class CoreMetric:
    """psnr or ssim, without weights."""

    def __init__(self, name: str, color_space: ColorSpace, crop_border_px: int) -> None:
        self._measure = {"psnr": psnr, "ssim": ssim}[name]
        self._color_space: ColorSpace = color_space
        self._crop_border_px = crop_border_px

    def score(self, restored: Tensor, reference: Tensor | None) -> float:
        """Score (1, 3, H, W) images in [0, 1]."""
        assert reference is not None, "used only for images with a reference"
        value = self._measure(restored, reference, color_space=self._color_space, crop_border_px=self._crop_border_px)
        return float(value)

    def score_set(self, restored: Sequence[Path], references: Sequence[Path]) -> float:
        """Never called: these metrics score single images."""
        raise NotImplementedError


@dataclass(frozen=True)
class MetricChoice:
    """How metrics are loaded, in any process.

    Attributes:
        device: where pyiqa's networks compute, as for `choose_device`.
        color_space: of psnr and ssim.
        crop_border_px: of psnr and ssim.
        seed: of random choices of pyiqa's metrics; None uses pyiqa's own.
    """

    device: str | None = None
    color_space: ColorSpace = "ycbcr"
    crop_border_px: int = 0
    seed: int | None = None


def make_metrics(chosen: Sequence[KnownMetric], choice: MetricChoice) -> tuple[list[ReadyMetric], list[Failure]]:
    """Load every metric that this machine can compute, in the given order; each reason why not is one failure."""
    device = choose_device(choice.device)
    ready: list[ReadyMetric] = []
    failed: dict[tuple[str, str | None], list[str]] = {}
    for known in chosen:
        name = known.info.name
        if name in CORE:
            info = replace(known.info, settings=core_settings(choice.color_space, choice.crop_border_px))
            core = CoreMetric(name, choice.color_space, choice.crop_border_px)
            ready.append(ReadyMetric(info, core, key_of(metric=name, settings=info.settings)))
            continue
        try:
            scorer = PyiqaMetric(known, device, choice.seed)
        except MetricError as error:
            failed.setdefault((error.message, error.hint), []).append(name)
            continue
        versions = {library: version_of(library) for library in ("pyiqa", "torch", "torchvision", "timm")}
        identity = key_of(
            metric=name, device=device.type, versions=versions, weights=weights_identity(known), seed=choice.seed
        )
        ready.append(ReadyMetric(known.info, scorer, identity))
    return ready, [Failure(", ".join(names), message, hint) for (message, hint), names in failed.items()]


@dataclass
class Scorebook:
    """Scores images with the loaded metrics, each pair of files once in all runs.

    Attributes:
        metrics: the loaded metrics.
        cache: of scores.
        failed: (metric name, file, reason), in order.
    """

    metrics: Sequence[ReadyMetric]
    cache: Cache
    failed: list[tuple[str, str, str]] = field(default_factory=list)

    def score(self, restored: Path, reference: Path | None, compared_px: Size | None = None) -> dict[str, float | None]:
        """All scores of one image; None if a metric fails, or needs a reference and none exists.

        Args:
            restored: the image.
            reference: the high-quality image, or None.
            compared_px: the size that both are cropped to, from the top left; None compares whole images.
        """
        tensors: dict[Path, Tensor] = {}

        def read(path: Path) -> Tensor:
            if path not in tensors:
                tensors[path] = _cropped(read_image(path).rgb, compared_px)[None].clamp(0, 1)
            return tensors[path]

        found: dict[str, float | None] = {}
        for metric in self.metrics:
            if metric.info.scores_sets:
                continue
            needed = reference if metric.info.needs_references else None
            if metric.info.needs_references and needed is None:
                found[metric.info.name] = None
                continue
            try:
                key = key_of(
                    kind="score",
                    metric=metric.depends_on,
                    restored=self.cache.content(restored),
                    reference=needed and self.cache.content(needed),
                    compared=compared_px and list(compared_px),
                )
                value = _number(self.cache.find(key))
                if value is None:
                    value = metric.scorer.score(read(restored), read(needed) if needed else None)
                    self.cache.keep(key, value)
            except (FileError, ShapeError) as error:
                # The name of a restored file is a hash, which means nothing to a user.
                self.failed.append((metric.info.name, str(needed or restored), error.message))
                value = None
            found[metric.info.name] = value
        return found

    def score_set(
        self, metric: ReadyMetric, images: Sequence[tuple[Path, Path | None, Size | None]], model: str
    ) -> float | None:
        """One score for all images of a model.

        Args:
            metric: a metric of sets.
            images: restored image, reference if the metric needs one, and the size that both are cropped to.
            model: its name.
        """
        if len(images) < 2:
            what = "images with references" if metric.info.needs_references else "images"
            self.failed.append((metric.info.name, model, f"needs at least two {what}"))
            return None
        contents = [
            [self.cache.content(restored), reference and self.cache.content(reference), size and list(size)]
            for restored, reference, size in images
        ]
        key = key_of(kind="set", metric=metric.depends_on, images=contents)
        value = _number(self.cache.find(key))
        if value is not None:
            return value
        with scratch_folder() as scratch:
            try:
                restored = [_cropped_file(path, size, scratch) for path, _, size in images]
                references = [_cropped_file(path, size, scratch) for _, path, size in images if path]
                value = metric.scorer.score_set(restored, references)
            except OmgsrError as error:
                self.failed.append((metric.info.name, model, error.message))
                return None
        self.cache.keep(key, value)
        return value


def scoring_failures(failed: Sequence[tuple[str, str, str]]) -> list[Failure]:
    """One failure for each metric that fails on some images."""
    found = []
    for name in dict.fromkeys(name for name, _, _ in failed):
        (first, reason), *others = [(place, reason) for metric, place, reason in failed if metric == name]
        more = f" and {len(others)} more" if others else ""
        found.append(Failure(name, f"no score for {first}{more}: {reason}"))
    return found


def _number(value: object) -> float | None:
    return value if isinstance(value, float) else None


def _cropped(image: Tensor, size: Size | None) -> Tensor:
    return image if size is None else image[..., : size.height, : size.width]


def _cropped_file(path: Path, size: Size | None, scratch: Path) -> Path:
    """The file itself, or a copy of the part that is compared."""
    if size is None or tuple(probe_image(path).size_px) == tuple(size):
        return path
    copy = scratch / f"{len(list(scratch.iterdir())):06d}.png"
    write_image(SourceImage(_cropped(read_image(path).rgb, size)), copy, format="png", metadata="none")
    return copy
