"""The questions that need torch. Runs in a process of its own, so that a torch that crashes cannot take more along."""

from __future__ import annotations

import importlib
from typing import Any

import torch

from omgsr_cli.errors import OmgsrError
from omgsr_cli.geometry import Size
from omgsr_cli.models.devices import (
    PRECISIONS,
    choose_device,
    choose_precision,
    free_memory_bytes,
    multiplies_in_bf16,
    present_devices,
)
from omgsr_cli.models.libraries import explain_broken_torchvision
from omgsr_cli.models.loading import describe_model, suitable_precision
from omgsr_cli.models.matrix_speed import bf16_gain_on_cpu
from omgsr_cli.models.sources import find_model
from omgsr_cli.options import RestoreOptions
from omgsr_cli.planning import plan_restoration, usable_memory

PICTURE_PX = Size(3000, 4000)
"""Height and width of a picture of 12 megapixels."""


def probe(models: list[str]) -> dict[str, Any]:
    """Ask torch and what stands on it.

    Args:
        models: names of presets that are here.
    Returns:
        "devices", a list; "torchvision", None or what is wrong with it; "plans", one for each model.
    """
    return {
        "devices": [_describe_device(name) for name in _device_names()],
        "torchvision": _try_torchvision(),
        "plans": [_plan(name) for name in models],
    }


def _device_names() -> list[str]:
    """Each single device, the preferred kind first."""
    counts = {"cuda": torch.cuda.device_count, "xpu": torch.xpu.device_count}
    names: list[str] = []
    for kind in present_devices():
        names += [f"{kind}:{index}" for index in range(counts[kind]())] if kind in counts else [kind]
    return names


def _describe_device(name: str) -> dict[str, Any]:
    device = torch.device(name)
    titles = {"cuda": torch.cuda.get_device_name, "xpu": torch.xpu.get_device_name}
    return {
        "name": name,
        "title": titles[device.type](device) if device.type in titles else None,
        "free_mib": free_memory_bytes(device) >> 20,
        "precisions": [precision for precision in PRECISIONS if _works(precision, device)],
        "multiplies_in_bf16": multiplies_in_bf16(device),
        "bf16_gain": bf16_gain_on_cpu() if device.type == "cpu" and multiplies_in_bf16(device) else None,
        "auto": choose_precision("auto", device),
    }


def _works(precision: str, device: torch.device) -> bool:
    try:
        choose_precision(precision, device)
    except OmgsrError:
        return False
    return True


def _try_torchvision() -> str | None:
    """What other libraries would meet when they import torchvision; None where it is absent or whole."""
    try:
        importlib.import_module("torchvision")
    except ModuleNotFoundError as error:
        if error.name == "torchvision":
            return None
        return str(error)
    except (ImportError, RuntimeError, OSError) as error:
        explained = explain_broken_torchvision(error)
        return str(error) if explained is None else explained.message
    return None


def _plan(model: str) -> dict[str, Any]:
    """What `auto` chooses for a picture of 12 megapixels, and by what."""
    try:
        source = find_model(model)
        info = describe_model(source)
    except OmgsrError as error:
        return {"model": model, "error": error.message}
    device = choose_device()
    precision = suitable_precision(source, "auto", device)
    memory = usable_memory(device)
    output = Size(round(PICTURE_PX.height * info.scale), round(PICTURE_PX.width * info.scale))
    plan = plan_restoration(info, PICTURE_PX, output, RestoreOptions(), memory)
    return {
        "model": model,
        "parameters": info.parameters,
        "device": str(device),
        "precision": precision,
        "input_size": [PICTURE_PX.width, PICTURE_PX.height],
        "output_size": [output.width, output.height],
        "tile_px": plan.codec.side_px,
        "step_tile_px": plan.step.side_px,
        "tiles": plan.tiles,
        "memory_mib": plan.memory_bytes >> 20,
        "allowed_mib": memory >> 20,
        "why": [_why_device(device), _why_precision(precision, device), _why_tiles(plan.codec.side_px, output, memory)],
    }


def _why_device(device: torch.device) -> str:
    absent = [kind for kind in ("cuda", "mps", "xpu") if kind not in present_devices()]
    return f"no {', '.join(absent)} here" if device.type == "cpu" else f"{device.type} comes before cpu"


def _why_precision(precision: str, device: torch.device) -> str:
    able = multiplies_in_bf16(device)
    gain = f", measured {bf16_gain_on_cpu():.1f} times as fast as fp32" if able and device.type == "cpu" else ""
    if precision == "bf16":
        return f"this {device.type} multiplies in bf16{gain}"
    if able and gain and bf16_gain_on_cpu() < 1:
        return f"{precision}: this cpu multiplies in bf16{gain}"
    if able:
        return f"{precision} although this {device.type} multiplies in bf16: a small model gains nothing by it"
    return f"{precision}: this {device.type} does not multiply in bf16"


def _why_tiles(tile_px: int, output: Size, memory: int) -> str:
    if tile_px >= max(output):
        return "the whole picture fits"
    return f"tiles of {tile_px} px: larger ones gain nothing, or do not fit into {memory / 2**30:.1f} GiB"
