"""What is kept between runs: restored images, scores and times, by all that each of them depends on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from omgsr_cli import __version__
from omgsr_cli.errors import OmgsrError, reason_of
from omgsr_cli.files.remembered import Facts, Remembered, cache_folder

_FORMAT = 2
"""Raised when what is kept changes its meaning; older entries are then no longer found."""


def default_cache_folder() -> Path:
    """Where results are kept if no folder is named."""
    return cache_folder() / "bench"


class Cache:
    """Restored images as files, and plain values in one small database; several processes may share a folder.

    A database that is damaged or cannot be written is replaced, see `omgsr_cli.files.remembered.Facts`.

    Args:
        folder: made if it is missing.
    Raises:
        OmgsrError: the folder cannot be made or used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = Remembered()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OmgsrError(
                f"{folder}: results cannot be kept there: {reason_of(error)}", "give another --cache"
            ) from error
        self._values = Facts(folder, "results.sqlite")

    def image_path(self, key: str) -> Path:
        """The file of a restored image by what it depends on; whether it exists shows whether it was made before."""
        return self.folder / "images" / key[:2] / f"{key}.png"

    def find(self, key: str) -> object:
        """The value kept under a key, or None."""
        text = self._values.find("bench", key.encode())
        return None if text is None else json.loads(text)

    def keep(self, key: str, value: object) -> None:
        """Keep a value that JSON can hold."""
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
