"""What a step will cost: counted on tensors that have shapes but no values, and timed where it is quick."""

from __future__ import annotations

import time
import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from omgsr_cli.models.devices import free_memory_bytes, release_memory
from omgsr_cli.models.family import ModelSource
from omgsr_cli.training.config import TrainConfig
from omgsr_cli.training.outline import Outline, outline_run

_FLOAT_BYTES = 4
_ADAMW_BYTES = 8
_ADAMW_8BIT_BYTES = 2
_MEASURED_S = 1.0
# Counted operations tell the time of a step to a factor of a few: those of small layers take far longer than others.
_TIMED_S = 3.0


@dataclass(frozen=True)
class Cost:
    """Of training, in each process.

    Attributes:
        parameters: weights of the model, with those that learn.
        trained: weights that learn.
        flop: floating-point operations of one step, all of its forward passes and backward passes.
        memory_bytes: most that the tensors of a step take at once, with weights and optimiser.
        checkpoint_bytes: of one checkpoint.
    """

    parameters: int
    trained: int
    flop: float
    memory_bytes: int
    checkpoint_bytes: int


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's own omission
    """Counts the bytes of the tensors that are alive, and the most there ever were."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own omission
        self.now = self.peak = 0
        self._seen: set[int] = set()

    def hold(self, network: nn.Module | None) -> None:
        """Count what is there already: weights and buffers."""
        for tensor in [] if network is None else [*network.parameters(), *network.buffers()]:
            self._count(tensor.untyped_storage())

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and count what it made."""
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        self.peak = max(self.peak, self.now)
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._seen:
            self._seen.add(key)
            self.now += size
            weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.now -= size


def rehearse(config: TrainConfig, source: ModelSource, device: torch.device) -> Cost:
    """Run one step of training on shapes.

    Args:
        config: of the run.
        source: of the model, from `find_run_model`.
        device: where it is going to be trained.
    Raises:
        ModelError: the configuration of the model or the feature network cannot be read.
    """
    # What is built is on the device at once: these tensors cannot be moved.
    with warnings.catch_warnings(), FakeTensorMode(allow_non_fake_inputs=True):
        # torch asks itself for the address of values that are not there.
        warnings.simplefilter("ignore", UserWarning)
        outline = outline_run(config, source, device)

        def count(number: int) -> float:
            with FlopCounterMode(display=False) as counter:
                outline.step(number)
            return float(counter.get_total_flops())

        with LiveBytes() as live:
            for network in outline.networks:
                live.hold(network)
            flop = _mean_over_steps(config, count)
    trainable, judge = outline.trainable, outline.discriminator
    judged = 0 if judge is None else sum(weight.numel() for weight in judge.heads.parameters())
    weights = sum(weight.numel() for weight in trainable.networks.parameters())
    trained = sum(weight.numel() for weight in trainable.trained().values())
    averages = _ADAMW_8BIT_BYTES if config.optim.eight_bit else _ADAMW_BYTES
    average = _FLOAT_BYTES if config.train.ema else 0
    return Cost(
        parameters=weights,
        trained=trained,
        flop=flop * config.optim.accumulate,
        memory_bytes=live.peak + trained * (averages + average) + judged * _ADAMW_BYTES,
        # The weights are there twice: as they are used, and as they are trained on.
        checkpoint_bytes=trained * (2 * _FLOAT_BYTES + averages + average) + judged * (_FLOAT_BYTES + _ADAMW_BYTES),
    )


def foretell_seconds(config: TrainConfig, source: ModelSource, device: torch.device, cost: Cost) -> float:
    """Tell how long a step will take: steps that are quick are tried, the time of others follows from the operations.

    Args:
        config, source, device: as for `rehearse`.
        cost: of the same run.
    """
    seconds = cost.flop / _measure_speed(device, config.train.precision)
    if seconds > _TIMED_S or cost.memory_bytes > free_memory_bytes(device) / 2:
        return seconds
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    seconds = _time_steps(config, outline_run(config, source, device))
    release_memory()
    return seconds * config.optim.accumulate


def _time_steps(config: TrainConfig, outline: Outline) -> float:
    # The first step is slow: memory is taken, and the fastest algorithms are looked for.
    outline.step(0)
    return _mean_over_steps(config, lambda number: _time(outline, number))


def _mean_over_steps(config: TrainConfig, cost_of: Callable[[int], float]) -> float:
    """The mean cost of a step: the first has all losses, the second not those that come every few steps."""
    teacher = config.loss.teacher
    every = teacher.dists_every if teacher and teacher.dists else 1
    if every == 1:
        return cost_of(0)
    return cost_of(1) * (1 - 1 / every) + cost_of(0) / every


def _time(outline: Outline, number: int) -> float:
    began = time.perf_counter()
    outline.step(number)
    # A device that works ahead has finished when a value is asked for.
    torch.zeros((), device=outline.device).item()
    return time.perf_counter() - began


def _measure_speed(device: torch.device, precision: str) -> float:
    """Measure what the device computes in a convolution like those of training, in operations a second."""
    dtype = torch.float32 if precision == "fp32" else torch.bfloat16
    image = torch.randn(1, 128, 96, 96, device=device, dtype=dtype)
    weight = torch.randn(128, 128, 3, 3, device=device, dtype=dtype)

    def convolve() -> float:
        return float(torch.nn.functional.conv2d(image, weight, padding=1)[0, 0, 0, 0])

    convolve()
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < _MEASURED_S:
        convolve()
        count += 1
    return count * 2.0 * 9 * 128 * 128 * 96 * 96 / (time.perf_counter() - began)
