"""The events that a training run reports to its caller, from the first process only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Started:
    """The run begins or resumes.

    Attributes:
        step: steps done already.
        steps: steps to be done in all.
        processes: how many train.
        device: of the first of them.
        images: to train on.
        trained: number of weights that learn.
        folder: where checkpoints and logs go.
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
    """One optimiser step is over.

    Attributes:
        step: its number, from 1.
        steps: of the run.
        losses: unweighted, means over all processes and the step's forward passes; "total" is their weighted sum.
        learning_rate: of the generator.
        gradient_norm: of the generator, before clipping.
        images_per_s: of all processes, smoothed.
        seconds_left: of the run, at the present pace.
        memory_mib: the most that the first process has taken: of the GPU, or of the system on a CPU.
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
    """The held-out images were restored.

    Attributes:
        step: after which.
        scores: metric to its mean over the images.
        grid: an image of some of them, LQ | output | HQ.
    """

    step: int
    scores: Mapping[str, float]
    grid: Path


@dataclass(frozen=True)
class Saved:
    """A checkpoint is on the disk, whole.

    Attributes:
        step: after which.
        folder: `omgsr upscale --model` takes it.
    """

    step: int
    folder: Path


@dataclass(frozen=True)
class Noticed:
    """Something that a person should know; the run continues.

    Attributes:
        text: one line.
    """

    text: str


Event = Noticed | Started | StepDone | Validated | Saved
