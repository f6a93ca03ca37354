"""`omgsr status`: show the state of a run from its reports."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from omgsr_cli.batch.reports import RunState, read_reports
from omgsr_cli.cli import options as shared
from omgsr_cli.cli.output import Output
from omgsr_cli.cli.progress import duration
from omgsr_cli.files.addresses import shown

# datetime refuses times after the year 9999, which only damaged reports contain.
_LAST_YEAR = 250e9


def status(
    reports: Annotated[list[Path], typer.Argument(metavar="REPORT", help="Files written by --report.")],
    as_json: shared.AsJson = False,
) -> int:
    """Show the progress of a run: finished and failed files with reasons, speed and time left.

    The reports of several parts are added up.
    """
    state = read_reports(reports)
    record = {
        "files": state.files,
        "finished": state.finished,
        "failed": state.failed,
        "left": state.left,
        "files_per_second": None if state.rate is None else round(state.rate, 3),
        "seconds_left": None if state.seconds_left is None else round(state.seconds_left),
        "reasons": dict(state.reasons),
        "watching": state.is_watching,
        "last_result": state.ended,
    }
    Output(as_json=as_json).result(_text(state), record)
    return 0


def _text(state: RunState) -> str:
    of = "" if state.files is None else f" of {state.files}"
    parts = [f"{state.finished}{of} finished"]
    if state.is_watching and 0 < state.ended < _LAST_YEAR:
        parts.append(f"the last at {datetime.fromtimestamp(state.ended):%Y-%m-%d %H:%M:%S}")
    if state.failed:
        parts.append(f"{state.failed} failed")
    if state.rate is not None:
        parts.append(_speed(state.rate))
    if state.left and state.seconds_left is not None:
        parts.append(f"about {duration(state.seconds_left)} left")
    return "\n".join(
        [", ".join(parts), *(f"failed: {count} {shown(reason)}" for reason, count in state.reasons.items())]
    )


def _speed(per_second: float) -> str:
    """Return a text such as "190 files a second" or "2.5 files a minute"."""
    for unit, count in (("second", 1), ("minute", 60), ("hour", 3600)):
        rate = per_second * count
        if rate >= 1 or unit == "hour":
            break
    return f"{rate:,.0f} files a {unit}" if rate >= 10 else f"{rate:.1f} files a {unit}"
