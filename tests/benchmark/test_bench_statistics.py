"""Means, intervals and tables of a benchmark."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from omgsr_cli.benchmark.results import (
    Failure,
    ImageResult,
    MetricInfo,
    ModelInfo,
    Quantiles,
    Report,
    Speed,
    Summary,
    compare,
    mean_interval,
    quantiles,
    report_record,
    summarise,
    t_quantile,
)
from omgsr_cli.benchmark.tables import csv_text, latex, markdown, mean_text, tables_of, without_local_paths

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
        title="three images",
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


def test_the_t_quantile_is_that_of_student() -> None:
    for freedom in (1, 2, 3, 4, 5, 16, 29, 100, 999):
        assert t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=1e-9)


def test_the_interval_follows_the_textbook() -> None:
    low, high = stats.t.interval(0.95, len(VALUES) - 1, np.mean(VALUES), stats.sem(VALUES))
    assert mean_interval(VALUES) == pytest.approx((np.mean(VALUES), low, high))


def test_one_value_has_no_interval() -> None:
    assert mean_interval([3.5]) == (3.5, None, None)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_quantiles_equal_numpy(count: int) -> None:
    found = quantiles(VALUES[:count])
    assert [found.median, found.p10, found.p90] == pytest.approx(np.quantile(VALUES[:count], [0.5, 0.1, 0.9]))


def test_differences_are_taken_in_pairs() -> None:
    psnr, lpips = compare(IMAGES, ["a", "b"], [PSNR, LPIPS])
    assert (psnr.count, psnr.first_minus_second) == (2, -2.0)
    assert (lpips.count, lpips.first_minus_second, lpips.low, lpips.is_clear) == (1, pytest.approx(0.1), None, False)


def test_missing_values_are_not_counted(report: Report) -> None:
    assert report.summary("a", "lpips").count == 2
    assert report.summary("b", "psnr").mean == 27.0
    assert report.scores("b", "lpips") == (0.4, 0.3)
    with pytest.raises(KeyError):
        report.summary("c", "psnr")


def test_the_best_follows_the_direction_of_the_metric(report: Report) -> None:
    assert report.best("psnr") == {"b"}
    assert report.best("lpips") == {"b"}
    # Only one of them has this score: there is nothing to compare.
    assert report.best("fid") == frozenset()


def test_tables_mark_the_best_and_the_direction(report: Report) -> None:
    scores, differences = tables_of(report)
    # Each group of metrics that was computed from as many images has its own count.
    assert scores.headings == ("model", "psnr ↑", "n", "lpips ↓", "n", "fid ↓", "n")
    assert [cell.text for cell in scores.rows[0]][2::2] == ["3", "2", "2"]
    assert [cell.text for cell in scores.rows[1]][2::2] == ["2", "2", "0"]
    assert [cell.is_best for cell in scores.rows[1]] == [False, True, False, True, False, False, False]
    assert scores.rows[1][5].text == "-"
    assert differences.headings == ("models", "psnr ↑", "n", "lpips ↓", "n")
    # The first is worse: 20 v. 21 and 30 v. 33 dB.
    assert [cell.text for cell in differences.rows[0]][:3] == ["a v. b", "-2.00 ± 12.71", "2"]


def test_metrics_of_the_same_images_share_one_count(report: Report) -> None:
    alike = replace(
        report,
        metrics=(PSNR, replace(PSNR, name="ssim")),
        summaries=tuple(Summary(model, metric, 3, 0.5) for model in ("a", "b") for metric in ("psnr", "ssim")),
    )
    assert tables_of(alike)[0].headings == ("model", "psnr ↑", "ssim ↑", "n")


def test_models_without_a_time_stay_in_the_table_of_speed(report: Report) -> None:
    speed = Speed("b", "cpu", "fp32", 5, 0.5, Quantiles(1, 1, 1), Quantiles(2, 2, 2), 300.0, kept_runs=3)
    models = (*report.models, ModelInfo("c", "omgsr"))
    timed = replace(report, models=models, speeds=(speed,), metrics=())
    (table,) = tables_of(timed)[-1:]
    n = table.headings.index("n")
    (b, c) = table.rows
    assert (b[0].text, b[1].text, c[0].text, c[1].text, c[n].text) == ("b", "1 (1 to 1)", "c", "-", "0")
    assert b[n].text.startswith("5, 3 ")


def test_latex_is_a_table_for_booktabs(report: Report) -> None:
    named = replace(
        report,
        models=(ModelInfo("a_1 & 2%", "given"), ModelInfo("b", "resampling")),
        summaries=tuple(replace(each, model="a_1 & 2%") if each.model == "a" else each for each in report.summaries),
        differences=tuple(replace(each, first="a_1 & 2%") for each in report.differences),
    )
    lines = latex(named).splitlines()
    assert lines.count("\\toprule") == lines.count("\\end{tabular}") == 2
    first = next(line for line in lines if line.startswith("a\\_1 \\& 2\\%"))
    assert first.count("&") - 1 == 6
    assert first.endswith(" \\\\")
    assert any(line.startswith("b & \\textbf{27.00 $\\pm$") for line in lines)
    assert any("psnr $\\uparrow$ & n & lpips $\\downarrow$" in line for line in lines)
    assert any(line.startswith("a\\_1 \\& 2\\% v. b & $-$2.00") for line in lines)


def test_published_results_name_no_folder_of_this_machine(report: Report, tmp_path: Path) -> None:
    secret = tmp_path / "client Smith"
    private = replace(
        report,
        images=(replace(IMAGES[0], input=secret / "one.png", error={"a": f"{secret}/one.png: cannot be read"}),),
        models=(ModelInfo("a", "omgsr", detail=f"{secret}/deep/net.pth; https://huggingface.co/a/b"),),
        failures=(Failure("a on one", f"no score for {secret}/one.png", "put x.pth into /srv/cache/hub/pyiqa"),),
        settings={"data": str(secret)},
        summaries=tuple(each for each in report.summaries if each.model == "a"),
        differences=(),
    )
    shared = without_local_paths(private)
    assert shared.models[0].detail == "net.pth; https://huggingface.co/a/b"
    assert shared.failures[0].message == "no score for one.png"
    assert shared.failures[0].hint == "put x.pth into pyiqa"
    assert shared.images[0].error == {"a": "one.png: cannot be read"}
    assert shared.images[0].input == secret / "one.png"
    for text in (markdown(private), latex(private)):
        assert str(tmp_path) not in text


def test_digits_follow_the_size() -> None:
    assert mean_text(Summary("a", "psnr", 2, 26.5821, 25.0, 28.1642)) == "26.58 ± 1.58"
    assert mean_text(Summary("a", "ssim", 2, 0.75734, 0.7, 0.81468)) == "0.7573 ± 0.0573"
    assert mean_text(Summary("a", "fid", 9, 123.456)) == "123.46"


def test_markdown_has_the_best_in_bold(report: Report) -> None:
    lines = markdown(report).splitlines()
    assert "| a | 25.00 ± 12.42 | 3 | 0.4000 ± 1.2706 | 2 | 50.00 | 2 |" in lines
    assert any(line.startswith("| b | **27.00 ±") for line in lines)


def test_csv_has_a_line_for_each_image_and_model_then_means_and_differences(report: Report) -> None:
    seconds = replace(IMAGES[1], seconds={"a": 1.5})
    speed = Speed("a", "cpu", "fp32", 1, 0.5, Quantiles(1.5, 1, 2), Quantiles(2, 2, 2), 300.0)
    timed = replace(report, images=(IMAGES[0], seconds, IMAGES[2]), speeds=(speed,))
    rows = list(csv.DictReader(io.StringIO(csv_text(timed))))
    assert list(rows[0]) == ["row", "image", "model", "n", "psnr", "lpips", "fid", "seconds", "versions"]
    assert {row["versions"] for row in rows} == {"omgsr 1"}
    images = [row for row in rows if row["row"] == "image"]
    assert len(images) == 6
    assert (images[2]["image"], images[2]["psnr"], images[2]["lpips"], images[2]["seconds"]) == (
        "two|*",
        "30.0",
        "",
        "1.5",
    )
    assert (images[5]["model"], images[5]["psnr"], images[5]["seconds"]) == ("b", "", "")
    # psnr has three scores of a, lpips two: each mean stands beside its own count.
    means = [row for row in rows if row["row"] == "mean" and row["model"] == "a"]
    assert [(row["n"], row["psnr"], row["lpips"], row["fid"]) for row in means] == [
        ("3", "25.0", "", ""),
        ("2", "", "0.4", "50.0"),
    ]
    assert means[0]["seconds"] == "1.5"
    differences = [row for row in rows if row["row"].startswith("difference") and row["n"] == "2"]
    assert [row["row"] for row in differences] == ["difference", "difference low", "difference high"]
    assert {row["model"] for row in differences} == {"a v. b"}
    assert float(differences[0]["psnr"]) == -2.0
    assert float(differences[1]["psnr"]) < -2 < float(differences[2]["psnr"])


def test_the_record_is_valid_json(report: Report) -> None:
    record = json.loads(json.dumps(report_record(report), allow_nan=False))
    assert record["images"][1]["scores"]["a"] == {"psnr": 30.0, "lpips": None}
    assert record["metrics"][1]["lower_is_better"] is True
    assert record["images"][0]["input"] == "one.png"
