"""Scores of restored pictures: metrics are made first, then asked, and every score is kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from omgsr_cli.benchmark.cache import Cache, key_of
from omgsr_cli.benchmark.metrics import CORE, KnownMetric, core_settings
from omgsr_cli.benchmark.perceptual import MetricError, PyiqaMetric, weights_identity
from omgsr_cli.benchmark.results import Failure, MetricInfo
from omgsr_cli.benchmark.versions import version_of
from omgsr_cli.errors import FileError, OmgsrError
from omgsr_cli.fidelity import psnr, ssim
from omgsr_cli.imaging import read_picture
from omgsr_cli.options import ColorSpace


class PictureScorer(Protocol):
    """A metric that is ready to score."""

    def score(self, restored: Tensor, reference: Tensor | None) -> float:
        """Score (1, 3, H, W) pictures in [0, 1]."""
        ...

    def score_set(self, restored: Sequence[Path], references: Sequence[Path]) -> float:
        """Score all pictures together."""
        ...


@dataclass(frozen=True)
class ReadyMetric:
    """A metric that was made.

    Attributes:
        info: what its scores mean, with the settings they are computed with.
        scorer: computes them.
        depends_on: what a kept score depends on beside the pictures.
    """

    info: MetricInfo
    scorer: PictureScorer
    depends_on: str


class CoreMetric:
    """psnr or ssim, without weights."""

    def __init__(self, name: str, color_space: ColorSpace, crop_border_px: int) -> None:
        self._measure = {"psnr": psnr, "ssim": ssim}[name]
        self._color_space: ColorSpace = color_space
        self._crop_border_px = crop_border_px

    def score(self, restored: Tensor, reference: Tensor | None) -> float:
        """Score (1, 3, H, W) pictures in [0, 1]."""
        assert reference is not None, "asked only for pictures that have a reference"
        value = self._measure(restored, reference, color_space=self._color_space, crop_border_px=self._crop_border_px)
        return float(value)

    def score_set(self, restored: Sequence[Path], references: Sequence[Path]) -> float:
        """Never asked: these score single pictures."""
        raise NotImplementedError


def make_metrics(
    chosen: Sequence[KnownMetric], *, device: torch.device, color_space: ColorSpace = "ycbcr", crop_border_px: int = 0
) -> tuple[list[ReadyMetric], list[Failure]]:
    """Load every metric that can be had, and say of the others why not.

    Args:
        chosen: in the order asked for.
        device: where pyiqa's networks compute.
        color_space: of psnr and ssim.
        crop_border_px: of psnr and ssim.
    """
    ready, failures = [], []
    for known in chosen:
        name = known.info.name
        if name in CORE:
            info = replace(known.info, settings=core_settings(color_space, crop_border_px))
            core = CoreMetric(name, color_space, crop_border_px)
            ready.append(ReadyMetric(info, core, key_of(metric=name, settings=info.settings)))
            continue
        try:
            scorer = PyiqaMetric(known, device)
        except MetricError as error:
            failures.append(error.failure(name))
            continue
        versions = {library: version_of(library) for library in ("pyiqa", "torch", "torchvision", "timm")}
        identity = key_of(metric=name, device=device.type, versions=versions, weights=weights_identity(known))
        ready.append(ReadyMetric(known.info, scorer, identity))
    return ready, failures


@dataclass
class Scorebook:
    """Scores pictures with some metrics, each pair of files once in all runs.

    Attributes:
        metrics: that are ready.
        cache: where scores are kept.
        failed: metric name to the pictures that it does not work on, with the reason.
    """

    metrics: Sequence[ReadyMetric]
    cache: Cache
    failed: dict[str, list[tuple[str, str]]]

    def score(self, restored: Path, reference: Path | None) -> dict[str, float | None]:
        """All scores of one picture; None where a metric needs a reference that is not there, or fails."""
        pictures = _Pictures(restored, reference)
        return {
            metric.info.name: self._one(metric, restored, reference, pictures)
            for metric in self.metrics
            if metric.info.kind != "set"
        }

    def score_set(
        self, metric: ReadyMetric, restored: Sequence[Path], references: Sequence[Path], model: str
    ) -> float | None:
        """One score of a model's pictures together."""
        if len(restored) < 2:
            self._fail(metric, model, "a set has at least two pictures with references")
            return None
        contents = [[self.cache.content(path) for path in paths] for paths in (restored, references)]
        key = key_of(kind="score", metric=metric.depends_on, restored=contents[0], reference=contents[1])
        known = self.cache.find_score(key)
        if known is not None:
            return known
        try:
            value = metric.scorer.score_set(restored, references)
        except OmgsrError as error:
            self._fail(metric, model, error.message)
            return None
        self.cache.keep_score(key, value)
        return value

    def failures(self) -> list[Failure]:
        """One line for each metric that does not work on some pictures."""
        found = []
        for name, pictures in self.failed.items():
            first, reason = pictures[0]
            more = f" and {len(pictures) - 1} more" if len(pictures) > 1 else ""
            found.append(Failure(name, f"no score for {first}{more}: {reason}"))
        return found

    def _one(self, metric: ReadyMetric, restored: Path, reference: Path | None, pictures: _Pictures) -> float | None:
        needed = reference if metric.info.kind == "full-reference" else None
        if metric.info.kind == "full-reference" and needed is None:
            return None
        key = key_of(
            kind="score",
            metric=metric.depends_on,
            restored=self.cache.content(restored),
            reference=needed and self.cache.content(needed),
        )
        known = self.cache.find_score(key)
        if known is not None:
            return known
        try:
            value = metric.scorer.score(pictures.restored(), pictures.reference() if needed else None)
        except OmgsrError as error:
            # What a model restored lies under a name that nobody knows.
            self._fail(metric, str(needed or restored), error.message)
            return None
        self.cache.keep_score(key, value)
        return value

    def _fail(self, metric: ReadyMetric, where: str, reason: str) -> None:
        self.failed.setdefault(metric.info.name, []).append((where, reason))


class _Pictures:
    """A restored picture and its reference, each read when the first metric asks for it."""

    def __init__(self, restored: Path, reference: Path | None) -> None:
        self._paths = (restored, reference)
        self._read: dict[int, Tensor] = {}

    def restored(self) -> Tensor:
        return self._tensor(0)

    def reference(self) -> Tensor:
        return self._tensor(1)

    def _tensor(self, index: int) -> Tensor:
        if index not in self._read:
            path = self._paths[index]
            if path is None:
                raise FileError("there is no reference")
            self._read[index] = read_picture(path).rgb[None].clamp(0, 1)
        return self._read[index]
