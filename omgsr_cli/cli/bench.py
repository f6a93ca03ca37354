"""`omgsr bench`: scores, speed and an HTML report."""

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
    """Compare models: scores, speed, and an HTML report with before/after images.

    By default, the default model and bicubic restore a small set of bundled images. Results are kept, so another metric
    or model only adds its own work; re-run the command to resume. Without references, the report shows the images, with
    scores of the metrics that need none.
    """
    output = Output(as_json=as_json, quiet=quiet, verbose=verbose)
    if list_metrics:
        from omgsr_cli.cli.bench_table import print_metrics

        print_metrics(output)
        return 0
    requested = None if metrics is None else [name.strip() for name in metrics.split(",") if name.strip()]
    forms = [name for name, is_set in {"--markdown": markdown, "--latex": latex, "--json": as_json}.items() if is_set]
    if len(forms) > 1:
        raise UsageError(f"{' and '.join(forms)} exclude each other", "choose one format for stdout")
    if html_dir is not None and html is None:
        raise UsageError("--html-dir needs a page", "add --html FILE")
    for destination in (csv, html):
        if destination is not None:
            _check_destination(destination, overwrite)
    from omgsr_cli.options import BenchOptions, EngineOptions, build_options

    spread = build_options(EngineOptions, workers=workers, device=device)
    part = None if shard is None else parse_shard(shard, os.environ)
    if repeat is not None and (workers or 1) > 1:
        raise UsageError(
            f"--repeat {repeat} and --workers {workers} exclude each other",
            "one process measures speed; leave out --workers",
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
        metrics=requested,
        color_space=color_space,
        crop_border=crop_border,
        cache=cache,
        seed=seed,
    )
    # pyiqa prints to stdout while it loads; stdout is for results.
    with contextlib.redirect_stdout(sys.stderr):
        report = _run(options, spread, part, output)
    _write_reports(report, csv, html, html_dir, overwrite=overwrite)
    _print_report(report, output, markdown=markdown, latex=latex)
    return 1 if report.failures else 0


def _run(options: BenchOptions, spread: EngineOptions, part: Shard | None, output: Output) -> Report:
    """Report what is missing before long work begins, then run the plan."""
    from omgsr_cli.benchmark.plan import plan_bench
    from omgsr_cli.benchmark.runner import run_plan
    from omgsr_cli.engines.local import Here

    plan = plan_bench(options)
    if part is not None:
        cases = [case for case in plan.cases if part.holds(case.name)]
        if not cases:
            raise UsageError(f"--shard {part}: this part has no images", "use fewer parts")
        plan = replace(plan, cases=cases, title=f"{plan.title}, part {part} with {len(cases)}")
    _print_failures(plan.failures, output)
    for note in plan.notes:
        output.note(f"note: {note}")
    chosen = choose_engine(spread, len(plan.cases))
    engine = None if isinstance(chosen, Here) else chosen
    with output.progress(len(plan.cases), "images") as view:
        report = run_plan(plan, engine, on_start=view.start, on_finish=view.finish)
    _print_failures([failure for failure in report.failures if failure not in plan.failures], output)
    untimed = [model.info.name for model in plan.restoring if report.speed(model.info.name) is None]
    if engine is not None and untimed:
        output.note("note: speed is not measured with several processes; use --repeat 1 and a single process")
    elif untimed:
        output.note(f"note: {', '.join(untimed)}: no times of earlier runs exist; --repeat 1 measures them")
    elif any(speed.kept_runs for speed in report.speeds):
        output.note("note: times of kept images were measured by earlier runs; --repeat 1 measures them again")
    return report


def _print_failures(failures: Sequence[Failure], output: Output) -> None:
    for failure in failures:
        output.error(OmgsrError(failure.line()))


def _check_destination(path: Path, overwrite: bool) -> None:
    """Raise a UsageError, before any work, if a report cannot be written."""
    if path.is_dir():
        raise UsageError(f"{shown(path)} is a folder", "use a file name")
    if os.path.lexists(path) and not overwrite:
        raise UsageError(f"{shown(path)} exists", "use --overwrite or another name")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{shown(path)}: its folder does not exist", "create the folder, or use another name")


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


def _print_report(report: Report, output: Output, *, markdown: bool, latex: bool) -> None:
    from omgsr_cli.benchmark import tables
    from omgsr_cli.benchmark.results import report_record
    from omgsr_cli.cli.bench_table import report_text

    text = tables.markdown if markdown else tables.latex if latex else report_text
    output.result(text(report), report_record(report))
