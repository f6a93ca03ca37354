"""Pre-train omgsr-tiny's denoiser as a DDPM on the clean latents of photographs.

    python recipes/omgsr_tiny/pretrain.py --photos PHOTOS --out runs/pretrained --minutes 10

Writes a model folder whose encoder does nothing yet. The latent space is measured first: each band is divided by its
standard deviation over the photographs to the power 0.5, and all by one number, so that their mean variance is 1.
"""

from __future__ import annotations

import argparse
import json
import time
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

POWER = 0.5
CROP_PX, BATCH = 128, 24
LEARNING_RATE, DECAY = 6e-4, 0.998


class Photos:
    """Random crops of the photographs of a folder; a draw depends on (seed, step) alone."""

    def __init__(self, folder: Path) -> None:
        files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in {".webp", ".png", ".jpg"})
        self.pictures = [np.asarray(Image.open(path).convert("RGB")) for path in files]
        area = np.array([picture.shape[0] * picture.shape[1] for picture in self.pictures], dtype=np.float64)
        # Between "every picture alike" and "every pixel alike": large pictures hold more, but not 60 times more.
        self.weight = area**0.5 / (area**0.5).sum()

    def batch(self, seed: int, step: int) -> Tensor:
        """(BATCH, 3, CROP_PX, CROP_PX) in [-1, 1]."""
        rng = np.random.default_rng([seed, step])
        return torch.from_numpy(np.stack([self._crop(rng) for _ in range(BATCH)])).float() / 127.5 - 1

    def _crop(self, rng: np.random.Generator) -> NDArray[np.uint8]:
        picture = self.pictures[rng.choice(len(self.pictures), p=self.weight)]
        y, x = (int(rng.integers(side - CROP_PX + 1)) for side in picture.shape[:2])
        crop = np.rot90(picture[y : y + CROP_PX, x : x + CROP_PX], int(rng.integers(4)))
        return np.ascontiguousarray((crop[:, ::-1] if rng.random() < 0.5 else crop).transpose(2, 0, 1))


def measure_latents(network: TinyNetwork, photos: Photos) -> None:
    """Set the scale of every channel, and the mean of the lowest band."""
    bands = torch.cat([network.latents.encode(photos.batch(11, step)) for step in range(24)]).double()
    mean, std = bands.mean((0, 2, 3)), bands.std((0, 2, 3)).clamp(min=0.004)
    common = (std ** (2 - 2 * POWER)).mean().sqrt()
    network.latents.channel_mean[:3] = mean[:3]
    network.latents.channel_std.copy_(std**POWER * common)


def draw_timesteps(step: int) -> Tensor:
    """(BATCH,) timesteps: every other batch has more of the early ones, near which the one step is taken."""
    share = torch.rand(BATCH)
    return ((share if step % 2 else share**2) * 1000).long()


def train(network: TinyNetwork, photos: Photos, minutes: float) -> dict[str, Tensor]:
    """Train until the minutes are over; gives the average of the weights."""
    schedule = DdpmSchedule()
    optimizer = torch.optim.AdamW(network.unet.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.99), weight_decay=1e-4)
    average = {name: value.clone() for name, value in network.state_dict().items()}
    started, step, running = time.time(), 0, 1.0
    while (share := (time.time() - started) / (minutes * 60)) < 1:
        rate = LEARNING_RATE * min(1, (step + 1) / 100) * max(0.02, (1 - share) ** 0.7)
        optimizer.param_groups[0]["lr"] = rate
        clean = network.latents.encode(photos.batch(1, step))
        timestep, noise = draw_timesteps(step), torch.randn_like(clean)
        with torch.autocast("cpu", torch.bfloat16):
            predicted = network.unet(schedule.add_noise(clean, noise, timestep), timestep)
        loss = (predicted.float() - noise).square().mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.unet.parameters(), 1.0)
        optimizer.step()
        for name, value in network.state_dict().items():
            average[name].lerp_(value, 1 - min(DECAY, (1 + step) / (10 + step)))
        step, running = step + 1, running * 0.98 + loss.item() * 0.02
        if step % 100 == 0:
            print(f"step {step}: loss {running:.4f}", flush=True)
    return average


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10)
    options = parser.parse_args()
    torch.manual_seed(0)
    network = TinyNetwork(TinyConfig()).to(memory_format=torch.channels_last)
    photos = Photos(options.photos)
    measure_latents(network, photos)
    weights = train(network, photos, options.minutes)
    options.out.mkdir(parents=True)
    save_file({name: value.contiguous() for name, value in weights.items()}, options.out / "model.safetensors")
    (options.out / "config.json").write_text(json.dumps(network.config.model_dump(), indent=2) + "\n")
    record = ModelRecord(family="tiny", mid_timestep=100, native_tile_px=64, schedule=DdpmSchedule().to_config())
    write_record(record, options.out)


if __name__ == "__main__":
    main()
