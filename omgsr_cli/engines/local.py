"""Run tasks on this machine, in this process or in several processes."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, ClassVar, Generic

from omgsr_cli.engines.work import IDLE_S, Place, Result, Say, Task, TaskQueue, Work
from omgsr_cli.errors import DeviceError, OmgsrError

_MOST_FAILED_STARTS = 3

# A process reacts to a signal only after the current layer of a network.
_PATIENCE_S = 30.0


@dataclass(frozen=True)
class Here:
    """Does every task in this process, in order."""

    in_this_process: ClassVar[bool] = True
    place: Place

    def run(
        self, work: Work[Task, Result], tasks: Iterable[Task | None], *, on_start: Callable[[Task], None], say: Say
    ) -> Generator[Result, None, None]:
        """See `Engine.run`."""
        yield from work.open(self.place, say).stream(tasks, on_start)


@dataclass(frozen=True)
class Processes:
    """Does tasks in several processes, each of which gets the next task when it has finished one.

    A process that dies is replaced, and its task is tried once more; after that it is lost. The processes import the
    main module again, so a script that uses this must run under `if __name__ == "__main__":`.

    Attributes:
        places: one place per process.
    """

    in_this_process: ClassVar[bool] = False
    places: Sequence[Place]

    def run(
        self, work: Work[Task, Result], tasks: Iterable[Task | None], *, on_start: Callable[[Task], None], say: Say
    ) -> Generator[Result, None, None]:
        """See `Engine.run`; results are yielded in the order in which they finish."""
        stream = iter(tasks)
        # There are no more processes than tasks, unless tasks are yet to arrive.
        first = list(islice(stream, len(self.places)))
        pool = _Pool(work, self.places[: len(first)], chain(first, stream), on_start, say)
        try:
            yield from pool.results()
        finally:
            pool.close()


def plan_places(devices: Sequence[str | None], workers: int | None) -> tuple[Place, ...]:
    """One place for each of `workers` processes, with the devices in turn; None uses one process per device."""
    taken = [devices[index % len(devices)] for index in range(workers or len(devices))]
    sharing = Counter(taken)
    return tuple(Place(device, sharing[device]) for device in taken)


def choose_local(places: Sequence[Place]) -> Here | Processes:
    """This process if there is one place, otherwise one process per place."""
    return Here(places[0]) if len(places) == 1 else Processes(places)


class _Process(Generic[Task]):
    """A process of this run and its current task."""

    def __init__(self, work: Work[Task, Any], place: Place, threads: int) -> None:
        context = get_context("spawn")
        self.place = place
        self.is_ready = False
        self.task: Task | None = None
        self.connection, theirs = context.Pipe()
        self.child: SpawnProcess = context.Process(target=_serve, args=(theirs, work, place, threads), daemon=True)
        with _ignoring_interrupts():
            self.child.start()
        # Now only the process has its end of the connection, so reading ours fails when it dies.
        theirs.close()

    def give(self, task: Task) -> None:
        self.task = task
        try:
            self.connection.send(task)
        except OSError:
            # The process has just died, which shows when its connection is read.
            return


class _Pool(Generic[Task, Result]):
    """The processes of one run and the waiting tasks."""

    def __init__(
        self,
        work: Work[Task, Result],
        places: Sequence[Place],
        tasks: Iterator[Task | None],
        on_start: Callable[[Task], None],
        say: Say,
    ) -> None:
        self._work, self._tasks, self._on_start, self._say = work, TaskQueue(tasks), on_start, say
        self._threads = max(1, _core_count() // max(len(places), 1))
        self._failed_starts = 0
        self._said: set[str] = set()
        self._processes = [self._start(place) for place in places]

    def results(self) -> Iterator[Result]:
        try:
            while self._keep_busy():
                timeout_s = IDLE_S if self._tasks.is_waiting else None
                heard = wait([process.connection for process in self._processes], timeout_s)
                for process in [process for process in self._processes if process.connection in heard]:
                    yield from self._hear(process)
        except KeyboardInterrupt:
            # Tasks that are finished are reported before the end.
            for process in self._processes:
                if process.task is not None and process.connection.poll():
                    with suppress(EOFError, OSError):
                        kind, content = process.connection.recv()
                        if kind == "done":
                            process.task = None
                            yield content
            raise

    def close(self) -> None:
        """End the processes; unfinished tasks are dropped and leave no files."""
        for process in self._processes:
            process.connection.close()
            if process.task is not None or not process.is_ready:
                process.child.terminate()
        for process in self._processes:
            process.child.join(_PATIENCE_S)
            if process.child.exitcode is None:
                process.child.kill()
                process.child.join()

    def _start(self, place: Place) -> _Process[Task]:
        return _Process(self._work, place, self._threads)

    def _keep_busy(self) -> bool:
        """Give a task to every idle process; return False if nothing is left to do or to wait for."""
        for process in self._processes:
            if process.is_ready and process.task is None and (task := self._tasks.next()) is not None:
                self._on_start(task)
                process.give(task)
        if any(process.task is not None for process in self._processes):
            return True
        # No process is ready yet, so draw a task to find out whether one is left.
        return self._tasks.has_more()

    def _hear(self, process: _Process[Task]) -> Iterator[Result]:
        try:
            kind, content = process.connection.recv()
        except (EOFError, OSError):
            yield from self._replace(process)
            return
        if kind == "ready":
            process.is_ready, self._failed_starts = True, 0
        elif kind == "say":
            text, detail = content
            if text not in self._said:
                self._said.add(text)
                self._say(text, detail=detail)
        elif kind == "done":
            if process.task is not None:
                self._tasks.done(process.task)
            process.task = None
            yield content
        else:
            raise content

    def _replace(self, process: _Process[Task]) -> Iterator[Result]:
        process.connection.close()
        process.child.join()
        how = _describe_end(process.child.exitcode)
        self._failed_starts += not process.is_ready
        if self._failed_starts >= _MOST_FAILED_STARTS:
            raise DeviceError(f"processes {how} as they start", "they may run out of memory: try fewer --workers")
        self._processes[self._processes.index(process)] = self._start(process.place)
        if (task := process.task) is None:
            return
        if self._tasks.try_again(task):
            return
        error = DeviceError(
            f"its process {how}, twice", "it may run out of memory: try fewer --workers or less --memory"
        )
        yield self._work.lost(task, error)


@contextmanager
def _ignoring_interrupts() -> Iterator[None]:
    """Make processes that are started in this block ignore Ctrl-C, which a terminal sends to all of its processes.

    This process ends them; otherwise they would print tracebacks while they start.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _serve(connection: Connection, work: Work[Any, Any], place: Place, threads: int) -> None:
    """The main function of a process: open the work, then do tasks until the connection is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _exit)
    # Only the first process prints results to stdout, so the output of libraries goes to stderr.
    os.dup2(2, 1)
    if "OMP_NUM_THREADS" not in os.environ:
        import torch

        torch.set_num_threads(threads)

    def say(text: str, *, detail: bool = False) -> None:
        connection.send(("say", (text, detail)))

    try:
        do = work.open(place, say)
        connection.send(("ready", None))
        while (task := _receive(connection)) is not None:
            connection.send(("done", do(task)))
    except OmgsrError as error:
        connection.send(("error", error))
    except BrokenPipeError:
        # The first process has ended.
        return


def _receive(connection: Connection) -> Any:
    try:
        return connection.recv()
    except (EOFError, OSError):
        return None


def _exit(number: int, frame: object) -> None:
    # Raise an exception, so unfinished files are removed.
    raise SystemExit(0)


def _describe_end(code: int | None) -> str:
    return f"was killed (signal {-code})" if code is not None and code < 0 else f"ended (exit code {code})"


def _core_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
