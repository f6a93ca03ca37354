"""omgsr-tiny beside the network that its encoder began as, in turns, as a ratio.

    python benchmarks/tiny_and_chain.py [--size 256] [--threads 2] [--rounds 5]

The chain has realesr-general-x4v3's shape (SRVGGNetCompact: 34 convolutions of 64 channels with PReLU at the size of
the low-quality image) and random weights: what it computes takes the same time as with trained ones.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from stages import add_device, synchronise, use_device
from torch import Tensor, nn

from omgsr_cli.geometry import Size
from omgsr_cli.models.loading import load_restorer
from omgsr_cli.upscaling import upscale_image


class Chain(nn.Module):
    """The shape alone."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1), nn.PReLU(64)]
        for _ in range(32):
            layers += [nn.Conv2d(64, 64, 3, padding=1), nn.PReLU(64)]
        self.body = nn.Sequential(*layers, nn.Conv2d(64, 48, 3, padding=1))

    def forward(self, image: Tensor) -> Tensor:
        return F.pixel_shuffle(self.body(image), 4) + F.interpolate(image, scale_factor=4.0, mode="nearest")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="side of the low-quality image in px")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    add_device(parser)
    options = parser.parse_args()
    place = use_device(options.device)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    image = torch.rand(3, options.size, options.size)
    tiny, chain = load_restorer("omgsr-tiny", device=options.device, precision="fp32"), Chain().eval().to(place)
    size = Size(4 * options.size, 4 * options.size)
    ratios, seconds = [], []
    with torch.inference_mode():
        for turn in range(options.rounds + 1):
            started = time.perf_counter()
            upscale_image(tiny, image, size)
            between = time.perf_counter()
            chain(image[None].to(place))
            synchronise()
            ended = time.perf_counter()
            if turn:
                ratios.append((between - started) / (ended - between))
                seconds.append(between - started)
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    print(f"omgsr-tiny takes {statistics.median(ratios):.2f} times as long as the chain ({spread})")
    print(f"{statistics.median(seconds):.2f} s an image of {size.width}x{size.height} at the median")


if __name__ == "__main__":
    main()
