"""`omgsr upscale`: restore and upscale images.

Read from the top: `upscale` turns its options into records, a model and a plan, and `_Run` executes the plan.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, TypeVar

import typer

from omgsr_cli import __version__
from omgsr_cli.batch.reports import FileResult, RunReport, read_reports, result_record
from omgsr_cli.cli import options as shared
from omgsr_cli.cli.help import Command
from omgsr_cli.cli.options import FILES, MANY, MODEL, OUTPUT
from omgsr_cli.cli.output import Output
from omgsr_cli.cli.progress import FileProgress, duration
from omgsr_cli.cli.upscale_summary import Counts, Pace, name_of, result_line
from omgsr_cli.errors import FileError, OmgsrError, UnreadableError, UsageError
from omgsr_cli.files.addresses import Location, redact, shown
from omgsr_cli.files.atomic import give_up_partials
from omgsr_cli.files.folders import FORMAT_OF_SUFFIX
from omgsr_cli.files.inputs import NAME_RESULT, FoundResult, Note, skipped_results
from omgsr_cli.files.jobs import Job, JobOptions, JobStream, NameList, clear_leftovers, find_jobs
from omgsr_cli.files.naming import STREAM, size_suffix
from omgsr_cli.files.remembered import Remembered, take_notes
from omgsr_cli.files.shards import parse_shard
from omgsr_cli.files.watching import FolderWatch
from omgsr_cli.presets import DEFAULT_PRESET

if TYPE_CHECKING:
    from omgsr_cli.batch.finished import FinishedResults, Settings
    from omgsr_cli.batch.gallery import Gallery
    from omgsr_cli.batch.upscaler import UpscaleWork
    from omgsr_cli.engines.work import Engine
    from omgsr_cli.models.base import RestorerInfo

SIZE, RESTORATION = "Size", "Restoration"
T = TypeVar("T", int, float)


class UpscaleCommand(Command):
    """The help of `omgsr upscale`."""

    examples: ClassVar[Mapping[str, str]] = {
        "omgsr upscale photo.jpg": "write photo_x4.jpg beside it",
        "omgsr upscale photos/ -o out/ -r": "a folder and its subfolders",
        "omgsr upscale old.jpg --long-side 4000": "a size in pixels",
        "omgsr upscale scan.tif --scale 1": "restore at the same size",
        "omgsr upscale photos/ --dry-run": "show sizes, tiles, memory, time",
    }
    common: ClassVar[Collection[str]] = (
        *("inputs", "output", "recursive", "format_", "quality", "overwrite", "scale", "size", "long_side"),
        *("strength", "model", "device", "dry_run", "quiet", "help_all", "help"),
    )


def upscale(
    context: typer.Context,
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INPUT", help="Images, folders, globs, .txt lists, URLs such as s3://..., or - for stdin."
        ),
    ] = None,
    output: Annotated[
        str | None,
        shared.option(
            FILES,
            "File, folder or URL for the results; - for stdout.",
            "-o",
            "--output",
            metavar="OUT",
            shown="beside the input",
        ),
    ] = None,
    recursive: Annotated[bool, shared.option(FILES, "Search subfolders.", "--recursive", "-r")] = False,
    list_: Annotated[
        str | None,
        shared.option(
            FILES,
            "Process only the inputs that a text file names, one per line; without INPUT, they are the inputs. - reads "
            "stdin.",
            "--list",
            metavar="FILE",
        ),
    ] = None,
    suffix: Annotated[
        str | None,
        shared.option(
            FILES,
            "Append TEXT to the names of results.",
            metavar="TEXT",
            shown="_x4 beside the input, nothing in a folder",
        ),
    ] = None,
    format_: Annotated[
        str,
        shared.option(
            FILES,
            "Format of the results: same, png, jpg, webp, tiff or avif.",
            "--format",
            metavar="FORMAT",
            autocompletion=lambda: ["same", "png", "jpg", "webp", "tiff", "avif"],
        ),
    ] = "same",
    quality: Annotated[
        int | None, shared.option(FILES, "Quality of jpg, webp and avif, 1 to 100.", metavar="N", shown="95, avif 90")
    ] = None,
    metadata: Annotated[str, shared.option(FILES, "Keep EXIF, XMP, DPI and texts.", metavar="keep|none")] = "keep",
    dpi: Annotated[
        str,
        shared.option(
            FILES,
            "Dots per inch of results: the input's, the input's times the scale (same print size), or N.",
            metavar="keep|scale|N",
        ),
    ] = "keep",
    keep_times: Annotated[
        bool, shared.option(FILES, "Give results the file times of their inputs.", "--keep-times")
    ] = False,
    overwrite: Annotated[bool, shared.option(FILES, "Replace existing files.", "--overwrite")] = False,
    compare: Annotated[
        bool, shared.option(FILES, "Write a before/after image beside each result.", "--compare")
    ] = False,
    scale: Annotated[
        float | None,
        shared.option(
            SIZE, "Factor for both sides, 0.5 to 16.", metavar="F", shown="the model's, 4", parser=shared.parse_factor
        ),
    ] = None,
    size: Annotated[str | None, shared.option(SIZE, "Exact size in pixels.", metavar="WxH")] = None,
    long_side: Annotated[int | None, shared.option(SIZE, "Longer side in pixels.", metavar="N")] = None,
    short_side: Annotated[int | None, shared.option(SIZE, "Shorter side in pixels.", metavar="N")] = None,
    print_: Annotated[
        str | None,
        shared.option(
            SIZE,
            "Largest size that fits a print in cm, mm or in, at --dpi or 300 dots per inch.",
            "--print",
            metavar="WxHcm",
        ),
    ] = None,
    process_scale: Annotated[
        str,
        shared.option(
            SIZE,
            "Restore at F times the input size or more, then reduce; auto: the model's scale; 1: fast but weak.",
            metavar="F|auto",
        ),
    ] = "auto",
    process_size: Annotated[
        int | None,
        shared.option(SIZE, "Restore with a shorter side of N pixels or more.", metavar="N", shown="the model's"),
    ] = None,
    model: Annotated[
        str | None,
        shared.option(
            MODEL,
            "Preset, model folder, hub repository, or weight file of a restoration network.",
            metavar="NAME|PATH",
            shown=DEFAULT_PRESET,
            envvar="OMGSR_MODEL",
        ),
    ] = None,
    base: shared.Base = None,
    adapter: shared.Adapter = None,
    mid_timestep: Annotated[
        int | None, shared.option(MODEL, "Mid-timestep, 0 to 999.", metavar="T", shown="the model's")
    ] = None,
    prompt: Annotated[
        str | None, shared.option(MODEL, "Condition the model on a text.", metavar="TEXT", shown="the model's")
    ] = None,
    vae: Annotated[
        str | None,
        shared.option(
            MODEL, "Decode with TAESD or another AutoencoderTiny: faster, but coarser.", metavar="tiny|PATH|REPO"
        ),
    ] = None,
    seed: Annotated[
        int | None, shared.option(MODEL, "Sample the latents instead of using their mean.", metavar="N")
    ] = None,
    device: shared.Devices = None,
    precision: shared.Precision = "auto",
    quantize: Annotated[
        str, shared.option(MODEL, "Store the weights of a large model in fewer bits.", metavar="none|int8|nf4|fp8")
    ] = "none",
    offload: Annotated[
        str,
        shared.option(
            MODEL,
            "Keep the weights of a large model in the host's memory while they are not used.",
            metavar="auto|none|model|group",
        ),
    ] = "auto",
    compile_: Annotated[
        bool, shared.option(MODEL, "Compile the network first; pays off for many images.", "--compile")
    ] = False,
    strength: Annotated[
        float,
        shared.option(
            RESTORATION, "Blend with plain upscaling: 0 is plain upscaling, 1 the restored image.", metavar="F"
        ),
    ] = 1.0,
    color_fix: Annotated[
        str | None,
        shared.option(
            RESTORATION, "Method that matches the input's colours.", metavar="adain|wavelet|none", shown="the model's"
        ),
    ] = None,
    tile: Annotated[str, shared.option(RESTORATION, "Tile side in pixels.", metavar="auto|off|N")] = "auto",
    overlap: Annotated[
        int | None, shared.option(RESTORATION, "Tile overlap in pixels.", metavar="N", shown="half a tile")
    ] = None,
    batch: Annotated[
        int | None,
        shared.option(RESTORATION, "Tiles per batch.", metavar="N", shown="1; on a GPU up to 8 that fit in its memory"),
    ] = None,
    memory: Annotated[
        str | None,
        shared.option(
            RESTORATION,
            "Working memory beside the weights, such as 800M or 4G.",
            metavar="N[M|G]",
            shown="half of the free memory; 80 % on a graphics card",
        ),
    ] = None,
    workers: shared.Workers = None,
    engine: Annotated[
        str, shared.option(MANY, "Run processes on this machine or actors on Ray.", metavar="local|ray")
    ] = "local",
    address: Annotated[
        str | None,
        shared.option(MANY, "Ray cluster to connect to.", metavar="auto|URL", shown="a new one on this machine"),
    ] = None,
    shard: shared.Shard = None,
    report: Annotated[
        Path | None, shared.option(MANY, "Append a JSON line for each image; omgsr status reads it.", metavar="FILE")
    ] = None,
    retry_failed: Annotated[
        bool, shared.option(MANY, "Process only the files marked as failed in --report.", "--retry-failed")
    ] = False,
    watch: Annotated[
        bool, shared.option(MANY, "Process new and replaced files of folders, too, until Ctrl-C.", "--watch")
    ] = False,
    gallery: Annotated[
        str | None,
        shared.option(OUTPUT, "Write a page that shows every image before and after.", metavar="FILE.html"),
    ] = None,
    beside: Annotated[
        list[str] | None,
        shared.option(
            OUTPUT,
            "Show other results of the same inputs in --gallery, for example of another model; repeatable.",
            metavar="FOLDER",
        ),
    ] = None,
    dry_run: Annotated[bool, shared.option(OUTPUT, "Show what would be done without doing it.", "--dry-run")] = False,
    as_json: shared.AsJson = False,
    quiet: shared.Quiet = False,
    verbose: shared.Verbose = False,
    help_all: shared.HelpAll = False,
) -> int:
    """Restore and upscale images.

    Without -o, a result is written beside its input as NAME_x4.EXT, and those of a folder to FOLDER_x4/. Finished
    results are skipped on the next run; other files are only replaced with --overwrite.
    """
    from omgsr_cli.batch.gallery import Gallery, check_gallery
    from omgsr_cli.models.sources import find_model
    from omgsr_cli.options import EngineOptions, ModelOptions, RestoreOptions, SizeOptions, WriteOptions, build_options

    inputs = inputs or []
    to_stdout = output == STREAM or (output is None and STREAM in inputs)
    without_watch = {
        "--dry-run": dry_run,
        "--shard": shard,
        "--retry-failed": retry_failed,
        "--engine ray": engine == "ray",
        "--list": list_,
        "--gallery": gallery,
    }
    for other in (name for name, value in without_watch.items() if watch and value):
        raise UsageError(f"--watch and {other} exclude each other", f"remove --watch or {other}")
    _refuse(
        (retry_failed and report is None, "--retry-failed needs a report", "give the --report of the previous run"),
        (list_ and STREAM in inputs, "--list names files, but - reads an image from stdin", "remove --list"),
        (compare and to_stdout, "--compare cannot write beside stdout", "give -o FILE"),
        (keep_times and to_stdout, "--keep-times has no effect on stdout", "give -o FILE, or remove --keep-times"),
        (beside and not gallery, "--beside has no effect without --gallery", "add --gallery page.html"),
        (gallery and dry_run, "--gallery has nothing to show: --dry-run writes no image", "remove --gallery"),
        (gallery and to_stdout, "--gallery has nothing to show: stdout takes the image", "remove --gallery"),
        (gallery and STREAM in inputs, "--gallery has nothing to show: stdin is not a file", "remove --gallery"),
    )
    is_part = bool(list_ or retry_failed)
    shows = None if gallery is None else check_gallery(gallery, beside or (), overwrite=overwrite, updates=is_part)
    part = None if shard is None else parse_shard(shard, os.environ)
    engine_options = build_options(EngineOptions, workers=workers, device=device, engine=engine, address=address)
    model_options = build_options(
        ModelOptions,
        model=model,
        base=base,
        adapter=adapter,
        mid_timestep=mid_timestep,
        prompt=prompt,
        device=shared.first_device(device),
        precision=precision,
        compile=compile_,
        process_size=process_size,
        vae=vae,
        quantize=quantize,
        offload=offload,
    )
    dots_per_inch = (
        300.0 if print_ is not None and dpi == "keep" else _word_or(float, dpi, "dpi", ("keep", "scale"), "300")
    )
    sizes = build_options(
        SizeOptions,
        scale=scale,
        size=_parse_size(size),
        long_side=long_side,
        short_side=short_side,
        print=None if print_ is None else _parse_print(print_, dots_per_inch),
    )
    restore_options = build_options(
        RestoreOptions,
        size=sizes,
        process_scale=_word_or(float, process_scale, "process-scale", ("auto",), "1"),
        strength=strength,
        color_fix=color_fix,
        tile=_word_or(int, tile, "tile", ("auto", "off"), "512"),
        overlap=overlap,
        batch=batch,
        memory=_parse_memory(memory),
        seed=seed,
    )
    write_options = build_options(
        WriteOptions,
        format=format_,
        quality=quality,
        metadata=metadata,
        dpi=dots_per_inch,
        keep_times=keep_times,
        overwrite=overwrite,
        compare=compare,
    )
    printer = Output(as_json=as_json, quiet=quiet, verbose=verbose)
    if as_json and to_stdout and not dry_run:
        printer.note("--json has no effect: stdout takes the image")

    # Everything up to here and the next two steps need no torch, so wrong names are reported at once.
    source = find_model(model_options)
    names = JobOptions(recursive, suffix, size_suffix(sizes, source.record.scale), write_options.format)
    remembered = Remembered()
    watched = FolderWatch(inputs, output, names, remembered) if watch else None
    if watched is not None:
        jobs = JobStream((), watched.planned())
    else:
        listed = None if list_ is None else NameList(list_)
        jobs = find_jobs(inputs or ([] if listed is None else listed.inputs), output, names, remembered)
        if listed is not None and inputs:
            jobs = listed.select(jobs)
        if part is not None:
            jobs = jobs.select(part.holds_planned)
        if retry_failed and report is not None:
            has_failed = read_reports([report]).has_failed
            jobs = jobs.select(lambda one: not isinstance(one, Job) or has_failed(str(one.source)))
    _check_quality(quality, jobs.first_jobs)
    for text in take_notes():
        printer.note(text)

    with ExitStack() as stack:
        run = _Run(jobs, printer, to_stdout, watched)
        if watched is not None:
            stack.callback(watched.close)
        if report is not None and not dry_run:
            run.report = stack.enter_context(RunReport(report, printer.note))
            run.report.begin(jobs.total, None if part is None else str(part), retry=retry_failed, watch=watch)
        if shows is not None:
            titles = [shown(text) for text in inputs] or [f"--list {list_}"]
            page = Gallery(
                shows,
                title=", ".join(titles[:3]) + (", …" if len(titles) > 3 else ""),
                result=shown(Path(output) if output else source.name) if beside else "after",
                facts={"model": source.name, "command": _command(context), "omgsr": __version__},
                command=_command(context, {"list_", "overwrite", "retry_failed", "strength"}),
                made=f"{source.name}, strength {strength:g}",
                total=jobs.total,
            )
            stack.callback(_report_page, page, shows.path, printer)
            run.gallery = stack.enter_context(page)
        from omgsr_cli.batch.finished import FinishedResults, Settings, outline_model

        settings = Settings(model_options, restore_options, write_options)
        outline = outline_model(source, restore_options)
        with printer.loading("model"):
            # Check what needs no torch first, because loading torch takes seconds.
            if outline is not None and not dry_run:
                run.find_certain(FinishedResults(settings, outline, remembered))
            if jobs.total == len(run.certain):
                return run.report_without_work()
            from omgsr_cli.batch.upscaler import UpscaleWork
            from omgsr_cli.models.devices import choose_device
            from omgsr_cli.models.families import family_of
            from omgsr_cli.models.loading import describe_model, suitable_precision

            info = describe_model(source)
            place = choose_device(model_options.device)
            pace = Pace(info, restore_options, place, suitable_precision(source, precision, place), remembered)
        if seed is not None and not family_of(source.record, source.name).has_posterior:
            printer.note(f"--seed {seed} has no effect: {info.name} does not sample")
        if dry_run:
            return run.estimate(settings, info, pace, remembered)
        tasks = shared.choose_engine(engine_options, jobs.total)
        return run.restore(UpscaleWork(settings, source, info), tasks, pace)


class _Run:
    """Executes jobs: reports each result, counts it, and prints a summary.

    Args:
        found: the jobs and the other results of the search for them.
        printer: prints notes, errors and results.
        to_stdout: whether the image is written to stdout, so that no paths are printed.
        watch: the source of the jobs if they come from watched folders.
    """

    def __init__(self, found: JobStream, printer: Output, to_stdout: bool, watch: FolderWatch | None = None) -> None:
        self.found, self.printer, self.to_stdout, self.watch = found, printer, to_stdout, watch
        self.jobs, self.problems = 0, 0
        self.report: RunReport | None = None
        self.gallery: Gallery | None = None
        self.counts = Counts()
        self.certain: dict[int, FileResult] = {}
        """Results of jobs that need no model, by the job's identity."""
        self._progress: FileProgress | None = None
        self._below: dict[Location | None, str] = {}
        """Paths below the input folder, of inputs that are in progress."""

    def restore(self, work: UpscaleWork, engine: Engine, pace: Pace) -> int:
        """Restore all images and return the exit code; Ctrl-C is the usual end of watching."""
        try:
            with ExitStack() as stack:
                if self.watch is not None:
                    names = ", ".join(map(shown, self.watch.folders))
                    self.printer.message(f"watching {names}; Ctrl-C ends")
                    stack.enter_context(_second_interrupt_ends_at_once())
                self._restore(work, engine, pace)
        except KeyboardInterrupt:
            if self.watch is None:
                raise
        if engine.in_this_process:
            pace.keep(self.counts.seconds)
        if self.watch is not None and (unfinished := self.watch.unfinished):
            count = "1 file was" if len(unfinished) == 1 else f"{len(unfinished)} files were"
            self.printer.note(f"{count} incomplete or not processed yet, the first is {shown(unfinished[0])}")
        return self._finish()

    def _restore(self, work: UpscaleWork, engine: Engine, pace: Pace) -> None:
        with self.printer.progress(self.found.total, is_live=self.watch is None) as progress:
            self._progress = progress
            # Tiles are only visible in this process, and the speed of several processes differs from that of one.
            if engine.in_this_process:
                work = replace(work, on_tiles=progress.tiles)
            results = engine.run(
                work,
                self._jobs(),
                on_start=lambda job: progress.start(name_of(job.source, "stdin")),
                say=self.printer.note,
            )

            def show(result: FileResult) -> None:
                if not self._is_final(result):
                    return
                self._show(result)
                pace.add(result)
                progress.finish()

            # Stop all processes, however the run ends.
            with closing(results):
                unshown: FileResult | None = None
                try:
                    for result in results:
                        unshown = result
                        show(result)
                        unshown = None
                except KeyboardInterrupt as interruption:
                    # Images that are being written are completed and reported before the program ends.
                    if unshown is not None:
                        show(unshown)
                    show(results.throw(interruption))
                    for result in results:
                        show(result)

    def _is_final(self, result: FileResult) -> bool:
        """Whether a result is reported: incomplete files in a watched folder are tried again."""
        if self.watch is None or not isinstance(result.source, Path):
            return True
        is_unread = isinstance(result.error, UnreadableError)
        is_final = self.watch.finish(result.source, is_made=result.error is None, is_unread=is_unread)
        if not is_final and result.error is not None:
            self.printer.note(f"{result.error.message}; it is tried again when it changes", detail=True)
        return is_final

    def estimate(self, settings: Settings, info: RestorerInfo, pace: Pace, remembered: Remembered) -> int:
        """Show what `restore` would do, and return the exit code."""
        from omgsr_cli.batch.checks import plan_files
        from omgsr_cli.batch.finished import FinishedResults
        from omgsr_cli.planning import Execution, usable_memory

        finished = FinishedResults(settings, info, remembered)
        free, execution = usable_memory(pace.device), Execution(pace.device.type, pace.precision)
        for result in plan_files(filter(None, self._jobs(is_dry=True)), settings, info, finished, free, execution):
            self._show(result)
            pace.add(result)
        return self._finish(pace.forecast(), is_dry=True)

    def find_certain(self, finished: FinishedResults) -> None:
        """Find jobs that are finished or whose output already exists, among the jobs known before any work."""
        for job in self.found.first_jobs:
            try:
                known = finished.find_certain(job)
            except OmgsrError:
                # The error is reported when the job runs.
                continue
            if known is not None:
                self.certain[id(job)] = known

    def report_without_work(self) -> int:
        """Report jobs that need no model, or why no jobs exist; return the exit code."""
        for _ in self._jobs(is_dry=True):
            pass
        return self._finish()

    def _jobs(self, *, is_dry: bool = False) -> Iterator[Job | None]:
        """Yield the jobs, and report all other results of the search as they arrive; None as long as no job exists."""
        if not is_dry and (removed := clear_leftovers(self.found.first_jobs)):
            self.printer.note(f"removed {removed} unfinished files of killed runs", detail=True)
        for one in self.found:
            if isinstance(one, Job):
                self.jobs += 1
                if self.gallery:
                    self._below[one.source] = one.below
                if (known := self.certain.get(id(one))) is None:
                    yield one
                    continue
                self._show(known)
                if self._progress:
                    self._progress.finish()
            elif one is None:
                if self.watch is not None and self.watch.is_idle and self._progress:
                    self._progress.wait(f"watching {shown(self.watch.folders[0])}")
                yield None
            elif isinstance(one, Note):
                self.printer.note(one.text)
            elif isinstance(one, FoundResult):
                name = name_of(one.path, "")
                self.printer.note(f"skipped {name}: it is or would be another input's result", detail=True)
            else:
                self.problems += 1
                self._show(FileResult(None, None, "failed", error=one))
        if self.found.total is None:
            if self._progress:
                self._progress.count(self.jobs)
            if self.report:
                self.report.counted(self.jobs)

    def _show(self, result: FileResult) -> None:
        """Count, report and print the result of a file."""
        self.counts.add(result)
        record = result_record(result)
        if self.report:
            self.report.add(record)
        if self.gallery:
            self.gallery.add(result, self._below.pop(result.source, ""))
        if result.error:
            self.printer.error(result.error)
        name = name_of(result.source, "stdin")
        for note in result.notes:
            self.printer.note(f"{name}: {note}")
        # A single image needs no summary, so its line is always printed.
        is_detail = self.found.total != 1
        if result.status == "skipped" and not result.is_own:
            self.printer.message(
                f"{name}: already finished, as {name_of(result.destination, 'stdout')}", detail=is_detail
            )
        if result.status == "done" and result.output_px and result.input_px:
            self.printer.message(
                f"{name}: {result.input_px} to {result.output_px} in {duration(result.seconds)}", detail=is_detail
            )
        if self.to_stdout and result.status != "planned":
            return
        if result.status in ("done", "planned") or self.printer.as_json:
            self.printer.result(result_line(result), record)

    def _finish(self, forecast: str = "", *, is_dry: bool = False) -> int:
        """Print the summary and return the exit code."""
        counts = self.counts
        if counts.own:
            skipped = skipped_results(len(counts.own), counts.own[0])
            if len(counts.own) < self.jobs or self.problems:
                self.printer.note(skipped)
            else:
                counts.failed[counts.own[0]] = None
                self.printer.error(FileError(f"nothing to do: {skipped}", NAME_RESULT))
        has_results = bool(counts.done or counts.skipped or counts.failed)
        needs_summary = self.jobs + self.problems != 1 if self.watch is None else has_results or not self.jobs
        if is_dry or needs_summary:
            self.printer.message(counts.summary(forecast))
        missing = 0 if self.report is None else self.report.missing
        if missing:
            hint = "finished results are kept; give another --report and re-run to list them as skipped"
            self.printer.error(FileError(f"--report: {missing} lines could not be written", hint))
        return 1 if counts.failed or missing else 0


@contextmanager
def _second_interrupt_ends_at_once() -> Iterator[None]:
    """Complete images that are being written at the first Ctrl-C, and end the program at the second."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        yield
        return

    from multiprocessing import active_children

    def end(number: int, frame: object) -> None:
        give_up_partials()
        for process in active_children():
            process.terminate()
        os._exit(130)

    def interrupt(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, end)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _report_page(gallery: Gallery, path: Path, printer: Output) -> None:
    for note in gallery.notes:
        printer.note(note)
    if gallery.is_written:
        printer.message(f"gallery: {shown(path)}")
    elif not gallery.images:
        printer.note(f"--gallery {shown(path)} was not written: no image was processed")


def _command(context: typer.Context, without: Collection[str] = ()) -> str:
    """The command as typed, without some of its options and without the secrets of URLs."""
    words, options = list[str](), list[str]()
    for param in context.command.params:
        source = context.get_parameter_source(param.name or "")
        if source is None or source.name != "COMMANDLINE" or param.name in without:
            continue
        value, name = context.params[param.name or ""], min(param.opts, key=len)
        values = [
            f"{one:g}" if isinstance(one, float) else str(one)
            for one in (value if isinstance(value, list | tuple) else [value])
        ]
        if not name.startswith("-"):
            words += values
        else:
            options += [name] if value is True else [word for one in values for word in (name, one)]
    return redact(shlex.join(["omgsr", str(context.info_name), *words, *options]))


def _refuse(*combinations: tuple[object, str, str]) -> None:
    """Raise an error for the first combination of options that is given; each has a message and a hint."""
    for is_given, message, hint in combinations:
        if is_given:
            raise UsageError(message, hint)


def _check_quality(quality: int | None, jobs: Collection[Job]) -> None:
    """Refuse a quality if all outputs are lossless."""
    if quality is None or not jobs:
        return
    written = {FORMAT_OF_SUFFIX.get(job.destination.suffix.lower()) for job in jobs if job.destination is not None}
    if written and written <= {"png", "tiff"}:
        kinds = " and ".join(sorted(str(kind) for kind in written))
        raise UsageError(
            f"--quality {quality} has no effect on {kinds}", "remove --quality, or give --format jpg, webp or avif"
        )


def _parse_size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise UsageError(f"--size {text}: not a width and a height", "try --size 1920x1080")
    return int(height), int(width)


def _word_or(number: type[T], text: str, option: str, words: Sequence[str], example: str) -> str | T:
    """Parse a text that is one of the words or a number."""
    try:
        return text if text in words else number(text)
    except ValueError as error:
        message = f"--{option} {text}: not {', '.join(words)} or a number"
        raise UsageError(message, f"try --{option} {example}") from error


_MM_OF_UNIT = {"mm": 1.0, "cm": 10.0, "in": 25.4}


def _parse_print(text: str, dpi: str | float) -> tuple[int, int]:
    """Return the longer and the shorter side of a sheet in pixels, from a width, a height and a unit."""
    if isinstance(dpi, str):
        raise UsageError(f"--print {text}: --dpi {dpi} is not a number", "try --dpi 300")
    found = re.fullmatch(r"([0-9.]+)x([0-9.]+)(mm|cm|in)", text.strip().lower())
    try:
        sides = [float(side) for side in found.groups()[:2]] if found else []
    except ValueError:
        sides = []
    if found is None or not sides or not all(side > 0 for side in sides):
        raise UsageError(f"--print {text}: not a width, a height and a unit", "try --print 30x20cm or --print 12x8in")
    long, short = (max(1, round(side * _MM_OF_UNIT[found[3]] / 25.4 * dpi)) for side in sorted(sides, reverse=True))
    return long, short


def _parse_memory(text: str | None) -> int | None:
    """Parse a number with M or G, and return MiB."""
    if text is None:
        return None
    number, unit = text[:-1], text[-1:].upper()
    if not number.isdecimal() or unit not in ("M", "G"):
        raise UsageError(f"--memory {text}: not a number with M or G", "try --memory 4G")
    return int(number) * (1024 if unit == "G" else 1)
