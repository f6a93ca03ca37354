"""Texts of `omgsr upscale` about images: plans, counts, and estimates of time and memory."""

from __future__ import annotations

import math
import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from omgsr_cli.cli.progress import duration
from omgsr_cli.files.addresses import Address, Location, shown

if TYPE_CHECKING:
    import torch

    from omgsr_cli.batch.reports import FileResult
    from omgsr_cli.files.remembered import Remembered
    from omgsr_cli.models.base import RestorerInfo
    from omgsr_cli.options import RestoreOptions

# A smaller run measures the state of the machine rather than the speed of the model.
_LEAST_WORK_MP = 0.25
_MOST_NAMES = 20
_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


class Counts:
    """The counts of the summary.

    Attributes:
        seconds: wall time spent on images, without loading the model; time in which one image is written while the
            next is restored counts once.
        failed: names of failed inputs, without those that were finished later.
        own: names of inputs that are results of earlier runs.
    """

    def __init__(self) -> None:
        self._counted_until = -math.inf
        self.done = self.skipped = self.planned = 0
        self.megapixels = self.seconds = 0.0
        self.failed: dict[str, None] = {}
        self.own: list[str] = []

    def add(self, result: FileResult) -> None:
        """Count one result."""
        if result.status == "failed":
            # An input without a job has no name.
            error, source = result.error, result.source
            self.failed[error.message if source is None and error else name_of(source, "stdin")] = None
            return
        if self.failed:
            self.failed.pop(name_of(result.source, "stdin"), None)
        if result.is_own:
            self.own.append(name_of(result.source, "stdin"))
            return
        self.done += result.status == "done"
        self.skipped += result.status == "skipped"
        self.planned += result.status == "planned"
        if result.status == "done":
            now = time.monotonic()
            self.seconds += min(result.seconds, now - self._counted_until)
            self._counted_until = now
        if result.output_px and result.status != "skipped":
            self.megapixels += result.output_px.area / 1e6

    def summary(self, forecast: str = "") -> str:
        """Return the counts, such as "12 finished, 3 skipped, 1 failed: 34.5 megapixels in 51 s", and failed names.

        Args:
            forecast: estimated time and memory of a dry run's planned images.
        """
        counts = [("finished", self.done), ("planned", self.planned), ("skipped", self.skipped)]
        counts.append(("failed", len(self.failed)))
        text = ", ".join(f"{count} {name}" for name, count in counts if count) or "nothing to do"
        if self.done:
            text += f": {self.megapixels:.1f} megapixels in {duration(self.seconds)}"
        elif self.planned and forecast:
            text += f": {self.megapixels:.1f} megapixels, {forecast}"
        names = list(islice(self.failed, _MOST_NAMES))
        more = f", and {len(self.failed) - len(names)} more" if len(self.failed) > len(names) else ""
        return f"{text}\nfailed: {', '.join(names)}{more}" if names else text


def result_line(result: FileResult) -> str | Path:
    """Return the path of a result, or in a dry run the planned work."""
    if result.plan is None:
        return (
            Path(result.destination or "") if not isinstance(result.destination, Address) else shown(result.destination)
        )
    plan = result.plan
    strips = "; encoder and decoder in strips" if plan.in_strips else ""
    count = "1 tile" if plan.tiles == 1 else f"{plan.tiles} tiles"
    core = plan.step.core_px
    side = core.width if plan.tiles == 1 or core.height == core.width else core
    tiles = f"{count} of {side} px" if plan.tiles else "plain upscaling"
    reduced = "" if result.working_px == result.output_px else f", restored at {result.working_px}"
    return (
        f"{name_of(result.source, 'stdin')} {result.input_px} -> {name_of(result.destination, 'stdout')} "
        f"{result.output_px}{reduced}; {tiles}, "
        f"{plan.memory_bytes >> 20} MiB{strips}"
    )


def name_of(path: Location | None, otherwise: str) -> str:
    """Return a readable path, or the name of the stream if the path is None."""
    return otherwise if path is None else shown(path)


class Pace:
    """The speed of a model on a device; a run measures it and a dry run uses it.

    Work is counted in megapixels of the working size, including padding.

    Args:
        info: description of the model.
        options: options of the run.
        device: device of the model.
        precision: "fp32", "bf16" or "fp16".
        remembered: keeps speeds between runs.
    """

    def __init__(
        self,
        info: RestorerInfo,
        options: RestoreOptions,
        device: torch.device,
        precision: str,
        remembered: Remembered,
    ) -> None:
        self._options = options
        self._info, self.device, self.precision, self._remembered = info, device, precision, remembered
        self._key = f"{info.name} {device} {precision}"
        self._work_mp = self._output_mp = 0.0
        self._memory_bytes = 0

    def add(self, result: FileResult) -> None:
        """Count a finished or planned image."""
        from omgsr_cli.planning import plan_model_canvas

        if result.status not in ("done", "planned") or result.output_px is None or result.input_px is None:
            return
        canvas = plan_model_canvas(self._info, result.input_px, result.output_px, self._options)
        self._work_mp += canvas.padded.area / 1e6
        self._output_mp += result.output_px.area / 1e6
        if result.plan is not None:
            self._memory_bytes = max(self._memory_bytes, result.plan.memory_bytes)

    def keep(self, seconds: float) -> None:
        """Keep the speed of the counted images; `seconds` is their wall time."""
        if self._work_mp >= _LEAST_WORK_MP and seconds > 0:
            self._remembered.keep("speed", self._key, seconds / self._work_mp)

    def forecast(self) -> str:
        """Estimate time and memory of the planned images: "about 2 min 10 s on cpu, at most 640 MiB of memory".

        Megapixels of work come first if images are restored at a larger size than their results.
        """
        weights = self._info.weight_bytes(_BYTES[self.precision])
        needed = (self._memory_bytes + weights) >> 20
        memory = f"at most {needed} MiB of memory for weights and work, in addition to the program"
        speed = self._remembered.find("speed", self._key)
        is_larger = self._work_mp > max(1, 2 * self._output_mp)
        work = f"restored at {self._work_mp:.1f}, " if is_larger else ""
        if speed is None:
            unknown = f"the time in {self.precision} on {self.device} is unknown until a first run"
            return f"{work}{memory}; {unknown}"
        return f"{work}about {duration(speed * self._work_mp)} on {self.device} in {self.precision}, {memory}"
