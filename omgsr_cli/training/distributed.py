"""The processes of a run: finding them, synchronising gradients, sharing values, and sharding a large backbone (FSDP2).

Of a sharded backbone each process holds a part of the frozen weights. The adapters, which are trained, are small and
stay complete in every process, so optimisers, averages and checkpoints are those of a run without sharding.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedDataParallelKwargs,
    DistributedType,
    InitProcessGroupKwargs,
    broadcast_object_list,
    gather_object,
)
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from omgsr_cli.errors import OmgsrError, UsageError
from omgsr_cli.models.base import Trainable
from omgsr_cli.models.devices import present_devices
from omgsr_cli.training.sources import Stored
from omgsr_cli.transfer import download, upload

_PATIENCE = timedelta(hours=12)
"""How long processes wait for one another: one of them may be asking a teacher, or writing to a slow disk. NCCL's own
limit is ten minutes."""

_SUPPORTED = (
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.MULTI_XPU,
)


# What `accelerate launch` sets; without their packages, accelerate would end with an error of its own, and on CPUs it
# would ignore the request.
_OTHER_WAYS = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "accelerate's FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}


def build_accelerator(folder: Path, trackers: Sequence[str] = (), *, leaves_out: bool = False) -> Accelerator:
    """Find the other processes of the run, by what `torchrun` or `accelerate launch` put into the environment.

    Autocast is the generator's own affair, and clipping, accumulation and stepping the trainer's: accelerate gives
    devices, gradient synchronisation and trackers.

    Args:
        folder: where trackers write.
        trackers: of "tensorboard", "wandb" and "trackio".
        leaves_out: whether the losses leave some weights without gradients, as pre-training does the encoder's.
    Raises:
        UsageError: a launcher asks for more than data-parallel training.
    """
    for variable, name in _OTHER_WAYS.items():
        if _is_set(variable):
            raise _refusal(name)
    # Buffers follow from the weights, so they are equal already.
    parallel = DistributedDataParallelKwargs(
        broadcast_buffers=False, gradient_as_bucket_view=True, find_unused_parameters=leaves_out
    )
    patience = InitProcessGroupKwargs(timeout=_PATIENCE)
    with warnings.catch_warnings():
        # About settings of launchers for machines of several CPUs.
        warnings.simplefilter("ignore")
        accelerator = Accelerator(
            # Without it, processes on a machine that has nothing but CPUs would each train on its own.
            cpu=present_devices() == ["cpu"] or _is_set("ACCELERATE_USE_CPU"),
            mixed_precision="no",
            log_with=list(trackers),
            project_dir=folder,
            kwargs_handlers=[parallel, patience],
        )
    if accelerator.distributed_type not in _SUPPORTED:
        raise _refusal(accelerator.distributed_type.value)
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != launched:
        raise UsageError(
            f"{launched} processes were launched, but this one is among {accelerator.num_processes}",
            "start as many as there are GPUs, or set ACCELERATE_USE_CPU=1 to train on CPUs",
        )
    return accelerator


def _is_set(variable: str) -> bool:
    return os.environ.get(variable, "").lower() in ("1", "true", "yes")


def _refusal(name: str) -> UsageError:
    return UsageError(
        f"{name} is not supported: generator and discriminator are two prepared models",
        "launch with torchrun, or with `accelerate launch` and its plain multi-GPU settings; train.shard_backbone "
        "shards a backbone that does not fit on one GPU",
    )


def device_of(accelerator: Accelerator) -> torch.device:
    """Give the process's device; accelerate numbers CPUs, which not every library takes."""
    return torch.device("cpu") if accelerator.device.type == "cpu" else accelerator.device


def prepare(accelerator: Accelerator, module: nn.Module) -> nn.Module:
    """Have the processes synchronise a module's gradients; the module itself where there is one process."""
    shared = shared_names(module)
    with warnings.catch_warnings():
        # About a new name of a setting that older torch does not know.
        warnings.simplefilter("ignore", FutureWarning)
        if not shared:
            prepared: nn.Module = accelerator.prepare_model(module)
            return prepared
        # accelerate refuses what is shared out; torch skips the weights that it is given.
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, shared)  # type: ignore[no-untyped-call]  # torch's own omission
        return DistributedDataParallel(module, **accelerator.ddp_handler.to_kwargs())


def share(
    accelerator: Accelerator, values: Mapping[str, float | torch.Tensor], signal: int
) -> tuple[dict[str, float], int]:
    """Tell the other processes this one's losses, and whether it was asked to stop.

    Args:
        accelerator: of the run.
        values: scalars; the names are the same in every process.
        signal: that this process heard, or 0.
    Returns:
        The means over all processes, not finite where any is not, and the largest signal.
    """
    # float32 has every signal's number, and every device has float32; float64 is missing on MPS and some XPUs.
    scalars = [torch.as_tensor(value, dtype=torch.float32).detach() for value in (*values.values(), float(signal))]
    # What the CPU knows goes to the device in one copy.
    known = upload(torch.stack([value for value in scalars if value.device.type == "cpu"]), accelerator.device).unbind()
    rest = iter(known)
    numbers = [next(rest) if value.device.type == "cpu" else value for value in scalars]
    every = download(accelerator.gather(torch.stack(numbers)[None]))[0].double()
    means = every[:, :-1].mean(0).tolist()
    return dict(zip(values, means, strict=True)), int(every[:, -1].max())


def share_sums(
    accelerator: Accelerator, sums: Mapping[str, float], count: int, names: Sequence[str]
) -> dict[str, float]:
    """Give the means over what all processes counted; a process may have counted nothing."""
    own = torch.tensor([*(sums.get(name, 0.0) for name in names), float(count)], device=accelerator.device)
    every = accelerator.gather(own[None]).cpu().double().sum(0)
    return dict(zip(names, (every[:-1] / every[-1]).tolist(), strict=True))


def share_broken(accelerator: Accelerator, broken: Mapping[Stored, str]) -> dict[Stored, str]:
    """Give the broken images that any process found, the same and in the same order in every process."""
    every = gather_object([dict(broken)]) if accelerator.num_processes > 1 else [broken]
    found = {path: reason for one in every for path, reason in one.items()}
    return dict(sorted(found.items(), key=lambda item: str(item[0])))


def agree(accelerator: Accelerator, action: Callable[[], None]) -> None:
    """Do something in the first process, and raise its error in all of them.

    Raises:
        OmgsrError: what the action raised.
    """
    raised: list[OmgsrError | None] = [None]
    if accelerator.is_main_process:
        try:
            action()
        except OmgsrError as error:
            raised[0] = error
    refusal = broadcast_object_list(raised)[0]
    if refusal is not None:
        raise refusal


def is_finite(values: Mapping[str, float]) -> bool:
    """Whether every value is a finite number."""
    return all(math.isfinite(value) for value in values.values())


def share_backbone(trainable: Trainable, device: torch.device, processes: int) -> None:
    """Share the frozen weights of the network that takes the step out among the processes.

    Every process must then run the network as often as the others.

    Args:
        trainable: read into the host's memory; what is not shared out is moved to the device.
        device: of this process.
        processes: how many there are; all of them call this.
    Raises:
        UsageError: this is the only process.
        ModelError: the model has no frozen weights.
    """
    if processes < 2:
        raise UsageError(
            "train.shard_backbone shards weights among processes, but there is only one",
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
