"""Measure how much of the time of `omgsr timestep` the autoencoder needs.

    python benchmarks/timestep.py --data photos/ [--vae FOLDER|FILE] [--samples 4] [--resolution 512]

Without --vae, an encoder with Stable Diffusion's shape and random weights is used. Reading, cropping, degrading and
matching run in the same process, so that all time is counted; with `--workers` they would run in parallel.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from stages import add_device, synchronise, use_device
from torch import Tensor

from omgsr_cli.datasets import PairSource
from omgsr_cli.degradation import load_degradation
from omgsr_cli.files.inputs import find_inputs
from omgsr_cli.models.base import ImageEncoder
from omgsr_cli.models.loading import load_encoder
from omgsr_cli.schedules import DdpmSchedule
from omgsr_cli.timesteps import Measured, match_snr, measure


def build_sd_encoder(device: torch.device) -> ImageEncoder:
    """Return Stable Diffusion's autoencoder with random weights."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        layers_per_block=2,
    ).eval()
    vae.decoder = None
    vae.to(device)

    def encode(image: Tensor) -> Tensor:
        return vae.encode(image).latent_dist.mean * 0.18215

    return ImageEncoder("a random encoder of Stable Diffusion's shape", encode, DdpmSchedule(), 8, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--vae", default=None)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--resolution", type=int, default=512)
    parser.add_argument("--batch", type=int, default=2)
    add_device(parser)
    options = parser.parse_args()
    place = use_device(options.device)
    encoder = load_encoder(vae=options.vae, device=options.device) if options.vae else build_sd_encoder(place)
    found, _, _ = find_inputs([str(options.data)], recursive=True)
    source = PairSource(
        images=tuple(item.path for item in found),
        partners=None,
        config=load_degradation("reference"),
        resolution_px=options.resolution,
        scale=4.0,
        on_small="resize",
        multiple_of_px=encoder.multiple_of_px,
        seed=0,
        count=options.samples,
    )
    encoding_s = 0.0

    def encode(image: Tensor) -> Tensor:
        nonlocal encoding_s
        began = time.perf_counter()
        latent = encoder.encode(image)
        synchronise()
        encoding_s += time.perf_counter() - began
        return latent

    with torch.inference_mode():
        encoder.encode(torch.zeros(1, 3, options.resolution, options.resolution, device=place))
    began = time.perf_counter()
    timed = replace(encoder, encode=encode)
    results = [item for item in measure(source, timed, batch=options.batch) if isinstance(item, Measured)]
    measured = time.perf_counter()
    power, snr = torch.tensor([(item.power, item.snr) for item in results], dtype=torch.float64).T
    match_snr(power, snr, encoder.schedule)
    ended = time.perf_counter()
    total_s = ended - began
    print(f"{encoder.name}: {len(results)} crops of {options.resolution} px, {total_s / len(results):.2f} s each")
    for name, seconds in (
        ("encoder", encoding_s),
        ("read, crop, degrade, enlarge", measured - began - encoding_s),
        ("match, 1000 bootstrap sets", ended - measured),
    ):
        print(f"  {name:30} {seconds:7.2f} s  {seconds / total_s:6.1%}")


if __name__ == "__main__":
    main()
