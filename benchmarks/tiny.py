"""Time and memory of omgsr-tiny: the whole command in a process of its own, then the stages in this one.

    python benchmarks/tiny.py [--size 256] [--precision fp32]

`auto` is fp32 for this model on a CPU.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import stages
import torch
from PIL import Image
from stages import Row, count_flops, peak_memory_gib, print_table, restoration_rows, timed

from omgsr_cli.models.loading import load_restorer


def write_image_file(path: Path, size_px: int) -> None:
    """Write an image of smooth colours with some noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(size_px, size_px), mode="bicubic")[0]
    noisy = smooth + 0.03 * torch.randn(smooth.shape, generator=generator)
    pixels = noisy.clamp(0, 1).mul(255).byte().permute(1, 2, 0)
    Image.fromarray(pixels.contiguous().numpy()).save(path)


def command_row(size_px: int, precision: str, threads: int) -> Row:
    """Run `omgsr upscale` on one image, from nothing to the written file."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.png"), Path(folder, "out.png")
        write_image_file(source, size_px)
        command = [sys.executable, "-m", "omgsr_cli", "upscale", str(source), "-o", str(target), "--device"]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        command += [str(stages.device), "--precision", precision, "--quiet"]
        seconds, _ = timed(lambda: subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True))
        with Image.open(target) as image:
            assert image.size == (4 * size_px, 4 * size_px)
    return Row("whole command", seconds, peak_memory_gib(resource.RUSAGE_CHILDREN))


def main() -> None:
    """Measure both and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="side of the image in px")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--threads", type=int, default=2)
    stages.add_device(parser)
    options = parser.parse_args()
    stages.use_device(options.device)
    torch.set_num_threads(options.threads)
    # First, while this process is small: what it holds would count as its child's peak.
    command = command_row(options.size, options.precision, options.threads)
    load_s, restorer = timed(
        lambda: load_restorer("omgsr-tiny", device=str(stages.device), precision=options.precision)
    )
    loaded = Row("load", load_s, peak_memory_gib())
    rows = restoration_rows(restorer, options.size, count_flops(restorer, 4 * options.size))
    print(f"{restorer.info.parameters / 1e6:.1f} M parameters, {restorer.precision}, {options.threads} threads")
    print(f"{options.size}x{options.size} to {4 * options.size}x{4 * options.size}\n")
    print_table([command, loaded, *rows])


if __name__ == "__main__":
    main()
