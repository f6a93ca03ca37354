"""The VAE in strips v. diffusers' own calls on the whole picture: time, peak memory and largest difference, as ratios.

    python benchmarks/strips.py --shape sd21 --size 512 --memory 256

Each way runs in a process of its own, because the peak of a process never falls. Weights are random.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from sd_size import SHAPES, fill_randomly
from stages import peak_memory_gib, timed

from omgsr_cli.models.vae_tiling import Workspace, decode_in_strips, encode_in_strips


class _Image:
    """A picture as it is read."""

    def __init__(self, planes: torch.Tensor) -> None:
        self.planes, self.size_px = planes, (planes.shape[2], planes.shape[3])

    def read(self, top: int, bottom: int) -> torch.Tensor:
        return self.planes[:, :, top:bottom]


@torch.inference_mode()
def measure(way: str, options: argparse.Namespace, folder: Path) -> None:
    """Encode and decode one picture; results and figures go into the folder."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    torch.set_num_threads(options.threads)
    with torch.device("meta"):
        empty = AutoencoderKL(**SHAPES[options.shape][1])
    vae = fill_randomly(empty).eval()
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, options.size, options.size, generator=generator) * 2 - 1
    before = peak_memory_gib()
    workspace = Workspace(options.memory << 20, torch.device("cpu"))
    if way == "whole":
        encode_s, moments = timed(lambda: vae.encode(image).latent_dist.parameters)
        decode_s, picture = timed(lambda: vae.decode(moments.chunk(2, dim=1)[0]).sample)
    else:
        encode_s, moments = timed(lambda: encode_in_strips(vae, _Image(image), workspace))
        decode_s, picture = timed(
            lambda: torch.cat(list(decode_in_strips(vae, moments.chunk(2, dim=1)[0], workspace)), dim=2)
        )
    figures = torch.tensor([encode_s, decode_s, peak_memory_gib() - before])
    from safetensors.torch import save_file

    save_file(
        {"moments": moments.contiguous(), "picture": picture.contiguous(), "figures": figures}, folder / f"{way}.st"
    )


def main() -> None:
    """Do what was asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=tuple(SHAPES), default="sd21")
    parser.add_argument("--size", type=int, default=512, help="side of the picture in px, a multiple of 8")
    parser.add_argument("--memory", type=int, default=256, help="MiB that strips and layers may take")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--way", choices=("whole", "strips"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        measure(options.way, options, options.folder)
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
    for title, key in (("latent", "moments"), ("picture", "picture")):
        print(f"largest difference of the {title}: {(whole[key] - strips[key]).abs().max():.1e}")


if __name__ == "__main__":
    main()
