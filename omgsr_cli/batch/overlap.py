"""Doing two things at a time: what one thread makes another one takes, and what comes next is begun ahead."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future
from threading import Condition
from typing import Generic, TypeVar

Item = TypeVar("Item")
Task = TypeVar("Task")
Begun = TypeVar("Begun")


class Handover(Generic[Item]):
    """Items from one thread to another, at most so many waiting at a time.

    Args:
        most_waiting: how many the giver may be ahead of the taker.
    """

    def __init__(self, most_waiting: int = 1) -> None:
        self._most = most_waiting
        self._waiting: deque[Item] = deque()
        self._changed = Condition()
        self._has_ended = self._taker_left = False
        self._error: BaseException | None = None

    def give_all(self, items: Iterable[Item]) -> Generator[None]:
        """Give items until there are no more, or nobody takes them any longer; yields after each.

        An exception on the way is raised here and on the other side, and so is that this was closed before its end.
        """
        try:
            for item in items:
                if not self._give(item):
                    return
                # What was given belongs to the taker alone.
                del item
                yield
        except BaseException as error:
            self._end(error)
            raise
        self._end(None)

    def take_all(self) -> Iterator[Item]:
        """Items as they come, to the last; raises what the giver met."""
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
        """Take no more: the giver stops at its next item."""
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

    def _end(self, error: BaseException | None) -> None:
        with self._changed:
            self._has_ended, self._error = True, error
            self._changed.notify_all()


def begin_ahead(tasks: Iterable[Task], begin: Callable[[Task], Begun], executor: Executor) -> Iterator[Begun]:
    """Begin each task while the one before is still in the caller's hands.

    Args:
        tasks: one more is drawn than was given out.
        begin: run by the executor; what it raises comes out in the task's turn.
        executor: of one thread, so that tasks begin in order.
    """
    ahead: Future[Begun] | None = None
    for task in tasks:
        before, ahead = ahead, executor.submit(begin, task)
        if before is not None:
            yield before.result()
    if ahead is not None:
        yield ahead.result()
