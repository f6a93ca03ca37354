"""`omgsr models`: the models that are known, fetched, merged and removed."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from omgsr_cli.cli.help_screen import Command, Group
from omgsr_cli.cli.output import Output
from omgsr_cli.errors import ModelError, UnknownModelError, UsageError, reason_of
from omgsr_cli.files.addresses import shown
from omgsr_cli.presets import DEFAULT_PRESET, PRESETS, find_preset

if TYPE_CHECKING:
    from omgsr_cli.diagnosis.models import ModelHealth

models = typer.Typer(
    name="models", cls=Group, help="List, fetch, check, merge and remove models.", no_args_is_help=True
)

_Json = Annotated[bool, typer.Option("--json", help="One JSON object a line on stdout.")]
_Name = Annotated[str, typer.Argument(metavar="NAME|FOLDER", help="A name from the list, or a model's folder.")]
_Installed = Annotated[str, typer.Argument(metavar="NAME", help="A name from the list.")]


@models.command(cls=Command)
def pull(
    name: _Installed,
    base: Annotated[
        str | None, typer.Option(metavar="FOLDER|REPO", help="Base model in the place of the known sources.")
    ] = None,
    from_: Annotated[
        Path | None,
        typer.Option("--from", metavar="FOLDER|ZIP", help="The adapter as you downloaded it yourself."),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Full precision, twice the size, where there is fp16.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Agree to what would be asked.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Errors only.")] = False,
) -> None:
    """Fetch a model, check it, and make it ready for --model NAME.

    An interrupted download goes on where it was when the same command is typed again.
    """
    from omgsr_cli.installation.pulling import pull_model

    preset = find_preset(name)
    talk = Output(quiet=quiet)
    talk.result(pull_model(preset, _PullTalk(talk, yes), base=base, adapter=from_, full=full), {})


class _PullTalk:
    """Tells and asks through the program's one output."""

    def __init__(self, output: Output, yes: bool) -> None:
        self._yes = yes
        self._output = output
        self.note = output.note
        self.download = output.download

    def agree(self, question: str) -> None:
        self._output.confirm(question, yes=self._yes, hint="add --yes to agree, or give --base FOLDER")


@models.command("list", cls=Command)
def list_models(as_json: _Json = False) -> None:
    """List the models that have a name, and where they lie."""
    from omgsr_cli.diagnosis.models import check_models

    talk = Output(as_json=as_json)
    for health in check_models():
        preset = PRESETS.get(health.name)
        summary = preset.summary if preset else "fetched or copied"
        default = ", the default" if health.name == DEFAULT_PRESET else ""
        talk.result(
            shown(f"{health.name}: {summary}; {_state(health)}{default}"),
            {
                "name": health.name,
                "summary": summary,
                "folder": None if health.folder is None else str(health.folder),
                "default": health.name == DEFAULT_PRESET,
                "damage": list(health.damage),
            },
        )


@models.command(cls=Command)
def path(name: _Installed) -> None:
    """Say where a model's folder is."""
    folder = _found(name)
    Output().result(folder, {})


@models.command(cls=Command)
def info(name: _Name, as_json: _Json = False) -> None:
    """Tell what a model is, what it was made of, and the memory that it needs here."""
    from omgsr_cli.diagnosis.models import about_model, about_preset, check_model

    health = check_model(name)
    about = about_preset(PRESETS[name]) if health.folder is None else about_model(name, health.folder)
    Output(as_json=as_json).result("\n".join(map(shown, _about_lines(about))), about)


@models.command(cls=Command)
def verify(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME|FOLDER", help="Models to check; without any, all that are here."),
    ] = None,
    as_json: _Json = False,
) -> int:
    """Read every byte of a model and compare it with its manifest.

    The exit code is 1 where something is wrong; what to do then is said.
    """
    from omgsr_cli.diagnosis.models import check_model, check_models

    talk = Output(as_json=as_json)
    if names:
        found = tuple(check_model(name, contents=True) for name in names)
        for health in found:
            _require(health)
    else:
        found = tuple(health for health in check_models(contents=True) if health.is_installed)
    for health in found:
        state = "damaged" if health.damage else "whole"
        record = {"name": health.name, "folder": str(health.folder), "damage": list(health.damage)}
        talk.result(shown(f"{health.name}: {state}"), record)
        for line in health.damage:
            talk.error(ModelError(f"{health.name}: {line}", health.hint))
    return 1 if any(health.damage for health in found) else 0


@models.command(cls=Command)
def merge(
    base: Annotated[str, typer.Argument(metavar="BASE", help="Folder or hub repository of the base model.")],
    adapter: Annotated[Path, typer.Argument(metavar="ADAPTER", help="Folder of the adapter, as published.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; it must not exist yet.")],
    mid_timestep: Annotated[
        int | None, typer.Option(metavar="T", help="Timestep of the one step, 0 to 999, in place of the model's.")
    ] = None,
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="Condition the model on a text.")] = None,
    text_encoder: Annotated[
        bool, typer.Option("--text-encoder", help="Copy the text encoder too, so that any prompt can be given.")
    ] = False,
    half: Annotated[bool, typer.Option("--half", help="Write fp16 instead of fp32, half the size.")] = False,
) -> None:
    """Merge a base and an adapter into one folder that loads at once, without network and adapter.

    omgsr upscale --model OUT then uses it.
    """
    from omgsr_cli.installation.merging import write_merged
    from omgsr_cli.models.sources import find_model

    source = find_model(base=base, adapter=adapter, mid_timestep=mid_timestep, prompt=prompt)
    write_merged(source, out, half=half, text_encoder=text_encoder)
    Output().result(out, {})


@models.command(cls=Command)
def remove(
    name: _Installed,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Remove a fetched model from this machine."""
    from omgsr_cli.store.installed import installed_folder

    preset = PRESETS.get(name)
    if preset is not None and preset.folder is not None:
        raise UsageError(f"{name} lies in the package", "it goes with: pip uninstall omgsr-cli")
    folder = installed_folder(name)
    if folder is None:
        raise UnknownModelError(f"no fetched model is called {name!r}", "see: omgsr models list")
    talk = Output()
    talk.confirm(f"remove {shown(folder)}?", yes=yes, hint="add --yes")
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise ModelError(f"{folder} cannot be removed: {reason_of(error)}") from error
    talk.note(f"removed {shown(folder)}")


def _found(name: str) -> Path:
    from omgsr_cli.diagnosis.models import check_model

    return _require(check_model(name))


def _require(health: ModelHealth) -> Path:
    if health.folder is None:
        raise ModelError(f"{health.name} is not on this machine", hint=health.hint)
    return health.folder


def _state(health: ModelHealth) -> str:
    if health.folder is None:
        return f"not here: {health.hint}"
    return f"DAMAGED: {health.hint}" if health.damage else "ready"


def _about_lines(about: dict[str, Any]) -> Iterator[str]:
    yield about["name"] + (f": {about['summary']}" if about["summary"] else "")
    if about["folder"] is None:
        yield f"not here: omgsr models pull {about['name']}"
    yield f"licence {about['licence'] or 'unknown'}"
    yield (
        f"mid-timestep {about['mid_timestep']}, {about['native_tile_px']} px, enlarges {about['scale']:g} times"
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
        yield f"  {part['part']}: {part['parameters'] / 1e6:.1f} million numbers in {', '.join(part['dtypes'])}"
    yield f"{about['parameters'] / 1e6:.1f} million parameters, {about['disk_mib']} MiB on disk"
    yield (
        f"on {about['device']} in {about['precision']}: {about['weights_mib']} MiB for the weights, "
        f"{about['tile_mib']} MiB for {about['native_tile_px']}x{about['native_tile_px']} px"
    )
