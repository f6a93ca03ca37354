"""Full disks, signals, closed pipes, two processes at once, and restricted environments.

A process is started only where nothing else can test it.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from command_line import PROGRAM, ROOT, Command, draw, files_below, size_of, start

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
    assert process.stdout is not None
    assert process.stdout.readline() == f"{tmp_path / 'out' / 'a.png'}\n"
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=400)
    assert process.returncode == 128 + signal.SIGTERM, err
    assert err.count("interrupted; ") == 1
    assert "Traceback" not in err
    assert files_below(tmp_path / "out") == ["a.png"]
    assert size_of(tmp_path / "in" / "b.png") == (500, 500)


@pytest.mark.long
def test_ctrl_c_ends_several_processes(omgsr: Command, model: Path, tmp_path: Path) -> None:
    """No process remains, no file is partial, and the next run makes the missing results."""
    names = [f"{index:02}.png" for index in range(16)]
    source = draw(tmp_path / "in" / names[0], 100, 100)
    for name in names[1:]:
        (tmp_path / "in" / name).write_bytes(source.read_bytes())
    command = [*PROGRAM, "upscale", tmp_path / "in", "-o", tmp_path / "out", "--model", model, "--device", "cpu"]
    command += ["--workers", "2"]
    process = subprocess.Popen(
        list(map(str, command)),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    assert process.stdout is not None
    first = process.stdout.readline().strip()
    children = psutil.Process(process.pid).children(recursive=True)
    workers = [child for child in children if any("spawn_main" in part for part in child.cmdline())]
    assert len(workers) == 2
    # Ctrl-C reaches all processes of a terminal.
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=400)
    assert process.returncode == 128 + signal.SIGINT, err
    assert err.count("interrupted; ") == 1
    assert "Traceback" not in err
    # Zombies have ended, although nobody has waited for them yet.
    assert not [worker for worker in workers if worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE]
    reported = {Path(first).name, *(Path(line).name for line in out.splitlines())}
    assert len(reported) < len(names), "all images were finished too early for this test"
    # An image that was finished just then may be unreported.
    left = files_below(tmp_path / "out")
    assert reported <= set(left) <= set(names)
    said = omgsr(tmp_path / "in", "-o", tmp_path / "out", "--device", "cpu")
    assert said.code == 0, said.err
    assert sorted(Path(line).name for line in said.lines) == sorted(set(names) - set(left))
    assert files_below(tmp_path / "out") == names


@pytest.mark.long
def test_two_processes_in_one_folder(model: Path, tmp_path: Path) -> None:
    """Each image is processed and reported once; the second process finds it finished."""
    for number in range(8):
        draw(tmp_path / "in" / f"{number}.png", 30 + number, 24)
    command = ["upscale", tmp_path / "in", "-o", tmp_path / "out", "--model", model, "--json"]
    processes = [start(*command) for _ in range(2)]
    said = [process.communicate(timeout=400) for process in processes]
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
    out, err = process.communicate(timeout=400)
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
    assert process.stdout is not None
    assert process.stdout.readline().endswith(".png\n")
    process.stdout.close()
    assert process.stderr is not None
    err = process.stderr.read()
    assert process.wait(timeout=400) == 1
    assert err == ""
    assert not [name for name in files_below(tmp_path / "out") if not name.endswith(".png")]


def test_restricted_environments(model: Path, tmp_path: Path) -> None:
    """No HOME, the C locale, a dumb terminal, forty columns."""
    path = draw(tmp_path / "ä€.png", 8, 6)
    environment = {name: value for name, value in os.environ.items() if name not in ("HOME", "XDG_DATA_HOME", "LANG")}
    environment |= {"LC_ALL": "C", "TERM": "dumb", "COLUMNS": "40"}
    commands = [["upscale", "--help"], ["models", "--help"], ["models", "list"], ["upscale", path, "--model", model]]
    code = (
        "import json, sys; from omgsr_cli.cli.app import run\n"
        "for command in json.loads(sys.argv[1]): assert run(command) == 0; print(chr(0))"
    )
    command = [sys.executable, "-c", code, json.dumps(commands, default=str)]
    done = subprocess.run(command, capture_output=True, cwd=ROOT, env=environment, timeout=400)
    assert done.returncode == 0, done.stderr
    assert b"\x1b" not in done.stdout + done.stderr
    assert b"Traceback" not in done.stderr
    for text in done.stdout.decode().split("\0")[:2]:
        assert max(map(len, text.splitlines())) <= 40
    assert (tmp_path / "ä€_x4.png").is_file()
