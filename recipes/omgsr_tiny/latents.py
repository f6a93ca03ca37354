"""Measure omgsr-tiny's latent space on photographs, and write a model folder with new weights for pre-training.

    python recipes/omgsr_tiny/latents.py --photos PHOTOS --out runs/latents [--power 0.5]

Each band is divided by its standard deviation over the photographs, raised to a power. All bands are then divided by
one number, so that their mean variance is 1. A power of 1 whitens the bands; nearly empty fine bands then have the same
weight as the bands that contain most of the image.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from omgsr_cli.models.record import ModelRecord, write_record
from omgsr_cli.models.tiny_network import TinyConfig, TinyNetwork
from omgsr_cli.schedules import DdpmSchedule

CROP_PX, CROPS = 128, 576
LEAST_STD = 0.004


def draw_crops(folder: Path) -> Tensor:
    """Draw (CROPS, 3, CROP_PX, CROP_PX) in [-1, 1], more from large images than from small ones."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in {".webp", ".png", ".jpg"})
    images = [np.asarray(Image.open(path).convert("RGB")) for path in files]
    # Weight between "equal per image" and "equal per pixel": large images contain more detail, but not 60 times more.
    weight = np.array([image.shape[0] * image.shape[1] for image in images], dtype=np.float64) ** 0.5
    rng = np.random.default_rng(11)

    def draw() -> NDArray[np.uint8]:
        image = images[rng.choice(len(images), p=weight / weight.sum())]
        y, x = (int(rng.integers(side - CROP_PX + 1)) for side in image.shape[:2])
        return image[y : y + CROP_PX, x : x + CROP_PX].transpose(2, 0, 1)

    return torch.from_numpy(np.stack([draw() for _ in range(CROPS)])).float() / 127.5 - 1


def measure_latents(network: TinyNetwork, crops: Tensor, power: float) -> None:
    """Set the scale of every channel, and the mean of the lowest band."""
    bands = torch.cat([network.latents.encode(part) for part in crops.split(24)]).double()
    mean, std = bands.mean((0, 2, 3)), bands.std((0, 2, 3)).clamp(min=LEAST_STD)
    common = (std ** (2 - 2 * power)).mean().sqrt()
    network.latents.channel_mean[:3] = mean[:3]
    network.latents.channel_std.copy_(std**power * common)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--power", type=float, default=0.5)
    options = parser.parse_args()
    torch.manual_seed(0)
    network = TinyNetwork(TinyConfig())
    measure_latents(network, draw_crops(options.photos), options.power)
    options.out.mkdir(parents=True)
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(weights, options.out / "model.safetensors")
    (options.out / "config.json").write_text(json.dumps(network.config.model_dump(), indent=2) + "\n")
    record = ModelRecord(family="tiny", mid_timestep=100, native_tile_px=64, schedule=DdpmSchedule().to_config())
    write_record(record, options.out)


if __name__ == "__main__":
    main()
