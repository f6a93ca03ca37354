"""The latent space of omgsr-tiny: a wavelet packet transform that costs little and loses nothing.

Two levels of the CDF 9/7 wavelet (the one of JPEG 2000) split an image into 16 sub-bands per colour at a
quarter of its size. Its synthesis functions overlap smoothly, unlike those of a 4x4 space-to-depth, so an
error in a coefficient cannot draw the edge of a block; lifting makes it exactly invertible at any border.

Source: Daubechies and Sweldens, "Factoring wavelet transforms into lifting steps", 1998, table for CDF 9/7.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

_PREDICT_1, _UPDATE_1, _PREDICT_2, _UPDATE_2 = -1.586134342, -0.05298011854, 0.8829110762, 0.4435068522
# This gain makes low-pass and high-pass filters of nearly unit norm: the transform is almost orthonormal.
_GAIN = 1.149604398
LEVELS = 2
LATENT_PX = 2**LEVELS
LATENT_CHANNELS = 3 * 4**LEVELS

# Rows are luma (BT.601 weights normalised to unit length would not be orthogonal to chroma; equal weights are).
_OPPONENT = ((3**-0.5, 3**-0.5, 3**-0.5), (2**-0.5, 0.0, -(2**-0.5)), (6**-0.5, -2 * 6**-0.5, 6**-0.5))


def _lift(target: Tensor, source: Tensor, weight: float, dim: int, side: int) -> Tensor:
    """One lifting step: target + weight * (source + its neighbour along `dim`).

    The neighbour is the next element where `side` is 1, the one before where it is -1; at the border an element is its
    own (symmetric extension).
    """
    lifted = torch.add(target, source, alpha=weight)
    size = source.shape[dim]
    here, there, border = (0, 1, size - 1) if side > 0 else (1, 0, 0)
    # In place: a shifted copy of the neighbours would cost as much as the step itself.
    lifted.narrow(dim, here, size - 1).add_(source.narrow(dim, there, size - 1), alpha=weight)
    lifted.narrow(dim, border, 1).add_(source.narrow(dim, border, 1), alpha=weight)
    return lifted


def _split(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """One lifting analysis along `dim`: (..., N, ...) to low-pass and high-pass of N/2 each."""
    even, odd = x.reshape(*x.shape[:dim], -1, 2, *x.shape[dim + 1 :]).unbind(dim + 1)
    odd = _lift(odd, even, _PREDICT_1, dim, 1)
    even = _lift(even, odd, _UPDATE_1, dim, -1)
    odd = _lift(odd, even, _PREDICT_2, dim, 1)
    even = _lift(even, odd, _UPDATE_2, dim, -1)
    return even * _GAIN, odd / _GAIN


def _join(low: Tensor, high: Tensor, dim: int) -> Tensor:
    """The exact inverse of `_split`."""
    even, odd = low / _GAIN, high * _GAIN
    even = _lift(even, odd, -_UPDATE_2, dim, -1)
    odd = _lift(odd, even, -_PREDICT_2, dim, 1)
    even = _lift(even, odd, -_UPDATE_1, dim, -1)
    odd = _lift(odd, even, -_PREDICT_1, dim, 1)
    return torch.stack((even, odd), dim + 1).flatten(dim, dim + 1)


def analyse(image: Tensor) -> Tensor:
    """Split an image into sub-bands.

    Args:
        image: (B, C, H, W) float; H and W multiples of 4, any unit.
    Returns:
        (B, 16*C, H/4, W/4), same dtype: band-major, so channels 0..C-1 are the low-pass of the C colours.
    """
    for _ in range(LEVELS):
        low, high = _split(image, 2)
        image = torch.cat((*_split(low, 3), *_split(high, 3)), 1)
    return image


def synthesise(bands: Tensor) -> Tensor:
    """The exact inverse of `analyse`.

    Args:
        bands: (B, 16*C, h, w) float.
    Returns:
        (B, C, 4*h, 4*w), same dtype.
    """
    for _ in range(LEVELS):
        low_low, low_high, high_low, high_high = bands.chunk(4, 1)
        bands = _join(_join(low_low, low_high, 3), _join(high_low, high_high, 3), 2)
    return bands


@cache
def _opponent(dtype: torch.dtype, device: torch.device) -> Tensor:
    """Give the matrix (3, 3) on a device, copied there once."""
    # Training needs it too, which takes no tensor that was made in inference mode.
    with torch.inference_mode(False):
        return torch.tensor(_OPPONENT, dtype=dtype, device=device)


class WaveletLatents(nn.Module):
    """Image to latent and back: opponent colours, wavelet packets, and one scale for each channel.

    The scales are measured on the training photographs and kept with the weights.
    """

    channel_mean: Tensor
    channel_std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("channel_mean", torch.zeros(LATENT_CHANNELS))
        self.register_buffer("channel_std", torch.ones(LATENT_CHANNELS))

    def encode(self, image: Tensor) -> Tensor:
        """Map sRGB in [-1, 1], (B, 3, H, W), sides multiples of 4, to (B, 48, H/4, W/4) of unit variance or less."""
        # Training runs the networks under autocast; in bf16 the colours would lose more than an image's 8 bits.
        with torch.autocast(image.device.type, enabled=False):
            colours = torch.einsum("oc,bchw->bohw", _opponent(image.dtype, image.device), image)
        bands = analyse(colours)
        return (bands - self._column(self.channel_mean)) / self._column(self.channel_std)

    def decode(self, latent: Tensor) -> Tensor:
        """The exact inverse of `encode`."""
        bands = latent * self._column(self.channel_std) + self._column(self.channel_mean)
        # The matrix is orthonormal: its transpose is its inverse.
        with torch.autocast(latent.device.type, enabled=False):
            return torch.einsum("oc,bohw->bchw", _opponent(bands.dtype, bands.device), synthesise(bands))

    @staticmethod
    def _column(values: Tensor) -> Tensor:
        return values.view(1, -1, 1, 1)
