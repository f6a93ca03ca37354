"""Copies between the CPU and a device that do not make the host wait where it need not."""

from __future__ import annotations

import torch
from torch import Tensor

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
