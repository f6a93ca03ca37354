"""Write a mid-timestep into a training configuration and leave the rest unchanged."""

from __future__ import annotations

from pathlib import Path

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import Table

from omgsr_cli.errors import FileError, UsageError, reason_of
from omgsr_cli.imaging import write_atomically

_SECTION, _KEY = "model", "mid_timestep"


def check_config(path: Path) -> None:
    """Check that a configuration can be changed, before a mid-timestep is computed for it.

    Raises:
        UsageError: the file is not TOML, or its [model] is not a table.
        FileError: it cannot be read, or its folder does not exist.
    """
    if path.is_dir() or not path.parent.is_dir():
        raise FileError(
            f"{path} cannot be written: {'it is a folder' if path.is_dir() else 'its folder does not exist'}"
        )
    if path.exists():
        changed_text(_read(path), 0, path)


def write_mid_timestep(path: Path, mid_timestep: int) -> None:
    """Set [model] mid_timestep in a TOML file and keep its comments and order; create the file if it is missing.

    Raises:
        UsageError, FileError: as for `check_config`, or the file cannot be written.
    """
    text = changed_text(_read(path) if path.exists() else "", mid_timestep, path)
    write_atomically(path, [text.encode("utf-8")], overwrite=True)


def changed_text(text: str, mid_timestep: int, path: Path) -> str:
    """Return the text of a TOML file with the value set and everything else unchanged."""
    try:
        document = tomlkit.parse(text)
    except (TOMLKitError, RecursionError) as error:
        raise UsageError(f"{path} is not a TOML file: {error}", "fix the file and try again") from error
    if _SECTION not in document:
        document[_SECTION] = tomlkit.table()
    section = document[_SECTION]
    if not isinstance(section, Table):
        raise UsageError(f"{path}: [{_SECTION}] is not a table of its own", f"set {_KEY} by hand")
    section[_KEY] = mid_timestep
    return tomlkit.dumps(document)


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not a TOML file: not UTF-8", "fix the file and try again") from error
    except OSError as error:
        raise FileError(f"{path} cannot be read: {reason_of(error)}") from error
