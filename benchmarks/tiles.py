"""Measure the cost of margins and borders of exact tiles, by the largest tile and the size of the image.

    python benchmarks/tiles.py [--threads 2] [--measure 768,1344]

The first table needs no model: it shows the discarded share of the computed pixels, and the memory of the plan.
`--measure` times omgsr-tiny alternately on full tiles with these sides, to show whether caches suit larger tiles less.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from omgsr_cli import planning
from omgsr_cli.geometry import Size, plan_halo_tiles
from omgsr_cli.models.base import Restorer, RestorerInfo
from omgsr_cli.models.loading import load_restorer
from omgsr_cli.options import RestoreOptions

_ROUNDS = 3
SIZES = {"1 MP": Size(1000, 1000), "12 MP": Size(3000, 4000), "50 MP": Size(5773, 8660), "192 MP": Size(12000, 16000)}
"""Sizes of the restored image."""


def discarded(info: RestorerInfo, size: Size, largest_px: int, free_bytes: int) -> tuple[float, planning.TilePlan]:
    """Return the share of the computed pixels outside the image, and the plan."""
    planning._MAX_EXACT_TILE_PX = largest_px
    plan = planning.plan_restoration(info, size.times(1 / info.scale), size, RestoreOptions(), free_bytes)
    tiles = plan_halo_tiles(plan.canvas.padded, plan.step.core_px, plan.step.margin_px, info.multiple_of_px)
    computed = sum(tile.outer.height * tile.outer.width for tile in tiles)
    return 1 - size.area / computed, plan


def seconds_per_mp(restorer: Restorer, sides: list[int]) -> dict[int, float]:
    """Return seconds per megapixel of each full tile, the median of several rounds."""
    taken: dict[int, list[float]] = {side: [] for side in sides}
    with torch.inference_mode():
        for turn in range(_ROUNDS + 1):
            for side in sides:
                image = torch.rand(1, 3, side, side) * 2 - 1
                started = time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()
                restorer.decode(restorer.restore(restorer.encode(image)))
                ended = time.thread_time() if torch.get_num_threads() == 1 else time.perf_counter()
                if turn:
                    taken[side].append((ended - started) / (side * side / 1e6))
    return {side: statistics.median(values) for side, values in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--free", type=int, default=4096, metavar="MIB", help="memory that tiles may use")
    parser.add_argument("--measure", metavar="N,N", help="sides of tiles in px, margins included")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    restorer = load_restorer("omgsr-tiny", device="cpu", precision="fp32")
    chosen = planning._MAX_EXACT_TILE_PX
    print("| largest tile, px | " + " | ".join(f"{name}: discarded, MiB" for name in SIZES) + " |")
    print("|---:|" + "---:|" * len(SIZES))
    for largest in sorted({512, 768, 1152, 1536, 2304, 3072, chosen}):
        cells = []
        for size in SIZES.values():
            share, plan = discarded(restorer.info, size, largest, options.free << 20)
            cells.append(f"{share:.1%}, {plan.memory_bytes >> 20}")
        print(f"| {largest}{' (chosen)' if largest == chosen else ''} | " + " | ".join(cells) + " |")
    if options.measure:
        found = seconds_per_mp(restorer, [int(side) for side in options.measure.split(",")])
        least = min(found.values())
        print("\n" + "\n".join(f"{side} px: {value / least:.2f} times the least" for side, value in found.items()))


if __name__ == "__main__":
    main()
