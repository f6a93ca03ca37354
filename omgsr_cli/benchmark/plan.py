"""From what a benchmark was asked for to its report: the cheap checks first, then metrics, then models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from omgsr_cli.benchmark.cache import Cache, default_cache_folder
from omgsr_cli.benchmark.cases import Case, find_cases, shipped_cases
from omgsr_cli.benchmark.contestants import Contestant, unique_names
from omgsr_cli.benchmark.metrics import CORE, DEFAULT, KnownMetric, choose_metrics, core_settings, needs_references
from omgsr_cli.benchmark.models import build_contestants
from omgsr_cli.benchmark.perceptual import what_is_lacking
from omgsr_cli.benchmark.results import Failure, ModelInfo, Report
from omgsr_cli.benchmark.runner import CaseRunner, OnFinish, OnStart, Plan, run_benchmark
from omgsr_cli.benchmark.scoring import ReadyMetric, make_metrics
from omgsr_cli.engines.work import Engine, Place, Say, say_nothing
from omgsr_cli.errors import OmgsrError, UsageError
from omgsr_cli.files.addresses import shown
from omgsr_cli.models.devices import choose_device, choose_precision
from omgsr_cli.options import BenchOptions, build_options

_DEFAULT_SCALE = 4.0


def run_bench(
    options: BenchOptions | None = None,
    *,
    on_start: OnStart | None = None,
    on_finish: OnFinish | None = None,
    **values: object,
) -> Report:
    """Restore with every model, score everything, and gather it in a report.

    Args:
        options: what to compare; None takes the default model and bicubic on the pictures of the package.
        on_start: told what begins.
        on_finish: told that it has ended.
        values: fields of `BenchOptions`, in the place of `options`.
    Raises:
        OmgsrError: something asked for is not there or does not go together; failures of single metrics and
            pictures are in the report.
    """
    if options is not None and values:
        raise UsageError(f"{', '.join(values)} beside whole options", "give one or the other")
    options = options or build_options(BenchOptions, **values)
    return run_plan(plan_bench(options), options, on_start=on_start, on_finish=on_finish)


def run_plan(
    plan: Plan,
    options: BenchOptions,
    engine: Engine | None = None,
    *,
    on_start: OnStart | None = None,
    on_finish: OnFinish | None = None,
    say: Say | None = None,
) -> Report:
    """Carry out what `plan_bench` made of the options; arguments and errors as for `run_bench`.

    Args:
        engine: restores and scores the pictures before this process gathers what is kept; None leaves all to this
            process, which also times the models.
        say: told what a person should know of what the engine's processes load.
    """
    if not plan.ready:
        raise OmgsrError("no metric is left to score with", "psnr and ssim need nothing but references: --hr FOLDER")
    cache = Cache(_cache_folder(options))
    try:
        if engine is None:
            return run_benchmark(plan, cache, on_start=on_start, on_finish=on_finish)
        lost: dict[str, str] = {}
        results = engine.run(
            BenchWork(options),
            tuple(case.name for case in plan.cases),
            on_start=on_start or (lambda name: None),
            say=say or say_nothing,
        )
        with closing(results):
            for name, how in results:
                if how is not None:
                    lost[name] = how
                if on_finish:
                    on_finish()
        return run_benchmark(plan, cache, lost=lost)
    finally:
        cache.close()


@dataclass(frozen=True)
class BenchWork:
    """The pictures of a benchmark as an engine is given them, by their names.

    Attributes:
        options: of the benchmark; each process makes its own plan of them.
    """

    options: BenchOptions

    def open(self, place: Place, say: Say) -> Callable[[str], tuple[str, str | None]]:
        """What restores and scores pictures in a process, and keeps them."""
        options = self.options.model_copy(update={"device": place.device})
        plan = plan_bench(options)
        runner = CaseRunner(plan, Cache(_cache_folder(options)))
        numbers = {case.name: number for number, case in enumerate(plan.cases)}

        def do(name: str) -> tuple[str, str | None]:
            runner(numbers[name])
            return name, None

        return do

    def lost(self, name: str, error: OmgsrError) -> tuple[str, str | None]:
        """What is told of a picture whose process ended twice."""
        return name, error.message


def plan_bench(options: BenchOptions) -> Plan:
    """Check, find the pictures, make the metrics; no model is loaded.

    Raises:
        OmgsrError: something asked for is not there or does not go together; metrics that cannot be had are in the
            plan's failures.
    """
    asked = choose_metrics(DEFAULT if options.metrics is None else options.metrics)
    device = choose_device(options.device)
    if options.precision != "auto":
        choose_precision(options.precision, device)
    contestants = _contestants(options)
    given = dict(zip(unique_names([folder.name for folder in options.sr]), options.sr, strict=True))
    cases = _cases(options, given, contestants)
    plan = Plan(
        cases=cases,
        contestants=contestants,
        given=[ModelInfo(name, "given", detail=str(folder)) for name, folder in given.items()],
        asked=_suiting(asked, options, cases),
        ready=(),
        failures=(),
        repeat=options.repeat,
        title=_title(options, cases),
        settings=_settings(options, device),
    )
    # A folder that nothing can be kept in is told before metrics are made, which may take a while.
    Cache(_cache_folder(options)).close()
    return _with_metrics(plan, options, device)


def _cache_folder(options: BenchOptions) -> Path:
    return options.cache or default_cache_folder()


def _contestants(options: BenchOptions) -> list[Contestant]:
    if options.sr and options.data is None:
        if options.model or options.base or options.adapter:
            raise UsageError("--model has nothing to restore beside --sr", "give --data FOLDER with its inputs")
        return []
    if options.sr and not (options.model or options.base or options.adapter):
        return []
    return build_contestants(
        options.model, base=options.base, adapter=options.adapter, device=options.device, precision=options.precision
    )


def _cases(options: BenchOptions, given: Mapping[str, Path], contestants: Sequence[Contestant]) -> tuple[Case, ...]:
    scales = (contestant.info.scale for contestant in contestants)
    scale = options.scale or next((scale for scale in scales if scale), _DEFAULT_SCALE)
    if options.data is None and not given:
        if options.hr is not None:
            raise UsageError(f"--hr {shown(options.hr)} has no pictures beside it", "give --data or --sr")
        return shipped_cases(scale)
    return find_cases(options.data, options.hr, given, scale, recursive=options.recursive)


def _suiting(asked: Sequence[KnownMetric], options: BenchOptions, cases: Sequence[Case]) -> tuple[KnownMetric, ...]:
    """Leave out what nobody asked for by name and needs references that are not there."""
    if any(case.reference for case in cases):
        return tuple(asked)
    lost = [known.info.name for known in asked if needs_references(known.info)]
    if lost and options.metrics is not None:
        verb = "compares" if len(lost) == 1 else "compare"
        raise UsageError(f"{', '.join(lost)} {verb} with references, and there are none", "give --hr FOLDER")
    return tuple(known for known in asked if known.info.name not in lost)


def _with_metrics(plan: Plan, options: BenchOptions, device: torch.device) -> Plan:
    """Make the metrics; where none of those asked for can be had, psnr and ssim, which need nothing, stand in."""

    def make(chosen: Sequence[KnownMetric]) -> tuple[list[ReadyMetric], list[Failure]]:
        space, border = options.color_space, options.crop_border
        return make_metrics(chosen, device=device, color_space=space, crop_border_px=border)

    if options.metrics is None:
        return _with_what_is_at_hand(plan, make)
    ready, failures = make(plan.asked)
    if ready or not any(case.reference for case in plan.cases):
        return replace(plan, ready=ready, failures=failures)
    core = choose_metrics(CORE)
    note = f"{' and '.join(CORE)}, which need no weights, are shown beside"
    return replace(plan, asked=(*core, *plan.asked), ready=make(core)[0], failures=failures, notes=(note,))


def _with_what_is_at_hand(
    plan: Plan, make: Callable[[Sequence[KnownMetric]], tuple[list[ReadyMetric], list[Failure]]]
) -> Plan:
    """Make the metrics of a run that named none: what is not on this machine is no error, and is not fetched."""
    core = [known for known in plan.asked if known.info.name in CORE]
    others = [known for known in plan.asked if known.info.name not in CORE]
    lacking = what_is_lacking(others)
    ready, failures = make(core if lacking else plan.asked)
    # Weights may be here and pyiqa not work all the same.
    lacking = lacking or "; ".join(failure.line() for failure in failures)
    if not lacking:
        return replace(plan, ready=ready)
    left = {metric.info.name for metric in ready}
    note = f"{' and '.join(each.info.name for each in others)} are left out: {lacking}"
    return replace(plan, asked=[known for known in plan.asked if known.info.name in left], ready=ready, notes=(note,))


def _title(options: BenchOptions, cases: Sequence[Case]) -> str:
    source = options.data or (options.sr[0] if options.sr else None)
    name = "the bundled images" if source is None else shown(source.absolute().name)
    count = "1 image" if len(cases) == 1 else f"{len(cases)} images"
    return f"{name}, {count}"


def _name(folder: Path | None) -> str:
    return "-" if folder is None else shown(folder.absolute().name)


def _settings(options: BenchOptions, device: torch.device) -> dict[str, str]:
    """What the numbers depend on, for people."""
    found = {
        "data": "bundled with omgsr" if options.data is None and not options.sr else _name(options.data),
        "references": _name(options.hr) if options.hr else "those beside the data, if any",
        "psnr and ssim": core_settings(options.color_space, options.crop_border),
        "device": str(device),
        "precision": options.precision,
    }
    return found | ({"repeat": str(options.repeat)} if options.repeat else {})
