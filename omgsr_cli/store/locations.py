"""Where fetched models are kept."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from omgsr_cli.errors import ModelError

HOME_VARIABLE = "OMGSR_HOME"


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
    try:
        folder = models_folder() / name
    except ModelError:
        return None
    # A folder is renamed to its name when it is complete; what has no record is not one of ours.
    return folder if (folder / "omgsr.json").is_file() else None


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
