"""The options of `omgsr timestep` alone, in the order in which they are told."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from omgsr_cli.cli.params import DATA, FILES, MODEL, parse_factor
from omgsr_cli.presets import DEFAULT_PRESET

Data = Annotated[
    list[str],
    typer.Option(metavar="HQ", help="Sharp pictures: folder, file or .txt list; repeatable.", rich_help_panel=DATA),
]

Lq = Annotated[
    list[str] | None,
    typer.Option(metavar="LQ", help="Their real low-quality partners, by name.", rich_help_panel=DATA),
]

Degradation = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        help="omgsr, reference, light or a TOML file \\[omgsr; for omgsr-tiny reference].",
        rich_help_panel=DATA,
    ),
]

Resolution = Annotated[
    int | None,
    typer.Option(metavar="N", help="Side of the crops \\[512; pairs: whole pictures].", rich_help_panel=DATA),
]

Scale = Annotated[
    float, typer.Option(metavar="F", parser=parse_factor, help="Crop over its degraded size.", rich_help_panel=DATA)
]

OnSmall = Annotated[
    str, typer.Option(metavar="skip|resize|pad", help="Pictures smaller than a crop.", rich_help_panel=DATA)
]

MaxSamples = Annotated[
    int | None,
    typer.Option(metavar="N", help="No more samples than this \\[one a picture].", rich_help_panel=DATA),
]

UntilStable = Annotated[
    int | None,
    typer.Option(metavar="N", help="Go on until the interval is narrower than N.", rich_help_panel=DATA),
]

Seed = Annotated[int, typer.Option(metavar="N", help="Of crops, degradation and interval.", rich_help_panel=DATA)]

Model = Annotated[
    str | None,
    typer.Option(metavar="NAME|FOLDER", help=f"Preset or folder \\[{DEFAULT_PRESET}].", rich_help_panel=MODEL),
]

Base = Annotated[
    str | None,
    typer.Option(metavar="FOLDER|REPO", help="Pre-trained model: its VAE and schedule.", rich_help_panel=MODEL),
]

Vae = Annotated[
    str | None,
    typer.Option(metavar="FOLDER|FILE", help="Another AutoencoderKL or AutoencoderTiny.", rich_help_panel=MODEL),
]

Batch = Annotated[int, typer.Option(metavar="N", help="Images encoded together.", rich_help_panel=MODEL)]

Workers = Annotated[
    int | None, typer.Option(metavar="N", help="Processes \\[one for each device].", rich_help_panel=MODEL)
]

Shard = Annotated[
    str | None,
    typer.Option(
        metavar="I/N|auto",
        help="Measure the I-th of N parts only, as 1/8, for the same command without it.",
        rich_help_panel=MODEL,
    ),
]

Plot = Annotated[Path | None, typer.Option(metavar="FILE.png|svg", help="Draw the curve.", rich_help_panel=FILES)]

Csv = Annotated[Path | None, typer.Option(metavar="FILE", help="One line a picture.", rich_help_panel=FILES)]

Write = Annotated[
    Path | None,
    typer.Option(metavar="CONFIG.toml", help="Put the value into a training configuration.", rich_help_panel=FILES),
]

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace --plot and --csv files.", rich_help_panel=FILES)]
