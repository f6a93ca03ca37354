"""The latent space of omgsr-tiny: a wavelet packet transform, which is cheap and lossless.

Two levels of the CDF 9/7 wavelet (used in JPEG 2000) split an image into 16 sub-bands per colour at a quarter of its
size. Its synthesis functions overlap smoothly, unlike those of a 4x4 space-to-depth, so an error in a coefficient does
not produce a block edge. Lifting makes the transform exactly invertible at any border.

Lifting defines the transform, but needs 32 passes over an image. Both levels of an axis are therefore applied as one
banded matrix: a block of 4 elements depends on 3 blocks on each side.

Source: Daubechies and Sweldens, "Factoring wavelet transforms into lifting steps", 1998, table for CDF 9/7.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

_PREDICT_1, _UPDATE_1, _PREDICT_2, _UPDATE_2 = -1.586134342, -0.05298011854, 0.8829110762, 0.4435068522
# With this gain, low-pass and high-pass filters have nearly unit norm, and the transform is nearly orthonormal.
_GAIN = 1.149604398
LEVELS = 2
LATENT_PX = 2**LEVELS
LATENT_CHANNELS = 3 * 4**LEVELS

# The first row is luma, with equal weights: BT.601 weights of unit length would not be orthogonal to chroma.
_OPPONENT = ((3**-0.5, 3**-0.5, 3**-0.5), (2**-0.5, 0.0, -(2**-0.5)), (6**-0.5, -2 * 6**-0.5, 6**-0.5))

#: A block depends on this many blocks on each side, in analysis and synthesis.
_REACH = 3
_SPAN = 2 * _REACH + 1


def _lift(target: Tensor, source: Tensor, weight: float, side: int) -> Tensor:
    """One lifting step along the rows: target + weight * (source + neighbour).

    The neighbour is the next row if `side` is 1 and the previous row if it is -1. A border row is its own neighbour
    (symmetric extension).
    """
    neighbour = torch.cat((source[1:], source[-1:]) if side > 0 else (source[:1], source[:-1]))
    return target + weight * (source + neighbour)


def _split(x: Tensor) -> tuple[Tensor, Tensor]:
    """One level of analysis along the rows: (N, K) to low-pass and high-pass of N/2 each."""
    even, odd = x[::2], x[1::2]
    odd = _lift(odd, even, _PREDICT_1, 1)
    even = _lift(even, odd, _UPDATE_1, -1)
    odd = _lift(odd, even, _PREDICT_2, 1)
    even = _lift(even, odd, _UPDATE_2, -1)
    return even * _GAIN, odd / _GAIN


def transform_matrix(blocks: int, *, inverse: bool = False) -> Tensor:
    """Build the matrix of both levels for an axis of 4 * blocks elements.

    Args:
        blocks: number of blocks, at least 1.
        inverse: True for the synthesis.
    Returns:
        (4 * blocks, 4 * blocks) float64. Bands are innermost; each block has low-low, high-low (high of the first
        level, low of the second), low-high and high-high.
    """
    low, high = _split(torch.eye(LATENT_PX * blocks, dtype=torch.float64))
    (low_low, low_high), (high_low, high_high) = _split(low), _split(high)
    matrix = torch.stack((low_low, high_low, low_high, high_high), 1).flatten(0, 1)
    return torch.linalg.inv(matrix).contiguous() if inverse else matrix


class _Matrices(NamedTuple):
    """The distinct rows of the matrix for a long axis.

    Attributes:
        first, last: rows of the three blocks at each end, (12 c, 28 c), where c is 1, or 3 with colours innermost.
        inside: rows of any block between them, (4 c, 28 c).
    """

    first: Tensor
    inside: Tensor
    last: Tensor


@cache
def _matrices(inverse: bool, colours: bool, dtype: torch.dtype, device: torch.device) -> _Matrices:
    """The matrices on a device; they are copied there once."""
    # 16 blocks are enough to make the middle independent of the borders.
    matrix, span, edge = transform_matrix(16, inverse=inverse), LATENT_PX * _SPAN, LATENT_PX * _REACH
    start = (8 - _REACH) * LATENT_PX
    inside = matrix[8 * LATENT_PX : 9 * LATENT_PX, start : start + span]
    parts = matrix[:edge, :span], inside, matrix[-edge:, -span:]
    # Training uses them too, and cannot use tensors that were created in inference mode.
    with torch.inference_mode(False):
        return _Matrices(*(_with_colours(part, inverse, colours).to(device, dtype) for part in parts))


@cache
def _whole_matrix(blocks: int, inverse: bool, colours: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The matrix for a short axis on a device; it is copied there once."""
    with torch.inference_mode(False):
        return _with_colours(transform_matrix(blocks, inverse=inverse), inverse, colours).to(device, dtype)


def _with_colours(matrix: Tensor, inverse: bool, colours: bool) -> Tensor:
    """Extend the matrix to elements of 3 colours, with the transform to or from opponent colours; else copy it."""
    if not colours:
        return matrix.clone()
    opponent = torch.tensor(_OPPONENT, dtype=torch.float64)
    # The colour matrix is orthonormal, so its transpose is its inverse.
    return torch.kron(matrix.contiguous(), opponent.T.contiguous() if inverse else opponent)


def _along_rows(x: Tensor, *, inverse: bool) -> Tensor:
    """Transform (B, 4 * n, K) along the second axis."""
    blocks = x.shape[1] // LATENT_PX
    if blocks <= 2 * _REACH:
        return _whole_matrix(blocks, inverse, False, x.dtype, x.device) @ x
    first, inside, last = _matrices(inverse, False, x.dtype, x.device)
    span, edge = LATENT_PX * _SPAN, LATENT_PX * _REACH
    result = torch.empty_like(x)
    result[:, :edge] = first @ x[:, :span]
    result[:, -edge:] = last @ x[:, -span:]
    # Overlapping windows of rows are a view, which a batched matrix product reads without a copy.
    for index, windows in enumerate(x.unfold(1, span, LATENT_PX).transpose(2, 3)):
        result[index, edge:-edge] = torch.bmm(inside.expand(len(windows), -1, -1), windows).flatten(0, 1)
    return result


def _along_columns(x: Tensor, *, inverse: bool) -> Tensor:
    """Transform (B, H, n, 12) along n blocks of 4 elements of 3 colours, to or from opponent colours."""
    blocks, width = x.shape[2:]
    if blocks <= 2 * _REACH:
        return F.linear(x.flatten(2), _whole_matrix(blocks, inverse, True, x.dtype, x.device)).view_as(x)
    first, inside, last = _matrices(inverse, True, x.dtype, x.device)
    # Channels have stride 1, so the kernel is channels last like the image.
    kernel = inside.view(width, 1, _SPAN, width).permute(0, 3, 1, 2)
    result = F.conv2d(x.permute(0, 3, 1, 2), kernel, padding=(0, _REACH)).permute(0, 2, 3, 1)
    result[:, :, :_REACH] = F.linear(x[:, :, :_SPAN].flatten(2), first).view(*x.shape[:2], _REACH, width)
    result[:, :, -_REACH:] = F.linear(x[:, :, -_SPAN:].flatten(2), last).view(*x.shape[:2], _REACH, width)
    return result


class WaveletLatents(nn.Module):
    """Maps images to latents and back: opponent colours, wavelet packets, and a mean and scale per channel.

    Channels are band-major, with row bands before column bands and the second level before the first. Channels 0 to 2
    are the low-pass of the three colours. The scales are measured on the training photographs and stored with the
    weights.
    """

    channel_mean: Tensor
    channel_std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("channel_mean", torch.zeros(LATENT_CHANNELS))
        self.register_buffer("channel_std", torch.ones(LATENT_CHANNELS))

    def encode(self, image: Tensor) -> Tensor:
        """Map sRGB in [-1, 1], (B, 3, H, W), H and W multiples of 4, to (B, 48, H/4, W/4) of at most unit variance."""
        batch, _, height, width = image.shape
        high, wide = height // LATENT_PX, width // LATENT_PX
        # Training uses autocast, but in bf16 colours would be coarser than 8 bits.
        with torch.autocast(image.device.type, enabled=False):
            rows = _along_rows(image.permute(0, 2, 3, 1).reshape(batch, height, -1), inverse=False)
            bands = _along_columns(rows.view(batch, height, wide, -1), inverse=False)
        # Axes after the first two: row bands (second level, first), blocks, column bands (second, first), colours.
        bands = bands.view(batch, high, 2, 2, wide, 2, 2, 3).permute(0, 1, 4, 2, 5, 3, 6, 7)
        bands = bands.reshape(batch, high, wide, LATENT_CHANNELS)
        scale = self.channel_std.reciprocal()
        return torch.addcmul(-self.channel_mean * scale, bands, scale).permute(0, 3, 1, 2)

    def decode(self, latent: Tensor) -> Tensor:
        """The exact inverse of `encode`."""
        batch, _, high, wide = latent.shape
        height, width = high * LATENT_PX, wide * LATENT_PX
        bands = torch.addcmul(self.channel_mean, latent.permute(0, 2, 3, 1), self.channel_std)
        bands = bands.view(batch, high, wide, 2, 2, 2, 2, 3).permute(0, 1, 3, 5, 2, 4, 6, 7)
        with torch.autocast(latent.device.type, enabled=False):
            rows = _along_columns(bands.reshape(batch, height, wide, -1), inverse=True)
            image = _along_rows(rows.view(batch, height, -1), inverse=True)
        return image.view(batch, height, width, 3).permute(0, 3, 1, 2)
