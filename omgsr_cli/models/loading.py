"""Getting a `Restorer` from a name, a folder or a hub repository, and writing a merged one."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from safetensors import SafetensorError

from omgsr_cli.errors import DeviceError, ModelError, write_reason
from omgsr_cli.files.atomic import partial_folder
from omgsr_cli.models.base import Restorer, RestorerInfo
from omgsr_cli.models.devices import choose_device, choose_precision, is_out_of_memory, skipped_devices
from omgsr_cli.models.families import family_of
from omgsr_cli.models.sources import ModelSource, find_model
from omgsr_cli.models.weight_files import apply_umask, check_file_finite


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
    Returns:
        The model; its `notes` say what a person should know.
    Raises:
        ModelError, DeviceError, UsageError, OmgsrError: the cheap checks come before anything large is read.
    """
    # An absent device is told before a model is looked for, which may have to be fetched.
    place = choose_device(device)
    if precision != "auto":
        choose_precision(precision, place)
    source = find_model(
        model,
        base=base,
        adapter=adapter,
        mid_timestep=mid_timestep,
        prompt=prompt,
        process_size=process_size,
        vae=vae,
    )
    return load_found(source, device=device, precision=precision)


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
            f"memory is short to load {source.name} in {chosen_precision} on {chosen_device}",
            "close other programs, or give a narrower --precision or another --device",
        ) from error
    restorer.info = _with_files(restorer.info, source)
    restorer.notes = (*restorer.notes, *skipped_devices(device))
    if precision == "auto" and chosen_precision != "fp32":
        restorer.in_fp32 = cache(lambda: load_found(source, device=device, precision="fp32"))
    return restorer


def suitable_precision(source: ModelSource, precision: str, device: torch.device) -> str:
    """The number format that a model will have on a device; arguments and errors as for `choose_precision`."""
    return family_of(source.record, source.name).choose_precision(precision, device)


def describe_model(source: ModelSource) -> RestorerInfo:
    """What can be asked of a model without reading its weights, for `--dry-run`.

    Args:
        source: from `find_model`.
    Raises:
        ModelError: its configuration does not make a model.
    """
    return _with_files(family_of(source.record, source.name).describe(source), source)


def _with_files(info: RestorerInfo, source: ModelSource) -> RestorerInfo:
    parts = (source.folder, source.adapter, source.vae)
    return replace(info, files=tuple(part for part in parts if part is not None))


def save_merged(
    restorer: Restorer,
    folder: Path,
    *,
    half: bool = False,
    text_encoder: bool = False,
    finish: Callable[[Path], None] | None = None,
) -> None:
    """Write a loaded model whose family has adapters as a folder that `load_restorer` reads without an adapter.

    The folder appears whole or not at all: it is written beside and renamed.

    Args:
        restorer: with its adapter merged; no use for anything else afterwards where `half` is asked for.
        folder: must not exist yet.
        half: write float16, not the number format that it was loaded in.
        text_encoder: copy the text encoder and tokenizer too, so that the folder takes any prompt.
        finish: given the folder that is whole but for its name, to add what else belongs into it.
    Raises:
        ModelError: the folder exists or cannot be written, the model is of another family, the text encoder was
            asked for and is not there, or a weight is not finite, as where fp16 is too narrow for it.
    """
    family = family_of(restorer.info, restorer.info.name)
    if folder.exists():
        raise ModelError(f"{folder} already exists", hint="give another name, or remove it first")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with partial_folder(folder) as beside:
            family.save_merged(restorer, beside, half=half, text_encoder=text_encoder)
            apply_umask(beside)
            for path in beside.rglob("*.safetensors"):
                check_file_finite(path)
            if finish is not None:
                finish(beside)
            os.rename(beside, folder)
    except (OSError, SafetensorError) as error:
        hint = "make room, or write to another disk"
        raise ModelError(f"{folder} cannot be written: {write_reason(error)}", hint) from error
