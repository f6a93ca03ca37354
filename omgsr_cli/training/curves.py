"""A curve as a drawing in a page: plain SVG, whose colours the page's style gives."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from omgsr_cli.pages.template import escape
from omgsr_cli.training.history import Curve

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
