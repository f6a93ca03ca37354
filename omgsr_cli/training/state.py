"""What a checkpoint holds besides the model: all that a run needs to go on to the bit.

Nothing that is drawn has a state: draws follow from the seed and the number of a sample. So weights, averages,
optimisers and a few integers are everything.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from omgsr_cli.errors import ModelError
from omgsr_cli.models.record import read_json
from omgsr_cli.models.trainable import Trainable
from omgsr_cli.models.weight_files import apply_umask, check_finite
from omgsr_cli.training.step import Learner

_WEIGHTS, _AVERAGE, _DISCRIMINATOR = "weights.safetensors", "average.safetensors", "discriminator.safetensors"
_OPTIMIZER, _DISCRIMINATOR_OPTIMIZER = "optimizer.safetensors", "optimizer_discriminator.safetensors"
_STATE = "state.json"


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        step: steps done.
        samples: samples used by all processes; the next step's begin at this number.
        skipped: steps in a row, up to now, whose loss was not finite.
        skipped_in_all: such steps of the whole run.
        scores: of the newest validation; empty before the first.
        scored_at: its step.
        broken: images that could not be read so far, with the reason.
    """

    step: int = 0
    samples: int = 0
    skipped: int = 0
    skipped_in_all: int = 0
    scores: dict[str, float] = field(default_factory=dict)
    scored_at: int = 0
    broken: dict[str, str] = field(default_factory=dict)


def write_state(folder: Path, trainable: Trainable, learner: Learner, progress: Progress) -> None:
    """Write the model, its averages where there are some, and what training needs to go on, into a folder.

    Raises:
        ModelError: a weight is not finite.
    """
    average, adversary = learner.average, learner.adversary
    # It would take the place of the checkpoints before it, which are of use.
    check_finite(learner.weights.items(), "this run")
    if average is not None:
        check_finite(average.values.items(), "the average of this run")
    with average.applied() if average else nullcontext():
        trainable.save(folder)
    _save(learner.weights, folder / _WEIGHTS)
    _save(optimizer_tensors(learner.optimizer), folder / _OPTIMIZER)
    if average is not None:
        _save(average.values, folder / _AVERAGE)
    if adversary is not None:
        _save(adversary.state(), folder / _DISCRIMINATOR)
        _save(optimizer_tensors(adversary.optimizer), folder / _DISCRIMINATOR_OPTIMIZER)
    updates = {} if average is None else {"average_updates": average.updates}
    apply_umask(folder)
    (folder / _STATE).write_text(json.dumps(asdict(progress) | updates, indent=2) + "\n", encoding="utf-8")


def finished_steps(folder: Path) -> int:
    """Read how many steps a checkpoint has done, without its tensors.

    Raises:
        ModelError: its state cannot be read.
    """
    steps = read_json(folder / _STATE).get("step")
    if not isinstance(steps, int):
        raise ModelError(f"{folder / _STATE} does not say how many steps are done", "resume from another checkpoint")
    return steps


def load_state(folder: Path, learner: Learner) -> Progress:
    """Read what `write_state` wrote, in place.

    Where the run has a discriminator or an average and the checkpoint none, they begin anew.

    Raises:
        ModelError: a file is missing or broken, or the weights are others than those to train.
    """
    state = read_json(folder / _STATE)
    updates = int(state.pop("average_updates", 0))
    _put(learner.weights, _load(folder / _WEIGHTS), folder)
    load_optimizer(learner.optimizer, _load(folder / _OPTIMIZER))
    if learner.average is not None:
        kept = folder / _AVERAGE
        learner.average.load(_load(kept) if kept.is_file() else learner.weights, updates)
    if learner.adversary is not None and (folder / _DISCRIMINATOR).is_file():
        _put(learner.adversary.state(), _load(folder / _DISCRIMINATOR), folder)
        load_optimizer(learner.adversary.optimizer, _load(folder / _DISCRIMINATOR_OPTIMIZER))
    return Progress(**state)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Flatten an optimiser's state: "number of the weight.name" to tensor; settings come from the configuration.

    bitsandbytes counts steps in an int, "name#" here, and shares its tables among all weights: the first has the
    tensor, the others an empty one under "name@key of the first".
    """
    tensors: dict[str, Tensor] = {}
    first: dict[tuple[int, torch.Size], str] = {}
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            key = f"{index}.{name}"
            if not isinstance(value, Tensor):
                tensors[f"{key}#"] = torch.tensor(value)
                continue
            original = first.setdefault((value.data_ptr(), value.shape), key) if value.numel() else key
            if original == key:
                tensors[key] = value
            else:
                tensors[f"{key}@{original}"] = torch.empty(0)
    return tensors


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Put a flattened state back."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        index, _, named = key.partition(".")
        name, _, original = named.partition("@")
        kept = tensors[original] if original else value
        state.setdefault(int(index), {})[name.removesuffix("#")] = kept.item() if name.endswith("#") else kept
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for weight, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                # In the weight's memory layout, in which a vectorised update rounds as before.
                values[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)


@torch.no_grad()
def _put(own: Mapping[str, Tensor], values: Mapping[str, Tensor], folder: Path) -> None:
    strange = sorted(own.keys() ^ values.keys())
    strange += [name for name in own.keys() & values.keys() if own[name].shape != values[name].shape]
    if strange:
        raise ModelError(
            f"{folder}: {len(strange)} weights do not fit those to train: {strange[0]}",
            "model, ranks and targets must be those of the run that is resumed",
        )
    for name, value in own.items():
        value.copy_(values[name])


def _save(tensors: Mapping[str, Tensor], path: Path) -> None:
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path)


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{path} cannot be read: {error}", "resume from another checkpoint") from error
