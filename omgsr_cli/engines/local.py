"""Tasks done on this machine: in this process, or in several of its own."""

from __future__ import annotations

import os
import signal
import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Generic

from omgsr_cli.engines.waiting import WaitingTasks
from omgsr_cli.engines.work import DoesStreams, Place, Result, Say, Task, Work
from omgsr_cli.errors import DeviceError, OmgsrError

_MOST_FAILED_STARTS = 3

# What a process may take to notice that it is to end: a layer of a network, which hears nothing meanwhile.
_PATIENCE_S = 30.0


@dataclass(frozen=True)
class Here:
    """Does every task in this process, in order."""

    place: Place

    def run(
        self, work: Work[Task, Result], tasks: Iterable[Task], *, on_start: Callable[[Task], None], say: Say
    ) -> Generator[Result, None, None]:
        """As `Engine.run`."""
        do = work.open(self.place, say)
        opened: object = do
        if isinstance(opened, DoesStreams):
            yield from opened.stream(tasks, on_start)
            return
        for task in tasks:
            on_start(task)
            yield do(task)


@dataclass(frozen=True)
class Processes:
    """Does tasks in processes of its own, each of which takes the next one when it has finished one.

    A process that dies is replaced, and its task tried once more; then it is lost. The processes import the main
    module anew, so a script that uses this keeps its own work under `if __name__ == "__main__":`.

    Attributes:
        places: one for each process.
    """

    places: Sequence[Place]

    def run(
        self, work: Work[Task, Result], tasks: Iterable[Task], *, on_start: Callable[[Task], None], say: Say
    ) -> Generator[Result, None, None]:
        """As `Engine.run`; results come in the order in which they are ready."""
        stream = iter(tasks)
        first = list(islice(stream, len(self.places)))
        crew = _Crew(work, self.places[: len(first)], chain(first, stream), on_start, say)
        try:
            yield from crew.results()
        finally:
            crew.close()


def plan_places(devices: Sequence[str | None], workers: int | None) -> tuple[Place, ...]:
    """One place for each of `workers` processes, devices in turn; as many as devices where the number is not given."""
    taken = [devices[index % len(devices)] for index in range(workers or len(devices))]
    sharing = Counter(taken)
    return tuple(Place(device, sharing[device]) for device in taken)


def choose_local(places: Sequence[Place]) -> Here | Processes:
    """This process for one place, else one process for each."""
    return Here(places[0]) if len(places) == 1 else Processes(places)


class _Hand(Generic[Task]):
    """One process, and the task that it has."""

    def __init__(self, work: Work[Task, Any], place: Place, threads: int) -> None:
        context = get_context("spawn")
        self.place = place
        self.is_ready = False
        self.task: Task | None = None
        self.connection, theirs = context.Pipe()
        self.process: SpawnProcess = context.Process(target=_serve, args=(theirs, work, place, threads), daemon=True)
        with _deaf_to_interrupts():
            self.process.start()
        # Only the process itself holds its end now: when it dies, ours says so.
        theirs.close()

    def give(self, task: Task) -> None:
        self.task = task
        try:
            self.connection.send(task)
        except OSError:
            # It has died just now, which is found out when it is listened to.
            return


class _Crew(Generic[Task, Result]):
    """The processes of one run, and the tasks that are waiting for them."""

    def __init__(
        self,
        work: Work[Task, Result],
        places: Sequence[Place],
        tasks: Iterator[Task],
        on_start: Callable[[Task], None],
        say: Say,
    ) -> None:
        self._work, self._tasks, self._on_start, self._say = work, WaitingTasks(tasks), on_start, say
        self._threads = max(1, _core_count() // max(len(places), 1))
        self._failed_starts = 0
        self._said: set[str] = set()
        self._hands = [self._hire(place) for place in places]

    def results(self) -> Iterator[Result]:
        while self._keep_busy():
            heard = wait([hand.connection for hand in self._hands])
            for hand in [hand for hand in self._hands if hand.connection in heard]:
                yield from self._hear(hand)

    def close(self) -> None:
        """End the processes: what they have begun is given up, and leaves nothing half done."""
        for hand in self._hands:
            hand.connection.close()
            if hand.task is not None or not hand.is_ready:
                hand.process.terminate()
        for hand in self._hands:
            hand.process.join(_PATIENCE_S)
            if hand.process.exitcode is None:
                hand.process.kill()
                hand.process.join()

    def _hire(self, place: Place) -> _Hand[Task]:
        return _Hand(self._work, place, self._threads)

    def _keep_busy(self) -> bool:
        """Give a task to everyone who has none; False when there is nothing left to do or to wait for."""
        for hand in self._hands:
            if hand.is_ready and hand.task is None and (task := self._tasks.next()) is not None:
                self._on_start(task)
                hand.give(task)
        if any(hand.task is not None for hand in self._hands):
            return True
        # Nobody is ready yet: whether there is a task for them shows by drawing one.
        return self._tasks.has_more()

    def _hear(self, hand: _Hand[Task]) -> Iterator[Result]:
        try:
            kind, content = hand.connection.recv()
        except (EOFError, OSError):
            yield from self._replace(hand)
            return
        if kind == "ready":
            hand.is_ready, self._failed_starts = True, 0
        elif kind == "say":
            text, detail = content
            if text not in self._said:
                self._said.add(text)
                self._say(text, detail=detail)
        elif kind == "done":
            if hand.task is not None:
                self._tasks.done(hand.task)
            hand.task = None
            yield content
        else:
            raise content

    def _replace(self, hand: _Hand[Task]) -> Iterator[Result]:
        hand.connection.close()
        hand.process.join()
        how = _told_end(hand.process.exitcode)
        self._failed_starts += not hand.is_ready
        if self._failed_starts >= _MOST_FAILED_STARTS:
            raise DeviceError(f"processes {how} as they start", "memory may be short: try fewer --workers")
        self._hands[self._hands.index(hand)] = self._hire(hand.place)
        if (task := hand.task) is None:
            return
        if self._tasks.try_again(task):
            return
        error = DeviceError(f"its process {how}, twice", "memory may be short: try fewer --workers or less --memory")
        yield self._work.lost(task, error)


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """What is started in here never hears Ctrl-C, which comes to all processes of a terminal.

    The first one ends the others, which might otherwise tell of it while they start.
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
    """What a process does: opens the work, then one task after the other until nobody is there to give one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _give_up)
    # Results are the first process's to tell: what a library prints goes with the talk.
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
        # Nobody is there any more to hear of it.
        return


def _receive(connection: Connection) -> Any:
    try:
        return connection.recv()
    except (EOFError, OSError):
        return None


def _give_up(number: int, frame: object) -> None:
    # As an exception, so that a file in work is removed.
    raise SystemExit(0)


def _told_end(code: int | None) -> str:
    return f"was killed (signal {-code})" if code is not None and code < 0 else f"ended (exit code {code})"


def _core_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
