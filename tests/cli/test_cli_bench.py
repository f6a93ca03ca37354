"""`omgsr bench` at the command line."""

from __future__ import annotations

import csv
import pickle
import re
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from command_line import Command, draw, spoil, write_tiny_model
from spread_work import Pickled

from omgsr_cli.benchmark import cases, scoring
from omgsr_cli.benchmark.metrics import METRICS
from omgsr_cli.cli import progress
from omgsr_cli.engines.work import Place


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for name, (width, height) in {"one": (20, 14), "two": (13, 17)}.items():
        draw(tmp_path / "set" / "test_LR" / f"{name}.png", width, height)
        draw(tmp_path / "set" / "test_HR" / f"{name}.png", width * 4, height * 4)
    return tmp_path / "set"


def test_models_stand_side_by_side(bench: Command, data: Path, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "mine")
    said = bench(
        *("--data", data, "--model", model, "--model", "bicubic", "--model", "lanczos", "--metrics", "psnr,ssim"),
        *("--json", "--csv", tmp_path / "scores.csv"),
    )
    assert said.code == 0, said.err
    (record,) = said.records
    assert [each["name"] for each in record["models"]] == ["mine", "bicubic", "lanczos"]
    assert [each["count"] for each in record["summaries"]] == [2] * 6
    assert len(record["differences"]) == 6
    assert {speed["model"] for speed in record["speeds"]} == {"mine", "bicubic", "lanczos"}
    assert {"omgsr", "torch", "pillow", "python"} <= set(record["versions"])
    with (tmp_path / "scores.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["row", "image", "model", "n", "psnr", "ssim", "seconds", "versions"]
    # Means with both ends for three models, and differences for three pairs, all of two images.
    assert [row["n"] for row in rows[6:]] == ["2"] * 18
    assert {row["model"] for row in rows if row["row"] == "difference"} == {
        "mine v. bicubic",
        "mine v. lanczos",
        "bicubic v. lanczos",
    }
    rows = rows[:6]
    by_image = {image["name"]: image["scores"] for image in record["images"]}
    for row in rows:
        assert float(row["psnr"]) == by_image[row["image"]][row["model"]]["psnr"]


def test_a_table_is_for_people_and_markdown_for_pages(bench: Command, data: Path) -> None:
    asked = ("--data", data, "--model", "bicubic", "--metrics", "psnr")
    said = bench(*asked)
    assert said.code == 0
    assert any("psnr ↑" in line for line in said.lines)
    again = bench(*asked, "--markdown")
    assert "| model | psnr ↑ | n |" in again.lines
    assert "earlier runs" in again.err
    # A model whose images are all kept still has its row of times.
    assert sum(line.startswith("| bicubic |") for line in again.lines) == 2
    assert any(line.startswith("\\begin{tabular}") for line in bench(*asked, "--latex").lines)


@pytest.mark.parametrize("columns", [120, 80, 40])
def test_a_table_is_whole_on_any_terminal(
    bench: Command, data: Path, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    monkeypatch.setattr("omgsr_cli.cli.bench.terminal_columns", lambda: columns)
    said = bench("--data", data, "--model", "bicubic", "--metrics", "psnr", "--repeat", "1")
    text = re.sub(r"\x1b\[[0-9;]*m", "", said.out.decode())
    assert max(map(len, text.splitlines())) <= columns
    assert "…" not in text
    assert all(whole in text for whole in ("psnr ↑", "s per megapixel", "process MiB"))


def test_restored_images_are_scored(bench: Command, data: Path) -> None:
    said = bench("--sr", data / "test_HR", "--hr", data / "test_HR", "--metrics", "psnr,ssim", "--json")
    assert said.code == 0
    means = {summary["metric"]: summary["mean"] for summary in said.records[0]["summaries"]}
    assert means == pytest.approx({"psnr": 80, "ssim": 1})


def test_restored_images_of_another_size_fail_alone(bench: Command, data: Path) -> None:
    for name, size in (("one", (80, 56)), ("two", (50, 49))):
        draw(data / "theirs" / f"{name}.png", *size)
    said = bench("--data", data, "--sr", data / "theirs", "--model", "bicubic", "--metrics", "psnr", "--json")
    assert said.code == 1
    (error,) = said.errors
    assert "theirs on two" in error
    assert "50x49" in error
    (record,) = said.records
    assert {each["model"]: each["count"] for each in record["summaries"]} == {"theirs": 1, "bicubic": 2}
    assert list(record["images"][1]["error"]) == ["theirs"]


def test_a_seed_is_part_of_what_is_kept(bench: Command, data: Path, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "mine")
    asked = ("--data", data, "--model", model, "--metrics", "psnr", "--cache", tmp_path / "kept", "--json")
    first, again, seeded = (bench(*asked, *more) for more in ((), (), ("--seed", "3")))
    assert seeded.code == 0, seeded.err
    runs = [said.records[0]["speeds"][0]["kept_runs"] for said in (first, again, seeded)]
    assert runs == [0, 2, 0]
    assert seeded.records[0]["settings"]["seed"] == "3"


@pytest.mark.parametrize("how", ["garbage", "folder"])
def test_a_damaged_database_of_scores_is_reported_once_and_replaced(
    bench: Command, data: Path, tmp_path: Path, how: str
) -> None:
    asked = ("--data", data, "--model", "bicubic", "--metrics", "psnr", "--cache", tmp_path / "kept", "--json")
    place = tmp_path / "kept" / "remembered.sqlite"
    first = bench(*asked)
    spoil(place, how)
    again, last = bench(*asked), bench(*asked)
    assert (first.code, again.code, last.code) == (0, 0, 0)
    assert (again.err.count(f"{place} is damaged"), last.err.count("damaged")) == (1, 0)
    assert [path.name for path in place.parent.iterdir() if "damaged" in path.name] == ["remembered.sqlite.damaged-1"]
    means = {said.records[0]["summaries"][0]["mean"] for said in (first, again, last)}
    assert len(means) == 1
    with sqlite3.connect(place) as database:
        assert database.execute("SELECT COUNT(*) FROM remembered").fetchone() != (0,)


def test_an_unwritable_database_of_scores_is_reported_once(
    bench: Command, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("--data", data, "--model", "bicubic", "--metrics", "psnr", "--cache", tmp_path / "kept", "--json")
    first, connect = bench(*asked), sqlite3.connect

    def read_only(place: Path | str, **options: Any) -> sqlite3.Connection:
        if Path(place).parent == tmp_path / "kept":
            return connect(f"file:{place}?mode=ro", uri=True, **options)
        return connect(place, **options)

    monkeypatch.setattr(sqlite3, "connect", read_only)
    again = bench(*asked)
    assert (first.code, again.code) == (0, 0)
    assert again.err.count(f"{tmp_path / 'kept' / 'remembered.sqlite'} cannot be used") == 1
    assert again.records[0]["summaries"] == first.records[0]["summaries"]
    # What may only be read is still used.
    assert again.records[0]["speeds"][0]["kept_runs"] == 2


def test_the_channels_of_psnr_can_be_chosen(bench: Command, data: Path) -> None:
    asked = ("--data", data, "--model", "bicubic", "--metrics", "psnr", "--json")
    found = set()
    for options in ((), ("--color-space", "rgb"), ("--crop-border", "4")):
        (summary,) = bench(*asked, *options).records[0]["summaries"]
        found.add(summary["mean"])
    assert len(found) == 3


def test_without_arguments_the_bundled_images_are_scored(
    bench: Command, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Smaller images than the bundled ones.
    (data / "test_LR").rename(data / "lr")
    (data / "test_HR").rename(data / "hr")
    monkeypatch.setattr(cases, "bundled_folder", lambda: data)
    monkeypatch.setattr(scoring, "find_spec", lambda name: None)
    monkeypatch.setattr(progress, "_LOG_EVERY_S", 0.0)
    said = bench("--json")
    assert (said.code, said.errors) == (0, []), said.err
    (record,) = said.records
    assert [model["name"] for model in record["models"]] == ["omgsr-tiny", "bicubic"]
    means = {(each["model"], each["metric"]): each["mean"] for each in record["summaries"]}
    assert {metric for _, metric in means} == {"psnr", "ssim"}
    assert all(means[model, "psnr"] > 10 for model in ("omgsr-tiny", "bicubic"))
    (note,) = [line for line in said.err.splitlines() if "musiq" in line]
    assert "clipiqa" in note
    assert "pyiqa" in note
    assert "pip install" in note
    assert "1 of 2 images, about" in said.err


def test_weights_of_unrequested_metrics_are_not_fetched(
    bench: Command, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "find_spec", lambda name: object())
    monkeypatch.setattr(scoring, "PyiqaMetric", None)
    said = bench("--data", data, "--model", "bicubic")
    assert said.code == 0, said.err
    assert "RN50.pt" in said.err
    assert "--metrics musiq,clipiqa" in said.err


def test_a_missing_metric_named_by_the_user_is_an_error(
    bench: Command, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "find_spec", lambda name: None)
    said = bench("--data", data, "--model", "bicubic", "--metrics", "musiq,clipiqa", "--json")
    assert said.code == 1
    # One line for each, and scores that need nothing in their place.
    assert len(said.errors) == 2
    assert said.errors[0].startswith("error: musiq: ")
    assert "pip install" in said.errors[0]
    assert said.errors[1].startswith("error: clipiqa: ")
    assert "hint:" not in said.err
    means = {summary["metric"]: summary["mean"] for summary in said.records[0]["summaries"]}
    assert means["psnr"] > 10
    assert means["ssim"] > 0.2
    assert means["musiq"] is means["clipiqa"] is None


def test_without_references_only_reference_free_metrics_run(
    bench: Command, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "find_spec", lambda name: None)
    page = data / "page.html"
    said = bench("--data", data / "test_LR", "--model", "bicubic", "--html", page, "--json")
    assert (said.code, said.errors) == (0, []), said.err
    assert "musiq" in said.err
    # A page to look at, without metrics.
    (record,) = said.records
    assert record["metrics"] == record["summaries"] == []
    assert [list(image["restored"]) for image in record["images"]] == [["bicubic"]] * 2
    text = page.read_text("utf-8")
    assert text.count("data:image/") == 4
    assert "Distributions" not in text
    named = bench("--data", data / "test_LR", "--model", "bicubic", "--metrics", "musiq,psnr,fid")
    assert named.code == 2
    assert len(named.errors) == 1
    assert "psnr, fid" in named.errors[0]


def test_missing_scores_are_reported(bench: Command, data: Path) -> None:
    options = ("--data", data, "--model", "bicubic", "--metrics", "psnr")
    said = bench(*options, "--crop-border", "1000")
    assert said.code == 1
    # By the image that people know, not by where the restored one is kept.
    assert f"no score for {data / 'test_HR'}" in said.errors[0]


def test_an_impossible_cache_is_one_plain_line(bench: Command, data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = tmp_path / "file" / "cache"
    said = bench("--data", data, "--model", "bicubic", "--metrics", "psnr", "--cache", cache)
    assert (said.code, len(said.errors)) == (1, 1)
    assert str(cache) in said.errors[0]
    assert "Errno" not in said.errors[0]


def test_the_list_of_metrics(bench: Command) -> None:
    said = bench("--list-metrics", "--json")
    assert said.code == 0
    records = {record["name"]: record for record in said.records}
    assert set(records) == set(METRICS)
    assert records["psnr"]["weights_here"] is True
    assert (records["lpips"]["weights_here"], records["lpips"]["direction"]) == (False, "lower")
    assert "maniqa-pipal" in bench("--list-metrics").out.decode()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--metrics", "muisq"), "'muisq'"),
        (("--metrics", "psnr", "--color-space", "hsv"), "--color-space hsv"),
        (("--html-dir", "x"), "--html-dir"),
        (("--json", "--markdown"), "--markdown"),
        (("--json", "--latex"), "--latex"),
        (("--markdown", "--latex"), "--latex"),
        (("--hr", "{data}/test_HR"), "--hr|no images"),
        (("--sr", "{data}/test_HR", "--model", "bicubic"), "nothing to restore"),
        (("--csv", "{data}/there.csv"), "exists"),
        (("--csv", "{data}/no/there.csv"), "there.csv"),
        (("--repeat", "0"), "repeat"),
        (("--model", "one/model", "--model", "two/model", "--base", "b"), "one/model and two/model"),
    ],
)
def test_usage_is_checked_before_any_work(bench: Command, data: Path, options: tuple[str, ...], said: str) -> None:
    (data / "there.csv").write_text("mine")
    found = bench(*(option.format(data=data) for option in options))
    assert found.code == 2
    assert len(found.errors) == 1
    assert re.search(said, found.err)
    assert (data / "there.csv").read_text() == "mine"


def test_a_missing_model_is_an_error(bench: Command, data: Path) -> None:
    said = bench("--data", data, "--model", "no-such-model", "--metrics", "psnr")
    assert said.code == 2
    assert "no-such-model" in said.errors[0]


def test_a_page_is_written(bench: Command, data: Path, tmp_path: Path) -> None:
    page, images = tmp_path / "report.html", tmp_path / "images"
    asked = ("--data", data, "--model", "bicubic", "--metrics", "psnr", "--html", page)
    assert bench(*asked, "--html-dir", images).code == 0
    assert "bicubic" in page.read_text("utf-8")
    assert str(tmp_path) not in page.read_text("utf-8")
    # Input, reference and result of both.
    assert len(list(images.iterdir())) == 6
    assert bench(*asked).code == 2
    assert bench(*asked, "--overwrite").code == 0


def test_folders_of_folders_and_marks_in_names_are_paired(bench: Command, tmp_path: Path) -> None:
    for camera, width in (("Canon", 20), ("Nikon", 16)):
        draw(tmp_path / "set" / "LR" / camera / "001_LR4.png", width, 12)
        draw(tmp_path / "set" / "HR" / camera / "001_HR.png", width * 4, 48)
    arguments = ("--data", tmp_path / "set", "--model", "bicubic", "--metrics", "psnr", "--json")
    said = bench(*arguments)
    assert said.code == 1
    assert "--recursive" in said.err
    said = bench(*arguments, "--recursive")
    assert said.code == 0, said.err
    assert [image["name"] for image in said.records[0]["images"]] == ["Canon/001_LR4", "Nikon/001_LR4"]


def test_processes_and_parts_score_as_one_process_does(
    bench: Command, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omgsr_cli.engines.local.Processes", Pickled)
    model = write_tiny_model(tmp_path / "mine")
    options = ("--data", data, "--model", model, "--model", "bicubic", "--metrics", "psnr,ssim", "--device", "cpu")

    def scores(cache: str, *more: str) -> dict[str, object]:
        said = bench(*options, "--json", "--cache", tmp_path / cache, *more)
        assert said.code == 0, said.err
        (record,) = said.records
        # Two processes at once are not timed; what the parts timed is kept with their images.
        assert bool(record["speeds"]) == (cache != "spread")
        return {name: record[name] for name in ("summaries", "differences", "models", "metrics", "failures")}

    alone = scores("alone")
    assert scores("spread", "--workers", "2") == alone
    # A part reports its own images; a run of all reuses the results of the parts.
    parts = [bench(*options, "--cache", tmp_path / "parts", "--json", "--shard", f"{n}/3") for n in (1, 2, 3)]
    images = [image["name"] for said in parts if said.code == 0 for image in said.records[0]["images"]]
    assert sorted(images) == ["one", "two"]
    titles = [said.records[0]["title"] for said in parts if said.code == 0]
    assert all(re.fullmatch(r"set, 2 images, part ./3 with [12]", title) for title in titles)
    for n, said in enumerate(parts, 1):
        if said.code:
            assert len(said.errors) == 1
            assert f"--shard {n}/3" in said.errors[0]
    assert scores("parts") == alone
    said = bench(*options, "--repeat", "2", "--workers", "2")
    assert (said.code, said.out) == (2, b"")


def test_processes_return_their_results(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is read back or scored again by the process that gathers them, even if the cache is gone."""
    from omgsr_cli.benchmark.runner import plan_bench, run_plan
    from omgsr_cli.options import BenchOptions

    class Apart:
        def run(self, work: Any, tasks: Any, *, on_start: Any, say: Any) -> Any:
            do = pickle.loads(pickle.dumps(work)).open(Place("cpu"), say)
            results = [pickle.dumps(do(task)) for task in tasks]
            shutil.rmtree(tmp_path / "cache")
            # As they are ready, not in order.
            yield from map(pickle.loads, reversed(results))

    def never_asked(restored: Any, reference: Any) -> float:
        raise AssertionError

    options = BenchOptions(data=data, model=("bicubic",), metrics=("psnr",), cache=tmp_path / "cache", device="cpu")
    plan = plan_bench(options)
    for metric in plan.ready:
        monkeypatch.setattr(metric, "score", never_asked)
    report = run_plan(plan, Apart())
    assert [image.name for image in report.images] == ["one", "two"]
    alone = run_plan(plan_bench(options))
    assert report.summaries == alone.summaries
    assert report.scores("bicubic", "psnr") == alone.scores("bicubic", "psnr")


def test_an_image_that_kills_its_process_is_reported_and_not_retried(data: Path, tmp_path: Path) -> None:
    from omgsr_cli.benchmark.runner import plan_bench, run_plan
    from omgsr_cli.errors import DeviceError
    from omgsr_cli.options import BenchOptions

    class Deadly:
        def run(self, work: Any, tasks: Any, *, on_start: Any, say: Any) -> Any:
            do = work.open(Place("cpu"), say)
            for task in tasks:
                yield work.lost(task, DeviceError("its process was killed, twice")) if task == 0 else do(task)

    options = BenchOptions(data=data, model=("bicubic",), metrics=("psnr",), cache=tmp_path / "cache", device="cpu")
    report = run_plan(plan_bench(options), Deadly())
    assert [(failure.name, failure.message) for failure in report.failures] == [
        ("bicubic on one", "its process was killed, twice")
    ]
    assert [(image.name, list(image.restored)) for image in report.images] == [("one", []), ("two", ["bicubic"])]
