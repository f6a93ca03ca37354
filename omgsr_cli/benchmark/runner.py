"""Restore with every model, score everything, and put it into a report."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from omgsr_cli.benchmark.cache import Cache, key_of
from omgsr_cli.benchmark.cases import Case
from omgsr_cli.benchmark.machine import (
    Timing,
    collect_versions,
    kept_timing,
    machine_name,
    speed_of,
    time_call,
)
from omgsr_cli.benchmark.metrics import KnownMetric
from omgsr_cli.benchmark.models import Enlarger, Model
from omgsr_cli.benchmark.results import Failure, ImageResult, MetricInfo, Report, Summary
from omgsr_cli.benchmark.scoring import MetricChoice, ReadyMetric, Scorebook, make_metrics, scoring_failures
from omgsr_cli.benchmark.statistics import compare, summarise
from omgsr_cli.engines.work import Engine, Place, Say, say_nothing
from omgsr_cli.errors import DeviceError, OmgsrError
from omgsr_cli.imaging import Picture, read_picture, write_picture
from omgsr_cli.models.devices import is_out_of_memory, release_memory

OnStart = Callable[[str], None]
OnFinish = Callable[[], None]

# What memory that is short may look like; `is_out_of_memory` says whether it is.
_MEMORY_ERRORS = (RuntimeError, MemoryError)


@dataclass(frozen=True)
class Plan:
    """Everything that a benchmark does, found and checked before it begins, once.

    Attributes:
        cases: the images.
        models: everything that stands side by side.
        asked: the metrics that were asked for.
        ready: those of them that could be made, in this process.
        metric_choice: how another process makes them.
        failures: why the others could not, and which files cannot be used.
        cache: folder of what is kept.
        repeat: how often each image is restored for its time; None restores only what is not kept, once.
        title: of the report.
        settings: for people.
        notes: what a person should know before long work begins, a line each.
    """

    cases: Sequence[Case]
    models: Sequence[Model]
    asked: Sequence[KnownMetric]
    ready: Sequence[ReadyMetric]
    cache: Path
    metric_choice: MetricChoice = field(default_factory=MetricChoice)
    failures: Sequence[Failure] = ()
    repeat: int | None = None
    title: str = ""
    settings: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def restoring(self) -> list[Model]:
        """The models that restore inputs."""
        return [model for model in self.models if model.load]


@dataclass(frozen=True)
class CaseResult:
    """What a process made of one image.

    Attributes:
        image: for the report.
        timings: model name to what its restoration took, in this run or an earlier one.
        failures: models that failed on it.
        unscored: (metric, file, reason) where a metric failed on it.
    """

    image: ImageResult
    timings: dict[str, Timing]
    failures: tuple[Failure, ...]
    unscored: tuple[tuple[str, str, str], ...]


def run_plan(
    plan: Plan, engine: Engine | None = None, *, on_start: OnStart | None = None, on_finish: OnFinish | None = None
) -> Report:
    """Restore, score and summarise.

    Args:
        plan: what to do.
        engine: its processes restore and score the images, untimed; None leaves all to this process, which times it.
        on_start: called with what begins, several times an image.
        on_finish: called after each image.
    Raises:
        OmgsrError: a model cannot be loaded; an image that a model fails on is in the report, and so is a model
            that does not fit into memory.
    """
    if plan.asked and not plan.ready:
        raise OmgsrError("no metric is left to score with", "psnr and ssim need nothing but references: --hr FOLDER")
    tell = on_start or (lambda name: None)
    numbers = range(len(plan.cases))
    cache = Cache(plan.cache)
    try:
        runner = CaseRunner(plan, plan.ready, cache, tell, plan.metric_choice.device, is_timed=engine is None)
        found: Generator[tuple[int, CaseResult | OmgsrError], None, None]
        if engine is None:
            found = ((number, runner(number)) for number in numbers)
        else:
            # Loaded networks stay here; each process loads its own.
            work = BenchWork(replace(plan, ready=()), [metric.info.name for metric in plan.ready])
            found = engine.run(work, numbers, on_start=lambda number: tell(plan.cases[number].name), say=say_nothing)
        results: dict[int, CaseResult] = {}
        with closing(found):
            for number, result in found:
                results[number] = runner(number, lost=result) if isinstance(result, OmgsrError) else result
                if on_finish:
                    on_finish()
        return _report(plan, [results[number] for number in numbers], Scorebook(plan.ready, cache))
    finally:
        cache.close()


@dataclass(frozen=True)
class BenchWork:
    """The images of a benchmark as an engine's processes get them, by their numbers.

    Attributes:
        plan: without anything loaded.
        metrics: names of those that could be made.
    """

    plan: Plan
    metrics: Sequence[str]

    def open(self, place: Place, say: Say) -> Callable[[int], tuple[int, CaseResult | OmgsrError]]:
        """What restores and scores images in a process."""
        chosen = [known for known in self.plan.asked if known.info.name in self.metrics and not known.info.is_of_sets]
        ready, _ = make_metrics(chosen, replace(self.plan.metric_choice, device=place.device))
        runner = CaseRunner(self.plan, ready, Cache(self.plan.cache), lambda name: None, place.device)
        return lambda number: (number, runner(number))

    def lost(self, number: int, error: OmgsrError) -> tuple[int, CaseResult | OmgsrError]:
        """What is known of an image whose process ended twice."""
        return number, error


@dataclass
class CaseRunner:
    """Restores and scores one image after the other; the models take turns, so that noise hits all of them alike.

    Args:
        plan: what to do.
        ready: the metrics of this process.
        cache: where restored images, scores and times are kept.
        tell: called with what begins.
        device: where models compute, by its name; None takes the first.
        is_timed: whether this process has the machine for itself, so that its times mean something.
    """

    plan: Plan
    ready: Sequence[ReadyMetric]
    cache: Cache
    tell: OnStart
    device: str | None = None
    is_timed: bool = False
    _loaded: dict[str, tuple[Enlarger, float]] = field(default_factory=dict)
    _too_large: dict[str, str] = field(default_factory=dict)

    def __call__(self, number: int, lost: OmgsrError | None = None) -> CaseResult:
        """Restore and score the image of this number.

        Args:
            number: in the plan.
            lost: why its process ended: what is not restored yet is not tried again.
        """
        case = self.plan.cases[number]
        failures: list[Failure] = []
        errors = {name: text for name, text in case.errors.items() if name}
        restored, timings = self._restore_all(case, lost, errors, failures)
        restored |= case.given
        book = Scorebook(self.ready, self.cache)
        unavailable = {known.info.name: None for known in self.plan.asked if not known.info.is_of_sets}
        scores: dict[str, dict[str, float | None]] = {}
        for name in [model.info.name for model in self.plan.models]:
            self.tell(f"scores of {name}: {case.name}")
            found = book.score(restored[name], case.reference, case.compared_px) if name in restored else {}
            scores[name] = {**unavailable, **found}
        seconds = {name: timing.median_s for name, timing in timings.items()}
        image = ImageResult(
            *(case.name, case.input, case.reference, restored, scores, errors, seconds), case.compared_px
        )
        return CaseResult(image, timings, tuple(failures), tuple(book.failed))

    def _restore_all(
        self, case: Case, lost: OmgsrError | None, errors: dict[str, str], failures: list[Failure]
    ) -> tuple[dict[str, Path], dict[str, Timing]]:
        """Let every model restore an input, unless it did before: the files, and what they took, by model name."""

        def fail(name: str, error: OmgsrError) -> None:
            errors[name] = error.message
            failures.append(Failure(f"{name} on {case.name}", error.message, error.hint))

        models = {model.info.name: model for model in self.plan.restoring}
        try:
            keys = self._image_keys(case)
        except OmgsrError as error:
            failures.append(Failure(f"input of {case.name}", error.message, error.hint))
            errors |= dict.fromkeys(models, error.message)
            return {}, {}
        if not keys:
            errors |= dict.fromkeys(models, case.errors[""]) if "" in case.errors else {}
            return {}, {}
        paths = {name: self.cache.image_path(key) for name, key in keys.items()}
        waiting = [name for name in models if self.plan.repeat is not None or not paths[name].is_file()]
        if lost is not None:
            for name in [name for name in waiting if not paths[name].is_file()]:
                fail(name, DeviceError(lost.message, "memory may be short: try fewer --workers"))
            waiting = []
        for name in waiting:
            self._load(models[name], case, errors, failures)
        timings: dict[str, Timing] = {}
        for _ in range(self.plan.repeat or 1):
            for name in [name for name in waiting if name not in errors]:
                self.tell(f"{name}: {case.name}")
                try:
                    timing = self._restore(name, case, paths[name])
                except OmgsrError as error:
                    fail(name, error)
                    continue
                timings[name] = timings[name].with_another(timing) if name in timings else timing
        made = {name: key for name, key in keys.items() if name not in errors}
        return {name: paths[name] for name in made}, self._kept_too(timings, made)

    def _image_keys(self, case: Case) -> dict[str, str]:
        """Model name to what its image of this input depends on; none without an input."""
        if case.input is None:
            return {}
        assert case.output_px is not None, "known wherever an input is"
        content, output = self.cache.content(case.input), list(case.output_px)
        return {
            model.info.name: key_of(kind="image", input=content, model=model.info.identity, output=output)
            for model in self.plan.restoring
        }

    def _load(self, model: Model, first: Case, errors: dict[str, str], failures: list[Failure]) -> None:
        """Load and warm up a model that is not loaded yet."""
        name = model.info.name
        if name in self._loaded:
            return
        if name not in self._too_large:
            self.tell(f"loading {name}")
            started = time.perf_counter()
            try:
                assert model.load is not None, "only models that restore wait"
                enlarger = model.load(self.device)
            except _MEMORY_ERRORS as error:
                short = _short_of_memory(error, "to load it")
                failures.append(Failure(name, short.message, short.hint))
                self._too_large[name] = short.message
            else:
                self._loaded[name] = (enlarger, time.perf_counter() - started)
                # The first image of a model is slower: memory is taken, kernels are chosen.
                assert first.input is not None and first.output_px is not None, "only such images are restored"
                with contextlib.suppress(OmgsrError, *_MEMORY_ERRORS):
                    # What fails here fails again where this image has its turn.
                    enlarger(read_picture(first.input).rgb, first.output_px)
                return
        errors[name] = self._too_large[name]

    def _restore(self, name: str, case: Case, path: Path) -> Timing:
        assert case.input is not None and case.output_px is not None, "only such images are restored"
        (enlarger, load_s), output = self._loaded[name], case.output_px
        image = read_picture(case.input).rgb
        try:
            restored, timing = time_call(
                lambda: enlarger(image, output),
                *(output.area, enlarger.device),
                precision=enlarger.precision,
                load_s=load_s,
            )
            write_picture(Picture(restored), path, format="png", metadata="none", overwrite=True)
        except _MEMORY_ERRORS as error:
            raise _short_of_memory(error, f"for {output}") from error
        # It may have been restored again in another precision.
        return replace(timing, precision=enlarger.precision)

    def _kept_too(self, timings: dict[str, Timing], keys: dict[str, str]) -> dict[str, Timing]:
        """Keep what was measured here, and add what an earlier run measured of images that are restored already."""
        found: dict[str, Timing] = {}
        for name, key in keys.items():
            place = key_of(kind="time", image=key, machine=machine_name())
            if name not in timings:
                kept = kept_timing(self.cache.find(place))
                found |= {name: kept} if kept else {}
            elif self.is_timed:
                self.cache.keep(place, timings[name].record())
                found[name] = timings[name]
        return found


def _short_of_memory(error: Exception, what: str) -> OmgsrError:
    """What a network raises where memory is short, in one line; anything else that it raises is a bug, and goes up."""
    if not is_out_of_memory(error):
        raise error
    release_memory()
    return DeviceError(f"memory is short {what}", "smaller images, a lighter --precision or another --device")


def _report(plan: Plan, results: Sequence[CaseResult], book: Scorebook) -> Report:
    images = [result.image for result in results]
    names = [model.info.name for model in plan.models]
    ready = {metric.info.name: metric.info for metric in plan.ready}
    metrics = [ready.get(known.info.name, known.info) for known in plan.asked]
    summaries = summarise(images, names, metrics) + _score_sets(plan, metrics, images, book)
    timings = {name: [result.timings[name] for result in results if name in result.timings] for name in names}
    speeds = [speed for name in names if (speed := speed_of(name, timings[name]))]
    # A model that does not fit into memory fails in every process, and is one failure.
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
        speeds=tuple(speeds),
        failures=(*failures, *scoring_failures(unscored)),
        versions=collect_versions(),
        settings=plan.settings,
    )


def _score_sets(
    plan: Plan, metrics: Sequence[MetricInfo], images: Sequence[ImageResult], book: Scorebook
) -> list[Summary]:
    """One summary for each model and each metric that scores sets."""
    sizes = {case.name: case.compared_px for case in plan.cases}
    ready = {metric.info.name: metric for metric in plan.ready}
    found = []
    for metric in (metric for metric in metrics if metric.is_of_sets):
        for name in [model.info.name for model in plan.models]:
            complete = [
                (image.restored[name], image.reference if metric.needs_references else None, sizes[image.name])
                for image in images
                if name in image.restored and (image.reference or not metric.needs_references)
            ]
            value = book.score_set(ready[metric.name], complete, name) if metric.name in ready else None
            found.append(Summary(name, metric.name, 0 if value is None else len(complete), value))
    return found
