"""The tables of a report on a terminal, and the list of metrics."""

from __future__ import annotations

import io
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from omgsr_cli.benchmark.metrics import KnownMetric, known_metrics
from omgsr_cli.benchmark.results import Report
from omgsr_cli.benchmark.tables import Cell, Table, tables_of
from omgsr_cli.cli.output import Output

_PLAIN_WIDTH = 200


def report_text(report: Report) -> str:
    """The tables as text, with the best in bold if stdout is a terminal."""
    return _drawn(tables_of(report))


def print_metrics(output: Output) -> None:
    """Print every metric: direction, range, kind, and whether its weights are on this machine."""
    from omgsr_cli.benchmark.perceptual import missing_weights

    missing = {name: missing_weights(known) for name, known in known_metrics().items()}
    if output.as_json:
        for name, known in known_metrics().items():
            output.result(name, _metric_record(known, missing[name]))
        return
    rows = tuple(tuple(map(Cell, _metric_texts(known, missing[name]))) for name, known in known_metrics().items())
    output.result(
        _drawn([Table("metrics", ("metric", "better", "range", "kind", "weights", "description"), rows, False)]), {}
    )


def _metric_texts(known: KnownMetric, missing: Sequence[Path]) -> tuple[str, ...]:
    info = known.info
    unit = f" {info.unit}" if info.unit else ""
    direction = "lower ↓" if info.lower_is_better else "higher ↑"
    return info.name, direction, info.score_range + unit, info.kind, _weights_text(known, missing), known.summary


def _metric_record(known: KnownMetric, missing: Sequence[Path]) -> dict[str, object]:
    info = known.info
    return {
        "name": info.name,
        "direction": "lower" if info.lower_is_better else "higher",
        "range": info.score_range,
        "unit": info.unit,
        "kind": info.kind,
        "source": info.source,
        "weights_here": None if known.weights is None else not missing,
        "missing_weights": [str(path) for path in missing],
        "summary": known.summary,
    }


def _weights_text(known: KnownMetric, missing: Sequence[Path]) -> str:
    if known.weights is None:
        return "downloaded on first use"
    if not known.weights:
        return "none needed"
    return "missing" if missing else "installed"


def _rich_table(table: Table) -> RichTable:
    drawn = RichTable(title=escape(table.title), title_justify="left", title_style="bold")
    for index, heading in enumerate(table.headings):
        drawn.add_column(escape(heading), justify="right" if index and table.is_numeric else "left", no_wrap=True)
    for row in table.rows:
        drawn.add_row(*(_styled(cell) for cell in row))
    return drawn


def _blocks(table: Table) -> Iterator[str]:
    """The table as a block of lines per row, for narrow terminals."""
    yield f"[bold]{escape(table.title)}[/]"
    for name, *cells in table.rows:
        yield f"\n{_styled(name)}"
        for heading, cell in zip(table.headings[1:], cells, strict=True):
            yield f"  {escape(heading)}: {_styled(cell)}"
    yield ""


def _styled(cell: Cell) -> str:
    return f"[bold]{escape(cell.text)}[/]" if cell.is_best else escape(cell.text)


def _drawn(tables: Sequence[Table]) -> str:
    columns = _terminal_columns()
    text, width = io.StringIO(), columns or _PLAIN_WIDTH
    console = Console(file=text, force_terminal=columns is not None, width=width, highlight=False, emoji=False)
    for table in tables:
        drawn = _rich_table(table)
        if console.measure(drawn, options=console.options.update(width=10_000)).maximum <= width:
            console.print(drawn)
        else:
            console.print("\n".join(_blocks(table)))
    return text.getvalue().rstrip("\n")


def _terminal_columns() -> int | None:
    """The width of the terminal; None if stdout is not a terminal."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None
