"""Full disks, signals, closed pipes and two processes at once."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from command_line import Command, draw, files_below, size_of
from forked import start

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals, pipes and mounts of POSIX")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], capture_output=True).returncode:
        pytest.skip("this user may not mount a file system")
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_a_full_disk_is_one_line_and_leaves_no_partial_file(omgsr: Command, tmp_path: Path, small_disk: Path) -> None:
    draw(tmp_path / "in" / "large.png", 300, 200)
    draw(tmp_path / "in" / "small.png", 8, 6)
    said = omgsr(tmp_path / "in", "-o", small_disk / "out")
    assert said.code == 1
    (line,) = said.errors
    assert "large.png" in line
    assert "the disk is full" in line
    assert files_below(small_disk) == ["out/small.png"]


def test_a_disk_that_fills_during_a_merge(
    base: Path, adapter: Path, small_disk: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    said = Command(capfdbinary, "models")("merge", base, adapter, small_disk / "merged")
    assert (said.code, said.out) == (1, b"")
    assert said.errors == [f"error: {small_disk / 'merged'} cannot be written: the disk is full"]
    assert "hint: free some space" in said.err
    assert "Traceback" not in said.err
    assert list(small_disk.iterdir()) == []


def test_a_signal_during_an_image(model: Path, tmp_path: Path) -> None:
    draw(tmp_path / "in" / "a.png", 8, 6)
    # In such small tiles it takes a minute.
    draw(tmp_path / "in" / "b.png", 500, 500)
    process = start("upscale", tmp_path / "in", "-o", tmp_path / "out", "--model", model, "--tile", "64")
    assert process.stdout.readline() == f"{tmp_path / 'out' / 'a.png'}\n"
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    assert process.returncode == 128 + signal.SIGTERM, err
    assert err.count("interrupted; ") == 1
    assert "Traceback" not in err
    assert files_below(tmp_path / "out") == ["a.png"]
    assert size_of(tmp_path / "in" / "b.png") == (500, 500)


def test_two_processes_in_one_folder(model: Path, tmp_path: Path) -> None:
    """Each image is processed and reported once; the second process finds it finished."""
    for number in range(8):
        draw(tmp_path / "in" / f"{number}.png", 30 + number, 24)
    command = ["upscale", tmp_path / "in", "-o", tmp_path / "out", "--model", model, "--json"]
    processes = [start(*command) for _ in range(2)]
    said = [process.communicate() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert not [err for _, err in said if "error" in err]
    records = [json.loads(line) for out, _ in said for line in out.splitlines()]
    done = [record["output"] for record in records if record["status"] == "done"]
    assert sorted(done) == [str(tmp_path / "out" / f"{number}.png") for number in range(8)]
    assert files_below(tmp_path / "out") == [f"{number}.png" for number in range(8)]


def test_a_signal_during_a_survey(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    monkeypatch.setenv("OMGSR_CACHE", str(tmp_path / "cache"))
    for name in "abc":
        draw(tmp_path / "in" / f"{name}.png", 64, 64)
    command: list[str | Path] = ["--data", tmp_path / "in", "--model", model, "--device", "cpu", "--json"]
    command += ["--resolution", "32", "--max-samples", "80", "--batch", "1", "--csv", tmp_path / "rows.csv"]
    process = start("timestep", *command)
    while kept_samples(tmp_path / "cache") < 5:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert process.returncode == 130, err
    assert "Traceback" not in err
    count = json.loads(out)["samples"]
    assert 5 <= count < 80, "it was done too early for this test"
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 1 + count
    said = Command(capfdbinary, "timestep")(*command)
    assert said.code == 0, said.err
    assert said.records[0]["samples"] == 80
    assert f"{count} samples of an earlier run" in said.err


def kept_samples(cache: Path) -> int:
    """How many samples a process has kept so far."""
    try:
        with sqlite3.connect(f"file:{cache / 'remembered.sqlite'}?mode=ro", uri=True) as database:
            (count,) = database.execute("SELECT COUNT(*) FROM remembered WHERE kind = 'sample'").fetchone()
    except sqlite3.Error:
        return 0
    return int(count)


def test_a_closed_pipe_is_not_a_bug(model: Path, tmp_path: Path) -> None:
    for number in range(20):
        draw(tmp_path / "in" / f"{number}.png", 8, 6)
    process = start("upscale", tmp_path / "in", "-o", tmp_path / "out", "--model", model, "-q")
    assert process.stdout.readline().endswith(".png\n")
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait() == 1
    assert err == ""
    assert not [name for name in files_below(tmp_path / "out") if not name.endswith(".png")]
