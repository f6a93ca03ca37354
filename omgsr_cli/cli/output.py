"""How the program speaks: results on stdout, everything else on stderr, in one of three modes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import typer
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

from omgsr_cli.errors import OmgsrError, UsageError
from omgsr_cli.files.inputs import shown

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


class Output:
    """Says what a command finds, in the mode that was asked for.

    Args:
        as_json: results are one JSON object a line.
        quiet: no notes, no progress, no summary; errors are always said.
        verbose: notes on single files are said also where they are many.
        mute: say nothing at all, as of several processes all but one do.
    """

    def __init__(
        self, *, as_json: bool = False, quiet: bool = False, verbose: bool = False, mute: bool = False
    ) -> None:
        self.as_json = as_json
        self.mute = mute
        self.quiet = quiet or mute
        self.verbose = verbose
        self._errors = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)

    def result(self, text: str | Path, record: Mapping[str, object]) -> None:
        """Say a result: its text, or its record; a path is given to a program as it is, and to a person escaped."""
        if self.mute:
            return
        if isinstance(text, Path):
            text = shown(text) if sys.stdout.isatty() else str(text)
        line = json.dumps(record, ensure_ascii=False) if self.as_json else text
        # A name that is not valid Unicode must come out as the bytes it is.
        sys.stdout.buffer.write(line.encode("utf-8", "surrogateescape") + b"\n")
        sys.stdout.buffer.flush()

    def note(self, text: str) -> None:
        """Say something worth knowing."""
        if not self.quiet:
            self._say(text)

    def detail(self, text: str) -> None:
        """Say something only where everything was asked for."""
        if self.verbose:
            self._say(text)

    def error(self, error: OmgsrError) -> None:
        """Say what went wrong, and what to do next."""
        if self.mute:
            return
        self._errors.print(f"[bold red]error:[/] {escape(shown(error.message))}")
        if error.hint:
            self._errors.print(f"[cyan]hint:[/] {escape(shown(error.hint))}")

    def confirm(self, question: str, *, yes: bool, hint: str) -> None:
        """Ask before something that a person should decide; `yes` has answered already.

        Raises:
            UsageError: nobody can be asked here.
            typer.Abort: the answer is no.
        """
        if yes:
            return
        if not sys.stdin.isatty():
            raise UsageError(f"nobody is here to ask: {question}", hint)
        typer.confirm(question, abort=True, err=True)

    @contextmanager
    def progress(self, count: int | None, what: str = "files") -> Iterator[ProgressView]:
        """Show how far the work on so many of something has come: bars on a terminal, a line now and then elsewhere.

        Args:
            count: how many; None where this is not known yet.
            what: they are.
        """
        if self.quiet:
            yield _Silence()
        elif not self._errors.is_terminal:
            yield _Log(self, count, what)
        else:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(True))
            with Progress(*columns, console=self._errors, transient=True) as progress:
                yield _Bars(progress, count, what)

    @contextmanager
    def steps(self, total: int) -> Iterator[StepView]:
        """Show how far one long computation is: a live line on a terminal, a line now and then elsewhere."""
        if self.quiet:
            yield lambda done, text: None
        elif not self._errors.is_terminal:
            yield _StepLog(self, total)
        else:
            columns = (BarColumn(24), MofNCompleteColumn(), TextColumn("{task.description}"))
            with Progress(*columns, console=self._errors, transient=True) as progress:
                task = progress.add_task("", total=total)
                yield lambda done, text: progress.update(task, completed=done, description=escape(text))

    @contextmanager
    def download(self, total: int) -> Iterator[Callable[[int], None]]:
        """Show how many bytes of so many have come: a bar on a terminal, a line now and then elsewhere."""
        if self.quiet:
            yield lambda count: None
        elif not self._errors.is_terminal:
            yield _ByteLog(self, total).add
        else:
            columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
            with Progress(*columns, console=self._errors, transient=True) as progress:
                task = progress.add_task("", total=total)
                yield lambda count: progress.advance(task, count)

    def _say(self, text: str) -> None:
        self._errors.print(escape(text))


class _StepLog:
    """Says the first step, the last, and some in between."""

    def __init__(self, output: Output, total: int) -> None:
        self._output, self._total = output, total
        self._said: float | None = None

    def __call__(self, done: int, text: str) -> None:
        now = time.monotonic()
        if self._said is None or done == self._total or now - self._said >= _LOG_EVERY_S:
            self._said = now
            self._output.note(f"{done} of {self._total}: {text}")


class _Silence:
    def start(self, name: str) -> None:
        pass

    def tiles(self, done: int, total: int) -> None:
        pass

    def finish(self) -> None:
        pass

    def count(self, files: int) -> None:
        pass


class _Bars:
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
    def __init__(self, output: Output, count: int | None, what: str) -> None:
        self._output = output
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
            self._output.note(text)


class _ByteLog:
    def __init__(self, output: Output, total: int) -> None:
        self._output = output
        self._total = total
        self._came = 0
        self._said = time.monotonic()
        output.note(f"fetching {total >> 20} MiB")

    def add(self, count: int) -> None:
        self._came += count
        if time.monotonic() - self._said >= _LOG_EVERY_S:
            self._said = time.monotonic()
            self._output.note(f"{self._came >> 20} of {self._total >> 20} MiB")


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
