"""Find the files of a model, and check everything that can be checked before its weights are read."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from omgsr_cli.errors import ModelError, UnknownModelError, UsageError
from omgsr_cli.models.adapter_files import check_adapter_folder
from omgsr_cli.models.families import (
    FAMILIES,
    REPOSITORY_FILES,
    family_of,
    is_model_file,
    nearest_adapter,
    recognise_adapter,
    recognise_model,
)
from omgsr_cli.models.family import Family, ModelSource
from omgsr_cli.models.record import ModelRecord, load_record, read_json
from omgsr_cli.models.weight_files import NETWORK_STEM, NETWORK_SUFFIXES, refuse_pickles
from omgsr_cli.options import ModelOptions
from omgsr_cli.packages import install_command
from omgsr_cli.presets import DECODERS, DEFAULT_PRESET, NETWORKS, PRESETS, Preset, find_preset
from omgsr_cli.store.hub import download_files, download_model, is_repository_name
from omgsr_cli.store.installed import installed_folder

if TYPE_CHECKING:
    from omgsr_cli.models.lora import LoraOptions

NOTE = "an AutoencoderTiny decodes the image: it takes about a tenth of the work, but fine texture is coarser"

_PICKLE = "the model is a pickle, of which only weights are read; the safetensors format is safer"
_NO_STEP = "is a restoration network without a diffusion step"
_FACTS_OF_OPTIONS = {
    **dict.fromkeys(("base", "adapter", "mid_timestep", "process_size"), ("has_step", _NO_STEP)),
    "prompt": ("takes_prompt", "does not use a prompt"),
    "vae": ("takes_vae", "has no VAE that can be replaced"),
    **dict.fromkeys(("quantize", "offload"), ("has_placement", "is small")),
}
"""The fact about a family that each option needs, and what it means for a model if the family lacks it."""

_QUANTISERS = {"nf4": "bitsandbytes", "int8": "torchao", "fp8": "torchao"}
_KNOWN_DECODERS = " or ".join(DECODERS)


def find_model(options: ModelOptions) -> ModelSource:
    """Find a model's files and check their kind; those of a hub repository are fetched.

    Raises:
        ModelError: a file is missing, is a pickle, or is of an unknown kind.
        UsageError: the options exclude each other.
    """
    if options.model is not None and is_model_file(Path(options.model)):
        return _find_file(options)
    model, base, adapter = _unfold_checkpoint(options)
    preset = None if model is None else PRESETS.get(model)
    adapter_family = None if adapter is None else nearest_adapter(adapter)
    if model is None and base is None:
        preset = find_preset((adapter_family and adapter_family.assumed_preset) or DEFAULT_PRESET)
    if base is not None and model is not None and preset is None:
        raise UsageError(f"a base model and the model {model!r} were both given", hint="remove one of them")
    if adapter is not None and adapter_family is not None:
        check_adapter_folder(adapter, adapter_family.adapter_parts)
    if base is not None:
        name, folder = base, find_base_folder(base)
    elif preset is not None:
        name, folder = preset.name, _preset_folder(preset, adapter)
    else:
        name, folder = str(model), find_base_folder(str(model))
    record, notes = _merge_records(folder, adapter, preset)
    if record.base is not None:
        record = record.model_copy(update={"base": name})
    family = family_of(record, str(folder))
    if adapter_family is not None and adapter_family is not family:
        raise ModelError(
            f"the adapter {adapter} belongs to the family {adapter_family.name!r}, but {folder} to {family.name!r}"
        )
    family.find_files(folder)
    _refuse_unsupported(family, name, options)
    record, more = _override(record, options)
    decoder = None
    if options.vae is not None:
        decoder, more = find_tiny_vae(options.vae), (*more, NOTE)
    package = _QUANTISERS.get(options.quantize)
    if package is not None and find_spec(package) is None:
        raise UsageError(f"--quantize {options.quantize}: {package} is not installed", install_command("quantize"))
    # The name of a checkpoint is its own, not that of its base.
    name = options.model if model is None and options.model else name
    return ModelSource(name, folder, adapter, record, notes + more, decoder, options.quantize, options.offload)


def _find_file(options: ModelOptions) -> ModelSource:
    """A single file that is a whole model."""
    path = Path(str(options.model))
    family = recognise_model(path)
    assert family is not None
    _refuse_unsupported(family, path.name, options)
    notes = (_PICKLE,) if path.suffix.lower() != ".safetensors" else ()
    return ModelSource(str(path), path, None, family.assume_record(path, None), notes)


def _refuse_unsupported(family: Family, name: str, options: ModelOptions) -> None:
    """Raise a UsageError for an option that the user gave and the family does not support."""
    for field, (fact, reason) in _FACTS_OF_OPTIONS.items():
        if getattr(options, field) == ModelOptions.model_fields[field].default or getattr(family, fact):
            continue
        option = f"--{field.replace('_', '-')}"
        reason = reason if family.has_step else _NO_STEP
        raise UsageError(f"{name} {reason} and takes no {option}", f"leave {option} out")


def find_base_folder(name: str, parts: Sequence[str] | None = None) -> Path:
    """The folder of a model: a local folder, the bundled model or base of a preset, or the local copy of a repository.

    Args:
        name: folder, preset or hub repository.
        parts: parts whose weights are fetched if needed; None means all.
    Raises:
        ModelError: no model has this name, or it cannot be fetched.
    """
    preset = PRESETS.get(name)
    if preset is not None:
        return preset.folder or _fetch_base(preset, parts)
    path = Path(name)
    if path.is_dir():
        return path
    if is_model_file(path):
        hint = f"give a diffusion model, such as {DEFAULT_PRESET}; upscale and bench take the file with --model"
        raise ModelError(f"{path} is a single weight file: a restoration network has no diffusion step", hint)
    if path.is_file():
        refuse_pickles(path)
        inside = (path.parent / "omgsr.json").is_file()
        hint = f"use its folder: {path.parent}" if inside else "convert it to a Diffusers folder"
        raise ModelError(f"{path} is a file, but a model is a folder", hint)
    fetched = installed_folder(name)
    if fetched is not None:
        return fetched
    if is_repository_name(name):
        return download_model(name, REPOSITORY_FILES, None, parts, _check_kind if parts is None else None)
    if name in NETWORKS:
        raise ModelError(f"{name} is not installed", hint=f"omgsr models pull {name}")
    if path.suffix.lower() in NETWORK_SUFFIXES:
        raise UnknownModelError(f"the model file {name} does not exist", hint="check its path")
    known = ", ".join([*PRESETS, *NETWORKS])
    raise UnknownModelError(f"no model is called {name!r}", hint=f"use a folder, a hub repository or one of: {known}")


def find_trainable(
    preset: str | None = None,
    *,
    base: str | None = None,
    start_from: str | None = None,
    mid_timestep: int | None = None,
    prompt: str | None = None,
    lora: LoraOptions | None = None,
) -> ModelSource:
    """Find the files of the model to train, and check everything that can be checked without reading weights.

    Args:
        preset: name of a preset; not needed with `base`, or with a whole model in `start_from`.
        base: folder or hub repository of the pre-trained model, instead of the preset's.
        start_from: folder of the initial weights, or the name of a bundled preset.
        mid_timestep: replaces the model's own.
        prompt: replaces the model's own.
        lora: the adapters, for a family with adapters.
    Raises:
        ModelError: a file is missing or of an unknown kind.
        UsageError: the arguments exclude each other.
    """
    if preset is not None and preset not in PRESETS:
        raise UsageError(f"no preset is called {preset!r}", f"known names: {', '.join(PRESETS)}")
    if preset is None and base is None and start_from is None:
        raise UsageError("no model to train was given", "set preset, base or start_from in [model]")
    start = start_folder(start_from)
    if start is not None and not start.is_dir():
        raise ModelError(f"start_from: the folder {start_from} does not exist")
    # Training starts from the base of a preset, not from its adapter, even if that is installed.
    named = base or preset or start_from
    options = ModelOptions(model=preset if base else None, base=named, mid_timestep=mid_timestep, prompt=prompt)
    source = find_model(options)
    if lora is not None and not family_of(source.record, source.name).adapter_parts:
        raise UsageError(f"{source.name} is trained as a whole, without adapters", "remove [lora]")
    return source


def start_folder(start_from: str | None) -> Path | None:
    """The folder of the initial weights: that of a bundled preset, or the given one."""
    if start_from is None:
        return None
    embedded = PRESETS[start_from].folder if start_from in PRESETS else None
    return embedded or Path(start_from)


def find_tiny_vae(name: str) -> Path:
    """The folder or file of an AutoencoderTiny; a hub repository is fetched.

    Args:
        name: one of `DECODERS`, a folder in the Diffusers layout, TAESD's decoder as a safetensors file, or a hub
            repository.
    Raises:
        ModelError: it does not exist, is of another kind, or cannot be fetched.
    """
    path = Path(name)
    if path.is_file() and path.suffix == ".safetensors":
        return path
    if not path.is_dir():
        repository = DECODERS.get(name, name)
        if not is_repository_name(repository):
            hint = f"use {_KNOWN_DECODERS}, a folder, TAESD's decoder .safetensors or a hub repository"
            raise UnknownModelError(f"no autoencoder is called {name!r}", hint)
        path = download_files(repository, None, ["config.json", f"{NETWORK_STEM}.safetensors"])
    if not (path / "config.json").is_file():
        refuse_pickles(path)
        raise ModelError(f"{path} has no config.json", "use a folder of diffusers' AutoencoderTiny")
    found = read_json(path / "config.json").get("_class_name")
    if found != "AutoencoderTiny":
        raise ModelError(f"{path} is a {found}, not an AutoencoderTiny", f"use {_KNOWN_DECODERS}, or remove --vae")
    return path


def _unfold_checkpoint(options: ModelOptions) -> tuple[str | None, str | None, Path | None]:
    """Split an adapter folder that is given as a model, such as a checkpoint, into base and adapter.

    Returns:
        model, base and adapter; the base is that of the adapter's record if none was given.
    """
    model, base, adapter = options.model, options.base, options.adapter
    if adapter is None and model is not None and recognise_adapter(Path(model)) is not None:
        base = base or _recorded_base(Path(model))
        # Without a base it is treated as a model, which is refused later.
        return (model, None, None) if base is None else (None, base, Path(model))
    if adapter is not None and model is None and base is None:
        base = _recorded_base(adapter)
    return model, base, adapter


def _recorded_base(adapter: Path) -> str | None:
    """The base in an adapter's record, or None."""
    record = load_record(adapter)
    if record is None or record.base is None:
        return None
    if record.base not in PRESETS and not Path(record.base).is_dir() and not is_repository_name(record.base):
        raise ModelError(
            f"the base of {adapter}, {record.base}, does not exist", hint="give its new location with --base FOLDER"
        )
    return record.base


def _fetch_base(preset: Preset, parts: Sequence[str] | None = None) -> Path:
    """The base from the first of a preset's hub repositories that responds."""
    reasons: list[ModelError] = []
    for repository in preset.base_sources:
        try:
            return download_model(repository, REPOSITORY_FILES, preset.revision, parts)
        except ModelError as error:
            reasons.append(error)
    raise ModelError(f"the base of {preset.name} cannot be fetched: {reasons[0]}", hint=reasons[0].hint)


def _preset_folder(preset: Preset, adapter: Path | None) -> Path:
    """The bundled folder, the installed one, or with an adapter the base from the hub."""
    if preset.folder is not None:
        if adapter is not None:
            raise UsageError(
                f"{preset.name} does not support adapters", hint="give the adapter's base model with --base"
            )
        return preset.folder
    if adapter is None:
        fetched = installed_folder(preset.name)
        if fetched is None:
            raise ModelError(f"{preset.name} is not installed", hint=f"omgsr models pull {preset.name}")
        return fetched
    return _fetch_base(preset)


def _merge_records(folder: Path, adapter: Path | None, preset: Preset | None) -> tuple[ModelRecord, tuple[str, ...]]:
    """The record of the model or of its adapter, or one with the values of the preset or the defaults."""
    own = None if adapter is None else load_record(adapter)
    if own is not None and own.base is not None:
        # It was trained on this base, which may be a merged model.
        return own, ()
    record = load_record(folder)
    if record is not None and recognise_adapter(folder) is None:
        if adapter is not None:
            raise ModelError(f"{folder} is already merged with an adapter", hint="remove --adapter")
        return record, ()
    if own is not None:
        return own, ()
    if recognise_adapter(folder) is not None:
        raise ModelError(f"{folder} is an adapter, not a model", hint=f"use --base FOLDER --adapter {folder}")
    family = recognise_model(folder)
    if family is None:
        raise _unrecognised(folder)
    if preset is not None and family is not family_of(preset, preset.name):
        raise ModelError(
            f"{folder} belongs to the family {family.name!r}, but {preset.name} does not", "use its own base model"
        )
    record = family.assume_record(folder, preset)
    notes: tuple[str, ...] = ()
    if preset is None and adapter is None:
        notes = (
            f"{folder} has no omgsr.json: assuming mid-timestep {record.mid_timestep} of {family.assumed_preset}; "
            "a base model without --adapter was not trained to restore images",
        )
    return record, notes


def _override(record: ModelRecord, options: ModelOptions) -> tuple[ModelRecord, tuple[str, ...]]:
    """Replace values of the record by those that the user requested, with a note if that is unusual."""
    notes: tuple[str, ...] = ()
    changes: dict[str, object] = {}
    if options.mid_timestep is not None and options.mid_timestep != record.mid_timestep:
        notes = (f"mid-timestep {options.mid_timestep} is used, but the model was trained at {record.mid_timestep}",)
        changes["mid_timestep"] = options.mid_timestep
    if options.prompt is not None:
        changes["prompt"] = options.prompt
    if options.process_size is not None:
        changes["native_tile_px"] = options.process_size
    return record.model_copy(update=changes), notes


def _check_kind(folder: Path) -> None:
    """Refuse a repository of a kind that is not known, before its weights are fetched."""
    if load_record(folder) is None and recognise_model(folder) is None:
        raise _unrecognised(folder)


def _unrecognised(folder: Path) -> ModelError:
    known = ", ".join(FAMILIES)
    if (folder / "transformer").is_dir():
        kind = read_json(folder / "transformer" / "config.json").get("_class_name", "unknown transformer")
        return ModelError(f"{folder} is a {kind}", hint=f"families that can be loaded: {known}")
    refuse_pickles(folder)
    inside = sorted(record.parent for record in folder.glob("*/omgsr.json"))
    hint = (
        f"{inside[-1]} is one" if inside else "use a folder that has one of these files, or a name: omgsr models list"
    )
    return ModelError(f"{folder} is not a model folder: no omgsr.json and no unet/config.json", hint)
