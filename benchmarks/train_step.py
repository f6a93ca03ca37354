"""Time and memory of training steps of a model of Stable Diffusion 2.1-base's size, with random weights.

Encoder and UNet learn by LoRA (ranks 16 and 32); the losses are L1 and LRR, so that what is measured is the generator:
a feature network and a discriminator come on top. Make the model with `sd_size.py` first.

    python benchmarks/sd_size.py --make /tmp/sd_size
    python benchmarks/train_step.py /tmp/sd_size --size 512 --precision fp32 --steps 1
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from stages import peak_memory_gib

from omgsr_cli.models.devices import choose_device
from omgsr_cli.models.trainable import find_trainable, load_trainable
from omgsr_cli.training.generator import Generator
from omgsr_cli.training.optimizers import build_adamw, clip_gradients


def main() -> None:
    """Load, take the steps and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the base model")
    parser.add_argument("--size", type=int, default=512, help="side of the pictures in px")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--no-checkpointing", action="store_true", help="keep every activation")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = choose_device(None)

    source = find_trainable(base=str(options.folder))
    trainable = load_trainable(source, device, precision=options.precision, native_px=options.size)
    if not options.no_checkpointing:
        trainable.checkpoint_gradients()
    weights = trainable.trained()
    generator = Generator(trainable, options.precision)
    optimizer = build_adamw(weights.values(), lr=5e-5, betas=(0.9, 0.999), weight_decay=1e-4)
    print(f"{trainable.restorer.info.parameters / 1e6:.0f} M weights, of which learn", end=" ")
    print(f"{sum(weight.numel() for weight in weights.values()) / 1e6:.1f} M; loaded: {peak_memory_gib():.1f} GiB")

    draw = torch.Generator().manual_seed(0)
    shape = (options.batch, 3, options.size, options.size)
    lq, hq = (torch.rand(shape, generator=draw).mul(2).sub(1).to(device) for _ in range(2))
    for step in range(options.steps):
        begun = time.perf_counter()
        output = generator(lq, hq, 0, range(options.batch))
        loss = 0.5 * (output.restored - hq).abs().mean()
        loss = loss + 5 * (output.lq_latent - output.noisy_latent).square().mean()
        forward_s = time.perf_counter() - begun
        loss.backward()
        norm = float(clip_gradients(weights.values(), 1.0))
        optimizer.step()
        optimizer.zero_grad()
        total_s = time.perf_counter() - begun
        print(f"step {step + 1}: loss {loss.item():.4f}, gradient norm {norm:.4f}, forward {forward_s:.1f} s,", end=" ")
        print(f"whole step {total_s:.1f} s, peak {peak_memory_gib():.1f} GiB", flush=True)


if __name__ == "__main__":
    main()
