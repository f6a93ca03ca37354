"""The registry of model families: the only module that maps names of families to code."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from omgsr_cli.errors import ModelError
from omgsr_cli.models.family import Family
from omgsr_cli.models.flux_family import FluxFamily
from omgsr_cli.models.network_family import NetworkFamily
from omgsr_cli.models.record import RECORD_NAME, ModelRecord
from omgsr_cli.models.sd_family import SdFamily
from omgsr_cli.models.tiny_family import TinyFamily
from omgsr_cli.presets import Preset
from omgsr_cli.store.hub import ModelFiles

if TYPE_CHECKING:
    from omgsr_cli.models.base import RestorerInfo

FAMILIES: dict[str, Family] = {
    family.name: family for family in (TinyFamily(), SdFamily(), NetworkFamily(), FluxFamily())
}

#: The family of a repository is unknown until its small files are fetched, so the files of all families are requested.
REPOSITORY_FILES = ModelFiles(
    small=(RECORD_NAME, *dict.fromkeys(pattern for family in FAMILIES.values() for pattern in family.small_files)),
    weight_stems={part: stem for family in FAMILIES.values() for part, stem in family.weight_stems.items()},
)


def family_of(model: ModelRecord | Preset | RestorerInfo, where: str) -> Family:
    """The family in a record, a preset or a model's description.

    Args:
        model: record, preset or description with the name of the family.
        where: name of the model in messages.
    Raises:
        ModelError: the family does not exist.
    """
    if model.family not in FAMILIES:
        raise ModelError(f"{where}: unknown model family {model.family!r}", hint=f"families: {', '.join(FAMILIES)}")
    return FAMILIES[model.family]


def recognise_model(folder: Path) -> Family | None:
    """The family of a model folder that has no record, or None."""
    return next((family for family in FAMILIES.values() if family.recognises(folder)), None)


def is_model_file(path: Path) -> bool:
    """Whether a path is a single file that is a whole model."""
    return path.is_file() and recognise_model(path) is not None


def recognise_adapter(folder: Path) -> Family | None:
    """The family of a folder with a complete adapter, or None."""
    return next((family for family in _adapted() if _parts_in(family, folder) == len(family.adapter_parts)), None)


def nearest_adapter(folder: Path) -> Family:
    """The family with the most adapter parts in a folder, whose error messages will be the most helpful."""
    return max(_adapted(), key=lambda family: _parts_in(family, folder))


def _adapted() -> list[Family]:
    return [family for family in FAMILIES.values() if family.adapter_parts]


def _parts_in(family: Family, folder: Path) -> int:
    return sum((folder / part).is_dir() for part in family.adapter_parts)
