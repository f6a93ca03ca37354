"""Gaussian and Poisson camera noise, fast on one core."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

_LEVELS = 256
# With 4096 quantiles per level, the distribution is within 1/8192 of Poisson's and a table (4 MiB) stays in the cache.
_QUANTILE_BITS = 12
_LUMA = (0.2989, 0.587, 0.114)


def gaussian_noise(image: Tensor, sigma: float, gray: bool, rng: np.random.Generator) -> Tensor:
    """Draw Gaussian noise for an image.

    Args:
        image: (3, H, W) float32; only its size and device are used.
        sigma: standard deviation, 8-bit grey levels.
        gray: use the same noise for the three channels.
        rng: draws the seed of the normal generator, which runs on the CPU for every device.
    Returns:
        (3, H, W), or (1, H, W) if gray, float32, standard deviation sigma/255.
    """
    generator = torch.Generator().manual_seed(int(rng.integers(2**32)))
    shape = (1 if gray else image.shape[0], *image.shape[1:])
    noise = torch.randn(shape, generator=generator)
    return noise.mul_(sigma / 255.0).to(image.device)


def poisson_noise(image: Tensor, scale: float, gray: bool, rng: np.random.Generator) -> Tensor:
    """Draw signal-dependent shot noise, scale * (Poisson(v x) / v - x), for an image rounded to 8 bits.

    v is the number of distinct values in the image, rounded up to a power of two: few values mean few photons.
    Source: Real-ESRGAN, arXiv:2107.10833, and its published code. Sampled from a table of quantiles.

    Args:
        image: (3, H, W) float32 in [0, 1].
        scale: factor on the noise, no unit.
        gray: use the noise of the luma for the three channels.
        rng: source of randomness.
    Returns:
        (3, H, W), or (1, H, W) if gray, float32 on the image's device.
    """
    if gray:
        weights = torch.tensor(_LUMA, device=image.device)
        image = (image * weights[:, None, None]).sum(0, keepdim=True)
    levels = (image * 255.0).round_().clamp_(0, 255).to(torch.uint8).cpu().flatten()
    values = 2 ** math.ceil(math.log2(int(torch.bincount(levels, minlength=_LEVELS).count_nonzero())))
    quantiles = np.frombuffer(rng.bytes(2 * len(levels)), dtype=np.uint16).astype(np.int32)
    index = torch.from_numpy(quantiles).bitwise_right_shift_(16 - _QUANTILE_BITS)
    index += levels.int().bitwise_left_shift_(_QUANTILE_BITS)
    noise = _noise_table(values).index_select(0, index)
    return noise.mul_(scale).reshape(image.shape).to(image.device)


@lru_cache(maxsize=9)
def _noise_table(values: int) -> Tensor:
    """The quantiles of Poisson(v x) / v - x for the 256 grey levels x, as a flat table, one level after another."""
    count = 1 << _QUANTILE_BITS
    rates = np.arange(_LEVELS) / (_LEVELS - 1) * values
    photons = np.arange(int(values + 8 * math.sqrt(values)) + 8)
    log_factorial = np.concatenate([[0.0], np.cumsum(np.log(photons[1:]))])
    with np.errstate(divide="ignore", invalid="ignore"):
        log_mass = photons * np.log(rates[:, None]) - rates[:, None] - log_factorial
    log_mass[0] = np.where(photons == 0, 0.0, -np.inf)
    cumulative = np.cumsum(np.exp(log_mass), axis=1)
    # The number of quantiles (j + 1/2) / count for each number of photons.
    upto = np.clip(np.floor(cumulative * count + 0.5), 0, count).astype(np.int64)
    upto[:, -1] = count
    table = np.empty((_LEVELS, count), dtype=np.float32)
    for level, rate in enumerate(rates):
        drawn = np.repeat(photons, np.diff(upto[level], prepend=0))
        table[level] = (drawn - rate) / values
    return torch.from_numpy(table.ravel())
