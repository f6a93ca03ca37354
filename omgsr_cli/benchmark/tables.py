"""Convert a report to tables: for a terminal, and in Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from omgsr_cli.benchmark.results import MetricInfo, PairedDifference, Quantiles, Report, Summary


@dataclass(frozen=True)
class Cell:
    """A text, and whether its value is the best of its column."""

    text: str
    is_best: bool = False


@dataclass(frozen=True)
class Table:
    """Headings and rows of equal length; the first column has names, the others mostly numbers."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def tables_of(report: Report) -> list[Table]:
    """Return the tables of a report: scores, paired differences, speed; empty tables are omitted."""
    tables = [_score_table(report), _difference_table(report), _speed_table(report)]
    return [table for table in tables if table.rows]


def _score_table(report: Report) -> Table:
    """Return means with half of their 95 % interval, one row per model."""
    names = [model.name for model in report.models]
    best = {metric.name: report.best(metric.name) for metric in report.metrics}

    def cell(name: str, metric: str) -> tuple[Cell, int]:
        found = report.summary(name, metric)
        return Cell(mean_text(found), name in best[metric]), found.count

    headings, rows = _counted(report.metrics, names, cell)
    return Table(report.title, ("model", *headings), rows)


def _difference_table(report: Report) -> Table:
    """Return mean differences for each pair of models over the same images."""
    found = {(f"{each.first} v. {each.second}", each.metric): each for each in report.differences}

    def cell(pair: str, metric: str) -> tuple[Cell, int]:
        difference = found.get((pair, metric))
        if difference is None:
            return Cell("-"), 0
        return Cell(
            _difference_text(difference, report.summary(difference.first, metric).mean or 0.0)
        ), difference.count

    metrics = [metric for metric in report.metrics if not metric.scores_sets]
    headings, rows = _counted(metrics, list(dict.fromkeys(pair for pair, _ in found)), cell)
    title = "paired differences, first minus second: mean ± half of its 95 % interval; * if it excludes 0"
    return Table(title, ("models", *headings), rows)


def _speed_table(report: Report) -> Table:
    """Return seconds and memory, one row per restoring model; empty if no model was timed."""
    headings = (
        *("model", "s per image", "s per megapixel", "n", "load s", "process MiB", "device MiB", "device", "precision"),
    )
    rows = []
    for model in report.models if report.speeds else ():
        texts = ["-", "-", "0", *["-"] * 5]
        if (speed := report.speed(model.name)) is not None:
            kept = f", {speed.kept_runs} from earlier runs" if speed.kept_runs else ""
            texts = [
                _quantiles_text(speed.per_image_s),
                _quantiles_text(speed.per_megapixel_s),
                f"{speed.runs}{kept}",
                f"{speed.load_s:.2f}",
                f"{speed.peak_process_mib:.0f}",
                "-" if speed.peak_device_mib is None else f"{speed.peak_device_mib:.0f}",
                speed.device,
                speed.precision,
            ]
        if speed is not None or model.kind != "given":
            rows.append((Cell(model.name), *map(Cell, texts)))
    return Table("speed, median (10th to 90th percentile)", headings, tuple(rows))


def _counted(
    metrics: Sequence[MetricInfo], names: Sequence[str], cell: Callable[[str, str], tuple[Cell, int]]
) -> tuple[list[str], tuple[tuple[Cell, ...], ...]]:
    """Return headings and rows; adjacent metrics with the same numbers of images share one column `n`."""
    if not metrics:
        return [], ()
    headings: list[str] = []
    columns: list[list[Cell]] = [[Cell(name) for name in names]]
    cells = {metric: [cell(name, metric.name) for name in names] for metric in metrics}
    for counts, group in groupby(cells, lambda metric: [count for _, count in cells[metric]]):
        for metric in group:
            headings.append(f"{metric.name} {metric.arrow}")
            columns.append([each for each, _ in cells[metric]])
        headings.append("n")
        columns.append([Cell(str(count)) for count in counts])
    return headings, tuple(zip(*columns, strict=True))


def mean_text(summary: Summary) -> str:
    """Return a text such as "26.58 ± 1.21"; "-" without a score."""
    if summary.mean is None:
        return "-"
    return _number_text(summary.mean, summary.mean) + _half_text(summary.mean, summary.high, summary.mean)


def _difference_text(difference: PairedDifference, like: float) -> str:
    """Return a text such as "+0.41 ± 0.12 *"; `like` is one of the scores and sets the number of digits."""
    mean = difference.first_minus_second
    mark = " *" if difference.is_clear else ""
    return ("+" if mean > 0 else "") + _number_text(mean, like) + _half_text(mean, difference.high, like) + mark


def _quantiles_text(values: Quantiles) -> str:
    """Return a text such as "1.23 (1.20 to 1.31)"."""
    return f"{values.median:.3g} ({values.p10:.3g} to {values.p90:.3g})"


def _number_text(value: float, like: float) -> str:
    """Format a score with two decimals if `like` is at least 10, otherwise with four."""
    return f"{value:.2f}" if abs(like) >= 10 else f"{value:.4f}"


def _half_text(mean: float, high: float | None, like: float) -> str:
    return "" if high is None else f" ± {_number_text(high - mean, like)}"


def without_local_paths(report: Report) -> Report:
    """Return a report whose texts contain names but no paths of this machine; image files keep their paths.

    Pages, Markdown and LaTeX use it, because they are published.
    """
    files = [path for image in report.images for path in (image.input, image.reference, *image.restored.values())]
    folders = {place for path in files if path for place in (path.parent, path.absolute().parent)}
    folders |= {Path.cwd(), Path.home()}
    known = sorted((str(folder) for folder in folders if len(folder.parts) > 1), key=len, reverse=True)

    def clean(text: str) -> str:
        for folder in known:
            text = text.replace(folder + "/", "").replace(folder + "\\", "")
        return _FOLDERS.sub("", text)

    def named(part: str) -> str:
        """Replace the path in a part of a model's detail by its name; the path may contain spaces."""
        is_place = bool(part) and (Path(part).is_absolute() or Path(part).exists())
        return Path(part).name if is_place else clean(part)

    def cleaned(texts: Mapping[str, str]) -> dict[str, str]:
        return {name: clean(text) for name, text in texts.items()}

    return replace(
        report,
        title=clean(report.title),
        models=tuple(replace(model, detail="; ".join(map(named, model.detail.split("; ")))) for model in report.models),
        images=tuple(replace(image, error=cleaned(image.error)) for image in report.images),
        failures=tuple(
            replace(each, name=clean(each.name), message=clean(each.message), hint=each.hint and clean(each.hint))
            for each in report.failures
        ),
        settings=cleaned(report.settings),
    )


# The folders of an absolute path, up to the name of the file or the last folder; not of a URL with "://".
_FOLDERS = re.compile(r"(?<![\w/:.\\])(?:~|[A-Za-z]:)?[/\\](?:[^/\\\s'\"]+[/\\])+(?=[^/\\\s])")


def markdown(report: Report) -> str:
    """Return the tables in Markdown with the best in bold, followed by settings and versions."""
    report = without_local_paths(report)

    def cell_text(cell: Cell) -> str:
        text = cell.text.replace("|", "\\|").replace("*", "\\*")
        return f"**{text}**" if cell.is_best else text

    parts = []
    for table in tables_of(report):
        rule = ["---", *["---:"] * (len(table.headings) - 1)]
        lines = [list(table.headings), rule, *(list(map(cell_text, row)) for row in table.rows)]
        parts.append(f"### {table.title}\n\n" + "\n".join(f"| {' | '.join(line)} |" for line in lines))
    parts.append("\n".join(f"- {name}: {value}" for name, value in report.settings.items()))
    parts.append("Versions: " + _versions_text(report))
    return "\n\n".join(parts)


def _versions_text(report: Report) -> str:
    return ", ".join(f"{name} {version}" for name, version in report.versions.items())


def latex(report: Report) -> str:
    """Return the tables in LaTeX for the package booktabs, the best in bold; settings and versions are comments."""
    report = without_local_paths(report)
    lines = ["% \\usepackage{booktabs}"]
    for table in tables_of(report):
        rows = [" & ".join(map(_latex_cell, row)) + " \\\\" for row in (tuple(map(Cell, table.headings)), *table.rows)]
        lines += [
            f"% {_one_line(table.title)}",
            f"\\begin{{tabular}}{{l{'r' * (len(table.headings) - 1)}}}",
            *("\\toprule", rows[0], "\\midrule", *rows[1:], "\\bottomrule", "\\end{tabular}", ""),
        ]
    lines += [f"% {_one_line(f'{name}: {value}')}" for name, value in report.settings.items()]
    return "\n".join([*lines, f"% versions: {_one_line(_versions_text(report))}"])


_LATEX = {
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    **{"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"},
    **{"↑": "$\\uparrow$", "↓": "$\\downarrow$", "±": "$\\pm$", "*": "$^*$"},
}


def _latex_cell(cell: Cell) -> str:
    text = re.sub(r"(?<![\w.])-(?=\d)", "\0", _one_line(cell.text))
    text = "".join(_LATEX.get(mark, mark) for mark in text).replace("\0", "$-$")
    return f"\\textbf{{{text}}}" if cell.is_best else text


def _one_line(text: str) -> str:
    return " ".join(text.split())


def csv_text(report: Report) -> str:
    """Return one row per image and model, then means and paired differences with the ends of their 95 % intervals.

    Columns: `row` ("image", "mean", "mean low", "mean high", "difference", "difference low" or "difference high"),
    `image`, `model` ("A v. B" for A minus B), `n` images, each metric by its name, `seconds` per image (the median),
    and `versions`. Metrics with different numbers of images have separate rows.
    """
    names, versions = [metric.name for metric in report.metrics], _versions_text(report)
    text = io.StringIO()
    columns = ["row", "image", "model", "n", *names, "seconds", "versions"]
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    writer.writeheader()

    def write(row: str, model: str, n: int, values: Mapping[str, float | None], **more: str | float | None) -> None:
        writer.writerow({"row": row, "model": model, "n": n, **values, **more, "versions": versions})

    def write_means(row: str, name: str, found: Sequence[_Mean], **more: float | None) -> None:
        """Write means with their intervals; metrics with the same number of images share a row."""
        for n in sorted({count for _, count, _ in found}, reverse=True) or [0]:
            of_n = {metric: values for metric, count, values in found if count == n}
            for number, end in enumerate(("", " low", " high")):
                values = {metric: ends[number] for metric, ends in of_n.items()}
                if not end or any(value is not None for value in values.values()):
                    write(f"{row}{end}", name, n, values, **({} if end else more))

    for image in report.images:
        for model in report.models:
            scores = image.scores.get(model.name, {})
            write("image", model.name, 1, scores, image=image.name, seconds=image.seconds.get(model.name))
    for model in report.models:
        speed = report.speed(model.name)
        means = [
            (s.metric, s.count, (s.mean, s.low, s.high)) for s in report.summaries if s.model == model.name and s.count
        ]
        write_means("mean", model.name, means, seconds=speed.per_image_s.median if speed else None)
    for first, second in dict.fromkeys((each.first, each.second) for each in report.differences):
        pairs = [each for each in report.differences if (each.first, each.second) == (first, second)]
        means = [(each.metric, each.count, (each.first_minus_second, each.low, each.high)) for each in pairs]
        write_means("difference", f"{first} v. {second}", means)
    return text.getvalue()


_Mean = tuple[str, int, tuple[float | None, float | None, float | None]]
"""Metric, number of images, and the mean with the ends of its interval."""
