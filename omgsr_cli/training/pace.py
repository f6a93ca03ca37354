"""How fast a run is, and how much memory it takes."""

from __future__ import annotations

import sys
import time

import torch

if sys.platform != "win32":
    import resource

_NEWEST = 0.1
"""Share of the newest step in the running mean."""


class Pace:
    """Seconds a step: a running mean that begins with the mean of the first steps."""

    def __init__(self) -> None:
        self._mean = 0.0
        self._count = 0
        self._since = time.perf_counter()

    def restart(self) -> None:
        """Begin to measure now: what went before, such as saving, is no step."""
        self._since = time.perf_counter()

    def step(self) -> float:
        """Count a step; the running mean of seconds a step."""
        now = time.perf_counter()
        self._count += 1
        share = max(_NEWEST, 1 / self._count)
        self._mean += (now - self._since - self._mean) * share
        self._since = now
        return self._mean


def peak_memory_mib(device: torch.device) -> int:
    """The most memory that this process has taken so far: of the GPU, or of the system on a CPU; 0 on Windows' CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) // 2**20
    if device.type == "xpu":
        return int(torch.xpu.max_memory_allocated(device)) // 2**20
    if sys.platform == "win32":
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts kibibytes, macOS bytes.
    return peak // (2**20 if sys.platform == "darwin" else 2**10)
