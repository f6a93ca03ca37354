"""Plan a benchmark: find and check all inputs before long work begins."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omgsr_cli.benchmark.cache import Cache
from omgsr_cli.benchmark.cases import Case, FoundCases, bundled_cases, find_cases
from omgsr_cli.benchmark.metrics import CORE, DEFAULT, KnownMetric, choose_metrics, core_settings
from omgsr_cli.benchmark.models import Model, given_models, restoring_models
from omgsr_cli.benchmark.perceptual import missing_requirements
from omgsr_cli.benchmark.results import Failure
from omgsr_cli.benchmark.scoring import ReadyMetric, make_metrics
from omgsr_cli.errors import UsageError
from omgsr_cli.files.addresses import shown
from omgsr_cli.models.devices import choose_device, choose_precision
from omgsr_cli.options import BenchOptions


@dataclass(frozen=True)
class Plan:
    """The inputs of a benchmark, found and checked before it begins.

    Attributes:
        options: options of the benchmark: its cache, device, seed, and how often each image is restored.
        cases: the images.
        models: the models and folders of restored images to compare.
        asked: the requested metrics.
        ready: the requested metrics that are loaded in this process.
        failures: unavailable metrics and unusable files.
        title: title of the report.
        settings: readable text for the report.
        notes: notes for the user before long work begins, one line each.
    """

    options: BenchOptions
    cases: Sequence[Case]
    models: Sequence[Model]
    asked: Sequence[KnownMetric]
    ready: Sequence[ReadyMetric]
    failures: Sequence[Failure] = ()
    title: str = ""
    settings: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def restoring(self) -> list[Model]:
        """The models that restore inputs."""
        return [model for model in self.models if model.load]


def plan_bench(options: BenchOptions) -> Plan:
    """Check the options, find the images and load the metrics; models are not loaded.

    Raises:
        OmgsrError: options conflict, or a required input is missing; the plan's failures list unavailable metrics and
            unusable files.
    """
    wanted = choose_metrics(DEFAULT if options.metrics is None else options.metrics)
    device = choose_device(options.device)
    if options.precision != "auto":
        choose_precision(options.precision, device)
    is_named = bool(options.model or options.base or options.adapter)
    if options.sr and options.data is None and is_named:
        raise UsageError("--model has nothing to restore beside --sr", "give --data FOLDER with its inputs")
    restoring = restoring_models(options) if is_named or not options.sr else []
    given = given_models(options.sr)
    found = _cases(options, given, restoring)
    # Check the folder first, because loading metrics may take long.
    Cache(options.cache).close()
    asked, ready, failures, notes = _metrics(options, wanted, found)
    data = options.data or next(iter(options.sr), None)
    count = f"{len(found.cases)} image{'' if len(found.cases) == 1 else 's'}"
    settings = {
        "data": _name(data) if data else "bundled with omgsr",
        "references": _name(options.hr) if options.hr else "those in the data folder, if any",
        "psnr and ssim": core_settings(options.color_space, options.crop_border),
        "device": str(device),
        "precision": options.precision,
    }
    for name, value in (("repeat", options.repeat), ("seed", options.seed), ("scale", options.scale)):
        settings |= {} if value is None else {name: f"{value:g}"}
    return Plan(
        options=options,
        cases=found.cases,
        models=[*given, *restoring],
        asked=asked,
        ready=ready,
        failures=[*found.failures, *failures],
        title=f"{_name(data) if data else 'the bundled images'}, {count}",
        settings=settings,
        notes=(*found.notes, *notes),
    )


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


def _metrics(options: BenchOptions, asked: Sequence[KnownMetric], found: FoundCases) -> _Metrics:
    """Load the metrics that apply to the images; return all of them, the loaded ones, failures and notes."""
    has_references = any(case.reference for case in found.cases)
    if options.metrics is None:
        suiting = [known for known in asked if has_references or not known.info.needs_references]
        return _metrics_at_hand(options, suiting)
    comparing = [known.info.name for known in asked if known.info.needs_references]
    if comparing and not has_references:
        verb = "compares" if len(comparing) == 1 else "compare"
        raise UsageError(f"{', '.join(comparing)} {verb} with references, but no image has one", "use --hr FOLDER")
    ready, failures = make_metrics(asked, options)
    if ready or not has_references:
        return asked, ready, failures, ()
    # psnr and ssim need no weights.
    core = choose_metrics(CORE)
    note = f"{' and '.join(CORE)}, which need no weights, replace them"
    return (*core, *asked), make_metrics(core, options)[0], failures, (note,)


def _metrics_at_hand(options: BenchOptions, suiting: Sequence[KnownMetric]) -> _Metrics:
    """Load the default metrics without downloads; a metric that this machine cannot compute is not an error."""
    core = [known for known in suiting if known.info.name in CORE]
    others = [known for known in suiting if known.info.name not in CORE]
    lacking = missing_requirements(others)
    ready, failures = make_metrics(core if lacking else suiting, options)
    # pyiqa may fail although its weights are on this machine.
    lacking = lacking or "; ".join(failure.line() for failure in failures)
    if not lacking:
        return suiting, ready, (), ()
    names = {metric.info.name for metric in ready}
    notes = [f"{' and '.join(each.info.name for each in others)} are skipped: {lacking}"]
    if not ready:
        notes.append("nothing is scored: no image has a reference, and no metric without references is available")
    return [known for known in suiting if known.info.name in names], ready, (), tuple(notes)


def _name(folder: Path) -> str:
    """Return a folder's name without its path, because reports are published."""
    return shown(folder.absolute().name)
