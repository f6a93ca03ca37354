"""What `omgsr upscale` says of each file, and of all of them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from omgsr_cli.cli.progress import duration
from omgsr_cli.files.addresses import Address, Location, shown

if TYPE_CHECKING:
    from omgsr_cli.batch.results import FileResult


class Tally:
    """What the summary counts.

    Attributes:
        seconds: by the clock, in which pictures were done; of those done at a time, as one is written while the next is
            restored, no second counts twice. Without the loading of the model.
    """

    def __init__(self) -> None:
        self._counted_until = -math.inf
        self.done = self.skipped = self.planned = 0
        self.megapixels = self.seconds = 0.0
        self.failed: list[str] = []
        self.own: list[str] = []

    def add(self, result: FileResult) -> None:
        """Count one result."""
        if result.status == "failed":
            self.failed.append(name_of(result.source, "stdin"))
            return
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

    def summary(self, forecast: Callable[[], str] | None = None) -> str:
        """Such as: 12 done, 3 skipped, 1 failed: 34.5 megapixels in 51 s; and which failed.

        Args:
            forecast: of a dry run, tells what the planned ones will take.
        """
        counts = [("done", self.done), ("planned", self.planned), ("skipped", self.skipped)]
        counts.append(("failed", len(self.failed)))
        said = ", ".join(f"{count} {name}" for name, count in counts if count) or "nothing to do"
        if self.done:
            said += f": {self.megapixels:.1f} megapixels in {duration(self.seconds)}"
        elif self.planned and forecast is not None:
            said += f": {self.megapixels:.1f} megapixels, {forecast()}"
        return said + ("\nfailed: " + ", ".join(self.failed) if self.failed else "")


def result_line(result: FileResult) -> str | Path:
    """A path, or in a dry run what would be done."""
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
    """A path as it can be shown, or the name of the stream in its place."""
    return otherwise if path is None else shown(path)
