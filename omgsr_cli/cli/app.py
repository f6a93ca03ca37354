"""The program: its commands, and the one place where errors become lines and exit codes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import Annotated

import typer
from typer.exceptions import Abort, Exit, TyperException

from omgsr_cli import __version__
from omgsr_cli.cli.bench import bench
from omgsr_cli.cli.doctor import doctor
from omgsr_cli.cli.help_screen import Command, Group
from omgsr_cli.cli.models import models
from omgsr_cli.cli.output import Output
from omgsr_cli.cli.status import status
from omgsr_cli.cli.timestep import timestep
from omgsr_cli.cli.train import train
from omgsr_cli.cli.upscale import upscale
from omgsr_cli.errors import OmgsrError, UsageError, write_error
from omgsr_cli.files.remembered import forget_notes, take_notes

FAILED, USAGE, INTERRUPTED = 1, 2, 130

app = typer.Typer(
    name="omgsr",
    cls=Group,
    help="Restore and enlarge real photographs with one step of a diffusion model.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(cls=Command)(upscale)
app.command(cls=Command)(bench)
app.command(cls=Command)(timestep)
app.command(cls=Command)(doctor)
app.add_typer(models)
app.command(cls=Command)(train)
app.command(cls=Command)(status)


def _show_version(wanted: bool) -> None:
    if wanted:
        Output().result(f"omgsr {__version__}", {"version": __version__})
        raise typer.Exit


@app.callback()
def _omgsr(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Restore and enlarge real photographs with one step of a diffusion model."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the program and exit: 0 done, 1 something failed, 2 usage, 130 interrupted, 143 by SIGTERM."""
    _open_closed_streams()
    heard: list[int] = []

    def interrupt(number: int, frame: object) -> None:
        heard.append(number)
        raise KeyboardInterrupt

    # What ends a process politely ends it as Ctrl-C does: temporary files go, what is finished stays.
    signal.signal(signal.SIGTERM, interrupt)
    code = run(arguments)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            # Python must not complain again while it closes it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    sys.exit(128 + heard[0] if heard and code == INTERRUPTED else code)


def _open_closed_streams() -> None:
    """Give standard streams that the caller has closed a file, so that no other file takes their number.

    What is read from or written to these fails, as if they were still closed; stderr takes all, as nobody can be told.
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
            file = open(number, mode, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115 - kept for as long as the program
            setattr(sys, name, file)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the program; every error that a user can cause is one line, an unknown one keeps its traceback."""
    output, Output.lost = Output(), None
    forget_notes()
    try:
        code = app(args=None if arguments is None else list(arguments), prog_name="omgsr", standalone_mode=False)
    except OmgsrError as error:
        if os.environ.get("OMGSR_DEBUG") == "1":
            raise
        output.error(error)
        return USAGE if isinstance(error, UsageError) else FAILED
    except Exit as error:
        code = error.exit_code
    except TyperException as error:
        message = error.format_message().rstrip(".")
        if not message:  # no command was given, and the help has been shown
            return error.exit_code
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "omgsr"
        output.error(UsageError(message, f"see {command} --help"))
        return error.exit_code
    except (KeyboardInterrupt, Abort):
        code = INTERRUPTED
    except BrokenPipeError:
        # Whoever read our results has gone; Python must not complain again while it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except OSError as error:
        if not _is_stdouts(error):
            raise
        Output.lost, code = error, FAILED
    for text in take_notes():
        output.note(f"note: {text}")
    if Output.lost is not None:
        output.error(write_error("standard output", Output.lost))
        code = code or FAILED
    # An interruption of a command comes as its code from typer, one of typer itself as an exception.
    if code == INTERRUPTED:
        output.note("interrupted; what is finished stays, the same command goes on from here")
    return code if isinstance(code, int) else 0


def _is_stdouts(error: OSError) -> bool:
    """Whether an error comes from what writes help to stdout, which is no code of ours."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    writer = "" if last is None else str(last.tb_frame.f_globals.get("__name__", ""))
    return writer.partition(".")[0] in ("click", "rich", "typer")
