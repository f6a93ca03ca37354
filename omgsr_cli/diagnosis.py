"""Diagnose this machine: versions, devices, the files of models, extras, and the choices of `auto`.

`probe` needs torch and runs in a separate process, so that a torch that fails to import or crashes is a finding.
"""

from __future__ import annotations

import importlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omgsr_cli.errors import ModelError, OmgsrError, UnknownModelError
from omgsr_cli.geometry import Size
from omgsr_cli.models.families import is_model_file
from omgsr_cli.models.weight_files import check_file_finite, read_header
from omgsr_cli.options import ModelOptions, RestoreOptions
from omgsr_cli.packages import (
    find_installation,
    install_command,
    missing_by_extra,
    torch_build,
    torchvision_error,
    torchvision_mismatch,
    version_of,
    version_text,
)
from omgsr_cli.presets import NETWORKS, PRESETS
from omgsr_cli.store.installed import installed_folder, installed_names, load_provenance, models_folder
from omgsr_cli.store.manifest import MANIFEST_NAME, find_damage, load_manifest

if TYPE_CHECKING:
    import torch
    from packaging.requirements import Requirement

    from omgsr_cli.models.base import RestorerInfo
    from omgsr_cli.models.devices import Layers

LIBRARIES = ("torch", "diffusers", "transformers", "huggingface-hub", "safetensors", "numpy", "pillow")
"""Distributions whose versions affect results."""

EXAMPLE_PX = Size(3000, 4000)
"""Height and width of the image used for plans: 12 megapixels."""

# A network has no native size, so its memory is shown for an image with this side.
_NETWORK_TILE_PX = 256
_PROBE = "import json, sys; from omgsr_cli.diagnosis import probe; print(json.dumps(probe(sys.argv[1:])))"
_PROBE_LIMIT_S = 300


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
    def record(self) -> dict[str, object]:
        """Name, folder and damage for JSON."""
        return {"name": self.name, "folder": self.folder and str(self.folder), "damage": list(self.damage)}


@dataclass(frozen=True)
class Diagnosis:
    """The findings of `omgsr doctor`.

    Attributes:
        versions: versions of omgsr, Python, the system, `LIBRARIES` and torchvision; None for a missing library.
        manager: the tool that installed omgsr: "pip", "uv", "uv tool" or "pipx".
        devices: devices that torch supports, as `probe` returns them; empty if torch does not work.
        models: the known models and the state of their files.
        store: the folder of downloaded models, whether it is writable, and its free space.
        extras: maps an extra to its missing or outdated packages; None if the installed metadata lists no extras.
        install: the command that installs an extra here, for each extra with missing packages.
        plans: the choices of `auto` for an image of 12 megapixels, as `probe` returns them.
        problems: each problem with the command that fixes it, or None.
    """

    versions: dict[str, str | None]
    manager: str
    devices: tuple[dict[str, Any], ...]
    models: tuple[ModelHealth, ...]
    store: dict[str, Any]
    extras: dict[str, list[str]] | None
    install: dict[str, str]
    plans: tuple[dict[str, Any], ...]
    problems: tuple[tuple[str, str | None], ...]


def diagnose() -> Diagnosis:
    """Examine this machine without changing it and without the network."""
    models = check_models()
    findings, reason = _run_probe([health.name for health in models if health.folder and not health.damage])
    problems: list[tuple[str, str | None]] = []
    if reason is not None:
        fix = find_installation().reinstall("torch", torch_build())
        problems.append((f"torch does not work: {reason}", fix))
    if findings["torchvision"] is not None or torchvision_mismatch() is not None:
        error = torchvision_error()
        problems.append((findings["torchvision"] or error.message, error.hint))
    problems += [(f"{health.name}: {line}", health.hint) for health in models for line in health.damage]
    # torchvision also fails inside the libraries that models need, and is already reported above.
    known = [message for message, _ in problems]
    failed = [plan for plan in findings["plans"] if "error" in plan and plan["error"] not in known]
    problems += [(f"{plan['model']}: {plan['error']}", plan["hint"]) for plan in failed]
    extras = missing_by_extra()
    return Diagnosis(
        versions=_versions(),
        manager=find_installation().manager,
        devices=tuple(findings["devices"]),
        models=models,
        store=_describe_store(),
        extras=None if extras is None else {name: list(map(_missing, needs)) for name, needs in extras.items()},
        install={name: install_command(name) for name, needs in (extras or {}).items() if needs},
        plans=tuple(plan for plan in findings["plans"] if "error" not in plan),
        problems=tuple(problems),
    )


def probe(models: list[str]) -> dict[str, Any]:
    """Examine torch and the libraries that import it. Call this in a separate process.

    Args:
        models: names of installed models.
    Returns:
        "devices", a list; "torchvision", None or an error text; "plans", one for each model.
    """
    from omgsr_cli.models.devices import all_devices

    return {
        "devices": [_describe_device(name) for name in all_devices()],
        "torchvision": _import_torchvision(),
        "plans": [_plan(name) for name in models],
    }


def _versions() -> dict[str, str | None]:
    own = {"omgsr": version_text(), "python": platform.python_version(), "system": platform.platform(terse=True)}
    return own | {name: version_of(name) for name in (*LIBRARIES, "torchvision")}


def _missing(need: Requirement) -> str:
    """Return the name of a missing package, or the required version of an outdated one."""
    return need.name if version_of(need.name) is None else str(need)


def _describe_store() -> dict[str, Any]:
    """Describe the folder of models: "folder", "writable", "free_mib"; the last two of its nearest existing parent."""
    try:
        folder = models_folder()
    except ModelError as error:
        return {"folder": None, "writable": False, "free_mib": 0, "reason": error.message}
    existing = next(place for place in (folder, *folder.parents) if place.is_dir())
    free = shutil.disk_usage(existing).free
    return {"folder": str(folder), "writable": os.access(existing, os.W_OK | os.X_OK), "free_mib": free >> 20}


def _run_probe(models: list[str]) -> tuple[dict[str, Any], str | None]:
    """Return the result of `probe`, or an empty result with the reason of the failure."""
    empty: dict[str, Any] = {"devices": [], "torchvision": None, "plans": []}
    # Make the process import the same package, regardless of the current folder.
    root = str(Path(__file__).parents[1])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    try:
        finished = subprocess.run(
            [sys.executable, "-c", _PROBE, *models],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PROBE_LIMIT_S,
            env=os.environ | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
        )
    except subprocess.TimeoutExpired:
        return empty, f"no answer within {_PROBE_LIMIT_S} s"
    if finished.returncode == 0:
        findings: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
        return findings, None
    if finished.returncode < 0:
        return empty, f"importing it ended with {signal.Signals(-finished.returncode).name}"
    lines = [line for line in finished.stderr.splitlines() if line.strip()]
    return empty, lines[-1] if lines else f"exit code {finished.returncode}"


def _describe_device(name: str) -> dict[str, Any]:
    import torch

    from omgsr_cli.models.devices import PRECISIONS, bf16_gain_on_cpu, free_memory_bytes, multiplies_in_bf16

    device = torch.device(name)
    titles = {"cuda": torch.cuda.get_device_name, "xpu": torch.xpu.get_device_name}
    return {
        "name": name,
        "title": titles[device.type](device) if device.type in titles else None,
        "free_mib": free_memory_bytes(device) >> 20,
        "precisions": [precision for precision in PRECISIONS if device.type != "cpu" or precision != "fp16"],
        "multiplies_in_bf16": multiplies_in_bf16(device),
        "bf16_gain": bf16_gain_on_cpu() if device.type == "cpu" and multiplies_in_bf16(device) else None,
    }


def _import_torchvision() -> str | None:
    """Return why other libraries fail to import torchvision; None if they can, or if it is not installed."""
    from omgsr_cli.models.libraries import explain_broken_torchvision

    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        return None if error.name == "torchvision" else str(error)
    except (ImportError, RuntimeError, OSError) as error:
        explained = explain_broken_torchvision(error)
        return str(error) if explained is None else explained.message
    return None


def _plan(model: str) -> dict[str, Any]:
    """Return the choices of `auto` for a model and an image of 12 megapixels, with reasons."""
    from omgsr_cli.models.devices import choose_device
    from omgsr_cli.models.families import family_of
    from omgsr_cli.models.loading import describe_model, suitable_precision
    from omgsr_cli.models.sources import find_model
    from omgsr_cli.planning import Execution, plan_restoration, usable_memory

    try:
        source = find_model(ModelOptions(model=model))
        info = describe_model(source)
    except OmgsrError as error:
        return {"model": model, "error": error.message, "hint": error.hint}
    device = choose_device()
    precision, layers = suitable_precision(source, "auto", device), family_of(source.record, source.name).layers
    memory = usable_memory(device)
    output = Size(round(EXAMPLE_PX.height * info.scale), round(EXAMPLE_PX.width * info.scale))
    execution = Execution(device.type, precision)
    plan, unlimited = (
        plan_restoration(info, EXAMPLE_PX, output, RestoreOptions(), free, execution) for free in (memory, 1 << 50)
    )
    tiles = _tiles_reason(plan.codec.side_px, unlimited.codec.side_px, output, memory)
    return {
        "model": model,
        "parameters": info.parameters,
        "device": str(device),
        "precision": precision,
        "input_size": [EXAMPLE_PX.width, EXAMPLE_PX.height],
        "output_size": [output.width, output.height],
        "tile_px": plan.codec.side_px,
        "step_tile_px": plan.step.side_px,
        "tiles": plan.tiles,
        "memory_mib": plan.memory_bytes >> 20,
        "allowed_mib": memory >> 20,
        "why": [_device_reason(device), f"{precision}: {_precision_reason(precision, device, layers)}", tiles],
    }


def _device_reason(device: torch.device) -> str:
    from omgsr_cli.models.devices import present_devices, why_unusable

    reasons = filter(None, map(why_unusable, present_devices()))
    if device.type == "cpu":
        return "cpu: " + ("; ".join(reasons) or "no CUDA, MPS or XPU device found")
    return f"{device.type}: preferred to the CPU"


def _precision_reason(precision: str, device: torch.device, layers: Layers | None) -> str:
    """Return why `auto` chose a precision for a model with these layers, consistent with their measured speed."""
    from omgsr_cli.models.devices import bf16_gain_on_cpu, multiplies_in_bf16

    is_cpu = device.type == "cpu"
    kind = "CPU" if is_cpu else "device"
    if not multiplies_in_bf16(device):
        return f"this {kind} has no bf16 arithmetic"
    if not is_cpu:
        return f"this {kind} has bf16 arithmetic"
    if layers is None:
        return "this model always uses it on a CPU"
    speed = f"at {bf16_gain_on_cpu(layers):.2f} times the speed of fp32 on this CPU"
    return f"bf16 runs {speed}" + ("" if precision == "bf16" else "; it is used only if it is clearly faster")


def _tiles_reason(tile_px: int, unlimited_px: int, output: Size, memory: int) -> str:
    if tile_px >= max(output):
        return "no tiles: the whole image fits in memory"
    if tile_px == unlimited_px:
        return f"tiles of {tile_px} px: the fastest size; memory does not limit it"
    return f"tiles of {tile_px} px: the fastest size that fits in {memory / 2**30:.1f} GiB"


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


def about_model(health: ModelHealth) -> dict[str, Any]:
    """Describe a model for text output and JSON, in names and numbers; sizes are in MiB.

    Returns:
        If the model is installed, also its parts, and the memory that it needs on this machine.
    Raises:
        ModelError: the folder is not a model, or one of its files is corrupt.
    """
    preset, network = PRESETS.get(health.name), NETWORKS.get(health.name)
    known = preset or network
    drive = preset.adapter_drive if preset else None
    about: dict[str, Any] = {
        "name": health.name,
        "folder": None if health.folder is None else str(health.folder),
        "summary": known.summary if known else None,
        "licence": known.licence if known else None,
        "mid_timestep": preset.mid_timestep if preset else None,
        "native_tile_px": preset.native_tile_px if preset else None,
        "scale": preset.scale if preset else 4.0,
        "vae_rank": preset.vae_rank if preset else None,
        "backbone_rank": preset.backbone_rank if preset else None,
    }
    if health.folder is not None:
        return about | _about_installed(health.folder, about["licence"])
    sources = [network.url] if network else [*preset.base_sources] if preset else []
    return about | {"sources": [*sources, *([f"Google Drive folder {drive}"] if drive else ())]}


def _about_installed(folder: Path, licence: str | None) -> dict[str, Any]:
    from omgsr_cli.models.devices import PRECISIONS, choose_device
    from omgsr_cli.models.loading import describe_model, suitable_precision
    from omgsr_cli.models.sources import find_model

    source = find_model(ModelOptions(model=str(folder)))
    info, device = describe_model(source), choose_device()
    precision = suitable_precision(source, "auto", device)
    origins = load_provenance(folder) if folder.is_dir() else None
    has_step = info.input == "upscaled"
    side_px = info.native_tile_px if has_step else _NETWORK_TILE_PX
    return {
        "licence": source.record.licence or licence,
        "mid_timestep": info.mid_timestep if has_step else None,
        "native_tile_px": info.native_tile_px if has_step else None,
        "scale": info.scale,
        "made_from": list(source.record.made_from),
        "sources": [] if origins is None else [origin.model_dump(exclude={"files"}) for origin in origins.origins],
        "parameters": info.parameters,
        "parts": _describe_parts(folder),
        "disk_mib": sum(path.stat().st_size for path in (folder, *folder.rglob("*")) if path.is_file()) >> 20,
        "has_manifest": (folder / MANIFEST_NAME).is_file(),
        "device": str(device),
        "precision": precision,
        "weights_mib": info.weight_bytes(PRECISIONS[precision].itemsize) >> 20,
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


def _tile_bytes(info: RestorerInfo, side_px: int) -> int:
    """Return the working memory for an image with sides of `side_px`."""
    from omgsr_cli.planning import plan_restoration

    size = Size(side_px, side_px)
    return plan_restoration(info, size, size, RestoreOptions(process_scale=1), 1 << 50).memory_bytes
