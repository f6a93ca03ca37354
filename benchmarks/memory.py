"""Measure how the memory of `omgsr upscale` grows with the image: peaks of complete commands, and growth per megapixel.

    python benchmarks/memory.py [--sizes 512,1024] [--limit 12] [--light] [--memory 400M]

From 512 pixels on, an image needs several tiles of full size. Each size runs in a separate process. If the growth, in
MB per megapixel of output, exceeds the limit, the exit code is 1. --light uses networks with as many channels but fewer
layers, which need as much memory at a time; use it for images that take the bundled model an hour.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from stages import add_device
from tiny import write_image_file

from omgsr_cli.models.record import ModelRecord, write_record
from omgsr_cli.models.tiny_network import TinyConfig, TinyNetwork

_COMMAND = """
import resource, sys
from omgsr_cli.cli.app import run
assert run(["upscale", *sys.argv[1:], "--quiet"]) == 0
import torch
name = sys.argv[sys.argv.index("--device") + 1].partition(":")[0]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, file=sys.stderr)
if name in ("cuda", "xpu"):
    print(torch.get_device_module(name).max_memory_allocated() / 2**20, file=sys.stderr)
"""


def write_light_model(folder: Path) -> None:
    """Write a model with omgsr-tiny's architecture and widths, and one layer of each kind."""
    config = TinyConfig(encoder_layers=1, step_blocks=1)
    torch.manual_seed(0)
    save_file(TinyNetwork(config).state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(config.model_dump_json(), encoding="utf-8")
    write_record(ModelRecord(family="tiny", mid_timestep=100, native_tile_px=64, scale=4.0), folder)


def peak_mib(size_px: int, *options: str) -> float:
    """Return the peak memory of upscaling one square image by four: resident, or allocated by torch on a GPU."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.png"), Path(folder, "out.png")
        write_image_file(source, size_px)
        arguments = [sys.executable, "-c", _COMMAND, str(source), "-o", str(target), *options]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        run = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
        return float(run.stderr.split()[-1])


def main() -> int:
    """Measure and print the memory, and compare its growth with the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="512,1024", help="sides of the images in px, the smallest first")
    parser.add_argument("--limit", type=float, default=12.0, help="MB per megapixel of output")
    parser.add_argument("--light", action="store_true", help="few layers, for large images")
    parser.add_argument("--memory", help="as for omgsr upscale")
    add_device(parser)
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    asked = ["--device", options.device, *(["--memory", options.memory] if options.memory else [])]
    with tempfile.TemporaryDirectory() as folder:
        if options.light:
            write_light_model(Path(folder))
            asked += ["--model", folder]
        peaks = {size: peak_mib(size, *asked) for size in sizes}
    for size, peak in peaks.items():
        print(f"{size}x{size}: {(4 * size) ** 2 / 1e6:.1f} megapixels of output, {peak:.0f} MiB")
    first, last = sizes[0], sizes[-1]
    growth = (peaks[last] - peaks[first]) * 1.048576 / (((4 * last) ** 2 - (4 * first) ** 2) / 1e6)
    print(f"growth: {growth:.1f} MB per megapixel of output (limit {options.limit:g})")
    return 0 if growth <= options.limit else 1


if __name__ == "__main__":
    sys.exit(main())
