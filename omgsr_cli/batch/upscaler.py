"""Restore one picture after the other with one model: reading ahead, writing behind."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor

from omgsr_cli.batch.checking import beside_input, failed, forget_frames
from omgsr_cli.batch.finished import FinishedResults, Settings
from omgsr_cli.batch.overlap import Handover, begin_ahead
from omgsr_cli.batch.reading import Begun, Ended, begin_job
from omgsr_cli.batch.results import FileResult
from omgsr_cli.batch.writing import write_result
from omgsr_cli.errors import ExistsError, NotFiniteError, OmgsrError
from omgsr_cli.files.jobs import Job
from omgsr_cli.imaging import PictureBands, Rows
from omgsr_cli.models.base import Restorer, RestorerInfo
from omgsr_cli.restoration import OnProgress
from omgsr_cli.upscaling import load_wider, restore_picture

_MOST_OVERFLOWS = 3
"""Images that overflow in the number format that was chosen for the user, before the others are not tried in it."""


class _Behind(NamedTuple):
    """A job whose picture is being written."""

    begun: Begun
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
        self._overflows = 0

    def __call__(self, job: Job) -> FileResult:
        """Do a job; what is wrong with its file is in the result.

        Raises:
            OmgsrError: the model cannot be loaded.
        """
        for _ in range(2):
            begun = self._begin(job)
            result = begun.result if isinstance(begun, Ended) else self._done(begun)
            # Another process was faster: now its file is this very result, or told as any file that is in the way.
            if not isinstance(result.error, ExistsError):
                break
        return result

    def _done(self, begun: Begun) -> FileResult:
        return self._widened(begun, self._finish(begun, *self._start(begun)))

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
                    if isinstance(begun, Ended):
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

    def _restoring(self, begun: Begun, writer: Executor) -> tuple[_Behind, Generator[None]]:
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

        return _Behind(begun, writer.submit(write)), give()

    def _settled(self, behind: _Behind) -> FileResult:
        """The result, once it is there; where another process was faster, that of a second look.

        Its file is this very result then, or told as any file is that is in the way.
        """
        result = behind.result.result()
        if result.error is not None:
            # The error was raised in this thread too.
            forget_frames(result.error)
        result = self._widened(behind.begun, result)
        return self(behind.begun.job) if isinstance(result.error, ExistsError) else result

    def _widened(self, begun: Begun, result: FileResult) -> FileResult:
        """The result, or where the model's number format was too narrow for the image, that of float32."""
        if begun.restorer is None or not isinstance(result.error, NotFiniteError):
            return result
        told: list[str] = []
        try:
            wide = load_wider(begun.restorer, result.error, told.append)
        except NotFiniteError:
            return result
        self._overflows += 1
        if self._overflows == _MOST_OVERFLOWS:
            told.append(f"{_MOST_OVERFLOWS} images overflowed: the others are restored in fp32 too")
            self._restorer = wide
        restored, enlarged, more = self._start(begun, wide)
        return self._finish(begun, restored, enlarged, [*told, *more])

    def _begin(self, job: Job) -> Begun | Ended:
        return begin_job(job, self._settings, self._info, self._results)

    def _start(self, begun: Begun, wide: Restorer | None = None) -> tuple[PictureBands, Rows, list[str]]:
        """The restored picture, of which nothing is computed yet, the enlarged input, and what is told on the way."""
        if self._restorer is None:
            began = time.monotonic()
            self._restorer = self._load()
            begun.waited_s = time.monotonic() - began
        told: list[str] = []
        begun.restorer = wide or self._restorer
        restored, enlarged = restore_picture(
            begun.restorer,
            begun.picture,
            begun.checked.output_px,
            beside_input(self._settings.restore, begun.checked.held_bytes),
            on_progress=self._on_tiles,
            on_note=told.append,
        )
        return restored, enlarged, told

    def _finish(self, begun: Begun, restored: PictureBands, enlarged: Rows, told: list[str]) -> FileResult:
        """Write a picture as its bands come."""
        job, checked = begun.job, begun.checked
        try:
            notes = write_result(begun, restored, enlarged, self._settings, self._results)
        except OmgsrError as error:
            return failed(job, error, begun.started)
        seconds = time.monotonic() - begun.started - begun.waited_s
        notes = (*begun.picture.notes, *told, *notes)
        sizes = checked.input_px, checked.output_px, checked.working_px
        return FileResult(job.source, job.destination, "done", *sizes, seconds=seconds, notes=notes)
