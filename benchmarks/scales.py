"""Measure a model's PSNR at several scales, restored at the size of the result and at the model's training scale.

    python benchmarks/scales.py PHOTOS [--count 5] [--side 240] [--scales 1,1.5,2,3,4,8] [--model omgsr-tiny]

PHOTOS is a folder of sharp photographs. The benchmark uses the first photographs that omgsr-tiny was not trained on,
which are every 19th by name, as in recipes/omgsr_tiny/degrade_photos.py. The centre of each is reduced by the scale
(bicubic), degraded, and restored to its original size. The output is a Markdown table of mean RGB-PSNR in dB, 8 bits.
"""

from __future__ import annotations

import argparse
import io
import math
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from stages import add_device, use_device
from torch import Tensor

from omgsr_cli import load
from omgsr_cli.geometry import Size
from omgsr_cli.imaging import from_samples, resize, to_samples
from omgsr_cli.models.base import Restorer
from omgsr_cli.options import RestoreOptions
from omgsr_cli.upscaling import upscale_image

KINDS = ("clean", "noise 10", "JPEG 60")
WAYS = ("bicubic", "process scale 1", "auto")


def held_out(folder: Path, count: int) -> list[Path]:
    """Return the first photographs that were not used for training."""
    photos = sorted(path for path in folder.iterdir() if path.suffix in {".webp", ".png", ".jpg"})
    return photos[7::19][:count]


def sharp_crop(path: Path, side_px: int) -> Tensor:
    """Return a photograph's centre after reduction by an integer to a short side >= 600 px, (3, H, W) in [0, 1]."""
    image = Image.open(path).convert("RGB")
    image = image.reduce(max(1, min(image.size) // 600))
    left, top = (image.width - side_px) // 2, (image.height - side_px) // 2
    return from_samples(np.asarray(image.crop((left, top, left + side_px, top + side_px))))


def degrade(image: Tensor, kind: str, seed: int) -> Tensor:
    """Add noise of 10 grey levels, or compress; round to 8-bit levels."""
    if kind == "noise 10":
        noise = torch.from_numpy(np.random.default_rng(seed).normal(0, 10 / 255, tuple(image.shape))).float()
        return (image + noise).clamp(0, 1).mul(255).round().div(255)
    if kind == "JPEG 60":
        buffer = io.BytesIO()
        Image.fromarray(to_samples(image, 8)).save(buffer, "JPEG", quality=60)
        return from_samples(np.asarray(Image.open(buffer)))
    return image


def psnr_db(image: Tensor, reference: Tensor) -> float:
    """Return the PSNR of RGB at 8 bits; infinite for equal images."""
    error = float((image.mul(255).round() - reference.mul(255).round()).square().mean())
    return math.inf if error == 0 else 10 * math.log10(255**2 / error)


def ways(restorer: Restorer, size: Size) -> dict[str, Callable[[Tensor], Tensor]]:
    """Return the compared methods, which upscale a low-quality image to `size`."""
    hasty = RestoreOptions(process_scale=1)
    return {
        "bicubic": lambda image: resize(image, size),
        "process scale 1": lambda image: upscale_image(restorer, image, size, hasty),
        "auto": lambda image: upscale_image(restorer, image, size),
    }


def main() -> None:
    """Measure the PSNR and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--count", type=int, default=5)
    parser.add_argument("--side", type=int, default=240, help="of the result in px; a multiple of every scale")
    parser.add_argument("--scales", default="1,1.5,2,3,4,8")
    parser.add_argument("--model", default="omgsr-tiny")
    add_device(parser)
    options = parser.parse_args()
    use_device(options.device)
    restorer = load(options.model, device=options.device)
    sharp = [sharp_crop(path, options.side) for path in held_out(options.photos, options.count)]
    size = Size(options.side, options.side)
    print("| scale | " + " | ".join(f"{kind}: {way}" for kind in KINDS for way in WAYS) + " | seconds, 1 / auto |")
    print("|---|" + "---:|" * (len(KINDS) * len(WAYS) + 1))
    for scale in map(float, options.scales.split(",")):
        scores: dict[tuple[str, str], list[float]] = {(kind, way): [] for kind in KINDS for way in WAYS}
        seconds = dict.fromkeys(WAYS, 0.0)
        for seed, reference in enumerate(sharp):
            small = resize(reference, size.times(1 / scale))
            for kind in KINDS:
                degraded = degrade(small, kind, seed)
                for way, restore in ways(restorer, size).items():
                    started = time.perf_counter()
                    scores[kind, way].append(psnr_db(restore(degraded), reference))
                    seconds[way] += time.perf_counter() - started
        means = " | ".join(f"{statistics.mean(values):.1f}" for values in scores.values())
        runs = len(sharp) * len(KINDS)
        print(
            f"| {scale:g} | {means} | {seconds['process scale 1'] / runs:.2f} / {seconds['auto'] / runs:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
