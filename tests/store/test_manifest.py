"""Manifests: their content, and every kind of damage that they reveal."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from pathlib import Path

import pytest

from omgsr_cli.errors import ModelError
from omgsr_cli.store.manifest import MANIFEST_NAME, find_damage, load_manifest, write_manifest

CONTENTS = {"a.bin": bytes(range(256)) * 9, "deep/er/b.json": b"{}", "empty": b"", "näme with space": b"x"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, content in CONTENTS.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    write_manifest(tmp_path)
    return tmp_path


def damage(folder: Path, *, contents: bool = True) -> tuple[str, ...]:
    return find_damage(folder, load_manifest(folder), contents=contents)


def test_a_manifest_lists_every_other_file_with_size_and_hash(folder: Path) -> None:
    written = json.loads((folder / MANIFEST_NAME).read_text("utf-8"))
    expected = {
        name: {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in CONTENTS.items()
    }
    assert written == {"format": 1, "files": expected}
    assert damage(folder) == ()
    assert write_manifest(folder) == load_manifest(folder), "a second writing says the same"


@pytest.mark.skipif(shutil.which("sha256sum") is None, reason="this system has no sha256sum to compare with")
def test_hashes_equal_those_of_sha256sum(folder: Path) -> None:
    lines = "".join(f"{entry.sha256}  {name}\n" for name, entry in load_manifest(folder).files.items())
    done = subprocess.run(["sha256sum", "--check", "--quiet"], input=lines, cwd=folder, text=True, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize("position", [0, 1000, -1])
def test_a_flipped_bit_is_found_wherever_it_is(folder: Path, position: int) -> None:
    content = bytearray(CONTENTS["a.bin"])
    content[position] ^= 1
    (folder / "a.bin").write_bytes(content)
    assert damage(folder) == ("a.bin has another content (SHA-256)",)
    assert damage(folder, contents=False) == ()


def test_missing_truncated_and_special_files_are_named(folder: Path) -> None:
    (folder / "a.bin").write_bytes(CONTENTS["a.bin"][:-1])
    (folder / "deep/er/b.json").unlink()
    (folder / "empty").unlink()
    (folder / "empty").mkdir()
    assert damage(folder, contents=False) == (
        "a.bin has 2303 bytes, not 2304",
        "deep/er/b.json is missing",
        "empty is missing",
    )


def test_other_files_are_ignored(folder: Path) -> None:
    (folder / ".DS_Store").write_bytes(b"finder")
    assert damage(folder) == ()


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", "", "c:\\windows", "a\\..\\b"])
def test_a_manifest_that_points_outside_is_refused(folder: Path, name: str) -> None:
    entry = {"bytes": 0, "sha256": "0" * 64}
    (folder / MANIFEST_NAME).write_text(json.dumps({"files": {name: entry}}))
    with pytest.raises(ModelError, match="outside of its folder"):
        load_manifest(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not a manifest"),
        ("{}", "is not a manifest"),
        ('{"files": {}, "format": 2}', "is not a manifest"),
        ('{"files": {"a": {"bytes": 1, "sha256": "abc"}}}', "is not a manifest"),
        ('{"files": {"a": {"bytes": -1, "sha256": "' + "0" * 64 + '"}}}', "is not a manifest"),
    ],
)
def test_a_corrupt_manifest_is_one_line(folder: Path, text: str, message: str) -> None:
    (folder / MANIFEST_NAME).write_text(text)
    with pytest.raises(ModelError, match=message) as caught:
        load_manifest(folder)
    assert "\n" not in caught.value.message


def test_a_folder_without_a_manifest_is_reported(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no manifest\.json"):
        load_manifest(tmp_path)
