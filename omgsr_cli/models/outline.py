"""A model to train without its weights: shapes only, for predictions."""

from __future__ import annotations

import torch

from omgsr_cli.models.lora import LoraOptions
from omgsr_cli.models.record import read_json
from omgsr_cli.models.sources import ModelSource
from omgsr_cli.models.trainable import Trainable
from omgsr_cli.schedules import DdpmSchedule

_TOKENS = 77
"""Of a prompt's embedding."""


def build_outline(source: ModelSource, lora: LoraOptions | None, precision: str, device: torch.device) -> Trainable:
    """Build the model that `load_trainable` reads, with the values left out.

    Call it under `FakeTensorMode`: what is built takes no memory then, and is no use for computing.

    Args:
        source: from `find_trainable`.
        lora: the adapters; None takes the defaults of the family.
        precision: "fp32" or "bf16": of frozen weights.
        device: where it is going to be trained.
    Raises:
        ModelError: its configuration does not make a model.
    """
    if source.record.family == "tiny":
        return _outline_tiny(source, device)
    return _outline_sd(source, lora or LoraOptions(), torch.bfloat16 if precision == "bf16" else torch.float32, device)


def _outline_tiny(source: ModelSource, device: torch.device) -> Trainable:
    from omgsr_cli.models.tiny import TinyConfig, TinyNetwork, TinyRestorer, describe_tiny
    from omgsr_cli.models.tiny_training import TinyTrainable

    info = describe_tiny(source.folder, source.record, source.name)
    network = TinyNetwork(TinyConfig.model_validate(read_json(source.folder / "config.json"))).to(device)
    return TinyTrainable(TinyRestorer(network, DdpmSchedule(), info, device, "fp32"), source.record)


def _outline_sd(source: ModelSource, lora: LoraOptions, dtype: torch.dtype, device: torch.device) -> Trainable:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from omgsr_cli.models.sd import SdRestorer, describe_sd
    from omgsr_cli.models.sd_training import SdTrainable

    unet_config, vae_config = (read_json(source.folder / part / "config.json") for part in ("unet", "vae"))
    unet = UNet2DConditionModel.from_config(unet_config).to(device, dtype).requires_grad_(False)
    vae = AutoencoderKL.from_config(vae_config).to(device, dtype).requires_grad_(False)
    embeds = torch.zeros(1, _TOKENS, int(unet_config["cross_attention_dim"]), device=device)
    restorer = SdRestorer(unet, vae, DdpmSchedule(), embeds, describe_sd(source), "fp32", source)
    return SdTrainable(restorer, lora, source.record)
