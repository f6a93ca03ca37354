"""What an engine is given: work that can be opened in any process, and is done task by task there."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar, runtime_checkable

from omgsr_cli.errors import OmgsrError

Task = TypeVar("Task", bound=Hashable)
Result = TypeVar("Result")
_Given = TypeVar("_Given", bound=Hashable, contravariant=True)
_Made = TypeVar("_Made", covariant=True)


class Say(Protocol):
    """Told, in a line, what a person should know; a detail only if everything was asked for."""

    def __call__(self, text: str, *, detail: bool = False) -> None:
        """Take a line."""
        ...


def say_nothing(text: str, *, detail: bool = False) -> None:
    """The `Say` of a caller who does not want to be told."""


@dataclass(frozen=True)
class Place:
    """Where a process works.

    Attributes:
        device: "cuda:1", "cpu", ...; None takes the first that is there.
        sharing: how many processes share the device and its memory.
    """

    device: str | None = None
    sharing: int = 1


@runtime_checkable
class DoesStreams(Protocol[Task, _Made]):
    """What may be added to what `Work.open` returns: several tasks in order, of which one is begun ahead."""

    def stream(self, tasks: Iterable[Task], on_start: Callable[[Task], None]) -> Iterator[_Made]:
        """Do every task in order; `on_start` is told of each as it begins."""
        ...


class Work(Protocol[_Given, _Made]):
    """What is to be done, without what it takes to do it: small, and can be sent to another process."""

    def open(self, place: Place, say: Say) -> Callable[[_Given], _Made]:
        """Make ready once in a process.

        What is returned does one task after the other, and catches what only ends a task: an exception ends the run.
        """
        ...

    def lost(self, task: _Given, error: OmgsrError) -> _Made:
        """The result of a task whose process ended twice."""
        ...


class Engine(Protocol):
    """Has tasks done."""

    def run(
        self, work: Work[Task, Result], tasks: Iterable[Task], *, on_start: Callable[[Task], None], say: Say
    ) -> Generator[Result, None, None]:
        """Do every task, and yield the results as they come; tasks are drawn as there is room for them.

        Closing it ends what is in work, and the processes.

        Args:
            work: opened once in each process.
            tasks: may be a long stream.
            on_start: told of each task as it begins, where the engine knows.
            say: as for `Work.open`.
        Raises:
            OmgsrError: the work cannot be opened, or the processes cannot run.
        """
        ...
