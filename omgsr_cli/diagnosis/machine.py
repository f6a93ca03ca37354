"""Diagnose this machine: versions, devices, models, extras, and the choices of `auto`.

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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omgsr_cli.diagnosis.models import ModelHealth, check_models
from omgsr_cli.errors import ModelError, OmgsrError
from omgsr_cli.geometry import Size
from omgsr_cli.options import ModelOptions
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
from omgsr_cli.store.installed import models_folder

if TYPE_CHECKING:
    import torch
    from packaging.requirements import Requirement

    from omgsr_cli.models.devices import Layers

LIBRARIES = ("torch", "diffusers", "transformers", "huggingface-hub", "safetensors", "numpy", "pillow")
"""Distributions whose versions affect results."""

EXAMPLE_PX = Size(3000, 4000)
"""Height and width of the image used for plans: 12 megapixels."""

_PROBE = "import json, sys; from omgsr_cli.diagnosis.machine import probe; print(json.dumps(probe(sys.argv[1:])))"
_PROBE_LIMIT_S = 300


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
    findings, reason = _run_probe([health.name for health in models if health.is_installed and not health.damage])
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
    return {
        "devices": [_describe_device(name) for name in _device_names()],
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
    root = str(Path(__file__).parents[2])
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


def _device_names() -> list[str]:
    """Return the names of all devices, the preferred kind first."""
    import torch

    from omgsr_cli.models.devices import present_devices

    counts = {"cuda": torch.cuda.device_count, "xpu": torch.xpu.device_count}
    names: list[str] = []
    for kind in present_devices():
        names += [f"{kind}:{index}" for index in range(counts[kind]())] if kind in counts else [kind]
    return names


def _describe_device(name: str) -> dict[str, Any]:
    import torch

    from omgsr_cli.models.devices import PRECISIONS, bf16_gain_on_cpu, free_memory_bytes, multiplies_in_bf16

    device = torch.device(name)
    titles = {"cuda": torch.cuda.get_device_name, "xpu": torch.xpu.get_device_name}
    return {
        "name": name,
        "title": titles[device.type](device) if device.type in titles else None,
        "free_mib": free_memory_bytes(device) >> 20,
        "precisions": [precision for precision in PRECISIONS if _is_supported(precision, device)],
        "multiplies_in_bf16": multiplies_in_bf16(device),
        "bf16_gain": bf16_gain_on_cpu() if device.type == "cpu" and multiplies_in_bf16(device) else None,
    }


def _is_supported(precision: str, device: torch.device) -> bool:
    from omgsr_cli.models.devices import choose_precision

    try:
        choose_precision(precision, device)
    except OmgsrError:
        return False
    return True


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
    from omgsr_cli.options import RestoreOptions
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
