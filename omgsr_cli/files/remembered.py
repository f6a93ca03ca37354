"""What one run remembers for the next: hashes of files, results without a record, samples, how fast things were."""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from omgsr_cli.errors import FileError, reason_of
from omgsr_cli.files.addresses import Address, Location
from omgsr_cli.files.storage import look_at

CACHE_VARIABLE = "OMGSR_CACHE"

# A file that changed this short a time ago may change again without its time showing it.
_SETTLED_NS = 2_000_000_000
_MODEL_FILES = (".safetensors", ".json", ".txt", ".model")


def cache_folder() -> Path:
    """Where what can be made again is kept: OMGSR_CACHE, or the user's cache folder; it need not exist.

    Raises:
        RuntimeError: nothing tells where that is.
    """
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "omgsr"


class Remembered:
    """A small database in the cache folder. Where none can be kept, a run simply remembers nothing.

    A fact about a file holds while its size, its times and its place on the disk are the same.

    Args:
        folder: of the database, made if it is missing; None takes `cache_folder()`.
    """

    def __init__(self, folder: Path | None = None) -> None:
        try:
            place = folder or cache_folder()
            place.mkdir(parents=True, exist_ok=True)
            self._open(str(place / "remembered.sqlite"))
        except (OSError, RuntimeError, sqlite3.Error):
            self._open(":memory:")

    def content(self, path: Path) -> str:
        """The SHA-256 of a whole file, 64 hexadecimal digits; read only if it has changed since it was last asked.

        Raises:
            FileError: it cannot be read.
        """
        try:
            stamp = _stamp(path)
            found = self._find("content", _key(path))
            if found is not None and found.startswith(stamp):
                return found.removeprefix(stamp)
            with path.open("rb") as file:
                content = hashlib.file_digest(file, "sha256").hexdigest()
            if _is_settled(path) and _stamp(path) == stamp:
                self._keep("content", _key(path), stamp + content)
        except OSError as error:
            raise FileError(f"{path}: cannot be read: {reason_of(error)}") from error
        return content

    def find_content(self, address: Address) -> str | None:
        """The SHA-256 of a file on a storage of the network, if it was fetched before and is still the same.

        Raises:
            FileError: the storage does not answer.
        """
        entry = look_at(address)
        found = None if entry is None else self._find("content", address.url.encode())
        return (
            found.removeprefix(f"{entry.stamp}:") if entry and found and found.startswith(f"{entry.stamp}:") else None
        )

    def keep_content(self, address: Address, stamp: str, content: str) -> None:
        """Note the SHA-256 of a file on a storage of the network, which had this stamp before it was fetched."""
        self._keep("content", address.url.encode(), f"{stamp}:{content}")

    def contents(self, folders: Iterable[Path]) -> str:
        """One hash for all files of models: their names below their folder and what is in them.

        Raises:
            FileError: one cannot be read.
        """
        digest = hashlib.sha256()
        for folder in folders:
            files = [folder] if folder.is_file() else sorted(p for p in folder.rglob("*") if p.suffix in _MODEL_FILES)
            for path in files:
                digest.update(os.fsencode(path.relative_to(folder)) + b"\0" + self.content(path).encode())
            digest.update(b"\0\0")
        return digest.hexdigest()

    def is_result(self, path: Location, record: str) -> bool:
        """Whether a file that holds no record is what an earlier run with this record wrote."""
        try:
            return self._find("result", _key(path)) == _stamp(path) + record
        except (OSError, FileError):
            return False

    def is_any_result(self, path: Path) -> bool:
        """Whether a file that holds no record is what an earlier run wrote."""
        if not self._has_results:
            return False
        found = self._find("result", _key(path))
        try:
            return found is not None and found.startswith(_stamp(path))
        except OSError:
            return False

    @cached_property
    def _has_results(self) -> bool:
        """Whether any result without a record is known: else many files need not be asked for."""
        try:
            return (
                self._database.execute("SELECT 1 FROM remembered WHERE kind = 'result' LIMIT 1").fetchone() is not None
            )
        except sqlite3.Error:
            return False

    def is_result_content(self, content: str) -> bool:
        """Whether a file with this SHA-256 was found to be a result of an earlier run."""
        return self._find("own", content.encode()) is not None

    def keep_result_content(self, content: str) -> None:
        """Note that a file with this SHA-256 is a result of an earlier run."""
        self._keep("own", content.encode(), "")

    def keep_result(self, path: Location, record: str) -> None:
        """Note with which record a file was written just now."""
        self._keep("result", _key(path), _stamp(path) + record)

    def find_speed(self, model: str) -> float | None:
        """Seconds for a megapixel of work, as the last run with this model and device took; None if none has."""
        found = self._find("speed", model.encode())
        return None if found is None else float(found)

    def keep_speed(self, model: str, seconds: float) -> None:
        """Note the seconds that a megapixel of work took with a model and device."""
        self._keep("speed", model.encode(), repr(seconds))

    def find_gain(self, machine: str) -> float | None:
        """How much faster than another a number format is on a machine; None if that was never measured."""
        found = self._find("gain", machine.encode())
        return None if found is None else float(found)

    def keep_gain(self, machine: str, gain: float) -> None:
        """Note how much faster than another a number format is on a machine."""
        self._keep("gain", machine.encode(), repr(gain))

    def find_sample(self, key: str) -> str | None:
        """What one sample of a data set gave, by all that it depends on."""
        return self._find("sample", key.encode())

    def keep_sample(self, key: str, value: str) -> None:
        """Keep what one sample of a data set gave."""
        self._keep("sample", key.encode(), value)

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def _open(self, place: str) -> None:
        self._database = sqlite3.connect(place, timeout=10, isolation_level=None, check_same_thread=False)
        # What is lost here is made again: nothing waits for the disk.
        self._database.execute("PRAGMA synchronous = OFF")
        self._database.execute(
            "CREATE TABLE IF NOT EXISTS remembered (kind TEXT, key BLOB, value TEXT, PRIMARY KEY (kind, key))"
        )

    def _find(self, kind: str, key: bytes) -> str | None:
        try:
            select = "SELECT value FROM remembered WHERE kind = ? AND key = ?"
            row = self._database.execute(select, (kind, key)).fetchone()
        except sqlite3.Error:
            return None
        return None if row is None else str(row[0])

    def _keep(self, kind: str, key: bytes, value: str) -> None:
        try:
            self._database.execute("INSERT OR REPLACE INTO remembered VALUES (?, ?, ?)", (kind, key, value))
        except sqlite3.Error:
            # A full disk or a broken database costs the next run some time, never this one its result.
            return


def _key(path: Location) -> bytes:
    if isinstance(path, Address):
        return path.url.encode()
    return os.fsencode(os.path.realpath(path))


def _stamp(path: Location) -> str:
    if isinstance(path, Address):
        entry = look_at(path)
        return f"{entry.stamp}:" if entry else ""
    state = path.stat()
    # The change time moves even where a program puts the modification time back.
    return f"{state.st_size}-{state.st_mtime_ns}-{state.st_ctime_ns}-{state.st_ino}:"


def _is_settled(path: Path) -> bool:
    state = path.stat()
    return time.time_ns() - max(state.st_mtime_ns, state.st_ctime_ns) > _SETTLED_NS
