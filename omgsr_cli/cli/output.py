"""How the program speaks: results on stdout, everything else on stderr, in one of three modes."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import ClassVar, TypeVar

import typer
from rich.console import Console
from rich.markup import escape

from omgsr_cli.cli.progress import ProgressView, StepView, show_bytes, show_files, show_steps
from omgsr_cli.errors import OmgsrError, UsageError
from omgsr_cli.files.addresses import json_text, shown

View = TypeVar("View")


class Output:
    """Says what a command finds, in the mode that was asked for.

    Args:
        as_json: results are one JSON object a line.
        quiet: no notes, no progress, no summary; errors are always said.
        verbose: notes on single files are said also where they are many.
        mute: say nothing at all, as of several processes all but one do.
    """

    lost: ClassVar[OSError | None] = None
    """Why results could not be written to stdout, if so."""

    def __init__(
        self, *, as_json: bool = False, quiet: bool = False, verbose: bool = False, mute: bool = False
    ) -> None:
        self.as_json = as_json
        self.mute = mute
        self.quiet = quiet or mute
        self.verbose = verbose
        self._errors = Console(stderr=True, highlight=False, soft_wrap=True, emoji=False)
        self._has_bars = False

    def result(self, text: str | Path, record: Mapping[str, object]) -> None:
        """Say a result: its text, or its record; a path is given to a program as it is, and to a person escaped."""
        if self.mute:
            return
        if isinstance(text, Path):
            text = shown(text) if sys.stdout.isatty() else str(text)
        line = json_text(record) if self.as_json else text
        if self._has_bars and sys.stdout.isatty():
            # Both streams are one screen: only its console knows how to print above the bars.
            self._print(escape(line))
            return
        try:
            # In a line of text a name that is not valid Unicode comes out as the bytes it is.
            sys.stdout.buffer.write(line.encode("utf-8", "surrogateescape") + b"\n")
            sys.stdout.buffer.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            # The work goes on; that its results were not listed is an error at the end.
            Output.lost = error

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
        self._print(f"[bold red]error:[/] {escape(shown(error.message))}")
        if error.hint:
            self._print(f"[cyan]hint:[/] {escape(shown(error.hint))}")

    def confirm(self, question: str, *, yes: bool, hint: str) -> None:
        """Ask before something that a person should decide; `yes` has answered already.

        Raises:
            UsageError: nobody can be asked here.
            typer.Abort: the answer is no.
        """
        if yes:
            return
        if sys.stdin is None or not sys.stdin.isatty():
            raise UsageError(f"nobody is here to ask: {question}", hint)
        typer.confirm(question, abort=True, err=True)

    def progress(self, count: int | None, what: str = "files") -> AbstractContextManager[ProgressView]:
        """Show progress through many items: bars on a terminal, an occasional line elsewhere.

        Args:
            count: number of items; None if it is not known yet.
            what: plural name of the items.
        """
        return self._with_bars(show_files(self._terminal, self.note, count, what))

    def steps(self, total: int) -> AbstractContextManager[StepView]:
        """Show progress through one long computation: a live line on a terminal, an occasional line elsewhere."""
        return self._with_bars(show_steps(self._terminal, self.note, total))

    def download(self, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """Show progress of a download of `total` bytes: a bar on a terminal, an occasional line elsewhere."""
        return self._with_bars(show_bytes(self._terminal, self.note, total))

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
        """Where bars are shown; elsewhere notes are said, which are none if it is to be quiet."""
        return self._errors if self._errors.is_terminal and not self.quiet else None

    def _say(self, text: str) -> None:
        self._print(escape(text))

    def _print(self, markup: str) -> None:
        # Where not even stderr can be written, nobody can be told.
        with suppress(OSError):
            self._errors.print(markup)
