"""The SD family: UNet2DConditionModel and AutoencoderKL, as in Stable Diffusion 1.x and 2.x."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from omgsr_cli.errors import ModelError
from omgsr_cli.models.adapters import merge_lora
from omgsr_cli.models.base import ImageRows, Restorer, RestorerInfo, StageInfo
from omgsr_cli.models.devices import PRECISIONS, multiplies_in_bf16
from omgsr_cli.models.kl_codec import KlCodec, bytes_per_px_of, check_vae_config, latent_px_of
from omgsr_cli.models.libraries import explained_imports, quiet_libraries
from omgsr_cli.models.prompts import load_prompt_embeds
from omgsr_cli.models.record import read_json
from omgsr_cli.models.sd_family import SdFamily
from omgsr_cli.models.sources import ModelSource
from omgsr_cli.models.tiny_vae import TinyDecoder, load_tiny_decoder
from omgsr_cli.models.vae_tiling import Workspace
from omgsr_cli.models.weight_files import load_part, weight_files
from omgsr_cli.schedules import DdpmSchedule, Schedule

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

_STEP_BYTES_PER_CHANNEL = 160
"""Forty float32 tensors of the UNet's first level: with SD 2.1-base's 320 channels 26 of them were counted alive at the
peak, and convolutions need room to work in."""


_CONDITIONS = (
    "addition_embed_type",
    "class_embed_type",
    "num_class_embeds",
    "encoder_hid_dim_type",
    "time_cond_proj_dim",
)
"""What a UNet may be conditioned on besides the timestep and the prompt."""
_OTHER_UNETS = (
    "give a model of Stable Diffusion 1.x or 2.x: SDXL, distilled and image-conditioned ones are not supported"
)


class SdRestorer:
    """A `Restorer` of the SD family. Latents are float32; the networks compute in their own number formats.

    Args:
        unet: predicts the noise, or v where the schedule says so; conditioned on text.
        vae: its latents have the channels of the UNet.
        schedule: of the UNet's training.
        prompt_embeds: (1, tokens, width) float, the text encoder's last hidden state.
        info: what is told to people and to the planner.
        precision: number format of the UNet; the VAE's may be wider.
        source: where it was read from; its record goes into a folder that is written from this.
        decoder: decodes in the place of the VAE's.
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
        """Compile the UNet and both halves of the VAE in place; any size then runs, each new one slowly at first."""
        own = self._decoder.network if isinstance(self._decoder, TinyDecoder) else self.vae.decoder
        for network in (self.unet, self.vae.encoder, own):
            network.compile()

    def encode(self, image: Tensor, generator: torch.Generator | list[torch.Generator] | None = None) -> Tensor:
        """Map an enlarged low-quality image to its latent.

        Args:
            image: (B, 3, H, W) float32, sRGB in [-1, 1]; H and W multiples of `info.multiple_of_px`.
            generator: samples the posterior, on its own device or the CPU; a list has one for each image; None takes
                the mean.
        Returns:
            (B, C, H/8, W/8) float32 on `device`.
        Raises:
            ShapeError: not (B, 3, H, W) or not multiples.
        """
        return self._codec.encode(image, generator)

    def encode_within(self, image: ImageRows, workspace: Workspace, generator: torch.Generator | None = None) -> Tensor:
        """As `encode` of one image, in memory that is bounded: in strips where the whole does not fit."""
        return self._codec.encode_within(image, workspace, generator)

    def restore(self, lq_latent: Tensor) -> Tensor:
        """Take the one step at the mid-timestep.

        Args:
            lq_latent: (B, C, h, w) float from `encode`; any h and w from 1.
        Returns:
            clean_latent, same shape and dtype; not clamped.
        """
        step = self.info.mid_timestep
        timesteps = torch.full((len(lq_latent),), step, device=lq_latent.device)
        return self.schedule.clean_latent(lq_latent, self.predict(lq_latent, timesteps), step)

    def predict(self, noisy_latent: Tensor, timesteps: Tensor) -> Tensor:
        """Give the UNet's prediction, of what its schedule says: shape and dtype of the latents, (B,) timesteps."""
        embeds = self.prompt_embeds.expand(len(noisy_latent), -1, -1)
        prediction: Tensor = self.unet(noisy_latent.to(self.unet.dtype), timesteps, encoder_hidden_states=embeds).sample
        return prediction.to(noisy_latent.dtype)

    def decode(self, latent: Tensor) -> Tensor:
        """Map a latent back to an image.

        Args:
            latent: (B, C, h, w) float, scaled as `encode` gives it.
        Returns:
            (B, 3, 8h, 8w) float32, nominally in [-1, 1]; not clamped.
        """
        return self._decoder.decode(latent)

    def decode_within(self, latent: Tensor, workspace: Workspace) -> Iterator[Tensor]:
        """As `decode` of one latent, in memory that is bounded: in strips where the whole does not fit."""
        return self._decoder.decode_within(latent, workspace)


def describe_sd(source: ModelSource) -> RestorerInfo:
    """What can be told of a model of the SD family from its configuration, without reading a weight.

    Raises:
        ModelError: the parts do not fit one another.
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
        family=SdFamily.name,
        scale=source.record.scale,
        mid_timestep=source.record.mid_timestep,
        # The UNet takes latents of any size; the published code, too, needs no more than whole latent elements.
        multiple_of_px=latent_px,
        native_tile_px=source.record.native_tile_px,
        latent_px=latent_px,
        codec=StageInfo("internal", 0, bytes_per_px_of(vae)),
        step=StageInfo("blended", 0, _step_bytes_per_px(unet, latent_px)),
        border_px=0,
        color_fix="adain",
        prompt=source.record.prompt or "",
        parameters=sum(_count_parameters(source.folder, part) for part in ("unet", "vae")),
    )


def _check_unet_config(config: Mapping[str, Any], where: Path) -> None:
    """Refuse a UNet that predicts more than one latent, or wants to know more than the timestep and the prompt."""
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


def _count_parameters(folder: Path, part: str) -> int:
    """Number of weights of a part, from the headers of its files."""
    total = 0
    for path in weight_files(folder, part):
        try:
            with safe_open(path, framework="pt") as file:
                total += sum(torch.Size(file.get_slice(key).get_shape()).numel() for key in file.keys())  # noqa: SIM118 -- not a dict
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} cannot be read: {error}") from error
    return total


def vae_precision(precision: str, force_upcast: bool, device: torch.device) -> str:
    """The number format of the VAE: fp16 overflows in those that say so, and they get a wider one.

    Args:
        precision: of the UNet.
        force_upcast: whether the VAE's configuration says so itself.
        device: bf16 is taken where it multiplies in it, else fp32.
    """
    if precision != "fp16" or not force_upcast:
        return precision
    return "bf16" if multiplies_in_bf16(device) else "fp32"


def load_sd(source: ModelSource, device: torch.device, precision: str) -> SdRestorer:
    """Read a model of the SD family, add its adapter if it has one, and put it on the device.

    An adapter is added in float32 and the sum then rounded once to the model's number format.

    Args:
        source: from `find_model`.
        device: where it will run.
        precision: "fp32", "bf16" or "fp16".
    Raises:
        ModelError: the files do not make a model, or the adapter does not fit or changes nothing.
        OmgsrError: diffusers cannot be imported because of a broken torchvision.
    """
    info = describe_sd(source)
    schedule = DdpmSchedule.from_config(_schedule_config(source))
    schedule.check_timestep(info.mid_timestep)
    with quiet_libraries():
        with explained_imports():
            from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
            from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
        unet_dtype = PRECISIONS["fp32" if source.adapter else precision]
        # With fp16 its type follows from its own configuration: it is read in the widest.
        vae_dtype = PRECISIONS["fp32" if source.adapter or precision == "fp16" else precision]
        prompt_embeds = load_prompt_embeds(source.folder, info.prompt or "")
        unet = load_part(UNet2DConditionModel, source.folder, "unet", unet_dtype)
        vae = load_part(AutoencoderKL, source.folder, "vae", vae_dtype)
        # diffusers takes true where the file does not say it, and writes it into what it saves.
        force_upcast = read_json(source.folder / "vae" / "config.json").get("force_upcast") is True
        vae.register_to_config(force_upcast=force_upcast)
        _check_width(source.folder, prompt_embeds, unet)
        if source.adapter is not None:
            _merge_adapter(unet, vae, source.adapter)
        unet.to(device, PRECISIONS[precision])
        vae.to(device, PRECISIONS[vae_precision(precision, force_upcast, device)])
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
    encoder_part, unet_part = SdFamily.adapter_parts
    changed = merge_lora(vae.encoder, adapter / encoder_part) + merge_lora(unet, adapter / unet_part)
    if not changed:
        raise ModelError(f"the adapter {adapter} changes no weight", hint="it was never trained; give another one")
