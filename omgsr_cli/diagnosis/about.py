"""What can be told of one model without running it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from omgsr_cli.errors import ModelError
from omgsr_cli.presets import PRESETS, Preset
from omgsr_cli.store.headers import read_header
from omgsr_cli.store.installed import load_provenance
from omgsr_cli.store.manifest import MANIFEST_NAME

_PRECISION_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


def about_preset(preset: Preset) -> dict[str, Any]:
    """What is known of a model that is not here."""
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
    """What a model's folder tells, and what running it takes on this machine.

    Args:
        name: of the preset or fetched model, or the folder as it was given.
        folder: where it lies.
    Returns:
        Names and numbers for people and for JSON; sizes in bytes or MiB, as their names say.
    Raises:
        ModelError: the folder is no model, or a part of it lies about itself.
    """
    from omgsr_cli.models.devices import choose_device
    from omgsr_cli.models.loading import describe_model, suitable_precision
    from omgsr_cli.models.sources import find_model

    source = find_model(folder)
    info = describe_model(source)
    device = choose_device()
    precision = suitable_precision(source, "auto", device)
    preset, origins = PRESETS.get(name), load_provenance(folder)
    licences = (source.record.licence, preset.licence if preset else None)
    return {
        "name": name,
        "folder": str(folder),
        "summary": preset.summary if preset else None,
        "licence": next(filter(None, licences), None),
        "mid_timestep": info.mid_timestep,
        "native_tile_px": info.native_tile_px,
        "scale": info.scale,
        "vae_rank": preset.vae_rank if preset else None,
        "backbone_rank": preset.backbone_rank if preset else None,
        "made_from": list(source.record.made_from),
        "sources": [] if origins is None else [origin.model_dump(exclude={"files"}) for origin in origins.origins],
        "parameters": info.parameters,
        "parts": _describe_parts(folder),
        "disk_mib": sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) >> 20,
        "has_manifest": (folder / MANIFEST_NAME).is_file(),
        "device": str(device),
        "precision": precision,
        "weights_mib": info.parameters * _PRECISION_BYTES[precision] >> 20,
        "tile_mib": _tile_bytes(info) >> 20,
    }


def _describe_parts(folder: Path) -> list[dict[str, Any]]:
    """Parameters and number format of each folder of weights."""
    parts: dict[str, Counter[str]] = {}
    for path in sorted(folder.rglob("*.safetensors")):
        counts = parts.setdefault(path.parent.relative_to(folder).as_posix(), Counter())
        for entry in read_header(path).values():
            counts[entry.dtype] += entry.elements
    if not parts:
        raise ModelError(f"{folder} has no weights")
    return [
        {
            "part": "model" if part == "." else part,
            "parameters": counts.total(),
            "dtypes": [dtype for dtype, _ in counts.most_common()],
        }
        for part, counts in parts.items()
    ]


def _tile_bytes(info: Any) -> int:
    """Working memory for a picture of the model's native size."""
    from omgsr_cli.geometry import Size
    from omgsr_cli.options import RestoreOptions
    from omgsr_cli.planning import plan_restoration

    size = Size(info.native_tile_px, info.native_tile_px)
    return plan_restoration(info, size, size, RestoreOptions(process_scale=1), 1 << 50).memory_bytes
