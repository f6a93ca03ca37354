"""What an engine is given: work that can be opened in any process, and its tasks."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Generic, Protocol, TypeVar

from omgsr_cli.errors import OmgsrError

Task = TypeVar("Task", bound=Hashable)
Result = TypeVar("Result")
_Made = TypeVar("_Made", covariant=True)


class Say(Protocol):
    """Receives what the user should know, one line each; a detail is shown only on request."""

    def __call__(self, text: str, *, detail: bool = False) -> None:
        """Take a line."""
        ...


def say_nothing(text: str, *, detail: bool = False) -> None:
    """A `Say` that drops every line."""


@dataclass(frozen=True)
class Place:
    """Where a process works.

    Attributes:
        device: "cuda:1", "cpu", ...; None takes the first that exists.
        sharing: how many processes share the device and its memory.
    """

    device: str | None = None
    sharing: int = 1


class Worker(Protocol[Task, _Made]):
    """What does tasks in one process; what only ends a task is in its result: an exception ends the run."""

    def __call__(self, task: Task, /) -> _Made:
        """Do one task."""
        ...

    def stream(self, tasks: Iterable[Task], on_start: Callable[[Task], None], /) -> Iterator[_Made]:
        """Do every task in order; `on_start` is called with each as it starts. Later tasks may be drawn early."""
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

    def stream(self, tasks: Iterable[Task], on_start: Callable[[Task], None]) -> Iterator[Result]:
        """As `Worker.stream`."""
        for task in tasks:
            on_start(task)
            yield self.do(task)


class Work(Protocol[Task, _Made]):
    """A description of tasks, without what it takes to do them: small, and can be sent to another process."""

    def open(self, place: Place, say: Say) -> Worker[Task, _Made]:
        """Make ready once in a process."""
        ...

    def lost(self, task: Task, error: OmgsrError) -> _Made:
        """The result of a task whose process ended twice."""
        ...


class Engine(Protocol):
    """Runs the tasks of some work in one or several processes.

    Attributes:
        in_this_process: whether it does every task in the process that runs it.
    """

    in_this_process: ClassVar[bool]

    def run(
        self, work: Work[Task, Result], tasks: Iterable[Task], *, on_start: Callable[[Task], None], say: Say
    ) -> Generator[Result, None, None]:
        """Do every task, and yield the results as they come; tasks are drawn as processes become free.

        Closing it ends unfinished tasks and the processes.

        Args:
            work: opened once in each process.
            tasks: may be a long stream.
            on_start: called with each task as it starts.
            say: as for `Work.open`.
        Raises:
            OmgsrError: the work cannot be opened, or the processes cannot run.
        """
        ...


class TaskQueue(Generic[Task]):
    """The tasks of a run that several processes share: those to come, and those whose process was lost, once more.

    Args:
        tasks: may be a long stream; drawn one by one.
    """

    def __init__(self, tasks: Iterator[Task]) -> None:
        self._tasks = tasks
        self._again: deque[Task] = deque()
        self._tried: set[Task] = set()

    def next(self) -> Task | None:
        """Give a task; None when there is none left."""
        return self._again.popleft() if self._again else next(self._tasks, None)

    def has_more(self) -> bool:
        """Whether a task is left; it is drawn to find out, and stays the next."""
        if (task := self.next()) is None:
            return False
        self._again.appendleft(task)
        return True

    def try_again(self, task: Task) -> bool:
        """Take back a task whose process was lost; False if that happened to it before."""
        if task in self._tried:
            return False
        self._tried.add(task)
        self._again.append(task)
        return True

    def done(self, task: Task) -> None:
        """Forget that a task was tried: it has its result."""
        self._tried.discard(task)
