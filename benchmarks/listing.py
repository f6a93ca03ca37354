"""Measure how soon the first of millions of images is found, and how much memory their listing needs.

A simulated storage contains this many paths. Each is found, named, checked against the others and returned as a job, in
the same way as in `omgsr upscale` before it runs a model.

    python benchmarks/listing.py --millions 1
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import fsspec
from fsspec.spec import AbstractFileSystem

from omgsr_cli.files.jobs import Job, JobOptions, find_jobs

PER_FOLDER = 1000


class Many(AbstractFileSystem):  # type: ignore[misc] # fsspec has no type hints
    protocol = "many"
    folders = 0

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[dict[str, Any]]:
        path = path.strip("/")
        if path == "in":
            return [{"name": f"in/{n:05}", "type": "directory", "size": 0} for n in range(Many.folders)]
        return [{"name": f"{path}/{n:06}.png", "type": "file", "size": 0} for n in range(PER_FOLDER)]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        return {"name": path, "type": "directory", "size": 0}


def peak_mib() -> float:
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--millions", type=float, default=1.0)
    options = parser.parse_args()
    Many.folders = int(options.millions * 1e6 / PER_FOLDER)
    fsspec.register_implementation("many", Many)
    began = time.perf_counter()
    found = find_jobs(
        ["many://in"], "out", JobOptions(recursive=True, suffix=None, size_suffix="_x4", output_format="png")
    )
    jobs = (one for one in found if isinstance(one, Job))
    next(jobs)
    first_s = time.perf_counter() - began
    print(f"the first job after {first_s:.2f} s, {peak_mib():.0f} MiB at most so far")
    count = 1
    for _ in jobs:
        count += 1
    whole_s = time.perf_counter() - began
    print(f"{count} jobs after {whole_s:.0f} s: {whole_s / count * 1e6:.0f} µs each, {peak_mib():.0f} MiB at most")
    print(f"the first after {first_s / whole_s:.3f} of the time that the listing takes")


if __name__ == "__main__":
    main()
