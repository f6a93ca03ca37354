"""The jobs of one run as an engine does them: opened once in each process, whatever that shares with others."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from omgsr_cli.batch.checking import name_of
from omgsr_cli.batch.finished import FinishedResults, Settings
from omgsr_cli.batch.results import FileResult
from omgsr_cli.batch.upscaler import Upscaler
from omgsr_cli.engines.work import Place, Say
from omgsr_cli.errors import FileError, OmgsrError
from omgsr_cli.files.jobs import Job
from omgsr_cli.files.remembered import Remembered
from omgsr_cli.models.base import Restorer, RestorerInfo
from omgsr_cli.models.devices import PRECISIONS, choose_device
from omgsr_cli.models.family import ModelSource
from omgsr_cli.models.loading import load_found, suitable_precision
from omgsr_cli.planning import usable_memory
from omgsr_cli.restoration import OnProgress


@dataclass(frozen=True)
class UpscaleWork:
    """The jobs of one run as an engine is given them: settings, and where the model lies.

    Attributes:
        settings: for all jobs.
        model: from `find_model`.
        info: of it.
        on_tiles: told (done, total) tiles of the picture in work; only where the work stays in this process.
    """

    settings: Settings
    model: ModelSource
    info: RestorerInfo
    on_tiles: OnProgress | None = None

    def open(self, place: Place, say: Say) -> Upscaler:
        """What does the jobs in a process; it says what a person should know of the model as it is loaded."""
        precision = suitable_precision(self.model, self.settings.model.precision, choose_device(place.device))
        settings = _shared(self.settings, place, self.info.parameters * PRECISIONS[precision].itemsize)

        def load() -> Restorer:
            restorer = load_found(self.model, device=place.device, precision=settings.model.precision)
            for note in restorer.notes:
                say(note)
            say(f"{self.info.name} on {restorer.device}, {restorer.precision}", detail=True)
            if restorer.device.type == "cuda" and restorer.precision == "fp32":
                # Convolutions would take TF32, with the exponent of fp32 and the ten bits of fp16.
                torch.backends.cudnn.allow_tf32 = False
            if settings.model.compile:
                restorer.compile()
            return restorer

        return Upscaler(settings, self.info, FinishedResults(settings, self.info, Remembered()), load, self.on_tiles)

    def lost(self, job: Job, error: OmgsrError) -> FileResult:
        """The result of a job whose process ended twice."""
        return FileResult(
            job.source, job.destination, "failed", error=FileError(f"{name_of(job)}: {error}", error.hint)
        )


def _shared(settings: Settings, place: Place, weights_bytes: int) -> Settings:
    """Of memory that nobody gave out, each process that shares a device may use its part, less its own weights."""
    if place.sharing == 1 or settings.restore.memory is not None:
        return settings
    part = max((usable_memory(choose_device(place.device)) // place.sharing - weights_bytes) >> 20, 16)
    return replace(settings, restore=settings.restore.model_copy(update={"memory": part}))
