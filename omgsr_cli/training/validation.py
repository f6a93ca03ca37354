"""Held-out pictures: restored as users do it, measured, and shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from omgsr_cli.datasets.crops import trim
from omgsr_cli.degradation import degrade
from omgsr_cli.fidelity import psnr, ssim
from omgsr_cli.imaging import Picture, from_samples, resize, write_picture
from omgsr_cli.training.data import CropOptions
from omgsr_cli.training.draws import Purpose, choose, draw_rng
from omgsr_cli.training.losses import Measure
from omgsr_cli.training.pictures import TrainingPicture
from omgsr_cli.training.pixels import Pixels, read_pixels

LARGEST_PX = 512
"""Of a larger picture its middle is taken; more of it where the training's resolution is larger."""

SHOWN = 4
"""Rows of the grid."""


@dataclass
class Validation:
    """What one process found.

    Attributes:
        sums: metric to the sum over its pictures.
        pictures: how many it had.
        rows: of the grid, each (3, H, 3 W) in [0, 1]: LQ | output | HQ.
    """

    sums: dict[str, float] = field(default_factory=dict)
    pictures: int = 0
    rows: list[Tensor] = field(default_factory=list)


def measure_fidelity(restored: Tensor, reference: Tensor) -> dict[str, Tensor]:
    """PSNR and SSIM of Y, as published: of 8-bit pictures.

    Args:
        restored: (B, 3, H, W) float32 in [-1, 1], not clamped.
        reference: same shape.
    """
    first, second = (to_unit(image).mul(255).round_().div_(255) for image in (restored, reference))
    return {"psnr_y": psnr(first, second), "ssim_y": ssim(first, second)}


def to_unit(image: Tensor) -> Tensor:
    """[-1, 1] to [0, 1], clamped."""
    return image.float().mul(0.5).add_(0.5).clamp_(0, 1)


@torch.no_grad()
def validate(
    restore: Callable[[Tensor], Tensor],
    pictures: Sequence[TrainingPicture],
    options: CropOptions,
    measures: Mapping[str, Measure],
    *,
    multiple_px: int,
    device: torch.device,
    seed: int,
    rank: int = 0,
    processes: int = 1,
    together: bool = False,
) -> Validation:
    """Restore and measure every picture, or this process's share of them.

    A picture's low-quality counterpart is the same at every validation of a run.

    Args:
        restore: (1, 3, H, W) in [-1, 1] to the same.
        pictures: held out.
        options: of the training's samples: resolution, scales, degradations and cache.
        measures: besides PSNR and SSIM.
        multiple_px: sizes given to `restore` are multiples of it.
        device: where to restore.
        seed: of the run.
        rank: of this process, which takes every `processes`-th picture from there on.
        processes: how many there are.
        together: each of them restores as often as the others, since they share the network's weights.
    """
    result = Validation()
    for index in range(rank, len(pictures) + (-len(pictures) % processes if together else 0), processes):
        if index >= len(pictures):
            side = -(-options.resolution // multiple_px) * multiple_px
            restore(torch.zeros(1, 3, side, side, device=device))
            break
        pair = load_pair(pictures[index], options, multiple_px, seed, index)
        lq, hq = (image[None].mul(2).sub_(1).to(device) for image in pair)
        restored = restore(lq)
        scores = measure_fidelity(restored, hq) | {name: measure(restored, hq) for name, measure in measures.items()}
        for name, score in scores.items():
            result.sums[name] = result.sums.get(name, 0.0) + float(score)
        result.pictures += 1
        if len(result.rows) < SHOWN:
            result.rows.append(torch.cat([to_unit(image)[0].cpu() for image in (lq, restored, hq)], 2))
    return result


def load_pair(
    picture: TrainingPicture, options: CropOptions, multiple_px: int, seed: int, index: int
) -> tuple[Tensor, Tensor]:
    """Read a held-out picture and read or make its counterpart: enlarged, and sharp, (3, H, W) in [0, 1]."""
    largest_px = max(options.resolution, LARGEST_PX)
    hq_pixels = read_pixels(picture.hq, options.cache)
    if picture.lq is None:
        hq = trim(from_samples(_middle(hq_pixels, largest_px)), multiple_px)
        rng = draw_rng(seed, Purpose.VALIDATION, index)
        if not options.degradations:
            return hq, hq
        scale, config = options.scales[0][0], choose(options.degradations, rng)
        lq = degrade(hq[None], scale, config, seed=seed, epoch=int(Purpose.VALIDATION), indices=[index])[0]
    else:
        lq = from_samples(_middle(read_pixels(picture.lq, options.cache), largest_px // picture.lq_scale))
        hq = from_samples(_middle(hq_pixels, largest_px // picture.lq_scale * picture.lq_scale, picture.lq_scale))
    return trim(resize(lq, (hq.shape[1], hq.shape[2])), multiple_px), trim(hq, multiple_px)


def write_grid(rows: Sequence[Tensor], path: Path) -> None:
    """Write rows of (3, H, W) in [0, 1] under each other, as PNG; narrower ones are continued in white.

    Raises:
        FileError: it cannot be written.
    """
    width = max(row.shape[2] for row in rows)
    padded = [torch.nn.functional.pad(row, (0, width - row.shape[2]), value=1.0) for row in rows]
    write_picture(Picture(torch.cat(padded, 1)), path, overwrite=True)


def _middle(pixels: Pixels, largest_px: int, multiple_px: int = 1) -> Pixels:
    """The middle of (H, W, 3), beginning at a multiple of `multiple_px`."""
    for axis in (0, 1):
        start = max(0, pixels.shape[axis] - largest_px) // (2 * multiple_px) * multiple_px
        pixels = pixels.take(range(start, min(start + largest_px, pixels.shape[axis])), axis)
    return pixels
