"""The options of `omgsr upscale` alone, in the order in which they are told."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from omgsr_cli.cli.params import FILES, MODEL, SPREAD, TALK, parse_factor
from omgsr_cli.presets import DEFAULT_PRESET

SIZE, RESTORATION = "Size", "Restoration"

Inputs = Annotated[
    list[str],
    typer.Argument(metavar="INPUT", help="Pictures, folders, globs, .txt lists, s3://..., or - for stdin to stdout."),
]

Output = Annotated[
    str | None,
    typer.Option("-o", "--output", metavar="OUT", help="File, folder or URL for the results.", rich_help_panel=FILES),
]

Scale = Annotated[
    float | None,
    typer.Option(
        metavar="F",
        parser=parse_factor,
        help="Factor on both sides, 0.5 to 16 \\[the model's, 4].",
        rich_help_panel=SIZE,
    ),
]

Size = Annotated[str | None, typer.Option(metavar="WxH", help="Exact size in pixels.", rich_help_panel=SIZE)]

LongSide = Annotated[int | None, typer.Option(metavar="N", help="Pixels of the longer side.", rich_help_panel=SIZE)]

ShortSide = Annotated[int | None, typer.Option(metavar="N", help="Pixels of the shorter side.", rich_help_panel=SIZE)]

Print = Annotated[
    str | None,
    typer.Option(
        "--print",
        metavar="WxHcm",
        help="Largest size that fits on such a print, at --dpi \\[300]; also mm or in.",
        rich_help_panel=SIZE,
    ),
]

ProcessScale = Annotated[
    str,
    typer.Option(
        metavar="F|auto",
        help="Restore at F times the input at least, then reduce; 1 is fast but weak \\[auto: the model's, 4].",
        rich_help_panel=SIZE,
    ),
]

ProcessSize = Annotated[
    int | None,
    typer.Option(metavar="N", help="Restore at no less than this short side \\[the model's].", rich_help_panel=SIZE),
]

Model = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|FOLDER",
        envvar="OMGSR_MODEL",
        help=f"Preset, model folder or hub repository \\[{DEFAULT_PRESET}].",
        rich_help_panel=MODEL,
    ),
]

MidTimestep = Annotated[
    int | None,
    typer.Option(metavar="T", help="Timestep of the one step, 0 to 999 \\[the model's].", rich_help_panel=MODEL),
]

Prompt = Annotated[
    str | None, typer.Option(metavar="TEXT", help="Condition the model on a text.", rich_help_panel=MODEL)
]

Vae = Annotated[
    str | None,
    typer.Option(
        metavar="tiny|PATH|REPO",
        help="Decode by TAESD or another AutoencoderTiny: faster, but coarser.",
        rich_help_panel=MODEL,
    ),
]

Seed = Annotated[
    int | None,
    typer.Option(metavar="N", help="Sample the latents instead of taking their mean.", rich_help_panel=MODEL),
]

Compile = Annotated[
    bool, typer.Option("--compile", help="Compile the network first; for many pictures.", rich_help_panel=MODEL)
]

ColorFix = Annotated[
    str | None,
    typer.Option(
        metavar="adain|wavelet|none",
        help="How the input's colours are brought back \\[what suits the model].",
        rich_help_panel=RESTORATION,
    ),
]

Strength = Annotated[
    float,
    typer.Option(metavar="F", help="Blend with plain upscaling: 0 is plain, 1 restored.", rich_help_panel=RESTORATION),
]

Tile = Annotated[
    str, typer.Option(metavar="auto|off|N", help="Side of the step's tiles in pixels.", rich_help_panel=RESTORATION)
]

Overlap = Annotated[int | None, typer.Option(metavar="N", help="Pixels that tiles share.", rich_help_panel=RESTORATION)]

Batch = Annotated[int, typer.Option(metavar="N", help="Tiles that are computed together.", rich_help_panel=RESTORATION)]

Memory = Annotated[
    str | None,
    typer.Option(
        metavar="N[M|G]",
        help="Memory to work in beside the weights, such as 800M or 4G \\[half of what is free].",
        rich_help_panel=RESTORATION,
    ),
]

Recursive = Annotated[
    bool, typer.Option("--recursive", "-r", help="Go into the folders' folders.", rich_help_panel=FILES)
]

Suffix = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="Added to names \\[_x4 beside the input].", rich_help_panel=FILES),
]

Format = Annotated[
    str,
    typer.Option(
        "--format", metavar="FORMAT", help="Of the results: same, png, jpg, webp, tiff or avif.", rich_help_panel=FILES
    ),
]

Quality = Annotated[int | None, typer.Option(metavar="N", help="1 to 100, for jpg, webp, avif.", rich_help_panel=FILES)]

Metadata = Annotated[str, typer.Option(metavar="keep|none", help="EXIF, XMP, DPI and texts.", rich_help_panel=FILES)]

Dpi = Annotated[
    str,
    typer.Option(
        metavar="keep|scale|N",
        help="Dots per inch: the input's, these times the scale (same print size), or N.",
        rich_help_panel=FILES,
    ),
]

KeepTimes = Annotated[
    bool, typer.Option("--keep-times", help="Give results the file times of their inputs.", rich_help_panel=FILES)
]

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.", rich_help_panel=FILES)]

Compare = Annotated[bool, typer.Option("--compare", help="Write a before/after picture beside.", rich_help_panel=FILES)]

DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.", rich_help_panel=TALK)
]

Devices = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="NAME,...",
        help="cuda, mps, xpu or cpu; several as cuda:0,cuda:1; or all \\[the first that is there].",
        rich_help_panel=MODEL,
    ),
]

Workers = Annotated[
    int | None, typer.Option(metavar="N", help="Processes \\[one for each device].", rich_help_panel=SPREAD)
]

Shard = Annotated[
    str | None,
    typer.Option(
        metavar="I/N|auto",
        help="Only the I-th of N parts, as 1/8; auto asks RANK and WORLD_SIZE, or a SLURM array.",
        rich_help_panel=SPREAD,
    ),
]

Report = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Add a JSON line for each picture; see omgsr status.", rich_help_panel=SPREAD),
]

RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Only what --report says has failed.", rich_help_panel=SPREAD)
]

Engine = Annotated[
    str, typer.Option(metavar="local|ray", help="Processes of this machine, or Ray's actors.", rich_help_panel=SPREAD)
]

Address = Annotated[
    str | None,
    typer.Option(metavar="auto|URL", help="Ray cluster \\[one of this machine alone].", rich_help_panel=SPREAD),
]
