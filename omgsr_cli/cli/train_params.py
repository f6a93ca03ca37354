"""The options of `omgsr train` alone, in the order in which they are told."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from omgsr_cli.cli.params import TALK

CONFIG, RESULT = "Configuration", "What becomes of a run, without training"

Config = Annotated[
    Path | None, typer.Argument(metavar="CONFIG.toml", help="The run; --print-config gives one to begin with.")
]

Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change the configuration: optim.lr=1e-4.", rich_help_panel=CONFIG),
]

Check = Annotated[
    bool,
    typer.Option(
        "--check",
        help="Check files and disk, take two steps, estimate memory and time, and write nothing.",
        rich_help_panel=CONFIG,
    ),
]

PrintConfig = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Print a complete configuration: omgsr-s-512 or omgsr-tiny.",
        rich_help_panel=CONFIG,
    ),
]

Schema = Annotated[
    bool,
    typer.Option("--schema", help="Print the configuration's JSON schema, for editors.", rich_help_panel=CONFIG),
]

Resume = Annotated[
    str,
    typer.Option(metavar="auto|none|PATH", help="Checkpoint to go on from; auto takes the newest if there is one."),
]

Device = Annotated[
    str | None, typer.Option(metavar="NAME", help="cuda, cuda:1, mps, xpu or cpu \\[the first that is there].")
]

Export = Annotated[
    tuple[str, Path] | None,
    typer.Option(
        metavar="merged FOLDER",
        help="Write the newest checkpoint, or that of --resume, as one folder that needs no base model.",
        rich_help_panel=RESULT,
    ),
]

PushToHub = Annotated[
    str | None,
    typer.Option(metavar="OWNER/NAME", help="Upload it with its model card.", rich_help_panel=RESULT),
]

Report = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Draw the curves and validation images of the run in this folder into its report.html.",
        rich_help_panel=RESULT,
    ),
]

AsJson = Annotated[bool, typer.Option("--json", help="One JSON object an event on stdout.", rich_help_panel=TALK)]
