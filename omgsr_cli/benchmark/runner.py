"""Restore with every model, score everything, and gather it in a report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
from omgsr_cli.errors import OmgsrError
from omgsr_cli.imaging import Picture, read_picture, write_picture

OnStart = Callable[[str], None]
OnFinish = Callable[[], None]


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
        """How often `on_finish` is called."""
        return len(self.cases) * (len(self.contestants) * (self.repeat or 1) + len(self.models))


def run_benchmark(
    plan: Plan, cache: Cache, *, on_start: OnStart | None = None, on_finish: OnFinish | None = None
) -> Report:
    """Restore, score and summarise.

    Args:
        plan: what to do.
        cache: where restored pictures and scores are kept.
        on_start: told what begins.
        on_finish: told that it has ended, `plan.steps` times.
    Raises:
        OmgsrError: a model cannot be loaded, or an input cannot be read; a picture that a model fails on is told
            in the report.
    """
    steps = _Steps(on_start or (lambda name: None), on_finish or (lambda: None))
    stage = _Restoration(plan, cache)
    stage.run(steps)
    book = Scorebook(plan.ready, cache, {})
    images = [_score_image(case, plan, stage, book, steps) for case in plan.cases]
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


@dataclass(frozen=True)
class _Steps:
    """Who is told of the progress."""

    on_start: OnStart
    on_finish: OnFinish

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        self.on_start(name)
        yield
        self.on_finish()


@dataclass
class _Loaded:
    enlarger: Enlarger
    load_s: float
    watch: Stopwatch


@dataclass
class _Restoration:
    """Makes the pictures that are not there yet, the models taking turns so that noise hits all of them alike."""

    plan: Plan
    cache: Cache
    failures: list[Failure] = field(default_factory=list)
    errors: dict[tuple[str, str], str] = field(default_factory=dict)
    _loaded: dict[str, _Loaded] = field(default_factory=dict)

    def path(self, case: Case, model: ModelInfo) -> Path:
        """Where a model's picture is kept."""
        assert case.input is not None and case.output_px is not None, "restored ones are given without these"
        return self.cache.picture_path(
            input=self.cache.content(case.input), model=model.identity, output=list(case.output_px)
        )

    def run(self, steps: _Steps) -> None:
        """Load what is needed, warm it up, restore."""
        missing = [
            (case, contestant)
            for case in self.plan.cases
            for contestant in self.plan.contestants
            if self.plan.repeat is not None or not self.path(case, contestant.info).is_file()
        ]
        for contestant in self.plan.contestants:
            first = next((case for case, each in missing if each is contestant), None)
            if first is not None:
                self._load(contestant, first)
        wanted = {(case.name, contestant.info.name) for case, contestant in missing}
        for _ in range(self.plan.repeat or 1):
            for case in self.plan.cases:
                for contestant in self.plan.contestants:
                    with steps.step(f"{contestant.info.name}: {case.name}"):
                        if (case.name, contestant.info.name) in wanted:
                            self._restore(case, contestant.info)

    def speeds(self) -> list[Speed]:
        """What the models took that ran."""
        found = [
            loaded.watch.speed(name, loaded.enlarger.precision, loaded.load_s) for name, loaded in self._loaded.items()
        ]
        return [speed for speed in found if speed is not None]

    def _load(self, contestant: Contestant, first: Case) -> None:
        started = time.perf_counter()
        enlarger = contestant.load()
        load_s = time.perf_counter() - started
        self._loaded[contestant.info.name] = _Loaded(enlarger, load_s, Stopwatch(enlarger.device))
        # The first picture of a model is slower: memory is taken, kernels are chosen.
        assert first.input is not None and first.output_px is not None, "only such are restored"
        try:
            enlarger(read_picture(first.input).rgb, first.output_px)
        except OmgsrError:
            return  # It is told where this picture has its turn.

    def _restore(self, case: Case, model: ModelInfo) -> None:
        assert case.input is not None and case.output_px is not None, "only such are restored"
        loaded, output = self._loaded[model.name], case.output_px
        try:
            picture = read_picture(case.input)
            restored = loaded.watch.time(lambda: loaded.enlarger(picture.rgb, output), output.area)
            write_picture(Picture(restored), self.path(case, model), format="png", metadata="none", overwrite=True)
        except OmgsrError as error:
            if (case.name, model.name) not in self.errors:
                self.errors[case.name, model.name] = error.message
                self.failures.append(Failure(f"{model.name} on {case.name}", error.message, error.hint))


def _score_image(case: Case, plan: Plan, stage: _Restoration, book: Scorebook, steps: _Steps) -> ImageResult:
    restored = dict(case.given)
    for contestant in plan.contestants:
        if (case.name, contestant.info.name) not in stage.errors:
            restored[contestant.info.name] = stage.path(case, contestant.info)
    scores: dict[str, dict[str, float | None]] = {}
    unavailable = {known.info.name: None for known in plan.asked if known.info.kind != "set"}
    for model in plan.models:
        with steps.step(f"scores of {model.name}: {case.name}"):
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
