"""The SD family: UNet2DConditionModel and AutoencoderKL, as in Stable Diffusion 1.x and 2.x."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omgsr_cli.errors import ModelError
from omgsr_cli.models.adapter_files import SD_PARTS
from omgsr_cli.models.base import RestorerInfo
from omgsr_cli.models.devices import PRECISIONS, multiplies_in_bf16
from omgsr_cli.models.family import ModelSource
from omgsr_cli.models.latent import (
    SEQUENCE,
    LatentRestorer,
    LatentTrainable,
    check_texts,
    check_widths,
    describe_latents,
    read_features,
    refuse_unchanged,
    run_text_encoder,
    write_merged_rest,
)
from omgsr_cli.models.libraries import explained_imports, quiet_libraries
from omgsr_cli.models.lora import LoraOptions, merge_lora
from omgsr_cli.models.record import read_json
from omgsr_cli.models.weight_files import check_finite, load_part, weight_variant
from omgsr_cli.presets import PRESETS
from omgsr_cli.schedules import DdpmSchedule
from omgsr_cli.transfer import upload

_STEP_BYTES_PER_CHANNEL = 160
"""Forty float32 tensors of the UNet's first level. With the 320 channels of SD 2.1-base, 26 tensors were counted at the
peak; convolutions need additional workspace."""

_CONDITIONS = (
    "addition_embed_type",
    "class_embed_type",
    "num_class_embeds",
    "encoder_hid_dim_type",
    "time_cond_proj_dim",
)
"""Configuration keys of conditions other than the timestep and the prompt."""
_OTHER_UNETS = (
    "give a model of Stable Diffusion 1.x or 2.x: SDXL, distilled and image-conditioned ones are not supported"
)
_TEXTS = ("text_encoder", "tokenizer")

_TARGETS = (
    *("conv1", "conv2", "conv_in", "conv_shortcut", "conv", "conv_out"),
    *("to_k", "to_q", "to_v", "to_out.0"),
)
_PUBLISHED = PRESETS["omgsr-s-512"]
SD_LORA = LoraOptions(_PUBLISHED.vae_rank, _PUBLISHED.backbone_rank, vae_targets=_TARGETS, backbone_targets=_TARGETS)
"""The published adapters of the family, for both networks."""


class SdRestorer(LatentRestorer):
    """A `LatentRestorer` whose UNet predicts the noise or v, as the schedule expects."""

    backbone_part = "unet"

    def predict(self, noisy_latent: Tensor, timesteps: int | Tensor) -> Tensor:
        """Predict noise or v with the UNet; see `LatentRestorer`. Any height and width are supported."""
        if isinstance(timesteps, int):
            timesteps = torch.full((len(noisy_latent),), timesteps, device=noisy_latent.device)
        embeds = self.features[SEQUENCE].expand(len(noisy_latent), -1, -1)
        prediction: Tensor = self.backbone(
            noisy_latent.to(self.dtype), upload(timesteps, noisy_latent.device), encoder_hidden_states=embeds
        ).sample
        return prediction.to(noisy_latent.dtype)


def describe_sd(source: ModelSource) -> RestorerInfo:
    """Describe a model of the SD family from its configuration, without reading weights.

    Raises:
        ModelError: the parts do not match, or the files for the prompt are missing.
    """
    unet, vae = (read_json(source.folder / part / "config.json") for part in ("unet", "vae"))
    if unet.get("in_channels") != vae.get("latent_channels"):
        raise ModelError(
            f"{source.folder}: the UNet takes {unet.get('in_channels')} channels, "
            f"the VAE gives {vae.get('latent_channels')}",
            hint="inpainting and latent-upscaling models are not supported",
        )
    _check_unet_config(unet, source.folder / "unet")
    # The UNet takes latents of any size; the published code also only requires complete latent elements.
    bytes_per_element = _STEP_BYTES_PER_CHANNEL * int(unet["block_out_channels"][0])
    info = describe_latents(source, "sd", "unet", vae, 1, bytes_per_element)
    if _find_embeds(source) is None:
        check_texts(source, _TEXTS)
    return info


def _check_unet_config(config: Mapping[str, Any], where: Path) -> None:
    """Reject a UNet that predicts more than one latent, or has conditions other than the timestep and the prompt."""
    levels, channels = config.get("block_out_channels"), config.get("in_channels")
    if not (isinstance(levels, list) and levels and all(type(each) is int and each > 0 for each in levels)):
        raise ModelError(f"{where}: block_out_channels is {levels!r}, not a list of channels")
    if config.get("out_channels", channels) != channels:
        raise ModelError(f"{where}: takes {channels} channels and gives {config['out_channels']}", _OTHER_UNETS)
    for key in _CONDITIONS:
        if config.get(key) is not None:
            raise ModelError(f"{where}: {key} is {config[key]!r}, which is not supported", _OTHER_UNETS)


def vae_precision(precision: str, force_upcast: bool, device: torch.device) -> str:
    """Choose the number format of the VAE: a wider one than fp16, which overflows if `force_upcast` is set.

    Args:
        precision: number format of the UNet.
        force_upcast: value from the VAE's configuration.
        device: bf16 is chosen if the device multiplies in it, otherwise fp32.
    """
    if precision != "fp16" or not force_upcast:
        return precision
    return "bf16" if multiplies_in_bf16(device) else "fp32"


def load_sd(source: ModelSource, device: torch.device, precision: str) -> SdRestorer:
    """Load a model of the SD family onto the device, and merge its adapter if it has one.

    The adapter is added in float32, and the sum is then rounded once to the model's number format.

    Args:
        source: from `find_model`.
        device: device that the model runs on.
        precision: "fp32", "bf16" or "fp16".
    Raises:
        ModelError: the files are not a complete model, or the adapter does not match or changes no weight.
        OmgsrError: diffusers cannot be imported because of a broken torchvision.
    """
    info, schedule = describe_sd(source), _schedule_of(source)
    with quiet_libraries():
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        unet_dtype = PRECISIONS["fp32" if source.adapter else precision]
        # With fp16 the VAE's type depends on its configuration, so it is read in the widest.
        vae_dtype = PRECISIONS["fp32" if source.adapter or precision == "fp16" else precision]
        features = _find_embeds(source) or _encode(source)
        unet = load_part(UNet2DConditionModel, source.folder, "unet", unet_dtype)
        vae = load_part(AutoencoderKL, source.folder, "vae", vae_dtype)
        # diffusers defaults to true if the file has no value, and saves that.
        force_upcast = read_json(source.folder / "vae" / "config.json").get("force_upcast") is True
        vae.register_to_config(force_upcast=force_upcast)
        check_widths(source, features, unet, {SEQUENCE: "cross_attention_dim"})
        if source.adapter is not None:
            encoder_part, unet_part = SD_PARTS
            changed = merge_lora(vae.encoder, source.adapter / encoder_part)
            refuse_unchanged(source.adapter, changed + merge_lora(unet, source.adapter / unet_part))
        unet.to(device, PRECISIONS[precision])
        vae.to(device, PRECISIONS[vae_precision(precision, force_upcast, device)])
        if device.type == "cpu":
            # Convolutions on CPUs use channels last, and copy tensors with another layout.
            vae.to(memory_format=torch.channels_last)
    return SdRestorer(unet, vae, schedule, features, info, precision, source)


def _schedule_of(source: ModelSource) -> DdpmSchedule:
    config = source.record.schedule or read_json(source.folder / "scheduler" / "scheduler_config.json")
    name = str(config.get("_class_name", ""))
    if name.startswith("FlowMatch"):
        raise ModelError(f"{source.folder}: the scheduler {name} does not go with a model of the SD family")
    schedule = DdpmSchedule.from_config(config)
    schedule.check_timestep(source.record.mid_timestep)
    return schedule


def _find_embeds(source: ModelSource) -> dict[str, Tensor] | None:
    return read_features([source.folder], source.record.prompt or "", [SEQUENCE])


def _encode(source: ModelSource) -> dict[str, Tensor]:
    """The text encoder's last hidden state, (1, tokens, width) float32."""
    with explained_imports():
        from transformers import CLIPTextModel, CLIPTokenizer
    states = run_text_encoder(source, CLIPTextModel, "text_encoder", CLIPTokenizer, dtype=torch.float32)
    check_finite([("last_hidden_state", states[0])], source.folder / "text_encoder")
    return {SEQUENCE: states[0].float()}


def save_sd(source: ModelSource, folder: Path, *, half: bool, text_encoder: bool) -> None:
    """Write a diffusers folder with a record and the prompt's embedding; same arguments as `Family.save_merged`."""
    restorer = load_sd(source, torch.device("cpu"), "fp32")
    if text_encoder:
        weight_variant(source.folder, "text_encoder", "model")
    networks: tuple[tuple[str, Any], ...] = (("unet", restorer.backbone), ("vae", restorer.vae))
    with quiet_libraries():
        for part, network in networks:
            (network.half() if half else network).save_pretrained(folder / part, safe_serialization=True)
    write_merged_rest(source, folder, restorer.features, torch.float32, _TEXTS if text_encoder else ())


def load_sd_trainable(
    source: ModelSource, device: torch.device, precision: str, options: LoraOptions | None, start: Path | None
) -> LatentTrainable:
    """Load the base model and add adapters: new ones, or those in `start`.

    Raises:
        ModelError: the files are not a complete model, or the adapters do not match it.
    """
    return LatentTrainable(load_sd(source, device, precision), SD_PARTS, options, SD_LORA, start)
