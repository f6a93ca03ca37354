"""Measure a command's time before it computes: answers without torch, and one small image, compared with import torch.

    python benchmarks/startup.py [--rounds 3]

Each command runs in a separate process, alternately. The figures are CPU seconds including child processes, the minimum
of several rounds.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from tiny import write_image_file

PROGRAM = [sys.executable, "-m", "omgsr_cli", "upscale"]


def cpu_seconds(command: list[str], folder: Path) -> float:
    """Return the CPU seconds of a process, regardless of its exit code."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMGSR_CACHE": str(folder / "cache")}
    subprocess.run(command, cwd=folder, env=environment, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_image_file(folder / "a.png", 16)
        (folder / "other.png").write_bytes((folder / "a.png").read_bytes())
        subprocess.run([*PROGRAM, "a.png", "--strength", "0"], cwd=folder, check=True, capture_output=True)
        commands = {
            "import torch": [sys.executable, "-c", "import torch"],
            "no such file": [*PROGRAM, "missing.png"],
            "unknown model": [*PROGRAM, "a.png", "--model", "quantum"],
            "another file in the way": [*PROGRAM, "a.png", "-o", "other.png"],
            "already finished": [*PROGRAM, "a.png", "--strength", "0"],
            "one image of 16x16": [*PROGRAM, "a.png", "-o", "new.png", "--overwrite", "--precision", "fp32"],
        }
        least = dict.fromkeys(commands, float("inf"))
        for _ in range(options.rounds):
            for what, command in commands.items():
                (folder / "new.png").unlink(missing_ok=True)
                least[what] = min(least[what], cpu_seconds(command, folder))
    for what, seconds in least.items():
        print(f"{what:26}{seconds:6.2f} s, {seconds / least['import torch']:.2f} times importing torch")


if __name__ == "__main__":
    main()
