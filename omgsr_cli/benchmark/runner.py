"""Run a benchmark: find and check its inputs, restore with every model, score the results, and create a report."""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

import torch

from omgsr_cli import __version__
from omgsr_cli.benchmark.cases import Case, FoundCases, bundled_cases, find_cases
from omgsr_cli.benchmark.metrics import CORE, DEFAULT, KnownMetric, choose_metrics, core_settings
from omgsr_cli.benchmark.models import LoadedModel, Model, Timing, given_models, restoring_models, speed_of, time_call
from omgsr_cli.benchmark.results import Cache, Failure, ImageResult, Report, Summary, compare, key_of, summarise
from omgsr_cli.benchmark.scoring import ReadyMetric, Scorebook, make_metrics, missing_requirements, scoring_failures
from omgsr_cli.engines.work import Engine, OneByOne, Place, Say, Worker, say_nothing
from omgsr_cli.errors import DeviceError, OmgsrError, UsageError
from omgsr_cli.files.addresses import shown
from omgsr_cli.imaging import SourceImage, read_image, write_image
from omgsr_cli.models.devices import choose_device, choose_precision, is_out_of_memory, release_memory
from omgsr_cli.options import BenchOptions, build_options
from omgsr_cli.packages import version_of

OnStart = Callable[[str], None]
OnFinish = Callable[[], None]

# `is_out_of_memory` recognises which of these mean that memory ran out.
_MEMORY_ERRORS = (RuntimeError, MemoryError)
# Libraries whose version affects results.
_LIBRARIES = (
    *("torch", "numpy", "pillow", "diffusers", "transformers"),
    *("pyiqa", "torchvision", "timm", "scipy", "opencv-python-headless", "spandrel"),
)


def run_bench(
    options: BenchOptions | None = None,
    *,
    on_start: OnStart | None = None,
    on_finish: OnFinish | None = None,
    **values: object,
) -> Report:
    """Restore with every model, score the results, and return a report.

    Args:
        options: what to compare; None means the default model and bicubic on the bundled images.
        on_start: called with a short text when an operation begins.
        on_finish: called after each image.
        values: fields of `BenchOptions`, instead of `options`.
    Raises:
        OmgsrError: options conflict, or a required input is missing; the report lists failures of single metrics and
            images.
    """
    if options is not None and values:
        raise UsageError(f"{', '.join(values)} and options exclude each other", "pass one or the other")
    options = options or build_options(BenchOptions, **values)
    return run_plan(plan_bench(options), on_start=on_start, on_finish=on_finish)


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


def run_plan(
    plan: Plan, engine: Engine | None = None, *, on_start: OnStart | None = None, on_finish: OnFinish | None = None
) -> Report:
    """Restore, score and summarise.

    Args:
        plan: the benchmark.
        engine: its processes restore and score the images without timing; None restores and times all images in this
            process.
        on_start: called with a short text when an operation begins, several times per image.
        on_finish: called after each image.
    Raises:
        OmgsrError: a model cannot be loaded. The report lists models that fail on an image or run out of memory.
    """
    if plan.asked and not plan.ready:
        raise OmgsrError("none of the metrics is available", "psnr and ssim need only references: --hr FOLDER")
    announce = on_start or (lambda name: None)
    numbers = range(len(plan.cases))
    with closing(Cache(plan.options.cache)) as cache:
        runner = CaseRunner(plan, plan.ready, cache, announce, plan.options.device, is_timed=engine is None)
        found: Generator[tuple[int, CaseResult | OmgsrError], None, None]
        if engine is None:
            found = ((number, runner(number)) for number in numbers)
        else:
            # Each process loads its own metrics.
            work = BenchWork(replace(plan, ready=()), [metric.info.name for metric in plan.ready])
            found = engine.run(
                work, numbers, on_start=lambda number: announce(plan.cases[number].name), say=say_nothing
            )
        results: dict[int, CaseResult] = {}
        with closing(found):
            for number, result in found:
                results[number] = runner(number, lost=result) if isinstance(result, OmgsrError) else result
                if on_finish:
                    on_finish()
        return _report(plan, [results[number] for number in numbers], Scorebook(plan.ready, cache))


@dataclass(frozen=True)
class CaseResult:
    """The results of one image.

    Attributes:
        image: the image's entry in the report.
        timings: timings by model name, from this run or an earlier one.
        failures: failures of models on this image.
        unscored: (metric, file, reason) of each metric that failed on this image.
    """

    image: ImageResult
    timings: dict[str, Timing]
    failures: tuple[Failure, ...]
    unscored: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class BenchWork:
    """Tasks for an engine: the images of a benchmark by their numbers.

    Attributes:
        plan: a plan without loaded metrics.
        metrics: names of the available metrics.
    """

    plan: Plan
    metrics: Sequence[str]

    def open(self, place: Place, say: Say) -> Worker[int, tuple[int, CaseResult | OmgsrError]]:
        """Return a worker that restores and scores images in one process."""
        chosen = [known for known in self.plan.asked if known.info.name in self.metrics and not known.info.scores_sets]
        options = self.plan.options.model_copy(update={"device": place.device})
        ready, _ = make_metrics(chosen, options)
        runner = CaseRunner(self.plan, ready, Cache(options.cache), lambda name: None, place.device)
        return OneByOne(lambda number: (number, runner(number)))

    def lost(self, number: int, error: OmgsrError) -> tuple[int, CaseResult | OmgsrError]:
        """Return the result of an image whose process died twice."""
        return number, error


@dataclass
class CaseRunner:
    """Restores and scores images one by one; the models take turns, so other load affects all models equally.

    Args:
        plan: the benchmark.
        ready: the loaded metrics of this process.
        cache: cache of restored images, scores and times.
        announce: called with a short text when an operation begins.
        device: name of the device for the models; None uses the preferred one.
        is_timed: whether to keep times; only valid if no other process restores images.
    """

    plan: Plan
    ready: Sequence[ReadyMetric]
    cache: Cache
    announce: OnStart
    device: str | None = None
    is_timed: bool = False
    _loaded: dict[str, tuple[LoadedModel, float]] = field(default_factory=dict)
    _too_large: dict[str, str] = field(default_factory=dict)

    def __call__(self, number: int, lost: OmgsrError | None = None) -> CaseResult:
        """Restore and score one image.

        Args:
            number: the image's number in the plan.
            lost: the error of the process that died on it; results that are missing then fail with this error.
        """
        case = self.plan.cases[number]
        failures: list[Failure] = []
        errors = {name: text for name, text in case.errors.items() if name}
        restored, timings = self._restore_all(case, lost, errors, failures)
        restored |= case.given
        book = Scorebook(self.ready, self.cache)
        scores: dict[str, dict[str, float | None]] = {}
        for name in [model.info.name for model in self.plan.models]:
            self.announce(f"scores of {name}: {case.name}")
            scores[name] = {known.info.name: None for known in self.plan.asked if not known.info.scores_sets}
            if name in restored:
                scores[name] |= book.score(restored[name], case.reference, case.compared_px)
        seconds = {name: statistics.median(timing.seconds) for name, timing in timings.items()}
        image = ImageResult(
            *(case.name, case.input, case.reference, restored, scores, errors, seconds), case.compared_px
        )
        return CaseResult(image, timings, tuple(failures), tuple(book.failed))

    def _restore_all(
        self, case: Case, lost: OmgsrError | None, errors: dict[str, str], failures: list[Failure]
    ) -> tuple[dict[str, Path], dict[str, Timing]]:
        """Restore an input with every model that has no kept result; return files and timings by model name."""
        models = {model.info.name: model for model in self.plan.restoring}
        if case.input is None:
            errors |= dict.fromkeys(models, case.errors[""]) if "" in case.errors else {}
            return {}, {}
        assert case.output_px is not None, "every input has an output size"
        try:
            made_from = {"input": self.cache.content(case.input), "output": list(case.output_px)}
        except OmgsrError as error:
            failures.append(Failure(f"input of {case.name}", error.message, error.hint))
            errors |= dict.fromkeys(models, error.message)
            return {}, {}
        keys = {name: key_of(kind="image", model=model.info.identity, **made_from) for name, model in models.items()}
        paths = {name: self.cache.image_path(key) for name, key in keys.items()}
        repeat = self.plan.options.repeat
        waiting = [name for name in models if repeat is not None or not paths[name].is_file()]

        def fail(name: str, error: OmgsrError) -> None:
            errors[name] = error.message
            failures.append(Failure(f"{name} on {case.name}", error.message, error.hint))

        if lost is not None:
            for name in [name for name in waiting if not paths[name].is_file()]:
                fail(name, DeviceError(lost.message, "it may have run out of memory: try fewer --workers"))
            waiting = []
        for name in waiting:
            if name not in self._loaded and name not in self._too_large:
                self._load(models[name], case, failures)
            if name in self._too_large:
                errors[name] = self._too_large[name]
        timings: dict[str, Timing] = {}
        for _ in range(repeat or 1):
            for name in [name for name in waiting if name not in errors]:
                self.announce(f"{name}: {case.name}")
                try:
                    timing = self._restore(name, case, paths[name])
                except OmgsrError as error:
                    fail(name, error)
                    continue
                timings[name] = timings[name].with_another(timing) if name in timings else timing
        made = {name: key for name, key in keys.items() if name not in errors}
        return {name: paths[name] for name in made}, self._with_kept_timings(timings, made)

    def _load(self, model: Model, first: Case, failures: list[Failure]) -> None:
        """Load and warm up a model, or record a failure if it does not fit in memory."""
        name, started = model.info.name, time.perf_counter()
        assert model.load is not None and first.input is not None and first.output_px is not None
        self.announce(f"loading {name}")
        try:
            loaded = model.load(self.device)
        except _MEMORY_ERRORS as error:
            failure = _out_of_memory_error(error, "loading it")
            failures.append(Failure(name, failure.message, failure.hint))
            self._too_large[name] = failure.message
            return
        self._loaded[name] = loaded, time.perf_counter() - started
        # Warm up, because the first image of a model is slower: memory is allocated, and kernels are chosen. If this
        # fails, the failure is reported when the image is restored.
        with contextlib.suppress(OmgsrError, *_MEMORY_ERRORS):
            loaded(read_image(first.input).rgb, first.output_px)

    def _restore(self, name: str, case: Case, path: Path) -> Timing:
        loaded, load_s = self._loaded[name]
        assert case.input is not None and case.output_px is not None, "only such images are restored"
        try:
            restored, timing = time_call(loaded, read_image(case.input).rgb, case.output_px, load_s)
            write_image(SourceImage(restored), path, format="png", metadata="none", overwrite=True)
        except _MEMORY_ERRORS as error:
            raise _out_of_memory_error(error, f"restoring {case.output_px}") from error
        return timing

    def _with_kept_timings(self, timings: dict[str, Timing], keys: dict[str, str]) -> dict[str, Timing]:
        """Store the timings of this run, and add the timings of earlier runs for kept images."""
        found: dict[str, Timing] = {}
        for name, key in keys.items():
            place = key_of(image=key, machine=_machine_name())
            if name in timings and self.is_timed:
                found[name] = timings[name]
                self.cache.keep("time", place, vars(timings[name]))
            elif name not in timings and (kept := self.cache.find("time", place)):
                found[name] = Timing(**{**kept, "is_kept": True})
        return found


def _out_of_memory_error(error: Exception, what: str) -> OmgsrError:
    """Return a one-line error for exhausted memory; raise any other error again, because it is a bug."""
    if not is_out_of_memory(error):
        raise error
    release_memory()
    return DeviceError(f"ran out of memory {what}", "use smaller images, a lower --precision or another --device")


def _report(plan: Plan, results: Sequence[CaseResult], book: Scorebook) -> Report:
    images = [result.image for result in results]
    names = [model.info.name for model in plan.models]
    ready = {metric.info.name: metric for metric in plan.ready}
    metrics = [ready[known.info.name].info if known.info.name in ready else known.info for known in plan.asked]
    summaries = summarise(images, names, metrics)
    for metric in (metric for metric in metrics if metric.scores_sets):
        for name in names:
            complete = [
                (image.restored[name], image.reference if metric.needs_references else None, case.compared_px)
                for image, case in zip(images, plan.cases, strict=True)
                if name in image.restored and (image.reference or not metric.needs_references)
            ]
            value = book.score_set(ready[metric.name], complete, name) if metric.name in ready else None
            summaries.append(Summary(name, metric.name, 0 if value is None else len(complete), value))
    timings = {name: [result.timings[name] for result in results if name in result.timings] for name in names}
    # A model that does not fit in memory fails in every process, but counts once.
    failures = dict.fromkeys([*plan.failures, *(failure for result in results for failure in result.failures)])
    unscored = [each for result in results for each in result.unscored] + book.failed
    return Report(
        title=plan.title,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        models=tuple(model.info for model in plan.models),
        metrics=tuple(metrics),
        images=tuple(images),
        summaries=tuple(summaries),
        differences=tuple(compare(images, names, metrics)),
        speeds=tuple(speed for name in names if (speed := speed_of(name, timings[name]))),
        failures=(*failures, *scoring_failures(unscored)),
        versions=_versions(),
        settings=plan.settings,
    )


def _versions() -> dict[str, str]:
    """Return the versions of this program, the libraries, Python and the system, by name."""
    found = {"omgsr": __version__, "python": platform.python_version()}
    found |= {name: version for name in _LIBRARIES if (version := version_of(name)) is not None}
    return {**found, "system": f"{platform.system()} {platform.machine()}"}


def _machine_name() -> list[object]:
    """Return what identifies this machine and its number of threads; times are not valid on another machine."""
    return [platform.node(), platform.machine(), os.cpu_count(), torch.get_num_threads()]
