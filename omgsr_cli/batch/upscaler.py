"""Upscale images one after the other with one model, while the next is read and the previous one is written."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Condition
from typing import BinaryIO, Generic, NamedTuple, TypeVar

import torch
from torch import Tensor

from omgsr_cli.batch.checks import Checked, NoRoomError, beside_input, check_job, reading_input
from omgsr_cli.batch.finished import FinishedResults, Settings, failed, forget_frames, name_of, outputs_of
from omgsr_cli.batch.reports import FileResult
from omgsr_cli.engines.work import IDLE_S, Place, Say, TaskQueue
from omgsr_cli.errors import DeviceError, ExistsError, FileError, NotFiniteError, OmgsrError, reason_of
from omgsr_cli.files.addresses import Location, put_when_whole
from omgsr_cli.files.folders import file_stamp
from omgsr_cli.files.jobs import Job
from omgsr_cli.files.naming import comparison_path
from omgsr_cli.files.remembered import Remembered
from omgsr_cli.imaging import ImageBands, Rows, SourceImage, read_image, write_image
from omgsr_cli.imaging.image import side_by_side
from omgsr_cli.imaging.rows import BandSpool, keeping
from omgsr_cli.models.base import Restorer, RestorerInfo
from omgsr_cli.models.devices import PRECISIONS, choose_device
from omgsr_cli.models.family import ModelSource
from omgsr_cli.models.loading import load_found, suitable_precision
from omgsr_cli.planning import Execution, plan_restoration, usable_memory
from omgsr_cli.restoration import OnProgress
from omgsr_cli.transfer import start_ahead
from omgsr_cli.upscaling import load_wider, restore_image

Item = TypeVar("Item")

_MOST_WRITERS = 4
"""Images that are written at a time where a GPU restores them: it does so sooner than a processor encodes them."""

_MOST_BANDS = 16
"""Bands, of a megapixel each, that may wait for one of several writers."""

_MOST_OVERFLOWS = 3
"""After this many images overflowed in an automatically chosen precision, the others use fp32 at once."""


@dataclass(frozen=True)
class UpscaleWork:
    """The jobs of one run for an engine: their settings, and the location of the model.

    Attributes:
        settings: settings of all jobs.
        model: from `find_model`.
        info: properties of the model.
        on_tiles: called with (finished, total) tiles of the current image; only if the work stays in this process.
    """

    settings: Settings
    model: ModelSource
    info: RestorerInfo
    on_tiles: OnProgress | None = None

    def open(self, place: Place, say: Say) -> Upscaler:
        """Create the object that does the jobs in a process; it prints notes about the model when it loads it."""
        device = choose_device(place.device)
        precision = suitable_precision(self.model, self.settings.model.precision, device)
        settings = _shared(self.settings, place, self.info.weight_bytes(PRECISIONS[precision].itemsize))

        def load() -> Restorer:
            restorer = load_found(self.model, device=place.device, precision=settings.model.precision)
            for note in restorer.notes:
                say(note)
            say(f"{self.info.name} on {restorer.device}, {restorer.precision}", detail=True)
            if settings.model.compile:
                restorer.compile()
            return restorer

        results = FinishedResults(settings, self.info, Remembered())
        return Upscaler(settings, self.info, results, load, self.on_tiles, writers_for(device, settings))

    def lost(self, job: Job, error: OmgsrError) -> FileResult:
        """The result of a job whose process died twice."""
        return FileResult(
            job.source, job.destination, "failed", error=FileError(f"{name_of(job)}: {error}", error.hint)
        )


def writers_for(device: torch.device, settings: Settings) -> int:
    """How many images to write at a time: one where a CPU restores them, or memory is limited."""
    if device.type == "cpu" or settings.restore.memory is not None:
        return 1
    return min(_MOST_WRITERS, os.cpu_count() or 1)


class Upscaler:
    """Does jobs one after the other; outputs are complete or absent.

    The model is loaded when the first image needs it, so it is not loaded if all jobs are finished.

    Args:
        settings: settings of all jobs.
        info: properties of the model, which need not be loaded.
        results: results of earlier runs with the same settings and model.
        load: returns the model; called at most once.
        on_tiles: called with (finished, total) tiles of the current image.
        writers: images that are written at a time while the next is restored.
    """

    def __init__(
        self,
        settings: Settings,
        info: RestorerInfo,
        results: FinishedResults,
        load: Callable[[], Restorer],
        on_tiles: OnProgress | None = None,
        writers: int = 1,
    ) -> None:
        self._settings, self._info, self._results = settings, info, results
        self._load, self._on_tiles, self._writers = load, on_tiles, writers
        self._restorer: Restorer | None = None
        self._overflows = 0

    def __call__(self, job: Job) -> FileResult:
        """Do a job; errors of its file are in the result.

        Raises:
            OmgsrError: the model cannot be loaded.
        """
        for _ in range(2):
            opened = self._open(job)
            if isinstance(opened, FileResult):
                return opened
            result = self._retried_if_not_finite(opened, self._write(opened, *self._restore(opened)))
            # Another process was faster: its file is either the same result, or a conflict like any other file.
            if not isinstance(result.error, ExistsError):
                break
        return result

    def stream(self, jobs: Iterable[Job | None], on_start: Callable[[Job], None]) -> Iterator[FileResult]:
        """Do jobs in order; the next image is read and the previous one is written while the model works.

        Args:
            jobs: one job more is drawn than was started; None means that none is available yet, as for `Worker`.
            on_start: called with each job when the model starts on it.
        Raises:
            OmgsrError: the model cannot be loaded.
        """
        queue = TaskQueue(iter(jobs))
        yield from self._stream(iter(queue.next, None), on_start)
        while queue.is_waiting:
            time.sleep(IDLE_S)
            yield from self._stream(iter(queue.next, None), on_start)

    def _stream(self, jobs: Iterable[Job], on_start: Callable[[Job], None]) -> Iterator[FileResult]:
        """Do jobs that follow each other without a pause."""
        written: deque[_Written] = deque()
        # One of several writers may be far behind.
        ahead = 1 if self._writers == 1 else _MOST_BANDS
        handover: Handover[Tensor] = Handover(ahead)
        room = _Room(self._settings.restore.memory)
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(self._writers) as writer:
            try:
                for job, opened in start_ahead(jobs, lambda job: (job, self._open_beside(job, room)), reader):
                    on_start(job)
                    if isinstance(opened, FileResult):
                        yield from self._results_of(written)
                        if isinstance(opened.error, NoRoomError):
                            # The previous image used the memory, and is finished now.
                            opened = self._open(job)
                    if isinstance(opened, FileResult):
                        yield opened
                        continue
                    if room.is_exceeded:
                        yield from self._results_of(written)
                    handover = Handover(ahead)
                    with closing(self._restore_into(writer, opened, room, handover, written)) as bands:
                        for _ in bands:
                            while len(written) > 1 and written[0].result.done():
                                yield from self._results_of(written, but=len(written) - 1)
                    yield from self._results_of(written, but=self._writers)
                yield from self._results_of(written)
            except KeyboardInterrupt as interruption:
                # Images whose bands are all computed are still completed, and their results are yielded before the end.
                handover.end(interruption)
                for _, future in written:
                    if not isinstance(future.exception(), GeneratorExit | KeyboardInterrupt):
                        yield future.result()
                raise
            finally:
                # Do not wait for an image that is no longer restored.
                handover.end(GeneratorExit())
                room.close()

    def _open(
        self, job: Job, before_reading: Callable[[Checked], None] = lambda checked: None
    ) -> _OpenedJob | FileResult:
        """Read a job's image, or return the result of a job that the model need not process."""
        started, held = time.monotonic(), ExitStack()
        with held:
            try:
                if (known := self._results.find_known(job)) is not None:
                    return known
                # The size is planned from the header and the pixels are read later: no other version may come between.
                before = file_stamp(job.source) if isinstance(job.source, Path) else None
                checked = check_job(job, held, self._settings, self._info, self._results)
                if isinstance(checked, FileResult):
                    return checked
                if checked.is_finished(job, self._settings):
                    sizes = checked.input_px, checked.output_px, checked.working_px
                    return FileResult(job.source, job.destination, "skipped", *sizes)
                # Hash the input before the work, because it may be edited meanwhile.
                before_reading(checked)
                with reading_input():
                    record = self._results.record(checked.content)
                    image = read_image(checked.content, name_of(job))
                    if isinstance(job.source, Path) and file_stamp(job.source) != before:
                        raise FileError(f"{name_of(job)}: the file changed while it was read", "re-run the command")
            except OmgsrError as error:
                return failed(job, error, started)
        return _OpenedJob(job, checked, image, record, started)

    def _open_beside(self, job: Job, room: _Room) -> _OpenedJob | FileResult:
        """Open a job as soon as there is enough memory to read its image in addition to those in progress."""
        entered: list[int] = []

        def wait(checked: Checked) -> None:
            options = beside_input(self._settings.restore, checked.held_bytes)
            if options.memory is not None:
                plan = plan_restoration(self._info, checked.input_px, checked.output_px, options, 0)
                entered.append(max(plan.memory_bytes + checked.held_bytes, checked.reading_bytes))
                room.enter(checked.reading_bytes, entered[0])

        opened = self._open(job, wait)
        if isinstance(opened, FileResult):
            room.leave(sum(entered))
        else:
            opened.room_bytes = sum(entered)
        return opened

    def _restore_into(
        self,
        writer: Executor,
        opened: _OpenedJob,
        room: _Room,
        handover: Handover[Tensor],
        written: deque[_Written],
    ) -> Generator[None]:
        """Restore an image band by band, as the generator is iterated; another thread writes the bands."""
        restored, upscaled, notes = self._restore(opened)

        def write() -> FileResult:
            try:
                return self._write(opened, replace(restored, rgb=handover.take_all()), upscaled, notes)
            finally:
                handover.leave()
                room.leave(opened.room_bytes)

        def give() -> Generator[None]:
            # An error that only concerns this image is raised in the writer too, and becomes its result.
            with suppress(OmgsrError, MemoryError):
                yield from handover.give_all(restored.rgb)

        written.append(_Written(opened, writer.submit(write)))
        return give()

    def _results_of(self, written: deque[_Written], but: int = 0) -> Iterator[FileResult]:
        """Yield the results of images that are being written as they complete, except for the latest `but` images."""
        while len(written) > but:
            opened, future = written[0]
            result = future.result()
            if result.error is not None:
                # The error was raised in this thread too.
                forget_frames(result.error)
            result = self._retried_if_not_finite(opened, result)
            # If another process was faster, its file is either the same result, or a conflict like any other file.
            result = self(opened.job) if isinstance(result.error, ExistsError) else result
            written.popleft()
            yield result

    def _retried_if_not_finite(self, opened: _OpenedJob, result: FileResult) -> FileResult:
        """The result, or that of fp32 if the image overflowed in the model's precision."""
        if opened.restorer is None or not isinstance(result.error, NotFiniteError):
            return result
        notes: list[str] = []
        try:
            wide = load_wider(opened.restorer, result.error, notes.append)
        except NotFiniteError:
            return result
        self._overflows += 1
        if self._overflows == _MOST_OVERFLOWS:
            notes.append(f"{_MOST_OVERFLOWS} images overflowed: all others are restored in fp32")
            self._restorer = wide
        restored, upscaled, more = self._restore(opened, wide)
        return self._write(opened, restored, upscaled, [*notes, *more])

    def _restore(self, opened: _OpenedJob, wide: Restorer | None = None) -> tuple[ImageBands, Rows, list[str]]:
        """The restored image, computed as its bands are read, the upscaled input, and notes, which are added then."""
        # Plain upscaling needs no model.
        if self._restorer is None and self._settings.restore.strength > 0:
            began = time.monotonic()
            self._restorer = self._load()
            opened.waited_s = time.monotonic() - began
        notes: list[str] = []
        opened.restorer = wide or self._restorer
        restored, upscaled = restore_image(
            opened.restorer,
            opened.image,
            opened.checked.output_px,
            beside_input(self._settings.restore, opened.checked.held_bytes),
            on_progress=self._on_tiles,
            on_note=notes.append,
            whole_levels=opened.image.is_plain,
        )
        self._note_strips(opened, notes)
        return restored, upscaled, notes

    def _note_strips(self, opened: _OpenedJob, notes: list[str]) -> None:
        """Report that `--compile` does nothing for a VAE in strips."""
        if not self._settings.model.compile or opened.restorer is None:
            return
        device = opened.restorer.device
        options = beside_input(self._settings.restore, opened.checked.held_bytes)
        execution = Execution(device.type, opened.restorer.precision)
        sizes = opened.checked.input_px, opened.checked.output_px
        if plan_restoration(self._info, *sizes, options, usable_memory(device), execution).in_strips:
            notes.append("the VAE ran in strips, which --compile does not compile: memory was too small for the whole")

    def _write(self, opened: _OpenedJob, restored: ImageBands, upscaled: Rows, notes: list[str]) -> FileResult:
        """Write the bands of an image as they are computed."""
        job, checked = opened.job, opened.checked
        try:
            more = self._write_files(opened, restored, upscaled)
        except OmgsrError as error:
            return failed(job, error, opened.started)
        seconds = time.monotonic() - opened.started - opened.waited_s
        sizes = checked.input_px, checked.output_px, checked.working_px
        return FileResult(
            *(job.source, job.destination, "done", *sizes),
            seconds=seconds,
            notes=(*opened.image.notes, *notes, *more),
        )

    def _write_files(self, opened: _OpenedJob, restored: ImageBands, upscaled: Rows) -> tuple[str, ...]:
        """Write the bands of an image as they are computed, and its comparison with the rows of the upscaled input.

        Returns:
            Notes for the user.
        Raises:
            OmgsrError: the image cannot be computed or written; no unfinished file is left.
        """
        job, checked, record, write = opened.job, opened.checked, opened.record, self._settings.write
        kept = BandSpool(opened.image.bit_depth) if write.compare and job.destination is not None else None
        may_replace = write.overwrite or job.replaces
        overwrite = may_replace or job.destination in checked.finished
        try:
            with _opened(job.destination, overwrite) as place:
                notes = write_image(
                    restored if kept is None else replace(restored, rgb=keeping(restored.rgb, kept)),
                    place,
                    format=checked.format,
                    quality=write.quality,
                    metadata=write.metadata,
                    dpi=write.dpi,
                    record=record,
                    overwrite=overwrite,
                )
        except MemoryError as error:
            raise FileError(
                f"{name_of(job)}: ran out of memory for {checked.output_px}", "choose a smaller size"
            ) from error
        except (DeviceError, NotFiniteError) as error:
            raise type(error)(f"{name_of(job)}: {error.message}", error.hint) from error
        if kept is not None and job.destination is not None:
            both = side_by_side(upscaled, opened.image, replace(restored, rgb=iter(kept)))
            path = comparison_path(job.destination)
            overwrite = may_replace or path in checked.finished
            metadata = write.metadata
            with put_when_whole(path, overwrite=overwrite) as local:
                write_image(both, local, format="png", metadata=metadata, record=record, overwrite=overwrite)
        if job.replaces:
            notes += ("the result of an earlier version was replaced",)
        if write.keep_times:
            notes += _keep_times(job.source, outputs_of(job, self._settings))
        for path in outputs_of(job, self._settings):
            self._results.keep(path, record)
        return notes


class _Written(NamedTuple):
    """A job whose image is being written."""

    opened: _OpenedJob
    result: Future[FileResult]


@dataclass
class _OpenedJob:
    """A job whose image has been read."""

    job: Job
    checked: Checked
    image: SourceImage
    record: str
    started: float
    waited_s: float = 0.0
    """Seconds spent on loading the model since then."""
    restorer: Restorer | None = None
    """The model that restores it."""
    room_bytes: int = 0
    """Memory that it uses of a `_Room`."""


class _Room:
    """The memory that `--memory` allows for the images in progress, including the next one, which is read already.

    Args:
        limit_mib: limit for all of them together; None for no limit.
    """

    def __init__(self, limit_mib: int | None) -> None:
        self._limit_bytes = None if limit_mib is None else limit_mib << 20
        self._used_bytes, self._is_closed, self._changed = 0, False, Condition()

    @property
    def is_exceeded(self) -> bool:
        """Whether the images in progress need more memory than is allowed."""
        return self._limit_bytes is not None and self._used_bytes > self._limit_bytes

    def enter(self, reading_bytes: int, total_bytes: int) -> None:
        """Wait until there is memory to read another image, and count it; a single image can always be read."""

        def is_free() -> bool:
            limit = self._limit_bytes
            fits = limit is None or self._used_bytes == 0 or self._used_bytes + reading_bytes <= limit
            return fits or self._is_closed

        with self._changed:
            self._changed.wait_for(is_free)
            self._used_bytes += total_bytes

    def leave(self, total_bytes: int) -> None:
        """Release the memory of an image."""
        with self._changed:
            self._used_bytes -= total_bytes
            self._changed.notify_all()

    def close(self) -> None:
        """Release all waiting threads."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()


def _keep_times(source: Location | None, outputs: Sequence[Location]) -> tuple[str, ...]:
    """Give results the times of their input; return a note if that is not possible."""
    if not isinstance(source, Path) or not all(isinstance(output, Path) for output in outputs):
        return ("--keep-times has no effect: input and result are not both local files",)
    try:
        found = source.stat()
        for output in outputs:
            os.utime(str(output), ns=(found.st_atime_ns, found.st_mtime_ns))
    except OSError as error:
        return (f"the times of the input were not kept: {reason_of(error)}",)
    return ()


def _opened(destination: Location | None, overwrite: bool) -> AbstractContextManager[Path | BinaryIO]:
    return nullcontext(sys.stdout.buffer) if destination is None else put_when_whole(destination, overwrite=overwrite)


class Handover(Generic[Item]):
    """Hands items from one thread to another.

    Args:
        most: how many the taker may be behind.
    """

    def __init__(self, most: int = 1) -> None:
        self._most = most
        self._waiting: deque[Item] = deque()
        self._changed = Condition()
        self._has_ended = self._taker_left = False
        self._error: BaseException | None = None

    def give_all(self, items: Iterable[Item]) -> Generator[None]:
        """Pass items until there are no more, or the receiver has left; yields after each.

        An exception while iterating is raised here and in the receiver, and so is the early end of this generator.
        """
        try:
            for item in items:
                if not self._give(item):
                    return
                # Drop the reference: only the receiver keeps the item.
                del item
                yield
        except BaseException as error:
            self.end(error)
            raise
        self.end(None)

    def take_all(self) -> Iterator[Item]:
        """Receive all items; raises the exceptions of the sender."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._has_ended)
                if not self._waiting:
                    break
                item = self._waiting.popleft()
                self._changed.notify_all()
            yield item
            del item
        if self._error is not None:
            raise self._error

    def leave(self) -> None:
        """Stop receiving; the sender stops at its next item."""
        with self._changed:
            self._taker_left = True
            self._waiting.clear()
            self._changed.notify_all()

    def _give(self, item: Item) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: len(self._waiting) < self._most or self._taker_left)
            if self._taker_left:
                return False
            self._waiting.append(item)
            self._changed.notify_all()
        return True

    def end(self, error: BaseException | None) -> None:
        """Give no more; unless it has ended already, the taker raises the error behind the last item."""
        with self._changed:
            if not self._has_ended:
                self._has_ended, self._error = True, error
            self._changed.notify_all()


def _shared(settings: Settings, place: Place, weights_bytes: int) -> Settings:
    """Without `--memory`, each process that shares a device gets its share of the free memory, less its own weights."""
    if place.sharing == 1 or settings.restore.memory is not None:
        return settings
    part = max((usable_memory(choose_device(place.device)) // place.sharing - weights_bytes) >> 20, 16)
    return replace(settings, restore=settings.restore.model_copy(update={"memory": part}))
