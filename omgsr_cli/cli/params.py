"""Options that several commands share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

MODEL, DATA, FILES, SPREAD, TALK = "Model", "Data", "Files", "Many images", "Output and logging"
"""Headings of the help of a command."""

Base = Annotated[
    str | None,
    typer.Option(metavar="FOLDER|REPO", help="Base model that --adapter belongs to.", rich_help_panel=MODEL),
]
Adapter = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Adapter in the published layout.", rich_help_panel=MODEL),
]
Device = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="cuda, mps, xpu or cpu \\[the first available].", rich_help_panel=MODEL),
]
Precision = Annotated[
    str, typer.Option(metavar="auto|fp32|bf16|fp16", help="Precision of the weights.", rich_help_panel=MODEL)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object per line to stdout.", rich_help_panel=TALK)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors.", rich_help_panel=TALK)]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Print more notes.", rich_help_panel=TALK)]


def parse_factor(text: str | float) -> float:
    """A factor such as 2, 2x or x2.

    Raises:
        ValueError: the text is not a number.
    """
    return float(re.sub(r"^\s*[x\u00d7]|[x\u00d7]\s*$", "", str(text).lower(), count=1))
