"""The program: its commands, and the only module that turns errors into lines and exit codes."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from typer.core import TyperGroup
from typer.exceptions import Abort, Exit, TyperException

from omgsr_cli.cli.bench import BenchCommand, bench
from omgsr_cli.cli.doctor import doctor
from omgsr_cli.cli.help import Command, Group
from omgsr_cli.cli.models import models
from omgsr_cli.cli.output import Output
from omgsr_cli.cli.status import status
from omgsr_cli.cli.timestep import TimestepCommand, timestep
from omgsr_cli.cli.train import TrainCommand, train
from omgsr_cli.cli.upscale import UpscaleCommand, upscale
from omgsr_cli.errors import OmgsrError, UsageError, write_error
from omgsr_cli.files.folders import FORMAT_OF_SUFFIX
from omgsr_cli.files.remembered import forget_notes, take_notes

FAILED, USAGE, INTERRUPTED = 1, 2, 130


class _Program(Group):
    """The program's commands."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Find the typed command; raise an error with a hint if the user typed an image or folder instead."""
        name = args[0]
        if self.get_command(ctx, name) is None and not ctx.resilient_parsing:
            suffix = Path(name).suffix.lower()
            command = "train" if suffix == ".toml" else "upscale"
            if suffix in FORMAT_OF_SUFFIX or suffix == ".toml" or "/" in name or os.path.exists(name):
                raise UsageError(f"{name} is not a command", f"omgsr {command} {shlex.join(args)}")
        return super().resolve_command(ctx, args)


app = typer.Typer(
    name="omgsr",
    cls=_Program,
    help="Restore and upscale real photographs with one step of a diffusion model.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(cls=UpscaleCommand)(upscale)
app.command(cls=BenchCommand)(bench)
app.command(cls=TimestepCommand)(timestep)
app.command(cls=Command)(doctor)
app.add_typer(models)
app.command(cls=TrainCommand)(train)
app.command(cls=Command)(status)


@app.command("help", cls=Command)
def show_help(
    commands: Annotated[
        list[str] | None, typer.Argument(metavar="COMMAND", help="Such as upscale, or models pull.")
    ] = None,
) -> Any:
    """Show the help of a command."""
    return program()([*(commands or ()), "--help"], prog_name="omgsr", standalone_mode=False)


def _show_version(wanted: bool) -> None:
    if wanted:
        from omgsr_cli.packages import version_text

        Output().result(f"omgsr {version_text()}", {})
        raise typer.Exit


@app.callback()
def _omgsr(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Restore and upscale real photographs with one step of a diffusion model."""


@cache
def program() -> TyperGroup:
    """Return the program's commands; typer reads the annotations of all commands to build them."""
    return cast("TyperGroup", typer.main.get_command(app))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program and exit: 0 success, 1 failure, 2 usage error, 130 interrupted, 143 SIGTERM.

    Ctrl-C is the usual end of `upscale --watch`, which is then 0 or 1.
    """
    _open_closed_streams()
    signals: list[int] = []

    def interrupt(number: int, frame: object) -> None:
        signals.append(number)
        raise KeyboardInterrupt

    # SIGTERM ends the program in the same way as Ctrl-C: temporary files are removed, finished results stay.
    signal.signal(signal.SIGTERM, interrupt)
    code = run(arguments)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            # Prevent a second error when Python closes the stream.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(128 + signals[0] if signals else code)


def _open_closed_streams() -> None:
    """Open files for standard streams that the caller closed, so that no other file gets their descriptor.

    Reading from stdin and writing to stdout then fail, as with closed streams; output to stderr is discarded.
    """
    for number, name, mode, flags in (
        (0, "stdin", "r", os.O_WRONLY),
        (1, "stdout", "w", os.O_RDONLY),
        (2, "stderr", "w", os.O_WRONLY),
    ):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, flags)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            file = open(number, mode, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115 - open until the program ends
            setattr(sys, name, file)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the program and return its exit code; print a user's error as one line, and let unexpected errors through."""
    output, Output.lost = Output(), None
    forget_notes()
    try:
        code = program()(args=None if arguments is None else list(arguments), prog_name="omgsr", standalone_mode=False)
    except OmgsrError as error:
        if os.environ.get("OMGSR_DEBUG") == "1":
            raise
        output.error(error)
        return USAGE if isinstance(error, UsageError) else FAILED
    except Exit as error:
        code = error.exit_code
    except TyperException as error:
        message = error.format_message().rstrip(".")
        if not message:  # without a command, typer has already printed the help
            return error.exit_code
        typed = _typed_command(sys.argv[1:] if arguments is None else arguments)
        output.error(UsageError(message, f"see {typed} --help"))
        return error.exit_code
    except (KeyboardInterrupt, Abort):
        code = INTERRUPTED
    except BrokenPipeError:
        # The reader of the results has ended; prevent a second error when Python closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        if not _is_stdouts(error):
            raise
        Output.lost, code = error, FAILED
    for text in take_notes():
        output.note(text)
    if Output.lost is not None:
        output.error(write_error("standard output", Output.lost))
        code = code or FAILED
    # Typer returns this code if a command was interrupted, and raises if typer itself was interrupted.
    if code == INTERRUPTED:
        output.message("interrupted; finished results are kept, re-run the command to resume")
    return code if isinstance(code, int) else 0


def _typed_command(words: Sequence[str]) -> str:
    """The command that was typed, such as "omgsr models pull"; not all errors of typer name it."""
    command: Any = program()
    names = ["omgsr"]
    for word in words:
        command = getattr(command, "commands", {}).get(word)
        if command is None:
            break
        names.append(word)
    return " ".join(names)


def _is_stdouts(error: OSError) -> bool:
    """Whether an error comes from a library that prints help to stdout."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    writer = "" if last is None else str(last.tb_frame.f_globals.get("__name__", ""))
    return writer.partition(".")[0] in ("click", "rich", "typer")
