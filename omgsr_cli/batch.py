"""Restore many files: one result for each, whatever happens to the others."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO, NamedTuple

from torch import Tensor

from omgsr_cli.checking import Checked, check_job, failed, name_of, open_content, outputs_of
from omgsr_cli.engines.work import Place, Say
from omgsr_cli.errors import DeviceError, ExistsError, FileError, OmgsrError
from omgsr_cli.files.addresses import Address, Location
from omgsr_cli.files.clashes import comparison_path
from omgsr_cli.files.jobs import Job
from omgsr_cli.files.remembered import Remembered
from omgsr_cli.files.storage import put_when_whole
from omgsr_cli.finished import FinishedResults, Settings
from omgsr_cli.imaging import (
    Picture,
    PictureBands,
    Rows,
    read_picture,
    write_picture,
)
from omgsr_cli.imaging.side_by_side import keeping, side_by_side
from omgsr_cli.imaging.spool import BandSpool
from omgsr_cli.models.base import Restorer, RestorerInfo
from omgsr_cli.models.devices import choose_device
from omgsr_cli.models.loading import load_found
from omgsr_cli.models.sources import ModelSource
from omgsr_cli.overlap import Handover, begin_ahead
from omgsr_cli.planning import usable_memory
from omgsr_cli.restoration import OnProgress
from omgsr_cli.results import FileResult
from omgsr_cli.upscaling import restore_picture


@dataclass
class _Begun:
    """A job whose picture has been read."""

    job: Job
    checked: Checked
    picture: Picture
    record: str
    started: float
    waited_s: float = 0.0
    """Seconds since then that were spent on loading the model."""


@dataclass(frozen=True)
class _Ended:
    """A job that the model need not see."""

    job: Job
    result: FileResult


class _Behind(NamedTuple):
    """A job whose picture is being written."""

    job: Job
    result: Future[FileResult]


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
        for _ in range(2):
            begun = self._begin(job)
            result = begun.result if isinstance(begun, _Ended) else self._finish(begun, *self._start(begun))
            # Another process was faster: now its file is this very result, or told as any file that is in the way.
            if not isinstance(result.error, ExistsError):
                break
        return result

    def stream(self, jobs: Iterable[Job], on_start: Callable[[Job], None]) -> Iterator[FileResult]:
        """Do jobs in order, so that the model need not wait: the next is read and the one before written meanwhile.

        Args:
            jobs: one more is drawn than was begun.
            on_start: told of each job as the model gets it.
        Raises:
            OmgsrError: the model cannot be loaded.
        """
        behind: deque[_Behind] = deque()
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
            try:
                for begun in begin_ahead(jobs, self._begin, reader):
                    on_start(begun.job)
                    if isinstance(begun, _Ended):
                        yield from self._told(behind)
                        yield begun.result
                        continue
                    ahead, given = self._restoring(begun, writer)
                    with closing(given):
                        for _ in given:
                            if behind and behind[0].result.done():
                                yield from self._told(behind)
                    yield from self._told(behind)
                    behind.append(ahead)
                yield from self._told(behind)
            except KeyboardInterrupt:
                # The one before is whole by now, or nearly: it is told before the program ends.
                yield from self._told(behind)
                raise

    def _told(self, behind: deque[_Behind]) -> Iterator[FileResult]:
        """The result of the one that is being written, if one is, once it is there."""
        while behind:
            yield self._settled(behind.popleft())

    def _restoring(self, begun: _Begun, writer: Executor) -> tuple[_Behind, Generator[None]]:
        """A picture that is computed as its bands are asked for, and written by another thread as they come."""
        handover: Handover[Tensor] = Handover()
        restored, enlarged, told = self._start(begun)

        def write() -> FileResult:
            try:
                return self._finish(begun, replace(restored, rgb=handover.take_all()), enlarged, told)
            finally:
                handover.leave()

        def give() -> Generator[None]:
            # What only ends this picture is raised in the writer too, and becomes its result.
            with suppress(OmgsrError, MemoryError):
                yield from handover.give_all(restored.rgb)

        return _Behind(begun.job, writer.submit(write)), give()

    def _settled(self, behind: _Behind) -> FileResult:
        """The result, once it is there; where another process was faster, that of a second look.

        Its file is this very result then, or told as any file is that is in the way.
        """
        result = behind.result.result()
        return self(behind.job) if isinstance(result.error, ExistsError) else result

    def _begin(self, job: Job) -> _Begun | _Ended:
        """Look at what is to be done, and read it."""
        started, held = time.monotonic(), ExitStack()
        with held:
            try:
                if isinstance(job.source, Address) and self._results.are_known(
                    outputs_of(job, self._settings), job.source
                ):
                    return _Ended(job, FileResult(job.source, job.destination, "skipped"))
                content = open_content(job, held, self._results)
                checked = check_job(job, content, self._settings, self._info, self._results)
                if checked.is_finished(job, self._settings):
                    return _Ended(
                        job, FileResult(job.source, job.destination, "skipped", checked.input_px, checked.output_px)
                    )
                # Before the work: an input that is edited meanwhile is another one.
                record = self._results.record(checked.content)
                picture = read_picture(checked.content, name_of(job))
            except OmgsrError as error:
                return _Ended(job, failed(job, error, started))
        return _Begun(job, checked, picture, record, started)

    def _start(self, begun: _Begun) -> tuple[PictureBands, Rows, list[str]]:
        """The restored picture, of which nothing is computed yet, the enlarged input, and what is told on the way."""
        if self._restorer is None:
            began = time.monotonic()
            self._restorer = self._load()
            begun.waited_s = time.monotonic() - began
        told: list[str] = []
        restored, enlarged = restore_picture(
            self._restorer,
            begun.picture,
            begun.checked.output_px,
            self._settings.restore,
            on_progress=self._on_tiles,
            on_note=told.append,
        )
        return restored, enlarged, told

    def _finish(self, begun: _Begun, restored: PictureBands, enlarged: Rows, told: list[str]) -> FileResult:
        """Write a picture as its bands come."""
        job, checked = begun.job, begun.checked
        try:
            notes = _write(begun, restored, enlarged, self._settings, self._results)
        except OmgsrError as error:
            return failed(job, error, begun.started)
        seconds = time.monotonic() - begun.started - begun.waited_s
        notes = (*begun.picture.notes, *told, *notes)
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
        return FileResult(
            job.source, job.destination, "failed", error=FileError(f"{name_of(job)}: {error}", error.hint)
        )


def _shared(settings: Settings, place: Place) -> Settings:
    """Of memory that nobody gave out, each process that shares a device may use its part."""
    if place.sharing == 1 or settings.restore.memory is not None:
        return settings
    part = max(usable_memory(choose_device(place.device)) // place.sharing >> 20, 16)
    return replace(settings, restore=settings.restore.model_copy(update={"memory": part}))


def _write(
    begun: _Begun, restored: PictureBands, enlarged: Rows, settings: Settings, results: FinishedResults
) -> tuple[str, ...]:
    """Write one picture, and its comparison; returns what a person should be told."""
    job, checked, record = begun.job, begun.checked, begun.record
    kept = BandSpool(begun.picture.bit_depth) if settings.write.compare and job.destination is not None else None
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
        raise FileError(f"{name_of(job)}: memory is short for {checked.output_px}", "ask for a smaller size") from error
    except DeviceError as error:
        raise DeviceError(f"{name_of(job)}: {error.message}", error.hint) from error
    if kept is not None and job.destination is not None:
        both = side_by_side(enlarged, begun.picture, replace(restored, rgb=iter(kept)))
        path = comparison_path(job.destination)
        overwrite = settings.write.overwrite or path in checked.finished
        metadata = settings.write.metadata
        with put_when_whole(path, overwrite=overwrite) as local:
            write_picture(both, local, format="png", metadata=metadata, record=record, overwrite=overwrite)
    for path in outputs_of(job, settings):
        results.keep(path, record)
    return notes


def _place(destination: Location | None, overwrite: bool) -> AbstractContextManager[Path | BinaryIO]:
    return nullcontext(sys.stdout.buffer) if destination is None else put_when_whole(destination, overwrite=overwrite)
