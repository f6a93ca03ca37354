"""The interfaces of engines: work that can be opened in any process, and its tasks."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Generic, Protocol, TypeVar

from omgsr_cli.errors import OmgsrError

Task = TypeVar("Task", bound=Hashable)
Result = TypeVar("Result")

IDLE_S = 0.5
"""How long to wait before tasks are drawn again, if none was available."""

_Made = TypeVar("_Made", covariant=True)


class Say(Protocol):
    """Receives notes for the user, one line each; details are shown on request only."""

    def __call__(self, text: str, *, detail: bool = False) -> None:
        """Print a line."""
        ...


def say_nothing(text: str, *, detail: bool = False) -> None:
    """A `Say` that drops every line."""


@dataclass(frozen=True)
class Place:
    """The place of a process.

    Attributes:
        device: "cuda:1", "cpu", ...; None uses the first available one.
        sharing: number of processes that share the device and its memory.
    """

    device: str | None = None
    sharing: int = 1


class Worker(Protocol[Task, _Made]):
    """Does tasks in one process; errors of a task are in its result, while an exception ends the run."""

    def __call__(self, task: Task, /) -> _Made:
        """Do one task."""
        ...

    def stream(self, tasks: Iterable[Task | None], on_start: Callable[[Task], None], /) -> Iterator[_Made]:
        """Do every task in order; `on_start` is called with each as it starts. Later tasks may be drawn early.

        A task that is None means that none is available yet: all results are yielded before the next is drawn, after
        IDLE_S.
        """
        ...


@dataclass(frozen=True)
class OneByOne(Generic[Task, Result]):
    """A `Worker` that finishes each task before the next.

    Attributes:
        do: does one task.
    """

    do: Callable[[Task], Result]

    def __call__(self, task: Task) -> Result:
        """As `Worker`."""
        return self.do(task)

    def stream(self, tasks: Iterable[Task | None], on_start: Callable[[Task], None]) -> Iterator[Result]:
        """As `Worker.stream`."""
        for task in tasks:
            if task is None:
                time.sleep(IDLE_S)
                continue
            on_start(task)
            yield self.do(task)


class Work(Protocol[Task, _Made]):
    """A small description of tasks that can be sent to another process; it does not contain the model."""

    def open(self, place: Place, say: Say) -> Worker[Task, _Made]:
        """Prepare to do tasks in a process; called once."""
        ...

    def lost(self, task: Task, error: OmgsrError) -> _Made:
        """The result of a task whose process died twice."""
        ...


class Engine(Protocol):
    """Runs the tasks of some work in one or several processes.

    Attributes:
        in_this_process: whether it does every task in the process that runs it.
    """

    in_this_process: ClassVar[bool]

    def run(
        self, work: Work[Task, Result], tasks: Iterable[Task | None], *, on_start: Callable[[Task], None], say: Say
    ) -> Generator[Result, None, None]:
        """Do every task and yield the results as they finish; tasks are drawn as processes become free.

        Closing the generator ends unfinished tasks and the processes.

        Args:
            work: opened once in each process.
            tasks: may be a long stream that never waits for tasks to arrive: it yields None if none is available yet,
                and is asked again after IDLE_S. Results are yielded meanwhile, and the work stays open.
            on_start: called with each task as it starts.
            say: prints notes, as for `Work.open`.
        Raises:
            OmgsrError: the work cannot be opened, or the processes cannot run.
        """
        ...


class TaskQueue(Generic[Task]):
    """The tasks of a run that several processes share: new ones, and those to retry because their process died.

    Args:
        tasks: may be a long stream; drawn one by one. None means that no task is available yet.

    Attributes:
        is_waiting: whether the last draw found that no task was available yet.
    """

    def __init__(self, tasks: Iterator[Task | None]) -> None:
        self._tasks = tasks
        self.is_waiting = False
        self._again: deque[Task] = deque()
        self._tried: set[Task] = set()

    def next(self) -> Task | None:
        """The next task; None if there is none left or available yet."""
        if self._again:
            return self._again.popleft()
        try:
            task = next(self._tasks)
        except StopIteration:
            self.is_waiting = False
            return None
        self.is_waiting = task is None
        return task

    def has_more(self) -> bool:
        """Whether a task is left or may arrive; it is drawn to find out, and is returned next."""
        if (task := self.next()) is None:
            return self.is_waiting
        self._again.appendleft(task)
        return True

    def try_again(self, task: Task) -> bool:
        """Queue a task again whose process died; return False if that happened before."""
        if task in self._tried:
            return False
        self._tried.add(task)
        self._again.append(task)
        return True

    def done(self, task: Task) -> None:
        """Mark a task as finished."""
        self._tried.discard(task)
