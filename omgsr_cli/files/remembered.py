"""Values that a run stores for later runs: hashes of files, results without a record, samples, scores and speeds."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from omgsr_cli.errors import FileError, reason_of
from omgsr_cli.files.addresses import Address, Location, look_at

CACHE_VARIABLE = "OMGSR_CACHE"
_FILE_NAME = "remembered.sqlite"

# A file that changed this recently may change again within the resolution of its timestamp.
_SETTLED_NS = 2_000_000_000
_MODEL_FILES = (".safetensors", ".json", ".txt", ".model")


def cache_folder() -> Path:
    """Return the folder of values that can be computed again: OMGSR_CACHE, or the user's cache folder.

    The folder may not exist yet.

    Raises:
        RuntimeError: no variable names a folder, and the user has no home folder.
    """
    named = os.environ.get(CACHE_VARIABLE)
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "omgsr"


class Remembered:
    """JSON values by kind and key, in a small database that several processes share.

    A value about a file is valid while the file's size, times and inode stay the same. A damaged database is moved
    aside and a new one replaces it. A read-only database is still read, and new values go to a database in a folder
    beside it or among the system's temporary files; `take_notes` reports this. If no database can be written, values
    last as long as the process.

    Args:
        folder: folder of the database, created if it is missing; None means `cache_folder()`.
    """

    def __init__(self, folder: Path | None = None) -> None:
        try:
            self._places = [place / _FILE_NAME for place in _folders(folder or cache_folder())]
        except RuntimeError:
            self._places = []
        # The writable database comes first, read-only ones follow.
        self._databases: list[sqlite3.Connection] = []
        self._has_warned = False
        self._open()

    def find(self, kind: str, key: str) -> Any:
        """Return the kept value, or None."""
        rows = self._rows("SELECT content FROM remembered WHERE kind = ? AND key = ?", (kind, _encoded(key)))
        return json.loads(rows[0][0]) if rows else None

    def has(self, kind: str) -> bool:
        """Whether any value of a kind is kept."""
        return bool(self._rows("SELECT 1 FROM remembered WHERE kind = ? LIMIT 1", (kind,)))

    def keep(self, kind: str, key: str, value: object) -> None:
        """Keep a JSON value and replace an earlier one; the value is lost if the disk is full or fails."""
        row = kind, _encoded(key), json.dumps(value)
        for _ in range(2):
            try:
                self._databases[0].execute("INSERT OR REPLACE INTO remembered VALUES (?, ?, ?)", row)
                return
            except sqlite3.Error as error:
                if _primary(error) in (*_DAMAGED, sqlite3.SQLITE_READONLY):
                    self._open()
                    continue
                # A full disk only makes the next run slower; this run's result is not affected.
                if not self._has_warned and self._places:
                    _note(f"{self._places[0]} cannot be written: {error}")
                self._has_warned = True
                return

    def content(self, path: Path) -> str:
        """Return the SHA-256 of a file, 64 hexadecimal digits; read the file only if it changed since the last call.

        Raises:
            FileError: the file cannot be read.
        """
        try:
            return str(self.about("content", path, lambda: _hash(path)))
        except OSError as error:
            raise FileError(f"{path}: cannot be read: {reason_of(error)}") from error

    def about(self, kind: str, path: Path, find_out: Callable[[], Any]) -> Any:
        """Return a JSON value about a file: the kept value if the file is unchanged, or else the result of `find_out`.

        Raises:
            OSError: the file is missing.
            Any exception of `find_out`.
        """
        stamp = _stamp(path)
        found = self._find_about(kind, path, stamp)
        if found is None:
            found = find_out()
            if _is_settled(path) and _stamp(path) == stamp:
                self.keep(kind, _key(path), [stamp, found])
        return found

    def find_content(self, address: Address) -> Any:
        """Return the SHA-256 of a file on network storage if it was fetched before and is unchanged, or None.

        Raises:
            FileError: the storage does not answer.
        """
        return self._find_about("content", address, _stamp(address))

    def keep_content(self, address: Address, stamp: str, content: str) -> None:
        """Keep the SHA-256 of a file on network storage; `stamp` is the file's stamp before it was fetched."""
        self.keep("content", _key(address), [stamp, content])

    def contents(self, folders: Iterable[Path]) -> str:
        """Return one hash of all files of models: their paths below their folder and their contents.

        Raises:
            FileError: a file cannot be read.
        """
        digest = hashlib.sha256()
        for folder in folders:
            files = [folder] if folder.is_file() else sorted(p for p in folder.rglob("*") if p.suffix in _MODEL_FILES)
            for path in files:
                digest.update(os.fsencode(path.relative_to(folder)) + b"\0" + self.content(path).encode())
            digest.update(b"\0\0")
        return digest.hexdigest()

    def result(self, path: Location) -> str | None:
        """Return the record of a result that cannot contain one itself; None for any other file."""
        record: str | None = None
        with suppress(OSError, FileError):
            record = self._find_about("result", path, _stamp(path))
        return record

    def keep_result(self, path: Location, record: str) -> None:
        """Keep the record of a file that was just written."""
        self.keep("result", _key(path), [_stamp(path), record])

    def close(self) -> None:
        """Close the database."""
        for database in self._databases:
            database.close()

    def _find_about(self, kind: str, path: Location, stamp: str) -> Any:
        """Return the kept value about a file if its stamp is unchanged, or None."""
        found = self.find(kind, _key(path))
        return found[1] if found and stamp and found[0] == stamp else None

    def _rows(self, select: str, values: tuple[object, ...]) -> list[Any]:
        for _ in range(2):
            try:
                for database in self._databases:
                    if rows := database.execute(select, values).fetchall():
                        return rows
            except sqlite3.Error as error:
                if _primary(error) in _DAMAGED:
                    self._open(damaged=True)
                    continue
            break
        return []

    def _open(self, *, damaged: bool = False) -> None:
        """Open the first writable place, and read-only databases in the places before it."""
        self.close()
        self._databases = []
        refused: Path | None = None
        for place in self._places:
            if damaged and place == self._places[0] and place.is_file():
                _move_aside(place)
            database, is_writable = _open_database(place)
            if database is not None:
                self._databases.insert(0, database)
            if is_writable:
                if refused is not None:
                    _note(f"{refused} cannot be used: {place} takes its place; remove one of them")
                return
            refused = refused or place
        if refused is not None:
            _note(f"{refused} cannot be used: what this run would store is lost when it ends")
        database = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        database.execute(_TABLE)
        self._databases.insert(0, database)


_TABLE = "CREATE TABLE IF NOT EXISTS remembered (kind TEXT, key BLOB, content TEXT, PRIMARY KEY (kind, key))"
_DAMAGED = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
_notes: dict[str, bool] = {}


def take_notes() -> tuple[str, ...]:
    """Return notes for the user about the caches since the last call, each once."""
    new = tuple(text for text, is_taken in _notes.items() if not is_taken)
    _notes.update(dict.fromkeys(new, True))
    return new


def forget_notes() -> None:
    """Drop all notes, at the start of a command."""
    _notes.clear()


def _note(text: str) -> None:
    _notes.setdefault(text, False)


def _folders(folder: Path) -> tuple[Path, ...]:
    """Return the folders to try for a database: the folder, one beside it, and one among temporary files."""
    user = os.getuid() if hasattr(os, "getuid") else "user"
    name = hashlib.sha256(os.fsencode(os.path.abspath(folder))).hexdigest()[:8]
    return folder, folder.with_name(f"{folder.name}-2"), Path(tempfile.gettempdir(), f"omgsr-{user}-{name}")


def _open_database(place: Path) -> tuple[sqlite3.Connection | None, bool]:
    """Open a database and return it with whether it is writable; move a damaged database aside."""
    for _ in range(2):
        database: sqlite3.Connection | None = None
        try:
            place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Any user can create a folder among temporary files.
            is_temporary = place.parent.name.startswith("omgsr-") and hasattr(os, "getuid")
            if is_temporary and place.parent.stat().st_uid != os.getuid():
                return None, False
            database = sqlite3.connect(place, timeout=10, isolation_level=None, check_same_thread=False)
            # Lost values can be computed again, so do not wait for the disk.
            database.execute("PRAGMA synchronous = OFF")
            _check(database, place)
            return database, True
        except OSError:
            return None, False
        except sqlite3.Error as error:
            code = _primary(error)
            if database is not None and database.in_transaction:
                with suppress(sqlite3.Error):
                    database.execute("ROLLBACK")
            if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_FULL):
                return database, True
            if code == sqlite3.SQLITE_READONLY or (code == sqlite3.SQLITE_CANTOPEN and place.is_file()):
                # The folder or the file is read-only.
                return database, False
            if database is not None:
                database.close()
            is_damaged = code in _DAMAGED or place.is_dir()
            if not is_damaged or not _move_aside(place):
                return None, False
    return None, False


def _check(database: sqlite3.Connection, place: Path) -> None:
    """Check that a database can be written and has its full length, without changing its values."""
    # Lock out other writers meanwhile.
    database.execute("BEGIN IMMEDIATE")
    database.execute(_TABLE)
    database.execute("SELECT kind, key, content FROM remembered LIMIT 1").fetchall()
    database.execute("COMMIT")
    database.execute("BEGIN IMMEDIATE")
    database.execute("INSERT OR REPLACE INTO remembered VALUES ('probe', '', '')")
    database.execute("ROLLBACK")
    pages, page_bytes = (database.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_count", "page_size"))
    if place.stat().st_size < pages * page_bytes:
        raise sqlite3.DatabaseError("the file is truncated")


def _move_aside(place: Path) -> bool:
    aside = next(
        path for number in count(1) if not os.path.lexists(path := place.with_name(f"{place.name}.damaged-{number}"))
    )
    try:
        os.rename(place, aside)
    except OSError:
        return False
    # A journal must not be applied to another database.
    for ending in ("-journal", "-wal", "-shm"):
        with suppress(OSError):
            os.unlink(f"{place}{ending}")
    _note(f"{place} is damaged: it is now {aside.name}, and a new one replaces it without its contents")
    return True


def _primary(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code, without the extended bits."""
    return (getattr(error, "sqlite_errorcode", None) or sqlite3.SQLITE_ERROR) & 0xFF


def _encoded(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")


def _key(path: Location) -> str:
    return path.url if isinstance(path, Address) else os.path.realpath(path)


def _stamp(path: Location) -> str:
    """Return a text that changes when the file changes; empty for an address without a file."""
    if isinstance(path, Address):
        entry = look_at(path)
        return entry.stamp if entry else ""
    state = path.stat()
    # The change time changes even if a program restores the modification time.
    return f"{state.st_size}-{state.st_mtime_ns}-{state.st_ctime_ns}-{state.st_ino}"


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_settled(path: Path) -> bool:
    state = path.stat()
    return time.time_ns() - max(state.st_mtime_ns, state.st_ctime_ns) > _SETTLED_NS
