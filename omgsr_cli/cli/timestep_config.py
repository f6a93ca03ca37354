"""Put a mid-timestep into a training configuration without disturbing anything else in it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

from omgsr_cli.errors import FileError, UsageError

_SECTION, _KEY = "model", "mid_timestep"
_HEADER = re.compile(r"^\s*\[\s*(?:model|\"model\"|'model')\s*\]\s*(?:#.*)?$")
_ANY_HEADER = re.compile(r"^\s*\[")
_ASSIGNMENT = re.compile(rf"^(\s*(?:{_KEY}|\"{_KEY}\"|'{_KEY}')\s*=\s*)([^#\s][^#]*?)(\s*(?:#.*)?)$")


def check_config(path: Path) -> None:
    """Check that a configuration can be changed, before anything is computed for it.

    Raises:
        UsageError: the file is not TOML, or [model] is something else in it.
        FileError: it cannot be read, or its folder is not there.
    """
    if path.is_dir() or not path.parent.is_dir():
        raise FileError(f"{path} cannot be written: {'it is' if path.is_dir() else 'its folder is not'} a folder")
    if path.exists():
        changed_text(_read(path), 0, path)


def write_mid_timestep(path: Path, mid_timestep: int) -> None:
    """Set [model] mid_timestep in a TOML file, keeping comments and order; the file is made where there is none.

    Raises:
        UsageError, FileError: as for `check_config`, or it cannot be written.
    """
    from omgsr_cli.imaging import write_atomically

    text = changed_text(_read(path) if path.exists() else "", mid_timestep, path)
    write_atomically(path, [text.encode("utf-8")], overwrite=True)


def changed_text(text: str, mid_timestep: int, path: Path) -> str:
    """Give the text of a TOML file with the value set in it, as little changed as can be."""
    before = _parse(text, path)
    newline = "\r\n" if "\r\n" in text else "\n"
    lines = text.splitlines()
    header = next((number for number, line in enumerate(lines) if _HEADER.match(line)), None)
    if header is None:
        lines += [*([""] if lines else []), f"[{_SECTION}]", f"{_KEY} = {mid_timestep}"]
    else:
        end = next((n for n in range(header + 1, len(lines)) if _ANY_HEADER.match(lines[n])), len(lines))
        for number in range(header + 1, end):
            if match := _ASSIGNMENT.match(lines[number]):
                lines[number] = f"{match[1]}{mid_timestep}{match[3]}"
                break
        else:
            lines.insert(header + 1, f"{_KEY} = {mid_timestep}")
    changed = newline.join(lines) + newline
    section = before.get(_SECTION, {})
    wanted = {**before, _SECTION: {**section, _KEY: mid_timestep}} if isinstance(section, dict) else None
    # The text is edited, not parsed: what it now says is compared with what it is to say.
    if wanted is None or _parse(changed, path, ours=True) != wanted:
        raise UsageError(f"{path}: [{_SECTION}] is not written as a table of its own", f"set {_KEY} by hand")
    return changed


def _parse(text: str, path: Path, *, ours: bool = False) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        if ours:
            return {}
        raise UsageError(f"{path} is not a TOML file: {error}", "mend it first") from error


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not a TOML file: not UTF-8", "mend it first") from error
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}") from error
