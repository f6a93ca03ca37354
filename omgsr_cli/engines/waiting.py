"""The tasks of a run that several work at: those to come, and those whose worker was lost."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Generic

from omgsr_cli.engines.work import Task


class WaitingTasks(Generic[Task]):
    """Gives tasks, and those that were lost once more.

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
        """Whether there is a task left, which shows by drawing one; it stays the next."""
        if (task := self.next()) is None:
            return False
        self._again.appendleft(task)
        return True

    def try_again(self, task: Task) -> bool:
        """Take back a task whose worker was lost; False where it was its second."""
        if task in self._tried:
            return False
        self._tried.add(task)
        self._again.append(task)
        return True

    def done(self, task: Task) -> None:
        """Forget what was tried of a task that has its result."""
        self._tried.discard(task)
