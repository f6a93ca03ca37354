"""A configuration as it was written: its values, and where each of them came from."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omgsr_cli.errors import FileError, UsageError, reason_of
from omgsr_cli.files.addresses import shown
from omgsr_cli.training.toml_lines import Key, find_lines


@dataclass(frozen=True)
class Sheet:
    """What stands in a TOML file, with the changes of `--set`.

    Attributes:
        name: of the file, for messages.
        table: its values.
        lines: line of each key.
        sets: keys that `--set` gave, with the option as it was typed.
    """

    name: str
    table: dict[str, Any]
    lines: dict[Key, int]
    sets: dict[Key, str]

    def place(self, key: Key) -> str:
        """Where a key was written: "config.toml:12" or "--set a.b=v"; of one that is not there, its table's place."""
        for end in range(len(key), 0, -1):
            if key[:end] in self.sets:
                return self.sets[key[:end]]
            if key[:end] in self.lines:
                return f"{self.name}:{self.lines[key[:end]]}"
        return self.name

    def line(self, key: Key) -> int:
        """The line that `place` tells; 0 where it tells none."""
        line = self.place(key).rpartition(":")[2]
        return int(line) if line.isdecimal() else 0


def read_sheet(path: Path, sets: Sequence[str] = ()) -> Sheet:
    """Read a TOML file and make the changes that were typed.

    Args:
        path: the file, UTF-8.
        sets: "a.b=v", v in TOML's notation or a bare text; nothing after "=" takes the default again.
    Raises:
        FileError: the file cannot be read.
        UsageError: it is not TOML, or a change is not of this form.
    """
    name = shown(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise FileError(
            f"cannot read {name}: {reason_of(error)}", "omgsr train --print-config NAME gives one"
        ) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not TOML: it is not UTF-8, at byte {error.start}", "save it as UTF-8") from error
    return parse_sheet(text, name, sets)


def parse_sheet(text: str, name: str, sets: Sequence[str] = ()) -> Sheet:
    """Read a configuration from its text; see `read_sheet`."""
    text = text.replace("\r\n", "\n")
    try:
        table = tomllib.loads(text)
    except RecursionError as error:
        raise UsageError(f"{name} is not a configuration: its values are nested too deep") from error
    except ValueError as error:  # TOMLDecodeError, and a number with thousands of digits
        raise UsageError(f"{name} is not TOML: {error}") from error
    sheet = Sheet(name, table, find_lines(text), {})
    for assignment in sets:
        _change(sheet, assignment)
    return sheet


def _change(sheet: Sheet, assignment: str) -> None:
    dotted, equals, text = assignment.partition("=")
    key = tuple(part.strip() for part in dotted.split("."))
    if not equals or not all(key):
        raise UsageError(f"--set {shown(assignment)}: not KEY=VALUE", "write it like --set optim.lr=1e-4")
    table = sheet.table
    for part in key[:-1]:
        below = table.setdefault(part, {})
        if not isinstance(below, dict):
            raise UsageError(f"--set {shown(assignment)}: {part} is not a table", "write it like --set optim.lr=1e-4")
        table = below
    sheet.sets[key] = f"--set {shown(assignment)}"
    if text.strip():
        table[key[-1]] = _parse_value(text)
    else:
        table.pop(key[-1], None)


def _parse_value(text: str) -> object:
    """A value in TOML's notation, or the text itself."""
    try:
        table = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text.strip()
    return table["value"] if len(table) == 1 else text.strip()


def without(table: dict[str, Any], key: Key, instead: dict[str, Any]) -> dict[str, Any]:
    """Copy a table with one key left out, or with what stands under that key in `instead`."""
    copy = deepcopy(table)
    parent: Any = copy
    for part in key[:-1]:
        parent = parent.setdefault(part, {})
    parent.pop(key[-1], None)
    filler: Any = instead
    for part in key:
        filler = filler.get(part) if isinstance(filler, dict) else None
    if filler is not None:
        parent[key[-1]] = deepcopy(filler)
    return copy
