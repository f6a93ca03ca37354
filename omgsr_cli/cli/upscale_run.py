"""What `omgsr upscale` does once its options are known: plans or does the jobs, and tells of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING

from omgsr_cli.cli.output import Output
from omgsr_cli.cli.progress import duration
from omgsr_cli.cli.spread import PartsOfPlan, Report, choose_engine
from omgsr_cli.cli.upscale_forecast import Pace
from omgsr_cli.cli.upscale_results import Tally, name_of, result_line
from omgsr_cli.errors import FileError, OmgsrError
from omgsr_cli.files.inputs import NAME_RESULT, skipped_results
from omgsr_cli.files.jobs import Job, JobPlan, clear_leftovers

if TYPE_CHECKING:
    from omgsr_cli.batch.finished import Settings
    from omgsr_cli.batch.results import FileResult
    from omgsr_cli.options import EngineOptions


class Session:
    """One call of the command: the settings, the model when it is needed, and the counting."""

    def __init__(self, settings: Settings, talk: Output, to_stdout: bool) -> None:
        from omgsr_cli.files.remembered import Remembered, take_notes
        from omgsr_cli.models.families import family_of
        from omgsr_cli.models.loading import describe_model
        from omgsr_cli.models.sources import find_model

        self.settings = settings
        self.talk = talk
        self.to_stdout = to_stdout
        self.source = find_model(settings.model)
        self.info = describe_model(self.source)
        self.remembered = Remembered()
        for text in take_notes():
            talk.note(f"note: {text}")
        seed = settings.restore.seed
        if seed is not None and not family_of(self.source.record, self.source.name).has_posterior:
            talk.note(f"note: --seed {seed} has no effect: {self.info.name} draws nothing")

    def pace(self) -> Pace:
        """Counts what this model has to do on the device that was asked for.

        Raises:
            OmgsrError: a device or precision is not there.
        """
        from omgsr_cli.models.devices import choose_device
        from omgsr_cli.models.loading import suitable_precision

        options = self.settings.model
        device = choose_device(options.device)
        precision = suitable_precision(self.source, options.precision, device)
        return Pace(self.info, self.settings.restore, device, precision, self.remembered)

    def plan(self, plan: PartsOfPlan) -> int:
        """Say what would be done."""
        from omgsr_cli.batch.finished import FinishedResults, plan_files
        from omgsr_cli.models.devices import choose_device
        from omgsr_cli.planning import usable_memory

        free = usable_memory(choose_device(self.settings.model.device))
        pace = self.pace()
        finished = FinishedResults(self.settings, self.info, self.remembered)
        tally = Tally()
        jobs = self._jobs(plan, tally, lambda _: None, dry_run=True)
        results = plan_files(jobs, self.settings, self.info, finished, free)
        return self._report(plan, tally, results, pace.add, pace.forecast)

    def run(self, plan: PartsOfPlan, options: EngineOptions, report: Report) -> int:
        """Do the work."""
        from omgsr_cli.batch.results import result_record
        from omgsr_cli.batch.upscaler import UpscaleWork
        from omgsr_cli.engines.local import Here

        engine = choose_engine(options, plan.total)
        # A device or precision that is not there is said before anything is read.
        pace = self.pace()
        tally = Tally()

        def keep(result: FileResult) -> None:
            report.add(result_record(result))

        def after(result: FileResult) -> None:
            pace.add(result)
            keep(result)
            view.finish()

        def counted() -> None:
            view.count(plan.count)
            report.counted(plan.count)

        with self.talk.progress(plan.total) as view:
            # Tiles are told only by this process, and what several do at once says little of one's speed.
            alone = isinstance(engine, Here)
            work = UpscaleWork(self.settings, self.source, self.info, view.tiles if alone else None)
            jobs = self._jobs(plan, tally, keep, counted if plan.total is None else None)
            results = engine.run(
                work, jobs, on_start=lambda job: view.start(name_of(job.source, "stdin")), say=self._tell
            )
            # However it ends, no process goes on.
            with closing(results):
                code = self._report(plan, tally, results, after)
        if alone:
            pace.keep(tally.seconds)
        return code

    def _tell(self, text: str, *, detail: bool = False) -> None:
        if detail:
            self.talk.detail(text)
        else:
            self.talk.note(f"note: {text}")

    def _jobs(
        self,
        plan: PartsOfPlan,
        tally: Tally,
        keep: Callable[[FileResult], None],
        counted: Callable[[], None] | None = None,
        *,
        dry_run: bool = False,
    ) -> Iterator[Job]:
        """The jobs of all parts; what is to be told of a part is told as it is begun."""

        def tell(part: JobPlan) -> None:
            for note in part.notes:
                self.talk.note(f"note: {note}")
            for path in part.earlier_results:
                self.talk.detail(
                    f"note: {name_of(path, '')}: left out, it is a result of an earlier run or has the name of one"
                )
            for problem in part.problems:
                keep(self._refuse(problem))
                tally.failed.append(problem.message)
            if not dry_run and (removed := clear_leftovers(part.jobs)):
                self.talk.detail(f"note: removed {removed} unfinished files of runs that were killed")
            if part.is_last and counted is not None:
                counted()

        return plan.jobs(tell)

    def _refuse(self, problem: OmgsrError) -> FileResult:
        """Tell of what was typed, and names no file that could be a job."""
        from omgsr_cli.batch.results import FileResult

        result = FileResult(None, None, "failed", error=problem)
        self._say(result, alone=False)
        return result

    def _report(
        self,
        plan: PartsOfPlan,
        tally: Tally,
        results: Iterable[FileResult],
        after: Callable[[FileResult], None],
        forecast: Callable[[], str] | None = None,
    ) -> int:
        for result in results:
            tally.add(result)
            self._say(result, alone=plan.total == 1)
            after(result)
        if tally.own:
            told = skipped_results(len(tally.own), tally.own[0])
            if len(tally.own) < plan.count or plan.problems:
                self.talk.note(f"note: {told}")
            else:
                tally.failed.append(tally.own[0])
                self.talk.error(FileError(f"nothing to do: {told}", NAME_RESULT))
        if forecast is not None or plan.count + plan.problems != 1:
            self.talk.note(tally.summary(forecast))
        return 1 if tally.failed else 0

    def _say(self, result: FileResult, *, alone: bool) -> None:
        if result.error:
            self.talk.error(result.error)
        name = name_of(result.source, "stdin")
        for note in result.notes:
            self.talk.note(f"note: {name}: {note}")
        if result.status == "skipped" and not result.is_own:
            say = self.talk.note if alone else self.talk.detail
            say(f"{name}: finished before, as {name_of(result.destination, 'stdout')}")
        if result.status == "done" and result.output_px and result.input_px:
            seconds = duration(result.seconds)
            say = self.talk.note if alone else self.talk.detail
            say(f"{name}: {result.input_px} to {result.output_px} in {seconds}")
        writes_picture = self.to_stdout and result.status != "planned"
        if writes_picture or (result.status in ("failed", "skipped") and not self.talk.as_json):
            return
        from omgsr_cli.batch.results import result_record

        self.talk.result(result_line(result), result_record(result))
