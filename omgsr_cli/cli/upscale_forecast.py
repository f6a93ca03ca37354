"""What a run will take, estimated from earlier ones: time, and memory at its peak."""

from __future__ import annotations

from typing import TYPE_CHECKING

from omgsr_cli.cli.progress import duration

if TYPE_CHECKING:
    import torch

    from omgsr_cli.batch.results import FileResult
    from omgsr_cli.files.remembered import Remembered
    from omgsr_cli.models.base import RestorerInfo
    from omgsr_cli.options import RestoreOptions

# A run of less work than this tells more of the machine's mood than of the model.
_LEAST_WORK_MP = 0.25
_BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}


class Pace:
    """How fast a model is on a device: saved at the end of a run, read in a dry one.

    Work is counted in megapixels of the working size, padding included.

    Args:
        info: of the model.
        options: of the run.
        device: where it runs.
        precision: "fp32", "bf16" or "fp16".
        remembered: where it is kept.
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
        self._info, self._device, self._precision, self._remembered = info, device, precision, remembered
        self._key = f"{info.name} {device} {precision}"
        self._work_mp = self._output_mp = 0.0
        self._memory_bytes = 0

    def add(self, result: FileResult) -> None:
        """Count a picture that was done, or is planned."""
        from omgsr_cli.planning import plan_model_canvas

        if result.status not in ("done", "planned") or result.output_px is None or result.input_px is None:
            return
        canvas = plan_model_canvas(self._info, result.input_px, result.output_px, self._options)
        self._work_mp += canvas.padded.area / 1e6
        self._output_mp += result.output_px.area / 1e6
        if result.plan is not None:
            self._memory_bytes = max(self._memory_bytes, result.plan.memory_bytes)

    def keep(self, seconds: float) -> None:
        """Remember the speed of what was done, in so many seconds by the clock."""
        if self._work_mp >= _LEAST_WORK_MP and seconds > 0:
            self._remembered.keep_speed(self._key, seconds / self._work_mp)

    def forecast(self) -> str:
        """Expected time and memory of what was planned: "about 2 min 10 s on cpu, at most 640 MiB of memory ...".

        Where images are restored at a larger size than that of their results, their megapixels come first.
        """
        weights = self._info.parameters * _BYTES[self._precision]
        needed = (self._memory_bytes + weights) >> 20
        memory = f"at most {needed} MiB of memory for weights and work, beside the program itself"
        speed = self._remembered.find_speed(self._key)
        is_larger = self._work_mp > max(1, 2 * self._output_mp)
        work = f"restored at {self._work_mp:.1f}, " if is_larger else ""
        if speed is None:
            unknown = f"how long it takes in {self._precision} is known after a first run on {self._device}"
            return f"{work}{memory}; {unknown}"
        return f"{work}about {duration(speed * self._work_mp)} on {self._device} in {self._precision}, {memory}"
