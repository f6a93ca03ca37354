"""Restore with every model, score everything, and gather it in a report."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from omgsr_cli.benchmark.cache import Cache
from omgsr_cli.benchmark.cases import Case
from omgsr_cli.benchmark.contestants import Contestant, Enlarger
from omgsr_cli.benchmark.metrics import KnownMetric
from omgsr_cli.benchmark.results import Failure, ImageResult, MetricInfo, ModelInfo, Report, Speed, Summary
from omgsr_cli.benchmark.scoring import ReadyMetric, Scorebook
from omgsr_cli.benchmark.speed import Stopwatch
from omgsr_cli.benchmark.statistics import compare, summarise
from omgsr_cli.benchmark.versions import collect_versions
from omgsr_cli.errors import DeviceError, OmgsrError
from omgsr_cli.imaging import Picture, read_picture, write_picture
from omgsr_cli.models.devices import is_out_of_memory, release_memory

_LOST_HINT = "memory may be short: try fewer --workers"

OnStart = Callable[[str], None]
OnFinish = Callable[[], None]

# What memory that is short may look like; `is_out_of_memory` tells whether it is.
_MEMORY_ERRORS = (RuntimeError, MemoryError)


@dataclass(frozen=True)
class Plan:
    """Everything that a benchmark does, found and made beforehand.

    Attributes:
        cases: the pictures.
        contestants: models that restore them.
        given: what was restored before, as models.
        asked: the metrics that were asked for.
        ready: those of them that could be made.
        failures: why the others could not.
        repeat: how often each picture is restored for its time; None restores only what is not kept, once.
        title: of the report.
        settings: for people.
        notes: what a person should know before long work begins, a line each.
    """

    cases: Sequence[Case]
    contestants: Sequence[Contestant]
    given: Sequence[ModelInfo]
    asked: Sequence[KnownMetric]
    ready: Sequence[ReadyMetric]
    failures: Sequence[Failure]
    repeat: int | None
    title: str
    settings: Mapping[str, str]
    notes: tuple[str, ...] = ()

    @property
    def models(self) -> tuple[ModelInfo, ...]:
        """Everything that stands side by side: what was given, then what restores."""
        return (*self.given, *(contestant.info for contestant in self.contestants))

    @property
    def steps(self) -> int:
        """How often `on_finish` is called: once a picture."""
        return len(self.cases)


def run_benchmark(
    plan: Plan,
    cache: Cache,
    *,
    lost: Mapping[str, str] | None = None,
    on_start: OnStart | None = None,
    on_finish: OnFinish | None = None,
) -> Report:
    """Restore, score and summarise, picture by picture.

    Args:
        plan: what to do.
        cache: where restored pictures and scores are kept.
        lost: pictures that are not tried again, as they ended the processes that restored them, and how.
        on_start: told what begins, several times a picture.
        on_finish: told that a picture has ended, `plan.steps` times.
    Raises:
        OmgsrError: a model cannot be loaded, or an input cannot be read; a picture that a model fails on is told
            in the report, and so is a model that memory is too short for.
    """
    tell = on_start or (lambda name: None)
    stage = _Restoration(plan, cache, tell)
    stage.leave_out(lost or {})
    stage.load(plan.cases)
    book = Scorebook(plan.ready, cache, {})
    images = []
    for case in plan.cases:
        stage.restore(case)
        images.append(_score_image(case, plan, stage, book, tell))
        if on_finish:
            on_finish()
    names = [model.name for model in plan.models]
    infos = _infos(plan)
    summaries = summarise(images, names, infos)
    summaries += _score_sets(plan, images, book)
    return Report(
        title=plan.title,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        models=plan.models,
        metrics=tuple(infos),
        images=tuple(images),
        summaries=tuple(summaries),
        differences=tuple(compare(images, names, infos)),
        speeds=tuple(stage.speeds()),
        failures=(*plan.failures, *stage.failures, *book.failures()),
        versions=collect_versions(),
        settings=plan.settings,
    )


def _infos(plan: Plan) -> list[MetricInfo]:
    ready = {metric.info.name: metric.info for metric in plan.ready}
    return [ready.get(known.info.name, known.info) for known in plan.asked]


@dataclass
class _Loaded:
    enlarger: Enlarger
    load_s: float
    watch: Stopwatch


class CaseRunner:
    """Restores and scores one picture after the other, for whoever gathers what is kept.

    Args:
        plan: made in this process.
        cache: where restored pictures and scores are kept.
    """

    def __init__(self, plan: Plan, cache: Cache) -> None:
        self._plan = plan
        self._stage = _Restoration(plan, cache, lambda name: None)
        self._book = Scorebook(plan.ready, cache, {})

    def __call__(self, number: int) -> None:
        """Do the picture of this number; what fails is found out again, and told, by who gathers."""
        case = self._plan.cases[number]
        self._stage.load([case])
        self._stage.restore(case)
        _score_image(case, self._plan, self._stage, self._book, lambda name: None)


@dataclass
class _Restoration:
    """Makes the pictures that are not there yet, the models taking turns so that noise hits all of them alike."""

    plan: Plan
    cache: Cache
    tell: OnStart
    failures: list[Failure] = field(default_factory=list)
    errors: dict[tuple[str, str], str] = field(default_factory=dict)
    _loaded: dict[str, _Loaded] = field(default_factory=dict)
    _too_large: dict[str, str] = field(default_factory=dict)

    def path(self, case: Case, model: ModelInfo) -> Path:
        """Where a model's picture is kept."""
        assert case.input is not None and case.output_px is not None, "restored ones are given without these"
        return self.cache.picture_path(
            input=self.cache.content(case.input), model=model.identity, output=list(case.output_px)
        )

    def leave_out(self, lost: Mapping[str, str]) -> None:
        """Take as failed what is missing of these pictures, by their names, for these reasons."""
        for case in self.plan.cases:
            for contestant in self.plan.contestants:
                if case.name in lost and self._is_missing(case, contestant.info):
                    self._fail(case, contestant.info, DeviceError(lost[case.name], _LOST_HINT))

    def load(self, cases: Sequence[Case]) -> None:
        """Load and warm up the models that have something to do for these pictures, and are not loaded yet."""
        for contestant in self.plan.contestants:
            name = contestant.info.name
            missing = [
                case
                for case in cases
                if (case.name, name) not in self.errors and self._is_missing(case, contestant.info)
            ]
            if not missing or name in self._loaded:
                continue
            if name in self._too_large:
                self.errors |= {(case.name, name): self._too_large[name] for case in missing}
                continue
            self.tell(f"loading {contestant.info.name}")
            try:
                self._load(contestant, missing[0])
            except _MEMORY_ERRORS as error:
                short = _short_of_memory(error, "to load it")
                self.failures.append(Failure(contestant.info.name, short.message, short.hint))
                self._too_large[name] = short.message
                self.errors |= {(case.name, name): short.message for case in missing}

    def restore(self, case: Case) -> None:
        """Let every model that has not yet make its picture of one input; `repeat` times in turns, if that is given."""
        missing = [each.info for each in self.plan.contestants if self._is_missing(case, each.info)]
        for _ in range(self.plan.repeat or 1):
            for model in missing:
                if (case.name, model.name) not in self.errors:
                    self.tell(f"{model.name}: {case.name}")
                    self._restore(case, model)

    def speeds(self) -> list[Speed]:
        """What the models took that ran."""
        found = [
            loaded.watch.speed(name, loaded.enlarger.precision, loaded.load_s) for name, loaded in self._loaded.items()
        ]
        return [speed for speed in found if speed is not None]

    def _is_missing(self, case: Case, model: ModelInfo) -> bool:
        return self.plan.repeat is not None or not self.path(case, model).is_file()

    def _load(self, contestant: Contestant, first: Case) -> None:
        started = time.perf_counter()
        enlarger = contestant.load()
        load_s = time.perf_counter() - started
        self._loaded[contestant.info.name] = _Loaded(enlarger, load_s, Stopwatch(enlarger.device))
        # The first picture of a model is slower: memory is taken, kernels are chosen.
        assert first.input is not None and first.output_px is not None, "only such are restored"
        with contextlib.suppress(OmgsrError, *_MEMORY_ERRORS):
            # What fails here is told where this picture has its turn.
            enlarger(read_picture(first.input).rgb, first.output_px)

    def _restore(self, case: Case, model: ModelInfo) -> None:
        assert case.input is not None and case.output_px is not None, "only such are restored"
        loaded, output = self._loaded[model.name], case.output_px
        try:
            picture = read_picture(case.input)
            restored = loaded.watch.time(lambda: loaded.enlarger(picture.rgb, output), output.area)
            write_picture(Picture(restored), self.path(case, model), format="png", metadata="none", overwrite=True)
        except OmgsrError as error:
            self._fail(case, model, error)
        except _MEMORY_ERRORS as error:
            self._fail(case, model, _short_of_memory(error, f"for {output}"))

    def _fail(self, case: Case, model: ModelInfo, error: OmgsrError) -> None:
        self.errors[case.name, model.name] = error.message
        self.failures.append(Failure(f"{model.name} on {case.name}", error.message, error.hint))


def _short_of_memory(error: Exception, what: str) -> OmgsrError:
    """What a network raises where memory is short, in one line; anything else that it raises is a bug, and goes on."""
    if not is_out_of_memory(error):
        raise error
    release_memory()
    return DeviceError(f"memory is short {what}", "smaller pictures, a lighter --precision or another --device")


def _score_image(case: Case, plan: Plan, stage: _Restoration, book: Scorebook, tell: OnStart) -> ImageResult:
    restored = dict(case.given)
    for contestant in plan.contestants:
        if (case.name, contestant.info.name) not in stage.errors:
            restored[contestant.info.name] = stage.path(case, contestant.info)
    scores: dict[str, dict[str, float | None]] = {}
    unavailable = {known.info.name: None for known in plan.asked if known.info.kind != "set"}
    for model in plan.models:
        tell(f"scores of {model.name}: {case.name}")
        found = book.score(restored[model.name], case.reference) if model.name in restored else {}
        scores[model.name] = {**unavailable, **found}
    errors = {model: error for (name, model), error in stage.errors.items() if name == case.name}
    return ImageResult(case.name, case.input, case.reference, restored, scores, errors)


def _score_sets(plan: Plan, images: Sequence[ImageResult], book: Scorebook) -> list[Summary]:
    """One summary for each model and each metric that scores sets."""
    ready = {metric.info.name: metric for metric in plan.ready}
    found = []
    for known in plan.asked:
        if known.info.kind != "set":
            continue
        for model in plan.models:
            pairs = [(image.restored[model.name], image.reference) for image in images if model.name in image.restored]
            complete = [(restored, reference) for restored, reference in pairs if reference is not None]
            value = None
            if known.info.name in ready:
                restored, references = ([pair[side] for pair in complete] for side in (0, 1))
                value = book.score_set(ready[known.info.name], restored, references, model.name)
            found.append(Summary(model.name, known.info.name, len(complete) if value is not None else 0, value))
    return found
