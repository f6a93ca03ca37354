"""A report as tables: for a terminal, in Markdown, LaTeX and CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from omgsr_cli.benchmark.results import MetricInfo, PairedDifference, Quantiles, Report, Summary


@dataclass(frozen=True)
class Cell:
    """A text, and whether it is the best of its column."""

    text: str
    is_best: bool = False


@dataclass(frozen=True)
class Table:
    """Headings and rows of equal length; the first column has names, the others mostly numbers."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    is_numeric: bool = True


def tables_of(report: Report) -> list[Table]:
    """The tables of a report: scores, paired differences, speed; empty tables are left out."""
    tables = [score_table(report), difference_table(report), speed_table(report)]
    return [table for table in tables if table.rows]


def score_table(report: Report) -> Table:
    """Means with half of their 95 % interval, one row per model; `n` counts the images of the columns before it."""
    if not report.metrics:
        return Table(report.title, ("model",), ())
    best = {metric.name: report.best(metric.name) for metric in report.metrics}

    def cells(model: str, metrics: list[MetricInfo]) -> Iterator[Cell]:
        found = [report.summary(model, metric.name) for metric in metrics]
        yield from (Cell(mean_text(each), model in best[each.metric]) for each in found)
        yield Cell(str(found[0].count))

    names = [model.name for model in report.models]
    groups = _with_equal_counts(
        report.metrics, lambda metric: tuple(report.summary(name, metric.name).count for name in names)
    )
    rows = tuple((Cell(name), *(cell for group in groups for cell in cells(name, group))) for name in names)
    return Table(report.title, ("model", *_headings(groups)), rows)


def difference_table(report: Report) -> Table:
    """Mean differences for each pair of models over the same images; `n` as in the table of scores."""
    pairs = list(dict.fromkeys((each.first, each.second) for each in report.differences))
    found = {(each.first, each.second, each.metric): each for each in report.differences}

    def count(pair: tuple[str, str], metric: MetricInfo) -> int:
        difference = found.get((*pair, metric.name))
        return difference.count if difference else 0

    def cells(pair: tuple[str, str], metrics: list[MetricInfo]) -> Iterator[Cell]:
        for metric in metrics:
            difference = found.get((*pair, metric.name))
            yield Cell(difference_text(difference, report.summary(pair[0], metric.name).mean or 0.0))
        yield Cell(str(count(pair, metrics[0])))

    metrics = [metric for metric in report.metrics if not metric.scores_sets]
    groups = _with_equal_counts(metrics, lambda metric: tuple(count(pair, metric) for pair in pairs))
    rows = tuple(
        (Cell(f"{pair[0]} v. {pair[1]}"), *(cell for group in groups for cell in cells(pair, group))) for pair in pairs
    )
    title = "paired differences, first minus second: mean ± half of its 95 % interval; * if it excludes 0"
    return Table(title, ("models", *_headings(groups)), rows)


def speed_table(report: Report) -> Table:
    """Seconds and memory, one row per restoring model; empty if no model was timed."""
    headings = (
        *("model", "s per image", "s per megapixel", "n", "load s", "process MiB", "device MiB", "device", "precision"),
    )
    rows = []
    for model in report.models if report.speeds else ():
        speed = report.speed(model.name)
        if speed is not None:
            kept = f", {speed.kept_runs} from earlier runs" if speed.kept_runs else ""
            texts = [
                quantiles_text(speed.per_image_s),
                quantiles_text(speed.per_megapixel_s),
                f"{speed.runs}{kept}",
                f"{speed.load_s:.2f}",
                f"{speed.peak_process_mib:.0f}",
                "-" if speed.peak_device_mib is None else f"{speed.peak_device_mib:.0f}",
                speed.device,
                speed.precision,
            ]
        elif model.kind == "given":
            continue
        else:
            texts = ["-", "-", "0", *["-"] * 5]
        rows.append((Cell(model.name), *map(Cell, texts)))
    return Table("speed, median (10th to 90th percentile)", headings, tuple(rows))


def _with_equal_counts(
    metrics: Iterable[MetricInfo], counts: Callable[[MetricInfo], tuple[int, ...]]
) -> list[list[MetricInfo]]:
    """Neighbouring metrics with the same number of images share one column `n`."""
    return [list(group) for _, group in groupby(metrics, counts)]


def _headings(groups: list[list[MetricInfo]]) -> list[str]:
    return [text for group in groups for text in (*(f"{metric.name} {metric.arrow}" for metric in group), "n")]


def mean_text(summary: Summary) -> str:
    """Such as "26.58 ± 1.21"; "-" without a score."""
    if summary.mean is None:
        return "-"
    return number_text(summary.mean, summary.mean) + _half_text(summary.mean, summary.high, summary.mean)


def difference_text(difference: PairedDifference | None, like: float) -> str:
    """Such as "+0.41 ± 0.12 *"; "-" if no image has both scores.

    Args:
        difference: of two models.
        like: one of their scores, which sets the number of digits.
    """
    if difference is None:
        return "-"
    mean = difference.first_minus_second
    sign = "+" if mean > 0 else ""
    mark = " *" if difference.is_clear else ""
    return sign + number_text(mean, like) + _half_text(mean, difference.high, like) + mark


def quantiles_text(values: Quantiles) -> str:
    """Such as "1.23 (1.20 to 1.31)"."""
    return f"{values.median:.3g} ({values.p10:.3g} to {values.p90:.3g})"


def number_text(value: float, like: float) -> str:
    """A score with two decimals if `like` is at least 10, otherwise with four."""
    return f"{value:.2f}" if abs(like) >= 10 else f"{value:.4f}"


def _half_text(mean: float, high: float | None, like: float) -> str:
    return "" if high is None else f" ± {number_text(high - mean, like)}"


def without_local_paths(report: Report) -> Report:
    """A report whose texts contain names but no paths of this machine; image files keep their paths.

    For published reports: pages, Markdown and LaTeX.
    """
    files = [path for image in report.images for path in (image.input, image.reference, *image.restored.values())]
    folders = {place for path in files if path for place in (path.parent, path.absolute().parent)}
    folders |= {Path.cwd(), Path.home()}
    named = sorted((str(folder) for folder in folders if len(folder.parts) > 1), key=len, reverse=True)

    def clean(text: str) -> str:
        for folder in named:
            text = text.replace(folder + "/", "").replace(folder + "\\", "")
        return _FOLDERS.sub("", text)

    def cleaned(texts: Mapping[str, str]) -> dict[str, str]:
        return {name: clean(text) for name, text in texts.items()}

    return replace(
        report,
        title=clean(report.title),
        models=tuple(replace(model, detail=_without_folders(model.detail, clean)) for model in report.models),
        images=tuple(replace(image, error=cleaned(image.error)) for image in report.images),
        failures=tuple(
            replace(each, name=clean(each.name), message=clean(each.message), hint=each.hint and clean(each.hint))
            for each in report.failures
        ),
        settings=cleaned(report.settings),
    )


def _without_folders(detail: str, clean: Callable[[str], str]) -> str:
    """A model's detail with names instead of paths, which may contain spaces."""

    def named(part: str) -> str:
        is_place = bool(part) and (Path(part).is_absolute() or Path(part).exists())
        return Path(part).name if is_place else clean(part)

    return "; ".join(map(named, detail.split("; ")))


# The folders of an absolute path, up to the name of the file or the last folder; not of a URL with "://".
_FOLDERS = re.compile(r"(?<![\w/:.\\])(?:~|[A-Za-z]:)?[/\\](?:[^/\\\s'\"]+[/\\])+(?=[^/\\\s])")


def markdown(report: Report) -> str:
    """The tables in Markdown with the best in bold, followed by settings and versions."""
    report = without_local_paths(report)
    parts = [f"### {table.title}\n\n{_markdown_table(table)}" for table in tables_of(report)]
    parts.append("\n".join(f"- {name}: {value}" for name, value in report.settings.items()))
    parts.append("Versions: " + _versions_text(report))
    return "\n\n".join(parts)


def _versions_text(report: Report) -> str:
    return ", ".join(f"{name} {version}" for name, version in report.versions.items())


def _markdown_table(table: Table) -> str:
    rule = ["---", *("---:" for _ in table.headings[1:])]
    rows = [[_markdown_cell(cell) for cell in row] for row in table.rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [list(table.headings), rule, *rows])


def _markdown_cell(cell: Cell) -> str:
    text = cell.text.replace("|", "\\|").replace("*", "\\*")
    return f"**{text}**" if cell.is_best else text


def latex(report: Report) -> str:
    """The tables in LaTeX for the package booktabs, with the best in bold; settings and versions are comments."""
    report = without_local_paths(report)
    parts = ["% \\usepackage{booktabs}"]
    for table in tables_of(report):
        rows = [[_latex_cell(cell) for cell in row] for row in table.rows]
        parts += [
            f"% {_one_line(table.title)}",
            f"\\begin{{tabular}}{{l{'r' * (len(table.headings) - 1)}}}",
            "\\toprule",
            " & ".join(map(_latex_text, table.headings)) + " \\\\",
            "\\midrule",
            *(" & ".join(cells) + " \\\\" for cells in rows),
            "\\bottomrule",
            "\\end{tabular}",
            "",
        ]
    parts += [f"% {_one_line(f'{name}: {value}')}" for name, value in report.settings.items()]
    parts.append(f"% versions: {_one_line(_versions_text(report))}")
    return "\n".join(parts)


_LATEX = {
    **{mark: f"\\{mark}" for mark in "&%$#_{}"},
    **{"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}"},
    **{"↑": "$\\uparrow$", "↓": "$\\downarrow$", "±": "$\\pm$", "*": "$^*$"},
}


def _latex_text(text: str) -> str:
    text = re.sub(r"(?<![\w.])-(?=\d)", "\0", _one_line(text))
    return "".join(_LATEX.get(mark, mark) for mark in text).replace("\0", "$-$")


def _latex_cell(cell: Cell) -> str:
    return f"\\textbf{{{_latex_text(cell.text)}}}" if cell.is_best else _latex_text(cell.text)


def _one_line(text: str) -> str:
    return " ".join(text.split())


def csv_text(report: Report) -> str:
    """One row per image and model, then means and paired differences with the ends of their 95 % intervals.

    Columns: `row` ("image", "mean", "mean low", "mean high", "difference", "difference low" or "difference high"),
    `image`, `model` ("A v. B" for A minus B), `n` images, each metric by its name, `seconds` per image (the median),
    and `versions`. Metrics with another number of images have a row of their own.
    """
    names = [metric.name for metric in report.metrics]
    text = io.StringIO()
    writer = csv.DictWriter(
        text, ["row", "image", "model", "n", *names, "seconds", "versions"], lineterminator="\n", restval=""
    )
    writer.writeheader()

    def write(row: str, model: str, n: int, values: Mapping[str, float | None], **more: str | float | None) -> None:
        numbers = {name: repr(value) for name, value in {**values, **more}.items() if isinstance(value, float)}
        texts = {name: value for name, value in more.items() if isinstance(value, str)}
        line = {"row": row, "model": model, "n": n, **numbers, **texts, "versions": _versions_text(report)}
        writer.writerow(line)

    for image in report.images:
        for model in report.models:
            scores = image.scores.get(model.name, {})
            write("image", model.name, 1, scores, image=image.name, seconds=image.seconds.get(model.name))
    for model in report.models:
        speed = report.speed(model.name)
        seconds = speed.per_image_s.median if speed else None
        summaries = [each for each in report.summaries if each.model == model.name and each.count]
        for n in sorted({each.count for each in summaries}, reverse=True) or [0]:
            of_n = [each for each in summaries if each.count == n]
            write("mean", model.name, n, {each.metric: each.mean for each in of_n}, seconds=seconds)
            if any(each.low is not None for each in of_n):
                write("mean low", model.name, n, {each.metric: each.low for each in of_n})
                write("mean high", model.name, n, {each.metric: each.high for each in of_n})
    for (first, second, n), group in _by_pair_and_count(report.differences).items():
        pair = f"{first} v. {second}"
        write("difference", pair, n, {each.metric: each.first_minus_second for each in group})
        if any(each.low is not None for each in group):
            write("difference low", pair, n, {each.metric: each.low for each in group})
            write("difference high", pair, n, {each.metric: each.high for each in group})
    return text.getvalue()


def _by_pair_and_count(
    differences: Iterable[PairedDifference],
) -> dict[tuple[str, str, int], list[PairedDifference]]:
    found: dict[tuple[str, str, int], list[PairedDifference]] = {}
    for each in differences:
        found.setdefault((each.first, each.second, each.count), []).append(each)
    return found
