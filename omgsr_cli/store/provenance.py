"""`sources.json`: what a fetched model was made of, and under which licences."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from omgsr_cli.errors import ModelError
from omgsr_cli.files.manifest import FileEntry

PROVENANCE_NAME = "sources.json"


class Origin(BaseModel):
    """One place that files came from.

    Attributes:
        what: "base" or "adapter".
        place: hub repository, Google Drive folder, or the name of a local folder or archive.
        revision: commit of the repository; None where there is none.
        licence: as its card names it; None where it is not known.
        files: path to size and hash, of all that was used.
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
        omgsr: version of the program that made the folder.
        origins: the base first.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    omgsr: str
    origins: tuple[Origin, ...]


def write_provenance(provenance: Provenance, folder: Path) -> None:
    """Write the record into a model's folder."""
    (folder / PROVENANCE_NAME).write_text(provenance.model_dump_json(indent=2) + "\n", encoding="utf-8")


def load_provenance(folder: Path) -> Provenance | None:
    """Read the record of a model's folder; None where it has none.

    Raises:
        ModelError: the file is no such record, or cannot be read.
    """
    path = folder / PROVENANCE_NAME
    try:
        return Provenance.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValidationError) as error:
        raise ModelError(f"{path} cannot be read as a record of sources") from error
