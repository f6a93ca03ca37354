"""Training the SD family: LoRA in the VAE's encoder and in the UNet; the decoder and all else stays as it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from omgsr_cli.models.base import Restorer
from omgsr_cli.models.libraries import quiet_libraries
from omgsr_cli.models.lora import LoraOptions, inject_lora, load_lora
from omgsr_cli.models.record import ModelRecord, read_json, write_record
from omgsr_cli.models.sd import SdRestorer, describe_sd, load_sd
from omgsr_cli.models.sd_family import SdFamily
from omgsr_cli.models.sources import ModelSource, locate
from omgsr_cli.models.trainable import outline_schedule

_TOKENS = 77
"""Of a prompt's embedding."""


class SdTrainable:
    """A `Trainable` of the SD family. The prompt's embedding was computed once, when the restorer was read."""

    def __init__(self, restorer: SdRestorer, options: LoraOptions, record: ModelRecord) -> None:
        self.restorer: Restorer = restorer
        self._sd = restorer
        encoder, unet = restorer.vae.encoder, restorer.unet
        with quiet_libraries():
            self._adapters = dict(
                zip(
                    SdFamily.adapter_parts,
                    (
                        inject_lora(encoder, options.vae_rank, options.vae_alpha, options.vae_targets),
                        inject_lora(unet, options.backbone_rank, options.backbone_alpha, options.backbone_targets),
                    ),
                    strict=True,
                )
            )
        self.networks: nn.Module = nn.ModuleDict({"vae": restorer.vae, "unet": unet})
        self._record = record

    def trained(self) -> dict[str, nn.Parameter]:
        """Give the adapters' weights."""
        return {
            f"{part}.{name}": weight
            for part, adapter in self._adapters.items()
            for name, weight in adapter.named_parameters()
            if "lora_" in name
        }

    def encode(self, image: Tensor, draws: Sequence[torch.Generator]) -> Tensor:
        """(B, 3, H, W) in [-1, 1] to (B, C, H/8, W/8), sampled from the posterior."""
        return self._sd.encode(image, list(draws))

    @torch.no_grad()
    def encode_clean(self, image: Tensor, draws: Sequence[torch.Generator]) -> Tensor:
        """Sample the posterior of the encoder without its adapter."""
        with self._adapters[SdFamily.adapter_parts[0]].disable_adapter():
            return self._sd.encode(image, list(draws))

    def denoise(self, noisy_latent: Tensor, timesteps: Tensor) -> Tensor:
        """Ask the UNet with its adapter."""
        prediction = self._sd.predict(noisy_latent, timesteps)
        return self._sd.schedule.clean_latent(noisy_latent, prediction, timesteps)

    def checkpoint_gradients(self) -> None:
        """Keep only the blocks' inputs, in both networks."""
        networks: tuple[Any, ...] = (self._sd.unet, self._sd.vae)
        for network in networks:
            network.enable_gradient_checkpointing()

    def share_backbone(self, share: Callable[[nn.Module], None], device: torch.device) -> None:
        """Share the UNet's weights out but for its adapter's; the VAE goes to the device whole."""
        share(self._sd.unet)
        self.networks.to(device)
        self._sd.device = device
        self._sd.prompt_embeds = self._sd.prompt_embeds.to(device)

    def save(self, folder: Path) -> None:
        """Write the adapters in the published layout, and `omgsr.json`."""
        for part, adapter in self._adapters.items():
            adapter.save_pretrained(str(folder / part))
        write_record(self._record, folder)

    def load(self, folder: Path) -> None:
        """Read adapters of the same ranks and layers."""
        for part, adapter in self._adapters.items():
            load_lora(adapter, folder / part)


def load_sd_trainable(
    source: ModelSource, device: torch.device, precision: str, options: LoraOptions, start_from: Path | None
) -> SdTrainable:
    """Read the base model and put adapters into it, new ones or those to start from.

    Raises:
        ModelError: the files do not make a model, or the adapters do not fit it.
    """
    restorer, record = load_sd(source, device, precision), source.record
    made_from = record.model_copy(update={"made_from": (source.name,), "base": locate(source)})
    trainable = SdTrainable(restorer, options, made_from)
    if start_from is not None:
        trainable.load(start_from)
    return trainable


def outline_sd(source: ModelSource, device: torch.device, precision: str, options: LoraOptions) -> SdTrainable:
    """Build the networks by their configurations, without their weights."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    unet_config, vae_config = (read_json(source.folder / part / "config.json") for part in ("unet", "vae"))
    usual = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        # Adapters are moved beside their layers, which tensors without values cannot be, unless they are nowhere yet.
        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(unet_config).requires_grad_(False)
            vae = AutoencoderKL.from_config(vae_config).requires_grad_(False)
    finally:
        torch.set_default_dtype(usual)
    embeds = torch.zeros(1, _TOKENS, int(unet_config["cross_attention_dim"]), dtype=dtype, device=device)
    restorer = SdRestorer(unet, vae, outline_schedule(), embeds, describe_sd(source), "fp32", source)
    with torch.device("meta"):
        trainable = SdTrainable(restorer, options, source.record)
    _settle(trainable.networks, device)
    restorer.device, restorer.prompt_embeds = device, embeds
    return trainable


def _settle(network: nn.Module, device: torch.device) -> None:
    """Give every weight a place; where values count, as in timing, zeros are as quick as others."""
    for module in network.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                module._parameters[name] = nn.Parameter(torch.zeros_like(weight, device=device), weight.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.zeros_like(buffer, device=device)
