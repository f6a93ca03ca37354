"""A report as rows of short texts: for a terminal, as Markdown and as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass

from omgsr_cli.benchmark.results import PairedDifference, Quantiles, Report, Summary


@dataclass(frozen=True)
class Cell:
    """A text of a table, and whether it is the best of its column."""

    text: str
    is_best: bool = False


@dataclass(frozen=True)
class Table:
    """A heading for each column and rows of as many cells; the first column holds names, the others mostly numbers."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    is_of_numbers: bool = True


def tables_of(report: Report) -> list[Table]:
    """The tables that a person is shown: scores, differences in pairs, speed; those with nothing in them left out."""
    tables = [score_table(report), difference_table(report), speed_table(report)]
    return [table for table in tables if table.rows]


def score_table(report: Report) -> Table:
    """Means with half of their 95 % interval, a row for each model."""
    headings = ("model", *(f"{metric.name} {metric.arrow}" for metric in report.metrics))
    best = {metric.name: report.best(metric.name) for metric in report.metrics}
    rows = tuple(
        (
            Cell(model.name),
            *(
                Cell(mean_text(report.summary(model.name, metric.name)), model.name in best[metric.name])
                for metric in report.metrics
            ),
        )
        for model in report.models
    )
    return Table(report.title, headings, rows)


def difference_table(report: Report) -> Table:
    """Mean differences between each two models over the same pictures."""
    names = [metric.name for metric in report.metrics if metric.kind != "set"]
    pairs = dict.fromkeys((each.first, each.second) for each in report.differences)
    found = {(each.first, each.second, each.metric): each for each in report.differences}
    rows = tuple(
        (
            Cell(f"{second} - {first}"),
            *(Cell(difference_text(found.get((first, second, name)))) for name in names),
        )
        for first, second in pairs
    )
    arrows = {metric.name: metric.arrow for metric in report.metrics}
    headings = ("difference in pairs", *(f"{name} {arrows[name]}" for name in names))
    return Table("difference in pairs, mean ± half of its 95 % interval; * where that excludes 0", headings, rows)


def speed_table(report: Report) -> Table:
    """Seconds and memory of the models that restored something."""
    headings = ("model", "s a picture", "s a megapixel", "load s", "process MiB", "device MiB", "device", "precision")
    rows = tuple(
        (
            Cell(speed.model),
            Cell(quantiles_text(speed.per_image_s)),
            Cell(quantiles_text(speed.per_megapixel_s)),
            Cell(f"{speed.load_s:.2f}"),
            Cell(f"{speed.peak_process_mib:.0f}"),
            Cell("-" if speed.peak_device_mib is None else f"{speed.peak_device_mib:.0f}"),
            Cell(speed.device),
            Cell(speed.precision),
        )
        for speed in report.speeds
    )
    return Table("speed, median (10th to 90th percentile)", headings, rows)


def mean_text(summary: Summary) -> str:
    """Such as "26.58 ± 1.21"; "-" where there is no score."""
    if summary.mean is None:
        return "-"
    return number_text(summary.mean, summary.mean) + _half_text(summary.mean, summary.high, summary.mean)


def difference_text(difference: PairedDifference | None) -> str:
    """Such as "+0.41 ± 0.12 *"; "-" where no picture has both scores."""
    if difference is None:
        return "-"
    # Half a difference is told as finely as the scores are, which are greater than it.
    like = max(abs(value) for value in (difference.second_minus_first, difference.low or 0, difference.high or 0))
    mean = difference.second_minus_first
    sign = "+" if mean > 0 else ""
    mark = " *" if difference.is_clear else ""
    return sign + number_text(mean, like) + _half_text(mean, difference.high, like) + mark


def quantiles_text(values: Quantiles) -> str:
    """Such as "1.23 (1.20 to 1.31)"."""
    return f"{values.median:.3g} ({values.p10:.3g} to {values.p90:.3g})"


def number_text(value: float, like: float) -> str:
    """A score with as many digits as one of its size needs: two after the point from 10 on, else four."""
    return f"{value:.2f}" if abs(like) >= 10 else f"{value:.4f}"


def markdown(report: Report) -> str:
    """The tables in Markdown, the best in bold, with what they depend on below."""
    parts = [f"### {table.title}\n\n{_markdown_table(table)}" for table in tables_of(report)]
    parts.append("\n".join(f"- {name}: {value}" for name, value in report.settings.items()))
    parts.append("Versions: " + ", ".join(f"{name} {version}" for name, version in report.versions.items()))
    return "\n\n".join(parts)


def csv_text(report: Report) -> str:
    """One line for each picture and model: `image`, `model`, then each metric by its name; empty where none is had."""
    names = [metric.name for metric in report.metrics if metric.kind != "set"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["image", "model", *names])
    for image in report.images:
        for model in report.models:
            scores = image.scores.get(model.name, {})
            values = (scores.get(name) for name in names)
            writer.writerow([image.name, model.name, *("" if value is None else repr(value) for value in values)])
    return text.getvalue()


def _half_text(mean: float, high: float | None, like: float) -> str:
    return "" if high is None else f" ± {number_text(high - mean, like)}"


def _markdown_table(table: Table) -> str:
    rule = ["---", *("---:" for _ in table.headings[1:])]
    rows = [[_markdown_cell(cell) for cell in row] for row in table.rows]
    return "\n".join(_markdown_row(row) for row in [list(table.headings), rule, *rows])


def _markdown_cell(cell: Cell) -> str:
    text = cell.text.replace("|", "\\|").replace("*", "\\*")
    return f"**{text}**" if cell.is_best else text


def _markdown_row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
