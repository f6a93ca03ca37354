"""Restore many files: one result for each, whatever happens to the others."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import torch

from omgsr_cli.engines.work import Place, Say
from omgsr_cli.errors import DeviceError, ExistsError, FileError, OmgsrError
from omgsr_cli.files.addresses import Address, Location
from omgsr_cli.files.jobs import Job, comparison_path
from omgsr_cli.files.remembered import Remembered
from omgsr_cli.files.storage import local_copy, put_when_whole
from omgsr_cli.finished import FinishedResults, Settings
from omgsr_cli.geometry import Size, plan_canvas, plan_output_size
from omgsr_cli.imaging import (
    FORMAT_LIMITS,
    check_output,
    format_of_path,
    output_format,
    probe_picture,
    read_picture,
    write_picture,
)
from omgsr_cli.imaging.side_by_side import keeping, side_by_side
from omgsr_cli.imaging.spool import BandSpool
from omgsr_cli.models.base import Restorer, RestorerInfo
from omgsr_cli.models.devices import choose_device, free_memory_bytes
from omgsr_cli.models.loading import load_found
from omgsr_cli.models.sources import ModelSource
from omgsr_cli.planning import plan_restoration, usable_memory
from omgsr_cli.restoration import OnProgress
from omgsr_cli.results import FileResult, Status
from omgsr_cli.upscaling import restore_picture

# Of an input as it is read, its samples and float32; of a format that wants all samples at once, those and its copies.
_READ_BYTES_PER_PX, _WRITTEN_BYTES_PER_PX = 16, 8

# A strip that is padded to more than this many times its result's pixels is refused, if the work is also large.
_MOST_PADDING, _MOST_PADDING_PX = 32, 16_000_000


@dataclass(frozen=True)
class _Checked:
    """A job whose input has been looked at: all that can be known without a model."""

    content: bytes | Path
    input_px: Size
    output_px: Size
    format: str
    finished: frozenset[Location]
    """The outputs that are there already, from the same input with the same settings."""

    def is_finished(self, job: Job, settings: Settings) -> bool:
        """Whether nothing is left to do."""
        return bool(self.finished) and self.finished.issuperset(_outputs(job, settings))


class Upscaler:
    """Does one job after the other: an output that is whole or absent, and a result that says what became of it.

    The model is loaded when the first picture needs it: where everything is finished, none is.

    Args:
        settings: for all jobs.
        info: of the model, which need not be loaded to be asked.
        results: of earlier runs with the same settings and model.
        load: returns the model; called at most once.
        on_tiles: told (done, total) tiles of the picture in work.
    """

    def __init__(
        self,
        settings: Settings,
        info: RestorerInfo,
        results: FinishedResults,
        load: Callable[[], Restorer],
        on_tiles: OnProgress | None = None,
    ) -> None:
        self._settings, self._info, self._results = settings, info, results
        self._load, self._on_tiles = load, on_tiles
        self._restorer: Restorer | None = None

    def __call__(self, job: Job) -> FileResult:
        """Do a job; what is wrong with its file is in the result.

        Raises:
            OmgsrError: the model cannot be loaded.
        """
        result = self._try(job)
        # Another process was faster: now its file is this very result, or told as any file is that is in the way.
        return self._try(job) if isinstance(result.error, ExistsError) else result

    def _try(self, job: Job) -> FileResult:
        with ExitStack() as held:
            return self._do(job, held)

    def _do(self, job: Job, held: ExitStack) -> FileResult:
        started = time.monotonic()
        try:
            if isinstance(job.source, Address) and self._results.are_known(_outputs(job, self._settings), job.source):
                return FileResult(job.source, job.destination, "skipped")
            content = _content(job, held, self._results)
            checked = _check(job, content, self._settings, self._info, self._results)
        except OmgsrError as error:
            return _failed(job, error, started)
        if checked.is_finished(job, self._settings):
            return FileResult(job.source, job.destination, "skipped", checked.input_px, checked.output_px)
        if self._restorer is None:
            began = time.monotonic()
            self._restorer = self._load()
            started += time.monotonic() - began
        try:
            notes = _upscale_file(job, checked, self._settings, self._restorer, self._results, self._on_tiles)
        except OmgsrError as error:
            return _failed(job, error, started)
        seconds = time.monotonic() - started
        return FileResult(job.source, job.destination, "done", checked.input_px, checked.output_px, seconds, notes)


@dataclass(frozen=True)
class UpscaleWork:
    """The jobs of one run as an engine is given them: settings, and where the model lies.

    Attributes:
        settings: for all jobs.
        model: from `find_model`.
        info: of it.
        on_tiles: told (done, total) tiles of the picture in work; only where the work stays in this process.
    """

    settings: Settings
    model: ModelSource
    info: RestorerInfo
    on_tiles: OnProgress | None = None

    def open(self, place: Place, say: Say) -> Upscaler:
        """What does the jobs in a process; it says what a person should know of the model as it is loaded."""
        settings = _shared(self.settings, place)

        def load() -> Restorer:
            restorer = load_found(self.model, device=place.device, precision=settings.model.precision)
            for note in restorer.notes:
                say(note)
            say(f"{self.info.name} on {restorer.device}, {restorer.precision}", detail=True)
            if settings.model.compile:
                restorer.compile()
            return restorer

        return Upscaler(settings, self.info, FinishedResults(settings, self.info, Remembered()), load, self.on_tiles)

    def lost(self, job: Job, error: OmgsrError) -> FileResult:
        """The result of a job whose process ended twice."""
        return FileResult(job.source, job.destination, "failed", error=FileError(f"{_name(job)}: {error}", error.hint))


def _shared(settings: Settings, place: Place) -> Settings:
    """Of memory that nobody gave out, each process that shares a device may use its part."""
    if place.sharing == 1 or settings.restore.memory is not None:
        return settings
    part = max(usable_memory(choose_device(place.device)) // place.sharing >> 20, 16)
    return replace(settings, restore=settings.restore.model_copy(update={"memory": part}))


def plan_files(
    jobs: Iterable[Job], settings: Settings, info: RestorerInfo, results: FinishedResults, free_bytes: int
) -> Iterator[FileResult]:
    """Tell what an `Upscaler` would do, reading headers only.

    Args:
        jobs: from `plan_jobs`.
        settings: for all of them.
        info: of the model, which need not be loaded.
        results: of earlier runs with the same settings and model.
        free_bytes: memory that tiles may use.
    """
    for job in jobs:
        started = time.monotonic()
        try:
            with ExitStack() as held:
                checked = _check(job, _content(job, held, results), settings, info, results)
            plan = plan_restoration(info, checked.output_px, settings.restore, free_bytes)
        except OmgsrError as error:
            yield _failed(job, error, started)
            continue
        status: Status = "skipped" if checked.is_finished(job, settings) else "planned"
        yield FileResult(job.source, job.destination, status, checked.input_px, checked.output_px, plan=plan)


def _content(job: Job, held: ExitStack, results: FinishedResults) -> bytes | Path:
    """What to read: all of standard input, the file, or a copy of one on the network for as long as it is held."""
    if job.source is None:
        return sys.stdin.buffer.read()
    copy = held.enter_context(local_copy(job.source))
    if isinstance(job.source, Address):
        results.keep_fetched(job.source, copy)
    return copy.path


def _check(
    job: Job, content: bytes | Path, settings: Settings, info: RestorerInfo, results: FinishedResults
) -> _Checked:
    """Look at the input's header and at what lies at the destination."""
    header = probe_picture(content, _name(job))
    size = Size(*header.size_px)
    output = plan_output_size(size, settings.restore.size, info.scale)
    format_name = _format(job, header.format, settings)
    _check_memory(job, size, output, info, format_name)
    # Whether transparency is really used shows only in the pixels.
    check_output(str(job.destination or "standard output"), format_name, output, has_alpha=False)
    finished = results.among(_outputs(job, settings), content)
    return _Checked(content, size, output, format_name, finished)


def _check_memory(job: Job, size: Size, output: Size, info: RestorerInfo, format_name: str) -> None:
    """Refuse a picture that could not be held as it is read and written, or that is nearly all padding.

    Whether there is room to work in shows only as it is done.
    """
    padded = plan_canvas(output, info.native_tile_px, info.multiple_of_px).padded
    if padded.area > _MOST_PADDING_PX and padded.area > _MOST_PADDING * output.area:
        reason = f"{output} would be restored as {padded}: {padded.area / 1e6:.0f} megapixels of work"
        hint = "cut it into parts that are less thin, or lower --process-size"
        raise FileError(f"{_name(job)}: out of proportion: {reason} for {output.area / 1e6:.2g}", hint)
    written = 0 if FORMAT_LIMITS[format_name].by_rows else output.area
    needed = size.area * _READ_BYTES_PER_PX + written * _WRITTEN_BYTES_PER_PX
    free = free_memory_bytes(torch.device("cpu"))
    if needed > free:
        reason = f"{output} takes {needed >> 20} MiB of memory, and {free >> 20} are free"
        raise FileError(f"{_name(job)}: {reason}", "ask for a smaller size")


def _outputs(job: Job, settings: Settings) -> tuple[Location, ...]:
    """The files that a job writes: the result, and the comparison beside it."""
    if job.destination is None:
        return ()
    return (job.destination, comparison_path(job.destination)) if settings.write.compare else (job.destination,)


def _upscale_file(
    job: Job,
    checked: _Checked,
    settings: Settings,
    restorer: Restorer,
    results: FinishedResults,
    on_tiles: OnProgress | None,
) -> tuple[str, ...]:
    """Read, restore and write one picture; returns what a person should be told."""
    # Before the work: an input that is edited meanwhile is another one.
    record = results.record(checked.content)
    picture = read_picture(checked.content, _name(job))
    told: list[str] = []
    restored, enlarged = restore_picture(
        restorer, picture, checked.output_px, settings.restore, on_progress=on_tiles, on_note=told.append
    )
    kept = BandSpool(picture.bit_depth) if settings.write.compare and job.destination is not None else None
    overwrite = settings.write.overwrite or job.destination in checked.finished
    try:
        with _place(job.destination, overwrite) as place:
            notes = write_picture(
                restored if kept is None else replace(restored, rgb=keeping(restored.rgb, kept)),
                place,
                format=checked.format,
                quality=settings.write.quality,
                metadata=settings.write.metadata,
                record=record,
                overwrite=overwrite,
            )
    except MemoryError as error:
        raise FileError(f"{_name(job)}: memory is short for {checked.output_px}", "ask for a smaller size") from error
    except DeviceError as error:
        raise DeviceError(f"{_name(job)}: {error.message}", error.hint) from error
    if kept is not None and job.destination is not None:
        both = side_by_side(enlarged, picture, replace(restored, rgb=iter(kept)))
        path = comparison_path(job.destination)
        overwrite = settings.write.overwrite or path in checked.finished
        metadata = settings.write.metadata
        with put_when_whole(path, overwrite=overwrite) as local:
            write_picture(both, local, format="png", metadata=metadata, record=record, overwrite=overwrite)
    for path in _outputs(job, settings):
        results.keep(path, record)
    return (*picture.notes, *told, *notes)


def _place(destination: Location | None, overwrite: bool) -> AbstractContextManager[Path | BinaryIO]:
    return nullcontext(sys.stdout.buffer) if destination is None else put_when_whole(destination, overwrite=overwrite)


def _format(job: Job, source_format: str, settings: Settings) -> str:
    """The file's name decides, then `--format`; both agree wherever both speak."""
    named = None if job.destination is None else format_of_path(Path(job.destination.name))
    return named or output_format(settings.write.format, source_format)


def _name(job: Job) -> str:
    return "standard input" if job.source is None else str(job.source)


def _failed(job: Job, error: OmgsrError, started: float) -> FileResult:
    return FileResult(job.source, job.destination, "failed", seconds=time.monotonic() - started, error=error)
