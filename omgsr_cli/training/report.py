"""`--report`: a self-contained page of a run with its curves and validation images."""

from __future__ import annotations

import io
import math
import warnings
from collections.abc import Sequence
from importlib import resources
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from omgsr_cli.errors import FileError, reason_of
from omgsr_cli.imaging import SourceImage, encode_image, read_image, resize, write_atomically
from omgsr_cli.packages import install_command
from omgsr_cli.pages.template import data_address, definitions, escape, fill_page, printable
from omgsr_cli.training.logs import Curve, History

PAGE_NAME = "report.html"
_MARK = '<meta name="generator" content="omgsr train">'

_MOST_GRIDS = 6
_LARGEST_PX = 1200
_QUALITY = 85

_FEW_POINTS = 30
"""Largest number of values that are drawn as dots without a running mean."""

_WIDE = 30
"""Ratio of the largest to the smallest positive value above which the axis is logarithmic."""


def can_plot() -> bool:
    """Return whether matplotlib is installed, which draws the curves."""
    return find_spec("matplotlib") is not None


def write_run_page(history: History) -> Path:
    """Write a run's page into its folder and replace the page of an earlier call.

    Returns:
        The path of the page; without matplotlib it has tables but no curves.
    Raises:
        FileError: an image cannot be read, the page cannot be written, or another program's page exists.
    """
    path = history.folder / PAGE_NAME
    _check_own(path)
    last = max((curve.steps[-1] for curve in (*history.losses, *history.scores)), default=0)
    steps = history.settings.get("train.steps")
    # The total is unknown before the first checkpoint.
    of_all = "" if steps is None else f" of {steps}"
    text = fill_page(
        resources.files("omgsr_cli") / "training" / "page_files",
        "run.html",
        title=escape(history.folder.resolve().name),
        summary=escape(f"omgsr train, {last}{of_all} steps"),
        losses=_section(history.losses, "No row has been written yet."),
        validation=_section(history.scores, "None were measured."),
        grids=_grids(history.grids),
        about=definitions(history.settings.items()),
    )
    write_atomically(path, [text.encode("utf-8", "backslashreplace")], overwrite=True)
    return path


def choose_grids(grids: Sequence[tuple[int, Path]]) -> list[tuple[int, Path]]:
    """Choose the newest, the oldest and evenly spaced grids between them, newest first."""
    if len(grids) <= _MOST_GRIDS:
        return list(reversed(grids))
    share = (len(grids) - 1) / (_MOST_GRIDS - 1)
    return [grids[round(number * share)] for number in reversed(range(_MOST_GRIDS))]


def plot_curves(curves: Sequence[Curve]) -> bytes:
    """Plot values over steps as a PNG; long curves also have a running mean over a twentieth of their values."""
    # pyplot is avoided, because it would select a window system and keep the figure in memory.
    from matplotlib.figure import Figure

    rows = math.ceil(len(curves) / 2)
    figure = Figure(figsize=(11, 2.6 * rows), layout="constrained")
    panels = list(figure.subplots(rows, 2, squeeze=False).flat)
    for curve, axes in zip(curves, panels, strict=False):
        values = np.array(curve.values)
        few = len(values) <= _FEW_POINTS
        axes.plot(curve.steps, values, color="#0072b2", alpha=1 if few else 0.35, lw=1, marker="o" if few else None)
        if not few:
            axes.plot(curve.steps, running_mean(values, max(3, len(values) // 20)), color="#0072b2", lw=1.8)
        if values.min() > 0 and values.max() > _WIDE * values.min():
            axes.set_yscale("log")
        axes.set_title(printable(curve.name), loc="left", fontsize=10, parse_math=False)
        axes.set_title(f"{values[-1]:.4g}", loc="right", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    for axes in panels[len(curves) :]:
        axes.set_axis_off()
    drawn = io.BytesIO()
    with warnings.catch_warnings():
        # The warnings are about glyphs that the font does not have.
        warnings.simplefilter("ignore", UserWarning)
        figure.savefig(drawn, format="png", dpi=110)
    return drawn.getvalue()


def running_mean(values: np.ndarray[tuple[int], np.dtype[np.float64]], reach: int) -> list[float]:
    """Compute the mean of each value and the values before it, `reach` values in total, fewer at the start."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(sums))
    starts = np.maximum(0, ends - reach)
    means: list[float] = ((sums[ends] - sums[starts]) / (ends - starts)).tolist()
    return means


def mean_of_ends(values: Sequence[float]) -> tuple[float, float]:
    """Return the means of the first and the last tenth of the values, each of at least one value."""
    count = max(1, len(values) // 10)
    return math.fsum(values[:count]) / count, math.fsum(values[-count:]) / count


def _section(curves: Sequence[Curve], otherwise: str) -> str:
    if not curves:
        return f'<p class="none">{otherwise}</p>'
    rows = []
    for curve in curves:
        first, last = mean_of_ends(curve.values)
        cells = (first, last, min(curve.values), max(curve.values))
        numbers = "".join(f"<td>{value:.4g}</td>" for value in cells)
        rows.append(f'<tr><th scope="row">{escape(curve.name)}</th>{numbers}</tr>')
    head = "".join(f'<th scope="col">{name}</th>' for name in ("", "first", "last", "least", "most"))
    if can_plot():
        names = ", ".join(escape(curve.name) for curve in curves)
        plot = f'<img class="plot" src="{data_address("image/png", plot_curves(curves))}" alt="{names} over steps">'
    else:
        plot = f'<p class="none">Curves need matplotlib: {escape(install_command("plot"))}</p>'
    return (
        f'{plot}<div class="scroll"><table><caption>first and last: means of a tenth of the rows</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _grids(grids: Sequence[tuple[int, Path]]) -> str:
    drawn = []
    for number, (step, path) in enumerate(choose_grids(grids)):
        address, height, width = _shrink(path)
        opened = "" if number else " open"
        drawn.append(
            f'<details class="grid"{opened}><summary>step {step}</summary><img src="{address}" width="{width}" '
            f'height="{height}" alt="low quality, output and reference after step {step}"></details>'
        )
    return "".join(drawn) or '<p class="none">None were written.</p>'


def _shrink(path: Path) -> tuple[str, int, int]:
    """Encode an image as a JPEG data URL, at most `_LARGEST_PX` wide; return the URL, height and width in px."""
    image = read_image(path).rgb
    height, width = image.shape[1:]
    if width > _LARGEST_PX:
        height, width = max(1, round(height * _LARGEST_PX / width)), _LARGEST_PX
        image = resize(image, (height, width))
    parts, _ = encode_image(SourceImage(image), name=str(path), format="jpg", quality=_QUALITY)
    return data_address("image/jpeg", b"".join(parts)), height, width


def _check_own(path: Path) -> None:
    """Raise an error if the file exists and is not the page of a run."""
    try:
        own = not path.exists() or _MARK in path.read_text("utf-8", errors="replace")[:2000]
    except OSError as error:
        raise FileError(f"{path} cannot be written: {reason_of(error)}") from error
    if not own:
        raise FileError(f"{path} is not a page that omgsr train wrote", "move it away")
