"""Files and folders are complete or absent, and files of killed processes are removed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_line import Command, draw, files_below
from places import ROOT

from omgsr_cli.errors import FileError
from omgsr_cli.files import atomic
from omgsr_cli.files.atomic import (
    give_up_partials,
    link_or_copy,
    partial_file,
    partial_folder,
    partial_name,
    remove_abandoned,
    scratch_folder,
    write_atomically,
)

_HOLD = """
import sys, time
from pathlib import Path
from omgsr_cli.files.atomic import partial_file, partial_folder
make = partial_folder if sys.argv[2] == "folder" else partial_file
with make(Path(sys.argv[1])) as partial:
    (partial / "weights" if partial.is_dir() else partial).write_bytes(b"half")
    print(partial, flush=True)
    time.sleep(600)
"""


def hold(path: Path, kind: str) -> tuple[subprocess.Popen[str], Path]:
    """A process that works on a place, and the private name that it uses."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(path), kind], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_files_of_killed_processes_are_removed_and_those_of_live_ones_kept(tmp_path: Path, kind: str) -> None:
    (killed, left), (living, kept) = hold(tmp_path / "a.png", kind), hold(tmp_path / "b.png", kind)
    try:
        assert left.exists()
        assert remove_abandoned(tmp_path) == 0
        killed.kill()
        # A zombie, which nobody has waited for, is dead too.
        os.waitid(os.P_PID, killed.pid, os.WEXITED | os.WNOWAIT)
        assert remove_abandoned(tmp_path) == 1
        assert not left.exists()
        assert kept.exists()
    finally:
        for process in (killed, living):
            process.kill()
            process.wait()
    # Now the process does not exist any more.
    write_atomically(tmp_path / "c.png", [b"whole"])
    assert remove_abandoned(tmp_path) in (0, 1)
    assert files_below(tmp_path) == ["c.png"]


def test_files_of_other_hosts_and_reused_process_ids_are_judged_by_age(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = partial_name("a.png")
    host, pid, started, token = own.split(".")[3].split("-")
    elsewhere = tmp_path / f".a.png.{int(host, 16) ^ 1:08x}-{2**22 + 1}-{started}-{token}.partial"
    reused = tmp_path / f".a.png.{host}-{pid}-{int(started) - 1000}-{token}.partial"
    foreign = tmp_path / ".download.partial"
    for path in (elsewhere, reused, foreign, tmp_path / own):
        path.write_bytes(b"half")
    assert remove_abandoned(tmp_path) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([elsewhere.name, foreign.name, own])
    # A host that is called differently sees nothing of its own in these.
    monkeypatch.setattr(socket, "gethostname", lambda: "another")
    atomic._host.cache_clear()
    try:
        assert remove_abandoned(tmp_path) == 0
    finally:
        atomic._host.cache_clear()


@pytest.mark.skipif(os.name != "posix", reason="locks of POSIX")
def test_a_lock_protects_work_of_a_process_that_cannot_be_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container that shares the host's name and folder, but not its processes."""
    process, partial = hold(tmp_path / "a.png", "file")
    try:
        monkeypatch.setattr(atomic, "is_abandoned", lambda name: True)
        assert remove_abandoned(tmp_path) == 0
        assert partial.exists()
    finally:
        process.kill()
        process.wait()
    assert remove_abandoned(tmp_path) == 1


def test_private_names_fit_and_go_with_their_block(tmp_path: Path) -> None:
    long = "ä" * 120 + ".png"
    write_atomically(tmp_path / long, [b"x"])
    with partial_folder(tmp_path / "model") as folder:
        (folder / "below").mkdir()
    with partial_file(tmp_path / "a") as partial:
        give_up_partials()
        assert not partial.exists()
    with scratch_folder() as scratch:
        (scratch / "copy").write_bytes(b"x")
    assert not scratch.exists()
    assert files_below(tmp_path) == [long]


@pytest.mark.skipif(not os.path.isdir("/dev/fd"), reason="lists open files by POSIX's folder of them")
def test_a_file_without_a_lock_is_closed_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows has no fcntl, and renames no file that is open."""
    before, replace, open_files = os.listdir("/dev/fd"), os.replace, []

    def rename(source: Path, target: Path) -> None:
        open_files.extend(set(os.listdir("/dev/fd")) - set(before))
        replace(source, target)

    monkeypatch.setattr(atomic, "fcntl", None)
    monkeypatch.setattr(atomic.os, "replace", rename)
    for content in (b"old", b"new"):
        write_atomically(tmp_path / "a.png", [content], overwrite=True)
    assert not open_files
    assert (tmp_path / "a.png").read_bytes() == b"new"
    assert files_below(tmp_path) == ["a.png"]


@pytest.mark.parametrize(
    ("name", "is_allowed"),
    [
        *((name, False) for name in ("nul", "CON.png", "aux.tar.png", "com1", "10:30.png", "what?.png", "a.", "a ")),
        *((name, True) for name in ("console.png", "com10.png", "a.b.png", "ä (1).png", ".a.png")),
    ],
)
def test_names_that_windows_takes_for_something_else_are_refused_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, is_allowed: bool
) -> None:
    monkeypatch.setattr(atomic, "sys", SimpleNamespace(platform="win32"))
    if is_allowed:
        write_atomically(tmp_path / name, [b"x"])
    else:
        with pytest.raises(FileError, match="Windows"):
            write_atomically(tmp_path / name, [b"x"])
    assert files_below(tmp_path) == [name] * is_allowed


def test_a_file_is_copied_if_links_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").write_bytes(b"weights")
    link_or_copy(tmp_path / "a", tmp_path / "linked")

    def refuse(path: Path, target: Path) -> None:
        raise OSError(22, "A required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    link_or_copy(tmp_path / "a", tmp_path / "copied")
    assert (tmp_path / "linked").is_symlink()
    assert not (tmp_path / "copied").is_symlink()
    assert (tmp_path / "copied").read_bytes() == b"weights"


def test_the_next_run_removes_files_of_a_killed_run(omgsr: Command, tmp_path: Path) -> None:
    draw(tmp_path / "in" / "b.png", 8, 6)
    (tmp_path / "out").mkdir()
    process, left = hold(tmp_path / "out" / "a.png", "file")
    process.kill()
    process.wait()
    assert omgsr(tmp_path / "in", "-o", tmp_path / "out", "--dry-run").code == 0
    assert files_below(tmp_path / "out") == [left.name]
    said = omgsr(tmp_path / "in", "-o", tmp_path / "out")
    assert said.code == 0, said.err
    assert files_below(tmp_path / "out") == ["b.png"]
