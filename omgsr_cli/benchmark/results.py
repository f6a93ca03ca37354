"""The results of a benchmark: what is kept between runs, records for tables, JSON, CSV and the page, statistics."""

from __future__ import annotations

import hashlib
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np

from omgsr_cli import __version__
from omgsr_cli.errors import OmgsrError, reason_of
from omgsr_cli.files.remembered import Remembered, cache_folder

MetricKind = Literal["full-reference", "no-reference", "set", "no-reference set"]
ModelKind = Literal["omgsr", "resampling", "given"]

_FORMAT = 2
"""Increase this number when the meaning of an entry changes; older entries are then ignored."""


class Cache(Remembered):
    """Hashes and values as in `Remembered`, and restored images; several processes may share a folder.

    Args:
        folder: folder of the cache, created if it is missing; None means a folder in the user's cache.
    Raises:
        OmgsrError: the folder cannot be created or used.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_folder() / "bench"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OmgsrError(
                f"{self.folder}: cannot keep results there: {reason_of(error)}", "use another --cache"
            ) from error
        super().__init__(self.folder)

    def image_path(self, key: str) -> Path:
        """Return the file of a restored image; it exists if the image was restored before."""
        return self.folder / "images" / key[:2] / f"{key}.png"


def key_of(**depends_on: object) -> str:
    """Return a hash of everything that a result depends on, given as plain values by name."""
    text = json.dumps({"format": _FORMAT, **depends_on}, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:40]


def files_identity(*places: Path) -> str:
    """Return a hash of the content of models' folders and files, and of the program's version."""
    with closing(Remembered()) as remembered:
        return key_of(content=remembered.contents(places), version=__version__)


@dataclass(frozen=True)
class MetricInfo:
    """A metric and the meaning of its scores.

    Attributes:
        name: name on the command line; pyiqa's own name if pyiqa computes it.
        kind: "full-reference" compares with a reference, "no-reference" uses only the image, "set" gives one score for
            all images and all references together, "no-reference set" gives one score for all images.
        lower_is_better: whether smaller scores are better.
        score_range: text such as "0, 1"; "~" marks a bound that scores may exceed.
        unit: "dB", or "" for a plain number.
        source: the package that computes it: "omgsr" or "pyiqa".
        settings: the settings that affect the score, such as "Y of YCbCr, no border cropped".
    """

    name: str
    kind: MetricKind
    lower_is_better: bool
    score_range: str
    unit: str = ""
    source: str = "pyiqa"
    settings: str = ""

    @property
    def scores_sets(self) -> bool:
        """Whether the metric computes one score for all images together."""
        return self.kind.endswith("set")

    @property
    def needs_references(self) -> bool:
        """Whether it compares with references."""
        return self.kind in ("full-reference", "set")

    @property
    def arrow(self) -> str:
        """The direction of better scores."""
        return "↓" if self.lower_is_better else "↑"


@dataclass(frozen=True)
class ModelInfo:
    """A model of the comparison, or a folder of restored images.

    Attributes:
        name: unique in a report; tables and the page use it.
        kind: "omgsr" (a model that this program runs), "resampling" (bicubic, lanczos) or "given" (restored before).
        scale: output side divided by input side; None for images restored before.
        parameters: number of weights; None if the model has none, or if the number is unknown.
        identity: hash of weights and options, which affect the results besides the input; "" for given images.
        detail: readable text: the folder or file, the architecture.
    """

    name: str
    kind: ModelKind
    scale: float | None = None
    parameters: int | None = None
    identity: str = ""
    detail: str = ""


@dataclass(frozen=True)
class ImageResult:
    """One image with the results of every model.

    Attributes:
        name: the stem that its files share; unique in a report.
        input: the low-quality image; None if restored images were given without it.
        reference: the high-quality image; None if none exists.
        restored: image file by model name; models that failed on this image are missing.
        scores: score by metric name, by model name; None for a missing score.
        error: why a model failed on this image, one line by model name.
        compared_px: the size (height, width) that restored images and the reference were cropped to, from the top left,
            before they were compared; None without a reference.
        seconds: median of the timed restorations by model name; models that were not timed are missing.
    """

    name: str
    input: Path | None
    reference: Path | None
    restored: Mapping[str, Path]
    scores: Mapping[str, Mapping[str, float | None]]
    error: Mapping[str, str]
    seconds: Mapping[str, float] = field(default_factory=dict)
    compared_px: tuple[int, int] | None = None


@dataclass(frozen=True)
class Summary:
    """A metric's mean over the images of one model, with its 95 % interval.

    Attributes:
        model, metric: names of the model and the metric.
        count: number of images with a score; for a metric of kind "set", number of images in the set.
        mean: None without a score.
        low, high: ends of the interval; None with fewer than two images, and for sets.
    """

    model: str
    metric: str
    count: int
    mean: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class PairedDifference:
    """The mean score difference between two models, over the images that both have a score for.

    Attributes:
        first, second, metric: names of two models and the metric.
        count: number of images that both have a score for.
        first_minus_second: mean of the differences: "ours v. bicubic +0.52" means that ours scores higher.
        low, high: ends of its 95 % interval; None with fewer than two images.
    """

    first: str
    second: str
    metric: str
    count: int
    first_minus_second: float
    low: float | None
    high: float | None

    @property
    def is_clear(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


@dataclass(frozen=True)
class Quantiles:
    """Median and spread of measurements: the median, the 10th and the 90th percentile."""

    median: float
    p10: float
    p90: float


@dataclass(frozen=True)
class Speed:
    """Time and memory of a model.

    Attributes:
        model: its name.
        device: "cpu", "cuda (NVIDIA H100 80GB HBM3)".
        precision: "fp32", "bf16", "fp16"; "8-bit" for resampling.
        runs: number of timed restorations, without warm-up.
        kept_runs: number of these that an earlier run timed on this machine.
        load_s: seconds to load the model.
        per_image_s: seconds per image, without decoding and encoding of files.
        per_megapixel_s: seconds per megapixel (10^6 pixels) of output.
        peak_process_mib: peak resident memory of this process while the model ran, other loaded models included.
        peak_device_mib: peak memory of tensors on an accelerator; None on the CPU.
    """

    model: str
    device: str
    precision: str
    runs: int
    load_s: float
    per_image_s: Quantiles
    per_megapixel_s: Quantiles
    peak_process_mib: float
    peak_device_mib: float | None = None
    kept_runs: int = 0


@dataclass(frozen=True)
class Failure:
    """The failure of a metric, or of a model on an image.

    Attributes:
        name: name of the metric, or "MODEL on IMAGE".
        message: the error, one line.
        hint: the next step, one line, or None.
    """

    name: str
    message: str
    hint: str | None = None

    def line(self) -> str:
        """Return message and hint in one line, because many metrics may fail at once."""
        return f"{self.name}: {self.message}" + (f": {self.hint}" if self.hint else "")


@dataclass(frozen=True)
class Report:
    """All results of a benchmark, in display order.

    Attributes:
        title: title of the page and the table, such as "realsr, 17 images".
        created: time in UTC, ISO 8601 to the second.
        models: in the order of the options.
        metrics: in the order of the options, including those that failed.
        images: in natural order of their names.
        summaries: one for each model and metric.
        differences: one for each pair of models and metric, the earlier model first; none for sets.
        speeds: speeds of the models that this run, or an earlier run on this machine, timed.
        failures: metrics that are not available, and images that could not be restored.
        versions: versions of software that affects results: "omgsr", "torch", "pyiqa", "python", "pillow" ...
        settings: settings of the run as readable text: "data", "device", "precision" ...
    """

    title: str
    created: str
    models: tuple[ModelInfo, ...]
    metrics: tuple[MetricInfo, ...]
    images: tuple[ImageResult, ...]
    summaries: tuple[Summary, ...]
    differences: tuple[PairedDifference, ...]
    speeds: tuple[Speed, ...]
    failures: tuple[Failure, ...]
    versions: Mapping[str, str]
    settings: Mapping[str, str]

    def summary(self, model: str, metric: str) -> Summary:
        """Return the summary of one model and metric; raise KeyError if none exists."""
        return {(each.model, each.metric): each for each in self.summaries}[model, metric]

    def speed(self, model: str) -> Speed | None:
        """Return the speed of one model; None if it was not timed."""
        return next((speed for speed in self.speeds if speed.model == model), None)

    def scores(self, model: str, metric: str) -> tuple[float, ...]:
        """Return the scores of one model in one metric, in the order of the images."""
        values = (image.scores.get(model, {}).get(metric) for image in self.images)
        return tuple(value for value in values if value is not None)

    def best(self, metric: str) -> frozenset[str]:
        """Return the models that share the best mean; empty with fewer than two means."""
        info = next(info for info in self.metrics if info.name == metric)
        means = {s.model: s.mean for s in self.summaries if s.metric == metric and s.mean is not None}
        if len(means) < 2:
            return frozenset()
        wanted = min(means.values()) if info.lower_is_better else max(means.values())
        return frozenset(name for name, mean in means.items() if mean == wanted)


def report_record(report: Report) -> dict[str, Any]:
    """Return a report as a JSON object: every field by its name, paths as text, missing values as null."""
    record: dict[str, Any] = json.loads(json.dumps(asdict(report), default=str))
    return record


def summarise(images: Sequence[ImageResult], models: Sequence[str], metrics: Sequence[MetricInfo]) -> list[Summary]:
    """Return mean and interval for each model and each metric that scores single images."""
    found = []
    for model in models:
        for metric in (metric for metric in metrics if not metric.scores_sets):
            values = list(_scores(images, model, metric.name).values())
            found.append(
                Summary(model, metric.name, len(values), *(mean_interval(values) if values else (None, None, None)))
            )
    return found


def compare(
    images: Sequence[ImageResult], models: Sequence[str], metrics: Sequence[MetricInfo]
) -> list[PairedDifference]:
    """Return mean difference and interval for each pair of models, over the images that both have a score for."""
    found = []
    for first, second in combinations(models, 2):
        for metric in metrics:
            left, right = (_scores(images, model, metric.name) for model in (first, second))
            values = [left[name] - right[name] for name in left if name in right]
            if values:
                found.append(PairedDifference(first, second, metric.name, len(values), *mean_interval(values)))
    return found


def _scores(images: Sequence[ImageResult], model: str, metric: str) -> dict[str, float]:
    found = {image.name: image.scores.get(model, {}).get(metric) for image in images}
    return {name: value for name, value in found.items() if value is not None}


def mean_interval(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Return the mean and the ends of its 95 % interval by Student's t; no interval for a single value."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None, None
    half = t_quantile(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


@lru_cache
def t_quantile(freedom: int) -> float:
    """Return the t for which -t..t contains 95 % of Student's distribution; `freedom` is at least 1."""
    low, high = 0.0, 16.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_share(middle, freedom) < 0.95 else (low, middle)
    return high


def _t_share(t: float, freedom: int) -> float:
    """Return the share of Student's distribution within -t..t, by its finite series for integer degrees of freedom.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    angle, odd = math.atan2(t, math.sqrt(freedom)), freedom % 2
    # The series has even powers of the cosine for even degrees of freedom, and odd powers for odd ones.
    term = math.cos(angle) if odd else 1.0
    total = term if freedom > 1 else 0.0
    for power in range(2 + odd, freedom - 1, 2):
        term *= math.cos(angle) ** 2 * (power - 1) / power
        total += term
    return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total


def quantiles(values: Sequence[float]) -> Quantiles:
    """Return median, 10th and 90th percentile, interpolated between the values."""
    return Quantiles(*(float(value) for value in np.quantile(values, (0.5, 0.1, 0.9))))
