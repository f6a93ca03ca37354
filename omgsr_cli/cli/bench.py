"""`omgsr bench`: scores, speed and a page to look at."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from omgsr_cli.cli import bench_params as own
from omgsr_cli.cli import params as shared
from omgsr_cli.cli import upscale_params
from omgsr_cli.cli.output import Output
from omgsr_cli.cli.spread import choose_engine, first_device
from omgsr_cli.errors import OmgsrError, UsageError
from omgsr_cli.files.addresses import shown
from omgsr_cli.files.shards import Shard, parse_shard

if TYPE_CHECKING:
    from omgsr_cli.benchmark.results import Failure, Report
    from omgsr_cli.options import BenchOptions, EngineOptions


def bench(
    data: own.Data = None,
    hr: own.Hr = None,
    sr: own.Sr = None,
    recursive: own.Recursive = False,
    scale: own.Scale = None,
    model: own.Model = None,
    base: shared.Base = None,
    adapter: shared.Adapter = None,
    device: upscale_params.Devices = None,
    precision: shared.Precision = "auto",
    repeat: own.Repeat = None,
    metrics: own.Metrics = None,
    list_metrics: own.ListMetrics = False,
    color_space: own.ColorSpace = "ycbcr",
    crop_border: own.CropBorder = 0,
    csv: own.Csv = None,
    html: own.Html = None,
    html_dir: own.HtmlDir = None,
    markdown: own.Markdown = False,
    latex: own.Latex = False,
    overwrite: own.Overwrite = False,
    cache: own.Cache = None,
    seed: own.Seed = None,
    workers: upscale_params.Workers = None,
    shard: upscale_params.Shard = None,
    as_json: shared.AsJson = False,
    quiet: shared.Quiet = False,
    verbose: shared.Verbose = False,
) -> int:
    """Score models side by side, time them, and make a page to look at.

    Without options, the default model and bicubic enlarge a small set of bundled images. Restored images and scores are
    kept, so that another metric or model only adds its own work. Without references, the page
    shows the images, with scores of those metrics that need none.
    """
    talk = Output(as_json=as_json, quiet=quiet, verbose=verbose)
    if list_metrics:
        from omgsr_cli.cli.bench_table import say_metrics

        say_metrics(talk)
        return 0
    asked = None if metrics is None else [name.strip() for name in metrics.split(",") if name.strip()]
    forms = [
        name for name, is_asked in {"--markdown": markdown, "--latex": latex, "--json": as_json}.items() if is_asked
    ]
    if len(forms) > 1:
        raise UsageError(f"{' and '.join(forms)} exclude each other", "each is a format of the result on stdout")
    if html_dir is not None and html is None:
        raise UsageError("--html-dir has no page to belong to", "give --html FILE as well")
    for destination in (csv, html):
        if destination is not None:
            _check_destination(destination, overwrite)
    from omgsr_cli.options import BenchOptions, EngineOptions, build_options

    spread = build_options(EngineOptions, workers=workers, device=device)
    part = None if shard is None else parse_shard(shard, os.environ)
    if repeat is not None and (workers or 1) > 1:
        raise UsageError(
            f"--repeat {repeat} and --workers {workers} exclude each other",
            "speed is measured by one process, which has the machine for itself",
        )

    options = build_options(
        BenchOptions,
        data=data,
        hr=hr,
        sr=tuple(sr or ()),
        recursive=recursive,
        scale=scale,
        model=tuple(model or ()),
        base=base,
        adapter=adapter,
        device=first_device(device),
        precision=precision,
        repeat=repeat,
        metrics=asked,
        color_space=color_space,
        crop_border=crop_border,
        cache=cache,
        seed=seed,
    )
    # pyiqa prints what it loads; stdout is for results.
    with contextlib.redirect_stdout(sys.stderr):
        report = _run(options, spread, part, talk)
    _write_reports(report, csv, html, html_dir, overwrite=overwrite)
    _say_report(report, talk, markdown=markdown, latex=latex)
    return 1 if report.failures else 0


def _run(options: BenchOptions, spread: EngineOptions, part: Shard | None, talk: Output) -> Report:
    """Say what is missing before long work begins: it may not be worth it without."""
    from omgsr_cli.benchmark.plan import plan_bench
    from omgsr_cli.benchmark.runner import run_plan
    from omgsr_cli.engines.local import Here

    plan = plan_bench(options)
    if part is not None:
        cases = [case for case in plan.cases if part.holds(case.name)]
        if not cases:
            raise UsageError(f"--shard {part}: none of the images is in this part", "give fewer parts")
        plan = replace(plan, cases=cases, title=f"{plan.title}, of which part {part}: {len(cases)}")
    _say_failures(plan.failures, talk)
    for note in plan.notes:
        talk.note(f"note: {note}")
    chosen = choose_engine(spread, len(plan.cases))
    engine = None if isinstance(chosen, Here) else chosen
    with talk.progress(len(plan.cases), "images") as view:
        report = run_plan(plan, engine, on_start=view.start, on_finish=view.finish)
    _say_failures([failure for failure in report.failures if failure not in plan.failures], talk)
    untimed = [model.info.name for model in plan.restoring if report.speed(model.info.name) is None]
    if engine is not None and untimed:
        talk.note("note: speed is not measured with several processes; --repeat 1 without them does")
    elif untimed:
        talk.note(f"note: {', '.join(untimed)}: no times of earlier runs are kept; --repeat 1 restores again for them")
    elif any(speed.kept_runs for speed in report.speeds):
        talk.note("note: times of kept images were measured by earlier runs; --repeat 1 measures them again")
    return report


def _say_failures(failures: Sequence[Failure], talk: Output) -> None:
    for failure in failures:
        talk.error(OmgsrError(failure.line()))


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

        write_atomically(csv, [csv_text(report).encode("utf-8", "backslashreplace")], overwrite=overwrite)
    if html is not None:
        from omgsr_cli.benchmark.page import write_page

        write_page(report, html, html_dir, overwrite=overwrite)


def _say_report(report: Report, talk: Output, *, markdown: bool, latex: bool) -> None:
    from omgsr_cli.benchmark import tables
    from omgsr_cli.benchmark.results import report_record
    from omgsr_cli.cli.bench_table import report_text

    text = tables.markdown if markdown else tables.latex if latex else report_text
    talk.result(text(report), report_record(report))
