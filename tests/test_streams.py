"""Closed or full standard streams, names that are not UTF-8, failing disks and damaged reports."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import PROGRAM, Command, draw, files_below
from forked import start
from PIL import Image
from places import ROOT

from omgsr_cli.batch.reports import RunReport, read_reports
from omgsr_cli.files.addresses import json_text

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="names and devices of Linux")


def shell(command: str) -> subprocess.CompletedProcess[bytes]:
    """Run a line of sh in which OMGSR stands for the program."""
    line = command.replace("OMGSR", " ".join(PROGRAM))
    return subprocess.run(["sh", "-c", line], capture_output=True, cwd=ROOT, timeout=400)


@pytest.fixture
def report(tmp_path: Path) -> Path:
    path = tmp_path / "report.jsonl"
    with RunReport(path) as report:
        report.begin(2, None)
        report.add({"input": "a", "status": "done", "error": None})
    return path


@pytest.mark.parametrize("command", ["status {} --json", "--help"])
def test_unwritable_stdout_is_one_error(report: Path, command: str) -> None:
    done = shell(f"OMGSR {command.format(report)} >/dev/full")
    assert done.returncode == 1
    assert done.stderr.count(b"error: ") == 1
    assert b"standard output" in done.stderr
    assert b"Traceback" not in done.stderr
    assert b"Exception" not in done.stderr


def test_other_unusable_streams_do_not_matter(report: Path) -> None:
    done = shell(f"OMGSR status {report} <&- 2>&-")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"1 of 2" in done.stdout
    # An error keeps its exit code even if stderr is unusable.
    assert shell(f"OMGSR status {report}.missing 2>/dev/full").returncode == 2


def test_a_program_in_a_restricted_environment(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images are written, though there is no HOME, no UTF-8, and nothing can be shown; help fits into 40 columns."""
    for name in ("HOME", "XDG_DATA_HOME", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {"LC_ALL": "C", "TERM": "dumb", "COLUMNS": "40"}.items():
        monkeypatch.setenv(name, value)
    draw(tmp_path / "in" / "ä€.png", 8, 6)
    done = shell(f"OMGSR upscale '{tmp_path}/in' -o {tmp_path}/out --model {model} --device cpu <&- >&-")
    assert (done.returncode, done.stderr.count(b"error: "), b"Traceback" in done.stderr) == (1, 1, False)
    assert b"\x1b" not in done.stderr
    assert files_below(tmp_path / "out") == ["ä€.png"]
    done = shell("OMGSR upscale --help && OMGSR models list >/dev/null")
    assert (done.returncode, done.stderr, b"\x1b" in done.stdout) == (0, b"", False)
    assert max(map(len, done.stdout.decode().splitlines())) <= 40


def test_the_program_reads_stdin_and_writes_stdout(model: Path, tmp_path: Path) -> None:
    image = draw(tmp_path / "a.png", 8, 6).read_bytes()
    program = start("upscale", "-", "--scale", "2", stdin=image, OMGSR_MODEL=str(model))
    out, err = program.communicate()
    assert program.returncode == 0, err
    assert Image.open(io.BytesIO(os.fsencode(out))).size == (16, 12)


def test_unusable_standard_streams_of_images(omgsr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open(os.devnull, "w") as unreadable:
        monkeypatch.setattr(sys, "stdin", unreadable)
        closed = omgsr("-", "-o", tmp_path / "c.png")
    assert (closed.code, len(closed.errors)) == (1, 1)
    assert not (tmp_path / "c.png").exists()
    with open("/dev/full", "wb", buffering=0) as full, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", io.TextIOWrapper(full, write_through=True))
        said = omgsr(draw(tmp_path / "a.png", 8, 6), "-o", "-", "--device", "cpu")
    assert (said.code, len(said.errors)) == (1, 1)
    assert "disk is full" in said.errors[0]


def test_names_that_are_not_utf_8_survive_json(omgsr: Command, tmp_path: Path) -> None:
    draw(tmp_path / "in" / "a.png", 8, 6)
    name = os.fsdecode(b"caf\xe9 \xff\xe4\xbd.png")
    (tmp_path / "in" / "a.png").rename(tmp_path / "in" / name)
    (tmp_path / "in" / os.fsdecode(b"broken\xfe.png")).write_bytes(b"\x89PNG")
    said = omgsr(tmp_path / "in", "-o", tmp_path / "out", "--json", "--report", tmp_path / "report.jsonl")
    assert said.code == 1
    said.out.decode("utf-8")
    failed, done = sorted(said.records, key=lambda record: str(record["input"]))
    assert (failed["status"], done["status"]) == ("failed", "done")
    assert os.fsencode(Path(done["output"]).name) == b"caf\xe9 \xff\xe4\xbd.png"
    assert Path(done["output"]).is_file()
    assert (tmp_path / "report.jsonl").read_bytes().decode("utf-8").count("\n") == 3
    assert read_reports([tmp_path / "report.jsonl"]).has_failed(failed["input"])
    (state,) = Command(omgsr._capture, "status")(tmp_path / "report.jsonl", "--json").records
    assert (state["finished"], state["failed"]) == (1, 1)
    assert Command(omgsr._capture, "status")(tmp_path / "report.jsonl").code == 0
    assert omgsr(tmp_path / "in", "-o", tmp_path / "out", "--dry-run", "--json").out.decode("utf-8")


def test_json_text_keeps_what_json_can_hold() -> None:
    value = {"name": "é\udcff\ud800€", "score": [1.5, float("inf")], "deep": {"nan": float("nan")}, "none": None}
    text = json_text(value)
    assert "é" in text
    text.encode("utf-8")
    expected = {"name": "é\udcff\ud800€", "score": [1.5, None], "deep": {"nan": None}, "none": None}
    assert json.loads(text) == expected


def test_a_file_whose_first_read_fails_costs_itself_alone(omgsr: Command, tmp_path: Path) -> None:
    draw(tmp_path / "in" / "b.png", 8, 6)
    # A regular file of which every read at its start is an input/output error.
    (tmp_path / "in" / "a.png").symlink_to("/proc/self/mem")
    for inputs in ([tmp_path / "in"], [f"{tmp_path}/in/*"], [tmp_path / "in" / "a.png", tmp_path / "in" / "b.png"]):
        said = omgsr(*inputs, "-o", tmp_path / "out", "--overwrite")
        assert (said.code, len(said.errors)) == (1, 1)
        assert "a.png" in said.errors[0]
        assert files_below(tmp_path / "out") == ["b.png"]
    (tmp_path / "list.txt").symlink_to("/proc/self/mem")
    said = omgsr(tmp_path / "list.txt", tmp_path / "in" / "b.png", "-o", tmp_path / "listed")
    assert (said.code, len(said.errors), files_below(tmp_path / "listed")) == (1, 1, ["b.png"])


def test_a_full_disk_below_a_report_does_not_end_the_batch(omgsr: Command, tmp_path: Path) -> None:
    for name in "abc":
        draw(tmp_path / "in" / f"{name}.png", 8, 6)
    said = omgsr(tmp_path / "in", "-o", tmp_path / "out", "--report", "/dev/full")
    assert said.code == 1
    assert len(said.lines) == len(files_below(tmp_path / "out")) == 3
    assert said.err.count("note: --report") == 1
    assert len(said.errors) == 1


def test_a_partial_line_does_not_corrupt_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    write = os.write
    with RunReport(tmp_path / "r.jsonl", notes.append) as report:
        report.begin(3, None)
        monkeypatch.setattr(os, "write", lambda number, line: write(number, line[:10]))
        report.add({"input": "a", "status": "done", "error": None})
        monkeypatch.undo()
        report.add({"input": "b", "status": "done", "error": None})
        assert (report.missing, len(notes)) == (1, 1)
    assert read_reports([tmp_path / "r.jsonl"]).finished == 1


def test_status_skips_damaged_lines(report: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    damaged: list[object] = [
        {"input": "x", "status": "done", "time": "noon"},
        {"input": "x", "status": "done", "time": None},
        {"input": "x", "status": "done", "time": [1]},
        {"input": "x", "status": "done", "time": True},
        {"input": "x", "status": "done", "time": 1e400},
        {"input": "x", "status": "done", "time": 10**400},
        {"input": "x", "status": ["done"], "time": 5.0},
        {"input": {"x": 1}, "status": "failed", "error": "y", "time": 5.0},
        {"input": "x", "status": "failed", "error": 7, "time": 5.0},
        {"run": 3, "time": 5.0},
        {"run": {"files": "many", "part": None}, "time": 5.0},
        {"run": {"files": 2, "part": [1]}, "time": 5.0},
        {"files": -7, "time": 5.0},
        {"files": "ten", "time": 5.0},
        ["time"],
        "time",
        None,
    ]
    with report.open("a") as file:
        file.writelines(json.dumps(line) + "\n" for line in damaged)
    status = Command(capfdbinary, "status")
    (record,) = status(report, "--json").records
    assert (record["files"], record["finished"], record["failed"]) == (2, 1, 0)
    assert status(report).code == 0


@pytest.mark.parametrize(
    ("times", "shown"),
    [([0, 100 / 19000], "190"), ([0, 40], "minute"), ([0, 1e7], "hour"), ([0, 0.001], "1,000"), ([50, -50], None)],
)
def test_speeds_are_formatted(
    tmp_path: Path, times: list[float], shown: str | None, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    lines: list[dict[str, object]] = [{"run": {"files": 5, "part": None}, "time": times[0]}]
    lines += [{"input": "a", "status": "done", "error": None, "time": times[1]}]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    status = Command(capfdbinary, "status")
    text = status(tmp_path / "r.jsonl").out.decode()
    assert "e+" not in text
    (record,) = status(tmp_path / "r.jsonl", "--json").records
    if shown is None:
        assert record["files_per_second"] is None
    else:
        assert shown in text
        assert record["files_per_second"] >= 0
