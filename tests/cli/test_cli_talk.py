"""`omgsr upscale`: stdout, stderr, dry runs and exit codes."""

from __future__ import annotations

import io
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from command_line import Command, draw, files_below
from identity_model import INFO
from PIL import Image

from omgsr_cli import __version__
from omgsr_cli.batch.reports import FileResult
from omgsr_cli.cli import upscale_summary
from omgsr_cli.cli.app import run
from omgsr_cli.cli.upscale_summary import Counts
from omgsr_cli.files.remembered import Remembered
from omgsr_cli.geometry import Size
from omgsr_cli.options import RestoreOptions
from omgsr_cli.planning import plan_model_canvas


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """A folder with two images."""
    for name in ("a.png", "b.png"):
        draw(tmp_path / "in" / name, 8, 6)
    return tmp_path / "in"


# Results and talk


def test_paths_go_to_stdout_and_the_summary_to_stderr(omgsr: Command, two: Path, tmp_path: Path) -> None:
    said = omgsr(two)
    assert said.lines == [str(tmp_path / "in_x4" / name) for name in ("a.png", "b.png")]
    assert re.fullmatch(r"2 finished: 0\.0 megapixels in [0-9.]+ s\n", said.err)
    assert "\x1b" not in said.err


def test_one_image_needs_no_summary(omgsr: Command, two: Path) -> None:
    assert re.fullmatch(r".*a\.png: 8x6 to 32x24 in [0-9.]+ s\n", omgsr(two / "a.png").err)


def test_quiet_shows_errors_only(omgsr: Command, two: Path) -> None:
    said = omgsr(two, "--quiet")
    assert (len(said.lines), said.err) == (2, "")
    said = omgsr(two, two / "missing.png", "-q")
    assert said.code == 1
    assert said.err.startswith("error: ")
    assert "missing.png" in said.err
    assert len(said.err.splitlines()) == 1


def test_verbose_shows_details_of_each_file(omgsr: Command, two: Path) -> None:
    said = omgsr(two, "--verbose")
    assert "random on " in said.err
    assert said.err.count("8x6 to 32x24 in ") == 2
    assert omgsr(two, "-v").err.count("already finished") == 2


def test_json_gives_a_record_for_every_input(omgsr: Command, two: Path, tmp_path: Path) -> None:
    (two / "c.png").write_text("no image")
    said = omgsr(two, tmp_path / "missing.png", "--json", "-o", tmp_path / "out")
    assert said.code == 1
    by_status: dict[str, list[dict[str, object]]] = {"done": [], "failed": []}
    for record in said.records:
        by_status[str(record["status"])].append(record)
    first = by_status["done"][0]
    assert first["input"] == str(two / "a.png")
    assert first["output"] == str(tmp_path / "out" / "a.png")
    assert (first["input_size"], first["output_size"]) == ([8, 6], [32, 24])
    assert first["error"] is None
    errors = sorted(str(record["error"]) for record in by_status["failed"])
    assert len(by_status["done"]) == len(errors) == 2
    assert "c.png" in errors[0]
    assert "missing.png" in errors[1]
    assert len(said.errors) == 2


def test_names_are_not_interpreted_as_markup(omgsr: Command, two: Path) -> None:
    odd = two / "a [b]:cat:[red].png"
    odd.write_text("no image")
    assert str(odd) in omgsr(odd).errors[0]
    (two / "line\nbreak.png").write_text("no image")
    assert len(omgsr(two / "line\nbreak.png").errors) == 1


# Dry run


def test_a_dry_run_writes_nothing(omgsr: Command, two: Path, tmp_path: Path) -> None:
    (two / "c.png").write_text("no image")
    said = omgsr(two, "--dry-run")
    assert said.code == 1
    assert len(said.errors) == 1
    assert len(said.lines) == 2
    out = tmp_path / "in_x4" / "a.png"
    line = rf"{re.escape(str(two / 'a.png'))} 8x6 -> {re.escape(str(out))} 32x24; 1 tile of \d+ px, \d+ MiB"
    assert re.fullmatch(line, said.lines[0])
    assert "2 planned, 1 failed" in said.err
    assert files_below(tmp_path) == ["in/a.png", "in/b.png", "in/c.png"]


def test_a_dry_run_gives_sizes_tiles_and_memory_as_json(omgsr: Command, two: Path) -> None:
    [record] = omgsr(two / "a.png", "--dry-run", "--json", "--scale", "1").records
    assert record["status"] == "planned"
    assert (record["input_size"], record["output_size"]) == ([8, 6], [8, 6])
    assert record["restored_size"] == [32, 24]
    assert record["tiles"] == 1
    assert {"tile_px", "overlap_px", "memory_mib"} < record.keys()


def test_a_dry_run_recognises_finished_images(omgsr: Command, two: Path) -> None:
    omgsr(two / "a.png", "-o", two / "r.png")
    [record] = omgsr(two / "a.png", "-o", two / "r.png", "--dry-run", "--json").records
    assert record["status"] == "skipped"


def test_a_dry_run_ends_with_an_estimate(
    omgsr: Command, two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMGSR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(upscale_summary, "_LEAST_WORK_MP", 0.0)
    memory = r"at most \d+ MiB of memory for .*"
    said = omgsr(two, "--dry-run", "--device", "cpu")
    end = rf"2 planned: 0\.0 megapixels, {memory}; .*unknown.*\n"
    assert re.fullmatch(end, said.err)
    assert omgsr(two, "--device", "cpu", "-o", tmp_path / "out").code == 0
    said = omgsr(two / "a.png", "--dry-run", "--device", "cpu")
    assert re.fullmatch(rf"1 planned: 0\.0 megapixels, about [0-9.]+ s on cpu in fp32, {memory}\n", said.err)
    assert omgsr(two, "--dry-run", "-q").err == ""


def test_the_duration_of_a_run_is_remembered(tmp_path: Path) -> None:
    remembered = Remembered(tmp_path)
    options = RestoreOptions()
    pace = upscale_summary.Pace(replace(INFO, scale=4.0), options, torch.device("cpu"), "fp32", remembered)
    size = Size(1024, 1024)
    # Time is spent at the working size, four times the input.
    work_mp = 16 * size.area / 1e6
    assert work_mp == plan_model_canvas(replace(INFO, scale=4.0), size, size, options).padded.area / 1e6
    pace.add(FileResult(None, None, "done", size, size))
    pace.add(FileResult(None, None, "skipped", size, size))
    pace.keep(12.0)
    assert remembered.find("speed", f"{INFO.name} cpu fp32") == pytest.approx(12 / work_mp)
    small = upscale_summary.Pace(INFO, options, torch.device("cpu"), "bf16", remembered)
    small.add(FileResult(None, None, "done", Size(8, 8), Size(8, 8)))
    small.keep(12.0)
    assert remembered.find("speed", f"{INFO.name} cpu bf16") is None


def test_seconds_of_overlapping_images_add_up_to_wall_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([100.0, 105.0, 120.0])
    monkeypatch.setattr("omgsr_cli.cli.upscale_summary.time.monotonic", lambda: next(now))
    counts, size = Counts(), Size(1000, 1000)
    # Written from 95 to 105, beside the one before; the third one waited for something else from 105 to 118.
    for seconds in (8.0, 10.0, 2.0):
        counts.add(FileResult(None, None, "done", size, size, seconds=seconds))
    counts.add(FileResult(None, None, "skipped", size, size))
    assert counts.seconds == 8 + 5 + 2
    assert counts.summary() == "3 finished, 1 skipped: 3.0 megapixels in 15 s"


# Streams


def test_stdout_contains_only_the_result(omgsr: Command, two: Path) -> None:
    for options in ((), ("--json",), ("--verbose",)):
        said = omgsr(two / "a.png", "-o", "-", *options)
        assert said.code == 0
        with Image.open(io.BytesIO(said.out)) as image:
            assert (image.format, image.size) == ("PNG", (32, 24))
            image.load()
        assert ("--json has no effect" in said.err) == ("--json" in options)


def test_stdout_takes_images_only(omgsr: Command, two: Path) -> None:
    (two / "c.png").write_text("no image")
    for name in ("c.png", "missing.png"):
        said = omgsr(two / name, "-o", "-", "--json")
        assert (said.code, said.out) == (1, b"")
        assert name in said.errors[0]


def test_standard_input(omgsr: Command, two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = (two / "a.png").read_bytes()

    def feed(content: bytes) -> None:
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(content)))

    feed(data)
    streamed = omgsr("-", "--format", "jpg")
    with Image.open(io.BytesIO(streamed.out)) as image:
        assert (image.format, image.size) == ("JPEG", (32, 24))
    feed(data)
    assert omgsr("-", "-o", tmp_path / "r.png").lines == [str(tmp_path / "r.png")]
    feed(b"no image")
    said = omgsr("-")
    assert (said.code, said.out) == (1, b"")
    assert "standard input" in said.errors[0]
    assert omgsr("-", two / "a.png").code == 2


def test_options_without_effect_are_reported(omgsr: Command, two: Path, tmp_path: Path) -> None:
    said = omgsr(two / "a.png", "-o", tmp_path / "r.png", "--seed", "7")
    assert said.code == 0
    assert "note: --seed 7 has no effect: " in said.err
    assert omgsr(two, "--memory", "8M").errors == ["error: --memory 8M is less than 16M"]


# How a call ends


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ([], 2),
        (["--version"], 0),
        (["--help"], 0),
        (["help"], 0),
        (["upscale", "-h"], 0),
        (["help", "models", "pull"], 0),
        (["upscale"], 2),
        (["enlarge"], 2),
        (["help", "enlarge"], 2),
    ],
)
def test_usage_exit_codes(capfd: pytest.CaptureFixture[str], arguments: list[str], code: int) -> None:
    assert run(arguments) == code
    out, err = capfd.readouterr()
    assert ("error: " in err) == (arguments[-1:] in (["upscale"], ["enlarge"]))
    assert ("hint: " in err) == (arguments[-1:] in (["upscale"], ["enlarge"]))
    if arguments == ["--version"]:
        assert out.startswith(f"omgsr {__version__}")


def test_debugging_shows_a_traceback(omgsr: Command, two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMGSR_DEBUG", "1")
    with pytest.raises(Exception, match="--scale 99"):
        omgsr(two, "--scale", "99")
