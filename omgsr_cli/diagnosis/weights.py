"""Which models are on this machine, and whether their files are as they should be."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from omgsr_cli.errors import ModelError, UnknownModelError
from omgsr_cli.models.weight_files import check_file_finite
from omgsr_cli.presets import PRESETS
from omgsr_cli.store.headers import read_header
from omgsr_cli.store.installed import installed_folder, installed_names
from omgsr_cli.store.manifest import MANIFEST_NAME, find_damage, load_manifest


@dataclass(frozen=True)
class ModelHealth:
    """A model as it is on this machine.

    Attributes:
        name: of the preset or of the fetched model, or the folder as it was given.
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


def check_models(*, contents: bool = False) -> tuple[ModelHealth, ...]:
    """Look at every model that has a name.

    Args:
        contents: read every file, compare its hash and check that its weights are finite; otherwise compare sizes and
            headers, which takes no time.
    """
    names = dict.fromkeys((*PRESETS, *installed_names()))
    return tuple(check_model(name, contents=contents) for name in names)


def check_model(name: str, *, contents: bool = False) -> ModelHealth:
    """Look at one model: a preset, a fetched model or a folder.

    Args: as for `check_models`.

    Raises:
        ModelError: there is no such model.
    """
    preset = PRESETS.get(name)
    if preset is not None and preset.folder is not None:
        folder: Path | None = preset.folder
        hint = "install omgsr-cli again"
    else:
        folder = installed_folder(name) or (None if preset is not None else _given_folder(name))
        hint = f"omgsr models pull {name}" if preset is not None else f"copy or merge {name} again"
    if folder is None:
        return ModelHealth(name, None, hint=hint)
    return ModelHealth(name, folder, tuple(_find_damage(folder, contents)), hint)


def _given_folder(name: str) -> Path:
    if not Path(name).is_dir():
        raise UnknownModelError(f"there is no model {name!r}", hint="see: omgsr models list")
    return Path(name)


def _find_damage(folder: Path, contents: bool) -> Iterator[str]:
    """By its manifest where it has one; weights' headers in any case."""
    if (folder / MANIFEST_NAME).is_file():
        try:
            yield from find_damage(folder, load_manifest(folder), contents=contents)
        except ModelError as error:
            yield error.message
    files = sorted(folder.rglob("*.safetensors"))
    if not files:
        yield f"{folder} has no weights"
    for path in files:
        try:
            if contents:
                check_file_finite(path)
            else:
                read_header(path)
        except ModelError as error:
            yield error.message
