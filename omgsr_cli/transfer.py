"""Copies between the CPU and a device, and work ahead in a thread, so that neither waits where it need not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import TypeVar

import torch
from torch import Tensor

Task = TypeVar("Task")
Ahead = TypeVar("Ahead")

ASYNCHRONOUS = ("cuda", "xpu")
"""Devices that copy from and to pinned memory while the host works on. Elsewhere such a copy may read values that
have changed meanwhile."""


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device; one that is there already is returned itself.

    From the CPU to a device of ASYNCHRONOUS it goes through pinned memory, and nothing waits.
    """
    if tensor.device.type != "cpu" or device.type not in ASYNCHRONOUS:
        return tensor.to(device)
    return pinned(tensor).to(device, non_blocking=True)


def download(*tensors: Tensor) -> list[Tensor]:
    """Copy tensors of one device to the CPU, with one wait for all of them; themselves where they are there already."""
    device = tensors[0].device
    if device.type not in ASYNCHRONOUS:
        return [tensor.cpu() for tensor in tensors]
    copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
    torch.get_device_module(device).synchronize(device)
    return copies


def pinned(tensor: Tensor) -> Tensor:
    """Copy a tensor of the CPU into memory that a device reads by itself."""
    return tensor.pin_memory()


def has_float64(device: torch.device) -> bool:
    """Whether a device computes in float64: MPS and some XPUs do not."""
    return device.type in ("cpu", "cuda")


def start_ahead(tasks: Iterable[Task], start: Callable[[Task], Ahead], executor: Executor) -> Iterator[Ahead]:
    """Start each task while the caller uses the one before.

    Args:
        tasks: one more is drawn than was yielded.
        start: run by the executor; what it raises is raised in the task's turn.
        executor: of one thread, so that tasks start in order.
    """
    ahead: Future[Ahead] | None = None
    for task in tasks:
        before, ahead = ahead, executor.submit(start, task)
        if before is not None:
            yield before.result()
    if ahead is not None:
        yield ahead.result()
