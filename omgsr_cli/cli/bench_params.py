"""The options of `omgsr bench` alone, in the order of its help."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from omgsr_cli.cli.params import MODEL, parse_factor
from omgsr_cli.presets import DEFAULT_PRESET

Data = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER",
        help="Low-quality images, or a folder with test_LR/ and test_HR/.",
        rich_help_panel="Images",
    ),
]

Hr = Annotated[
    Path | None,
    typer.Option("--hr", metavar="FOLDER", help="Their references, of the same names.", rich_help_panel="Images"),
]

Sr = Annotated[
    list[Path] | None,
    typer.Option("--sr", metavar="FOLDER", help="Images restored before; repeatable.", rich_help_panel="Images"),
]

Recursive = Annotated[bool, typer.Option("--recursive", "-r", help="Search subfolders.", rich_help_panel="Images")]

Scale = Annotated[
    float | None,
    typer.Option(metavar="F", parser=parse_factor, help="Factor without a reference \\[4].", rich_help_panel="Images"),
]

Model = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME|PATH",
        help=f"Preset, folder, bicubic, lanczos or a network's file; repeatable \\[{DEFAULT_PRESET} and bicubic].",
        rich_help_panel=MODEL,
    ),
]

Repeat = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Restore each image N times, for its time.", rich_help_panel=MODEL),
]

Seed = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="N",
        help="Sample latents and draw metrics' crops with it \\[no samples].",
        rich_help_panel="Scores",
    ),
]

Metrics = Annotated[
    str | None,
    typer.Option(
        metavar="A,B",
        help="Names of pyiqa, or paper for all of a paper's \\[psnr,ssim; musiq,clipiqa if installed].",
        rich_help_panel="Scores",
    ),
]

ListMetrics = Annotated[
    bool, typer.Option("--list-metrics", help="Show all metrics, and stop.", rich_help_panel="Scores")
]

ColorSpace = Annotated[
    str, typer.Option(metavar="ycbcr|yiq|rgb", help="What psnr and ssim look at.", rich_help_panel="Scores")
]

CropBorder = Annotated[
    int, typer.Option(min=0, metavar="PX", help="Border that psnr and ssim leave out.", rich_help_panel="Scores")
]

Csv = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Write scores, means and differences.", rich_help_panel="Reports")
]

Html = Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page to look at.", rich_help_panel="Reports")]

HtmlDir = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Keep the page's images beside it.", rich_help_panel="Reports"),
]

Markdown = Annotated[bool, typer.Option("--markdown", help="Tables in Markdown on stdout.", rich_help_panel="Reports")]

Latex = Annotated[bool, typer.Option("--latex", help="Tables in LaTeX on stdout.", rich_help_panel="Reports")]

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing reports.", rich_help_panel="Reports")]

Cache = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", help="Where results are kept between runs \\[the user's cache].", rich_help_panel="Reports"
    ),
]
