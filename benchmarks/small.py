"""Measure the time of a small image outside the model: restore many 16x16 px images in one process, then skip them.

    python benchmarks/small.py [--images 300] [--profile]

Seconds are this process's CPU time, so other work on the machine has little effect. The model alone is timed on the
same tiles in the same run. The second run finds all images finished.
"""

from __future__ import annotations

import argparse
import contextlib
import cProfile
import io
import pstats
import tempfile
import time
from pathlib import Path

import torch
from tiny import write_image_file

from omgsr_cli.cli.app import run
from omgsr_cli.models.loading import load_restorer


def own_seconds(call: list[str], profile: bool) -> float:
    """Run one command in this process and return its CPU seconds."""
    profiler = cProfile.Profile()
    started = time.process_time()
    if profile:
        profiler.enable()
    with contextlib.redirect_stdout(io.StringIO()):
        code = run(call)
    if profile:
        profiler.disable()
        pstats.Stats(profiler).sort_stats("tottime").print_stats(25)
    assert code == 0
    return time.process_time() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--size", type=int, default=16, help="side of the images in px")
    parser.add_argument("--profile", action="store_true", help="print where the time goes; this slows everything")
    options = parser.parse_args()
    torch.set_num_threads(1)
    restorer = load_restorer("omgsr-tiny", device="cpu", precision="fp32")
    # The plan for such an image: four times its side, at least the model's native size, plus the model's border.
    side = max(4 * options.size, restorer.info.native_tile_px) + 2 * restorer.info.border_px
    tile = torch.rand(1, 3, side, side) * 2 - 1
    with torch.inference_mode():
        for _ in range(2):
            started = time.process_time()
            for _ in range(20):
                restorer.decode(restorer.restore(restorer.encode(tile)))
            bare = (time.process_time() - started) / 20
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name, "in")
        folder.mkdir()
        for number in range(options.images):
            write_image_file(folder / f"{number}.png", options.size)
        # The cache ignores files that were just written, because they may still change.
        time.sleep(3)
        call = ["upscale", str(folder), "-o", str(Path(name, "out")), "--device", "cpu", "--precision", "fp32", "-q"]
        first = own_seconds(call, options.profile) / options.images
        again = own_seconds(call, options.profile) / options.images
    print(
        f"{first * 1e3:.1f} ms an image, of which the bare model takes {bare * 1e3:.1f}; {again * 1e3:.2f} ms finished"
    )


if __name__ == "__main__":
    main()
