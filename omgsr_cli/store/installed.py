"""Downloaded models on this machine: their folders, their sources, and the licences that were shown."""

from __future__ import annotations

import datetime
import json
import os
import sys
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from omgsr_cli.errors import ModelError
from omgsr_cli.files.atomic import write_atomically
from omgsr_cli.store.manifest import FileEntry

HOME_VARIABLE = "OMGSR_HOME"
RECORD_NAME, PROVENANCE_NAME = "omgsr.json", "sources.json"
_LICENCES_NAME = ".licences.json"


def models_folder() -> Path:
    """Return the folder that contains one folder for each downloaded model; it may not exist yet.

    It is `$OMGSR_HOME/models`, or without this variable a subfolder of the system's folder for application data:
    `$XDG_DATA_HOME` or `~/.local/share`, `~/Library/Application Support`, `%LOCALAPPDATA%`.

    Raises:
        ModelError: no such folder is known.
    """
    own = os.environ.get(HOME_VARIABLE)
    if own:
        return Path(own).expanduser() / "models"
    return _data_folder() / "omgsr" / "models"


def installed_folder(name: str) -> Path | None:
    """Return the folder of a downloaded model, or None if it is not installed."""
    # A name must be one path component, so that it never points outside the models' folder.
    if name in ("", ".", "..") or name.startswith(".") or set(name) & {"/", "\\", ":", "\0"}:
        return None
    try:
        folder = models_folder() / name
        # A folder gets its name when it is complete; omgsr did not create a folder without a record.
        return folder if (folder / RECORD_NAME).is_file() else None
    except (ModelError, OSError):
        return None


def installed_names() -> tuple[str, ...]:
    """Return the names of all downloaded models, sorted; empty if the folder does not exist or cannot be read."""
    try:
        found = sorted(path.name for path in models_folder().iterdir())
    except (ModelError, OSError):
        return ()
    return tuple(name for name in found if installed_folder(name) is not None)


class Origin(BaseModel):
    """One source of a model's files.

    Attributes:
        what: "base", "adapter" or "weights".
        place: hub repository, Google Drive folder, or the name of a local folder or archive.
        revision: commit of the repository.
        licence: the licence on its card.
        files: maps the path of every used file to its size and hash.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    what: str
    place: str
    revision: str | None = None
    licence: str | None = None
    files: dict[str, FileEntry] = {}


class Provenance(BaseModel):
    """The contents of `sources.json`.

    Attributes:
        omgsr: version of the program that wrote the folder.
        origins: the sources, the base model first.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    omgsr: str
    origins: tuple[Origin, ...]


def write_provenance(provenance: Provenance, folder: Path) -> None:
    """Write `sources.json` into a model's folder."""
    (folder / PROVENANCE_NAME).write_text(provenance.model_dump_json(indent=2) + "\n", encoding="utf-8")


def load_provenance(folder: Path) -> Provenance | None:
    """Read `sources.json` of a model's folder; return None if the folder has none.

    Raises:
        ModelError: the file is not a valid record, or cannot be read.
    """
    path = folder / PROVENANCE_NAME
    try:
        return Provenance.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise ModelError(f"{path} is not a readable record of sources") from error


def first_sight_of(store: Path, place: str, licence: str) -> bool:
    """Whether this licence of this place is shown for the first time; if so, record it with today's date.

    Raises:
        FileError: the record cannot be written.
    """
    path = store / _LICENCES_NAME
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        found = {}
    shown = found if isinstance(found, dict) else {}
    if isinstance(shown.get(place), dict) and shown[place].get("licence") == licence:
        return False
    shown[place] = {"licence": licence, "shown": datetime.date.today().isoformat()}
    write_atomically(path, [json.dumps(shown, indent=2).encode() + b"\n"], overwrite=True)
    return True


def _data_folder() -> Path:
    variable = "LOCALAPPDATA" if sys.platform == "win32" else "XDG_DATA_HOME"
    named = os.environ.get(variable)
    # The XDG specification requires relative paths to be ignored.
    if named and Path(named).is_absolute():
        return Path(named)
    try:
        home = Path.home()
    except RuntimeError as error:
        raise ModelError(
            "this user has no home folder for models", hint=f"choose a folder: export {HOME_VARIABLE}=/a/folder"
        ) from error
    return home / ("Library/Application Support" if sys.platform == "darwin" else ".local/share")
