"""Writing a model as one folder that runs by itself: without its base, its adapter's folder and peft."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from omgsr_cli.errors import ModelError
from omgsr_cli.models.loading import load_found, save_merged
from omgsr_cli.models.record import RECORD_NAME
from omgsr_cli.models.sd import SdRestorer
from omgsr_cli.models.sources import ModelSource

_TINY_WEIGHTS = "model.safetensors"
_TINY_CONFIG = "config.json"
_KEPT_WIDE = "latents."
"""The scales of tiny's latent space stay in float32: an error there is an error of brightness."""


def save_standalone(source: ModelSource, folder: Path, *, half: bool = False, text_encoder: bool = False) -> None:
    """Write a model as a folder that `load_restorer` reads without anything else.

    An adapter is added in float32, and the sum rounded once where `half` asks for it.

    Args:
        source: from `find_model`.
        folder: must not exist yet.
        half: write float16, half the size.
        text_encoder: copy the text encoder too, so that the folder takes any prompt; for a family that has one.
    Raises:
        ModelError: the model cannot be read, or the folder exists or cannot be written.
    """
    if source.record.family == "tiny":
        _copy_tiny(source.folder, folder, half=half)
        return
    restorer = load_found(source, device="cpu", precision="fp32")
    assert isinstance(restorer, SdRestorer), "every other family was handled above"
    if half:
        networks: tuple[nn.Module, ...] = (restorer.unet, restorer.vae)
        for network in networks:
            network.to(torch.float16)
    save_merged(restorer, folder, text_encoder=text_encoder)


def _copy_tiny(source: Path, folder: Path, *, half: bool) -> None:
    if folder.exists():
        raise ModelError(f"{folder} already exists", hint="give another name, or remove it first")
    try:
        weights = load_file(source / _TINY_WEIGHTS)
        narrow = torch.float16 if half else None
        folder.mkdir(parents=True)
        save_file(
            {name: value if name.startswith(_KEPT_WIDE) else value.to(narrow) for name, value in weights.items()},
            folder / _TINY_WEIGHTS,
        )
        for name in (_TINY_CONFIG, RECORD_NAME):
            shutil.copyfile(source / name, folder / name)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{source} cannot be written as {folder}: {error}") from error
