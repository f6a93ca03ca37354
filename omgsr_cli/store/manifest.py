"""`manifest.json`: size and SHA-256 of every file of a folder, so that corrupt files are found and named."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path, PurePosixPath
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from omgsr_cli.errors import ModelError, reason_of
from omgsr_cli.validation import first_mistake

MANIFEST_NAME = "manifest.json"


class FileEntry(BaseModel):
    """The expected size and hash of one file.

    Attributes:
        bytes: its size.
        sha256: hash of its content, 64 hexadecimal digits.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    bytes: int = Field(ge=0)
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


class Manifest(BaseModel):
    """The contents of `manifest.json`.

    Attributes:
        format: version of this record.
        files: maps a path in the folder, with forward slashes, to the file's entry; excludes the manifest itself.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    files: dict[str, FileEntry]


def read_entry(path: Path) -> FileEntry:
    """Return size and hash of a file.

    Raises:
        OSError: the file cannot be read.
    """
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return FileEntry(bytes=file.tell(), sha256=digest)


def write_manifest(folder: Path) -> Manifest:
    """Write `manifest.json` for the current files of a folder, and flush it to disk.

    Raises:
        OSError: a file cannot be read, or the manifest cannot be written.
    """
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / MANIFEST_NAME)
    manifest = Manifest(files={path.relative_to(folder).as_posix(): read_entry(path) for path in files})
    with open(folder / MANIFEST_NAME, "w", encoding="utf-8") as file:
        file.write(to_json(manifest))
        file.flush()
        os.fsync(file.fileno())
    return manifest


def to_json(manifest: Manifest) -> str:
    """Return the text of `manifest.json`."""
    return json.dumps(manifest.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n"


def load_manifest(folder: Path) -> Manifest:
    """Read a folder's manifest.

    Raises:
        ModelError: the manifest is missing or corrupt, or names a file outside the folder.
    """
    path = folder / MANIFEST_NAME
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise ModelError(f"{folder} has no {MANIFEST_NAME}") from error
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {reason_of(error)}") from error
    except ValidationError as error:
        raise ModelError(f"{path} is not a manifest: {first_mistake(error).line()}") from error
    outside = [name for name in manifest.files if not stays_inside(name)]
    if outside:
        raise ModelError(f"{path} names a file outside of its folder: {outside[0]!r}")
    return manifest


def find_damage(folder: Path, manifest: Manifest, *, contents: bool = True) -> tuple[str, ...]:
    """Compare a folder with its manifest: sizes, and hashes if `contents` is set; files without an entry are ignored.

    Returns:
        One line for each missing or changed file; empty for an intact folder.
    """
    reasons = (_damage_of(folder / name, entry, contents) for name, entry in manifest.files.items())
    return tuple(f"{name} {reason}" for name, reason in zip(manifest.files, reasons, strict=True) if reason is not None)


def _damage_of(path: Path, entry: FileEntry, contents: bool) -> str | None:
    try:
        if not path.is_file():
            return "is missing"
        size = path.stat().st_size
        if size != entry.bytes:
            return f"has {size} bytes, not {entry.bytes}"
        if contents and read_entry(path) != entry:
            return "has another content (SHA-256)"
    except OSError as error:
        return f"cannot be read: {reason_of(error)}"
    return None


def stays_inside(name: str) -> bool:
    """Whether a relative path with forward slashes points inside its folder, on every system."""
    path = PurePosixPath(name)
    # On Windows, a backslash separates names, and a colon ends a drive letter.
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and not set(name) & {"\\", ":", "\0"}
