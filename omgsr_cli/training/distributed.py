"""The processes of a run: finding them, synchronising gradients, sharing values, and sharding a large backbone (FSDP2).

Each process holds a part of the frozen weights of a sharded backbone. The trained adapters are small and stay complete
in every process, so that optimisers, averages and checkpoints are the same as without sharding.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TypeVar

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

Result = TypeVar("Result")

_PATIENCE = timedelta(hours=12)
"""Timeout between processes, because one of them may run a teacher or write to a slow disk. NCCL's default is ten
minutes."""

_SUPPORTED = (
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
    DistributedType.MULTI_XPU,
)


# Variables that `accelerate launch` sets. If the packages are missing, accelerate would raise its own error, and on
# CPUs it would ignore the request.
_OTHER_WAYS = {
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_FSDP": "accelerate's FSDP",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
}


def build_accelerator(folder: Path, trackers: Sequence[str] = (), *, leaves_out: bool = False) -> Accelerator:
    """Connect the processes of the run with the environment variables of `torchrun` or `accelerate launch`.

    accelerate provides devices, gradient synchronisation and trackers, which write to a folder. The generator handles
    autocast, and the trainer handles clipping, accumulation and updates. With `leaves_out`, some trained weights get no
    gradients, such as those of the encoder in pre-training.

    Raises:
        UsageError: the launcher requests more than data-parallel training.
    """
    for variable, name in _OTHER_WAYS.items():
        if _is_set(variable):
            raise _refusal(name)
    # Buffers are already equal, because they depend only on the weights.
    parallel = DistributedDataParallelKwargs(
        broadcast_buffers=False, gradient_as_bucket_view=True, find_unused_parameters=leaves_out
    )
    patience = InitProcessGroupKwargs(timeout=_PATIENCE)
    with warnings.catch_warnings():
        # These warnings are about launcher settings for several CPUs.
        warnings.simplefilter("ignore")
        accelerator = Accelerator(
            # Otherwise the processes on a machine with only CPUs would train independently.
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
    """Return the device of the process; accelerate numbers CPUs, which some libraries do not accept."""
    return torch.device("cpu") if accelerator.device.type == "cpu" else accelerator.device


def prepare(accelerator: Accelerator, module: nn.Module) -> nn.Module:
    """Wrap a module so that processes synchronise its gradients; a single process gets the module itself."""
    from torch.distributed.tensor import DTensor

    shared = [name for name, weight in module.named_parameters() if isinstance(weight, DTensor)]
    with warnings.catch_warnings():
        # The warning is about a renamed setting; older versions of torch do not have the new name.
        warnings.simplefilter("ignore", FutureWarning)
        if not shared:
            prepared: nn.Module = accelerator.prepare_model(module)
            return prepared
        # accelerate rejects sharded weights; torch skips the weights in this list.
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, shared)  # type: ignore[no-untyped-call]  # torch's own omission
        return DistributedDataParallel(module, **accelerator.ddp_handler.to_kwargs())


def share(
    accelerator: Accelerator, values: Mapping[str, float | torch.Tensor], signal: int
) -> tuple[dict[str, float], int]:
    """Exchange scalars, by the same names in every process, and the signal that a process received, or 0.

    Returns:
        The means over all processes, which are not finite if any value is not, and the largest signal.
    """
    # float32 represents every signal number and exists on every device; MPS and some XPUs have no float64.
    scalars = [torch.as_tensor(value, dtype=torch.float32).detach() for value in (*values.values(), float(signal))]
    # All values on the CPU are copied to the device together.
    known = upload(torch.stack([value for value in scalars if value.device.type == "cpu"]), accelerator.device).unbind()
    rest = iter(known)
    numbers = [next(rest) if value.device.type == "cpu" else value for value in scalars]
    every = download(accelerator.gather(torch.stack(numbers)[None]))[0].double()
    means = every[:, :-1].mean(0).tolist()
    return dict(zip(values, means, strict=True)), int(every[:, -1].max())


def share_sums(
    accelerator: Accelerator, sums: Mapping[str, float], count: int, names: Sequence[str]
) -> dict[str, float]:
    """Return the means over the images of all processes from their sums and counts; a count may be 0."""
    own = torch.tensor([*(sums.get(name, 0.0) for name in names), float(count)], device=accelerator.device)
    every = accelerator.gather(own[None]).cpu().double().sum(0)
    return dict(zip(names, (every[:-1] / every[-1]).tolist(), strict=True))


def share_broken(accelerator: Accelerator, broken: Mapping[Stored, str]) -> dict[Stored, str]:
    """Return the broken images of all processes, in the same order in every process."""
    every = gather_object([dict(broken)]) if accelerator.num_processes > 1 else [broken]
    found = {path: reason for one in every for path, reason in one.items()}
    return dict(sorted(found.items(), key=lambda item: str(item[0])))


def agree(accelerator: Accelerator, action: Callable[[], Result]) -> Result | None:
    """Run an action in the first process, return its result there, and raise its error in all processes.

    Raises:
        OmgsrError: the error of the action.
    """
    result, raised = None, list[OmgsrError | None]([None])
    if accelerator.is_main_process:
        try:
            result = action()
        except OmgsrError as error:
            raised[0] = error
    refusal = broadcast_object_list(raised)[0]
    if refusal is not None:
        raise refusal
    return result


def share_backbone(trainable: Trainable, device: torch.device, processes: int) -> None:
    """Shard the frozen weights of the backbone among the processes, which then run it the same number of times.

    The model is in host memory; its other weights are moved to the device.

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


def _share(backbone: nn.Module, device: torch.device, processes: int) -> None:
    """Shard a network's frozen weights; those of a block are gathered while it runs, forward and backward."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (processes,))
    learned = {weight for weight in backbone.parameters() if weight.requires_grad}
    for child in backbone.children():
        for block in child.children() if isinstance(child, nn.ModuleList) else (child,):
            fully_shard(block, mesh=mesh, ignored_params=learned, reshard_after_forward=True)
    fully_shard(backbone, mesh=mesh, ignored_params=learned, reshard_after_forward=True)
