"""Restored images, scores and times of earlier runs, keyed by everything that each depends on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from omgsr_cli import __version__
from omgsr_cli.errors import OmgsrError, reason_of
from omgsr_cli.files.remembered import Facts, Remembered, cache_folder

_FORMAT = 2
"""Increase it when the meaning of an entry changes; older entries are then ignored."""


def default_cache_folder() -> Path:
    """The folder of results if none is given."""
    return cache_folder() / "bench"


class Cache:
    """Restored images as files, and plain values in one small database; several processes may share a folder.

    A corrupt or unwritable database is replaced, see `omgsr_cli.files.remembered.Facts`.

    Args:
        folder: created if it is missing.
    Raises:
        OmgsrError: the folder cannot be created or used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = Remembered()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OmgsrError(
                f"{folder}: cannot keep results there: {reason_of(error)}", "use another --cache"
            ) from error
        self._values = Facts(folder, "results.sqlite")

    def image_path(self, key: str) -> Path:
        """The file of a restored image; it exists if the image was restored before."""
        return self.folder / "images" / key[:2] / f"{key}.png"

    def find(self, key: str) -> object:
        """The value of a key, or None."""
        text = self._values.find("bench", key.encode())
        return None if text is None else json.loads(text)

    def keep(self, key: str, value: object) -> None:
        """Store a JSON value under a key."""
        self._values.keep("bench", key.encode(), json.dumps(value))

    def content(self, path: Path) -> str:
        """The SHA-256 of a file's content.

        Raises:
            FileError: it cannot be read.
        """
        return self._files.content(path)

    def close(self) -> None:
        """Close the database."""
        self._values.close()
        self._files.close()


def key_of(**depends_on: object) -> str:
    """A hash of everything that a result depends on, given as plain values by name."""
    text = json.dumps({"format": _FORMAT, **depends_on}, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:40]


def files_identity(place: Path) -> str:
    """A hash of the whole content of a model's folder or file, and of the version of this program."""
    remembered = Remembered()
    try:
        return key_of(content=remembered.contents([place]), version=__version__)
    finally:
        remembered.close()
