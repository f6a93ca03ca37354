"""Lists of paths: a text file with one a line."""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from pathlib import Path

# Of a file, to tell whether it is a list.
_LOOKED_AT = 1 << 16


def read_lines(path: Path) -> Iterator[str] | None:
    """The lines of a text file in UTF-8 or, with its mark, UTF-16 as PowerShell writes it; None for other files.

    They are read as they are asked for.

    Raises:
        OSError: it cannot be opened.
    """
    with open(path, "rb") as file:
        start = file.read(_LOOKED_AT)
    is_utf_16 = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    # Names of files need not be valid UTF-8.
    encoding, errors = ("utf-16", "strict") if is_utf_16 else ("utf-8-sig", "surrogateescape")
    try:
        text = codecs.getincrementaldecoder(encoding)(errors).decode(start, len(start) < _LOOKED_AT)
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else _lines(path, encoding)


def _lines(path: Path, encoding: str) -> Iterator[str]:
    errors = "replace" if encoding == "utf-16" else "surrogateescape"
    with open(path, encoding=encoding, errors=errors, newline="\n") as file:
        for line in file:
            yield line.strip(" \t\r\n")
