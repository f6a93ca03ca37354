"""A report's tables on a terminal, and the list of metrics."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from omgsr_cli.benchmark.metrics import METRICS, KnownMetric
from omgsr_cli.benchmark.results import Report
from omgsr_cli.benchmark.tables import Cell, Table, tables_of
from omgsr_cli.cli.output import Output

_PLAIN_WIDTH = 200


def report_text(report: Report) -> str:
    """The tables for people, the best in bold; in colours only where a terminal reads them."""
    return _drawn([_rich_table(table) for table in tables_of(report)])


def say_metrics(talk: Output) -> None:
    """Say every metric: direction, range, kind, and whether its weights are here."""
    from omgsr_cli.benchmark.perceptual import missing_weights

    missing = {name: missing_weights(known) for name, known in METRICS.items()}
    if talk.as_json:
        for name, known in METRICS.items():
            talk.result(name, _metric_record(known, missing[name]))
        return
    table = RichTable("metric", "better", "range", "kind", "weights", "what")
    for name, known in METRICS.items():
        info = known.info
        unit = f" {info.unit}" if info.unit else ""
        direction = "lower ↓" if info.lower_is_better else "higher ↑"
        table.add_row(
            name, direction, info.score_range + unit, info.kind, _weights_text(known, missing[name]), known.summary
        )
    talk.result(_drawn([table]), {})


def _metric_record(known: KnownMetric, missing: Sequence[Path]) -> dict[str, object]:
    info = known.info
    return {
        "name": info.name,
        "direction": "lower" if info.lower_is_better else "higher",
        "range": info.score_range,
        "unit": info.unit,
        "kind": info.kind,
        "source": info.source,
        "weights_here": not missing,
        "missing_weights": [str(path) for path in missing],
        "summary": known.summary,
    }


def _weights_text(known: KnownMetric, missing: Sequence[Path]) -> str:
    if not known.weights:
        return "none needed"
    return "missing" if missing else "here"


def _rich_table(table: Table) -> RichTable:
    drawn = RichTable(title=escape(table.title), title_justify="left", title_style="bold")
    for index, heading in enumerate(table.headings):
        drawn.add_column(escape(heading), justify="right" if index else "left", no_wrap=True)
    for row in table.rows:
        drawn.add_row(*(_styled(cell) for cell in row))
    return drawn


def _styled(cell: Cell) -> str:
    return f"[bold]{escape(cell.text)}[/]" if cell.is_best else escape(cell.text)


def _drawn(tables: Sequence[RichTable]) -> str:
    on_terminal = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if on_terminal else _PLAIN_WIDTH
    text = io.StringIO()
    console = Console(file=text, force_terminal=on_terminal, width=width, highlight=False, emoji=False)
    for table in tables:
        console.print(table)
    return text.getvalue().rstrip("\n")
