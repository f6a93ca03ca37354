"""Work for tests of engines, without images and with processes that start quickly."""

from __future__ import annotations

import os
import pickle
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omgsr_cli.engines.work import OneByOne, Place, Say, Worker
from omgsr_cli.errors import ModelError, OmgsrError


@dataclass(frozen=True)
class Doubling:
    """Doubles numbers; some numbers kill their process, always or at the first attempt.

    Attributes:
        folder: folder in which every attempt writes a file.
        fatal: numbers that kill the process.
        fatal_once: numbers that kill the process only at the first attempt.
        slow: numbers that take a quarter of an hour.
        broken: opening raises an error, as for a missing model.
        dies: the process is killed when it starts.
    """

    folder: Path
    fatal: frozenset[int] = frozenset()
    fatal_once: frozenset[int] = frozenset()
    slow: frozenset[int] = frozenset()
    broken: bool = False
    dies: bool = False

    def open(self, place: Place, say: Say) -> Worker[int, tuple[int, str]]:
        if self.broken:
            raise ModelError("there is no model", "make one")
        if self.dies:
            os.kill(os.getpid(), signal.SIGKILL)
        say("opened")

        def double(number: int) -> tuple[int, str]:
            tried = self.folder / f"{number}-{os.getpid()}"
            is_first = not list(self.folder.glob(f"{number}-*"))
            tried.write_text(str(place.device))
            if number in self.fatal or (number in self.fatal_once and is_first):
                os.kill(os.getpid(), signal.SIGKILL)
            if number in self.slow:
                time.sleep(900)
            return 2 * number, ""

        return OneByOne(double)

    def lost(self, task: int, error: OmgsrError) -> tuple[int, str]:
        return task, error.message


class Pickled:
    """Simulates several processes: tasks and results are pickled, and the last result arrives first."""

    in_this_process = False

    def __init__(self, places: Sequence[Place] = (Place("cpu"),)) -> None:
        self.place = places[0]

    def run(self, work: Any, tasks: Iterable[Any], *, on_start: Callable[[Any], None], say: Say) -> Iterator[Any]:
        do = pickle.loads(pickle.dumps(work)).open(self.place, say)
        results = []
        for task in tasks:
            on_start(task)
            results.append(pickle.dumps(do(pickle.loads(pickle.dumps(task)))))
        yield from map(pickle.loads, reversed(results))
