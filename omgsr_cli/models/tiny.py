"""omgsr-tiny: an OMGSR model small enough to live in the package.

A wavelet latent space instead of an autoencoder, a small U-Net pre-trained as a DDPM on clean latents, and one
step from the latent of the low-quality picture. Convolutions only and no normalisation, so that a picture cut
into tiles with a margin gives what the whole picture gives.
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from omgsr_cli.errors import ModelError
from omgsr_cli.models.base import RestorerInfo, StageInfo
from omgsr_cli.models.devices import PRECISIONS
from omgsr_cli.models.record import ModelRecord, load_record, read_json
from omgsr_cli.models.tiny_family import TinyFamily
from omgsr_cli.models.wavelet import LATENT_CHANNELS, LATENT_PX, WaveletLatents, remove_lines
from omgsr_cli.schedules import DdpmSchedule, Schedule
from omgsr_cli.validation import first_mistake

# Measured: some six float32 activations of the first level, and the transform's copies of the picture.
_BYTES_PER_PX = 240

# The part of a tile's margin that is counted for the encoder and the wavelets; the rest is the step's.
_CODEC_HALO_PX = 32

# The convolutions pad with zeros, which on a black picture is an edge: it is kept outside of the picture.
_BORDER_PX = 32


class TinyConfig(BaseModel):
    """The shape of the network, as kept in `config.json` beside its weights.

    Attributes:
        widths: channels at a quarter, an eighth and a sixteenth of the image size.
        down_blocks: residual blocks at each of these sizes on the way down; the last are the middle.
        up_blocks: residual blocks at each size but the smallest on the way up.
        encoder_blocks: residual blocks of the learned part of the encoder.
        halo_px: margin with which a tile equals the whole picture to less than half of 1/255: what lies further
            away can matter in principle, but was measured not to.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    widths: tuple[int, ...] = (64, 128, 256)
    down_blocks: tuple[int, ...] = (3, 3, 4)
    up_blocks: tuple[int, ...] = (4, 3)
    encoder_blocks: int = 3
    halo_px: int = 96

    @property
    def multiple_of_px(self) -> int:
        """Image sizes that the network takes are multiples of this."""
        return int(LATENT_PX * 2 ** (len(self.widths) - 1))


def _conv3x3(inputs: int, outputs: int, *, zero: bool = False) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, 3, padding=1)
    if zero:
        nn.init.zeros_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a residual; a time embedding scales and shifts between them.

    The last convolution starts at zero, which stands in for normalisation: a deep stack begins as the identity.
    """

    def __init__(self, width: int, time_width: int | None) -> None:
        super().__init__()
        self.conv1 = _conv3x3(width, width)
        self.conv2 = _conv3x3(width, width, zero=True)
        self.film = nn.Linear(time_width, 2 * width) if time_width else None

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        """(B, width, h, w) to the same; `time` is (B, time_width)."""
        h = self.conv1(F.silu(x))
        if self.film is not None and time is not None:
            scale, shift = self.film(time)[:, :, None, None].chunk(2, 1)
            h = torch.addcmul(h + shift, h, scale)
        residual: Tensor = self.conv2(F.silu(h))
        return x + residual


class _Stack(nn.ModuleList):
    """Residual blocks one after the other, all told the same time."""

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        for block in self:
            x = block(x, time)
        return x


def _stack(width: int, blocks: int, time_width: int | None) -> _Stack:
    return _Stack(ResidualBlock(width, time_width) for _ in range(blocks))


def timestep_embedding(timestep: Tensor, width: int) -> Tensor:
    """Sines and cosines of the timestep at geometric frequencies.

    Source: "Attention is all you need", arXiv:1706.03762, section 3.5.

    Args:
        timestep: (B,) index, 0..T-1.
        width: even number of channels.
    Returns:
        (B, width) float32 in [-1, 1].
    """
    frequencies = torch.exp(-math.log(10_000) * torch.arange(width // 2, device=timestep.device) / (width // 2))
    angles = timestep.float()[:, None] * frequencies
    return torch.cat((angles.sin(), angles.cos()), 1)


class LatentUNet(nn.Module):
    """Predicts the noise in a latent: (B, 48, h, w) and (B,) timesteps to (B, 48, h, w)."""

    time_width = 128

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        widths, time = config.widths, self.time_width
        self.time = nn.Sequential(nn.Linear(64, time), nn.SiLU(), nn.Linear(time, time), nn.SiLU())
        self.conv_in = _conv3x3(LATENT_CHANNELS, widths[0])
        self.down = nn.ModuleList(_stack(w, n, time) for w, n in zip(widths, config.down_blocks, strict=True))
        self.shrink = nn.ModuleList(nn.Conv2d(a, b, 2, stride=2) for a, b in pairwise(widths))
        self.grow = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in pairwise(widths))
        self.up = nn.ModuleList(_stack(w, n, time) for w, n in zip(widths[:-1], config.up_blocks, strict=True))
        self.conv_out = _conv3x3(widths[0], LATENT_CHANNELS, zero=True)

    def forward(self, latent: Tensor, timestep: Tensor) -> Tensor:
        """Predict the noise: see the class."""
        time = self.time(timestep_embedding(timestep, 64).to(self.conv_in.weight.dtype))
        x = self.conv_in(latent)
        skips: list[Tensor] = []
        for level, blocks in enumerate(self.down):
            if level:
                skips.append(x)
                x = self.shrink[level - 1](x)
            x = blocks(x, time)
        for level in reversed(range(len(skips))):
            # Smooth enlargement: nearest or pixel shuffle would draw a grid at the period of this level.
            x = F.interpolate(self.grow[level](x), scale_factor=2.0, mode="bilinear", align_corners=False)
            x = x + skips[level]
            x = self.up[level](x, time)
        noise: Tensor = self.conv_out(F.silu(x))
        return noise


class LatentEncoder(nn.Module):
    """The learned part of the encoder: what to add to the latent of a low-quality picture; zero at first."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        width = config.widths[0]
        self.conv_in = _conv3x3(LATENT_CHANNELS, width)
        self.blocks = _stack(width, config.encoder_blocks, None)
        self.conv_out = _conv3x3(width, LATENT_CHANNELS, zero=True)

    def forward(self, latent: Tensor) -> Tensor:
        """(B, 48, h, w) to the correction, of the same shape."""
        x = self.blocks(self.conv_in(latent))
        correction: Tensor = self.conv_out(F.silu(x))
        return correction


class TinyNetwork(nn.Module):
    """All weights of omgsr-tiny: the latent space, the learned encoder and the denoiser."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        self.latents = WaveletLatents()
        self.encoder = LatentEncoder(config)
        self.unet = LatentUNet(config)


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

        The learned encoder gives it the power of a noisy latent: sqrt(alpha_bar) times the wavelet latent, plus
        a correction. A prediction of no noise then leaves the picture as it is.
        """
        latent = self.network.latents.encode(image)
        correction = self.network.encoder(_channels_last(latent.to(self._dtype)))
        lq_latent: Tensor = latent * self._signal + remove_lines(correction.float())
        return lq_latent

    def restore(self, lq_latent: Tensor) -> Tensor:
        """Take the one step: (B, 48, h, w) float32 to the clean latent of the same shape and dtype."""
        step = self.info.mid_timestep
        timestep = torch.full((len(lq_latent),), step, device=lq_latent.device)
        noise = self.network.unet(_channels_last(lq_latent.to(self._dtype)), timestep)
        # The schedule's formula is linear, so this takes the lines out of what the step adds, and out of that alone.
        return self.schedule.clean_latent(lq_latent, remove_lines(noise.float()), step)

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
        network.load_state_dict({name: value.float() for name, value in weights.items()}, assign=True)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise _broken(folder, str(error).splitlines()[0]) from error
    network.requires_grad_(False).eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = _channels_last(module.weight.data)
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


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)
