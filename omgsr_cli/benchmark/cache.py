"""What is kept between runs: restored pictures and scores, by the content and settings that they depend on."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omgsr_cli import __version__
from omgsr_cli.errors import FileError, OmgsrError, reason_of
from omgsr_cli.files.remembered import Remembered, cache_folder

_FORMAT = 1
"""Raised when what is kept changes its meaning; older entries are then no longer found."""


def default_cache_folder() -> Path:
    """Where results are kept if no folder is named."""
    return cache_folder() / "bench"


class Cache:
    """Restored pictures as files, and scores in one small database.

    Args:
        folder: made if it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._hashes: dict[Path, tuple[int, int, str]] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._scores = sqlite3.connect(folder / "scores.sqlite", timeout=30)
            with self._told():
                self._scores.execute("CREATE TABLE IF NOT EXISTS scores (key TEXT PRIMARY KEY, value REAL NOT NULL)")
        except (OSError, sqlite3.OperationalError) as error:
            raise OmgsrError(
                f"{folder}: results cannot be kept there: {reason_of(error)}", "give another --cache"
            ) from error

    def picture_path(self, **depends_on: object) -> Path:
        """The file of a restored picture; whether it is there says whether it was made before."""
        key = key_of(kind="picture", **depends_on)
        return self.folder / "pictures" / key[:2] / f"{key}.png"

    def find_score(self, key: str) -> float | None:
        """The score that was kept under a key."""
        with self._told():
            row = self._scores.execute("SELECT value FROM scores WHERE key = ?", (key,)).fetchone()
        return None if row is None else float(row[0])

    def keep_score(self, key: str, value: float) -> None:
        """Keep a score; it is on disk when this returns."""
        with self._told():
            self._scores.execute("INSERT OR REPLACE INTO scores VALUES (?, ?)", (key, value))

    def content(self, path: Path) -> str:
        """Hash of a file's content, computed once a run.

        Raises:
            FileError: it cannot be read.
        """
        try:
            state = path.stat()
            size, modified, known = self._hashes.get(path, (-1, -1, ""))
            if (size, modified) == (state.st_size, state.st_mtime_ns):
                return known
            with path.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise FileError(f"{path}: cannot be read: {reason_of(error)}") from error
        self._hashes[path] = (state.st_size, state.st_mtime_ns, found)
        return found

    def close(self) -> None:
        """Close the database."""
        self._scores.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            with self._scores:
                yield
        except sqlite3.DatabaseError as error:
            place = self.folder / "scores.sqlite"
            raise OmgsrError(f"{place}: {error}", "remove it, or give another --cache") from error


def key_of(**depends_on: object) -> str:
    """One text for everything that a result depends on: plain values by name."""
    text = json.dumps({"format": _FORMAT, **depends_on}, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:40]


def files_identity(place: Path) -> str:
    """Tell a model's folder or file from another by the content of all of it, and by the version of this program."""
    remembered = Remembered()
    try:
        return key_of(content=remembered.contents([place]), version=__version__)
    finally:
        remembered.close()
