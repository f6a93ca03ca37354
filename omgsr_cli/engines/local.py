"""Tasks done on this machine: in this process, or in several of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from omgsr_cli.engines.work import Place, Result, Say, Task, Work


@dataclass(frozen=True)
class Here:
    """Does every task in this process, in order."""

    place: Place

    def run(
        self, work: Work[Task, Result], tasks: Iterable[Task], *, on_start: Callable[[Task], None], say: Say
    ) -> Iterator[Result]:
        """As `Engine.run`."""
        do = work.open(self.place, say)
        for task in tasks:
            on_start(task)
            yield do(task)
