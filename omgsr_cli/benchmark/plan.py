"""The plan of a benchmark: everything is found and checked before long work begins."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from omgsr_cli.benchmark.cache import Cache, default_cache_folder
from omgsr_cli.benchmark.cases import FoundCases, bundled_cases, find_cases
from omgsr_cli.benchmark.metrics import CORE, DEFAULT, KnownMetric, choose_metrics, core_settings
from omgsr_cli.benchmark.models import Model, ModelChoice, given_models, restoring_models
from omgsr_cli.benchmark.perceptual import missing_requirements
from omgsr_cli.benchmark.results import Failure, Report
from omgsr_cli.benchmark.runner import OnFinish, OnStart, Plan, run_plan
from omgsr_cli.benchmark.scoring import MetricChoice, ReadyMetric, make_metrics
from omgsr_cli.errors import UsageError
from omgsr_cli.files.addresses import shown
from omgsr_cli.models.devices import choose_device, choose_precision
from omgsr_cli.options import BenchOptions, build_options


def run_bench(
    options: BenchOptions | None = None,
    *,
    on_start: OnStart | None = None,
    on_finish: OnFinish | None = None,
    **values: object,
) -> Report:
    """Restore with every model, score the results, and return a report.

    Args:
        options: what to compare; None takes the default model and bicubic on the bundled images.
        on_start: called with a short text when an operation begins.
        on_finish: called after each image.
        values: fields of `BenchOptions`, instead of `options`.
    Raises:
        OmgsrError: options conflict, or something is missing; failures of single metrics and images are in the report.
    """
    if options is not None and values:
        raise UsageError(f"{', '.join(values)} and options exclude each other", "pass one or the other")
    options = options or build_options(BenchOptions, **values)
    return run_plan(plan_bench(options), on_start=on_start, on_finish=on_finish)


def plan_bench(options: BenchOptions) -> Plan:
    """Check the options, find the images and load the metrics; models are not loaded.

    Raises:
        OmgsrError: options conflict, or something is missing; unavailable metrics and unusable files are in the
            plan's failures.
    """
    wanted = choose_metrics(DEFAULT if options.metrics is None else options.metrics)
    device = choose_device(options.device)
    if options.precision != "auto":
        choose_precision(options.precision, device)
    restoring = _restoring(options)
    given = given_models(options.sr)
    found = _cases(options, given, restoring)
    folder = options.cache or default_cache_folder()
    # Check the folder before metrics are loaded, which may take a while.
    Cache(folder).close()
    choice = MetricChoice(options.device, options.color_space, options.crop_border, options.seed)
    asked, ready, failures, notes = _metrics(options, choice, wanted, found)
    return Plan(
        cases=found.cases,
        models=[*given, *restoring],
        asked=asked,
        ready=ready,
        cache=folder,
        metric_choice=choice,
        failures=[*found.failures, *failures],
        repeat=options.repeat,
        title=_title(options, len(found.cases)),
        settings=_settings(options, device),
        notes=(*found.notes, *notes),
    )


def _restoring(options: BenchOptions) -> list[Model]:
    is_named = bool(options.model or options.base or options.adapter)
    if options.sr and options.data is None and is_named:
        raise UsageError("--model has nothing to restore beside --sr", "give --data FOLDER with its inputs")
    if options.sr and not is_named:
        return []
    choice = ModelChoice(options.device, options.precision, options.seed)
    return restoring_models(options.model, base=options.base, adapter=options.adapter, choice=choice)


def _cases(options: BenchOptions, given: Sequence[Model], restoring: Sequence[Model]) -> FoundCases:
    model_scale = next((model.info.scale for model in restoring if model.info.scale), None)
    if options.data is None and not given:
        if options.hr is not None:
            raise UsageError(f"--hr {shown(options.hr)} needs images to compare", "use --data or --sr")
        return bundled_cases(options.scale, model_scale)
    folders = {model.info.name: folder for model, folder in zip(given, options.sr, strict=True)}
    return find_cases(
        *(options.data, options.hr, folders, options.scale), model_scale=model_scale, recursive=options.recursive
    )


_Metrics = tuple[Sequence[KnownMetric], Sequence[ReadyMetric], Sequence[Failure], tuple[str, ...]]


def _metrics(options: BenchOptions, choice: MetricChoice, asked: Sequence[KnownMetric], found: FoundCases) -> _Metrics:
    """Load the metrics that apply to the images: all of them, those that are ready, failures, and notes."""
    has_references = any(case.reference for case in found.cases)
    comparing = [known.info.name for known in asked if known.info.needs_references]
    if options.metrics is None:
        suiting = [known for known in asked if has_references or not known.info.needs_references]
        return _metrics_at_hand(choice, suiting)
    if comparing and not has_references:
        verb = "compares" if len(comparing) == 1 else "compare"
        raise UsageError(f"{', '.join(comparing)} {verb} with references, but no image has one", "use --hr FOLDER")
    ready, failures = make_metrics(asked, choice)
    if ready or not has_references:
        return asked, ready, failures, ()
    # psnr and ssim need no weights.
    core = choose_metrics(CORE)
    note = f"{' and '.join(CORE)}, which need no weights, replace them"
    return (*core, *asked), make_metrics(core, choice)[0], failures, (note,)


def _metrics_at_hand(choice: MetricChoice, suiting: Sequence[KnownMetric]) -> _Metrics:
    """The default metrics: those that this machine cannot compute are no error, and nothing is downloaded."""
    core = [known for known in suiting if known.info.name in CORE]
    others = [known for known in suiting if known.info.name not in CORE]
    lacking = missing_requirements(others)
    ready, failures = make_metrics(core if lacking else suiting, choice)
    # pyiqa may fail although its weights are on this machine.
    lacking = lacking or "; ".join(failure.line() for failure in failures)
    if not lacking:
        return suiting, ready, (), ()
    names = {metric.info.name for metric in ready}
    notes = [f"{' and '.join(each.info.name for each in others)} are skipped: {lacking}"]
    if not ready:
        notes.append("nothing is scored: no image has a reference, and no metric without references is available")
    return [known for known in suiting if known.info.name in names], ready, (), tuple(notes)


def _title(options: BenchOptions, count: int) -> str:
    source = options.data or (options.sr[0] if options.sr else None)
    name = "the bundled images" if source is None else _name(source)
    return f"{name}, {count} image{'' if count == 1 else 's'}"


def _settings(options: BenchOptions, device: torch.device) -> dict[str, str]:
    """What the numbers depend on, as readable text."""
    data = options.data or (options.sr[0] if options.sr else None)
    found = {
        "data": _name(data) if data else "bundled with omgsr",
        "references": _name(options.hr) if options.hr else "those in the data folder, if any",
        "psnr and ssim": core_settings(options.color_space, options.crop_border),
        "device": str(device),
        "precision": options.precision,
    }
    for name, value in (("repeat", options.repeat), ("seed", options.seed), ("scale", options.scale)):
        found |= {} if value is None else {name: f"{value:g}"}
    return found


def _name(folder: Path) -> str:
    """A folder's name without its path: reports are published."""
    return shown(folder.absolute().name)
