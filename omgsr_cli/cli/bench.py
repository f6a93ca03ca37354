"""`omgsr bench`: scores, speed and an HTML report."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from omgsr_cli.cli import options as shared
from omgsr_cli.cli.help import Command
from omgsr_cli.cli.options import MODEL
from omgsr_cli.cli.output import PIPED_COLUMNS, Output, terminal_columns
from omgsr_cli.errors import OmgsrError, UsageError
from omgsr_cli.files.addresses import shown
from omgsr_cli.files.shards import Shard, parse_shard
from omgsr_cli.presets import DEFAULT_PRESET

if TYPE_CHECKING:
    from omgsr_cli.benchmark.metrics import KnownMetric
    from omgsr_cli.benchmark.results import Failure, Report
    from omgsr_cli.benchmark.tables import Cell, Table
    from omgsr_cli.options import BenchOptions, EngineOptions

IMAGES, SCORES, REPORTS = "Images", "Scores", "Reports"


class BenchCommand(Command):
    """The help of `omgsr bench`."""

    examples: ClassVar[Mapping[str, str]] = {
        "omgsr bench": "bundled images, default model and bicubic",
        "omgsr bench --data lr/ --hr hr/": "your own images and their references",
        "omgsr bench --data lr/ --sr out/": "score restored images",
        "omgsr bench --html report.html": "write a page with all images",
    }
    common: ClassVar[Collection[str]] = (
        *("data", "hr", "sr", "recursive", "model", "device", "repeat", "metrics", "list_metrics", "csv", "html"),
        *("markdown", "overwrite", "quiet", "help_all", "help"),
    )


def bench(
    data: Annotated[
        Path | None,
        shared.option(
            IMAGES,
            "Low-quality images, or a folder with test_LR/ and test_HR/.",
            metavar="FOLDER",
            shown="bundled images",
        ),
    ] = None,
    hr: Annotated[
        Path | None, shared.option(IMAGES, "High-quality references with the same names.", "--hr", metavar="FOLDER")
    ] = None,
    sr: Annotated[
        list[Path] | None, shared.option(IMAGES, "Restored images to score; repeatable.", "--sr", metavar="FOLDER")
    ] = None,
    recursive: Annotated[bool, shared.option(IMAGES, "Search subfolders.", "--recursive", "-r")] = False,
    scale: Annotated[
        float | None,
        shared.option(
            IMAGES,
            "Scale of images without a reference.",
            metavar="F",
            shown="the model's, 4",
            parser=shared.parse_factor,
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        shared.option(
            MODEL,
            "Preset, model folder, bicubic, lanczos or a network file; repeatable.",
            metavar="NAME|PATH",
            shown=f"{DEFAULT_PRESET} and bicubic",
        ),
    ] = None,
    base: shared.Base = None,
    adapter: shared.Adapter = None,
    device: shared.Devices = None,
    precision: shared.Precision = "auto",
    repeat: Annotated[
        int | None, shared.option(MODEL, "Restore each image N times to measure the speed.", metavar="N", min=1)
    ] = None,
    metrics: Annotated[
        str | None,
        shared.option(
            SCORES,
            "Metrics of pyiqa, or paper for those of the paper.",
            metavar="A,B",
            shown="psnr,ssim; musiq,clipiqa if installed",
        ),
    ] = None,
    list_metrics: Annotated[bool, shared.option(SCORES, "List all metrics and exit.", "--list-metrics")] = False,
    color_space: Annotated[
        str, shared.option(SCORES, "Colour space of psnr and ssim.", metavar="ycbcr|yiq|rgb")
    ] = "ycbcr",
    crop_border: Annotated[
        int, shared.option(SCORES, "Border that psnr and ssim ignore, in pixels.", metavar="PX", min=0)
    ] = 0,
    seed: Annotated[
        int | None,
        shared.option(
            SCORES,
            "Sample the latents, and draw the metrics' random crops, with this seed.",
            metavar="N",
            shown="no sampling",
            min=0,
        ),
    ] = None,
    csv: Annotated[
        Path | None, shared.option(REPORTS, "Write scores, means and differences as CSV.", metavar="FILE")
    ] = None,
    html: Annotated[Path | None, shared.option(REPORTS, "Write an HTML report.", metavar="FILE")] = None,
    html_dir: Annotated[
        Path | None, shared.option(REPORTS, "Put the images of the report into this folder.", metavar="FOLDER")
    ] = None,
    markdown: Annotated[bool, shared.option(REPORTS, "Print the tables in Markdown.", "--markdown")] = False,
    latex: Annotated[bool, shared.option(REPORTS, "Print the tables in LaTeX.", "--latex")] = False,
    overwrite: Annotated[bool, shared.option(REPORTS, "Replace existing reports.", "--overwrite")] = False,
    cache: Annotated[
        Path | None,
        shared.option(REPORTS, "Keep restored images and scores here.", metavar="FOLDER", shown="the user's cache"),
    ] = None,
    workers: shared.Workers = None,
    shard: shared.Shard = None,
    as_json: shared.AsJson = False,
    quiet: shared.Quiet = False,
    verbose: shared.Verbose = False,
    help_all: shared.HelpAll = False,
) -> int:
    """Compare models: scores, speed, and an HTML report with before/after images.

    Results are kept, so another metric or model only adds its own work; re-run the command to resume. Images without
    references get the scores of metrics that need none.
    """
    output = Output(as_json=as_json, quiet=quiet, verbose=verbose)
    if list_metrics:
        _list_metrics(output)
        return 0
    formats = [name for name, given in {"--markdown": markdown, "--latex": latex, "--json": as_json}.items() if given]
    if len(formats) > 1:
        raise UsageError(f"{' and '.join(formats)} exclude each other", "give one format for stdout")
    if html_dir is not None and html is None:
        raise UsageError("--html-dir needs a page", "add --html FILE")
    for destination in (csv, html):
        if destination is not None:
            _check_destination(destination, overwrite)
    from omgsr_cli.options import BenchOptions, EngineOptions, build_options

    engine_options = build_options(EngineOptions, workers=workers, device=device)
    part = None if shard is None else parse_shard(shard, os.environ)
    if repeat is not None and (workers or 1) > 1:
        raise UsageError(
            f"--repeat {repeat} and --workers {workers} exclude each other",
            "measure the speed with one process: remove --workers",
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
        device=shared.first_device(device),
        precision=precision,
        repeat=repeat,
        metrics=None if metrics is None else [name.strip() for name in metrics.split(",") if name.strip()],
        color_space=color_space,
        crop_border=crop_border,
        cache=cache,
        seed=seed,
    )
    # pyiqa prints the files that it loads; keep stdout for results.
    with contextlib.redirect_stdout(sys.stderr):
        report = _run(options, engine_options, part, output)
    _write_reports(report, csv, html, html_dir, overwrite=overwrite)
    _print_report(report, output, markdown=markdown, latex=latex)
    return 1 if report.failures else 0


def _run(options: BenchOptions, engine_options: EngineOptions, part: Shard | None, output: Output) -> Report:
    """Plan and run a benchmark; print notes about missing parts before the long work begins."""
    with output.loading("models"):
        from omgsr_cli.benchmark.runner import plan_bench, run_plan

        plan = plan_bench(options)
    if part is not None:
        cases = [case for case in plan.cases if part.holds(case.name)]
        if not cases:
            raise UsageError(f"--shard {part}: this part has no images", "use fewer parts")
        plan = replace(plan, cases=cases, title=f"{plan.title}, part {part} with {len(cases)}")
    _print_failures(plan.failures, output)
    for note in plan.notes:
        output.note(note)
    chosen = shared.choose_engine(engine_options, len(plan.cases))
    engine = None if chosen.in_this_process else chosen
    with output.progress(len(plan.cases), "images") as view:
        report = run_plan(plan, engine, on_start=view.start, on_finish=view.finish)
    _print_failures([failure for failure in report.failures if failure not in plan.failures], output)
    untimed = [model.info.name for model in plan.restoring if report.speed(model.info.name) is None]
    if engine is not None and untimed:
        output.note("speed is not measured with several processes; use --repeat 1 and a single process")
    elif untimed:
        output.note(f"{', '.join(untimed)}: earlier runs kept no times; use --repeat 1 to measure them")
    elif any(speed.kept_runs for speed in report.speeds):
        output.note("the times of kept images are those of earlier runs; use --repeat 1 to measure them again")
    return report


def _print_failures(failures: Sequence[Failure], output: Output) -> None:
    for failure in failures:
        output.error(OmgsrError(failure.line()))


def _check_destination(path: Path, overwrite: bool) -> None:
    """Raise a UsageError before any work begins if a report cannot be written."""
    if path.is_dir():
        raise UsageError(f"{shown(path)} is a folder", "give a file name")
    if os.path.lexists(path) and not overwrite:
        raise UsageError(f"{shown(path)} exists", "give --overwrite or another name")
    if not path.absolute().parent.is_dir():
        raise UsageError(f"{shown(path)}: its folder does not exist", "create it, or give another name")


def _write_reports(
    report: Report, csv: Path | None, html: Path | None, html_dir: Path | None, *, overwrite: bool
) -> None:
    if csv is not None:
        from omgsr_cli.benchmark.tables import csv_text
        from omgsr_cli.files.atomic import write_atomically

        write_atomically(csv, [csv_text(report).encode("utf-8", "backslashreplace")], overwrite=overwrite)
    if html is not None:
        from omgsr_cli.benchmark.page import write_page

        write_page(report, html, html_dir, overwrite=overwrite)


def _print_report(report: Report, output: Output, *, markdown: bool, latex: bool) -> None:
    from omgsr_cli.benchmark import tables
    from omgsr_cli.benchmark.results import report_record

    if markdown or latex:
        text = tables.markdown(report) if markdown else tables.latex(report)
    else:
        text = _drawn(tables.tables_of(report))
    output.result(text, report_record(report))


def _list_metrics(output: Output) -> None:
    """Print every metric: direction, range, kind, and whether its weights are installed."""
    from omgsr_cli.benchmark.metrics import known_metrics
    from omgsr_cli.benchmark.scoring import missing_weights

    rows, records = [], []
    for known in known_metrics().values():
        info, missing = known.info, missing_weights(known)
        direction = "lower" if info.lower_is_better else "higher"
        span = info.score_range + (f" {info.unit}" if info.unit else "")
        rows.append(
            [info.name, f"{direction} {info.arrow}", span, info.kind, _weights_text(known, missing), known.summary]
        )
        record: dict[str, object] = {"name": info.name, "direction": direction, "range": info.score_range}
        record |= {"unit": info.unit, "kind": info.kind, "source": info.source}
        record |= {"weights_here": None if known.weights is None else not missing}
        record |= {"missing_weights": [str(path) for path in missing], "summary": known.summary}
        records.append(record)
    output.table(("metric", "better", "range", "kind", "weights", "description"), rows, records)


def _weights_text(known: KnownMetric, missing: Sequence[Path]) -> str:
    if known.weights is None:
        return "downloaded on first use"
    if not known.weights:
        return "none needed"
    return "missing" if missing else "installed"


def _rich_table(table: Table) -> RichTable:
    drawn = RichTable(title=escape(table.title), title_justify="left", title_style="bold")
    for index, heading in enumerate(table.headings):
        drawn.add_column(escape(heading), justify="right" if index else "left", no_wrap=True)
    for row in table.rows:
        drawn.add_row(*(_styled(cell) for cell in row))
    return drawn


def _blocks(table: Table) -> Iterator[str]:
    """Yield each row of a table as a block of lines, for narrow terminals."""
    yield f"[bold]{escape(table.title)}[/]"
    for name, *cells in table.rows:
        yield f"\n{_styled(name)}"
        for heading, cell in zip(table.headings[1:], cells, strict=True):
            yield f"  {escape(heading)}: {_styled(cell)}"
    yield ""


def _styled(cell: Cell) -> str:
    return f"[bold]{escape(cell.text)}[/]" if cell.is_best else escape(cell.text)


def _drawn(tables: Sequence[Table]) -> str:
    columns = terminal_columns()
    text, width = io.StringIO(), columns or PIPED_COLUMNS
    console = Console(file=text, force_terminal=columns is not None, width=width, highlight=False, emoji=False)
    for table in tables:
        drawn = _rich_table(table)
        if console.measure(drawn, options=console.options.update(width=10_000)).maximum <= width:
            console.print(drawn)
        else:
            console.print("\n".join(_blocks(table)))
    return text.getvalue().rstrip("\n")
