"""`omgsr upscale`: options to records, results to lines."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from typing import TYPE_CHECKING

from omgsr_cli.cli import params as shared
from omgsr_cli.cli import upscale_params as own
from omgsr_cli.cli.forecast import Pace
from omgsr_cli.cli.output import Output, duration
from omgsr_cli.cli.report import Tally, name_of, result_line
from omgsr_cli.cli.spread import PartsOfPlan, Report, choose_engine, failed_inputs, first_device, open_report
from omgsr_cli.errors import OmgsrError, UsageError
from omgsr_cli.files.folders import FORMAT_OF_SUFFIX
from omgsr_cli.files.jobs import Job, JobOptions, JobPlan, plan_in_parts
from omgsr_cli.files.naming import STREAM, scale_label
from omgsr_cli.files.shards import parse_shard

if TYPE_CHECKING:
    from omgsr_cli.finished import Settings
    from omgsr_cli.options import EngineOptions
    from omgsr_cli.results import FileResult


def upscale(
    inputs: own.Inputs,
    output: own.Output = None,
    scale: own.Scale = None,
    size: own.Size = None,
    long_side: own.LongSide = None,
    short_side: own.ShortSide = None,
    process_size: own.ProcessSize = None,
    model: own.Model = None,
    base: shared.Base = None,
    adapter: shared.Adapter = None,
    mid_timestep: own.MidTimestep = None,
    prompt: own.Prompt = None,
    vae: own.Vae = None,
    seed: own.Seed = None,
    device: own.Devices = None,
    precision: shared.Precision = "auto",
    compile_: own.Compile = False,
    color_fix: own.ColorFix = None,
    tile: own.Tile = "auto",
    overlap: own.Overlap = None,
    batch: own.Batch = 1,
    memory: own.Memory = None,
    recursive: own.Recursive = False,
    suffix: own.Suffix = None,
    format_: own.Format = "same",
    quality: own.Quality = None,
    metadata: own.Metadata = "keep",
    overwrite: own.Overwrite = False,
    compare: own.Compare = False,
    workers: own.Workers = None,
    engine: own.Engine = "local",
    address: own.Address = None,
    shard: own.Shard = None,
    report: own.Report = None,
    retry_failed: own.RetryFailed = False,
    dry_run: own.DryRun = False,
    as_json: shared.AsJson = False,
    quiet: shared.Quiet = False,
    verbose: shared.Verbose = False,
) -> int:
    """Restore and enlarge pictures.

    Without -o a result lies beside its input as NAME_x4.EXT, or for a folder in FOLDER_x4/. What is finished is
    skipped on the next run; nothing else is overwritten without --overwrite.
    """
    from omgsr_cli.options import EngineOptions, ModelOptions, RestoreOptions, SizeOptions, WriteOptions, build_options

    spread = build_options(EngineOptions, workers=workers, device=device, engine=engine, address=address)
    part = None if shard is None else parse_shard(shard, os.environ)
    if retry_failed and report is None:
        raise UsageError("--retry-failed needs to know what has failed", "give the --report of the run before")
    model_options = build_options(
        ModelOptions,
        model=model,
        base=base,
        adapter=adapter,
        mid_timestep=mid_timestep,
        prompt=prompt,
        device=first_device(device),
        precision=precision,
        compile=compile_,
        process_size=process_size,
        vae=vae,
    )
    sizes = build_options(SizeOptions, scale=scale, size=_parse_size(size), long_side=long_side, short_side=short_side)
    restore = build_options(
        RestoreOptions,
        size=sizes,
        color_fix=color_fix,
        tile=_parse_tile(tile),
        overlap=overlap,
        batch=batch,
        memory=_parse_memory(memory),
        seed=seed,
    )
    write = build_options(
        WriteOptions, format=format_, quality=quality, metadata=metadata, overwrite=overwrite, compare=compare
    )
    talk = Output(as_json=as_json, quiet=quiet, verbose=verbose)
    # What a folder of results is called needs the scale, and a default one is the model's: ask its record.
    from omgsr_cli.finished import Settings

    to_stdout = output == STREAM or (output is None and STREAM in inputs)
    if compare and to_stdout:
        raise UsageError("--compare has no place beside stdout", "give -o FILE")
    session = _Session(Settings(model_options, restore, write), talk, to_stdout)
    names = JobOptions(recursive, suffix, scale_label(sizes, session.info.scale), write.format)
    parts = plan_in_parts(inputs, output, names)
    plan = PartsOfPlan(parts, part, failed_inputs(report) if retry_failed and report else None)
    _check_quality(quality, plan.first)
    if dry_run:
        return session.plan(plan)
    with open_report(report) as kept:
        kept.begin(plan.total, None if part is None else str(part))
        return session.run(plan, spread, kept)


def _check_quality(quality: int | None, plan: JobPlan) -> None:
    """Refuse a quality where everything that will be written is lossless."""
    if quality is None or not plan.jobs:
        return
    written = {FORMAT_OF_SUFFIX.get(job.destination.suffix.lower()) for job in plan.jobs if job.destination is not None}
    if written and written <= {"png", "tiff"}:
        kinds = " and ".join(sorted(str(kind) for kind in written))
        raise UsageError(
            f"--quality {quality} has no effect on {kinds}", "leave it out, or give --format jpg, webp or avif"
        )


class _Session:
    """One call of the command: the settings, the model when it is needed, and the counting."""

    def __init__(self, settings: Settings, talk: Output, to_stdout: bool) -> None:
        from omgsr_cli.files.remembered import Remembered
        from omgsr_cli.models.loading import describe_model
        from omgsr_cli.models.sources import find_model

        options = settings.model
        self.settings = settings
        self.talk = talk
        self.to_stdout = to_stdout
        self.source = find_model(
            options.model,
            base=options.base,
            adapter=options.adapter,
            mid_timestep=options.mid_timestep,
            prompt=options.prompt,
            process_size=options.process_size,
            vae=options.vae,
        )
        self.info = describe_model(self.source)
        self.remembered = Remembered()

    def pace(self) -> Pace:
        """Counts what this model has to do on the device that was asked for.

        Raises:
            OmgsrError: a device or precision is not there.
        """
        from omgsr_cli.models.devices import choose_device
        from omgsr_cli.models.loading import suitable_precision

        options = self.settings.model
        device = choose_device(options.device)
        return Pace(self.info, device, suitable_precision(self.source, options.precision, device), self.remembered)

    def plan(self, plan: PartsOfPlan) -> int:
        """Say what would be done."""
        from omgsr_cli.checking import plan_files
        from omgsr_cli.finished import FinishedResults
        from omgsr_cli.models.devices import choose_device
        from omgsr_cli.planning import usable_memory

        free = usable_memory(choose_device(self.settings.model.device))
        pace = self.pace()
        finished = FinishedResults(self.settings, self.info, self.remembered)
        tally = Tally()
        results = plan_files(self._jobs(plan, tally), self.settings, self.info, finished, free)
        return self._report(plan, tally, results, pace.add, pace.forecast)

    def run(self, plan: PartsOfPlan, options: EngineOptions, report: Report) -> int:
        """Do the work."""
        from omgsr_cli.batch import UpscaleWork
        from omgsr_cli.engines.local import Here
        from omgsr_cli.results import result_record

        engine = choose_engine(options, plan.total)
        # A device or precision that is not there is said before anything is read.
        pace = self.pace()
        tally = Tally()

        def after(result: FileResult) -> None:
            pace.add(result)
            report.add(result_record(result))
            view.finish()

        def counted() -> None:
            view.count(plan.count)
            report.counted(plan.count)

        with self.talk.progress(plan.total) as view:
            # Tiles are told only by this process, and what several do at once says little of one's speed.
            alone = isinstance(engine, Here)
            work = UpscaleWork(self.settings, self.source, self.info, view.tiles if alone else None)
            jobs = self._jobs(plan, tally, counted if plan.total is None else None)
            results = engine.run(
                work, jobs, on_start=lambda job: view.start(name_of(job.source, "stdin")), say=self._tell
            )
            # However it ends, no process goes on.
            with closing(results):
                code = self._report(plan, tally, results, after)
        if alone:
            pace.keep()
        return code

    def _tell(self, text: str, *, detail: bool = False) -> None:
        if detail:
            self.talk.detail(text)
        else:
            self.talk.note(f"note: {text}")

    def _jobs(self, plan: PartsOfPlan, tally: Tally, counted: Callable[[], None] | None = None) -> Iterator[Job]:
        """The jobs of all parts; what is to be told of a part is told as it is begun."""

        def tell(part: JobPlan) -> None:
            for note in part.notes:
                self.talk.note(f"note: {note}")
            for path in part.earlier_results:
                self.talk.detail(f"note: {name_of(path, '')}: left out, another input's result is called so")
            for problem in part.problems:
                self._refuse(problem)
                tally.failed.append(problem.message)
            if part.is_last and counted is not None:
                counted()

        return plan.jobs(tell)

    def _refuse(self, problem: OmgsrError) -> None:
        """Tell of what was typed, and names no file that could be a job."""
        from omgsr_cli.results import FileResult

        self._say(FileResult(None, None, "failed", error=problem), alone=False)

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
        if forecast is not None or plan.count + plan.problems > 1:
            self.talk.note(tally.summary(forecast))
        return 1 if tally.failed else 0

    def _say(self, result: FileResult, *, alone: bool) -> None:
        if result.error:
            self.talk.error(result.error)
        name = name_of(result.source, "stdin")
        for note in result.notes:
            self.talk.note(f"note: {name}: {note}")
        if result.status == "skipped":
            say = self.talk.note if alone else self.talk.detail
            say(f"{name}: finished before, as {name_of(result.destination, 'stdout')}")
        if result.status == "done" and result.output_px and result.input_px:
            seconds = duration(result.seconds)
            say = self.talk.note if alone else self.talk.detail
            say(f"{name}: {result.input_px} to {result.output_px} in {seconds}")
        writes_picture = self.to_stdout and result.status != "planned"
        if writes_picture or (result.status in ("failed", "skipped") and not self.talk.as_json):
            return
        from omgsr_cli.results import result_record

        self.talk.result(result_line(result), result_record(result))


def _parse_size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise UsageError(f"--size {text}: not a width and a height", "write it like 1920x1080")
    return int(height), int(width)


def _parse_memory(text: str | None) -> int | None:
    """MiB, from a number with M or G."""
    if text is None:
        return None
    number, unit = text[:-1], text[-1:].upper()
    if not number.isdecimal() or unit not in ("M", "G"):
        raise UsageError(f"--memory {text}: not a number with M or G", "try --memory 4G")
    return int(number) * (1024 if unit == "G" else 1)


def _parse_tile(text: str) -> str | int:
    if text in ("auto", "off"):
        return text
    if not text.isdecimal():
        raise UsageError(f"--tile {text}: not auto, off or a number of pixels", "try --tile 512")
    return int(text)
