"""Print results on stdout and everything else on stderr, in one of three modes."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import ClassVar, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from omgsr_cli.cli.progress import FileProgress, ShowsStep, show_bytes, show_files, show_steps
from omgsr_cli.errors import OmgsrError, UsageError
from omgsr_cli.files.addresses import json_text, shown

View = TypeVar("View")

# Width of a table if stdout is not a terminal.
PIPED_COLUMNS = 200


class Output:
    """Prints the output of a command in the requested mode.

    Text is wrapped at words on a terminal; elsewhere lines are not wrapped.

    Args:
        as_json: print one JSON object per result and line.
        quiet: print no notes, progress or summary; errors are always printed.
        verbose: print details too.
        mute: print nothing; for all but one of several training processes.
    """

    lost: ClassVar[OSError | None] = None
    """The error of a failed write to stdout, or None."""

    def __init__(
        self, *, as_json: bool = False, quiet: bool = False, verbose: bool = False, mute: bool = False
    ) -> None:
        self.as_json = as_json
        self.mute = mute
        self.quiet = quiet or mute
        self.verbose = verbose
        self._errors = Console(stderr=True, highlight=False, emoji=False)
        self._has_bars = False
        self._hint: str | None = None

    def result(self, text: str | Path, record: Mapping[str, object]) -> None:
        """Print a result: its text, or its record with --json.

        A path is never wrapped; it is escaped on a terminal and unchanged in a pipe or file.
        """
        if self.mute:
            return
        columns = terminal_columns()
        if self.as_json:
            line = json_text(record)
        elif isinstance(text, Path):
            line = shown(text) if columns else str(text)
        else:
            line = _wrapped(text, columns) if columns else text
        if self._has_bars and columns:
            # Both streams share one screen, and only the console of the bars can print above them.
            self._print(escape(line), soft_wrap=True)
            return
        try:
            # Write a file name that is not valid Unicode as its original bytes.
            sys.stdout.buffer.write(line.encode("utf-8", "surrogateescape") + b"\n")
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            # Continue the work, and report the lost results as an error at the end.
            Output.lost = error

    def table(
        self, headings: Sequence[str], rows: Sequence[Sequence[str]], records: Sequence[Mapping[str, object]]
    ) -> None:
        """Print results as a table with one row each, or their records with --json."""
        if self.as_json:
            for record in records:
                self.result("", record)
            return
        columns = terminal_columns()
        table = Table(box=None, pad_edge=False, header_style="bold", show_header=any(headings))
        for heading in headings:
            table.add_column(escape(heading))
        for row in rows:
            table.add_row(*map(escape, row))
        text, width = io.StringIO(), columns or PIPED_COLUMNS
        Console(file=text, force_terminal=bool(columns), width=width, highlight=False, emoji=False).print(table)
        self.result("\n".join(line.rstrip() for line in text.getvalue().splitlines()), {})

    def message(self, text: str, *, detail: bool = False) -> None:
        """Print a line about the run, such as its summary; print a detail only with --verbose."""
        if self.verbose if detail else not self.quiet:
            self._print(escape(text))

    def note(self, text: str, *, detail: bool = False) -> None:
        """Print a note about skipped, dropped or changed items; print a detail only with --verbose."""
        self.message(f"note: {text}", detail=detail)

    def error(self, error: OmgsrError) -> None:
        """Print an error and its hint, unless that is the hint of the previous error too."""
        if self.mute:
            return
        self._print(f"[bold red]error:[/] {escape(shown(error.message))}")
        if error.hint and error.hint != self._hint:
            self._print(f"[cyan]hint:[/] {escape(shown(error.hint))}")
        self._hint = error.hint

    def confirm(self, question: str, *, yes: bool, hint: str) -> None:
        """Ask for confirmation, unless `yes` is set.

        Raises:
            UsageError: stdin is not a terminal.
            typer.Abort: the answer is no.
        """
        if yes:
            return
        if sys.stdin is None or not sys.stdin.isatty():
            raise UsageError(f"cannot prompt, stdin is not a terminal: {question}", hint)
        typer.confirm(question, abort=True, err=True)

    def loading(self, what: str) -> AbstractContextManager[object]:
        """Show on a terminal what is being loaded."""
        return self._terminal.status(f"Loading {escape(what)}") if self._terminal else nullcontext()

    def progress(
        self, count: int | None, what: str = "files", *, is_live: bool = True
    ) -> AbstractContextManager[FileProgress]:
        """Show progress through many items: bars on a terminal, occasional lines elsewhere.

        Args:
            count: number of items; None if it is not known yet.
            what: plural name of the items.
            is_live: draw the bars all the time, not only when they change.
        """
        return self._with_bars(show_files(self._terminal, self.message, count, what, is_live=is_live))

    def steps(self, total: int) -> AbstractContextManager[ShowsStep]:
        """Show progress through one long computation: a live line on a terminal, occasional lines elsewhere."""
        return self._with_bars(show_steps(self._terminal, self.message, total))

    def download(self, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """Show progress of a download of `total` bytes: a bar on a terminal, occasional lines elsewhere."""
        return self._with_bars(show_bytes(self._terminal, self.message, total))

    @contextmanager
    def _with_bars(self, bars: AbstractContextManager[View]) -> Iterator[View]:
        with bars as view:
            self._has_bars = self._terminal is not None
            try:
                yield view
            finally:
                self._has_bars = False

    @property
    def _terminal(self) -> Console | None:
        """Return the console for live displays; None if lines or nothing are printed instead."""
        return self._errors if self._errors.is_terminal and not self.quiet else None

    def _print(self, markup: str, *, soft_wrap: bool = False) -> None:
        # If writing to stderr fails too, no message can be shown.
        with suppress(OSError):
            self._errors.print(markup, soft_wrap=soft_wrap or not self._errors.is_terminal)


def terminal_columns() -> int | None:
    """Return the width of the terminal that shows results; None if stdout is not a terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _wrapped(text: str, columns: int) -> str:
    """Wrap the lines of a text at words; indent continued lines two columns deeper than their first line."""
    lines = [piece for line in text.split("\n") for piece in _wrapped_line(line, columns)]
    return "\n".join(lines)


def _wrapped_line(line: str, columns: int) -> Iterator[str]:
    content = Text.from_ansi(line)
    if content.cell_len <= columns:
        yield line
        return
    indent = " " * (len(content.plain) - len(content.plain.lstrip()))
    pieces = Text(content.plain.lstrip()).wrap(Console(), max(columns - len(indent) - 2, 10))
    for index, piece in enumerate(pieces):
        yield f"{indent}{'  ' if index else ''}{piece.plain.rstrip()}"
