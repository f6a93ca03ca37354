"""Time the stages of a restoration as `upscale_image` calls them, and measure its memory and operations."""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from omgsr_cli.geometry import Size
from omgsr_cli.models.base import ImageRows, Restorer, RestorerInfo, TilesItself, Workspace
from omgsr_cli.models.devices import choose_device
from omgsr_cli.schedules import Schedule
from omgsr_cli.upscaling import upscale_image

STAGES = ("encode", "step", "decode")

clock = time.perf_counter
"""The clock of `timed`; on a busy machine, processor time is more reliable."""

device = torch.device("cpu")
"""The measured device; `use_device` changes it."""

Result = TypeVar("Result")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add --device to the options of a benchmark."""
    parser.add_argument("--device", default="cpu", help="as for omgsr upscale")


def use_device(name: str) -> torch.device:
    """Set the device to measure."""
    global device
    device = choose_device(name)
    return device


def synchronise() -> None:
    """Wait until the device has finished its work."""
    if device.type != "cpu":
        module = torch.get_device_module(device)
        module.synchronize(*(() if device.type == "mps" else (device,)))


def peak_memory_gib(who: int = resource.RUSAGE_SELF) -> float:
    """Return the peak memory so far, in GiB: memory that torch allocated on the device, or resident memory on the CPU.

    Resident memory includes the pages of mapped files and all threads. MPS reports only the current allocation.
    """
    if who == resource.RUSAGE_SELF and device.type == "mps":
        return float(torch.mps.driver_allocated_memory() / 2**30)
    if who == resource.RUSAGE_SELF and device.type != "cpu":
        return float(torch.get_device_module(device).max_memory_allocated(device) / 2**30)
    peak = resource.getrusage(who).ru_maxrss
    # macOS reports bytes, Linux KiB.
    return float(peak / (2**30 if sys.platform == "darwin" else 2**20))


@dataclass
class TimedRestorer:
    """A `Restorer` that passes every call to another one and adds up their times.

    Attributes:
        inner: the restorer that does the work.
        seconds: seconds of each of STAGES, over all tiles since the last `reset`.
        peak_gib: peak memory so far at the end of each stage.
    """

    inner: Restorer
    seconds: dict[str, float] = field(default_factory=dict)
    peak_gib: dict[str, float] = field(default_factory=dict)

    @property
    def info(self) -> RestorerInfo:
        return self.inner.info

    @property
    def schedule(self) -> Schedule:
        return self.inner.schedule

    @property
    def device(self) -> torch.device:
        return self.inner.device

    @property
    def precision(self) -> str:
        return self.inner.precision

    @property
    def notes(self) -> tuple[str, ...]:
        return self.inner.notes

    def compile(self) -> None:
        self.inner.compile()

    def encode(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self._timed("encode", lambda: self.inner.encode(image, generator))

    def restore(self, lq_latent: Tensor) -> Tensor:
        return self._timed("step", lambda: self.inner.restore(lq_latent))

    def decode(self, latent: Tensor) -> Tensor:
        return self._timed("decode", lambda: self.inner.decode(latent))

    def encode_within(self, image: ImageRows, workspace: Workspace, generator: torch.Generator | None = None) -> Tensor:
        inner = self._inner_tiles_itself()
        return self._timed("encode", lambda: inner.encode_within(image, workspace, generator))

    def decode_within(self, latent: Tensor, workspace: Workspace) -> Iterator[Tensor]:
        strips = self._inner_tiles_itself().decode_within(latent, workspace)
        try:
            while True:
                yield self._timed("decode", lambda: next(strips))
        except StopIteration:
            return

    def _inner_tiles_itself(self) -> TilesItself:
        assert isinstance(self.inner, TilesItself)
        return self.inner

    def reset(self) -> None:
        """Clear the measurements."""
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self.peak_gib = {}

    def _timed(self, stage: str, work: Callable[[], Tensor]) -> Tensor:
        seconds, result = timed(work)
        self.seconds[stage] += seconds
        self.peak_gib[stage] = peak_memory_gib()
        return result


def timed(work: Callable[[], Result]) -> tuple[float, Result]:
    """Run a function until the device is idle; return seconds and its result."""
    synchronise()
    start = clock()
    result = work()
    synchronise()
    return clock() - start, result


@dataclass(frozen=True)
class Row:
    """One row of a table; values that were not measured are None."""

    name: str
    seconds: float
    peak_gib: float | None = None
    flops: int | None = None


def restoration_rows(restorer: Restorer, side_px: int, flops: dict[str, int]) -> list[Row]:
    """Restore two images of one size and time their stages.

    Args:
        restorer: a restorer on the measured device.
        side_px: height and width of the images.
        flops: operations of each of STAGES, for the second image's rows.
    Returns:
        One row for the first image, which includes one-time preparations, then rows for the second image's stages and
        their total.
    """
    timer = TimedRestorer(restorer)
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(3, side_px, side_px, generator=generator)
    output = Size(side_px, side_px).times(restorer.info.scale)
    timer.reset()
    first, _ = timed(lambda: upscale_image(timer, image, output))
    rows = [Row("first image", first, peak_memory_gib(), sum(flops.values()))]
    timer.reset()
    whole, result = timed(lambda: upscale_image(timer, image, output))
    if tuple(result.shape) != (3, *output) or not bool(result.isfinite().all()):
        raise RuntimeError(f"the result {tuple(result.shape)} is not a finite image of {output}")
    rows += [Row(f"- {stage}", timer.seconds[stage], timer.peak_gib[stage], flops[stage]) for stage in STAGES]
    rows.insert(1, Row("second image", whole, peak_memory_gib(), sum(flops.values())))
    return rows


def count_flops(restorer: Restorer, side_px: int) -> dict[str, int]:
    """Count the floating-point operations of each stage for one square image; a multiply-add counts as two.

    Args:
        restorer: a restorer on any device; on "meta", nothing is computed.
        side_px: side of the upscaled image, in one tile.
    """
    counts: dict[str, int] = {}

    def counted(stage: str, work: Callable[[], Tensor]) -> Tensor:
        with FlopCounterMode(display=False) as counter:
            result = work()
        counts[stage] = counter.get_total_flops()
        return result

    image = torch.zeros(1, 3, side_px, side_px, device=restorer.device)
    # The counter does not support the CPU's fused attention kernel, so split attention into matrix products.
    with torch.inference_mode(), sdpa_kernel(SDPBackend.MATH):
        lq_latent = counted("encode", lambda: restorer.encode(image))
        latent = counted("step", lambda: restorer.restore(lq_latent))
        counted("decode", lambda: restorer.decode(latent))
    return counts


def print_table(rows: Sequence[Row]) -> None:
    """Print rows as a table that can be pasted into a Markdown page."""
    lines = [("", "seconds", "GFLOP", "GFLOP/s", "peak memory, GiB")]
    for row in rows:
        gflop = None if row.flops is None else row.flops / 1e9
        lines.append(
            (
                row.name,
                f"{row.seconds:.2f}",
                "" if gflop is None else f"{gflop:.0f}",
                "" if gflop is None else f"{gflop / row.seconds:.0f}",
                "" if row.peak_gib is None else f"{row.peak_gib:.2f}",
            )
        )
    lines.insert(1, ("---", "---:", "---:", "---:", "---:"))
    for line in lines:
        print("| " + " | ".join(line) + " |")
