"""omgsr-tiny: an OMGSR model small enough to live in the package.

A wavelet latent space instead of an autoencoder, an encoder that refines the picture, and one step of a small denoiser,
pre-trained as a DDPM on clean latents, from the refined picture's latent.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from omgsr_cli.errors import ModelError, reason_of
from omgsr_cli.models.base import Restorer, RestorerInfo, StageInfo
from omgsr_cli.models.devices import PRECISIONS
from omgsr_cli.models.record import ModelRecord, load_record, read_json
from omgsr_cli.models.tiny_family import TinyFamily
from omgsr_cli.models.tiny_network import TinyConfig, TinyNetwork, channels_last
from omgsr_cli.models.wavelet import LATENT_PX
from omgsr_cli.models.weight_files import check_finite
from omgsr_cli.schedules import DdpmSchedule, Schedule
from omgsr_cli.validation import first_mistake

# Measured: some six float32 activations of the first level, and the transform's copies of the picture.
_BYTES_PER_PX = 240

# The part of a tile's margin that is counted for the encoder and the wavelets; the rest is the step's.
_CODEC_HALO_PX = 32

# The convolutions pad with zeros, which on a black picture is an edge: it is kept outside of the picture.
_BORDER_PX = 8


class TinyRestorer:
    """omgsr-tiny as a `Restorer`. It has no posterior, so a generator changes nothing: every seed gives the same."""

    def __init__(
        self,
        network: TinyNetwork,
        schedule: DdpmSchedule,
        info: RestorerInfo,
        device: torch.device,
        precision: str,
    ) -> None:
        self.network = network
        self.schedule: Schedule = schedule
        # The power that the latent of the low-quality picture is given: that of a noisy latent's signal.
        self._signal = schedule.alpha_bar(info.mid_timestep) ** 0.5
        self.info = info
        self.device = device
        self.precision = precision
        self.notes: tuple[str, ...] = ()
        self.in_fp32: Callable[[], Restorer] | None = None

    @property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.network.unet.conv_in.weight.dtype
        return dtype

    def compile(self) -> None:
        """Compile both networks in place."""
        self.network.encoder.compile()
        self.network.unet.compile()

    def encode(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Map (B, 3, H, W) float32 in [-1, 1] to the LQ latent, (B, 48, H/4, W/4) float32.

        The learned encoder refines the picture. Its wavelet latent is given the power of a noisy latent,
        sqrt(alpha_bar), so that a prediction of no noise leaves the refined picture as it is.
        """
        correction = self.network.encoder(image.to(self._dtype)).float()
        lq_latent: Tensor = self.network.latents.encode(image + correction) * self._signal
        return lq_latent

    def restore(self, lq_latent: Tensor) -> Tensor:
        """Take the one step: (B, 48, h, w) float32 to the clean latent of the same shape and dtype."""
        step = self.info.mid_timestep
        timesteps = torch.full((len(lq_latent),), step, device=lq_latent.device)
        return self.schedule.clean_latent(lq_latent, self.predict(lq_latent, timesteps), step)

    def predict(self, noisy_latent: Tensor, timesteps: Tensor) -> Tensor:
        """Give the denoiser's prediction, of the noise: (B, 48, h, w) float32, for (B,) timesteps."""
        noise: Tensor = self.network.unet(noisy_latent.to(self._dtype), timesteps)
        return noise.float()

    def decode(self, latent: Tensor) -> Tensor:
        """Map (B, 48, h, w) to (B, 3, 4h, 4w) float32, nominally in [-1, 1]."""
        return self.network.latents.decode(latent.float())


def load_tiny(folder: Path, info: RestorerInfo, device: torch.device, precision: str) -> TinyRestorer:
    """Read the weights of a model folder.

    Args:
        folder: as `recipes/omgsr_tiny/export.py` writes it: `omgsr.json`, `config.json` and `model.safetensors`.
        info: from `describe_tiny`.
        device: where to run.
        precision: "fp32", "bf16" or "fp16": of the networks; the wavelet transform is always float32.
    Raises:
        ModelError: a file is missing, or the weights do not fit the configuration.
    """
    record = load_record(folder)
    with torch.device("meta"):
        network = TinyNetwork(_load_config(folder))
    try:
        weights = load_file(folder / "model.safetensors", device=str(device))
        check_finite(weights.items(), folder / "model.safetensors")
        network.load_state_dict({name: value.float() for name, value in weights.items()}, assign=True)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise _broken(folder, reason_of(error)) from error
    network.requires_grad_(False).eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = channels_last(module.weight.data)
    dtype = PRECISIONS[precision]
    network.encoder.to(dtype)
    network.unet.to(dtype)
    schedule = DdpmSchedule.from_config((record and record.schedule) or DdpmSchedule().to_config())
    return TinyRestorer(network, schedule, info, device, precision)


def describe_tiny(folder: Path, record: ModelRecord, name: str) -> RestorerInfo:
    """What can be asked of a model folder without reading its weights.

    Raises:
        ModelError: `config.json` is missing or does not describe a network.
    """
    return build_info(_load_config(folder), record, name)


def _load_config(folder: Path) -> TinyConfig:
    try:
        return TinyConfig.model_validate(read_json(folder / "config.json"))
    except ValidationError as error:
        raise _broken(folder, first_mistake(error).line()) from error


def _broken(folder: Path, reason: str) -> ModelError:
    return ModelError(
        f"{folder} does not hold omgsr-tiny's weights: {reason}", "install omgsr-cli again if they are its own"
    )


def build_info(config: TinyConfig, record: ModelRecord, name: str) -> RestorerInfo:
    """What can be asked of a network of this shape."""
    with torch.device("meta"):
        parameters = sum(weight.numel() for weight in TinyNetwork(config).parameters())
    return RestorerInfo(
        name=name,
        family=TinyFamily.name,
        scale=record.scale,
        mid_timestep=record.mid_timestep,
        multiple_of_px=config.multiple_of_px,
        native_tile_px=record.native_tile_px,
        latent_px=LATENT_PX,
        codec=StageInfo("exact", _CODEC_HALO_PX, _BYTES_PER_PX),
        step=StageInfo("exact", config.halo_px - _CODEC_HALO_PX, _BYTES_PER_PX),
        border_px=_BORDER_PX,
        color_fix="none",
        prompt=None,
        parameters=parameters,
    )
