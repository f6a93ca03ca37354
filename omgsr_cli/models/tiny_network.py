"""The networks of omgsr-tiny: an encoder that refines the image, and a denoiser that takes the step from its latent.

They consist of convolutions without normalisation, so tiles with a margin give the same result as the complete image.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from omgsr_cli.models.wavelet import LATENT_CHANNELS, LATENT_PX, WaveletLatents

# The denoiser works on squares of the latent: 2x2 latent elements become the channels of one element.
_SQUARE = 2

# Reach of each of the two box filters of the running mean that is removed from corrections, in image pixels on each
# side. Two box filters in sequence are nearly round; a single one left directional noise.
_MEAN_REACH_PX = 16


class TinyConfig(BaseModel):
    """The shape of the networks, stored in `config.json` with their weights.

    Attributes:
        encoder_width: channels of the encoder, at a quarter of the image size.
        encoder_layers: number of 3x3 convolutions of the encoder between its first and its last.
        step_width: channels of the denoiser, at an eighth of the image size.
        step_bottleneck: channels of the denoiser's 3x3 convolutions.
        step_blocks: number of residual blocks of the denoiser.
        halo_px: margin with which a tile equals the complete image to less than half of 1/255; the receptive field is
            larger, but more distant pixels have no measurable effect.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    encoder_width: int = 64
    encoder_layers: int = 26
    step_width: int = 192
    step_bottleneck: int = 96
    step_blocks: int = 5
    halo_px: int = 96

    @property
    def multiple_of_px(self) -> int:
        """Image heights and widths must be multiples of this, in pixels."""
        return int(LATENT_PX * _SQUARE)


def _start_at_zero(conv: nn.Conv2d) -> nn.Conv2d:
    nn.init.zeros_(conv.weight)
    if conv.bias is not None:
        nn.init.zeros_(conv.bias)
    return conv


class PixelEncoder(nn.Module):
    """Predicts the correction of a degraded image: 3x3 convolutions at a quarter of its size, initially zero.

    The architecture is that of SRVGGNetCompact (Real-ESRGAN's small networks, BSD-3-Clause), but its input is all
    pixels of the upscaled image instead of a reduced copy, so images upscaled by less than 4 lose no detail.
    """

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        width, pixels = config.encoder_width, 3 * LATENT_PX**2
        self.conv_in = nn.Conv2d(pixels, width, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(config.encoder_layers))
        self.acts = nn.ModuleList(nn.PReLU(width) for _ in range(config.encoder_layers + 1))
        self.conv_out = _start_at_zero(nn.Conv2d(width + pixels, pixels, 3, padding=1))

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, 3, H, W) in [-1, 1], H and W multiples of 4, to the correction, same shape."""
        batch, _, height, width = image.shape
        squares = (batch, height // LATENT_PX, LATENT_PX, width // LATENT_PX, LATENT_PX * 3)
        # All tensors are channels last, so rows of a square are copied in one piece instead of pixel by pixel.
        pixels = image.permute(0, 2, 3, 1).reshape(squares).transpose(2, 3).flatten(3).permute(0, 3, 1, 2)
        x = self.acts[0](F.conv2d(pixels, _by_pixel(self.conv_in.weight, 1), self.conv_in.bias, padding=1))
        for conv, act in zip(self.convs, self.acts[1:], strict=True):
            x = act(conv(x))
        weight = _by_pixel(self.conv_out.weight, 0)
        of_x, of_pixels = weight[:, : x.shape[1]], _by_pixel(weight[:, x.shape[1] :], 1)
        assert self.conv_out.bias is not None
        correction = F.conv2d(x, channels_last(of_x), _by_pixel(self.conv_out.bias, 0), padding=1)
        # Add the results of two convolutions: concatenating their inputs takes as long and needs much more memory.
        correction += F.conv2d(pixels, of_pixels, padding=1)
        correction = without_running_mean(correction, _MEAN_REACH_PX // LATENT_PX)
        rows = correction.permute(0, 2, 3, 1).reshape(batch, squares[1], squares[3], LATENT_PX, -1).transpose(2, 3)
        return rows.reshape(batch, height, width, 3).permute(0, 3, 1, 2)


def _by_pixel(weight: Tensor, dim: int) -> Tensor:
    """Reorder a weight's channels along `dim` from colour by colour, as in `F.pixel_unshuffle`, to pixel by pixel."""
    before, after = weight.shape[:dim], weight.shape[dim + 1 :]
    weight = weight.reshape(*before, 3, LATENT_PX**2, *after).transpose(dim, dim + 1).flatten(dim, dim + 1)
    return channels_last(weight) if weight.ndim == 4 else weight


def without_running_mean(x: Tensor, reach: int) -> Tensor:
    """Subtract the running mean from every channel of a correction.

    A correction with a mean changes the colour of large areas. If the channels are the pixels or the bands of a square,
    their means also form a lattice that is visible in flat areas. Photographs have neither.

    Args:
        x: (B, C, h, w) float.
        reach: elements on each side that each of the two means includes, fewer at the border.
    Returns:
        (B, C, h, w), same dtype.
    """
    side, mean = 2 * reach + 1, x
    for kernel, padding in 2 * (((side, 1), (reach, 0)), ((1, side), (0, reach))):
        mean = F.avg_pool2d(mean, kernel, stride=1, padding=padding, count_include_pad=False)
    return x - mean


class BottleneckBlock(nn.Module):
    """A residual block of 1x1, 3x3 and 1x1 convolutions; a time embedding scales and shifts the middle features.

    The last convolution is initialised to zero, which replaces normalisation: a deep stack starts as the identity.
    """

    def __init__(self, width: int, bottleneck: int, time_width: int) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(width, bottleneck, 1)
        self.conv = nn.Conv2d(bottleneck, bottleneck, 3, padding=1)
        self.widen = _start_at_zero(nn.Conv2d(bottleneck, width, 1))
        self.film = nn.Linear(time_width, 2 * bottleneck)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Map (B, width, h, w) and (B or 1, time_width) to (B, width, h, w)."""
        scale, shift = self.film(time).chunk(2, 1)
        h = F.silu(self.narrow(x))
        if len(time) == 1:
            # A single timestep can be folded into the weights, which saves two passes.
            gain = 1 + scale[0]
            assert self.conv.bias is not None
            weight = channels_last(self.conv.weight * gain[:, None, None, None])
            h = F.conv2d(h, weight, torch.addcmul(shift[0], self.conv.bias, gain), padding=1)
        else:
            h = self.conv(h)
            h = torch.addcmul(h + shift[:, :, None, None], h, scale[:, :, None, None])
        residual: Tensor = self.widen(F.silu(h))
        return residual.add_(x)


def timestep_embedding(timestep: Tensor, width: int) -> Tensor:
    """Compute sines and cosines of the timestep at geometric frequencies.

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


class LatentDenoiser(nn.Module):
    """Predicts the noise in a latent: (B, 48, h, w) and timesteps, (B,) or (1,) for all, to (B, 48, h, w); h, w even.

    The prediction has no running mean, like noise.
    """

    time_width = 128

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        width, time, elements = config.step_width, self.time_width, LATENT_CHANNELS * _SQUARE**2
        self.time = nn.Sequential(nn.Linear(64, time), nn.SiLU(), nn.Linear(time, time), nn.SiLU())
        self.conv_in = nn.Conv2d(elements, width, 1)
        self.blocks = nn.ModuleList(
            BottleneckBlock(width, config.step_bottleneck, time) for _ in range(config.step_blocks)
        )
        self.conv_out = _start_at_zero(nn.Conv2d(width, elements, 1))

    def forward(self, latent: Tensor, timestep: Tensor) -> Tensor:
        """Predict the noise; see the class."""
        time = self.time(timestep_embedding(timestep, 64).to(self.conv_in.weight.dtype))
        # Strided convolutions of squares replace a pixel shuffle with a 1x1 convolution.
        kernel = self.conv_in.weight.view(-1, LATENT_CHANNELS, _SQUARE, _SQUARE)
        x = F.conv2d(channels_last(latent), channels_last(kernel), self.conv_in.bias, stride=_SQUARE)
        for block in self.blocks:
            x = block(x, time)
        # Remove the running mean here: a linear layer keeps it at zero. Its bias is a mean, so it must have no effect.
        x = without_running_mean(x, _MEAN_REACH_PX // (LATENT_PX * _SQUARE))
        kernel = self.conv_out.weight[:, :, 0, 0].T.reshape(-1, LATENT_CHANNELS, _SQUARE, _SQUARE)
        assert self.conv_out.bias is not None
        nothing = 0 * self.conv_out.bias.view(LATENT_CHANNELS, -1).sum(1)
        return F.conv_transpose2d(x, channels_last(kernel), nothing, stride=_SQUARE)


class TinyNetwork(nn.Module):
    """All weights of omgsr-tiny: the latent space, the learned encoder and the denoiser."""

    def __init__(self, config: TinyConfig) -> None:
        super().__init__()
        self.config = config
        self.latents = WaveletLatents()
        self.encoder = PixelEncoder(config)
        self.unet = LatentDenoiser(config)


def channels_last(x: Tensor) -> Tensor:
    """Store (B, C, H, W) channels last, the fastest layout for convolutions on a CPU."""
    return x.contiguous(memory_format=torch.channels_last)
