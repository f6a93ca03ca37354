"""A curve as a drawing in a page: plain SVG, whose colours the page's style gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from importlib import resources
from itertools import pairwise
from pathlib import Path

from omgsr_cli.errors import FileError, reason_of
from omgsr_cli.imaging import Picture, encode_picture, read_picture, resize, write_atomically
from omgsr_cli.pages.template import data_address, definitions, escape, fill_page
from omgsr_cli.training.logs import Curve, History

PAGE_NAME = "report.html"
_MARK = '<meta name="generator" content="omgsr train">'

_MOST_GRIDS = 6
_LARGEST_PX = 1200
_QUALITY = 85


def write_run_page(history: History) -> Path:
    """Write a run's page into its folder, over the one that an earlier call wrote.

    Returns:
        The page.
    Raises:
        FileError: a picture cannot be read, the page cannot be written, or what is there is none of ours.
    """
    path = history.folder / PAGE_NAME
    _check_own(path)
    last = max((curve.steps[-1] for curve in (*history.losses, *history.scores)), default=0)
    steps = history.settings.get("train.steps")
    # Before the first checkpoint, how many there will be is not written down.
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
    """Take the newest, the oldest and some between them, evenly; the newest first."""
    if len(grids) <= _MOST_GRIDS:
        return list(reversed(grids))
    share = (len(grids) - 1) / (_MOST_GRIDS - 1)
    return [grids[round(number * share)] for number in reversed(range(_MOST_GRIDS))]


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
    return (
        f'<div class="plots">{"".join(draw_curve(curve) for curve in curves)}</div>'
        '<div class="scroll"><table><caption>first and last: means of a tenth of the rows</caption>'
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
    return "".join(drawn) or '<p class="none">There are none.</p>'


def _shrink(path: Path) -> tuple[str, int, int]:
    """A picture as a JPEG in an address, not wider than a page shows it; its height and width in px."""
    image = read_picture(path).rgb
    height, width = image.shape[1:]
    if width > _LARGEST_PX:
        height, width = max(1, round(height * _LARGEST_PX / width)), _LARGEST_PX
        image = resize(image, (height, width))
    parts, _ = encode_picture(Picture(image), name=str(path), format="jpg", quality=_QUALITY)
    return data_address("image/jpeg", b"".join(parts)), height, width


def _check_own(path: Path) -> None:
    """Refuse to write over what is not a page of a run."""
    try:
        own = not path.exists() or _MARK in path.read_text("utf-8", errors="replace")[:2000]
    except OSError as error:
        raise FileError(f"{path} cannot be written: {reason_of(error)}") from error
    if not own:
        raise FileError(f"{path} is not a page that omgsr train wrote", "move it away")


_WIDTH, _HEIGHT = 560, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 66, 12, 30, 24
_MOST_POINTS = 600
"""Of a line; more are not seen."""

_FEW_POINTS = 30
"""Up to here a point is drawn for each value, and none is smoothed."""

_WIDE = 30
"""Positive values whose largest is more than this times their least are drawn by their logarithm."""


def draw_curve(curve: Curve) -> str:
    """Draw values over steps: as they are, and, where there are many, their running mean over a twentieth."""
    thin_steps, thin_values = thin(curve.steps, _MOST_POINTS), thin(curve.values, _MOST_POINTS)
    few = len(curve.values) <= _FEW_POINTS
    smooth = thin_values if few else running_mean(thin_values, max(3, len(thin_values) // 20))
    low, high = min(thin_values), max(thin_values)
    is_log = low > 0 and high > _WIDE * low
    bottom, top = (math.log(low), math.log(high)) if is_log else (low, high)
    span, steps_span = (top - bottom) or 1.0, (curve.steps[-1] - curve.steps[0]) or 1

    def points(values: Sequence[float]) -> list[tuple[float, float]]:
        heights = [math.log(value) if is_log else value for value in values]
        return [
            (
                _LEFT + (step - curve.steps[0]) / steps_span * (_WIDTH - _LEFT - _RIGHT),
                _HEIGHT - _BOTTOM - (height - bottom) / span * (_HEIGHT - _TOP - _BOTTOM),
            )
            for step, height in zip(thin_steps, heights, strict=True)
        ]

    parts = [_axes(curve, low, high, is_log=is_log)]
    if few:
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" class="dot"/>' for x, y in points(thin_values)]
    else:
        parts.append(_line(points(thin_values), "raw"))
    parts.append(_line(points(smooth), "curve"))
    title = escape(curve.name)
    return (
        f'<svg class="plot" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{title} over steps">'
        f'<text x="0" y="14" class="title">{title}</text>'
        f'<text x="{_WIDTH - _RIGHT}" y="14" class="last">{curve.values[-1]:.4g}</text>{"".join(parts)}</svg>'
    )


def thin(values: Sequence[float], most: int) -> list[float]:
    """Give means of equal stretches of values, so that there are no more than `most`."""
    count = min(len(values), most)
    edges = [number * len(values) // count for number in range(count + 1)]
    return [math.fsum(values[start:end]) / (end - start) for start, end in pairwise(edges)]


def running_mean(values: Sequence[float], reach: int) -> list[float]:
    """Give the mean of each value and those before it, `reach` in all; of fewer at the beginning."""
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    starts = [max(0, end - reach) for end in range(1, len(sums))]
    return [(sums[end] - sums[start]) / (end - start) for end, start in enumerate(starts, 1)]


def mean_of_ends(values: Sequence[float]) -> tuple[float, float]:
    """Give the means of the first and of the last tenth of values, of one at least."""
    count = max(1, len(values) // 10)
    return math.fsum(values[:count]) / count, math.fsum(values[-count:]) / count


def _axes(curve: Curve, low: float, high: float, *, is_log: bool) -> str:
    middle = math.sqrt(low * high) if is_log else (low + high) / 2
    values = (low, middle, high) if high > low else (low,)
    parts = []
    for number, value in enumerate(values):
        y = _HEIGHT - _BOTTOM - number / 2 * (_HEIGHT - _TOP - _BOTTOM)
        parts.append(f'<line x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" class="rule"/>')
        parts.append(f'<text x="{_LEFT - 8}" y="{y + 4:.1f}" class="tick value">{value:.4g}</text>')
    for step, x in ((curve.steps[0], _LEFT), (curve.steps[-1], _WIDTH - _RIGHT - 14)):
        parts.append(f'<text x="{x}" y="{_HEIGHT - 6}" class="tick">{step}</text>')
    return "".join(parts)


def _line(points: Sequence[tuple[float, float]], kind: str) -> str:
    return f'<polyline points="{" ".join(f"{x:.1f},{y:.1f}" for x, y in points)}" class="{kind}"/>'
