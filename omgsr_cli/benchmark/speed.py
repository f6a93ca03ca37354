"""How long a model takes and what memory it needs at its peak."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch

from omgsr_cli.benchmark.results import Speed
from omgsr_cli.benchmark.statistics import quantiles

_MIB = 1 << 20
_PROCESS = Path("/proc/self")
T = TypeVar("T")


@dataclass
class Stopwatch:
    """Times one model's calls, with everything that its device still has to do, and the memory of each.

    Attributes:
        device: where the model computes.
        seconds: of each timed call.
        megapixels: of each call's output.
        process_mib: greatest resident memory during any of the calls.
        device_mib: greatest memory that tensors took on an accelerator during any of the calls.
    """

    device: torch.device
    seconds: list[float] = field(default_factory=list)
    megapixels: list[float] = field(default_factory=list)
    process_mib: float = 0.0
    device_mib: float | None = None

    def time(self, work: Callable[[], T], output_px: int) -> T:
        """Run some work and keep its time; nothing is kept if it raises."""
        _reset_peaks(self.device)
        _synchronize(self.device)
        started = time.perf_counter()
        result = work()
        _synchronize(self.device)
        self.seconds.append(time.perf_counter() - started)
        self.megapixels.append(output_px / 1e6)
        self.process_mib = max(self.process_mib, peak_process_mib())
        device_mib = _peak_device_mib(self.device)
        if device_mib is not None:
            self.device_mib = max(self.device_mib or 0.0, device_mib)
        return result

    def speed(self, model: str, precision: str, load_s: float) -> Speed | None:
        """What was measured; None where nothing was timed."""
        if not self.seconds:
            return None
        each = [seconds / pixels for seconds, pixels in zip(self.seconds, self.megapixels, strict=True)]
        return Speed(
            model,
            device_name(self.device),
            precision,
            len(self.seconds),
            load_s,
            quantiles(self.seconds),
            quantiles(each),
            self.process_mib,
            self.device_mib,
        )


def device_name(device: torch.device) -> str:
    """A device for people: "cpu", or with the hardware's name "cuda (NVIDIA H100)"."""
    if device.type in ("cuda", "xpu"):
        module = torch.cuda if device.type == "cuda" else torch.xpu
        return f"{device} ({module.get_device_name(device)})"
    return str(device)


def peak_process_mib() -> float:
    """Greatest resident memory of this process since it was last reset, or since the start where that cannot be."""
    try:
        for line in (_PROCESS / "status").read_text("ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    if sys.platform == "win32":
        import psutil  # comes with accelerate

        return float(psutil.Process().memory_info().peak_wset) / _MIB
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _MIB


def _reset_peaks(device: torch.device) -> None:
    if device.type in ("cuda", "xpu"):
        (torch.cuda if device.type == "cuda" else torch.xpu).reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        # Linux: the peak begins anew at what is resident now.
        (_PROCESS / "clear_refs").write_text("5", "ascii")


def _peak_device_mib(device: torch.device) -> float | None:
    if device.type in ("cuda", "xpu"):
        return float((torch.cuda if device.type == "cuda" else torch.xpu).max_memory_allocated(device)) / _MIB
    return None


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()
