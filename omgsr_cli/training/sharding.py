"""A backbone too large for one device: each process keeps a share of its frozen weights (FSDP2).

What learns, the adapters, is a small part and stays whole in every process, so that optimisers, averages and
checkpoints are those of a run that shares nothing.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import nn

from omgsr_cli.errors import UsageError
from omgsr_cli.models.trainable import Trainable


def share_backbone(trainable: Trainable, device: torch.device, processes: int) -> None:
    """Share the frozen weights of the network that takes the step out among the processes.

    Every process must then run the network as often as the others.

    Args:
        trainable: read into the host's memory; what is not shared out is moved to the device.
        device: of this process.
        processes: how many there are; all of them call this.
    Raises:
        UsageError: there is nobody to share with.
        ModelError: the model has no frozen weights.
    """
    if processes < 2:
        raise UsageError(
            "train.shard_backbone shares weights out among processes, and this is the only one",
            "launch several: torchrun --nproc_per_node 2 -m omgsr_cli train CONFIG.toml; or set it to false",
        )
    trainable.share_backbone(partial(_share, device=device, processes=processes), device)


def shared_names(module: nn.Module) -> list[str]:
    """Names of the weights of which this process has a share."""
    from torch.distributed.tensor import DTensor

    return [name for name, weight in module.named_parameters() if isinstance(weight, DTensor)]


def _share(backbone: nn.Module, device: torch.device, processes: int) -> None:
    """Share a network's frozen weights out; each block's are gathered while it runs, forward and backward."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (processes,))
    learned = {weight for weight in backbone.parameters() if weight.requires_grad}
    for child in backbone.children():
        for block in child.children() if isinstance(child, nn.ModuleList) else (child,):
            fully_shard(block, mesh=mesh, ignored_params=learned, reshard_after_forward=True)
    fully_shard(backbone, mesh=mesh, ignored_params=learned, reshard_after_forward=True)
