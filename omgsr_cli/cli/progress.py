"""Show progress and the time left: bars on a terminal, occasional lines in a log."""

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
from rich.table import Column

_LOG_EVERY_S = 30.0
_DRAW_EVERY_S = 0.1


class FileProgress(Protocol):
    """Two counters: files, and tiles of the current file."""

    def start(self, name: str) -> None:
        """Show the name of the current file."""
        ...

    def tiles(self, done: int, total: int) -> None:
        """Show how many tiles of the current file are finished."""
        ...

    def finish(self) -> None:
        """Count one finished, skipped or failed file."""
        ...

    def count(self, files: int) -> None:
        """Set the number of files, if it was not known before."""
        ...

    def wait(self, text: str) -> None:
        """Show a text until the next file starts; nothing moves, so that waiting takes no time of the processor."""
        ...


ShowsStep = Callable[[int, str], None]
"""Shows the number of finished steps and a text about the latest step."""


PrintsLine = Callable[[str], None]
"""Prints one line in a log."""


@contextmanager
def show_files(
    terminal: Console | None, log: PrintsLine, count: int | None, what: str, *, is_live: bool = True
) -> Iterator[FileProgress]:
    """Show progress through many items.

    Args:
        terminal: console of the bars; None prints a line every half minute.
        log: prints such a line.
        count: number of items; None if it is not known yet.
        what: plural name of the items.
        is_live: draw the bars ten times a second, not only when they change.
    """
    if terminal is None:
        yield _Log(log, count, what)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(True))
    with Progress(*columns, console=terminal, transient=True, auto_refresh=is_live) as progress:
        yield _Bars(progress, count, what)


@contextmanager
def show_steps(terminal: Console | None, log: PrintsLine, total: int) -> Iterator[ShowsStep]:
    """Show progress through one long computation; terminal and log as for `show_files`."""
    if terminal is None:
        yield _StepLog(log, total)
        return
    # On a narrow terminal, losses, speed and time left continue on a second line.
    text = TextColumn("{task.description}", table_column=Column(ratio=1))
    with Progress(BarColumn(12), MofNCompleteColumn(), text, console=terminal, transient=True, expand=True) as progress:
        task = progress.add_task("loading model and data", total=total)
        yield lambda done, text: progress.update(task, completed=done, description=escape(text))


@contextmanager
def show_bytes(terminal: Console | None, log: PrintsLine, total: int) -> Iterator[Callable[[int], None]]:
    """Show progress through a download; yield a function that adds received bytes."""
    if terminal is None:
        yield _ByteLog(log, total).add
        return
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=terminal, transient=True) as progress:
        task = progress.add_task("", total=total)
        yield lambda count: progress.advance(task, count)


class _StepLog:
    """Prints the first step, the last step, and some in between."""

    def __init__(self, log: PrintsLine, total: int) -> None:
        self._log, self._total = log, total
        self._logged_s: float | None = None

    def __call__(self, done: int, text: str) -> None:
        now = time.monotonic()
        if self._logged_s is None or done == self._total or now - self._logged_s >= _LOG_EVERY_S:
            self._logged_s = now
            self._log(f"{done} of {self._total}: {text}")


class _Bars:
    """Live bars on a terminal: one for all files, one for the tiles of the current file."""

    def __init__(self, progress: Progress, count: int | None, what: str) -> None:
        self._progress = progress
        self._what, self._waits, self._drawn_s = what, False, 0.0
        self._all = progress.add_task(what, total=count)
        self._tiles = progress.add_task("", total=None, visible=False)

    def start(self, name: str) -> None:
        longest = min(40, self._progress.console.width // 3)
        short = name if len(name) <= longest else "…" + name[1 - longest :]
        self._waits = False
        self._progress.update(self._all, description=self._what)
        self._progress.reset(self._tiles, total=None, visible=True, description=escape(short))
        self._draw()

    def tiles(self, done: int, total: int) -> None:
        self._progress.update(self._tiles, completed=done, total=total)
        self._draw(_DRAW_EVERY_S)

    def finish(self) -> None:
        self._progress.advance(self._all)
        self._draw(_DRAW_EVERY_S)

    def count(self, files: int) -> None:
        self._progress.update(self._all, total=files)

    def wait(self, text: str) -> None:
        if not self._waits:
            self._waits = True
            self._progress.update(self._all, description=escape(text))
            self._progress.update(self._tiles, visible=False)
            self._draw()

    def _draw(self, every_s: float = 0.0) -> None:
        """Draw bars that are not live, unless they were just drawn."""
        now = time.monotonic()
        if not self._progress.live.auto_refresh and now - self._drawn_s >= every_s:
            self._drawn_s = now
            self._progress.refresh()


class _Log:
    """Prints an occasional line."""

    def __init__(self, log: PrintsLine, count: int | None, what: str) -> None:
        self._log = log
        self._count, self._what = count, what
        self._done = 0
        self._name = ""
        self._began = self._logged_s = time.monotonic()

    def start(self, name: str) -> None:
        self._name = name

    def tiles(self, done: int, total: int) -> None:
        self._maybe_log(f"{self._name}: tile {done} of {total}")

    def finish(self) -> None:
        self._done += 1
        if self._count is None:
            self._maybe_log(f"{self._done} {self._what} so far")
            return
        left = (time.monotonic() - self._began) / self._done * (self._count - self._done)
        if self._done < self._count:
            self._maybe_log(f"{self._done} of {self._count} {self._what}, about {duration(left)} left")

    def count(self, files: int) -> None:
        self._count = files

    def wait(self, text: str) -> None:
        pass

    def _maybe_log(self, text: str) -> None:
        now = time.monotonic()
        if now - self._logged_s >= _LOG_EVERY_S:
            self._logged_s = now
            self._log(text)


class _ByteLog:
    """Prints an occasional line during a download."""

    def __init__(self, log: PrintsLine, total: int) -> None:
        self._log = log
        self._total = total
        self._received = 0
        self._logged_s = time.monotonic()
        log(f"downloading {total >> 20} MiB")

    def add(self, count: int) -> None:
        self._received += count
        if time.monotonic() - self._logged_s >= _LOG_EVERY_S:
            self._logged_s = time.monotonic()
            self._log(f"{self._received >> 20} of {self._total >> 20} MiB")


def duration(seconds: float) -> str:
    """Format seconds in readable units: "0.4 s", "12 s", "3 min 05 s", "2 h 10 min"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
