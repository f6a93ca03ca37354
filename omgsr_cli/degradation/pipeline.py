"""Draw a degradation from its configuration and apply it to images."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from io import BytesIO
from typing import Any, Literal, ParamSpec, TypeVar

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch program gives it
from PIL import Image
from torch import Tensor

from omgsr_cli.degradation.config import DegradationConfig, StageConfig
from omgsr_cli.degradation.kernels import KernelPlan, blur, build_kernel, draw_kernel, draw_sinc
from omgsr_cli.degradation.noise import gaussian_noise, poisson_noise
from omgsr_cli.errors import ShapeError

_RESIZE_MODES = ("area", "bilinear", "bicubic")

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")

_pool_lock = threading.Lock()


@dataclass(frozen=True)
class StagePlan:
    """The drawn parameters of one stage, in the units of `StageConfig`; without a blur, `kernel` is None.

    `factor` is relative to the input of the stage; for the second stage, to the low-quality size. `strength` is that of
    Gaussian noise or the factor on Poisson noise, and the noise is the same in every channel if `gray` is set.
    """

    kernel: KernelPlan | None
    factor: float
    mode: str
    gaussian: bool
    strength: float
    gray: bool
    quality: int


@dataclass(frozen=True)
class HalftonePlan:
    """The drawn screen: distance of the dots, angle of their rows in radians, contrast between dot and paper."""

    pitch_px: float
    angle: float
    strength: float


@dataclass(frozen=True)
class DegradationPlan:
    """All random choices for one sample, except for the noise itself.

    The second stage ends at low-quality size. The last JPEG comes after the resize to this size and the final filter if
    `jpeg_last` is set, or before. There may be no final filter and no halftone screen.
    """

    first: StagePlan
    second: StagePlan
    final_kernel: KernelPlan | None
    final_mode: str
    jpeg_last: bool
    halftone: HalftonePlan | None = None
    jpeg: Literal["libjpeg", "simulated"] = "libjpeg"


def in_one_thread(
    function: Callable[_Arguments, _Result], *arguments: _Arguments.args, **options: _Arguments.kwargs
) -> _Result:
    """Call a function with all of its tensor operations in a single thread.

    FFTs, sums and the ends of vectorised loops round differently when they are split differently, so a crop computed
    with two threads may differ from the same crop computed with one. The number of threads of the caller does not
    change: torch stores it per calling thread, and the function runs in another thread, with the number one.
    """
    if torch.get_num_threads() == 1:
        return function(*arguments, **options)
    with _pool_lock:
        pool = _single_thread()
    return pool.submit(function, *arguments, **options).result()


@cache
def _single_thread() -> ThreadPoolExecutor:
    threads, pool = torch.get_num_threads(), ThreadPoolExecutor(1, "omgsr-one-thread")
    # A thread inherits the number of the process when it first reads it, so read it before setting it.
    pool.submit(torch.get_num_threads).result()
    pool.submit(torch.set_num_threads, 1).result()
    # torch also stores the latest number for threads that do not exist yet; give those the number of the caller.
    torch.set_num_threads(threads)
    return pool


if hasattr(os, "register_at_fork"):
    # A forked process inherits the pool, but not its thread.
    os.register_at_fork(after_in_child=_single_thread.cache_clear)


def degrade(
    hq: Tensor, scale: float, config: DegradationConfig, *, seed: int, epoch: int, indices: Sequence[int]
) -> Tensor:
    """Degrade sharp images by two rounds of blur, resize, noise and JPEG.

    The result for a sample depends only on (seed, epoch, its index) and its own pixels: not on its neighbours, the
    batch size, the worker, the number of threads, or any global random state. On the CPU it is bit-identical.
    Source: Real-ESRGAN, arXiv:2107.10833; blur by FFT, Poisson noise from a table, JPEG by libjpeg.

    Args:
        hq: (B, 3, H, W) float32, sRGB in [0, 1], any device. JPEG runs on the CPU.
        scale: H over the result's height, > 0; need not be an integer.
        config: ranges and probabilities.
        seed: seed of the run, >= 0.
        epoch: >= 0.
        indices: index of each sample in the dataset, >= 0.
    Returns:
        (B, 3, round(H/scale), round(W/scale)) float32 on hq's device, in [0, 1], multiples of 1/255; at least 1x1.
    Raises:
        ShapeError: hq is not (B, 3, H, W), is empty, or has another number of samples than indices.
    """
    if hq.ndim != 4 or hq.shape[1] != 3 or 0 in hq.shape:
        raise ShapeError(f"hq must have the shape (B, 3, H, W), not {tuple(hq.shape)}")
    if len(indices) != hq.shape[0]:
        raise ShapeError(f"{hq.shape[0]} images, but {len(indices)} indices")
    if not scale > 0:
        raise ShapeError(f"scale must be above 0, not {scale}")
    size = (max(1, round(hq.shape[2] / scale)), max(1, round(hq.shape[3] / scale)))
    samples = []
    for image, index in zip(hq, indices, strict=True):
        rng = sample_rng(seed, epoch, index)
        samples.append(in_one_thread(_apply, image.float().contiguous(), size, draw_plan(config, rng), rng))
    return torch.stack(samples).mul_(255.0).round_().div_(255.0)


def describe_degradation(config: DegradationConfig, *, seed: int, epoch: int, index: int) -> dict[str, Any]:
    """The random choices of `degrade` for a sample, as nested plain values; they explain the spread of results."""
    return asdict(draw_plan(config, sample_rng(seed, epoch, index)))


def draw_plan(config: DegradationConfig, rng: np.random.Generator) -> DegradationPlan:
    """Draw every choice of a sample."""
    return DegradationPlan(
        first=_draw_stage(config.first, rng),
        second=_draw_stage(config.second, rng),
        final_kernel=_draw_final_filter(config, rng),
        final_mode=draw_mode(rng),
        jpeg_last=bool(rng.random() < 0.5),
        # Drawn last, and only if its probability is above 0, so the other choices of a seed do not change.
        halftone=_draw_halftone(config, rng) if config.halftone_prob else None,
        jpeg=config.jpeg,
    )


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator for one sample in one epoch, independent of all others."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence((seed, epoch, int(index)))))


def _draw_stage(config: StageConfig, rng: np.random.Generator) -> StagePlan:
    kernel = draw_kernel(config, rng) if rng.random() < config.blur_prob else None
    factor = _draw_factor(config, rng)
    mode = draw_mode(rng)
    gaussian = bool(rng.random() < config.gaussian_noise_prob)
    strength = rng.uniform(*(config.noise_range if gaussian else config.poisson_scale_range))
    gray = bool(rng.random() < config.gray_noise_prob)
    return StagePlan(kernel, factor, mode, gaussian, strength, gray, round(rng.uniform(*config.jpeg_range)))


def _draw_final_filter(config: DegradationConfig, rng: np.random.Generator) -> KernelPlan | None:
    if rng.random() >= config.final_sinc_prob:
        return None
    return draw_sinc(int(rng.choice(config.final_kernel_sizes)), math.pi / 3, rng)


def _draw_halftone(config: DegradationConfig, rng: np.random.Generator) -> HalftonePlan | None:
    if rng.random() >= config.halftone_prob:
        return None
    pitch_px, angle = rng.uniform(*config.halftone_pitch), rng.uniform(0, math.pi / 2)
    return HalftonePlan(pitch_px, angle, rng.uniform(*config.halftone_strength))


def _draw_factor(config: StageConfig, rng: np.random.Generator) -> float:
    up, down, _ = config.resize_prob
    choice = rng.random()
    if choice < up:
        return rng.uniform(1.0, config.resize_range[1])
    if choice < up + down:
        return rng.uniform(config.resize_range[0], 1.0)
    return 1.0


def draw_mode(rng: np.random.Generator) -> str:
    """Draw one of the resize filters."""
    return _RESIZE_MODES[int(rng.integers(len(_RESIZE_MODES)))]


def _apply(image: Tensor, size: tuple[int, int], plan: DegradationPlan, rng: np.random.Generator) -> Tensor:
    """Apply a plan to one (3, H, W) image in [0, 1]; returns (3, *size) in [0, 1]."""
    compress = jpeg if plan.jpeg == "libjpeg" else simulate_jpeg
    if plan.halftone is not None:
        image = print_halftone(image, plan.halftone)
    image = _blur(image, plan.first.kernel)
    image = interpolate(image, _scaled(image.shape[-2:], plan.first.factor), plan.first.mode)
    image = compress(_add_noise(image, plan.first, rng), plan.first.quality)
    image = _blur(image, plan.second.kernel)
    image = interpolate(image, _scaled(size, plan.second.factor), plan.second.mode)
    image = _add_noise(image, plan.second, rng)
    if not plan.jpeg_last:
        image = compress(image, plan.second.quality)
    image = _blur(interpolate(image, size, plan.final_mode), plan.final_kernel)
    if plan.jpeg_last:
        image = compress(image, plan.second.quality)
    return image.clamp(0.0, 1.0)


def print_halftone(image: Tensor, plan: HalftonePlan) -> Tensor:
    """Apply a halftone screen to an image: dots in a square grid, most visible in middle tones.

    Args:
        image: (3, H, W) float32 in [0, 1].
        plan: distance, angle and strength of the dots.
    Returns:
        Same shape, in [0, 1]; the mean over many dots does not change.
    """
    rows = torch.arange(image.shape[1], device=image.device, dtype=torch.float32)[:, None]
    columns = torch.arange(image.shape[2], device=image.device, dtype=torch.float32)
    along = (columns * math.cos(plan.angle) + rows * math.sin(plan.angle)) * (2 * math.pi / plan.pitch_px)
    across = (rows * math.cos(plan.angle) - columns * math.sin(plan.angle)) * (2 * math.pi / plan.pitch_px)
    dots = (along.cos() + across.cos()) / 4
    return (image + plan.strength * dots * (1 - (2 * image - 1).abs())).clamp(0, 1)


def _scaled(size: Sequence[int], factor: float) -> tuple[int, int]:
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def _blur(image: Tensor, plan: KernelPlan | None) -> Tensor:
    return image if plan is None else blur(image, build_kernel(plan).to(image.device))


def interpolate(image: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    """Resize (C, H, W) without antialiasing, as the published pipeline does: aliasing is part of the degradation."""
    if tuple(image.shape[-2:]) == size:
        return image
    if mode == "area":
        return F.interpolate(image[None], size=size, mode=mode)[0]
    return F.interpolate(image[None], size=size, mode=mode, align_corners=False)[0]


def _add_noise(image: Tensor, plan: StagePlan, rng: np.random.Generator) -> Tensor:
    image = image.clamp(0.0, 1.0)
    noise = (gaussian_noise if plan.gaussian else poisson_noise)(image, plan.strength, plan.gray, rng)
    return image.add_(noise).clamp_(0.0, 1.0)


def jpeg(image: Tensor, quality: int) -> Tensor:
    """Compress and decompress an image as JPEG, with chroma at half size, which is libjpeg's default.

    Args:
        image: (3, H, W) float32, clamped to [0, 1].
        quality: 1 to 100.
    Returns:
        (3, H, W) float32 on the image's device, in [0, 1], multiples of 1/255.
    """
    pixels = image.clamp(0.0, 1.0).mul_(255.0).round_().to(torch.uint8).permute(1, 2, 0).contiguous().cpu().numpy()
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as decoded:
        restored = torch.from_numpy(np.array(decoded))
    # Make the bytes planar: strided channels make later FFTs twice as slow.
    return restored.permute(2, 0, 1).contiguous().to(image.device).float().div_(255.0)


# Rows are the first index of a block; the published code has the transpose of the standard's table of luma.
_LUMA_STEPS = (
    *((16, 12, 14, 14, 18, 24, 49, 72), (11, 12, 13, 17, 22, 35, 64, 92), (10, 14, 16, 22, 37, 55, 78, 95)),
    *((16, 19, 24, 29, 56, 64, 87, 98), (24, 26, 40, 51, 68, 81, 103, 112), (40, 58, 57, 87, 109, 104, 121, 100)),
    *((51, 60, 69, 80, 103, 113, 120, 103), (61, 55, 56, 62, 77, 92, 101, 99)),
)
_CHROMA_STEPS = ((17, 18, 24, 47), (18, 21, 26, 66), (24, 26, 56, 99), (47, 66, 99, 99))
_TO_YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
_FINEST = 0.01
"""Factor of the quantisation steps at the best quality, where the formula gives 0."""


def simulate_jpeg(image: Tensor, quality: float) -> Tensor:
    """Quantise an image's cosine transform as JPEG does, without libjpeg.

    Chroma is averaged over 2x2 px and repeated, where libjpeg interpolates; sides are extended in black to multiples
    of 16; nothing is rounded to whole levels.
    Source: DiffJPEG as in Real-ESRGAN, arXiv:2107.10833; ITU-T T.81, annexes A and K.

    Args:
        image: (3, H, W) float32, clamped to [0, 1].
        quality: 1 to 100.
    Returns:
        (3, H, W) float32 on the image's device, in [0, 1].
    """
    height, width = image.shape[-2:]
    padded = F.pad(image.clamp(0, 1) * 255, (0, -width % 16, 0, -height % 16))
    matrix, middle = image.new_tensor(_TO_YCBCR), image.new_tensor((0.0, 128.0, 128.0))[:, None, None]
    planes = torch.tensordot(matrix, padded, 1) + middle
    factor = max(_FINEST, (5000 / quality if quality < 50 else 200 - 2 * quality) / 100)
    chroma_steps = image.new_full((8, 8), 99.0)
    chroma_steps[:4, :4] = image.new_tensor(_CHROMA_STEPS)
    luma = _quantise(planes[:1], image.new_tensor(_LUMA_STEPS) * factor)
    chroma = _quantise(F.avg_pool2d(planes[1:], 2), chroma_steps * factor)
    planes = torch.cat([luma, chroma.repeat_interleave(2, 1).repeat_interleave(2, 2)]) - middle
    rgb: Tensor = torch.tensordot(torch.linalg.inv(matrix), planes, 1)
    return rgb[:, :height, :width].clamp(0, 255).div(255)


def _quantise(planes: Tensor, steps: Tensor) -> Tensor:
    """Round the cosine transform of blocks of 8x8 to multiples of (8, 8) steps: (C, H, W) in [0, 255], same shape."""
    channels, height, width = planes.shape
    places = torch.arange(8, dtype=torch.float32)
    transform = ((2 * places + 1) * places[:, None] * (math.pi / 16)).cos() / 2
    transform[0] /= math.sqrt(2)
    transform = transform.to(planes)
    blocks = planes.reshape(channels, height // 8, 8, width // 8, 8).transpose(2, 3) - 128
    frequencies = (transform @ blocks @ transform.T / steps).round() * steps
    blocks = transform.T @ frequencies @ transform + 128
    return blocks.transpose(2, 3).reshape(channels, height, width)
