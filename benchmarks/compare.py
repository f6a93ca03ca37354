"""Compare omgsr with a straightforward diffusers pipeline: time, peak memory and difference of output, as ratios.

    python benchmarks/compare.py [--shape toy] [--megapixels 0.25,1,4,16] [--memory 1024] [--threads 1]

A model with Stable Diffusion's layout and random weights restores noise. The shape "sd21" needs as much time and memory
as the real model; "toy" has few channels. Each pipeline and size runs in a separate process, because the peak memory of
a process never falls. On a CPU, seconds are processor time, summed over threads. On a GPU, they are the wall time of
the second image, and the peak is the memory that torch allocated. The straightforward pipeline encodes and decodes the
full image and takes the step tile by tile, as published. No colour fix is applied, because AdaIN would stretch the flat
images of random networks and amplify rounding differences.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import stages
import torch
from PIL import Image
from sd_size import SHAPES, make
from stages import STAGES, TimedRestorer, peak_memory_gib, timed
from torch import Tensor

from omgsr_cli.errors import DeviceError, OmgsrError
from omgsr_cli.geometry import Size, plan_tiles
from omgsr_cli.imaging import from_samples, to_samples
from omgsr_cli.models.devices import PRECISIONS, is_out_of_memory
from omgsr_cli.models.latent import SEQUENCE, read_features
from omgsr_cli.models.libraries import quiet_libraries
from omgsr_cli.models.loading import load_restorer
from omgsr_cli.options import RestoreOptions
from omgsr_cli.tiling import gaussian_window
from omgsr_cli.upscaling import upscale_image

_WAYS, _SCALE, _STEP = ("ours", "plain"), 4, 273


def image(side_px: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return a low-quality image, (side, side, 3): colours that change smoothly, with some noise."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).resize(
        (side_px, side_px), Image.Resampling.BICUBIC
    )
    return (np.asarray(coarse) * 0.9 + rng.integers(0, 25, (side_px, side_px, 3))).astype(np.uint8)


def run_ours(
    folder: Path, lq: np.ndarray[Any, Any], memory_mib: int | None, precision: str
) -> tuple[dict[str, float], Tensor]:
    """Restore an image in the same way as `omgsr upscale`."""
    with quiet_libraries():
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel  # noqa: F401 - exclude the import from the loading time
    files = [path for path in folder.rglob("*") if path.is_file()]
    read_s, _ = timed(lambda: [len(path.read_bytes()) for path in files])
    load_s, restorer = timed(lambda: load_restorer(folder, device=str(stages.device), precision=precision))
    timer = TimedRestorer(restorer)
    timer.reset()
    output = Size(*lq.shape[:2]).times(_SCALE)
    options = RestoreOptions(memory=memory_mib, color_fix="none")
    if stages.device.type != "cpu":
        # Warm up, because the first image on a GPU also loads kernels and tries algorithms.
        upscale_image(timer, from_samples(lq), output, options)
        timer.reset()
    whole_s, result = timed(lambda: upscale_image(timer, from_samples(lq), output, options))
    return {"read": read_s, "load": load_s, **timer.seconds, "whole": whole_s}, result


@torch.inference_mode()
def run_plain(folder: Path, lq: np.ndarray[Any, Any], precision: str) -> tuple[dict[str, float], Tensor]:
    """Restore an image with the formulas of OMGSR (arXiv:2508.08227), one diffusers call after the other."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    form: dict[str, Any] = {"device": stages.device, "dtype": PRECISIONS[precision]}

    def load() -> tuple[Any, Any, Tensor]:
        vae = AutoencoderKL.from_pretrained(folder / "vae").eval().to(**form)
        unet = UNet2DConditionModel.from_pretrained(folder / "unet").eval().to(**form)
        features = read_features([folder], "", [SEQUENCE])
        assert features is not None, "written by benchmarks/sd_size.py"
        return vae, unet, features[SEQUENCE].to(**form)

    load_s, networks = timed(load)
    restored, seconds = _restore_plainly(networks, lq)
    if stages.device.type != "cpu":
        restored, seconds = _restore_plainly(networks, lq)
    return {"load": load_s, **seconds}, restored


def _restore_plainly(networks: tuple[Any, Any, Tensor], lq: np.ndarray[Any, Any]) -> tuple[Tensor, dict[str, float]]:
    vae, unet, embeds = networks
    form: dict[str, Any] = {"device": embeds.device, "dtype": embeds.dtype}
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    alpha = float((1 - betas).cumprod(0)[_STEP])
    start = stages.clock()
    high, wide = (side * _SCALE for side in lq.shape[:2])
    samples = np.asarray(Image.fromarray(lq).resize((wide, high), Image.Resampling.BICUBIC))
    enlarged = from_samples(samples)[None].to(**form)
    factor = vae.config["scaling_factor"]
    encode_s, latent = timed(lambda: vae.encode(enlarged * 2 - 1).latent_dist.mean * factor)

    def step() -> Tensor:
        tile = unet.config["sample_size"]
        total, weights = torch.zeros_like(latent), torch.zeros(latent.shape[2:], **form)
        for place in plan_tiles(Size(*latent.shape[2:]), tile, tile // 2):
            part = latent[..., place.rows, place.columns]
            noise = unet(part, torch.tensor([_STEP], device=part.device), encoder_hidden_states=embeds).sample
            window = gaussian_window(place.height, place.width).to(**form)
            total[..., place.rows, place.columns] += (part - (1 - alpha) ** 0.5 * noise) / alpha**0.5 * window
            weights[place.rows, place.columns] += window
        return total / weights

    step_s, clean = timed(step)
    decode_s, decoded = timed(lambda: vae.decode(clean / factor).sample)
    restored = (decoded * 0.5 + 0.5).clamp(0, 1)[0].float().cpu()
    whole_s = stages.clock() - start
    return restored, {"encode": encode_s, "step": step_s, "decode": decode_s, "whole": whole_s}


def measure(way: str, options: argparse.Namespace, side_px: int, folder: Path) -> None:
    """Run one pipeline in this process; write figures and result to the folder."""
    torch.set_num_threads(options.threads)
    if stages.use_device(options.device).type == "cpu":
        stages.clock = time.process_time
    lq, file = image(side_px), folder / f"{way}.json"
    try:
        if way == "ours":
            seconds, result = run_ours(options.model, lq, options.memory or None, options.precision)
        else:
            seconds, result = run_plain(options.model, lq, options.precision)
    except (OmgsrError, RuntimeError) as error:
        if not (isinstance(error, DeviceError) or is_out_of_memory(error)):
            raise
        file.write_text("{}", encoding="utf-8")
        return
    np.save(folder / f"{way}.npy", to_samples(result, 8))
    file.write_text(json.dumps(seconds | {"peak": peak_memory_gib() * 1024}), encoding="utf-8")


def run_both(megapixels: float, options: argparse.Namespace) -> tuple[int, list[dict[str, float]], str]:
    """Run both pipelines at one output size; return input side, figures (none if memory ran out) and difference."""
    side_px = max(round(math.sqrt(megapixels * 2**20) / _SCALE / 16), 1) * 16
    with tempfile.TemporaryDirectory() as name:
        for way in _WAYS:
            arguments = ["--way", way, "--side", str(side_px), "--into", name, "--model", str(options.model)]
            subprocess.run([sys.executable, __file__, *sys.argv[1:], *arguments], check=True)
        figures = [json.loads((Path(name) / f"{way}.json").read_text(encoding="utf-8")) for way in _WAYS]
        if not all(figures):
            return side_px, figures, "not compared"
        first, second = (np.load(Path(name) / f"{way}.npy").astype(int) for way in _WAYS)
    distance = np.abs(first - second)
    return side_px, figures, f"{distance.max()} of 255; {(distance <= 2).mean():.3%} within 2"


def compare(megapixels: float, options: argparse.Namespace) -> float:
    """Run both pipelines at one output size and print their table; return omgsr's seconds per megapixel."""
    side_px, (ours, plain), difference = run_both(megapixels, options)
    print(f"\n{side_px}x{side_px} to {side_px * _SCALE}x{side_px * _SCALE}, {megapixels:g} megapixels\n")
    if not (ours and plain):
        print("memory was short for " + " and ".join(w for w, f in zip(_WAYS, (ours, plain), strict=True) if not f))
        return math.nan if not ours else float(ours["whole"] / megapixels)
    print("| | ours | plain | plain / ours |\n|---|---:|---:|---:|")
    for row in ("load", *STAGES, "whole"):
        print(f"| {row}, s | {ours[row]:.2f} | {plain[row]:.2f} | {plain[row] / ours[row]:.2f} |")
    print(f"| peak memory, MiB | {ours['peak']:.0f} | {plain['peak']:.0f} | {plain['peak'] / ours['peak']:.2f} |")
    print(f"\nlargest difference: {difference}")
    print(f"load / reading the files: {ours['load'] / ours['read']:.2f}")
    return float(ours["whole"] / megapixels)


def print_summary(sizes: Sequence[float], options: argparse.Namespace) -> None:
    """Print a table with one row for each size."""
    print("| output | ours, s | plain, s | plain / ours | ours, GiB | plain, GiB | largest difference |")
    print("|---|---:|---:|---:|---:|---:|---|")
    for megapixels in sizes:
        side_px, figures, difference = run_both(megapixels, options)
        times, peaks = ([found.get(key) for found in figures] for key in ("whole", "peak"))
        cells = ["out of memory" if each is None else f"{each:.2f}" for each in times]
        ours, plain = times
        cells.append("" if ours is None or plain is None else f"{plain / ours:.2f}")
        cells += ["" if each is None else f"{each / 1024:.2f}" for each in peaks]
        print(f"| {side_px * _SCALE}x{side_px * _SCALE} | {' | '.join([*cells, difference])} |", flush=True)


def main() -> None:
    """Measure every size and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="toy")
    parser.add_argument("--megapixels", default="0.25,1,4,16", help="of the results")
    parser.add_argument("--memory", type=int, default=1024, help="MiB that ours may work in; 0 for no limit")
    parser.add_argument("--precision", choices=tuple(PRECISIONS), default="fp32", help="of both ways")
    parser.add_argument("--summary", action="store_true", help="print one table, a row for each size")
    stages.add_device(parser)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", type=Path, help="folder that sd_size.py has made; else one is made in this shape")
    for hidden in ("--way", "--into", "--side"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        measure(options.way, options, int(options.side), Path(options.into))
        return
    with tempfile.TemporaryDirectory() as name:
        if options.model is None:
            options.model = Path(name) / "model"
            make(options.model, options.shape, "fp32")
        if options.summary:
            print_summary([*map(float, options.megapixels.split(","))], options)
            return
        costs = {size: compare(size, options) for size in map(float, options.megapixels.split(","))}
    print("\nours, seconds for a megapixel: " + ", ".join(f"{size:g}: {cost:.2f}" for size, cost in costs.items()))
    large = [cost for size, cost in costs.items() if size >= 1]
    if len(large) > 1:
        print(f"dearest / cheapest from 1 megapixel on: {max(large) / min(large):.2f}")


if __name__ == "__main__":
    main()
