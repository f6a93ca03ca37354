"""The events that a training run reports to its caller, from the first process only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Started:
    """The run starts or resumes.

    Attributes:
        step: number of finished steps.
        steps: total number of steps.
        processes: number of processes.
        device: device of the first process.
        images: number of training images.
        trained: number of trained weights.
        folder: folder of checkpoints and logs.
        resumed_from: the checkpoint, or None.
        changed: keys whose values differ from the checkpoint's configuration, with the value before and now.
    """

    step: int
    steps: int
    processes: int
    device: str
    images: int
    trained: int
    folder: Path
    resumed_from: Path | None
    changed: Mapping[str, tuple[object, object]] = field(default_factory=dict)


@dataclass(frozen=True)
class StepDone:
    """One optimiser step is finished.

    Attributes:
        step: step number, from 1.
        steps: total number of steps.
        losses: unweighted means over all processes and the step's forward passes; "total" is their weighted sum.
        learning_rate: learning rate of the generator.
        gradient_norm: gradient norm of the generator before clipping.
        images_per_s: images per second of all processes, smoothed.
        seconds_left: estimated seconds until the end of the run.
        memory_mib: peak memory of the first process: of the GPU, or of the system on a CPU.
        skipped: a loss or a gradient was not finite, and no weight was changed.
    """

    step: int
    steps: int
    losses: Mapping[str, float]
    learning_rate: float
    gradient_norm: float
    images_per_s: float
    seconds_left: float
    memory_mib: int
    skipped: bool


@dataclass(frozen=True)
class Validated:
    """The held-out images were restored and measured.

    Attributes:
        step: number of finished steps.
        scores: metric to its mean over the images.
        grid: path of an image that shows some of them, LQ | output | HQ.
    """

    step: int
    scores: Mapping[str, float]
    grid: Path


@dataclass(frozen=True)
class Saved:
    """A complete checkpoint was written.

    Attributes:
        step: number of finished steps.
        folder: the checkpoint; `omgsr upscale --model` accepts it.
    """

    step: int
    folder: Path


@dataclass(frozen=True)
class Noticed:
    """A notice to the user; the run continues.

    Attributes:
        text: one line.
    """

    text: str


Event = Noticed | Started | StepDone | Validated | Saved
