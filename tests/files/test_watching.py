"""Folders that are watched: files are planned when they are complete, and their latest versions once each."""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from command_line import draw
from PIL import Image

from omgsr_cli.errors import FileError, UsageError
from omgsr_cli.files.inputs import FoundResult, Note
from omgsr_cli.files.jobs import Job, JobOptions, Planned
from omgsr_cli.files.remembered import Remembered
from omgsr_cli.files.watching import FolderWatch, SystemChanges
from omgsr_cli.imaging import read_image, write_image

OPTIONS = JobOptions(recursive=True, suffix=None, size_suffix="_x4", output_format="same")


class Inbox:
    """A watched folder whose changes and time are those of the test."""

    def __init__(self, folder: Path, output: str | None = "out", **options: Any) -> None:
        self.folder = folder / "inbox"
        self.folder.mkdir(exist_ok=True)
        self.remembered = Remembered(folder / "cache")
        self.now, self.changed = 0.0, set[str]()
        output = output and str(folder / output)
        self.watch = FolderWatch(
            [str(self.folder)], output, replace(OPTIONS, **options), self.remembered, self.start, lambda: self.now
        )
        self.stream = self.watch.planned()

    def start(self, folders: Sequence[str], recursive: bool) -> Inbox:
        return self

    def take(self) -> set[str]:
        changed, self.changed = self.changed, set()
        return changed

    def write(self, name: str, content: bytes = b"x") -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        self.changed.add(os.path.realpath(path))
        return path

    def remove(self, name: str) -> None:
        (self.folder / name).unlink()
        self.changed.add(os.path.realpath(self.folder / name))

    def after(self, seconds: float) -> list[Planned]:
        """Return what is planned until nothing more is available, a time later."""
        self.now += seconds
        return list(iter(self.stream.__next__, None))

    def names_after(self, seconds: float) -> list[str]:
        return [one.below if isinstance(one, Job) else type(one).__name__ for one in self.after(seconds)]

    def finish(self, name: str, **how: bool) -> bool:
        return self.watch.finish(self.folder / name, **{"is_made": True, "is_unread": False} | how)


def test_existing_files_come_first_and_new_ones_when_they_are_complete(tmp_path: Path) -> None:
    for name in ("10.png", "2.png", ".hidden.png", "notes.doc", "sub/1.png"):
        path = tmp_path / "inbox" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
        os.utime(path, (1e9, 1e9))
    (tmp_path / "inbox" / "fresh.png").write_bytes(b"x")
    inbox = Inbox(tmp_path)
    assert inbox.names_after(0) == ["2.png", "10.png", "sub/1.png"]
    assert inbox.names_after(2) == ["fresh.png"]
    for name in ("a.jpg.part", "a.jpg.crdownload", "b.tmp", ".c.png.Xy3z", ".folder/d.png", "new/e.png", "empty.png"):
        inbox.write(name, b"" if name == "empty.png" else b"x")
    assert inbox.names_after(1) == []
    # The upload grows, and is renamed when it is complete.
    inbox.write("new/e.png", b"xx")
    (inbox.folder / "a.jpg.part").rename(inbox.folder / "a.jpg")
    inbox.changed.add(os.path.realpath(inbox.folder / "a.jpg"))
    assert inbox.names_after(1) == []
    assert inbox.names_after(1.9) == []
    assert inbox.names_after(0.2) == ["new/e.png", "a.jpg"]
    # Events may be repeated or lost.
    inbox.changed.add(os.path.realpath(inbox.folder / "a.jpg"))
    (inbox.folder / "silent.png").write_bytes(b"x")
    assert inbox.names_after(5) == []
    assert inbox.names_after(60) == ["empty.png"]
    assert inbox.names_after(2) == ["silent.png"]
    # The events of files in a new folder, and of a folder that is moved into place, can be missing.
    (tmp_path / "moved" / "deep").mkdir(parents=True)
    (tmp_path / "moved" / "deep" / "f.png").write_bytes(b"x")
    (tmp_path / "moved").rename(inbox.folder / "moved")
    inbox.changed.add(os.path.realpath(inbox.folder / "moved"))
    assert inbox.names_after(0) == []
    (inbox.folder / "moved" / "g.png").write_bytes(b"x")
    assert inbox.names_after(2) == ["moved/deep/f.png"]
    assert inbox.names_after(2) == ["moved/g.png"]
    flat = Inbox(tmp_path, recursive=False)
    assert {"2.png", "Note"} <= set(flat.names_after(2))
    flat.write("sub/2.png")
    assert [name for name in flat.names_after(2) if "/" in name] == []


def test_the_last_version_of_a_replaced_file_has_one_result(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    inbox.write("a.png")
    assert inbox.names_after(0) == []
    (job,) = inbox.after(2)
    assert isinstance(job, Job)
    assert (job.destination, job.replaces) == (tmp_path / "out" / "a.png", False)
    # Versions that arrive while one is restored are processed after it.
    inbox.write("a.png", b"second")
    assert inbox.after(3) == []
    inbox.write("a.png", b"the third")
    assert not inbox.watch.is_idle
    assert inbox.finish("a.png")
    assert inbox.watch.is_idle
    assert inbox.after(1) == []
    (job,) = inbox.after(1)
    assert isinstance(job, Job)
    assert job.replaces
    assert inbox.finish("a.png")
    assert inbox.after(60) == []
    # A file that is removed may be replaced by another one, whose result must not replace the first.
    inbox.remove("a.png")
    assert inbox.after(1) == []
    inbox.write("a.png", b"another")
    assert inbox.after(1) == []
    (job,) = inbox.after(2)
    assert isinstance(job, Job)
    assert not job.replaces
    # A result that could not be written is not replaced either.
    assert inbox.finish("a.png", is_made=False)
    inbox.write("a.png", b"more")
    assert inbox.after(0) == []
    assert [isinstance(one, Job) and one.replaces for one in inbox.after(2)] == [False]


def test_unreadable_files_are_waited_for(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    for name in ("half.png", "gone.png", "bad.png"):
        inbox.write(name)
    assert inbox.after(0) == []
    assert len(inbox.after(2)) == 3
    inbox.remove("gone.png")
    for name in ("half.png", "gone.png", "bad.png"):
        assert not inbox.finish(name, is_made=False, is_unread=True)
    inbox.write("half.png", b"complete")
    (note,) = inbox.after(1)
    assert isinstance(note, Note)
    assert "gone.png" in note.text
    assert inbox.names_after(2) == ["half.png"]
    assert inbox.finish("half.png")
    assert [path.name for path in inbox.watch.unfinished] == ["bad.png"]
    assert inbox.names_after(50) == []
    assert inbox.names_after(6) == ["bad.png"]
    assert inbox.finish("bad.png", is_made=False, is_unread=True)
    assert inbox.names_after(100) == []
    inbox.write("bad.png", b"better")
    assert inbox.names_after(0) == []
    assert inbox.names_after(2) == ["bad.png"]


def test_results_are_not_inputs(tmp_path: Path) -> None:
    """In any place inside the folder, with a record or without; and no two inputs have one result."""
    inbox = Inbox(tmp_path, "inbox/out", output_format="png")
    inbox.write("a.jpg")
    inbox.write("a.png")
    inbox.write("out/b.png")
    assert inbox.names_after(0) == []
    clash = inbox.after(2)
    assert sorted(type(one).__name__ for one in clash) == ["ClashError", "Job"]
    (error,) = [one for one in clash if isinstance(one, FileError)]
    assert "a.png" in error.message
    result = draw(inbox.folder / "moved" / "c.png")
    write_image(read_image(result), result, format="png", record="{}", overwrite=True)
    without = inbox.write("moved/d.png")
    inbox.remembered.keep_result(without, "{}")
    inbox.changed.add(os.path.realpath(result))
    assert inbox.after(0) == []
    assert sorted(one.path.name for one in inbox.after(2) if isinstance(one, FoundResult)) == ["c.png", "d.png"]
    beside = Inbox(tmp_path, "inbox", suffix="_x4", recursive=False)
    assert beside.names_after(0) == ["Note"]
    assert beside.names_after(2) == ["a.jpg", "a.png"]
    beside.write("a_x4.png")
    assert beside.names_after(0) == []
    assert beside.names_after(2) == ["FoundResult"]


def test_memory_does_not_grow_with_the_files_that_come_and_go(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)

    def entries() -> int:
        held = [*vars(inbox.watch).values(), *vars(inbox.watch._planner).values()]
        return sum(len(one) for one in held if hasattr(one, "__len__"))

    assert inbox.after(0) == []
    before = entries()
    for number in range(300):
        inbox.write(f"{number}.png")
    assert inbox.after(0) == []
    assert len(inbox.after(2)) == 300
    for number in range(300):
        inbox.finish(f"{number}.png")
        inbox.remove(f"{number}.png")
    inbox.changed = {path for path in inbox.changed if not path.endswith("7.png")}
    assert inbox.after(60) == []
    assert entries() == before


def test_a_removed_folder_ends_the_watch(tmp_path: Path) -> None:
    inbox = Inbox(tmp_path)
    assert inbox.after(0) == []
    shutil.rmtree(inbox.folder)
    inbox.now += 1
    assert [type(one) for one in inbox.stream] == [FileError]


def test_the_system_reports_changes(tmp_path: Path) -> None:
    changes = SystemChanges([str(tmp_path)], recursive=True)
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png")
    seen, until = set[str](), time.monotonic() + 30
    while not seen and time.monotonic() < until:
        seen |= changes.take()
        time.sleep(0.01)
    changes.close()
    assert seen == {str(tmp_path / "a.png")}


def test_a_system_that_cannot_watch_is_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def limited(*folders: str, **options: Any) -> Iterator[set[Any]]:
        for _ in range(allowed):
            yield set()
        raise RuntimeError("OS file watch limit reached.")

    allowed = 0
    monkeypatch.setattr("watchfiles.watch", limited)
    with pytest.raises(UsageError, match="limit") as caught:
        SystemChanges([str(tmp_path)], recursive=True)
    assert "WATCHFILES_FORCE_POLLING" in str(caught.value.hint)
    # Later, folders are searched instead.
    (tmp_path / "inbox").mkdir()
    allowed = 2
    remembered, now = Remembered(tmp_path / "cache"), [0.0]
    watch = FolderWatch([str(tmp_path / "inbox")], None, OPTIONS, remembered, clock=lambda: now[0])
    planned = watch.planned()
    assert next(planned) is None
    (note,) = iter(planned.__next__, None)
    assert isinstance(note, Note)
    draw(tmp_path / "inbox" / "a.png")
    for now[0] in (61, 64):
        found = list(iter(planned.__next__, None))
    assert [type(one) for one in found] == [Job]
    monkeypatch.setitem(sys.modules, "watchfiles", None)
    with pytest.raises(UsageError) as caught:
        SystemChanges([str(tmp_path)], recursive=True)
    assert "watch]" in str(caught.value.hint)
