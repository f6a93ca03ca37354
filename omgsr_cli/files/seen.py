"""Remember millions of names in little memory."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterable


class SeenNames:
    """Tells of each name whether it was there before, and what was said with it.

    What is remembered lies in a file of the system's own that has no name and ends with the process; some megabytes of
    it are in memory. A name is kept as a digest of 16 bytes: two that share one will not be met.
    """

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("CREATE TABLE seen (key BLOB PRIMARY KEY, value TEXT) WITHOUT ROWID")
        # Never ended: nothing here is to outlive the process.
        self._database.execute("BEGIN")

    def add_all(self, names: Iterable[tuple[str, str]]) -> None:
        """Remember names that are new, and what is to be said with each; of others stays what was said first."""
        rows = ((_key(name), value.encode(*_BYTES)) for name, value in names)
        self._database.executemany("INSERT OR IGNORE INTO seen VALUES (?, ?)", rows)

    def put(self, name: str, value: str | None) -> None:
        """Remember a name, and what is to be said with it in the place of what was said before."""
        row = _key(name), None if value is None else value.encode(*_BYTES)
        self._database.execute("INSERT OR REPLACE INTO seen VALUES (?, ?)", row)

    def count_values(self) -> list[tuple[str | None, int]]:
        """What was said, and with how many names each; the most first."""
        rows = self._database.execute("SELECT value, COUNT(*) FROM seen GROUP BY value ORDER BY COUNT(*) DESC, value")
        return [(None if value is None else bytes(value).decode(*_BYTES), count) for value, count in rows]

    def find(self, name: str) -> str | None:
        """What was said with a name; None if nothing was, or it has not come."""
        row = self._database.execute("SELECT value FROM seen WHERE key = ?", (_key(name),)).fetchone()
        return None if row is None or row[0] is None else bytes(row[0]).decode(*_BYTES)


# Names of files need not be valid UTF-8.
_BYTES = ("utf-8", "surrogateescape")


def _key(name: str) -> bytes:
    return hashlib.blake2b(name.encode(*_BYTES), digest_size=16).digest()
