"""The SD family: UNet2DConditionModel and AutoencoderKL, as in Stable Diffusion 1.x and 2.x.

The module defines the `Restorer`, loads and saves it, embeds its prompt, and defines the `Trainable`, which adds LoRA
to the VAE's encoder and to the UNet and leaves all other weights, such as the decoder's, unchanged.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from omgsr_cli.errors import ModelError, reason_of
from omgsr_cli.models.adapter_files import SD_PARTS, SD_RANKS
from omgsr_cli.models.autoencoders import (
    KlCodec,
    TinyDecoder,
    bytes_per_px_of,
    check_vae_config,
    latent_px_of,
    load_tiny_decoder,
)
from omgsr_cli.models.base import Described, ImageRows, Restorer, RestorerInfo, StageInfo, Workspace
from omgsr_cli.models.devices import PRECISIONS, multiplies_in_bf16
from omgsr_cli.models.family import ModelSource
from omgsr_cli.models.libraries import explained_imports, quiet_libraries
from omgsr_cli.models.lora import LoraOptions, adapter_weights, inject_adapters, load_lora, merge_lora
from omgsr_cli.models.record import ModelRecord, read_json, write_record
from omgsr_cli.models.weight_files import check_finite, load_part, part_entries, read_prompt_features, weight_variant
from omgsr_cli.schedules import DdpmSchedule, Schedule
from omgsr_cli.transfer import upload

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

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

_TARGETS = (
    *("conv1", "conv2", "conv_in", "conv_shortcut", "conv", "conv_out"),
    *("to_k", "to_q", "to_v", "to_out.0"),
)
SD_LORA = LoraOptions(*SD_RANKS, vae_targets=_TARGETS, backbone_targets=_TARGETS)
"""The published adapters of the family, for both networks."""

PROMPT_EMBEDS = "prompt_embeds.safetensors"

_KEY = "prompt_embeds"
_TOKENS = 77
"""Number of tokens of a prompt's embedding."""


class SdRestorer(Described):
    """A `Restorer` of the SD family. Latents are float32; the networks compute in their own number formats.

    Args:
        unet: predicts the noise or v, as the schedule expects; conditioned on text.
        vae: VAE whose latents have the channels of the UNet.
        schedule: schedule that the UNet was trained with.
        prompt_embeds: (1, tokens, width) float, the text encoder's last hidden state.
        info: properties of the model, for the user and the planner.
        precision: number format of the UNet; the VAE's may be wider.
        source: files that the model was loaded from; its record is written to a folder that is saved from the model.
        decoder: replaces the VAE's decoder.
    """

    def __init__(
        self,
        unet: UNet2DConditionModel,
        vae: AutoencoderKL,
        schedule: Schedule,
        prompt_embeds: Tensor,
        info: RestorerInfo,
        precision: str,
        source: ModelSource,
        decoder: TinyDecoder | None = None,
    ) -> None:
        self.unet = unet
        self.vae = vae
        self.schedule = schedule
        self.info = info
        self.precision = precision
        self.source = source
        self.notes = source.notes
        self.in_fp32: Callable[[], Restorer] | None = None
        self.device: torch.device = unet.device
        self.prompt_embeds = prompt_embeds.to(unet.device, unet.dtype)
        self._codec = KlCodec(vae)
        self._decoder: KlCodec | TinyDecoder = decoder or self._codec

    def compile(self) -> None:
        """Compile the UNet for its one tile size, and the VAE's encoder and decoder for any image size.

        Layers that the VAE computes in strips are not compiled.
        """
        own = self._decoder.network if isinstance(self._decoder, TinyDecoder) else self.vae.decoder
        self.unet.compile(dynamic=False)
        for network in (self.vae.encoder, own):
            network.compile(dynamic=True)

    def encode(self, image: Tensor, generator: torch.Generator | list[torch.Generator] | None = None) -> Tensor:
        """Map (B, 3, H, W) float32 in [-1, 1] to (B, C, H/8, W/8) float32; generators as for `KlCodec.encode`."""
        return self._codec.encode(image, generator)

    def encode_within(self, image: ImageRows, workspace: Workspace, generator: torch.Generator | None = None) -> Tensor:
        """Like `encode` for one image, in bounded memory: in strips if the image does not fit."""
        return self._codec.encode_within(image, workspace, generator)

    def restore(self, lq_latent: Tensor) -> Tensor:
        """Take the single step: map (B, C, h, w) float, any h and w, to the clean latent, same shape and dtype."""
        step = self.info.mid_timestep
        timesteps = torch.full((len(lq_latent),), step, device=lq_latent.device)
        return self.schedule.clean_latent(lq_latent, self.predict(lq_latent, timesteps), step)

    def predict(self, noisy_latent: Tensor, timesteps: Tensor) -> Tensor:
        """Predict noise or v with the UNet, in the shape and dtype of the latents, for (B,) timesteps."""
        embeds = self.prompt_embeds.expand(len(noisy_latent), -1, -1)
        prediction: Tensor = self.unet(noisy_latent.to(self.unet.dtype), timesteps, encoder_hidden_states=embeds).sample
        return prediction.to(noisy_latent.dtype)

    def decode(self, latent: Tensor) -> Tensor:
        """Map (B, C, h, w) float, scaled as by `encode`, to (B, 3, 8h, 8w) float32, nominally in [-1, 1]."""
        return self._decoder.decode(latent)

    def decode_within(self, latent: Tensor, workspace: Workspace) -> Iterator[Tensor]:
        """Like `decode` for one latent, in bounded memory: in strips if the image does not fit."""
        return self._decoder.decode_within(latent, workspace)


def describe_sd(source: ModelSource) -> RestorerInfo:
    """Describe a model of the SD family from its configuration, without reading weights.

    Raises:
        ModelError: the parts do not match.
    """
    unet, vae = (read_json(source.folder / part / "config.json") for part in ("unet", "vae"))
    if unet.get("in_channels") != vae.get("latent_channels"):
        raise ModelError(
            f"{source.folder}: the UNet takes {unet.get('in_channels')} channels, "
            f"the VAE gives {vae.get('latent_channels')}",
            hint="inpainting and latent-upscaling models are not supported",
        )
    _check_unet_config(unet, source.folder / "unet")
    check_vae_config(vae, source.folder / "vae")
    latent_px = latent_px_of(vae)
    return RestorerInfo(
        name=source.name,
        family="sd",
        scale=source.record.scale,
        mid_timestep=source.record.mid_timestep,
        # The UNet takes latents of any size; the published code also only requires complete latent elements.
        multiple_of_px=latent_px,
        native_tile_px=source.record.native_tile_px,
        latent_px=latent_px,
        codec=StageInfo("internal", 0, bytes_per_px_of(vae)),
        step=StageInfo("blended", 0, _step_bytes_per_px(unet, latent_px)),
        border_px=0,
        color_fix="adain",
        prompt=source.record.prompt or "",
        parameters=sum(entry.elements for part in ("unet", "vae") for _, entry in part_entries(source.folder, part)),
    )


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


def _step_bytes_per_px(unet_config: Mapping[str, Any], latent_px: int) -> int:
    return max(1, _STEP_BYTES_PER_CHANNEL * int(unet_config["block_out_channels"][0]) // latent_px**2)


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
    info = describe_sd(source)
    schedule = DdpmSchedule.from_config(_schedule_config(source))
    schedule.check_timestep(info.mid_timestep)
    with quiet_libraries():
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

        unet_dtype = PRECISIONS["fp32" if source.adapter else precision]
        # With fp16 the VAE's type depends on its configuration, so it is read in the widest.
        vae_dtype = PRECISIONS["fp32" if source.adapter or precision == "fp16" else precision]
        prompt_embeds = load_prompt_embeds(source.folder, info.prompt or "")
        unet = load_part(UNet2DConditionModel, source.folder, "unet", unet_dtype)
        vae = load_part(AutoencoderKL, source.folder, "vae", vae_dtype)
        # diffusers defaults to true if the file has no value, and saves that.
        force_upcast = read_json(source.folder / "vae" / "config.json").get("force_upcast") is True
        vae.register_to_config(force_upcast=force_upcast)
        _check_width(source.folder, prompt_embeds, unet)
        if source.adapter is not None:
            _merge_adapter(unet, vae, source.adapter)
        unet.to(device, PRECISIONS[precision])
        vae.to(device, PRECISIONS[vae_precision(precision, force_upcast, device)])
        if device.type == "cpu":
            # Convolutions on CPUs use channels last, and copy tensors with another layout.
            vae.to(memory_format=torch.channels_last)
        decoder = None
        if source.vae is not None:
            channels = int(vae.config["latent_channels"])
            decoder = load_tiny_decoder(source.vae, channels, device, PRECISIONS[precision])
    return SdRestorer(unet, vae, schedule, prompt_embeds, info, precision, source, decoder)


def _check_width(folder: Path, prompt_embeds: Tensor, unet: UNet2DConditionModel) -> None:
    found, wanted = prompt_embeds.shape[-1], unet.config["cross_attention_dim"]
    if found != wanted:
        raise ModelError(f"{folder}: the prompt's embedding is {found} wide, the UNet expects {wanted}")


def _schedule_config(source: ModelSource) -> dict[str, Any]:
    config = source.record.schedule or read_json(source.folder / "scheduler" / "scheduler_config.json")
    name = str(config.get("_class_name", ""))
    if name.startswith("FlowMatch"):
        raise ModelError(f"{source.folder}: the scheduler {name} does not go with a model of the SD family")
    return config


def _merge_adapter(unet: UNet2DConditionModel, vae: AutoencoderKL, adapter: Path) -> None:
    encoder_part, unet_part = SD_PARTS
    changed = merge_lora(vae.encoder, adapter / encoder_part) + merge_lora(unet, adapter / unet_part)
    if not changed:
        raise ModelError(f"the adapter {adapter} changes no weight", hint="it was never trained; give another one")


def save_sd(source: ModelSource, folder: Path, *, half: bool, text_encoder: bool) -> None:
    """Write a diffusers folder with a record and the prompt's embedding; same arguments as `Family.save_merged`."""
    restorer = load_sd(source, torch.device("cpu"), "fp32")
    info = restorer.info
    if text_encoder:
        weight_variant(source.folder, "text_encoder", "model")
    if half:
        networks: tuple[nn.Module, ...] = (restorer.unet, restorer.vae)
        for network in networks:
            network.half()
    with quiet_libraries():
        restorer.unet.save_pretrained(folder / "unet", safe_serialization=True)
        restorer.vae.save_pretrained(folder / "vae", safe_serialization=True)
    save_prompt_embeds(restorer.prompt_embeds, info.prompt or "", folder)
    base = source.record.base or source.name
    made_from = (base,) if source.adapter is None else (base, source.adapter.name)
    changes = {
        "mid_timestep": info.mid_timestep,
        "native_tile_px": info.native_tile_px,
        "schedule": None,
        "made_from": made_from,
        "base": None,
    }
    write_record(source.record.model_copy(update=changes), folder)
    (folder / "scheduler").mkdir()
    config = json.dumps(restorer.schedule.to_config(), indent=2)
    (folder / "scheduler" / "scheduler_config.json").write_text(config + "\n", encoding="utf-8")
    for part in ("text_encoder", "tokenizer") if text_encoder else ():
        shutil.copytree(source.folder / part, folder / part)


def load_prompt_embeds(folder: Path, prompt: str) -> Tensor:
    """Read the stored embedding of a prompt, or run the text encoder for a prompt that is not stored.

    Args:
        folder: folder of the model.
        prompt: any text, including the empty string.
    Returns:
        (1, tokens, width) float32 on the CPU: the text encoder's last hidden state.
    Raises:
        ModelError: the prompt is not stored and the folder has no text encoder.
    """
    kept = _read_kept(folder / PROMPT_EMBEDS, prompt)
    if kept is not None:
        return kept
    _check_text_encoder(folder, prompt)
    return _encode(folder, prompt)


def check_prompt(folder: Path, prompt: str) -> None:
    """Check that `load_prompt_embeds` has its files, with the same errors, but without running a text encoder."""
    if _read_kept(folder / PROMPT_EMBEDS, prompt) is None:
        _check_text_encoder(folder, prompt)


def _check_text_encoder(folder: Path, prompt: str) -> None:
    if not (folder / "text_encoder" / "config.json").is_file() or not (folder / "tokenizer").is_dir():
        raise ModelError(
            f"{folder} has no text encoder for the prompt {prompt!r}",
            hint="leave --prompt out, or give the base model and its adapter with --base and --adapter",
        )


def save_prompt_embeds(embeds: Tensor, prompt: str, folder: Path) -> None:
    """Write an embedding and its prompt to `prompt_embeds.safetensors` in a model folder."""
    save_file({_KEY: embeds.float().cpu().contiguous()}, folder / PROMPT_EMBEDS, metadata={"prompt": prompt})


def _read_kept(path: Path, prompt: str) -> Tensor | None:
    """Read the stored embedding; None if the file is missing or stores another prompt."""
    found = read_prompt_features(path, prompt, [_KEY])
    if found is None:
        return None
    (embeds,) = found
    if embeds.ndim != 3 or len(embeds) != 1:
        raise ModelError(f"{path}: shape {tuple(embeds.shape)} is not (1, tokens, width)")
    check_finite([(_KEY, embeds)], path)
    return embeds.float()


@torch.no_grad()
def _encode(folder: Path, prompt: str) -> Tensor:
    """Run the text encoder once, in float32 on the CPU for equal results on every machine, and discard it."""
    with explained_imports():
        from transformers import CLIPTextModel, CLIPTokenizer
    try:
        tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        loaded: Any = CLIPTextModel.from_pretrained(
            folder / "text_encoder",
            dtype=torch.float32,
            variant=weight_variant(folder, "text_encoder", stem="model"),
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        reason = reason_of(error)
        raise ModelError(f"the text encoder of {folder} cannot be loaded: {reason}") from error
    encoder, report = loaded
    if report["missing_keys"]:
        raise ModelError(f"the text encoder of {folder} lacks weights: {sorted(report['missing_keys'])[0]}")
    tokens = tokenizer(
        prompt, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
    )
    embeds: Tensor = encoder(tokens.input_ids)[0]
    check_finite([("last_hidden_state", embeds)], folder / "text_encoder")
    return embeds.float()


class SdTrainable:
    """A `Trainable` of the SD family. The prompt's embedding is computed once, when the restorer is loaded."""

    def __init__(self, restorer: SdRestorer, options: LoraOptions | None, record: ModelRecord) -> None:
        self.restorer: Restorer = restorer
        self._sd = restorer
        unet = restorer.unet
        self._adapters = inject_adapters((restorer.vae.encoder, unet), SD_PARTS, options, SD_LORA)
        self.networks: nn.Module = nn.ModuleDict({"vae": restorer.vae, "unet": unet})
        self._record = record

    def trained(self) -> dict[str, nn.Parameter]:
        """The weights of the adapters."""
        return adapter_weights(self._adapters)

    def encode(self, image: Tensor, draws: Sequence[torch.Generator]) -> Tensor:
        """Map (B, 3, H, W) in [-1, 1] to (B, C, H/8, W/8), sampled from the posterior."""
        return self._sd.encode(image, list(draws))

    @torch.no_grad()
    def encode_clean(self, image: Tensor, draws: Sequence[torch.Generator]) -> Tensor:
        """Sample the posterior of the encoder without its adapter."""
        with self._adapters[SD_PARTS[0]].disable_adapter():
            return self._sd.encode(image, list(draws))

    def denoise(self, noisy_latent: Tensor, timesteps: Tensor) -> Tensor:
        """Recover clean latents with the UNet and its adapter."""
        prediction = self._sd.predict(noisy_latent, upload(timesteps, noisy_latent.device))
        return self._sd.schedule.clean_latent(noisy_latent, prediction, timesteps)

    def checkpoint_gradients(self) -> None:
        """Store only the inputs of blocks, in both networks."""
        networks: tuple[Any, ...] = (self._sd.unet, self._sd.vae)
        for network in networks:
            network.enable_gradient_checkpointing()

    def share_backbone(self, share: Callable[[nn.Module], None], device: torch.device) -> None:
        """Shard the UNet's weights, except its adapter's; the VAE moves to the device completely."""
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
        """Load adapters with the same ranks and layers."""
        for part, adapter in self._adapters.items():
            load_lora(adapter, folder / part)


def load_sd_trainable(
    source: ModelSource, device: torch.device, precision: str, options: LoraOptions | None, start_from: Path | None
) -> SdTrainable:
    """Load the base model and add adapters: new ones, or those in `start_from`.

    Raises:
        ModelError: the files are not a complete model, or the adapters do not match it.
    """
    restorer, record = load_sd(source, device, precision), source.record
    made_from = record.model_copy(update={"made_from": (source.name,), "base": source.location})
    trainable = SdTrainable(restorer, options, made_from)
    if start_from is not None:
        trainable.load(start_from)
    return trainable
