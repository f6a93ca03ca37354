"""The options of `omgsr bench`, in the order of its help."""

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
        help="Folder of low-quality images, or with test_LR/ and test_HR/ \\[bundled images].",
        rich_help_panel="Images",
    ),
]

Hr = Annotated[
    Path | None,
    typer.Option("--hr", metavar="FOLDER", help="Folder of references with the same names.", rich_help_panel="Images"),
]

Sr = Annotated[
    list[Path] | None,
    typer.Option(
        "--sr", metavar="FOLDER", help="Folder of images restored before; repeatable.", rich_help_panel="Images"
    ),
]

Recursive = Annotated[bool, typer.Option("--recursive", "-r", help="Search subfolders.", rich_help_panel="Images")]

Scale = Annotated[
    float | None,
    typer.Option(
        metavar="F",
        parser=parse_factor,
        help="Scale of images without a reference \\[the model's, 4].",
        rich_help_panel="Images",
    ),
]

Model = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME|PATH",
        help=f"Preset, folder, weight file, bicubic or lanczos; repeatable \\[{DEFAULT_PRESET} and bicubic].",
        rich_help_panel=MODEL,
    ),
]

Repeat = Annotated[
    int | None,
    typer.Option(min=1, metavar="N", help="Restore and time each image N times.", rich_help_panel=MODEL),
]

Seed = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="N",
        help="Seed to sample latents and the crops of metrics \\[mean latent].",
        rich_help_panel="Scores",
    ),
]

Metrics = Annotated[
    str | None,
    typer.Option(
        metavar="A,B",
        help="Metrics, or paper for those of papers \\[psnr,ssim; musiq,clipiqa if installed].",
        rich_help_panel="Scores",
    ),
]

ListMetrics = Annotated[
    bool, typer.Option("--list-metrics", help="Show all metrics and exit.", rich_help_panel="Scores")
]

ColorSpace = Annotated[
    str, typer.Option(metavar="ycbcr|yiq|rgb", help="Colour space of psnr and ssim.", rich_help_panel="Scores")
]

CropBorder = Annotated[
    int, typer.Option(min=0, metavar="PX", help="Ignore this border in psnr and ssim.", rich_help_panel="Scores")
]

Csv = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Write scores, means and differences as CSV.", rich_help_panel="Reports"),
]

Html = Annotated[Path | None, typer.Option(metavar="FILE", help="Write an HTML report.", rich_help_panel="Reports")]

HtmlDir = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Put the images of the report into this folder.", rich_help_panel="Reports"),
]

Markdown = Annotated[bool, typer.Option("--markdown", help="Print the tables in Markdown.", rich_help_panel="Reports")]

Latex = Annotated[bool, typer.Option("--latex", help="Print the tables in LaTeX.", rich_help_panel="Reports")]

Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing reports.", rich_help_panel="Reports")]

Cache = Annotated[
    Path | None,
    typer.Option(
        metavar="FOLDER", help="Folder for results kept between runs \\[the user's cache].", rich_help_panel="Reports"
    ),
]
