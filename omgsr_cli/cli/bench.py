"""`omgsr bench`: scores, speed and a page to look at."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, get_args

import typer

from omgsr_cli.cli.output import Output
from omgsr_cli.errors import UsageError
from omgsr_cli.files.inputs import shown
from omgsr_cli.presets import DEFAULT_PRESET

if TYPE_CHECKING:
    from omgsr_cli.benchmark.results import Report

ColorSpace = Literal["ycbcr", "yiq", "rgb"]  # as in `fidelity`, which loads torch

_DATA, _MODELS, _SCORES, _REPORT, _TALK = "Pictures", "Models", "Scores", "Reports", "What is said"


def bench(
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Low-quality pictures, or a folder with test_LR/ and test_HR/.",
            rich_help_panel=_DATA,
        ),
    ] = None,
    hr: Annotated[
        Path | None,
        typer.Option("--hr", metavar="FOLDER", help="Their references, of the same stems.", rich_help_panel=_DATA),
    ] = None,
    sr: Annotated[
        list[Path] | None,
        typer.Option("--sr", metavar="FOLDER", help="Pictures restored before; repeatable.", rich_help_panel=_DATA),
    ] = None,
    scale: Annotated[
        float | None,
        typer.Option(metavar="F", help="Enlargement where there is no reference [4].", rich_help_panel=_DATA),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME|PATH",
            help=f"Preset, folder, bicubic, lanczos or a network's file; repeatable [{DEFAULT_PRESET}].",
            rich_help_panel=_MODELS,
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="FOLDER|REPO", help="Base model that --adapter belongs to.", rich_help_panel=_MODELS),
    ] = None,
    adapter: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Adapter in the published layout.", rich_help_panel=_MODELS),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="cuda, mps, xpu or cpu [the first that is there].", rich_help_panel=_MODELS),
    ] = None,
    precision: Annotated[
        str, typer.Option(metavar="auto|fp32|bf16|fp16", help="Number format.", rich_help_panel=_MODELS)
    ] = "auto",
    repeat: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Restore each picture N times, for its time.", rich_help_panel=_MODELS),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="Names, or paper for all of a paper's [psnr,ssim,musiq,clipiqa].",
            rich_help_panel=_SCORES,
        ),
    ] = None,
    list_metrics: Annotated[
        bool, typer.Option("--list-metrics", help="Show all metrics, and stop.", rich_help_panel=_SCORES)
    ] = False,
    color_space: Annotated[
        str, typer.Option(metavar="ycbcr|yiq|rgb", help="What psnr and ssim look at.", rich_help_panel=_SCORES)
    ] = "ycbcr",
    crop_border: Annotated[
        int, typer.Option(min=0, metavar="PX", help="Border that psnr and ssim leave out.", rich_help_panel=_SCORES)
    ] = 0,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a line per picture and model.", rich_help_panel=_REPORT)
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page to look at.", rich_help_panel=_REPORT)
    ] = None,
    html_dir: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Keep the page's pictures beside it.", rich_help_panel=_REPORT),
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Tables in Markdown on stdout.", rich_help_panel=_REPORT)
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace reports that are there.", rich_help_panel=_REPORT)
    ] = False,
    cache: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Where results are kept between runs [the user's cache].", rich_help_panel=_REPORT
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.", rich_help_panel=_TALK)] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Errors only.", rich_help_panel=_TALK)] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Say more.", rich_help_panel=_TALK)] = False,
) -> int:
    """Score models side by side, time them, and make a page to look at.

    With nothing else the default model restores a small set of pictures that comes with the program. What was restored
    and scored is kept, so that another metric or model only adds its own work.
    """
    talk = Output(as_json=as_json, quiet=quiet, verbose=verbose)
    if list_metrics:
        from omgsr_cli.cli.bench_table import say_metrics

        say_metrics(talk)
        return 0
    asked = None if metrics is None else [name.strip() for name in metrics.split(",") if name.strip()]
    if markdown and as_json:
        raise UsageError("--markdown and --json exclude each other", "each is the form of the result on stdout")
    if html_dir is not None and html is None:
        raise UsageError("--html-dir has no page to belong to", "give --html FILE as well")
    for destination in (csv, html):
        if destination is not None:
            _check_destination(destination, overwrite)
    from omgsr_cli.cli.bench_run import Wanted, run_bench

    wanted = Wanted(
        data=data,
        references=hr,
        restored=tuple(sr or ()),
        scale=scale,
        models=tuple(model or ()),
        base=base,
        adapter=adapter,
        device=device,
        precision=precision,
        repeat=repeat,
        metrics=asked,
        color_space=_check_color_space(color_space),
        crop_border_px=crop_border,
        cache=cache,
    )
    # pyiqa prints what it loads; stdout is for results.
    with contextlib.redirect_stdout(sys.stderr):
        report = run_bench(wanted, talk)
    _write_reports(report, csv, html, html_dir, overwrite=overwrite)
    _say_report(report, talk, markdown=markdown)
    return 1 if report.failures else 0


def _check_color_space(name: str) -> ColorSpace:
    for known in get_args(ColorSpace):
        if name == known:
            return known  # type: ignore[no-any-return] # one of the three names
    raise UsageError(f"--color-space {name} is not known", f"one of {', '.join(get_args(ColorSpace))}")


def _check_destination(path: Path, overwrite: bool) -> None:
    """Say before any work that a report could not be written."""
    if path.is_dir():
        raise UsageError(f"{shown(path)} is a folder", "give the name of a file")
    if os.path.lexists(path) and not overwrite:
        raise UsageError(f"{shown(path)} exists", "give --overwrite or another name")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{shown(path)}: there is no such folder", "make it first, or give another name")


def _write_reports(
    report: Report, csv: Path | None, html: Path | None, html_dir: Path | None, *, overwrite: bool
) -> None:
    if csv is not None:
        from omgsr_cli.benchmark.tables import csv_text
        from omgsr_cli.imaging import write_atomically

        write_atomically(csv, [csv_text(report).encode("utf-8", "surrogateescape")], overwrite=overwrite)
    if html is not None:
        from omgsr_cli.benchmark.page import write_page

        write_page(report, html, html_dir, overwrite=overwrite)


def _say_report(report: Report, talk: Output, *, markdown: bool) -> None:
    from omgsr_cli.benchmark.record import report_record
    from omgsr_cli.benchmark.tables import markdown as in_markdown
    from omgsr_cli.cli.bench_table import report_text

    talk.result(in_markdown(report) if markdown else report_text(report), report_record(report))
