"""Measure time and memory on this machine, and collect the versions of software that affects results."""

from __future__ import annotations

import contextlib
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import torch

from omgsr_cli import __version__
from omgsr_cli.benchmark.results import Speed, quantiles
from omgsr_cli.packages import version_of

_LIBRARIES = (
    *("torch", "numpy", "pillow", "diffusers", "transformers"),
    *("pyiqa", "torchvision", "timm", "scipy", "opencv-python-headless", "spandrel"),
)
_MIB = 1 << 20
_PROCESS = Path("/proc/self")
T = TypeVar("T")


def collect_versions() -> dict[str, str]:
    """Return the versions of this program, its installed libraries, Python and the system, by name."""
    found = {"omgsr": __version__, "python": platform.python_version()}
    found |= {name: version for name in _LIBRARIES if (version := version_of(name)) is not None}
    return {**found, "system": f"{platform.system()} {platform.machine()}"}


def machine_name() -> list[object]:
    """Return what identifies this machine and its number of threads; times are not valid on another machine."""
    return [platform.node(), platform.machine(), os.cpu_count(), torch.get_num_threads()]


@dataclass(frozen=True)
class Timing:
    """Time and memory of restoring one image with a model.

    Attributes:
        seconds: seconds of each timed restoration.
        megapixels: megapixels of the output.
        load_s: seconds to load the model.
        process_mib: peak resident memory during any of the calls.
        device_mib: peak memory of tensors on an accelerator during any of the calls; None on the CPU.
        device: readable name.
        precision: readable name.
        is_kept: whether an earlier run measured it.
    """

    seconds: tuple[float, ...]
    megapixels: float
    load_s: float
    process_mib: float
    device_mib: float | None
    device: str
    precision: str
    is_kept: bool = False

    @property
    def median_s(self) -> float:
        """The median seconds of the restorations."""
        return statistics.median(self.seconds)

    def with_another(self, other: Timing) -> Timing:
        """Combine two timings of one image."""
        device_mib = None if self.device_mib is None else max(self.device_mib, other.device_mib or 0.0)
        return replace(
            other,
            seconds=(*self.seconds, *other.seconds),
            process_mib=max(self.process_mib, other.process_mib),
            device_mib=device_mib,
        )


def speed_of(model: str, timings: Sequence[Timing]) -> Speed | None:
    """Return a model's speed from the timings of its images; None if no image was timed."""
    if not timings:
        return None
    seconds = [each for timing in timings for each in timing.seconds]
    # Device and loading time come from this run, if it measured anything.
    newest = min(timings, key=lambda timing: timing.is_kept)
    device_mib = [timing.device_mib for timing in timings if timing.device_mib is not None]
    return Speed(
        model,
        newest.device,
        newest.precision,
        len(seconds),
        newest.load_s,
        quantiles(seconds),
        quantiles([each / timing.megapixels for timing in timings for each in timing.seconds]),
        max(timing.process_mib for timing in timings),
        max(device_mib, default=None),
        sum(len(timing.seconds) for timing in timings if timing.is_kept),
    )


def time_call(
    work: Callable[[], T], output_px: int, device: torch.device, *, precision: str, load_s: float
) -> tuple[T, Timing]:
    """Run a function, wait until its device is idle, and return the result with time and memory.

    Args:
        work: restores one image.
        output_px: number of pixels of its result.
        device: the device of the model.
        precision: the model's precision, for the record.
        load_s: the model's loading time in seconds, for the record.
    """
    accelerator = torch.get_device_module(device) if device.type in ("cuda", "xpu") else None
    if accelerator is not None:
        accelerator.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        # On Linux, this resets the peak to the current resident memory.
        (_PROCESS / "clear_refs").write_text("5", "ascii")
    _synchronize(device)
    started = time.perf_counter()
    result = work()
    _synchronize(device)
    took = time.perf_counter() - started
    device_mib = accelerator.max_memory_allocated(device) / _MIB if accelerator else None
    # Such as "cuda (NVIDIA H100)".
    name = f"{device} ({accelerator.get_device_name(device)})" if accelerator else str(device)
    return result, Timing((took,), output_px / 1e6, load_s, peak_process_mib(), device_mib, name, precision)


def peak_process_mib() -> float:
    """Return the peak resident memory since the last reset, or since the process started if it cannot be reset."""
    try:
        for line in (_PROCESS / "status").read_text("ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    if sys.platform == "win32":
        import psutil  # a dependency of accelerate

        return float(psutil.Process().memory_info().peak_wset) / _MIB
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _MIB


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(*(() if device.type == "mps" else (device,)))
