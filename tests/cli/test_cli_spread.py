"""Many images at the command line: several processes, parts, reports."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from command_line import Command, draw, files_below
from spread_work import Pickled

from omgsr_cli import upscale_folder


@pytest.fixture
def status(capfdbinary: pytest.CaptureFixture[bytes]) -> Command:
    return Command(capfdbinary, "status")


@pytest.fixture
def quick_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fork processes from a server that has imported what they need, instead of importing torch in each."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["omgsr_cli.batch.upscaler", "omgsr_cli.models.tiny"])
    monkeypatch.setattr("omgsr_cli.engines.local.get_context", lambda kind: context)


@pytest.mark.usefixtures("quick_starts")
def test_a_killed_process_and_ctrl_c_lose_no_image(omgsr: Command, status: Command, tmp_path: Path) -> None:
    """No image is lost or processed twice, no process remains, no file is partial, and failed images are named."""
    names = [f"{number:02}.png" for number in range(40)]
    source = draw(tmp_path / "in" / names[0], 60, 40)
    for name in names[1:]:
        (tmp_path / "in" / name).write_bytes(source.read_bytes())
    (tmp_path / "in" / "03.png").write_bytes(b"")
    (tmp_path / "in" / "30.png").write_bytes(source.read_bytes()[:60])
    arguments = [tmp_path / "in", "-o", tmp_path / "out", "--device", "cpu", "--report", tmp_path / "run.jsonl"]
    arguments.append("--json")

    def wait_for(count: int, without: int | None = None) -> list[int]:
        """Wait until so many results are there, and two processes."""
        until = time.monotonic() + 100
        while time.monotonic() < until:
            pids = [child.pid or 0 for child in multiprocessing.active_children()]
            results = list((tmp_path / "out").glob("*"))
            if len(results) >= count and len(pids) == 2 and without not in pids:
                return pids
            time.sleep(0.002)
        raise TimeoutError

    def disturb() -> None:
        victim, _ = wait_for(1)
        os.kill(victim, signal.SIGKILL)
        workers.update(wait_for(6, victim))
        # Ctrl-C reaches all processes of a terminal.
        for pid in (*workers, os.getpid()):
            os.kill(pid, signal.SIGINT)

    workers: set[int] = set()
    with ThreadPoolExecutor() as pool:
        disturbed = pool.submit(disturb)
        first = omgsr(*arguments, "--workers", "2")
        disturbed.result()
    assert first.code == 128 + signal.SIGINT, first.err
    assert first.err.count("interrupted; ") == 1
    assert "Traceback" not in first.err
    assert not [pid for pid in workers if psutil.pid_exists(pid)]
    # An image that was finished just then may be unreported.
    left = set(files_below(tmp_path / "out"))
    assert {Path(record["input"]).name for record in first.records if record["status"] == "done"} <= left < set(names)
    second = omgsr(*arguments)
    assert (second.code, len(second.errors)) == (1, 2)
    done = [Path(record["input"]).name for record in second.records if record["status"] == "done"]
    assert {*done, *left} == {*names} - {"03.png", "30.png"} == {*files_below(tmp_path / "out")}
    assert not left.intersection(done)
    counts = status(tmp_path / "run.jsonl", "--json").records[0]
    assert (counts["files"], counts["finished"], counts["failed"], counts["left"]) == (40, 38, 2, 0)


def test_retried_images_are_counted_with_the_previous_run(omgsr: Command, status: Command, tmp_path: Path) -> None:
    for number in range(3):
        draw(tmp_path / "in" / f"{number}.png", 5, 7)
    whole = (tmp_path / "in" / "0.png").read_bytes()
    (tmp_path / "in" / "0.png").write_bytes(b"")
    (tmp_path / "in" / "all.txt").write_text("0.png\n1.png\n2.png\ngone.png\nlost.png\n")
    report = tmp_path / "run.jsonl"
    arguments = [tmp_path / "in" / "all.txt", "-o", tmp_path / "out", "--report", report]
    assert omgsr(*arguments).code == 1
    # What a list names and is not there has failed too.
    told = status(report, "--json").records[0]
    assert (told["files"], told["finished"], told["failed"], told["left"]) == (5, 2, 3, 0)
    assert told["reasons"] == {"no such file": 2, "the file is empty (0 bytes)": 1}
    (tmp_path / "in" / "0.png").write_bytes(whole)
    (tmp_path / "in" / "lost.png").write_bytes(whole)
    said = omgsr(*arguments, "--retry-failed")
    assert (said.code, said.lines) == (1, [str(tmp_path / "out" / "0.png")])
    told = status(report, "--json").records[0]
    assert (told["finished"], told["failed"]) == (3, 1)
    assert status(report).lines[0].startswith("3 of 4 finished, 1 failed")
    assert omgsr(*arguments).lines == [str(tmp_path / "out" / "lost.png")]
    assert status(report).lines[0].startswith("4 of 5 finished, 1 failed")


def test_retrying_without_failures_is_reported(omgsr: Command, tmp_path: Path) -> None:
    arguments = [draw(tmp_path / "a.png"), "-o", tmp_path / "out.png", "--report", tmp_path / "run.jsonl"]
    assert omgsr(*arguments).code == 0
    said = omgsr(*arguments, "--retry-failed")
    assert (said.code, said.err) == (0, "nothing to do\n")


def test_parts_together_equal_one_run(omgsr: Command, tmp_path: Path) -> None:
    for number in range(8):
        draw(tmp_path / "in" / str(number % 2) / f"{number}.png", 5 + number, 7)
    assert omgsr(tmp_path / "in", "-r", "-o", tmp_path / "whole").code == 0
    for number in (1, 2, 3):
        said = omgsr(tmp_path / "in", "-r", "-o", tmp_path / "parts", "--shard", f"{number}/3")
        assert (said.code, len(said.lines) < 8) == (0, True)
    names = files_below(tmp_path / "whole")
    assert files_below(tmp_path / "parts") == names
    for name in names:
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_processes_from_python_equal_the_command(
    omgsr: Command, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        draw(tmp_path / "in" / f"{number}.png", 5 + number, 7)
    assert omgsr(tmp_path / "in", "-o", tmp_path / "command", "--device", "cpu").code == 0
    monkeypatch.setattr("omgsr_cli.engines.local.Processes", Pickled)
    results = upscale_folder(model, tmp_path / "in", tmp_path / "python", workers=2, device="cpu")
    assert [result.status for result in results] == ["done"] * 3
    for name in files_below(tmp_path / "command"):
        assert (tmp_path / "python" / name).read_bytes() == (tmp_path / "command" / name).read_bytes()
    again = upscale_folder(str(model), tmp_path / "in", tmp_path / "command")
    assert [result.status for result in again] == ["skipped"] * 3


def test_the_part_comes_from_a_scheduler(omgsr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw(tmp_path / "in" / "a.png")
    monkeypatch.setenv("WORLD_SIZE", "2")
    planned = []
    for rank in "01":
        monkeypatch.setenv("RANK", rank)
        planned += omgsr(tmp_path / "in", "--shard", "auto", "--dry-run").lines
    assert len(planned) == 1


def test_a_single_image_starts_no_process(omgsr: Command, tmp_path: Path) -> None:
    """Only this process has standard input and output."""
    source = draw(tmp_path / "a.png")
    one = omgsr(source, "-o", "-", "--device", "cpu", "-q")
    for options in (("--workers", "2"), ("--engine", "ray")):
        assert omgsr(source, "-o", "-", "--device", "cpu", "-q", *options) == one
    assert (one.code, one.out[:4]) == (0, b"\x89PNG")


def test_a_wrong_option_is_a_usage_error_that_names_it(omgsr: Command, tmp_path: Path) -> None:
    source = draw(tmp_path / "a.png")
    for options, wrong in (
        (("--workers", "0"), "--workers 0"),
        (("--shard", "3/2"), "--shard 3/2"),
        (("--retry-failed",), "--retry-failed"),
        (("--engine", "cloud"), "--engine cloud"),
        (("--address", "auto"), "--address auto"),
        (("--report", "."), "--report ."),
        (("--report", "none.jsonl", "--retry-failed"), "none.jsonl cannot be read"),
    ):
        said = omgsr(source, *options)
        assert (said.code, said.out) == (2, b""), options
        assert wrong in said.errors[0]


def test_a_missing_device_in_a_list_is_one_line(omgsr: Command, tmp_path: Path) -> None:
    said = omgsr(draw(tmp_path / "a.png"), "--device", "cpu,cpu:9")
    assert said.code == 1
    assert said.errors == ["error: device 'cpu:9' is not present"]
    assert omgsr(tmp_path / "a.png", "--device", "all").code == 0
