"""`omgsr doctor`: show the state of this machine on one screen."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from omgsr_cli.cli.output import Output
from omgsr_cli.errors import OmgsrError
from omgsr_cli.files.addresses import shown

if TYPE_CHECKING:
    from omgsr_cli.diagnosis import Diagnosis, ModelHealth


def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object to stdout.")] = False,
) -> int:
    """Show versions, devices, models and extras of this machine, and what auto chooses.

    It changes nothing and does not use the network. The exit code is 1 if something is wrong.
    """
    output = Output(as_json=as_json)
    with output.loading("PyTorch"):
        from omgsr_cli.diagnosis import diagnose

        found = diagnose()
    output.result("\n".join(map(shown, _lines(found))), _record(found))
    for message, hint in found.problems:
        output.error(OmgsrError(message, hint))
    return 1 if found.problems else 0


def _lines(found: Diagnosis) -> Iterator[str]:
    versions = dict(found.versions)
    yield f"omgsr {versions.pop('omgsr')}, Python {versions.pop('python')}, installed with {found.manager}"
    yield versions.pop("system") or "unknown system"
    torchvision = versions.pop("torchvision")
    parts = [f"{name} {version or 'MISSING'}" for name, version in versions.items()]
    yield from (", ".join(parts[start : start + 4]) for start in range(0, len(parts), 4))
    yield "torchvision " + (torchvision or "not installed; only the extras networks and metrics need it")
    yield "devices"
    for device in found.devices:
        title = f" ({device['title']})" if device["title"] else ""
        gain = device["bf16_gain"]
        speed = "" if gain is None else f"; bf16 runs at {gain:.2f} times the speed of fp32"
        precisions = ", ".join(device["precisions"])
        yield f"  {device['name']}{title}: {device['free_mib'] / 1024:.1f} GiB free; {precisions}{speed}"
    yield "models"
    for model in found.models:
        yield f"  {model.name}: {_state(model)}"
    yield f"  downloads: {_store(found.store)}"
    yield from _extra_lines(found)
    for plan in found.plans:
        yield from _plan_lines(plan)


def _state(model: ModelHealth) -> str:
    if model.folder is None:
        return f"not installed; {model.hint}"
    return f"{'CORRUPT' if model.damage else 'intact'}, {model.folder}"


def _store(store: dict[str, Any]) -> str:
    if store["folder"] is None:
        return f"no folder: {store['reason']}"
    space = f"{store['free_mib'] / 1024:.1f} GiB free"
    return f"{store['folder']} ({space if store['writable'] else 'NOT WRITABLE'})"


def _extra_lines(found: Diagnosis) -> Iterator[str]:
    yield "extras"
    if found.extras is None:
        yield "  unknown: the metadata of omgsr-cli is missing"
        return
    yield "  installed: " + (", ".join(name for name, missing in found.extras.items() if not missing) or "none")
    for name, command in found.install.items():
        yield f"  {name} (missing {', '.join(found.extras[name])}): {command}"


def _plan_lines(plan: dict[str, Any]) -> Iterator[str]:
    (width, height), (output_width, output_height) = plan["input_size"], plan["output_size"]
    yield f"auto for {plan['model']}, {width}x{height} to {output_width}x{output_height}"
    yield (
        f"  {plan['device']} in {plan['precision']}, {plan['tiles']} tiles of {plan['tile_px']} px, "
        f"{plan['memory_mib'] / 1024:.1f} GiB of memory"
    )
    yield from (f"  {reason}" for reason in plan["why"])


def _record(found: Diagnosis) -> dict[str, Any]:
    models = [model.record | {"hint": model.hint} for model in found.models]
    problems = [{"error": message, "hint": hint} for message, hint in found.problems]
    return asdict(found) | {"models": models, "problems": problems}
