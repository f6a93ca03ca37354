"""Means, intervals and tables of a benchmark."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from omgsr_cli.benchmark.json_report import report_record
from omgsr_cli.benchmark.results import ImageResult, MetricInfo, ModelInfo, Report, Summary
from omgsr_cli.benchmark.statistics import compare, mean_interval, quantiles, summarise, t_quantile
from omgsr_cli.benchmark.tables import csv_text, markdown, mean_text, tables_of

PSNR = MetricInfo("psnr", "full-reference", False, "0, 80", "dB", "omgsr")
LPIPS = MetricInfo("lpips", "full-reference", True, "0, 1")
FID = MetricInfo("fid", "set", True, "0, ~")
VALUES = [21.5, 30.25, 25.0, 28.125, 19.75]


def image(name: str, **scores: dict[str, float | None]) -> ImageResult:
    return ImageResult(name, Path(f"{name}.png"), None, {model: Path("x") for model in scores}, scores, {})


IMAGES = (
    image("one", a={"psnr": 20.0, "lpips": 0.5}, b={"psnr": 21.0, "lpips": 0.4}),
    image("two|*", a={"psnr": 30.0, "lpips": None}, b={"psnr": 33.0, "lpips": 0.3}),
    image("three", a={"psnr": 25.0, "lpips": 0.3}),
)


@pytest.fixture
def report() -> Report:
    metrics = (PSNR, LPIPS, FID)
    summaries = [*summarise(IMAGES, ["a", "b"], metrics), Summary("a", "fid", 2, 50.0), Summary("b", "fid", 0, None)]
    return Report(
        title="three pictures",
        created="2026-01-01T00:00:00+00:00",
        models=(ModelInfo("a", "given"), ModelInfo("b", "resampling")),
        metrics=metrics,
        images=IMAGES,
        summaries=tuple(summaries),
        differences=tuple(compare(IMAGES, ["a", "b"], metrics)),
        speeds=(),
        failures=(),
        versions={"omgsr": "1"},
        settings={"data": "here"},
    )


def test_t_is_students() -> None:
    for freedom in (1, 2, 3, 4, 5, 16, 29, 100, 999):
        assert t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=1e-9)


def test_the_interval_is_the_textbooks() -> None:
    low, high = stats.t.interval(0.95, len(VALUES) - 1, np.mean(VALUES), stats.sem(VALUES))
    assert mean_interval(VALUES) == pytest.approx((np.mean(VALUES), low, high))


def test_one_value_has_no_interval() -> None:
    assert mean_interval([3.5]) == (3.5, None, None)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_quantiles_are_numpys(count: int) -> None:
    found = quantiles(VALUES[:count])
    assert [found.median, found.p10, found.p90] == pytest.approx(np.quantile(VALUES[:count], [0.5, 0.1, 0.9]))


def test_differences_are_taken_in_pairs() -> None:
    psnr, lpips = compare(IMAGES, ["a", "b"], [PSNR, LPIPS])
    assert (psnr.count, psnr.second_minus_first) == (2, 2.0)
    assert (lpips.count, lpips.second_minus_first, lpips.low, lpips.is_clear) == (1, pytest.approx(-0.1), None, False)


def test_what_is_missing_is_not_counted(report: Report) -> None:
    assert report.summary("a", "lpips").count == 2
    assert report.summary("b", "psnr").mean == 27.0
    assert report.scores("b", "lpips") == (0.4, 0.3)
    with pytest.raises(KeyError):
        report.summary("c", "psnr")


def test_the_best_goes_by_the_metrics_direction(report: Report) -> None:
    assert report.best("psnr") == {"b"}
    assert report.best("lpips") == {"b"}
    # Only one of them has this score: there is nothing to compare.
    assert report.best("fid") == frozenset()


def test_tables_mark_the_best_and_the_direction(report: Report) -> None:
    scores, differences = tables_of(report)
    assert scores.headings == ("model", "psnr ↑", "lpips ↓", "fid ↓")
    assert [cell.is_best for cell in scores.rows[1]] == [False, True, True, False]
    assert scores.rows[1][3].text == "-"
    assert differences.rows[0][0].text == "b - a"


def test_digits_follow_the_size() -> None:
    assert mean_text(Summary("a", "psnr", 2, 26.5821, 25.0, 28.1642)) == "26.58 ± 1.58"
    assert mean_text(Summary("a", "ssim", 2, 0.75734, 0.7, 0.81468)) == "0.7573 ± 0.0573"
    assert mean_text(Summary("a", "fid", 9, 123.456)) == "123.46"


def test_markdown_has_the_best_in_bold(report: Report) -> None:
    lines = markdown(report).splitlines()
    assert "| a | 25.00 ± 12.42 | 0.4000 ± 1.2706 | 50.00 |" in lines
    assert any(line.startswith("| b | **27.00 ±") for line in lines)


def test_csv_has_a_line_for_each_picture_and_model(report: Report) -> None:
    rows = list(csv.DictReader(io.StringIO(csv_text(report))))
    # A score of a whole set belongs to no picture.
    assert list(rows[0]) == ["image", "model", "psnr", "lpips"]
    assert len(rows) == 6
    assert rows[2] == {"image": "two|*", "model": "a", "psnr": "30.0", "lpips": ""}
    assert rows[5] == {"image": "three", "model": "b", "psnr": "", "lpips": ""}


def test_the_record_is_json(report: Report) -> None:
    record = json.loads(json.dumps(report_record(report), allow_nan=False))
    assert record["images"][1]["scores"]["a"] == {"psnr": 30.0, "lpips": None}
    assert record["metrics"][1]["lower_is_better"] is True
    assert record["images"][0]["input"] == "one.png"
