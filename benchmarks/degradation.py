"""Compare `omgsr_cli.degradation` with a straightforward implementation: speed on one core, and statistics.

The straightforward implementation follows the published description: depthwise conv2d with kernels padded to 21x21,
torch's Poisson sampler, and JPEG as a differentiable block-DCT program. Both run the same drawn plans.

    python benchmarks/degradation.py [--photos FOLDER] [--sizes 512 1024] [--samples 24] [--crops 200]
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from PIL import Image
from torch import Tensor

from omgsr_cli.degradation import DegradationConfig, degrade, load_degradation
from omgsr_cli.degradation.kernels import KernelPlan, build_kernel
from omgsr_cli.degradation.pipeline import DegradationPlan, StagePlan, draw_plan, sample_rng

_PADDED_KERNEL_PX = 21
_SCALE = 4

# ITU-T T.81, tables K.1 and K.2.
_LUMA_TABLE = """16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62
18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99"""
_CHROMA_TABLE = """17 18 24 47 99 99 99 99 18 21 26 66 99 99 99 99 24 26 56 99 99 99 99 99 47 66 99 99 99 99 99 99
99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99 99"""


@lru_cache(maxsize=1)
def _dct() -> Tensor:
    """Return the orthonormal 8x8 block DCT-II as a (64, 64) matrix, coefficients by pixels."""
    index = torch.arange(8, dtype=torch.float64)
    matrix = torch.cos((2 * index[None] + 1) * index[:, None] * math.pi / 16) / 2
    matrix[0] /= math.sqrt(2)
    return torch.kron(matrix, matrix).float()


def _quantize_plane(plane: Tensor, table: Tensor) -> Tensor:
    """Encode and decode one (H, W) plane in 0..255, with H and W multiples of 8."""
    height, width = plane.shape
    blocks = (plane - 128).reshape(height // 8, 8, width // 8, 8).permute(0, 2, 1, 3).reshape(-1, 64)
    coefficients = torch.round(blocks @ _dct().T / table) * table
    decoded = (coefficients @ _dct()).reshape(height // 8, width // 8, 8, 8).permute(0, 2, 1, 3)
    return decoded.reshape(height, width) + 128


def block_dct_jpeg(image: Tensor, quality: int) -> Tensor:
    """Simulate JPEG with half-size chroma on a (3, H, W) image in [0, 1], in torch and without entropy coding."""
    height, width = image.shape[-2:]
    padded = F.pad(image.clamp(0, 1)[None] * 255, (0, -width % 16, 0, -height % 16), mode="replicate")[0]
    to_ycc = torch.tensor([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
    ycc = torch.einsum("ij,jhw->ihw", to_ycc, padded)
    factor = (50 / quality) if quality < 50 else (2 - quality / 50)
    luma, chroma = (torch.tensor([float(v) for v in text.split()]) for text in (_LUMA_TABLE, _CHROMA_TABLE))
    # Divisors are integers in JPEG files.
    luma, chroma = (luma * factor).round().clamp(1, 255), (chroma * factor).round().clamp(1, 255)
    small = F.avg_pool2d(ycc[1:], 2) + 128
    planes = [_quantize_plane(ycc[0], luma)[None]]
    for plane in small:
        decoded = _quantize_plane(plane, chroma)[None, None] - 128
        # libjpeg upscales chroma with this triangle filter.
        planes.append(F.interpolate(decoded, scale_factor=2, mode="bilinear")[0])
    rgb: Tensor = torch.einsum("ij,jhw->ihw", torch.linalg.inv(to_ycc), torch.cat(planes))
    return (rgb[:, :height, :width] / 255).clamp(0, 1)


def _conv_blur(image: Tensor, plan: KernelPlan | None) -> Tensor:
    if plan is None:
        return image
    pad = (_PADDED_KERNEL_PX - plan.size_px) // 2
    kernel = F.pad(build_kernel(plan), [pad] * 4).expand(3, 1, -1, -1)
    padded = F.pad(image[None], [_PADDED_KERNEL_PX // 2] * 4, mode="reflect")
    blurred: Tensor = F.conv2d(padded, kernel, groups=3)
    return blurred[0]


def _poisson(image: Tensor, generator: torch.Generator) -> Tensor:
    rounded = (image * 255).round() / 255
    values = 2 ** math.ceil(math.log2(len(torch.unique(rounded))))
    photons = torch.poisson(rounded * values, generator=generator)
    noise: Tensor = photons / values - rounded
    return noise


def _noisy(image: Tensor, plan: StagePlan, generator: torch.Generator) -> Tensor:
    image = image.clamp(0, 1)
    source = image
    if plan.gray:
        source = (image * torch.tensor([0.2989, 0.587, 0.114])[:, None, None]).sum(0, keepdim=True)
    if plan.gaussian:
        noise = torch.randn(source.shape, generator=generator) * (plan.strength / 255)
    else:
        noise = _poisson(source, generator) * plan.strength
    return (image + noise).clamp(0, 1)


def _resized(image: Tensor, size: tuple[int, int], mode: str) -> Tensor:
    if tuple(image.shape[-2:]) == size:
        return image
    return F.interpolate(image[None], size=size, mode=mode)[0]


def degrade_plainly(image: Tensor, plan: DegradationPlan, generator: torch.Generator) -> Tensor:
    """Run a plan on one (3, H, W) image in [0, 1] with straightforward code; (3, H/4, W/4), multiples of 1/255."""
    size = (round(image.shape[1] / _SCALE), round(image.shape[2] / _SCALE))
    out = _conv_blur(image, plan.first.kernel)
    first = (round(out.shape[1] * plan.first.factor), round(out.shape[2] * plan.first.factor))
    out = block_dct_jpeg(_noisy(_resized(out, first, plan.first.mode), plan.first, generator), plan.first.quality)
    out = _conv_blur(out, plan.second.kernel)
    second = (round(size[0] * plan.second.factor), round(size[1] * plan.second.factor))
    out = _noisy(_resized(out, second, plan.second.mode), plan.second, generator)
    if not plan.jpeg_last:
        out = block_dct_jpeg(out, plan.second.quality)
    out = _conv_blur(_resized(out, size, plan.final_mode), plan.final_kernel)
    if plan.jpeg_last:
        out = block_dct_jpeg(out, plan.second.quality)
    return (out.clamp(0, 1) * 255).round() / 255


@dataclass(frozen=True)
class Statistics:
    """The compared statistics of a low-quality image.

    Attributes:
        psnr_db: PSNR against the sharp image reduced by area.
        noise_level: standard deviation of the finest detail, 8-bit grey levels; Immerkaer 1996, on the luma.
        spectrum_slope: slope of log power over log frequency, on the luma.
    """

    psnr_db: float
    noise_level: float
    spectrum_slope: float


def measure(lq: Tensor, hq: Tensor) -> Statistics:
    """Measure one (3, h, w) image against its sharp (3, 4h, 4w) image."""
    error = (lq - F.interpolate(hq[None], size=lq.shape[-2:], mode="area")[0]).square().mean()
    luma = lq.mean(0)
    laplacian = torch.tensor([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]])
    detail = F.conv2d(luma[None, None], laplacian[None, None]).abs().mean()
    return Statistics(
        psnr_db=float(-10 * torch.log10(error.clamp_min(1e-10))),
        noise_level=float(detail * math.sqrt(math.pi / 2) / 6 * 255),
        spectrum_slope=_spectrum_slope(luma),
    )


def _spectrum_slope(luma: Tensor) -> float:
    size = min(luma.shape)
    window = torch.hann_window(size)
    square = luma[:size, :size] - luma[:size, :size].mean()
    power = torch.fft.rfft2(square * window[:, None] * window).abs().square().double()
    y, x = torch.fft.fftfreq(size)[:, None] * size, torch.fft.rfftfreq(size)[None] * size
    radius = (y * y + x * x).sqrt().round().long().flatten()
    rings = torch.zeros(int(radius.max()) + 1, dtype=torch.float64).index_add_(0, radius, power.flatten())
    rings /= torch.bincount(radius)
    used = torch.arange(2, size // 2)
    log_f, log_p = used.double().log(), rings[used].clamp_min(1e-12).log()
    log_f = log_f - log_f.mean()
    return float((log_f * log_p).sum() / log_f.square().sum())


def synthetic_crops(size: int, count: int, seed: int = 0) -> Iterator[Tensor]:
    """Yield images with a photograph's spectrum, edges and correlated colours: (3, size, size) in [0, 1]."""
    generator = torch.Generator().manual_seed(seed)
    y, x = torch.fft.fftfreq(size)[:, None], torch.fft.rfftfreq(size)[None]
    falloff = 1 / (y * y + x * x).sqrt().clamp_min(1 / size)
    grid_y, grid_x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    for _ in range(count):
        spectrum = torch.fft.rfft2(torch.randn(4, size, size, generator=generator)) * falloff
        texture = torch.fft.irfft2(spectrum, s=(size, size))
        texture = texture / texture.std(dim=(1, 2), keepdim=True)
        image = 0.5 + 0.12 * (texture[:1] + 0.4 * texture[1:])
        for _ in range(6):
            center, reach = torch.rand(2, generator=generator) * size, torch.rand(1, generator=generator) * size / 4
            inside = (grid_y - center[0]).square() + (grid_x - center[1]).square() < reach.square()
            image = image + inside * (torch.rand(3, 1, 1, generator=generator) - 0.5) * 0.6
        yield image.clamp(0, 1)


def photo_crops(folder: Path, size: int, count: int) -> Iterator[Tensor]:
    """Yield random crops of sufficiently large photographs of a folder: (3, size, size) in [0, 1]."""
    rng = np.random.default_rng(0)
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in {".webp", ".png", ".jpg", ".jpeg"})
    given = 0
    while given < count:
        with Image.open(paths[int(rng.integers(len(paths)))]) as photo:
            if min(photo.size) < size:
                continue
            left, top = (int(rng.integers(side - size + 1)) for side in photo.size)
            pixels = np.array(photo.convert("RGB").crop((left, top, left + size, top + size)))
        yield torch.from_numpy(pixels).permute(2, 0, 1).contiguous().float() / 255
        given += 1


def pair(image: Tensor, config: DegradationConfig, index: int) -> tuple[Tensor, Tensor]:
    """Degrade an image with one plan; return the project's result and the straightforward result."""
    ours = degrade(image[None], _SCALE, config, seed=0, epoch=0, indices=[index])[0]
    plan = draw_plan(config, sample_rng(0, 0, index))
    return ours, degrade_plainly(image, plan, torch.Generator().manual_seed(index))


def _timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def report_speed(crops: list[Tensor], config: DegradationConfig) -> None:
    """Time both implementations alternately on the same plans, and print the times and their ratio."""
    ours: list[float] = []
    plain: list[float] = []
    for index, image in enumerate(crops):
        plan, generator = draw_plan(config, sample_rng(0, 0, index)), torch.Generator().manual_seed(index)
        for times, work in (
            (ours, lambda i=index, x=image: degrade(x[None], _SCALE, config, seed=0, epoch=0, indices=[i])),
            (plain, lambda p=plan, g=generator, x=image: degrade_plainly(x, p, g)),
        ):
            times.append(_timed(work))
    # Skip the first run, which builds tables and FFT plans.
    ours_ms, plain_ms = statistics.mean(ours[1:]) * 1e3, statistics.mean(plain[1:]) * 1e3
    size = crops[0].shape[-1]
    print(f"{size:5d} px  ours {ours_ms:7.1f} ms  plain {plain_ms:7.1f} ms  ratio {plain_ms / ours_ms:5.2f}")


def report_statistics(crops: Iterator[Tensor], config: DegradationConfig) -> None:
    """Print means and standard deviations of the statistics of both implementations."""
    measured = []
    for index, image in enumerate(crops):
        ours, plain = pair(image, config, index)
        measured.append((measure(ours, image), measure(plain, image)))
    for name in Statistics.__dataclass_fields__:
        ours_values, plain_values = ([getattr(row[side], name) for row in measured] for side in (0, 1))
        print(
            f"{name:15s} ours {statistics.mean(ours_values):8.3f} +- {statistics.stdev(ours_values):6.3f}"
            f"  plain {statistics.mean(plain_values):8.3f} +- {statistics.stdev(plain_values):6.3f}"
        )


def main() -> None:
    """Run both comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="folder of sharp photographs; synthetic images without it")
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--samples", type=int, default=24, help="timed per size")
    parser.add_argument("--crops", type=int, default=200, help="measured, 256 px each")
    parser.add_argument("--config", default="reference", help="preset or TOML file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    config = load_degradation(options.config)
    crops = (lambda size, count: photo_crops(options.photos, size, count)) if options.photos else synthetic_crops
    for size in options.sizes:
        report_speed(list(crops(size, options.samples + 1)), config)
    report_statistics(crops(256, options.crops), config)


if __name__ == "__main__":
    main()
