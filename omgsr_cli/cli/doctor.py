"""`omgsr doctor`: one screen about this machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from omgsr_cli.cli.output import Output
from omgsr_cli.errors import OmgsrError
from omgsr_cli.files.addresses import shown

if TYPE_CHECKING:
    from omgsr_cli.diagnosis.report import Diagnosis
    from omgsr_cli.diagnosis.weights import ModelHealth


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> int:
    """Tell what this machine has: versions, devices, weights, extras, and what auto would choose.

    Nothing is changed and the network is not used. The exit code is 1 where something is wrong.
    """
    from omgsr_cli.diagnosis.report import diagnose

    talk = Output(as_json=as_json)
    found = diagnose()
    talk.result("\n".join(map(shown, _lines(found))), _record(found))
    for message, hint in found.problems:
        talk.error(OmgsrError(message, hint))
    return 1 if found.problems else 0


def _lines(found: Diagnosis) -> Iterator[str]:
    versions = dict(found.versions)
    yield f"omgsr {versions.pop('omgsr')}, Python {versions.pop('python')}"
    yield versions.pop("system") or "unknown system"
    torchvision = versions.pop("torchvision")
    said = [f"{name} {version or 'MISSING'}" for name, version in versions.items()]
    yield from (", ".join(said[start : start + 4]) for start in range(0, len(said), 4))
    yield "torchvision " + ("not installed, and not needed" if torchvision is None else torchvision)
    yield "devices"
    for device in found.devices:
        title = f" ({device['title']})" if device["title"] else ""
        free = f"{device['free_mib'] / 1024:.1f} GiB free"
        gain = device["bf16_gain"]
        measured = "" if gain is None else f" (bf16 measured {gain:.1f} times as fast as fp32)"
        precisions = ", ".join(device["precisions"])
        yield f"  {device['name']}{title}: {free}; {precisions}; auto takes {device['auto']}{measured}"
    yield "models"
    for model in found.models:
        yield f"  {model.name}: {_health(model)}"
    yield f"  kept in {_store(found.store)}"
    yield "extras"
    if found.extras is None:
        yield "  unknown: omgsr-cli is not installed, only on the path"
    else:
        yield "  " + ", ".join(f"{name} {_extra(missing)}" for name, missing in found.extras.items())
    for plan in found.plans:
        yield from _plan_lines(plan)


def _health(model: ModelHealth) -> str:
    if model.folder is None:
        return f"not here; {model.hint}"
    return f"{'DAMAGED' if model.damage else 'whole'}, {model.folder}"


def _store(store: dict[str, Any]) -> str:
    if store["folder"] is None:
        return f"no folder: {store['reason']}"
    room = f"{store['free_mib'] / 1024:.1f} GiB free"
    return f"{store['folder']} ({room if store['writable'] else 'CANNOT BE WRITTEN'})"


def _extra(missing: list[str]) -> str:
    return f"(lacks {', '.join(missing)})" if missing else "installed"


def _plan_lines(plan: dict[str, Any]) -> Iterator[str]:
    (width, height), (wide, high) = plan["input_size"], plan["output_size"]
    yield f"auto, for {plan['model']} and a picture of {width * height / 1e6:.0f} megapixels ({width}x{height})"
    yield (
        f"  {plan['device']} in {plan['precision']}, to {wide}x{high}, by {plan['tiles']} tiles of "
        f"{plan['tile_px']} px, {plan['memory_mib'] / 1024:.1f} GiB"
    )
    yield from (f"  {reason}" for reason in plan["why"])


def _record(found: Diagnosis) -> dict[str, Any]:
    models = [
        {
            "name": model.name,
            "folder": None if model.folder is None else str(model.folder),
            "damage": list(model.damage),
            "hint": model.hint,
        }
        for model in found.models
    ]
    problems = [{"error": message, "hint": hint} for message, hint in found.problems]
    return asdict(found) | {"models": models, "problems": problems}
