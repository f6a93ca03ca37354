"""What is kept between runs: restored images, scores and times, by all that each of them depends on."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omgsr_cli import __version__
from omgsr_cli.errors import OmgsrError, reason_of
from omgsr_cli.files.remembered import Remembered, cache_folder

_FORMAT = 2
"""Raised when what is kept changes its meaning; older entries are then no longer found."""


def default_cache_folder() -> Path:
    """Where results are kept if no folder is named."""
    return cache_folder() / "bench"


class Cache:
    """Restored images as files, and plain values in one small database; several processes may share a folder.

    Args:
        folder: made if it is missing.
    Raises:
        OmgsrError: nothing can be kept there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = Remembered()
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(folder / "results.sqlite", timeout=30)
            with self._transaction():
                self._database.execute("CREATE TABLE IF NOT EXISTS kept (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
        except (OSError, sqlite3.OperationalError) as error:
            raise OmgsrError(
                f"{folder}: results cannot be kept there: {reason_of(error)}", "give another --cache"
            ) from error

    def image_path(self, key: str) -> Path:
        """The file of a restored image by what it depends on; whether it exists says whether it was made before."""
        return self.folder / "images" / key[:2] / f"{key}.png"

    def find(self, key: str) -> object:
        """The value kept under a key, or None."""
        with self._transaction():
            row = self._database.execute("SELECT value FROM kept WHERE key = ?", (key,)).fetchone()
        return None if row is None else json.loads(row[0])

    def keep(self, key: str, value: object) -> None:
        """Keep a value that JSON can hold; it is on disk when this returns."""
        with self._transaction():
            self._database.execute("INSERT OR REPLACE INTO kept VALUES (?, ?)", (key, json.dumps(value)))

    def content(self, path: Path) -> str:
        """The SHA-256 of a file's content.

        Raises:
            FileError: it cannot be read.
        """
        return self._files.content(path)

    def close(self) -> None:
        """Close the database."""
        self._database.close()
        self._files.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            with self._database:
                yield
        except sqlite3.DatabaseError as error:
            place = self.folder / "results.sqlite"
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
