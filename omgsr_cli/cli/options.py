"""The options that several commands share, and what their values mean."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from omgsr_cli.cli.help import show_all

if TYPE_CHECKING:
    from omgsr_cli.engines.work import Engine as RunsTasks
    from omgsr_cli.options import EngineOptions

MODEL, DATA, FILES, MANY, OUTPUT = "Model", "Data", "Files", "Many images", "Output and logging"
"""The headings under which the help of a command lists its options."""

Base = Annotated[
    str | None,
    typer.Option(metavar="FOLDER|REPO", help="Base model of --adapter.", rich_help_panel=MODEL),
]
Adapter = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Adapter in the published layout.", rich_help_panel=MODEL),
]
Device = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Device: cuda, cuda:1, mps, xpu or cpu.",
        show_default="the first available",
        rich_help_panel=MODEL,
    ),
]
Devices = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="NAME,...",
        help="Device: cuda, mps, xpu or cpu; several, such as cuda:0,cuda:1; or all.",
        show_default="the first available",
        rich_help_panel=MODEL,
    ),
]
Precision = Annotated[
    str, typer.Option(metavar="auto|fp32|bf16|fp16", help="Precision of the weights.", rich_help_panel=MODEL)
]
Workers = Annotated[
    int | None,
    typer.Option(metavar="N", help="Number of processes.", show_default="one per device", rich_help_panel=MANY),
]
Shard = Annotated[
    str | None,
    typer.Option(
        metavar="I/N|auto",
        help="Process only part I of N, such as 1/8; auto reads RANK and WORLD_SIZE, or a SLURM array.",
        rich_help_panel=MANY,
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object per line on stdout.", rich_help_panel=OUTPUT)
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.", rich_help_panel=OUTPUT)]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print details of every file.", rich_help_panel=OUTPUT)]
HelpAll = Annotated[
    bool,
    typer.Option(
        "--help-all", callback=show_all, is_eager=True, help="Show all options and exit.", rich_help_panel=OUTPUT
    ),
]


def parse_factor(text: str | float) -> float:
    """The number of a factor: 2, 2x or x2.

    Raises:
        ValueError: it is not a number.
    """
    return float(re.sub(r"^\s*[x\u00d7]|[x\u00d7]\s*$", "", str(text).lower(), count=1))


def first_device(text: str | None) -> str | None:
    """The first of several devices; None where any will do."""
    return None if text in (None, "all") else text.partition(",")[0]


def choose_engine(options: EngineOptions, jobs: int | None) -> RunsTasks:
    """The engine for so many jobs; None stands for millions. A single one always runs in this process.

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
