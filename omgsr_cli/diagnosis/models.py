"""Check the files of this machine's models, and describe the models and the memory that they need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omgsr_cli.errors import ModelError, UnknownModelError
from omgsr_cli.models.families import is_model_file
from omgsr_cli.models.weight_files import check_file_finite, read_header
from omgsr_cli.options import ModelOptions
from omgsr_cli.presets import NETWORKS, PRESETS
from omgsr_cli.store.installed import installed_folder, installed_names, load_provenance
from omgsr_cli.store.manifest import MANIFEST_NAME, find_damage, load_manifest

_PRECISION_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
# A network has no native size, so its memory is shown for an image with this side.
_NETWORK_TILE_PX = 256


@dataclass(frozen=True)
class ModelHealth:
    """The state of a model on this machine.

    Attributes:
        name: name of the preset or downloaded model, or the given folder.
        folder: the model's folder; None if the model is not installed.
        damage: problems of its files, one line each.
        hint: the command that repairs or installs it.
    """

    name: str
    folder: Path | None
    damage: tuple[str, ...] = ()
    hint: str | None = None

    @property
    def is_installed(self) -> bool:
        """Whether the model can be used without a download."""
        return self.folder is not None


def check_models(*, contents: bool = False) -> tuple[ModelHealth, ...]:
    """Check every model that has a name.

    Args:
        contents: read every file, compare its hash and check that its weights are finite; otherwise compare only sizes
            and headers, which is fast.
    """
    names = dict.fromkeys((*PRESETS, *NETWORKS, *installed_names()))
    return tuple(check_model(name, contents=contents) for name in names)


def check_model(name: str, *, contents: bool = False) -> ModelHealth:
    """Check one model: a preset, a downloaded model or a folder.

    Args: as for `check_models`.

    Raises:
        ModelError: the model does not exist.
    """
    preset, is_known = PRESETS.get(name), name in PRESETS or name in NETWORKS
    if preset is not None and preset.folder is not None:
        folder: Path | None = preset.folder
        hint = "reinstall omgsr-cli"
    else:
        folder = installed_folder(name) or (None if is_known else _given_folder(name))
        hint = f"omgsr models pull {name}" if is_known else f"copy or merge {name} again"
    if folder is None:
        return ModelHealth(name, None, hint=hint)
    return ModelHealth(name, folder, tuple(_find_damage(folder, contents)), hint)


def about_known(name: str) -> dict[str, Any]:
    """Describe a preset or network that is not installed, with the same keys as `about_model`."""
    if name in NETWORKS:
        network = NETWORKS[name]
        unknown = dict.fromkeys(("folder", "mid_timestep", "native_tile_px", "vae_rank", "backbone_rank"))
        about = {"name": name, "summary": network.summary, "licence": network.licence, "sources": [network.url]}
        return about | unknown | {"scale": 4.0}
    preset = PRESETS[name]
    drive = () if preset.adapter_drive is None else (f"Google Drive folder {preset.adapter_drive}",)
    return {
        "name": preset.name,
        "folder": None,
        "summary": preset.summary,
        "licence": preset.licence,
        "mid_timestep": preset.mid_timestep,
        "native_tile_px": preset.native_tile_px,
        "scale": preset.scale,
        "vae_rank": preset.vae_rank,
        "backbone_rank": preset.backbone_rank,
        "sources": [*preset.base_sources, *drive],
    }


def about_model(name: str, folder: Path) -> dict[str, Any]:
    """Describe an installed model, and the memory that it needs on this machine.

    Args:
        name: name of the preset or downloaded model, or the given folder.
        folder: folder of the model.
    Returns:
        Names and numbers for text output and JSON; sizes are in MiB.
    Raises:
        ModelError: the folder is not a model, or one of its files is corrupt.
    """
    from omgsr_cli.models.devices import choose_device
    from omgsr_cli.models.loading import describe_model, suitable_precision
    from omgsr_cli.models.sources import find_model

    source = find_model(ModelOptions(model=str(folder)))
    info = describe_model(source)
    device = choose_device()
    precision = suitable_precision(source, "auto", device)
    preset, origins = PRESETS.get(name), load_provenance(folder) if folder.is_dir() else None
    has_step = info.input == "upscaled"
    side_px = info.native_tile_px if has_step else _NETWORK_TILE_PX
    licences = (source.record.licence, preset.licence if preset else None)
    summary = preset.summary if preset else NETWORKS[name].summary if name in NETWORKS else None
    return {
        "name": name,
        "folder": str(folder),
        "summary": summary,
        "licence": next(filter(None, licences), None),
        "mid_timestep": info.mid_timestep if has_step else None,
        "native_tile_px": info.native_tile_px if has_step else None,
        "scale": info.scale,
        "vae_rank": preset.vae_rank if preset else None,
        "backbone_rank": preset.backbone_rank if preset else None,
        "made_from": list(source.record.made_from),
        "sources": [] if origins is None else [origin.model_dump(exclude={"files"}) for origin in origins.origins],
        "parameters": info.parameters,
        "parts": _describe_parts(folder),
        "disk_mib": sum(path.stat().st_size for path in (folder, *folder.rglob("*")) if path.is_file()) >> 20,
        "has_manifest": (folder / MANIFEST_NAME).is_file(),
        "device": str(device),
        "precision": precision,
        "weights_mib": info.parameters * _PRECISION_BYTES[precision] >> 20,
        "tile_px": side_px,
        "tile_mib": _tile_bytes(info, side_px) >> 20,
    }


def _given_folder(name: str) -> Path:
    if not Path(name).is_dir() and not is_model_file(Path(name)):
        raise UnknownModelError(f"no model is called {name!r}", hint="see: omgsr models list")
    return Path(name)


def _find_damage(folder: Path, contents: bool) -> Iterator[str]:
    """Compare a folder with its manifest, if it has one, and always check the headers of weights."""
    if (folder / MANIFEST_NAME).is_file():
        try:
            yield from find_damage(folder, load_manifest(folder), contents=contents)
        except ModelError as error:
            yield error.message
    files = _weight_files(folder)
    if not files:
        if folder.is_file() or (folder / MANIFEST_NAME).is_file():
            return
        yield f"{folder} has no weights"
    for path in files:
        try:
            if contents:
                check_file_finite(path)
            else:
                read_header(path)
        except ModelError as error:
            yield error.message


def _describe_parts(folder: Path) -> list[dict[str, Any]]:
    """Return parameters and number format of each folder of weights."""
    parts: dict[str, Counter[str]] = {}
    for path in _weight_files(folder):
        part = "." if path == folder else path.parent.relative_to(folder).as_posix()
        counts = parts.setdefault(part, Counter())
        for entry in read_header(path).values():
            counts[entry.dtype] += entry.elements
    if not parts and folder.is_dir() and not (folder / MANIFEST_NAME).is_file():
        raise ModelError(f"{folder} has no weights")
    return [
        {
            "part": "model" if part == "." else part,
            "parameters": counts.total(),
            "dtypes": [dtype for dtype, _ in counts.most_common()],
        }
        for part, counts in parts.items()
    ]


def _weight_files(model: Path) -> list[Path]:
    """Return the safetensors files of a folder, or a network's file; empty for a pickle, which is never opened."""
    files = sorted(model.rglob("*.safetensors")) if model.is_dir() else [model]
    return [path for path in files if path.suffix == ".safetensors"]


def _tile_bytes(info: Any, side_px: int) -> int:
    """Return the working memory for an image with sides of `side_px`."""
    from omgsr_cli.geometry import Size
    from omgsr_cli.options import RestoreOptions
    from omgsr_cli.planning import plan_restoration

    size = Size(side_px, side_px)
    return plan_restoration(info, size, size, RestoreOptions(process_scale=1), 1 << 50).memory_bytes
