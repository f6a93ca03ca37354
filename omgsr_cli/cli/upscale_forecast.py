"""What a run will take, by what earlier ones took: time, and memory at its peak."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omgsr_cli.cli.progress import duration

if TYPE_CHECKING:
    import torch

    from omgsr_cli.batch.results import FileResult
    from omgsr_cli.files.remembered import Remembered
    from omgsr_cli.models.base import RestorerInfo

# A run of less work than this tells more of the machine's mood than of the model.
_LEAST_WORK_MP = 0.25
_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


class Pace:
    """How fast a model is on a device: kept at the end of a run, asked for in a dry one.

    Work is counted in megapixels that go through the model, padding included.

    Args:
        info: of the model.
        device: where it runs.
        precision: "fp32", "bf16" or "fp16".
        remembered: where it is kept.
    """

    def __init__(self, info: RestorerInfo, device: torch.device, precision: str, remembered: Remembered) -> None:
        self._info, self._device, self._precision, self._remembered = info, device, precision, remembered
        self._key = f"{info.name} {device} {precision}"
        self._work_mp = 0.0
        self._memory_bytes = 0

    def add(self, result: FileResult) -> None:
        """Count a picture that was done, or is planned."""
        from omgsr_cli.planning import plan_model_canvas

        if result.status not in ("done", "planned") or result.output_px is None:
            return
        self._work_mp += plan_model_canvas(self._info, result.output_px).padded.area / 1e6
        if result.plan is not None:
            self._memory_bytes = max(self._memory_bytes, result.plan.memory_bytes)

    def keep(self, seconds: float) -> None:
        """Remember the speed of what was done, in so many seconds by the clock."""
        if self._work_mp >= _LEAST_WORK_MP and seconds > 0:
            self._remembered.keep_speed(self._key, seconds / self._work_mp)

    def forecast(self) -> str:
        """Expected time and memory of what was planned: "about 2 min 10 s on cpu, at most 640 MiB of memory ..."."""
        weights = self._info.parameters * _BYTES[self._precision]
        needed = (self._memory_bytes + weights) >> 20
        memory = f"at most {needed} MiB of memory for weights and work, beside the program itself"
        speed = self._remembered.find_speed(self._key)
        if speed is None:
            return f"{memory}; how long it takes in {self._precision} is known after a first run on {self._device}"
        return f"about {duration(speed * self._work_mp)} on {self._device} in {self._precision}, {memory}"
