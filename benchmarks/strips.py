"""Compare the VAE in strips with diffusers' calls on the full image: time, peak memory, largest difference, as ratios.

    python benchmarks/strips.py --shape sd21 --size 512 --memory 256
    python benchmarks/strips.py --shape toy --growth 2048,4096,8192 --memory 256 [--no-attention]

Each variant runs in a separate process, because the peak memory of a process never falls. Weights are random. With
--growth, only strips are measured, image by image, without keeping input or result, so the figures show the memory of
the strips alone. The time of attention grows with the square of the pixels; a CPU needs an hour for 64 megapixels.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import stages
import torch
from sd_size import SHAPES, fill_randomly
from stages import peak_memory_gib, timed

from omgsr_cli.models.base import Workspace
from omgsr_cli.models.vae_tiling import decode_in_strips, encode_in_strips


class _Image:
    """An image in memory that is read in rows."""

    def __init__(self, planes: torch.Tensor) -> None:
        self.planes, self.size_px = planes, (planes.shape[2], planes.shape[3])

    def read(self, top: int, bottom: int) -> torch.Tensor:
        return self.planes[:, :, top:bottom]


class _Noise:
    """An image that is not stored: its rows are generated when they are read."""

    def __init__(self, side: int) -> None:
        self.size_px = (side, side)

    def read(self, top: int, bottom: int) -> torch.Tensor:
        rows = torch.rand(1, 3, bottom - top, self.size_px[1], generator=torch.Generator().manual_seed(top))
        return (rows * 2 - 1).to(stages.device)


def build_vae(options: argparse.Namespace) -> Any:
    """Return the autoencoder of a shape with random weights."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    with torch.device("meta"):
        empty = AutoencoderKL(**SHAPES[options.shape][1], mid_block_add_attention=not options.no_attention)
    return fill_randomly(empty).eval().to(stages.device)


@torch.inference_mode()
def measure_growth(options: argparse.Namespace) -> None:
    """Encode and decode one image in strips, and print the memory growth of this process."""
    torch.set_num_threads(options.threads)
    vae = build_vae(options)
    warm = Workspace(1 << 20, stages.device)
    for _ in decode_in_strips(vae, encode_in_strips(vae, _Noise(64), warm).chunk(2, dim=1)[0], warm):
        pass
    before, workspace = peak_memory_gib(), Workspace(options.memory << 20, stages.device)
    encode_s, moments = timed(lambda: encode_in_strips(vae, _Noise(options.size), workspace))
    latent = moments.chunk(2, dim=1)[0]
    decode_s, _ = timed(lambda: [None for _ in decode_in_strips(vae, latent, workspace)])
    grown = (peak_memory_gib() - before) * 1024
    print(
        f"| {options.size} | {options.size**2 / 1e6:.1f} | {encode_s:.1f} | {decode_s:.1f} | {grown:.0f} |", flush=True
    )


@torch.inference_mode()
def measure(way: str, options: argparse.Namespace, folder: Path) -> None:
    """Encode and decode one image; write results and figures to the folder."""
    torch.set_num_threads(options.threads)
    vae = build_vae(options)
    generator = torch.Generator().manual_seed(0)
    image = (torch.rand(1, 3, options.size, options.size, generator=generator) * 2 - 1).to(stages.device)
    before = peak_memory_gib()
    workspace = Workspace(options.memory << 20, stages.device)
    if way == "whole":
        encode_s, moments = timed(lambda: vae.encode(image).latent_dist.parameters)
        decode_s, restored = timed(lambda: vae.decode(moments.chunk(2, dim=1)[0]).sample)
    else:
        encode_s, moments = timed(lambda: encode_in_strips(vae, _Image(image), workspace))
        decode_s, restored = timed(
            lambda: torch.cat(list(decode_in_strips(vae, moments.chunk(2, dim=1)[0], workspace)), dim=2)
        )
    figures = torch.tensor([encode_s, decode_s, peak_memory_gib() - before])
    from safetensors.torch import save_file

    save_file(
        {"moments": moments.cpu().contiguous(), "restored": restored.cpu().contiguous(), "figures": figures},
        folder / f"{way}.st",
    )


def main() -> None:
    """Run the requested measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="sd21")
    parser.add_argument("--size", type=int, default=512, help="side of the image in px, a multiple of 8")
    parser.add_argument("--memory", type=int, default=256, help="MiB that strips and layers may take")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--growth", help="sides of images in px: the memory that strips need for each")
    parser.add_argument("--no-attention", action="store_true", help="without the attention of the middle block")
    parser.add_argument("--way", choices=("whole", "strips", "growth"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    stages.add_device(parser)
    options = parser.parse_args()
    stages.use_device(options.device)
    if options.way == "growth":
        measure_growth(options)
        return
    if options.way:
        measure(options.way, options, options.folder)
        return
    if options.growth:
        print(
            "| side, px | megapixels | encode, s | decode, s | memory beside weights, MiB |\n|---:|---:|---:|---:|---:|"
        )
        for size in options.growth.split(","):
            command = [sys.executable, __file__, *sys.argv[1:], "--way", "growth", "--size", size]
            subprocess.run(command, check=True)
        return
    from safetensors.torch import load_file

    with tempfile.TemporaryDirectory() as name:
        for way in ("whole", "strips"):
            command = [sys.executable, __file__, *sys.argv[1:], "--way", way, "--folder", name]
            subprocess.run(command, check=True)
        whole, strips = (load_file(Path(name) / f"{way}.st") for way in ("whole", "strips"))
    print("| | whole | strips | ratio |\n|---|---:|---:|---:|")
    rows = zip(
        ("encode, s", "decode, s", "peak memory, GiB"),
        whole["figures"].tolist(),
        strips["figures"].tolist(),
        strict=True,
    )
    for title, before, after in rows:
        print(f"| {title} | {before:.2f} | {after:.2f} | {after / before:.2f} |")
    for title, key in (("latent", "moments"), ("image", "restored")):
        print(f"largest difference of the {title}: {(whole[key] - strips[key]).abs().max():.1e}")


if __name__ == "__main__":
    main()
