"""Which models are on this machine, and whether their files are as they should be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from omgsr_cli.errors import ModelError
from omgsr_cli.presets import PRESETS, Preset
from omgsr_cli.store.headers import read_header
from omgsr_cli.store.locations import installed_folder


@dataclass(frozen=True)
class ModelHealth:
    """A known model as it is on this machine.

    Attributes:
        name: of the preset.
        folder: where it lies; None where it is not here.
        damage: what is wrong with its files, a line each; empty also where it is not here.
        hint: what to type next where it is damaged or absent.
    """

    name: str
    folder: Path | None
    damage: tuple[str, ...] = ()
    hint: str | None = None

    @property
    def is_here(self) -> bool:
        """Whether it can be used without fetching anything."""
        return self.folder is not None


def check_models() -> tuple[ModelHealth, ...]:
    """Look at every model that has a name; sizes only, so that it takes no time."""
    return tuple(_check(preset) for preset in PRESETS.values())


def _check(preset: Preset) -> ModelHealth:
    if preset.folder is not None:
        return ModelHealth(preset.name, preset.folder, _damage(preset.folder), "install omgsr-cli again")
    folder = installed_folder(preset.name)
    if folder is None:
        return ModelHealth(preset.name, None, hint=f"omgsr models pull {preset.name}")
    return ModelHealth(preset.name, folder, _damage(folder), f"omgsr models pull {preset.name}")


def _damage(folder: Path) -> tuple[str, ...]:
    files = sorted(folder.rglob("*.safetensors"))
    if not files:
        return (f"{folder} has no weights",)
    return tuple(reason for reason in map(_damage_of, files) if reason is not None)


def _damage_of(path: Path) -> str | None:
    try:
        read_header(path)
    except ModelError as error:
        return error.message
    return None
