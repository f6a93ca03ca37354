"""Means with intervals, paired differences, and quantiles."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from functools import lru_cache
from itertools import combinations

import numpy as np

from omgsr_cli.benchmark.results import ImageResult, MetricInfo, PairedDifference, Quantiles, Summary

_CONFIDENCE = 0.95


def mean_interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Mean of values and the ends of its 95 % interval by Student's t; no interval for a single value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None, None
    half = t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


@lru_cache
def t_quantile(freedom: int) -> float:
    """The t for which -t..t contains 95 % of Student's distribution; `freedom` is at least 1."""
    low, high = 0.0, 16.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_share(middle, freedom) < _CONFIDENCE else (low, middle)
    return high


def _t_share(t: float, freedom: int) -> float:
    """Share of Student's distribution within -t..t, by its finite series for whole degrees of freedom.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    angle = math.atan2(t, math.sqrt(freedom))
    odd = freedom % 2
    # Even powers of the cosine for even degrees of freedom, odd powers for odd ones.
    term = math.cos(angle) if odd else 1.0
    total = term if freedom > 1 else 0.0
    for power in range(2 + odd, freedom - 1, 2):
        term *= math.cos(angle) ** 2 * (power - 1) / power
        total += term
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total


def quantiles(values: Sequence[float]) -> Quantiles:
    """Median, 10th and 90th percentile, interpolated between the values."""
    return Quantiles(*(float(value) for value in np.quantile(values, (0.5, 0.1, 0.9))))


def summarise(images: Sequence[ImageResult], models: Sequence[str], metrics: Sequence[MetricInfo]) -> list[Summary]:
    """Mean and interval for each model and each metric that scores single images."""
    return [
        _summary(model, metric.name, list(_scores(images, model, metric.name).values()))
        for model in models
        for metric in metrics
        if not metric.scores_sets
    ]


def compare(
    images: Sequence[ImageResult], models: Sequence[str], metrics: Sequence[MetricInfo]
) -> list[PairedDifference]:
    """Mean difference and interval for each pair of models, over the images that both have a score for."""
    found = []
    for first, second in combinations(models, 2):
        for metric in metrics:
            left, right = (_scores(images, model, metric.name) for model in (first, second))
            differences = [left[name] - right[name] for name in left if name in right]
            if differences:
                found.append(
                    PairedDifference(first, second, metric.name, len(differences), *mean_interval(differences))
                )
    return found


def _summary(model: str, metric: str, values: list[float]) -> Summary:
    if not values:
        return Summary(model, metric, 0, None)
    return Summary(model, metric, len(values), *mean_interval(values))


def _scores(images: Sequence[ImageResult], model: str, metric: str) -> dict[str, float]:
    found = {image.name: image.scores.get(model, {}).get(metric) for image in images}
    return {name: value for name, value in found.items() if value is not None}
