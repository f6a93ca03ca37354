"""Blur kernels of the Real-ESRGAN degradation, and their application in the frequency domain."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from omgsr_cli.degradation.config import StageConfig
from omgsr_cli.imaging import extend

Shape = Literal["gaussian", "generalized", "plateau", "sinc"]

# In the order of `StageConfig.kernel_prob`: the profile, and whether both axes have one sigma.
_PROFILES: tuple[tuple[Shape, bool], ...] = (
    ("gaussian", True),
    ("gaussian", False),
    ("generalized", True),
    ("generalized", False),
    ("plateau", True),
    ("plateau", False),
)
_LARGE_KERNEL_PX = 13


@dataclass(frozen=True)
class KernelPlan:
    """The drawn parameters of a kernel.

    Attributes:
        shape: kind of profile.
        size_px: side, odd.
        sigma_x: standard deviation along the first axis, pixels; unused by sinc.
        sigma_y: standard deviation along the second axis; equal to sigma_x for an isotropic kernel.
        rotation: angle of the axes, radians.
        beta: exponent of the generalised and plateau profiles; 1 for the Gaussian.
        cutoff: cut-off angular frequency of sinc, radians per pixel, in (0, pi]; 0 for the others.
    """

    shape: Shape
    size_px: int
    sigma_x: float = 1.0
    sigma_y: float = 1.0
    rotation: float = 0.0
    beta: float = 1.0
    cutoff: float = 0.0


def draw_kernel(config: StageConfig, rng: np.random.Generator) -> KernelPlan:
    """Draw the kernel of a stage."""
    size_px = int(rng.choice(config.kernel_sizes))
    if rng.random() < config.sinc_prob:
        # A small kernel cannot have a low cut-off: the ringing would be cut off at its border.
        low = math.pi / 3 if size_px < _LARGE_KERNEL_PX else math.pi / 5
        return draw_sinc(size_px, low, rng)
    chances = np.array(config.kernel_prob) / sum(config.kernel_prob)
    shape, isotropic = _PROFILES[int(rng.choice(len(_PROFILES), p=chances))]
    sigma_x = rng.uniform(*config.blur_sigma)
    sigma_y = sigma_x if isotropic else rng.uniform(*config.blur_sigma)
    rotation = 0.0 if isotropic else rng.uniform(-math.pi, math.pi)
    beta = 1.0
    if shape != "gaussian":
        low, high = config.betag_range if shape == "generalized" else config.betap_range
        beta = rng.uniform(low, 1.0) if rng.random() < 0.5 else rng.uniform(1.0, high)
    return KernelPlan(shape, size_px, sigma_x, sigma_y, rotation, beta)


def draw_sinc(size_px: int, lowest_cutoff: float, rng: np.random.Generator) -> KernelPlan:
    """Draw the cut-off frequency of a sinc filter."""
    return KernelPlan("sinc", size_px, cutoff=rng.uniform(lowest_cutoff, math.pi))


def build_kernel(plan: KernelPlan) -> Tensor:
    """Evaluate a kernel on its pixel grid.

    With q = x^T C^-1 x, C the rotated covariance: gaussian exp(-q/2), generalized exp(-q^beta/2), plateau
    1/(1 + q^beta); sinc w J1(w r) / (2 pi r), the circular low-pass filter with cut-off w.
    Source: Real-ESRGAN, arXiv:2107.10833, section 3.1 for the blur and 3.3 for ringing.

    Args:
        plan: from `draw_kernel`.
    Returns:
        (size_px, size_px) float32 on the CPU, sum 1; sinc has negative values.
    """
    axis = torch.arange(plan.size_px, dtype=torch.float64) - plan.size_px // 2
    y, x = axis[:, None], axis[None, :]
    if plan.shape == "sinc":
        weight = _sinc((x * x + y * y).sqrt(), plan.cutoff)
    else:
        cos, sin = math.cos(plan.rotation), math.sin(plan.rotation)
        q = ((cos * x + sin * y) / plan.sigma_x) ** 2 + ((cos * y - sin * x) / plan.sigma_y) ** 2
        q = q**plan.beta
        weight = 1.0 / (1.0 + q) if plan.shape == "plateau" else torch.exp(-0.5 * q)
    return (weight / weight.sum()).float()


def blur(image: Tensor, kernel: Tensor) -> Tensor:
    """Correlate every channel with one kernel; borders are reflected.

    An FFT is used at every size: measured on one core, it is as fast as a depthwise convolution at 7 px and 5 to 9
    times as fast at 21 px.

    Args:
        image: (C, H, W) float32; H and W may be smaller than the kernel.
        kernel: (k, k) float32, k odd, on the same device.
    Returns:
        (C, H, W) float32; equal to conv2d on the reflected image within rounding.
    """
    height, width = image.shape[-2:]
    radius = kernel.shape[-1] // 2
    size = (fast_length(height + 2 * radius), fast_length(width + 2 * radius))
    spectrum = torch.fft.rfft2(extend(image, size, radius))
    # FFT convolves; the flipped kernel makes it the correlation that conv2d computes.
    spectrum *= torch.fft.rfft2(kernel.flip(-2, -1), s=size)
    blurred: Tensor = torch.fft.irfft2(spectrum, s=size)
    start = 2 * radius
    return blurred.narrow(-2, start, height).narrow(-1, start, width)


def fast_length(length: int) -> int:
    """The smallest even number >= length whose prime factors are 2, 3 and 5, for fast FFTs."""
    length += length % 2
    while True:
        rest = length
        for prime in (2, 3, 5):
            while rest % prime == 0:
                rest //= prime
        if rest == 1:
            return length
        length += 2


def _sinc(radius: Tensor, cutoff: float) -> Tensor:
    center = cutoff * cutoff / (4.0 * math.pi)
    safe = radius.clamp_min(1.0)
    value: Tensor = cutoff * torch.special.bessel_j1(cutoff * safe) / (2.0 * math.pi * safe)
    return torch.where(radius > 0, value, center)
