"""Load models for inference, training or encoding, and write them as self-contained folders."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch
from safetensors import SafetensorError

from omgsr_cli.errors import DeviceError, ModelError, UsageError, write_reason
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
from omgsr_cli.models.record import load_record
from omgsr_cli.models.sources import find_base_folder, find_model, start_folder
from omgsr_cli.models.weight_files import apply_umask, check_file_finite
from omgsr_cli.options import ModelOptions, build_options
from omgsr_cli.presets import DEFAULT_PRESET


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
    """Load a model.

    Args:
        model: a preset's name, a folder (merged by omgsr, or in the Diffusers layout) or a hub repository OWNER/NAME;
            None uses the default preset, or base and adapter. With `base`, only a preset's name is allowed.
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
        The model. It describes itself in `info`, and has notes for the user in `notes`.
    Raises:
        ModelError: a file is missing, unreadable or of an unknown kind.
        DeviceError: the device does not exist or ran out of memory.
        UsageError: a value is out of range, or arguments exclude each other.
    """
    # Check the device first, because finding a model may fetch it.
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
    """Load a model from `find_model`; arguments and errors as for `load_restorer`."""
    chosen_device = choose_device(device)
    chosen_precision = suitable_precision(source, precision, chosen_device)
    try:
        restorer = family_of(source.record, source.name).load(source, chosen_device, chosen_precision)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise DeviceError(
            f"{source.name} does not fit in the memory of {chosen_device} in {chosen_precision}",
            "close other programs, or use a smaller --precision or another --device",
        ) from error
    if chosen_device.type == "cpu":
        keep_freed_memory()
    if chosen_device.type == "cuda" and chosen_precision == "fp32":
        # Convolutions would use TF32, with the exponent of fp32 and the 10 bits of fp16.
        torch.backends.cudnn.allow_tf32 = False
    restorer.info = replace(restorer.info, files=source.files)
    restorer.notes = (*restorer.notes, *skipped_devices(device))
    if precision == "auto" and chosen_precision != "fp32":
        restorer.in_fp32 = cache(lambda: load_found(source, device=device, precision="fp32"))
    return restorer


def suitable_precision(source: ModelSource, precision: str, device: torch.device) -> str:
    """The number format of a model on a device; arguments and errors as for `choose_precision`."""
    return family_of(source.record, source.name).choose_precision(precision, device)


def describe_model(source: ModelSource) -> RestorerInfo:
    """The properties of a model, without reading its weights, for `--dry-run`; errors as for `Family.describe`."""
    return replace(family_of(source.record, source.name).describe(source), files=source.files)


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
    """Load a model for training.

    Args:
        source: from `find_trainable`.
        device: device for training.
        start_from: folder or preset of the initial weights; None draws new ones from the seed.
        lora: the adapters; None uses the defaults of the family.
        precision: "fp32" or "bf16", for frozen weights; trained weights are float32.
        seed: seed of new weights.
        native_px: side of the square training images, which is that of a model's blended tiles, for `omgsr.json`.
        scale: magnification of the training, for `omgsr.json`.
    Raises:
        ModelError: the files are not a valid model, or the initial weights do not match.
    """
    family = family_of(source.record, source.name)
    changes: dict[str, object] = {} if scale is None else {"scale": scale}
    if native_px is not None and family.step_tiling == "blended":
        changes["native_tile_px"] = native_px
    source = replace(source, record=source.record.model_copy(update=changes))
    # New weights depend on the seed only, and drawing them does not change later random numbers.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return family.load_trainable(source, device, precision, lora, start_folder(start_from))


@dataclass(frozen=True)
class NamedEncoder:
    """The name of an encoder, which can be sent to another process; arguments and errors as for `load_encoder`."""

    model: str | None = None
    base: str | None = None
    vae: str | None = None

    def load(self, device: str | None) -> ImageEncoder:
        """Load the encoder."""
        return load_encoder(self.model, base=self.base, vae=self.vae, device=device)


def load_encoder(
    model: str | None = None, *, base: str | None = None, vae: str | None = None, device: str | None = None
) -> ImageEncoder:
    """Load only the encoder and the schedule of a model.

    Args:
        model: name of a preset, model folder or hub repository; None uses the default preset.
        base: folder or hub repository of a pre-trained model, instead of `model`.
        vae: another autoencoder: a folder of diffusers' AutoencoderKL or AutoencoderTiny, or TAESD's encoder as a
            single safetensors file. Without a model, the schedule is that of FLUX.1 if the latents have 16 channels,
            and otherwise that of Stable Diffusion.
        device: as for `choose_device`.
    Raises:
        ModelError: a part is missing or of an unknown kind.
        UsageError: the arguments exclude each other.
        DeviceError: the device does not exist.
    """
    if model is not None and base is not None:
        raise UsageError("--model and --base were both given", "leave one of them out")
    place = choose_device(device)
    if vae is not None:
        named = model or base
        schedule = load_schedule(find_base_folder(named, parts=("vae",))) if named else None
        return load_vae_encoder(f"{named} with {vae}" if named else vae, Path(vae), schedule, place)
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
    """Write a model as a self-contained folder for `load_restorer`; an adapter is merged in float32.

    The folder is written under a temporary name and renamed, so it is complete or absent.

    Args:
        source: from `find_model`.
        folder: must not exist yet.
        half: write 16 bits where the base has 32.
        text_encoder: copy the text encoder and tokenizer too, so that the folder takes any prompt.
        finish: adds further files to the folder before it is renamed.
    Raises:
        ModelError: the folder exists or cannot be written, the files do not make a model, the text encoder was
            requested and is missing, or a weight is not finite, perhaps because fp16 is too narrow for it.
    """
    family = family_of(source.record, source.name)
    if folder.exists():
        raise ModelError(f"{folder} already exists", hint="choose another name, or remove it first")
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
        hint = "free some space, or write to another disk"
        raise ModelError(f"{folder} cannot be written: {write_reason(error)}", hint) from error
