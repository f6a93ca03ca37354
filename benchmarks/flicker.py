"""Measure how much the frames of a clip flicker when each is restored on its own.

    python benchmarks/flicker.py PHOTO [--frames 12] [--side 512] [--model omgsr-tiny ...] [--strength 1,0.6] \
        [--ffmpeg ffmpeg]

A camera moves slowly over PHOTO, with a zoom and steps of about half a pixel, so the motion is known exactly. Each
frame is reduced by four and gets the noise of a sensor and the artefacts of JPEG, with fixed seeds.

Flicker is the mean absolute difference of consecutive frames in grey levels of 255, after the second one is moved to
the first (bicubic); the clean clip shows what this interpolation adds. A clip that is blurred flickers less, so the
output, a Markdown table, also has the detail (the mean gradient relative to the clean clip's) and the PSNR in dB.
"""

from __future__ import annotations

import argparse
import io
import statistics
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from scales import psnr_db
from stages import add_device, use_device
from torch import Tensor
from torch.nn import functional

from omgsr_cli import load
from omgsr_cli.geometry import Size
from omgsr_cli.imaging import from_samples, resize, to_samples
from omgsr_cli.options import RestoreOptions
from omgsr_cli.upscaling import upscale_image

SCALE, SAMPLES = 4, 2
"""The reduction of the clip, and the samples of the photograph per pixel and side, which prevent aliasing."""

# Pixels of the clean clip per frame, and the zoom per frame.
STEP_PX, ZOOM = (1.1, 1.9), 0.998
READ_NOISE, SHOT_NOISE, JPEG_QUALITY = 3 / 255, 4e-4, 85
# Restorers see no context beyond the border.
BORDER_PX = 16


class View(NamedTuple):
    """The part of a photograph that a frame shows: its pixel p shows zoom * p + (top, left), all in pixels."""

    zoom: float
    top: float
    left: float

    def to(self, other: View) -> View:
        """The view that turns frames of the other view into frames of this one."""
        return View(self.zoom / other.zoom, (self.top - other.top) / other.zoom, (self.left - other.left) / other.zoom)


def view_of(frame: int, photo: Size, side_px: int, frames: int) -> View:
    """Return the view of a frame, in pixels of the reduced photograph; the middle one shows the photograph's centre."""
    zoom, moved = ZOOM**frame, frame - (frames - 1) / 2
    height, width = photo.height / SAMPLES, photo.width / SAMPLES
    return View(
        zoom, (height - zoom * side_px) / 2 + STEP_PX[0] * moved, (width - zoom * side_px) / 2 + STEP_PX[1] * moved
    )


def seen(image: Tensor, view: View, size: Size, samples: int = 1) -> Tensor:
    """Sample an image (3, H, W) at a view (bicubic), with `samples` of its pixels per pixel of the view and side."""
    across = [
        (view.zoom * (torch.arange(count * samples).double() + 0.5) + samples * start) * 2 / length - 1
        for count, start, length in zip(size, (view.top, view.left), image.shape[1:], strict=True)
    ]
    grid = torch.stack(torch.meshgrid(*across, indexing="ij"), -1).flip(-1).float()
    sampled = functional.grid_sample(
        image[None], grid[None], mode="bicubic", padding_mode="border", align_corners=False
    )
    return functional.avg_pool2d(sampled, samples)[0].clamp(0, 1)


def photographed(small: Tensor, seed: int) -> Tensor:
    """Add shot and read noise and JPEG artefacts to an image in [0, 1]."""
    drawn = torch.from_numpy(np.random.default_rng(seed).standard_normal(tuple(small.shape))).float()
    noisy = (small + drawn * (READ_NOISE**2 + SHOT_NOISE * small).sqrt()).clamp(0, 1)
    held = io.BytesIO()
    Image.fromarray(to_samples(noisy, 8)).save(held, "JPEG", quality=JPEG_QUALITY)
    return from_samples(np.asarray(Image.open(held)))


def denoised(frames: list[Tensor], ffmpeg: str) -> list[Tensor]:
    """Filter frames with ffmpeg's hqdn3d, which averages over space and time."""
    with tempfile.TemporaryDirectory() as folder:
        for number, frame in enumerate(frames):
            Image.fromarray(to_samples(frame, 8)).save(Path(folder, f"{number:06}.png"))
        command = [ffmpeg, *["-v", "error", "-i", "%06d.png", "-vf", "hqdn3d,format=rgb24", "out%06d.png"]]
        subprocess.run(command, check=True, cwd=folder)
        return [from_samples(np.asarray(Image.open(path))) for path in sorted(Path(folder).glob("out*.png"))]


def inner(image: Tensor) -> Tensor:
    """The image without its border."""
    return image[:, BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX]


def flicker(frames: list[Tensor], views: list[View]) -> float:
    """Return the mean absolute difference of consecutive aligned frames, in grey levels of 255."""
    size = Size(*frames[0].shape[1:])
    moved = (
        seen(later, before.to(after), size) for later, (before, after) in zip(frames[1:], pairwise(views), strict=True)
    )
    return 255 * statistics.mean(
        float((inner(before) - inner(after)).abs().mean()) for before, after in zip(frames, moved, strict=False)
    )


def detail(frames: list[Tensor]) -> float:
    """Return the mean absolute difference of neighbouring pixels."""
    return statistics.mean(float(inner(frame).diff(dim=axis).abs().mean()) for frame in frames for axis in (1, 2))


def main() -> None:
    """Make the clip, restore it in several ways, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path, help="at least twice as large as --side, with some room to move")
    parser.add_argument("--frames", type=int, default=12)
    parser.add_argument("--side", type=int, default=512, help="of the clean clip in px; a multiple of 4")
    parser.add_argument("--model", action="append", help="one or more; omgsr-tiny by default")
    parser.add_argument("--strength", default="1,0.6")
    parser.add_argument("--ffmpeg", help="path of ffmpeg, to denoise the frames before")
    parser.add_argument("--save", type=Path, help="folder for the frames of every row")
    add_device(parser)
    options = parser.parse_args()
    use_device(options.device)
    with Image.open(options.photo) as opened:
        photo = from_samples(np.asarray(opened.convert("RGB")))
    size = Size(options.side, options.side)
    views = [view_of(frame, Size(*photo.shape[1:]), options.side, options.frames) for frame in range(options.frames)]
    clean = [seen(photo, view, size, SAMPLES) for view in views]
    small = [resize(frame, size.times(1 / SCALE)) for frame in clean]
    inputs = {"": [photographed(frame, seed) for seed, frame in enumerate(small)]}
    if options.ffmpeg:
        inputs[", after hqdn3d"] = denoised(inputs[""], options.ffmpeg)
    inputs[", without noise and JPEG"] = small
    whole = detail(clean)

    def report(name: str, exact: list[Tensor]) -> None:
        frames = [from_samples(to_samples(frame, 8)) for frame in exact]
        scores = statistics.mean(psnr_db(inner(one), inner(other)) for one, other in zip(frames, clean, strict=True))
        psnr = "" if name == "clean clip" else f"{scores:.1f}"
        print(f"| {name} | {flicker(frames, views):.2f} | {detail(frames) / whole:.2f} | {psnr} |", flush=True)
        for number, frame in enumerate(frames if options.save else ()):
            path = options.save / name.replace("/", "_") / f"{number:06}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(to_samples(frame, 8)).save(path)

    def rows() -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
        yield "bicubic", lambda image: resize(image, size)
        for name in options.model or ["omgsr-tiny"]:
            restorer = load(name, device=options.device)
            for strength in options.strength.split(","):
                asked = RestoreOptions(strength=float(strength))
                yield (
                    f"{Path(name).stem}, strength {strength}",
                    lambda image, restorer=restorer, asked=asked: upscale_image(restorer, image, size, asked),
                )

    print("| frames | flicker ↓ | detail | PSNR ↑ |\n|---|---:|---:|---:|")
    report("clean clip", clean)
    for name, restore in rows():
        for how, frames in inputs.items():
            report(name + how, [restore(frame) for frame in frames])


if __name__ == "__main__":
    main()
