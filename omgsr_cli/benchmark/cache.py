"""Keep restored images, scores and times between runs of benchmarks, by a hash of everything they depend on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from omgsr_cli import __version__
from omgsr_cli.errors import OmgsrError, reason_of
from omgsr_cli.files.remembered import Remembered, cache_folder

_FORMAT = 2
"""Increase this number when the meaning of an entry changes; older entries are then ignored."""


class Cache(Remembered):
    """Hashes and values as in `Remembered`, and restored images; several processes may share a folder.

    Args:
        folder: folder of the cache, created if it is missing; None means a folder in the user's cache.
    Raises:
        OmgsrError: the folder cannot be created or used.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or cache_folder() / "bench"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OmgsrError(
                f"{self.folder}: cannot keep results there: {reason_of(error)}", "use another --cache"
            ) from error
        super().__init__(self.folder)

    def image_path(self, key: str) -> Path:
        """Return the file of a restored image; it exists if the image was restored before."""
        return self.folder / "images" / key[:2] / f"{key}.png"


def key_of(**depends_on: object) -> str:
    """Return a hash of everything that a result depends on, given as plain values by name."""
    text = json.dumps({"format": _FORMAT, **depends_on}, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:40]


def files_identity(*places: Path) -> str:
    """Return a hash of the content of models' folders and files, and of the program's version."""
    remembered = Remembered()
    try:
        return key_of(content=remembered.contents(places), version=__version__)
    finally:
        remembered.close()
