"""Stage 1: measure the latent space, and train the U-Net as a DDPM on clean latents.

python recipes/omgsr_tiny/pretrain.py --photos photos.u8 --out runs/pretrain --minutes 15
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from photos import Photos, batches
from state import Ema, State, load_state, save_state

from omgsr_cli.models.tiny import TinyConfig, TinyNetwork
from omgsr_cli.schedules import DdpmSchedule

# Fine chroma varies by less than a grey level: at unit variance the network would study quantisation noise.
SMALLEST_STD = 0.06


def measure_latents(network: TinyNetwork, photos: Photos) -> None:
    """Set the channels' mean and scale from 512 crops, so that the latents have unit variance or less."""
    latents = network.latents
    total, square, count = 0.0, 0.0, 0
    crops = batches(photos, 16, 128, seed=11, start=0)
    for _ in range(32):
        bands = latents.encode(next(crops) * 2 - 1).double()
        total = total + bands.sum((0, 2, 3))
        square = square + bands.square().sum((0, 2, 3))
        count += bands.shape[0] * bands.shape[2] * bands.shape[3]
    mean = total / count
    latents.channel_mean.copy_(mean)
    latents.channel_std.copy_((square / count - mean**2).sqrt().clamp(min=SMALLEST_STD))


def main() -> None:
    """Train until the minutes are over; a second call goes on where the first one stopped."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=15)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--crop", type=int, default=128)
    parser.add_argument("--lr", type=float, default=4e-4)
    args = parser.parse_args()

    torch.manual_seed(0)
    photos = Photos(args.photos)
    network = TinyNetwork(TinyConfig()).to(memory_format=torch.channels_last)
    measure_latents(network, photos)
    schedule = DdpmSchedule()
    optimizer = torch.optim.AdamW(network.unet.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-4)
    state = State(network=network, ema=Ema(network, 0.998), optimizers={"unet": optimizer}, step=0)
    load_state(args.out / "state.pt", state)

    started, running = time.time(), 0.0
    crops = batches(photos, args.batch, args.crop, seed=1, start=state.step)
    while (elapsed := time.time() - started) < args.minutes * 60:
        # Cosine decay over the minutes given, so that a shorter run ends as settled as a longer one.
        share = elapsed / (args.minutes * 60)
        optimizer.param_groups[0]["lr"] = args.lr * min(1, (state.step + 1) / 100) * max(0.02, (1 - share) ** 0.7)
        draw = torch.Generator().manual_seed(state.step)
        with torch.no_grad():
            clean = network.latents.encode(next(crops) * 2 - 1)
        timestep = torch.randint(0, 1000, (args.batch,), generator=draw)
        noise = torch.randn(clean.shape, generator=draw)
        noisy = schedule.add_noise(clean, noise, timestep)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            prediction = network.unet(noisy.contiguous(memory_format=torch.channels_last), timestep)
        loss = (prediction.float() - noise).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.unet.parameters(), 1.0)
        optimizer.step()
        state.ema.update(network)
        state.step += 1
        running = running * 0.98 + loss.item() * 0.02
        if state.step % 50 == 0:
            print(
                f"step {state.step} minutes {elapsed / 60:.1f} loss {running / (1 - 0.98**state.step):.4f}", flush=True
            )
        if state.step % 500 == 0:
            save_state(args.out / "state.pt", state)
    save_state(args.out / "state.pt", state)


if __name__ == "__main__":
    main()
