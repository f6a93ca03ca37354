"""Write the HTML page: the tables, the distributions, and every image before and after."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from urllib.parse import quote

from omgsr_cli.benchmark.results import MetricInfo, Report
from omgsr_cli.benchmark.tables import Table, tables_of, without_local_paths
from omgsr_cli.errors import FileError, reason_of
from omgsr_cli.files.addresses import json_text
from omgsr_cli.files.atomic import write_atomically
from omgsr_cli.imaging import SourceImage, encode_image, probe_image, read_image
from omgsr_cli.options import OutputFormat
from omgsr_cli.pages.template import data_address, definitions, escape, fill_page, printable

INPUT, REFERENCE = "input", "reference"
# Browsers show these formats; others are converted to PNG, which is lossless for 8 and 16 bits.
_SHOWN = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp", ".gif": "image/gif"}
# For images inside the page: a tenth of the size of PNG for a photograph of 512 px, without a visible loss at zoom 4.
_WEBP_QUALITY = 90
_ABOUT_IMAGES = f"The images in this page are WebP of quality {_WEBP_QUALITY}"
_PLOT_WIDTH, _ROW_HEIGHT, _MARGIN = 560, 30, 150


def write_page(report: Report, path: Path, image_folder: Path | None = None, *, overwrite: bool = False) -> None:
    """Write a report as one page that opens from disk and needs no network.

    With `image_folder`, image files are copied unchanged, so the page shows the scored pixels. Otherwise the page
    embeds the images as high-quality WebP, and a line on the page states this; files that are smaller than their WebP
    are embedded unchanged.

    Args:
        report: the report of the benchmark.
        path: path of the page.
        image_folder: folder for its images; None embeds them in the page.
        overwrite: whether an existing page and existing images are replaced.
    Raises:
        FileError: an image cannot be read, or a file cannot be written.
    """
    report = without_local_paths(report)
    files = _ImageFiles(path, image_folder, overwrite)
    images = [
        {
            "name": printable(image.name),
            "views": {
                printable(view): files.place(
                    file, f"{number:04}_{position}", image.compared_px if view != INPUT else None
                )
                for position, (view, file) in enumerate(_views(report, number))
            },
            "scores": {
                printable(model): {metric: _finite(score) for metric, score in scores.items()}
                for model, scores in image.scores.items()
            },
            "errors": {printable(model): printable(text) for model, text in image.error.items()},
        }
        for number, image in enumerate(report.images)
    ]
    metrics = [
        {"name": m.name, "arrow": m.arrow, "lower": m.lower_is_better} for m in report.metrics if not m.scores_sets
    ]
    data = {"images": images, "metrics": metrics, "models": [printable(model.name) for model in report.models]}
    text = fill_page(
        resources.files("omgsr_cli") / "benchmark" / "page_files",
        "report.html",
        title=escape(report.title),
        created=escape(report.created),
        about_images=""
        if image_folder
        else _ABOUT_IMAGES + ("; scores were computed from the files." if metrics else "."),
        tables="\n".join(_table(table) for table in tables_of(report)),
        plots=_plots(report),
        failures=_failures(report),
        about=_about(report),
        # A name may contain "</script>", so escape "<" in JSON.
        data=json_text(data).replace("<", "\\u003c"),
    )
    write_atomically(path, [text.encode("utf-8", "backslashreplace")], overwrite=overwrite)


def _views(report: Report, number: int) -> Iterator[tuple[str, Path]]:
    """Yield the views of an image, from the input to the reference."""
    image = report.images[number]
    if image.input is not None:
        yield INPUT, image.input
    yield from ((model.name, image.restored[model.name]) for model in report.models if model.name in image.restored)
    if image.reference is not None:
        yield REFERENCE, image.reference


@dataclass(frozen=True)
class _ImageFiles:
    """Copies image files into a folder, or embeds them in the page."""

    page: Path
    folder: Path | None
    overwrite: bool

    def place(self, source: Path, name: str, shown_px: tuple[int, int] | None) -> str:
        """Copy an image into the folder, or encode it, and return its URL.

        Args:
            source: the image.
            name: name of its copy.
            shown_px: height and width of the part to show, from the top left; None shows the full image.
        """
        suffix, image = source.suffix.lower(), None
        is_whole = shown_px is None or probe_image(source).size_px == tuple(shown_px)
        if suffix in _SHOWN and is_whole:
            try:
                content = source.read_bytes()
            except OSError as error:
                raise FileError(f"{source} cannot be read: {reason_of(error)}") from error
        else:
            image, suffix = read_image(source), ".png"
            if shown_px is not None and not is_whole:
                image = SourceImage(image.rgb[:, : shown_px[0], : shown_px[1]])
            content = _encoded(image, source, "png")
        if self.folder is None:
            smaller = _encoded(image or read_image(source), source, "webp") if suffix == ".png" else content
            return data_address(*min(("image/webp", smaller), (_SHOWN[suffix], content), key=lambda each: len(each[1])))
        copy = self.folder / f"{name}{suffix}"
        write_atomically(copy, [content], overwrite=self.overwrite)
        # Use a relative URL: an absolute one would contain folders of this machine.
        return quote(Path(os.path.relpath(copy.resolve(), self.page.resolve().parent)).as_posix())


def _encoded(image: SourceImage, source: Path, format: OutputFormat) -> bytes:
    """Encode an image without metadata."""
    parts, _ = encode_image(image, name=str(source), format=format, quality=_WEBP_QUALITY, metadata="none")
    return b"".join(parts)


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(heading)}</th>' for heading in table.headings)
    rows = []
    for name, *cells in table.rows:
        # Each cell also contains its heading, which narrow windows show beside the number.
        numbers = "".join(
            f'<td data-label="{escape(heading)}"{" class=best" if cell.is_best else ""}>{escape(cell.text)}</td>'
            for heading, cell in zip(table.headings[1:], cells, strict=True)
        )
        rows.append(f'<tr><th scope="row">{escape(name.text)}</th>{numbers}</tr>')
    caption = escape(table.title)
    return (
        f'<div class="scroll"><table class="stack"><caption>{caption}</caption><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


def _plots(report: Report) -> str:
    """Return the section of distributions; empty without scores of single images."""
    plots = "\n".join(_plot(report, metric) for metric in report.metrics if not metric.scores_sets)
    head = '<section aria-labelledby="spread"><h2 id="spread">Distributions</h2><div class="plots">'
    return f"{head}{plots}</div></section>" if plots else ""


def _plot(report: Report, metric: MetricInfo) -> str:
    """Plot a row of dots for each model, one dot per image, with the mean and its interval."""
    rows = [(model.name, report.scores(model.name, metric.name)) for model in report.models]
    values = [value for _, scores in rows for value in scores if math.isfinite(value)]
    if not values:
        return ""
    summaries = {name: report.summary(name, metric.name) for name, _ in rows}
    ends = [end for each in summaries.values() for end in (each.low, each.high) if end is not None]
    low, high = (end(value for value in (*values, *ends) if math.isfinite(value)) for end in (min, max))
    span = high - low or 1.0
    width = _PLOT_WIDTH - _MARGIN - 20
    drawn = []
    for number, (name, scores) in enumerate(rows):
        y = 34 + number * _ROW_HEIGHT
        label = printable(name)
        label = escape(label if len(label) <= 20 else f"{label[:9]}…{label[-10:]}")
        drawn.append(f'<text x="{_MARGIN - 12}" y="{y + 4}" class="label">{label}</text>')
        drawn.append(f'<line x1="{_MARGIN}" x2="{_MARGIN + width}" y1="{y}" y2="{y}" class="rule"/>')
        for score in (value for value in scores if math.isfinite(value)):
            x = _MARGIN + (score - low) / span * width
            drawn.append(f'<circle cx="{x:.1f}" cy="{y}" r="4" class="dot"/>')
        summary = summaries[name]
        if summary.mean is not None and math.isfinite(summary.mean):
            low_end, high_end = (summary.mean if end is None else end for end in (summary.low, summary.high))
            places = (low_end, summary.mean, high_end)
            left, middle, right = (_MARGIN + (value - low) / span * width for value in places)
            drawn.append(f'<line x1="{left:.1f}" x2="{right:.1f}" y1="{y}" y2="{y}" class="interval"/>')
            drawn.append(f'<line x1="{middle:.1f}" x2="{middle:.1f}" y1="{y - 9}" y2="{y + 9}" class="mean"/>')
    height = 34 + len(rows) * _ROW_HEIGHT
    axis = "".join(
        f'<text x="{_MARGIN + share * width:.0f}" y="{height + 4}" class="tick">{low + share * span:.4g}</text>'
        for share in (0, 0.5, 1)
    )
    title = f"{escape(metric.name)} {metric.arrow}"
    return (
        f'<svg class="plot" viewBox="0 0 {_PLOT_WIDTH} {height + 12}" role="img" aria-label="scores in {title}">'
        f'<text x="0" y="14" class="title">{title}</text>{"".join(drawn)}{axis}</svg>'
    )


def _failures(report: Report) -> str:
    items = [
        f"<li><b>{escape(each.name)}</b>: {escape(each.message)}"
        + (f" <i>{escape(each.hint)}</i>" if each.hint else "")
        + "</li>"
        for each in report.failures
    ]
    return f'<section class="failures"><h2>Failed</h2><ul>{"".join(items)}</ul></section>' if items else ""


def _about(report: Report) -> str:
    pairs = [
        *((f"metric {metric.name}", metric.settings) for metric in report.metrics if metric.settings),
        *((f"model {model.name}", model.detail) for model in report.models if model.detail),
        *report.settings.items(),
        *((f"version of {name}", version) for name, version in report.versions.items()),
    ]
    return definitions(pairs)


def _finite(score: float | None) -> float | str | None:
    """Return a score for JSON, which has no infinity: the PSNR of identical images becomes a string."""
    return score if score is None or math.isfinite(score) else "∞"
