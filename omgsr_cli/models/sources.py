"""Finding out which files a model is made of, and all that can be checked before its weights are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from omgsr_cli.errors import ModelError, UsageError
from omgsr_cli.models.adapters import SD_PARTS, check_adapter_folder
from omgsr_cli.models.hub import WEIGHT_STEMS, download_model, is_repository_name
from omgsr_cli.models.record import ModelRecord, load_record, read_json
from omgsr_cli.presets import DEFAULT_PRESET, PRESETS, Preset, find_preset
from omgsr_cli.store.locations import installed_folder

FAMILIES = ("tiny", "sd")
PROMPT_EMBEDS = "prompt_embeds.safetensors"

_SD_CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
_PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
_CONVERT = "save it with diffusers' save_pretrained(folder, safe_serialization=True) on a machine that trusts it"
_ASSUMED = PRESETS["omgsr-s-512"]
"""What a diffusers folder that says nothing about itself is taken for."""


@dataclass(frozen=True)
class ModelSource:
    """Where a model's files lie and what they say about it.

    Attributes:
        name: as the user gave it.
        folder: the model, or the base model that an adapter is added to.
        adapter: the adapter's folder, or None.
        record: of the folder, of the adapter, or assembled from defaults; with what the user asked for instead.
        notes: what a person should know, one line each.
    """

    name: str
    folder: Path
    adapter: Path | None
    record: ModelRecord
    notes: tuple[str, ...]


def find_model(
    model: str | Path | None = None,
    *,
    base: str | Path | None = None,
    adapter: str | Path | None = None,
    mid_timestep: int | None = None,
    prompt: str | None = None,
    process_size: int | None = None,
) -> ModelSource:
    """Find a model's files, fetching them from the hub where a hub repository is named, and check their kind.

    Args: as for `load_restorer`.

    Raises:
        ModelError: something is missing, is a pickle, or is of a kind that is not known.
        UsageError: the arguments do not go together.
    """
    preset = PRESETS.get(str(model)) if model is not None else None
    if model is None and base is None:
        preset = _ASSUMED if adapter is not None else find_preset(DEFAULT_PRESET)
    if base is not None and model is not None and preset is None:
        raise UsageError(f"a base model and the model {str(model)!r} were both given", hint="leave one of them out")
    adapter_folder = None if adapter is None else Path(adapter)
    if adapter_folder is not None:
        check_adapter_folder(adapter_folder)
    if base is not None:
        name, folder = str(base), _find_folder(base)
    elif preset is not None:
        name, folder = preset.name, _preset_folder(preset, adapter_folder)
    else:
        name, folder = str(model), _find_folder(str(model))
    record, notes = _merge_records(folder, adapter_folder, preset)
    _check_family(folder, record.family)
    record, more = _override(record, mid_timestep, prompt, process_size)
    return ModelSource(name, folder, adapter_folder, record, notes + more)


def weight_variant(folder: Path, part: str) -> str | None:
    """Which of a part's weight files to read: None for the plain one, "fp16" where only that is there.

    Raises:
        ModelError: there is no safetensors file; the hint tells how to convert a pickle.
    """
    # An autoencoder of its own may lie in a folder of any name.
    stem = WEIGHT_STEMS.get(part, WEIGHT_STEMS["vae"])
    for variant in (None, "fp16"):
        mark = f".{variant}" if variant else ""
        if (folder / part / f"{stem}{mark}.safetensors").is_file():
            return variant
        if (folder / part / f"{stem}.safetensors.index{mark}.json").is_file():
            return variant
    pickles = [file for file in sorted((folder / part).glob("*")) if file.suffix in _PICKLES]
    if pickles:
        raise ModelError(f"{pickles[0]} is a pickle, which can run code when it is read", hint=_CONVERT)
    raise ModelError(f"{folder / part} has no weights ({stem}.safetensors)")


def _find_folder(source: str | Path) -> Path:
    """The local folder of that name, or the hub's copy."""
    path = Path(source)
    if path.is_dir():
        return path
    if path.is_file():
        if path.suffix in _PICKLES:
            raise ModelError(f"{path} is a pickle, which can run code when it is read", hint=_CONVERT)
        raise ModelError(f"{path} is a file, a model is a folder", hint="convert it to a diffusers folder")
    fetched = installed_folder(str(source))
    if fetched is not None:
        return fetched
    if is_repository_name(str(source)):
        return download_model(str(source))
    names = ", ".join(PRESETS)
    raise ModelError(f"there is no model {str(source)!r}", hint=f"give a folder, a hub repository or one of: {names}")


def _preset_folder(preset: Preset, adapter: Path | None) -> Path:
    """The embedded folder, or the first of the base model's hub repositories that answers."""
    if preset.folder is not None:
        if adapter is not None:
            raise UsageError(f"{preset.name} takes no adapter", hint="give the adapter's base model with --base")
        return preset.folder
    if adapter is None:
        fetched = installed_folder(preset.name)
        if fetched is None:
            raise ModelError(f"{preset.name} is not on this machine", hint=f"omgsr models pull {preset.name}")
        return fetched
    reasons: list[ModelError] = []
    for repository in preset.base_sources:
        try:
            return download_model(repository, preset.revision)
        except ModelError as error:
            reasons.append(error)
    raise ModelError(f"the base of {preset.name} cannot be fetched: {reasons[0]}", hint=reasons[0].hint)


def _merge_records(folder: Path, adapter: Path | None, preset: Preset | None) -> tuple[ModelRecord, tuple[str, ...]]:
    """What the model says about itself: its own record, its adapter's, or what the preset or a default says."""
    record = load_record(folder)
    if record is not None:
        if adapter is not None:
            raise ModelError(f"{folder} is already merged and takes no adapter", hint="leave --adapter out")
        return record, ()
    if adapter is not None and (own := load_record(adapter)) is not None:
        return own, ()
    if all((folder / part).is_dir() for part in SD_PARTS):
        raise ModelError(f"{folder} is an adapter, not a model", hint=f"give --base FOLDER --adapter {folder}")
    known = preset or _ASSUMED
    notes: tuple[str, ...] = ()
    if preset is None and adapter is None:
        notes = (f"{folder} has no omgsr.json: mid-timestep {known.mid_timestep} assumed, as {known.name}'s",)
    native_px = _native_px(folder) if preset is None else known.native_tile_px
    record = ModelRecord(
        family="sd", mid_timestep=known.mid_timestep, native_tile_px=native_px, scale=known.scale, prompt=""
    )
    return record, notes


def _native_px(folder: Path) -> int:
    """Side of the square image that a diffusers folder's UNet was trained at."""
    if not (folder / "unet" / "config.json").is_file():
        return _ASSUMED.native_tile_px
    side = read_json(folder / "unet" / "config.json").get("sample_size")
    latent_px = 2 ** (len(read_json(folder / "vae" / "config.json").get("block_out_channels", ())) - 1)
    return side * latent_px if isinstance(side, int) else _ASSUMED.native_tile_px


def _override(
    record: ModelRecord, mid_timestep: int | None, prompt: str | None, process_size: int | None
) -> tuple[ModelRecord, tuple[str, ...]]:
    """Put what the user asked for in the place of what the model says, with a note where that is unusual."""
    notes: list[str] = []
    changes: dict[str, object] = {}
    if mid_timestep is not None and mid_timestep != record.mid_timestep:
        if not 0 <= mid_timestep <= 999:
            raise UsageError(f"mid-timestep {mid_timestep} is not in 0..999")
        notes.append(f"mid-timestep {mid_timestep} is not {record.mid_timestep}, which the model was made for")
        changes["mid_timestep"] = mid_timestep
    if prompt is not None and record.family == "tiny":
        raise UsageError("this model takes no prompt", hint="leave --prompt out")
    if prompt is not None:
        changes["prompt"] = prompt
    if process_size is not None:
        if process_size <= 0 or process_size % 8:
            raise UsageError(f"process size {process_size} is not a positive multiple of 8", "try --process-size 512")
        changes["native_tile_px"] = process_size
    return record.model_copy(update=changes), tuple(notes)


def _check_family(folder: Path, family: str) -> None:
    """Check that the family is known and that an SD folder has the parts that make one, in safetensors."""
    known = ", ".join(FAMILIES)
    if family not in FAMILIES:
        raise ModelError(f"{folder}: model family {family!r} is not known", hint=f"families: {known}")
    if family != "sd":
        return
    if not (folder / "unet" / "config.json").is_file():
        if (folder / "transformer").is_dir():
            raise ModelError(f"{folder} is a diffusion transformer", hint=f"families that can be loaded: {known}")
        _refuse_pickles(folder)
        raise ModelError(f"{folder} is not a model folder: no omgsr.json and no unet/config.json")
    for part, wanted in _SD_CLASSES.items():
        found = read_json(folder / part / "config.json").get("_class_name")
        if found != wanted:
            raise ModelError(f"{folder / part} is a {found}, not a {wanted}", hint=f"families: {known}")
        weight_variant(folder, part)


def _refuse_pickles(folder: Path) -> None:
    for file in sorted(folder.iterdir()):
        if file.suffix in _PICKLES:
            raise ModelError(f"{file} is a pickle, which can run code when it is read", hint=_CONVERT)
