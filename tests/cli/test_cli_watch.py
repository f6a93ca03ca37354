"""Watched folders at the command line: files arrive while the program runs, and signals end it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from command_line import Command, Said, draw, files_below, pixels

from omgsr_cli.cli import app
from omgsr_cli.imaging import SourceImage, read_image

Step = Callable[[], Any]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omgsr_cli.files.watching.SETTLE_S", 0.2)
    for place in ("engines.work", "engines.local", "batch.upscaler"):
        monkeypatch.setattr(f"omgsr_cli.{place}.IDLE_S", 0.05)


@pytest.fixture
def watch(omgsr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """Run the command on `inbox` while a thread takes steps, each when the one before returned something true."""

    def run(steps: Sequence[Step], number: int, *options: str | Path) -> Said:
        has_ended = threading.Event()

        def act() -> None:
            until = time.monotonic() + 60
            for step in steps:
                while not step() and time.monotonic() < until and not has_ended.is_set():
                    time.sleep(0.01)
            if not has_ended.is_set():
                os.kill(os.getpid(), number)

        def main(arguments: Sequence[str]) -> int:
            try:
                app.main(arguments)
            except SystemExit as ended:
                return int(str(ended.code))
            finally:
                has_ended.set()
            raise AssertionError("the program did not exit")

        monkeypatch.setattr("command_line.run", main)
        before = signal.getsignal(signal.SIGTERM)
        thread = threading.Thread(target=act)
        thread.start()
        try:
            said = omgsr(tmp_path / "inbox", "-o", tmp_path / "out", "--scale", "1", "--watch", *options)
        finally:
            thread.join()
            signal.signal(signal.SIGTERM, before)
        return said

    return run


def test_files_that_arrive_are_restored_until_ctrl_c(
    watch: Callable[..., Said], capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path
) -> None:
    inbox, out, report = tmp_path / "inbox", tmp_path / "out", tmp_path / "run.jsonl"
    first = draw(inbox / "a.png").read_bytes()
    second = draw(tmp_path / "b.png", mode="L").read_bytes()
    state: dict[str, Any] = {}

    def arrive() -> bool:
        (inbox / "half.png").write_bytes(first[:200])
        (inbox / "never.png").write_bytes(first[:200])
        (inbox / "b.png").write_bytes(first)
        return True

    def complete() -> bool:
        # The result of the first image exists while the program waits, and its line is in the report.
        state["lines"] = report.read_text().count('"done"')
        (inbox / "half.png").write_bytes(first)
        state["grey"] = (out / "b.png").stat().st_ino
        (inbox / "b.png").write_bytes(second)
        return True

    steps = [
        lambda: (out / "a.png").exists(),
        arrive,
        lambda: (out / "b.png").exists() and report.read_text().count('"done"') == 2,
        complete,
        lambda: report.read_text().count('"done"') == 4,
    ]
    said = watch(steps, signal.SIGINT, "--json", "--report", report)
    assert said.code == 0
    assert files_below(out) == ["a.png", "b.png", "half.png"]
    assert sorted(Path(one["input"]).name for one in said.records) == ["a.png", "b.png", "b.png", "half.png"]
    assert {one["status"] for one in said.records} == {"done"}
    assert [len(one["notes"]) for one in said.records if "b.png" in one["input"]] == [0, 1]
    assert state["lines"] == 2
    assert pixels(out / "b.png").ndim == 2
    assert "never.png" in said.err
    (told,) = Command(capfdbinary, "status")(report, "--json").records
    assert (told["finished"], told["failed"], told["files"], told["watching"]) == (3, 0, None, True)
    # A new run skips what is finished, and an existing file that is not a result fails.
    (inbox / "never.png").unlink()
    draw(inbox / "c.png")
    draw(out / "c.png")
    said = watch([lambda: report.read_text().count('"failed"') == 1], signal.SIGTERM, "--json", "--report", report)
    assert said.code == 128 + signal.SIGTERM
    assert sorted(one["status"] for one in said.records) == ["failed", "skipped", "skipped", "skipped"]
    assert watch([lambda: report.read_text().count('"failed"') == 2], signal.SIGINT, "--report", report).code == 1


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["inbox/a.png", "--watch"], "a.png"),
        (["-", "--watch"], "standard input"),
        (["s3://bucket/in", "--watch"], "s3://"),
        (["inbox", "--watch", "-o", "x.png"], "x.png"),
        (["inbox", "--watch", "-o", "-"], "standard output"),
        (["inbox", "--watch", "-o", "inbox"], "overwritten"),
        (["inbox", "--watch", "--dry-run"], "--dry-run"),
        (["inbox", "--watch", "--shard", "1/2"], "--shard"),
        (["--watch", "--list", "inbox/a.png"], "--list"),
        (["inbox", "--watch", "--engine", "ray"], "--engine ray"),
        (["inbox", "--watch", "--report", "r.jsonl", "--retry-failed"], "--retry-failed"),
    ],
)
def test_what_cannot_be_watched_is_refused(
    omgsr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], word: str
) -> None:
    draw(tmp_path / "inbox" / "a.png")
    monkeypatch.chdir(tmp_path)
    said = omgsr(*arguments)
    assert (said.code, len(said.errors)) == (2, 1)
    assert word in said.errors[0]
    assert not (tmp_path / "out").exists()


def test_an_image_that_changes_while_it_is_read_fails(
    omgsr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = draw(tmp_path / "a.png")

    def read(path: Path, name: str) -> SourceImage:
        found = read_image(path, name)
        draw(image, mode="L")
        return found

    monkeypatch.setattr("omgsr_cli.batch.upscaler.read_image", read)
    said = omgsr(image, "-o", tmp_path / "out.png")
    assert (said.code, len(said.errors)) == (1, 1)
    assert "changed" in said.errors[0]
    assert not (tmp_path / "out.png").exists()
