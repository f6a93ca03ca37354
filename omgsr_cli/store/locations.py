"""Where fetched models are kept."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from omgsr_cli.errors import ModelError

HOME_VARIABLE = "OMGSR_HOME"
_RECORD_NAME = "omgsr.json"


def models_folder() -> Path:
    """The folder that holds one folder for each fetched model; it need not exist.

    `$OMGSR_HOME/models`; without this variable in the place that the system gives to a program's data:
    `$XDG_DATA_HOME` or `~/.local/share`, `~/Library/Application Support`, `%LOCALAPPDATA%`.

    Raises:
        ModelError: nothing tells where that is.
    """
    own = os.environ.get(HOME_VARIABLE)
    if own:
        return Path(own).expanduser() / "models"
    return _data_folder() / "omgsr" / "models"


def installed_folder(name: str) -> Path | None:
    """The folder of a fetched model, or None where it is not here."""
    # A name is one part of a path: nothing outside of the models' folder is ever meant by it.
    if name in ("", ".", "..") or name.startswith(".") or set(name) & {"/", "\\", ":", "\0"}:
        return None
    try:
        folder = models_folder() / name
        # A folder gets its name when it is complete; what has no record is not one of ours.
        return folder if (folder / _RECORD_NAME).is_file() else None
    except (ModelError, OSError):
        return None


def installed_names() -> tuple[str, ...]:
    """The names of all fetched models, sorted; none where the folder is absent or cannot be read."""
    try:
        found = sorted(path.name for path in models_folder().iterdir())
    except (ModelError, OSError):
        return ()
    return tuple(name for name in found if installed_folder(name) is not None)


def _data_folder() -> Path:
    variable = "LOCALAPPDATA" if sys.platform == "win32" else "XDG_DATA_HOME"
    named = os.environ.get(variable)
    # As the XDG base directories want it: a relative path is ignored.
    if named and Path(named).is_absolute():
        return Path(named)
    try:
        home = Path.home()
    except RuntimeError as error:
        raise ModelError(
            "there is no home folder to keep models in", hint=f"name one: export {HOME_VARIABLE}=/a/folder"
        ) from error
    return home / ("Library/Application Support" if sys.platform == "darwin" else ".local/share")
