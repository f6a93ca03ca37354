"""`omgsr models`: list, download, check, merge and remove models."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from omgsr_cli.cli.help import Command, Group
from omgsr_cli.cli.output import Output
from omgsr_cli.errors import ModelError, UnknownModelError, UsageError, reason_of
from omgsr_cli.files.addresses import shown
from omgsr_cli.presets import DEFAULT_PRESET, FEATURE_NETWORKS, NETWORKS, PRESETS, find_preset

if TYPE_CHECKING:
    from omgsr_cli.diagnosis import ModelHealth

models = typer.Typer(
    name="models", cls=Group, help="List, download, check, merge and remove models.", no_args_is_help=True
)

_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object per line to stdout.")]
_Name = Annotated[
    str, typer.Argument(metavar="NAME|FOLDER", help="A name from `omgsr models list`, or a model folder.")
]
_Installed = Annotated[str, typer.Argument(metavar="NAME", help="A name from `omgsr models list`.")]


@models.command(cls=Command)
def pull(
    name: _Installed,
    base: Annotated[
        str | None, typer.Option(metavar="FOLDER|REPO", help="Use this base model instead of the known sources.")
    ] = None,
    from_: Annotated[
        Path | None,
        typer.Option("--from", metavar="FOLDER|ZIP", help="Use an adapter that you have downloaded."),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Download fp32 weights, twice the size of fp16.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Answer yes to all questions.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print only errors.")] = False,
) -> None:
    """Download a model, verify it, and make it available as --model NAME.

    Feature networks for training have names too: vgg16, and dinov3-convnext-tiny, -small, -base and -large. Re-run the
    command to resume an interrupted download.
    """
    from omgsr_cli.installation.pulling import PullTalk, pull_features, pull_model, pull_network

    output = Output(quiet=quiet)
    agree = partial(output.confirm, yes=yes, hint="add --yes to agree, or use --base FOLDER")
    talk = PullTalk(output.message, agree, output.download)
    if name in FEATURE_NETWORKS or name in NETWORKS:
        if base or from_ or full:
            raise UsageError(f"{name} is a single file: --base, --from and --full do not apply", "leave them out")
        is_network = name in NETWORKS
        place = pull_network(NETWORKS[name], talk) if is_network else pull_features(FEATURE_NETWORKS[name], talk)
        output.result(place, {})
        return
    preset = find_preset(name)
    output.result(pull_model(preset, talk, base=base, adapter=from_, full=full), {})


@models.command("list", cls=Command)
def list_models(as_json: _Json = False) -> None:
    """List the known and the downloaded models."""
    from omgsr_cli.diagnosis import check_models

    rows, records = [], []
    for health in check_models():
        preset = PRESETS.get(health.name)
        known = preset or NETWORKS.get(health.name)
        summary = known.summary if known else "downloaded or copied"
        is_default = health.name == DEFAULT_PRESET
        rows.append((shown(health.name), shown(_state(health)) + (", the default" if is_default else ""), summary))
        records.append(health.record | {"summary": summary, "default": is_default})
    Output(as_json=as_json).table(("model", "state", "description"), rows, records)


@models.command(cls=Command)
def path(name: _Installed) -> None:
    """Print the folder of a model."""
    folder = _found(name)
    Output().result(folder, {})


@models.command(cls=Command)
def info(name: _Name, as_json: _Json = False) -> None:
    """Show what a model is, where it comes from, and the memory it needs."""
    from omgsr_cli.diagnosis import about_model, check_model

    about = about_model(check_model(name))
    Output(as_json=as_json).result("\n".join(map(shown, _about_lines(about))), about)


@models.command(cls=Command)
def verify(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME|FOLDER", help="Models to check; all installed models by default."),
    ] = None,
    as_json: _Json = False,
) -> int:
    """Read every byte of a model and compare it with its manifest.

    The exit code is 1 if a model is corrupt; a hint shows how to repair it.
    """
    from omgsr_cli.diagnosis import check_model, check_models

    output = Output(as_json=as_json)
    if names:
        found = tuple(check_model(name, contents=True) for name in names)
        for health in found:
            _require(health)
    else:
        found = tuple(health for health in check_models(contents=True) if health.folder is not None)
    for health in found:
        state = "corrupt" if health.damage else "intact"
        output.result(shown(f"{health.name}: {state}"), health.record)
        for line in health.damage:
            output.error(ModelError(f"{health.name}: {line}", health.hint))
    return 1 if any(health.damage for health in found) else 0


@models.command(cls=Command)
def merge(
    base: Annotated[str, typer.Argument(metavar="BASE", help="Folder or hub repository of the base model.")],
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="Folder of the adapter, in its published layout.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to write; it must not exist.")],
    mid_timestep: Annotated[
        int | None, typer.Option(metavar="T", help="Set the timestep of the single step, 0 to 999.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="Condition the model on this text.")] = None,
    text_encoder: Annotated[
        bool, typer.Option("--text-encoder", help="Copy the text encoder too, so that --prompt works.")
    ] = False,
    half: Annotated[bool, typer.Option("--half", help="Write 16 bits instead of 32, half the size.")] = False,
) -> None:
    """Merge a base model and an adapter into one folder.

    The folder loads without network and adapter: use it with omgsr upscale --model OUT.
    """
    from omgsr_cli.installation.pulling import write_merged
    from omgsr_cli.models.sources import find_model
    from omgsr_cli.options import ModelOptions, build_options

    options = build_options(ModelOptions, base=base, adapter=adapter, mid_timestep=mid_timestep, prompt=prompt)
    write_merged(find_model(options), out, half=half, text_encoder=text_encoder)
    Output().result(out, {})


@models.command(cls=Command)
def remove(
    name: _Installed,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Remove without asking.")] = False,
) -> None:
    """Remove a downloaded model from this machine."""
    from omgsr_cli.store.installed import installed_folder

    preset = PRESETS.get(name)
    if preset is not None and preset.folder is not None:
        raise UsageError(f"{name} is bundled with omgsr and cannot be removed")
    folder = installed_folder(name)
    if folder is None:
        raise UnknownModelError(f"no downloaded model is called {name!r}", "see: omgsr models list")
    output = Output()
    output.confirm(f"remove {shown(folder)}?", yes=yes, hint="add --yes")
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise ModelError(f"{folder} cannot be removed: {reason_of(error)}") from error
    output.message(f"removed {shown(folder)}")


def _found(name: str) -> Path:
    from omgsr_cli.diagnosis import check_model

    return _require(check_model(name))


def _require(health: ModelHealth) -> Path:
    if health.folder is None:
        raise ModelError(f"{health.name} is not installed", hint=health.hint)
    return health.folder


def _state(health: ModelHealth) -> str:
    if health.folder is None:
        return f"not installed: {health.hint}"
    return f"CORRUPT: {health.hint}" if health.damage else "ready"


def _about_lines(about: dict[str, Any]) -> Iterator[str]:
    yield about["name"] + (f": {about['summary']}" if about["summary"] else "")
    if about["folder"] is None:
        yield f"not installed: omgsr models pull {about['name']}"
    yield f"licence {about['licence'] or 'unknown'}"
    step = "no diffusion step"
    if about["mid_timestep"] is not None:
        step = f"mid-timestep {about['mid_timestep']}, {about['native_tile_px']} px"
    yield (
        f"{step}, upscales {about['scale']:g} times"
        + (f", adapter ranks {about['vae_rank']} and {about['backbone_rank']}" if about["vae_rank"] else "")
    )
    if about["folder"] is None:
        yield "from " + ", ".join(about["sources"])
        return
    yield about["folder"]
    if about["made_from"]:
        yield "made from " + " and ".join(about["made_from"])
    for origin in about["sources"]:
        at = f" at {origin['revision']}" if origin["revision"] else ""
        yield f"{origin['what']} from {origin['place']}{at}, licence {origin['licence'] or 'unknown'}"
    for part in about["parts"]:
        yield f"  {part['part']}: {part['parameters'] / 1e6:.1f} million parameters in {', '.join(part['dtypes'])}"
    yield f"{about['parameters'] / 1e6:.1f} million parameters, {about['disk_mib']} MiB on disk"
    yield (
        f"on {about['device']} in {about['precision']}: {about['weights_mib']} MiB for the weights, "
        f"{about['tile_mib']} MiB for {about['tile_px']}x{about['tile_px']} px"
    )
