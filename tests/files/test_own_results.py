"""Folders and globs skip results of earlier runs, under any name."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from command_line import Command, draw, files_below, size_of

from omgsr_cli.files.containers import read_record


def test_folders_and_globs_skip_results_of_every_format(omgsr: Command, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    draw(photos / "a.png", 8, 6)
    for format_name in ("png", "jpg", "webp", "tiff", "avif"):
        more = ["--compare"] if format_name == "png" else []
        assert omgsr(photos / "a.png", "--format", format_name, *more).code == 0
    # Under other names, as people sort their images.
    for path in photos.glob("a_x4.*"):
        path.rename(path.with_stem("holiday"))
    (photos / "a_x4_compare.png").rename(photos / "before and after.png")
    for inputs in (photos, f"{photos}/*"):
        said = omgsr(inputs, "-o", tmp_path / "out", "--format", "png")
        assert said.code == 0, said.err
        assert files_below(tmp_path / "out") == ["a.png"]
        assert said.err.count("skipped 6 results") == 1
    # One that is named is processed, alone or by a list.
    said = omgsr(photos / "holiday.jpg", "-o", tmp_path / "named", "--format", "png")
    assert (said.code, files_below(tmp_path / "named")) == (0, ["holiday.png"])
    (photos / "list.txt").write_text("holiday.webp\n")
    said = omgsr(photos / "list.txt", "-o", tmp_path / "listed", "--format", "png")
    assert (said.code, files_below(tmp_path / "listed")) == (0, ["holiday.png"])


def test_a_result_named_as_input_is_processed(omgsr: Command, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    draw(photos / "a.png", 8, 6)
    for scale in ("2", "3"):
        assert omgsr(photos / "a.png", "--scale", scale).code == 0
    (photos / "list.txt").write_text("a_x2.png\n")
    for number, named in enumerate((photos / "a_x2.png", photos / "list.txt")):
        for order in ([named, photos], [photos, named]):
            out = tmp_path / f"out-{number}-{order[0].stem}"
            said = omgsr(*order, "-o", out)
            assert (said.code, files_below(out)) == (0, ["a.png", "a_x2.png"])
            assert said.err.count("skipped ") == 1
            assert "a_x3.png" in said.err
            assert "a_x2.png" not in said.err
    # With nothing else to skip, there is no note.
    (photos / "a_x3.png").unlink()
    said = omgsr(photos / "a_x2.png", photos, "-o", tmp_path / "all")
    assert (said.code, files_below(tmp_path / "all")) == (0, ["a.png", "a_x2.png"])
    assert "skipped" not in said.err


def test_results_without_a_record_are_remembered(omgsr: Command, tmp_path: Path) -> None:
    draw(tmp_path / "in" / "a.png", 8, 6)
    assert omgsr(tmp_path / "in" / "a.png", "--metadata", "none", "--compare").code == 0
    assert read_record(tmp_path / "in" / "a_x4.png") is None
    said = omgsr(tmp_path / "in", "-o", tmp_path / "out", "--json")
    assert (said.code, len(said.records)) == (0, 1)
    # What was changed since is another image.
    draw(tmp_path / "in" / "a_x4.png", 9, 9)
    said = omgsr(tmp_path / "in", "-o", tmp_path / "out", "--json")
    assert [Path(record["input"]).name for record in said.records if record["status"] == "done"] == ["a_x4.png"]


def test_a_folder_of_nothing_but_results(omgsr: Command, tmp_path: Path) -> None:
    draw(tmp_path / "in" / "a.png", 8, 6)
    assert omgsr(tmp_path / "in", "-o", tmp_path / "out").code == 0
    for arguments in ([tmp_path / "out"], [f"{tmp_path}/out/*.png"], [tmp_path / "out", "--dry-run"]):
        said = omgsr(*arguments)
        (error,) = said.errors
        assert (said.code, said.out) == (1, b"")
        assert str(tmp_path / "out" / "a.png") in error
    # Beside others it is worth a note.
    said = omgsr(tmp_path / "in", tmp_path / "out", "-o", tmp_path / "again")
    assert (said.code, said.errors, files_below(tmp_path / "again")) == (0, [], ["a.png"])


def test_results_below_a_folder_that_is_searched(omgsr: Command, tmp_path: Path) -> None:
    draw(tmp_path / "in" / "a.png", 8, 6)
    for _ in range(2):
        assert omgsr(tmp_path / "in", "-o", tmp_path / "in" / "first", "--recursive").code == 0
        assert files_below(tmp_path / "in") == ["a.png", "first/a.png"]
    said = omgsr(tmp_path / "in", "-o", tmp_path / "in" / "second", "--recursive", "--scale", "2")
    assert said.code == 0
    assert files_below(tmp_path / "in") == ["a.png", "first/a.png", "second/a.png"]
    assert size_of(tmp_path / "in" / "second" / "a.png") == (16, 12)


def test_a_result_does_not_clash_with_its_source(omgsr: Command, tmp_path: Path) -> None:
    draw(tmp_path / "in" / "a.jpg", 8, 6)
    assert omgsr(tmp_path / "in" / "a.jpg", "-o", tmp_path / "in" / "a.png").code == 0
    said = omgsr(tmp_path / "in", "-o", tmp_path / "out", "--format", "png")
    assert (said.code, files_below(tmp_path / "out")) == (0, ["a.png"])
    assert size_of(tmp_path / "out" / "a.png") == (32, 24)


def test_results_at_addresses(omgsr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsspec = pytest.importorskip("fsspec")
    monkeypatch.setenv("OMGSR_CACHE", str(tmp_path / "cache"))
    draw(tmp_path / "a.png", 8, 6)
    assert omgsr(tmp_path / "a.png").code == 0
    memory = fsspec.filesystem("memory")
    for name in ("a.png", "a_x4.png"):
        memory.put_file(str(tmp_path / name), f"/own/in/{name}")
    fetched: list[str] = []
    get_file = type(memory).get_file
    monkeypatch.setattr(
        type(memory), "get_file", lambda self, path, *more, **named: (fetched.append(path), get_file(self, path, *more))
    )
    for run in range(2):
        said = omgsr("memory://own/in", "-o", "memory://own/out", "--json")
        assert said.code == 0, said.err
        assert memory.ls("/own/out", detail=False) == ["/own/out/a.png"]
        assert [record["status"] for record in said.records] == (["done", "skipped"] if run == 0 else ["skipped"] * 2)
        assert "skipped memory://own/in/a_x4.png" in said.err
    assert fetched == ["/own/in/a.png", "/own/in/a_x4.png"]
    assert omgsr("memory://own/in/a_x4.png", "-o", "memory://own/named/").code == 0
    memory.rm_file("/own/in/a.png")
    assert omgsr("memory://own/in", "-o", "memory://own/out").code == 1
    shutil.rmtree(tmp_path / "cache")
    assert omgsr("memory://own/in", "-o", "memory://own/out").code == 1
