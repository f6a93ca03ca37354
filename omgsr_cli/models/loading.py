"""Getting a `Restorer` from a name, a folder or a hub repository, and writing a merged one."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import torch

from omgsr_cli.errors import ModelError, UsageError
from omgsr_cli.geometry import round_up
from omgsr_cli.models.base import Restorer, RestorerInfo
from omgsr_cli.models.devices import choose_device, choose_precision
from omgsr_cli.models.libraries import quiet_libraries
from omgsr_cli.models.prompts import save_prompt_embeds
from omgsr_cli.models.record import write_record
from omgsr_cli.models.sd import SdRestorer, describe_sd, load_sd
from omgsr_cli.models.sources import ModelSource, find_model, weight_variant


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
    Returns:
        The model; its `notes` say what a person should know.
    Raises:
        ModelError, DeviceError, UsageError, OmgsrError: the cheap checks come before anything large is read.
    """
    # An absent device is told before a model is looked for, which may have to be fetched.
    choose_precision(precision, choose_device(device))
    source = find_model(
        model, base=base, adapter=adapter, mid_timestep=mid_timestep, prompt=prompt, process_size=process_size
    )
    return load_found(source, device=device, precision=precision)


def load_found(source: ModelSource, *, device: str | None = None, precision: str = "auto") -> Restorer:
    """Load a model that `find_model` found; arguments and errors as for `load_restorer`."""
    chosen_device = choose_device(device)
    chosen_precision = suitable_precision(source, precision, chosen_device)
    if source.record.family == "sd":
        return load_sd(source, chosen_device, chosen_precision)
    from omgsr_cli.models.tiny import load_tiny

    restorer = load_tiny(source.folder, describe_model(source), chosen_device, chosen_precision)
    restorer.notes = source.notes
    return restorer


def suitable_precision(source: ModelSource, precision: str, device: torch.device) -> str:
    """The number format that a model will have on a device; arguments and errors as for `choose_precision`."""
    # Tiny's tiles are exact and its time is short; in bf16 on a CPU they would be neither exact nor much shorter.
    if precision == "auto" and device.type == "cpu" and source.record.family == "tiny":
        return "fp32"
    return choose_precision(precision, device)


def describe_model(source: ModelSource) -> RestorerInfo:
    """What can be asked of a model without reading its weights, for `--dry-run`.

    Args:
        source: from `find_model`.
    Raises:
        ModelError: its configuration does not make a model.
    """
    if source.record.family == "sd":
        return describe_sd(source)
    from omgsr_cli.models.tiny import describe_tiny

    info = describe_tiny(source.folder, source.record, source.name)
    if info.native_tile_px % info.multiple_of_px:
        raise UsageError(
            f"process size {info.native_tile_px} is not a multiple of {info.multiple_of_px}",
            f"try --process-size {round_up(info.native_tile_px, info.multiple_of_px)}",
        )
    return info


def save_merged(restorer: Restorer, folder: Path, *, text_encoder: bool = False) -> None:
    """Write a loaded model of the SD family as a folder that `load_restorer` reads without an adapter.

    The folder appears whole or not at all: it is written beside and renamed.

    Args:
        restorer: with its adapter merged; the weights are written in the number format it was loaded in.
        folder: must not exist yet.
        text_encoder: copy the text encoder and tokenizer too, so that the folder takes any prompt.
    Raises:
        ModelError: the folder exists or cannot be written, the model is of another family, or the text encoder was
            asked for and is not there.
    """
    if not isinstance(restorer, SdRestorer):
        raise ModelError(f"a model of the family {restorer.info.family!r} has nothing to merge")
    if folder.exists():
        raise ModelError(f"{folder} already exists", hint="give another name, or remove it first")
    if text_encoder:
        weight_variant(restorer.source.folder, "text_encoder")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            _write_parts(restorer, beside, text_encoder=text_encoder)
            # mkdtemp makes a folder that only its owner can read; the result has the usual permissions.
            beside.chmod(0o755)
            os.rename(beside, folder)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise
    except OSError as error:
        raise ModelError(f"{folder} cannot be written: {error.strerror or error}") from error


def _write_parts(restorer: SdRestorer, folder: Path, *, text_encoder: bool) -> None:
    source, info = restorer.source, restorer.info
    with quiet_libraries():
        restorer.unet.save_pretrained(folder / "unet", safe_serialization=True)
        restorer.vae.save_pretrained(folder / "vae", safe_serialization=True)
    save_prompt_embeds(restorer.prompt_embeds, info.prompt or "", folder)
    made_from = (str(source.name),) if source.adapter is None else (str(source.name), source.adapter.name)
    changes = {
        "mid_timestep": info.mid_timestep,
        "native_tile_px": info.native_tile_px,
        "schedule": None,
        "made_from": made_from,
    }
    write_record(source.record.model_copy(update=changes), folder)
    (folder / "scheduler").mkdir()
    config = json.dumps(restorer.schedule.to_config(), indent=2)
    (folder / "scheduler" / "scheduler_config.json").write_text(config + "\n", encoding="utf-8")
    for part in ("text_encoder", "tokenizer") if text_encoder else ():
        shutil.copytree(source.folder / part, folder / part)
