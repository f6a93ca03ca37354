"""From what `omgsr bench` was asked for to a report: the cheap checks first, then metrics, then models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from omgsr_cli.benchmark.cache import Cache, default_cache_folder
from omgsr_cli.benchmark.contestants import Contestant, unique_names
from omgsr_cli.benchmark.datasets import Sample, find_samples, shipped_samples
from omgsr_cli.benchmark.metrics import CORE, DEFAULT, KnownMetric, choose_metrics, core_settings, needs_references
from omgsr_cli.benchmark.results import Failure, ModelInfo, Report
from omgsr_cli.benchmark.runner import Plan, run_benchmark
from omgsr_cli.benchmark.scoring import ReadyMetric, make_metrics
from omgsr_cli.cli.bench_models import build_contestants
from omgsr_cli.cli.output import Output
from omgsr_cli.errors import OmgsrError, UsageError
from omgsr_cli.files.inputs import shown
from omgsr_cli.models.devices import choose_device, choose_precision

if TYPE_CHECKING:
    import torch

_DEFAULT_SCALE = 4.0


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for, by the names of its options.

    Attributes:
        data: --data, or None for the set of the package.
        references: --hr.
        restored: each --sr.
        scale: --scale.
        models: each --model.
        base: --base.
        adapter: --adapter.
        device: --device.
        precision: --precision.
        repeat: --repeat.
        metrics: names of --metrics; None takes those that suit the pictures.
        color_space: --color-space.
        crop_border_px: --crop-border.
        cache: --cache.
    """

    data: Path | None
    references: Path | None
    restored: tuple[Path, ...]
    scale: float | None
    models: tuple[str, ...]
    base: str | None
    adapter: Path | None
    device: str | None
    precision: str
    repeat: int | None
    metrics: Sequence[str] | None
    color_space: Literal["ycbcr", "yiq", "rgb"]
    crop_border_px: int
    cache: Path | None


def run_bench(wanted: Wanted, talk: Output) -> Report:
    """Check, make the metrics, restore and score.

    Raises:
        OmgsrError: something asked for is not there or does not go together; failures of single metrics and
            pictures are in the report.
    """
    asked = choose_metrics(DEFAULT if wanted.metrics is None else wanted.metrics)
    device = choose_device(wanted.device)
    choose_precision(wanted.precision, device)
    contestants = _contestants(wanted)
    given = dict(zip(unique_names([folder.name for folder in wanted.restored]), wanted.restored, strict=True))
    samples = _samples(wanted, given, contestants)
    asked = _suiting(asked, wanted, samples)
    cache = Cache(wanted.cache or default_cache_folder())
    asked, ready, failures = _make_metrics(asked, wanted, samples, device, talk)
    plan = Plan(
        samples=samples,
        contestants=contestants,
        given=[ModelInfo(name, "given", detail=str(folder)) for name, folder in given.items()],
        asked=asked,
        ready=ready,
        failures=failures,
        repeat=wanted.repeat,
        title=_title(wanted, samples),
        settings=_settings(wanted, device, cache.folder),
    )
    try:
        with talk.progress(plan.steps) as view:
            report = run_benchmark(plan, cache, on_start=view.start, on_finish=view.finish)
    finally:
        cache.close()
    _say_failures(report.failures[len(failures) :], talk)
    if contestants and not report.speeds:
        talk.note("note: all pictures were kept from an earlier run; --repeat 1 restores them again for their time")
    return report


def _contestants(wanted: Wanted) -> list[Contestant]:
    if wanted.restored and wanted.data is None:
        if wanted.models or wanted.base or wanted.adapter:
            raise UsageError("--model has nothing to restore beside --sr", "give --data FOLDER with its inputs")
        return []
    if wanted.restored and not (wanted.models or wanted.base or wanted.adapter):
        return []
    return build_contestants(
        wanted.models, base=wanted.base, adapter=wanted.adapter, device=wanted.device, precision=wanted.precision
    )


def _samples(wanted: Wanted, given: Mapping[str, Path], contestants: Sequence[Contestant]) -> tuple[Sample, ...]:
    scales = (contestant.info.scale for contestant in contestants)
    scale = wanted.scale or next((scale for scale in scales if scale), _DEFAULT_SCALE)
    if wanted.data is None and not given:
        if wanted.references is not None:
            raise UsageError(f"--hr {shown(wanted.references)} has no pictures beside it", "give --data or --sr")
        return shipped_samples(scale)
    return find_samples(wanted.data, wanted.references, given, scale)


def _suiting(asked: Sequence[KnownMetric], wanted: Wanted, samples: Sequence[Sample]) -> tuple[KnownMetric, ...]:
    """Leave out what nobody asked for by name and needs references that are not there."""
    if any(sample.reference for sample in samples):
        return tuple(asked)
    lost = [known.info.name for known in asked if needs_references(known.info)]
    if lost and wanted.metrics is not None:
        raise UsageError(f"{', '.join(lost)} compare with references, and there are none", "give --hr FOLDER")
    return tuple(known for known in asked if known.info.name not in lost)


def _make_metrics(
    asked: Sequence[KnownMetric], wanted: Wanted, samples: Sequence[Sample], device: torch.device, talk: Output
) -> tuple[tuple[KnownMetric, ...], list[ReadyMetric], list[Failure]]:
    """Make the metrics; where none of those asked for can be had, psnr and ssim, which need nothing, stand in."""

    def make(chosen: Sequence[KnownMetric]) -> tuple[list[ReadyMetric], list[Failure]]:
        space, border = wanted.color_space, wanted.crop_border_px
        return make_metrics(chosen, device=device, color_space=space, crop_border_px=border)

    ready, failures = make(asked)
    # Before long work begins: it may not be worth it without them.
    _say_failures(failures, talk)
    if ready:
        return tuple(asked), ready, failures
    if not any(sample.reference for sample in samples):
        raise OmgsrError("no metric is left to score with", "psnr and ssim need nothing but references: --hr FOLDER")
    talk.note(f"note: {' and '.join(CORE)}, which need no weights, are shown beside")
    core = choose_metrics(CORE)
    return (*core, *asked), make(core)[0], failures


def _say_failures(failures: Sequence[Failure], talk: Output) -> None:
    for failure in failures:
        # What is wrong and what to do, in one line: there may be one for each of many metrics.
        hint = f": {failure.hint}" if failure.hint else ""
        talk.error(OmgsrError(f"{failure.name}: {failure.message}{hint}"))


def _title(wanted: Wanted, samples: Sequence[Sample]) -> str:
    source = wanted.data or (wanted.restored[0] if wanted.restored else None)
    name = "the pictures that come with omgsr" if source is None else shown(source.absolute().name)
    count = "1 picture" if len(samples) == 1 else f"{len(samples)} pictures"
    return f"{name}, {count}"


def _settings(wanted: Wanted, device: torch.device, cache_folder: Path) -> dict[str, str]:
    """What the numbers depend on, for people."""
    found = {
        "data": "shipped with omgsr" if wanted.data is None and not wanted.restored else str(wanted.data or "-"),
        "references": str(wanted.references or "those beside the data, if any"),
        "psnr and ssim": core_settings(wanted.color_space, wanted.crop_border_px),
        "device": str(device),
        "precision": wanted.precision,
        "kept in": str(cache_folder),
    }
    return found | ({"repeat": str(wanted.repeat)} if wanted.repeat else {})
