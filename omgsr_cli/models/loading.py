"""Loading models to run, to train or to encode with, and writing them as folders that need nothing else."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from safetensors import SafetensorError

from omgsr_cli.errors import DeviceError, ModelError, UsageError, reason_of, write_reason
from omgsr_cli.files.atomic import partial_folder
from omgsr_cli.models.autoencoders import load_diffusers_encoder, load_schedule, load_vae_encoder
from omgsr_cli.models.base import ImageEncoder, Restorer, RestorerInfo, Trainable
from omgsr_cli.models.devices import (
    choose_device,
    choose_precision,
    is_out_of_memory,
    keep_freed_memory,
    skipped_devices,
)
from omgsr_cli.models.families import family_of
from omgsr_cli.models.family import ModelSource
from omgsr_cli.models.lora import LoraOptions
from omgsr_cli.models.record import RECORD_NAME, load_record
from omgsr_cli.models.sources import find_base_folder, find_model, start_folder
from omgsr_cli.models.weight_files import apply_umask, check_file_finite
from omgsr_cli.options import ModelOptions, build_options
from omgsr_cli.presets import DEFAULT_PRESET
from omgsr_cli.schedules import DdpmSchedule, FlowSchedule

# Latent channels tell the family where an autoencoder comes without a scheduler.
_FLOW_CHANNELS = 16


def load_restorer(
    model: str | Path | None = None,
    *,
    base: str | Path | None = None,
    adapter: str | Path | None = None,
    device: str | None = None,
    precision: str = "auto",
    mid_timestep: int | None = None,
    prompt: str | None = None,
    process_size: int | None = None,
    vae: str | None = None,
    quantize: str = "none",
    offload: str = "auto",
) -> Restorer:
    """Load a model, ready to run.

    Args:
        model: a preset's name, a folder (merged by omgsr, or of diffusers' layout) or a hub repository OWNER/NAME;
            None takes the default preset, or the base and adapter. With `base`, only a preset's name.
        base: folder or hub repository of the base model.
        adapter: folder with `vae_encoder_lora_adapter/` and `unet_lora_adapter/`.
        device: as for `choose_device`.
        precision: as for `choose_precision`.
        mid_timestep: instead of the model's own, 0..999.
        prompt: instead of the model's own.
        process_size: side in px of the tiles of the step, instead of the model's native size; a multiple of 8.
        vae: "tiny" for TAESD, or the folder, file or hub repository of another AutoencoderTiny, which decodes in the
            place of the model's own: about a tenth of the work, but coarser.
        quantize: "int8", "fp8" or "nf4" make the weights of a large model smaller.
        offload: "model" or "group" keep them in the host's memory while they are not used; "auto" decides.
    Returns:
        The model; its `notes` are for people.
    Raises:
        ModelError, DeviceError, UsageError, OmgsrError: the cheap checks come before anything large is read.
    """
    # An absent device is reported before a model is looked for, which may have to be fetched.
    place = choose_device(device)
    if precision != "auto":
        choose_precision(precision, place)
    options = build_options(
        ModelOptions,
        model=None if model is None else str(model),
        base=None if base is None else str(base),
        adapter=adapter,
        mid_timestep=mid_timestep,
        prompt=prompt,
        process_size=process_size,
        vae=vae,
        quantize=quantize,
        offload=offload,
    )
    return load_found(find_model(options), device=device, precision=precision)


def load_found(source: ModelSource, *, device: str | None = None, precision: str = "auto") -> Restorer:
    """Load a model that `find_model` found; arguments and errors as for `load_restorer`."""
    chosen_device = choose_device(device)
    chosen_precision = suitable_precision(source, precision, chosen_device)
    try:
        restorer = family_of(source.record, source.name).load(source, chosen_device, chosen_precision)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(
            f"{source.name} does not fit in the memory of {chosen_device} in {chosen_precision}",
            "close other programs, or give a narrower --precision or another --device",
        ) from error
    if chosen_device.type == "cpu":
        keep_freed_memory()
    restorer.info = _with_files(restorer.info, source)
    restorer.notes = (*restorer.notes, *skipped_devices(device))
    if precision == "auto" and chosen_precision != "fp32":
        restorer.in_fp32 = cache(lambda: load_found(source, device=device, precision="fp32"))
    return restorer


def suitable_precision(source: ModelSource, precision: str, device: torch.device) -> str:
    """The number format that a model will have on a device; arguments and errors as for `choose_precision`."""
    return family_of(source.record, source.name).choose_precision(precision, device)


def describe_model(source: ModelSource) -> RestorerInfo:
    """What is known of a model without reading its weights, for `--dry-run`.

    Args:
        source: from `find_model`.
    Raises:
        ModelError: its configuration does not make a model.
    """
    return _with_files(family_of(source.record, source.name).describe(source), source)


def _with_files(info: RestorerInfo, source: ModelSource) -> RestorerInfo:
    parts = (source.folder, source.adapter, source.vae)
    return replace(info, files=tuple(part for part in parts if part is not None))


def load_trainable(
    source: ModelSource,
    device: torch.device,
    *,
    start_from: str | None = None,
    lora: LoraOptions | None = None,
    precision: str = "fp32",
    seed: int = 0,
    native_px: int | None = None,
    scale: float | None = None,
) -> Trainable:
    """Read the model to train.

    Args:
        source: from `find_trainable`.
        device: where to train.
        start_from: weights to begin from; None begins with new ones, drawn from the seed.
        lora: the adapters; None takes the defaults of the family.
        precision: "fp32" or "bf16": of frozen weights. What learns is float32.
        seed: of new weights.
        native_px: side of the square image that it will be trained at.
        scale: the enlargement that it will be trained for; both go into `omgsr.json`.
    Raises:
        ModelError: the files do not make a model, or the weights to begin from do not fit.
    """
    changes = {} if scale is None else {"scale": scale}
    source = replace(source, record=source.record.model_copy(update=changes))
    # New weights come from the seed alone, whatever was drawn before, and change nothing that is drawn after.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return family_of(source.record, source.name).load_trainable(
            source, device, precision, lora=lora, start_from=start_folder(start_from), native_px=native_px
        )


@dataclass(frozen=True)
class NamedEncoder:
    """An encoder by its name, which can be sent to another process; arguments and errors as for `load_encoder`."""

    model: str | None = None
    base: str | None = None
    vae: str | None = None

    def load(self, device: str | None) -> ImageEncoder:
        """Read it."""
        return load_encoder(self.model, base=self.base, vae=self.vae, device=device)


def load_encoder(
    model: str | None = None, *, base: str | None = None, vae: str | None = None, device: str | None = None
) -> ImageEncoder:
    """Load the encoder and the schedule of a model, and nothing else of it.

    Args:
        model: preset's name, model folder or hub repository; None takes the default preset.
        base: folder or hub repository of a pre-trained model, instead of `model`.
        vae: another autoencoder for it: a folder of diffusers' AutoencoderKL or AutoencoderTiny, or the encoder of
            TAESD as a single safetensors file. Without a base, the schedule is that of FLUX.1
            where the latents have 16 channels, and Stable Diffusion's otherwise.
        device: as for `choose_device`.
    Raises:
        ModelError: something is missing or of a kind that is not known.
        UsageError: the arguments do not go together.
        DeviceError: the device is not there.
    """
    if model is not None and base is not None:
        raise UsageError("--model and --base were both given", "leave one of them out")
    place = choose_device(device)
    if vae is not None:
        encode, channels, multiple = load_vae_encoder(Path(vae), place)
        named = model or base
        if named:
            schedule = load_schedule(find_base_folder(named, parts=("vae",)))
        else:
            schedule = FlowSchedule() if channels == _FLOW_CHANNELS else DdpmSchedule()
        title = vae if named is None else f"{named} with {vae}"
        return ImageEncoder(title, encode, schedule, multiple, place, files=(Path(vae),))
    name = model or base or DEFAULT_PRESET
    folder = find_base_folder(name, parts=("vae",))
    record = load_record(folder)
    if record is None:
        return load_diffusers_encoder(name, folder, place)
    return family_of(record, str(folder)).load_encoder(ModelSource(name, folder, None, record, ()), place)


def save_merged(
    source: ModelSource,
    folder: Path,
    *,
    half: bool = False,
    text_encoder: bool = False,
    finish: Callable[[Path], None] | None = None,
) -> None:
    """Write a model whose family has adapters as a folder that `load_restorer` reads without an adapter.

    The folder appears whole or not at all: it is written beside and renamed.

    Args:
        source: from `find_model`.
        folder: must not exist yet.
        half: write 16 bits where the base has 32.
        text_encoder: copy the text encoder and tokenizer too, so that the folder takes any prompt.
        finish: given the folder that is whole but for its name, to add what else belongs into it.
    Raises:
        ModelError: the folder exists or cannot be written, the files do not make a model, the text encoder was
            asked for and is missing, or a weight is not finite, as where fp16 is too narrow for it.
    """
    family = family_of(source.record, source.name)
    if folder.exists():
        raise ModelError(f"{folder} already exists", hint="give another name, or remove it first")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with partial_folder(folder) as beside:
            family.save_merged(source, beside, half=half, text_encoder=text_encoder)
            apply_umask(beside)
            for path in beside.rglob("*.safetensors"):
                check_file_finite(path)
            if finish is not None:
                finish(beside)
            os.rename(beside, folder)
    except (OSError, SafetensorError) as error:
        hint = "make room, or write to another disk"
        raise ModelError(f"{folder} cannot be written: {write_reason(error)}", hint) from error


def save_standalone(source: ModelSource, folder: Path) -> None:
    """Write a model as a folder that `load_restorer` reads without anything else; an adapter is added in float32.

    Args:
        source: from `find_model`.
        folder: must not exist yet.
    Raises:
        ModelError: the model cannot be read, a weight is not finite, or the folder exists or cannot be written.
    """
    family = family_of(source.record, source.name)
    if family.adapter_parts:
        save_merged(source, folder)
        return
    try:
        folder.mkdir(parents=True)
        for path in (*family.find_files(source.folder), source.folder / "config.json", source.folder / RECORD_NAME):
            shutil.copyfile(path, folder / path.name)
            if path.suffix == ".safetensors":
                check_file_finite(folder / path.name)
    except OSError as error:
        raise ModelError(f"{source.folder} cannot be copied to {folder}: {reason_of(error)}") from error
