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
"""Devices that copy from and to pinned memory asynchronously. On others, such a copy may read values that have changed
meanwhile."""


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device; a tensor that is there already is returned unchanged.

    Copies from the CPU to a device in ASYNCHRONOUS use pinned memory and do not block.
    """
    if tensor.device.type != "cpu" or device.type not in ASYNCHRONOUS:
        return tensor.to(device)
    return pinned(tensor).to(device, non_blocking=True)


def download(*tensors: Tensor) -> list[Tensor]:
    """Copy tensors from one device to the CPU with a single wait; tensors on the CPU are returned unchanged."""
    device = tensors[0].device
    if device.type not in ASYNCHRONOUS:
        return [tensor.cpu() for tensor in tensors]
    copies = [tensor.to("cpu", non_blocking=True) for tensor in tensors]
    torch.get_device_module(device).synchronize(device)
    return copies


def pinned(tensor: Tensor) -> Tensor:
    """Copy a CPU tensor to pinned memory, which a device can read directly."""
    return tensor.pin_memory()


def has_float64(device: torch.device) -> bool:
    """Whether a device supports float64; MPS and some XPUs do not."""
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
