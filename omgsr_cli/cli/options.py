"""Options that several commands share, and functions that parse their values."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from omgsr_cli.cli.help import show_all

if TYPE_CHECKING:
    from omgsr_cli.engines.work import Engine as RunsTasks
    from omgsr_cli.options import EngineOptions

MODEL, DATA, FILES, MANY, OUTPUT = "Model", "Data", "Files", "Many images", "Output and logging"
"""The headings under which the help of a command lists its options."""


def option(panel: str, text: str, *names: str, shown: str | None = None, **more: Any) -> Any:
    """Return a typer option with its help text under a heading.

    Args:
        panel: the heading.
        text: the help text.
        names: names on the command line, if they differ from the parameter's name.
        shown: the default that the help shows.
        more: as for `typer.Option`.
    """
    return typer.Option(*names, help=text, rich_help_panel=panel, show_default=True if shown is None else shown, **more)


Base = Annotated[str | None, option(MODEL, "Base model of --adapter.", metavar="FOLDER|REPO")]
Adapter = Annotated[Path | None, option(MODEL, "Adapter in the published layout.", metavar="FOLDER")]
Devices = Annotated[
    str | None,
    option(
        MODEL,
        "Device: cuda, mps, xpu or cpu; several, such as cuda:0,cuda:1; or all.",
        "--device",
        metavar="NAME,...",
        shown="the first available",
    ),
]
Precision = Annotated[str, option(MODEL, "Precision of the weights.", metavar="auto|fp32|bf16|fp16")]
Workers = Annotated[int | None, option(MANY, "Number of processes.", metavar="N", shown="one per device")]
Shard = Annotated[
    str | None,
    option(
        MANY,
        "Process only part I of N, such as 1/8; auto reads RANK and WORLD_SIZE, or a SLURM array.",
        metavar="I/N|auto",
    ),
]
AsJson = Annotated[bool, option(OUTPUT, "Print one JSON object per line on stdout.", "--json")]
Quiet = Annotated[bool, option(OUTPUT, "Print errors only.", "--quiet", "-q")]
Verbose = Annotated[bool, option(OUTPUT, "Print details of every file.", "--verbose", "-v")]
HelpAll = Annotated[bool, option(OUTPUT, "Show all options and exit.", "--help-all", callback=show_all, is_eager=True)]


def parse_factor(text: str | float) -> float:
    """Parse a factor such as 2, 2x or x2.

    Raises:
        ValueError: the text is not a number.
    """
    return float(re.sub(r"^\s*[x\u00d7]|[x\u00d7]\s*$", "", str(text).lower(), count=1))


def first_device(text: str | None) -> str | None:
    """Return the first of several devices; None means any device."""
    return None if text in (None, "all") else text.partition(",")[0]


def choose_engine(options: EngineOptions, jobs: int | None) -> RunsTasks:
    """Choose the engine for a number of jobs; None means millions. A single job always runs in this process.

    Raises:
        DeviceError: a device does not exist.
    """
    are_many = jobs is None or jobs > 1
    if options.engine == "ray" and are_many:
        from omgsr_cli.engines.ray_actors import RayActors

        return RayActors(options.device, options.workers, options.address)
    from omgsr_cli.engines.local import choose_local, plan_places
    from omgsr_cli.models.devices import named_devices

    return choose_local(plan_places(named_devices(options.device), options.workers if are_many else 1))
