"""How the memory of `omgsr upscale` grows with the picture: peaks of whole commands, and the growth per megapixel.

    python benchmarks/memory.py [--sizes 256,512,1024] [--limit 60]

Each size runs in a process of its own; a growth above the limit, in MB per megapixel of output, is exit code 1.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tiny import write_picture

_COMMAND = """
import resource, sys
from omgsr_cli.cli.app import run
assert run(["upscale", sys.argv[1], "-o", sys.argv[2], "--device", "cpu", "--quiet"]) == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, file=sys.stderr)
"""


def peak_mib(size_px: int) -> float:
    """Peak resident memory of enlarging one square picture by four."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.png"), Path(folder, "out.png")
        write_picture(source, size_px)
        arguments = [sys.executable, "-c", _COMMAND, str(source), str(target)]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        run = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
        return float(run.stderr.split()[-1])


def main() -> int:
    """Measure, print, and compare with the limit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="256,512,1024", help="sides of the pictures in px, the smallest first")
    parser.add_argument("--limit", type=float, default=60.0, help="MB per megapixel of output")
    options = parser.parse_args()
    sizes = [int(size) for size in options.sizes.split(",")]
    peaks = {size: peak_mib(size) for size in sizes}
    for size, peak in peaks.items():
        print(f"{size}x{size}: {(4 * size) ** 2 / 1e6:.1f} megapixels of output, {peak:.0f} MiB")
    first, last = sizes[0], sizes[-1]
    growth = (peaks[last] - peaks[first]) * 1.048576 / (((4 * last) ** 2 - (4 * first) ** 2) / 1e6)
    print(f"growth: {growth:.0f} MB per megapixel of output (limit {options.limit:g})")
    return 0 if growth <= options.limit else 1


if __name__ == "__main__":
    sys.exit(main())
