"""The cache of earlier runs: nothing depends on it."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from command_line import Command, draw, spoil

from omgsr_cli.errors import FileError
from omgsr_cli.files.remembered import Remembered, cache_folder, forget_notes, take_notes


def test_a_file_is_read_again_only_after_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omgsr_cli.files.remembered._SETTLED_NS", -1)
    reads: list[int] = []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *arguments: reads.append(1) or digest(*arguments))
    path = tmp_path / "a\udcff.tif" if os.name == "posix" else tmp_path / "a.tif"
    path.write_bytes(b"one")
    for _ in range(2):
        assert Remembered(tmp_path / "kept").content(path) == hashlib.sha256(b"one").hexdigest()
    assert len(reads) == 1
    path.write_bytes(b"two")
    assert Remembered(tmp_path / "kept").content(path) == hashlib.sha256(b"two").hexdigest()


def test_a_file_changed_just_now_is_read_again(tmp_path: Path) -> None:
    """Its time may be too coarse to show a second change."""
    remembered, path = Remembered(tmp_path / "kept"), tmp_path / "a"
    path.write_bytes(b"one")
    remembered.content(path)
    state = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert remembered.content(path) == hashlib.sha256(b"two").hexdigest()


def test_a_models_hash_follows_names_and_contents(tmp_path: Path) -> None:
    remembered, seen = Remembered(tmp_path / "kept"), set()
    for name, content in (("a.json", b"1"), ("a.json", b"2"), ("b.json", b"2"), ("deep/b.json", b"2")):
        folder = tmp_path / f"m{len(seen)}"
        path = folder / name
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        (folder / "notes.md").write_text("not a part of the model")
        seen.add(remembered.contents([folder]))
    assert len(seen) == 4
    assert remembered.contents([tmp_path / "m0"]) in seen


def test_results_and_speeds_are_remembered(tmp_path: Path) -> None:
    path = tmp_path / "r.png"
    path.write_bytes(b"pixels")
    Remembered(tmp_path / "kept").keep_result(path, "record")
    assert Remembered(tmp_path / "kept").result(path) == "record"
    path.write_bytes(b"others")
    assert Remembered(tmp_path / "kept").result(path) is None
    assert Remembered(tmp_path / "kept").result(tmp_path / "gone.png") is None
    assert Remembered(tmp_path / "kept").find("speed", "model") is None
    Remembered(tmp_path / "kept").keep("speed", "model", 2.5)
    assert Remembered(tmp_path / "kept").find("speed", "model") == 2.5


def test_without_a_cache_folder_nothing_fails(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"not a folder")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "remembered.sqlite").write_bytes(b"not a database" * 100)
    for folder in (tmp_path / "file", tmp_path / "kept"):
        remembered = Remembered(folder)
        assert remembered.content(tmp_path / "file") == hashlib.sha256(b"not a folder").hexdigest()
        remembered.keep_result(tmp_path / "file", "record")
        remembered.close()
    with pytest.raises(FileError, match="cannot be read"):
        Remembered(tmp_path / "kept").content(tmp_path / "gone")


def test_the_environment_sets_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OMGSR_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("OMGSR_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "omgsr"


@pytest.mark.parametrize("how", ["garbage", "truncated", "short", "middle", "folder", "another table"])
def test_a_damaged_database_is_reported_once_and_replaced(tmp_path: Path, how: str) -> None:
    place = tmp_path / "kept" / "remembered.sqlite"
    before = Remembered(tmp_path / "kept")
    for number in range(200):
        before.keep("sample", f"sample {number}", "x" * 100)
    before.close()
    spoil(place, how)
    forget_notes()
    after = Remembered(tmp_path / "kept")
    assert after.find("sample", "sample 7") is None
    after.keep("sample", "new", "y")
    after.close()
    (note,) = take_notes()
    assert str(place) in note
    assert len([path for path in place.parent.iterdir() if "damaged" in path.name]) == 1
    assert Remembered(tmp_path / "kept").find("sample", "new") == "y"
    assert take_notes() == ()


def test_a_cache_path_that_is_a_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("a file")
    forget_notes()
    Remembered(tmp_path / "kept").keep("sample", "a", "1")
    (note,) = take_notes()
    assert str(tmp_path / "kept") in note
    assert Remembered(tmp_path / "kept").find("sample", "a") == "1"
    assert (tmp_path / "kept").read_text() == "a file"


def test_a_read_only_database_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Remembered(tmp_path / "kept").keep("sample", "old", "1")
    connect = sqlite3.connect

    def read_only(place: Path | str, **options: Any) -> sqlite3.Connection:
        if Path(place).parent == tmp_path / "kept":
            return connect(f"file:{place}?mode=ro", uri=True, **options)
        return connect(place, **options)

    monkeypatch.setattr(sqlite3, "connect", read_only)
    forget_notes()
    Remembered(tmp_path / "kept").keep("sample", "new", "2")
    again = Remembered(tmp_path / "kept")
    assert (again.find("sample", "old"), again.find("sample", "new")) == ("1", "2")
    assert len(take_notes()) == 1


@pytest.mark.parametrize("how", ["garbage", "truncated", "folder"])
def test_finished_results_are_recognised_after_the_cache_was_damaged(
    omgsr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.setenv("OMGSR_CACHE", str(tmp_path / "cache"))
    draw(tmp_path / "in" / "a.png", 8, 6)
    with_record = (tmp_path / "in", "-o", tmp_path / "out")
    without = (tmp_path / "in", "-o", tmp_path / "bare", "--metadata", "none")
    assert (omgsr(*with_record).code, omgsr(*without).code) == (0, 0)
    spoil(tmp_path / "cache" / "remembered.sqlite", how)
    said = omgsr(*with_record)
    assert (said.code, said.out) == (0, b"")
    assert said.err.count("remembered.sqlite is damaged") == 1
    assert omgsr(*without, "--overwrite").code == 0
    said = omgsr(*without)
    assert (said.code, said.out) == (0, b"")
    assert "damaged" not in said.err
