"""`omgsr train --check`: what is missing, and what two steps take."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omgsr_cli.cli.output import Output
from omgsr_cli.cli.progress import duration
from omgsr_cli.errors import FileError, OmgsrError
from omgsr_cli.training.config import TrainConfig

_GIB = 2**30


def say_check(talk: Output, config: TrainConfig, resume: str) -> int:
    """Read the data, build the run, take two steps, and estimate memory, time and disk.

    Args:
        talk: of the command.
        config: without an error of its own.
        resume: as for `find_checkpoint`.
    Returns:
        0, or 1 if a part is missing or the disk is too small for the checkpoints.
    Raises:
        OmgsrError: the data or the model's files do not make a run.
    """
    from omgsr_cli.training.assembly import find_held_out
    from omgsr_cli.training.check import find_missing, try_steps
    from omgsr_cli.training.checkpoints import list_checkpoints
    from omgsr_cli.training.data import UnreadableImagesError, find_training_images

    data, train, folder = config.data, config.train, Path(config.save.out)
    problems: list[FileError] = []
    images = _count(lambda: find_training_images(data.train, data.train_lq, data.resolution, data.on_small), problems)
    _count(lambda: find_held_out(config), problems)
    if problems:
        raise UnreadableImagesError(problems, images + len(problems))
    try:
        trial = try_steps(config, resume)
    except OmgsrError as error:
        missing = find_missing(config)
        if len(missing) < 2:
            raise error
        for problem in missing:
            talk.error(problem)
        return 1
    for reason in trial.broken.values():
        talk.note(f"Skipped a corrupt image: {reason}")
    if not trial.is_finite:
        talk.note(
            "a loss or a gradient of the first steps is not finite: lower optim.lr, or set train.precision to fp32"
        )
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    # One more than are kept: the oldest is removed when the newest is complete.
    disk_bytes = (config.save.keep + 1 - min(config.save.keep, len(list_checkpoints(folder)))) * trial.checkpoint_bytes
    free_bytes = shutil.disk_usage(_nearest(folder)).free
    record = {
        "event": "checked",
        "pictures": trial.images,
        "samples_per_step": data.batch_size * config.optim.accumulate * processes,
        "parameters": trial.parameters,
        "trained": trial.trained,
        "device": str(trial.device),
        "memory_bytes": trial.memory_bytes,
        "step_seconds": float(f"{trial.step_seconds:.3g}"),
        "run_seconds": round(trial.step_seconds * train.steps),
        "disk_bytes": disk_bytes,
        "free_bytes": free_bytes,
    }
    talk.result(_as_lines(record, train.steps, folder), record)
    if disk_bytes > free_bytes:
        talk.error(OmgsrError(f"the disk of {folder} is too small", "set another [save] out, or a smaller keep"))
        return 1
    return 0


def _count(find: Callable[[], Sequence[object]], problems: list[FileError]) -> int:
    """Count what is found; headers that cannot be read are added to the problems."""
    from omgsr_cli.training.data import UnreadableImagesError

    try:
        return len(find())
    except UnreadableImagesError as error:
        problems.extend(error.problems)
        return error.count - len(error.problems)


def _as_lines(record: Mapping[str, Any], steps: int, folder: Path) -> str:
    gib = {name: record[f"{name}_bytes"] / _GIB for name in ("memory", "disk", "free")}
    step, run = duration(record["step_seconds"]), duration(record["run_seconds"])
    return "\n".join(
        (
            f"data: {record['pictures']} images, {record['samples_per_step']} samples a step",
            f"model: {record['parameters']:,} weights, {record['trained']:,} of them are trained",
            f"memory: {gib['memory']:.1f} GiB on {record['device']}, in each process",
            f"time: about {step} a step, {run} for {steps} steps",
            f"disk: {gib['disk']:.2f} GiB of {gib['free']:.1f} GiB free for checkpoints in {folder}",
        )
    )


def _nearest(path: Path) -> Path:
    """The folder itself, or the first above it that exists."""
    return next(each for each in (path, *path.absolute().parents) if each.is_dir())
