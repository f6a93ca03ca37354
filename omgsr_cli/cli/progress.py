"""How far work has come, and how long it takes: bars on a terminal, a line now and then in a log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

_LOG_EVERY_S = 30.0


class ProgressView(Protocol):
    """Two counters: files, and tiles of the file in work."""

    def start(self, name: str) -> None:
        """A file begins."""
        ...

    def tiles(self, done: int, total: int) -> None:
        """Some of its tiles are done."""
        ...

    def finish(self) -> None:
        """The file has ended, in whatever way."""
        ...

    def count(self, files: int) -> None:
        """How many files there are shows only now."""
        ...


StepView = Callable[[int, str], None]
"""Told how many steps are done, and what there is to say about the last."""


Say = Callable[[str], None]
"""Says one line in a log."""


@contextmanager
def show_files(terminal: Console | None, say: Say, count: int | None, what: str) -> Iterator[ProgressView]:
    """Show how far the work on so many of something has come.

    Args:
        terminal: where bars are shown; without one a line is said now and then.
        say: says it.
        count: how many; None where this is not known yet.
        what: they are.
    """
    if terminal is None:
        yield _Log(say, count, what)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(True))
    with Progress(*columns, console=terminal, transient=True) as progress:
        yield _Bars(progress, count, what)


@contextmanager
def show_steps(terminal: Console | None, say: Say, total: int) -> Iterator[StepView]:
    """Show how far one long computation is; terminal and say as for `show_files`."""
    if terminal is None:
        yield _StepLog(say, total)
        return
    columns = (BarColumn(24), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=terminal, transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda done, text: progress.update(task, completed=done, description=escape(text))


@contextmanager
def show_bytes(terminal: Console | None, say: Say, total: int) -> Iterator[Callable[[int], None]]:
    """Show how many bytes of so many have come; the function is told how many more."""
    if terminal is None:
        yield _ByteLog(say, total).add
        return
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=terminal, transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda count: progress.advance(task, count)


class _StepLog:
    """Says the first step, the last, and some in between."""

    def __init__(self, say: Say, total: int) -> None:
        self._say, self._total = say, total
        self._said: float | None = None

    def __call__(self, done: int, text: str) -> None:
        now = time.monotonic()
        if self._said is None or done == self._total or now - self._said >= _LOG_EVERY_S:
            self._said = now
            self._say(f"{done} of {self._total}: {text}")


class _Bars:
    """Live bars on a terminal: one of all, one of the tiles of the file in work."""

    def __init__(self, progress: Progress, count: int | None, what: str) -> None:
        self._progress = progress
        self._all = progress.add_task(what, total=count)
        self._tiles = progress.add_task("tiles", total=None)

    def start(self, name: str) -> None:
        longest = min(40, self._progress.console.width // 3)
        short = name if len(name) <= longest else "…" + name[1 - longest :]
        self._progress.reset(self._tiles, total=None, description=escape(short))

    def tiles(self, done: int, total: int) -> None:
        self._progress.update(self._tiles, completed=done, total=total)

    def finish(self) -> None:
        self._progress.advance(self._all)

    def count(self, files: int) -> None:
        self._progress.update(self._all, total=files)


class _Log:
    """A line now and then."""

    def __init__(self, say: Say, count: int | None, what: str) -> None:
        self._say = say
        self._count, self._what = count, what
        self._done = 0
        self._name = ""
        self._began = self._said = time.monotonic()

    def start(self, name: str) -> None:
        self._name = name

    def tiles(self, done: int, total: int) -> None:
        self._maybe_say(f"{self._name}: tile {done} of {total}")

    def finish(self) -> None:
        self._done += 1
        if self._count is None:
            self._maybe_say(f"{self._done} {self._what} so far")
            return
        left = (time.monotonic() - self._began) / self._done * (self._count - self._done)
        if self._done < self._count:
            self._maybe_say(f"{self._done} of {self._count} {self._what}, about {duration(left)} left")

    def count(self, files: int) -> None:
        self._count = files

    def _maybe_say(self, text: str) -> None:
        now = time.monotonic()
        if now - self._said >= _LOG_EVERY_S:
            self._said = now
            self._say(text)


class _ByteLog:
    """A line now and then, of bytes that come."""

    def __init__(self, say: Say, total: int) -> None:
        self._say = say
        self._total = total
        self._came = 0
        self._said = time.monotonic()
        say(f"fetching {total >> 20} MiB")

    def add(self, count: int) -> None:
        self._came += count
        if time.monotonic() - self._said >= _LOG_EVERY_S:
            self._said = time.monotonic()
            self._say(f"{self._came >> 20} of {self._total >> 20} MiB")


def duration(seconds: float) -> str:
    """Seconds as a person says them: "0.4 s", "12 s", "3 min 05 s", "2 h 10 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
