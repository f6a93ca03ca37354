"""The options of `omgsr timestep`, in the order of its help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from omgsr_cli.cli.params import DATA, FILES, MODEL, parse_factor
from omgsr_cli.presets import DEFAULT_PRESET

Data = Annotated[
    list[str],
    typer.Option(
        metavar="HQ", help="High-quality images: folder, file or .txt list; repeatable.", rich_help_panel=DATA
    ),
]

Lq = Annotated[
    list[str] | None,
    typer.Option(metavar="LQ", help="Use real low-quality partners with the same names.", rich_help_panel=DATA),
]

Degradation = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FILE",
        help="omgsr, reference, light or a TOML file \\[omgsr; reference for omgsr-tiny].",
        rich_help_panel=DATA,
    ),
]

Resolution = Annotated[
    int | None,
    typer.Option(
        metavar="N", help="Side of the crops in pixels \\[512; whole images with --lq].", rich_help_panel=DATA
    ),
]

Scale = Annotated[
    float, typer.Option(metavar="F", parser=parse_factor, help="Reduce crops by this factor.", rich_help_panel=DATA)
]

OnSmall = Annotated[
    str, typer.Option(metavar="skip|resize|pad", help="Treatment of images smaller than a crop.", rich_help_panel=DATA)
]

MaxSamples = Annotated[
    int | None,
    typer.Option(metavar="N", help="Measure at most N samples \\[one per image].", rich_help_panel=DATA),
]

UntilStable = Annotated[
    int | None,
    typer.Option(metavar="N", help="Add samples until the interval is narrower than N.", rich_help_panel=DATA),
]

Seed = Annotated[int, typer.Option(metavar="N", help="Seed of crops, degradation and interval.", rich_help_panel=DATA)]

Model = Annotated[
    str | None,
    typer.Option(metavar="NAME|FOLDER", help=f"Preset or folder \\[{DEFAULT_PRESET}].", rich_help_panel=MODEL),
]

Base = Annotated[
    str | None,
    typer.Option(metavar="FOLDER|REPO", help="Use VAE and schedule of this pre-trained model.", rich_help_panel=MODEL),
]

Vae = Annotated[
    str | None,
    typer.Option(metavar="FOLDER|FILE", help="Use another AutoencoderKL or AutoencoderTiny.", rich_help_panel=MODEL),
]

Batch = Annotated[int, typer.Option(metavar="N", help="Encode N images together.", rich_help_panel=MODEL)]

Workers = Annotated[
    int | None, typer.Option(metavar="N", help="Number of processes \\[one per device].", rich_help_panel=MODEL)
]

Shard = Annotated[
    str | None,
    typer.Option(
        metavar="I/N|auto",
        help="Measure only part I of N, such as 1/8; without it, combine all parts.",
        rich_help_panel=MODEL,
    ),
]

Plot = Annotated[Path | None, typer.Option(metavar="FILE.png|svg", help="Draw the curve.", rich_help_panel=FILES)]

Csv = Annotated[Path | None, typer.Option(metavar="FILE", help="Write one row per image.", rich_help_panel=FILES)]

Write = Annotated[
    Path | None,
    typer.Option(metavar="CONFIG.toml", help="Write the value into a training configuration.", rich_help_panel=FILES),
]

Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace existing --plot and --csv files.", rich_help_panel=FILES)
]
