"""Write checkpoints under another name, synchronise and rename them, and only then remove older ones.

A folder named `step-00001000` was complete when it got this name. Its manifest shows whether it was damaged since.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from omgsr_cli.errors import FileError, ModelError, UsageError, reason_of, write_reason
from omgsr_cli.files.atomic import is_alive, partial_folder, partial_name
from omgsr_cli.models.adapter_files import load_lora_config
from omgsr_cli.models.base import Trainable
from omgsr_cli.models.families import recognise_adapter
from omgsr_cli.models.lora import LoraOptions
from omgsr_cli.models.record import read_json
from omgsr_cli.models.weight_files import apply_umask, check_finite
from omgsr_cli.store.manifest import find_damage, load_manifest, write_manifest
from omgsr_cli.training.step import Learner

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # the only platform without it

_NAME = re.compile(r"step-(\d{8,})")
_WEIGHTS, _AVERAGE, _DISCRIMINATOR = "weights.safetensors", "average.safetensors", "discriminator.safetensors"
_OPTIMIZER, _DISCRIMINATOR_OPTIMIZER = "optimizer.safetensors", "optimizer_discriminator.safetensors"
_STATE = "state.json"

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
"""Error numbers of file systems without locks."""

_locked: set[Path] = set()
"""Folders of this process's runs, because the system's locks do not apply within a process."""


@contextmanager
def lock_run(root: Path) -> Iterator[None]:
    """Lock the folder of a run, so that a second run cannot use it.

    The system releases the lock when the process ends in any way, and forked workers do not inherit it. On file systems
    without locks, the owner in the file counts: a running process on this host, or any process on another host.

    Args:
        root: folder of the run; it is created if it is missing.
    Raises:
        UsageError: another run has it; the message contains its process and host.
        FileError: the lock file cannot be written.
    """
    path, own = root / ".lock", {"pid": os.getpid(), "host": socket.gethostname()}
    if root.resolve() in _locked:
        raise _taken(path, own)
    with ExitStack() as stack:
        try:
            root.mkdir(parents=True, exist_ok=True)
            # Without a buffer, closing the file cannot fail again after a failed write.
            file = stack.enter_context(path.open("ab+", buffering=0))
            file.seek(0)
            try:
                owner = json.loads(file.read(4096))
            except ValueError:
                owner = None
            owner = owner if isinstance(owner, dict) else {}
            if not _is_free(file, owner):
                raise _taken(path, owner)
            file.truncate(0)
            file.write(json.dumps(own).encode() + b"\n")
        except OSError as error:
            raise FileError(f"{path} cannot be written: {reason_of(error)}", "set another [save] out") from error
        _locked.add(root.resolve())
        try:
            yield
        finally:
            _locked.discard(root.resolve())
            # Keep the file: otherwise a waiting process could lock a file that has been deleted.
            with suppress(OSError):
                file.truncate(0)


def _is_free(file: IO[bytes], owner: Mapping[str, object]) -> bool:
    if fcntl is not None:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                return False
    pid, host = owner.get("pid"), owner.get("host")
    return not isinstance(pid, int) or (host == socket.gethostname() and (pid == os.getpid() or not is_alive(pid)))


def _taken(path: Path, owner: Mapping[str, object]) -> UsageError:
    pid, host = owner.get("pid"), owner.get("host")
    who = f"process {pid} on {host}" if pid and host else "another process"
    away = "" if host in (None, socket.gethostname()) else f"; if that process has ended, delete {path}"
    return UsageError(f"{path.parent} is in use by another run: {who}", f"wait for it, or set another [save] out{away}")


def write_checkpoint(root: Path, step: int, write_parts: Callable[[Path], None], *, keep: int, spare: int = 0) -> Path:
    """Write a checkpoint, and remove the oldest ones when it is complete on the disk.

    If the process is killed at any moment, all earlier checkpoints or the new one are complete.

    Args:
        root: folder of the run; it is created if it is missing.
        step: number of finished steps.
        write_parts: writes everything except the manifest into a given folder.
        keep: number of complete checkpoints to keep, at least 1, including the new one.
        spare: step of another checkpoint to keep.
    Returns:
        The folder of the checkpoint. A complete checkpoint of this step is not replaced, because it has the same state.
    Raises:
        FileError: the checkpoint cannot be written; earlier checkpoints are unchanged.
    """
    target = root / checkpoint_name(step)
    if not _find_fault(target):
        return target
    try:
        root.mkdir(parents=True, exist_ok=True)
        # The run's folder is locked, so these are leftovers of killed runs, maybe of other hosts or earlier versions.
        for leftover in root.glob(".step-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        with partial_folder(target) as partial:
            write_parts(partial)
            write_manifest(partial)
            for path in (*partial.rglob("*"), partial):
                _sync(path)
            if target.is_dir():
                _remove(target)
            os.rename(partial, target)
            _sync(root)
    except (OSError, SafetensorError) as error:
        raise FileError(
            f"the checkpoint {target} cannot be written: {write_reason(error)}",
            "earlier checkpoints are unchanged: free some space or set another [save] out, then use --resume auto",
        ) from error
    # The new checkpoint is complete; after an error, the next one removes the old ones.
    with suppress(OSError):
        _rotate(root, step, keep, spare)
    return target


def checkpoint_name(step: int) -> str:
    """Return the name of a checkpoint's folder: `step-00001000`."""
    return f"step-{step:08d}"


def step_of(checkpoint: Path) -> int:
    """Return the number of steps in a checkpoint's name; 0 for another name."""
    match = _NAME.fullmatch(checkpoint.name)
    return int(match[1]) if match else 0


def list_checkpoints(root: Path) -> list[Path]:
    """List the checkpoints of a run, complete or not, newest first."""
    found = (path for path in root.glob("step-*") if _NAME.fullmatch(path.name) and path.is_dir())
    return sorted(found, key=step_of, reverse=True)


def verify_checkpoint(folder: Path) -> None:
    """Read every file of a checkpoint and compare it with the manifest.

    Raises:
        ModelError: a file is missing, truncated or changed; the message contains the first.
    """
    fault = _find_fault(folder)
    if fault:
        raise ModelError(
            f"the checkpoint {folder} is damaged: {fault}", "resume from another one, or use --resume auto"
        )


def find_checkpoint(root: Path, resume: str, *, note: Callable[[str], None] = lambda _: None) -> Path | None:
    """Find the checkpoint to resume from, and check that it is complete.

    Args:
        root: folder of the run.
        resume: "auto" for the newest complete checkpoint if there are any, "none" for a new run, or a checkpoint's
            path.
        note: called with a line about each newer checkpoint that is incomplete.
    Returns:
        The checkpoint, or None for a new run.
    Raises:
        ModelError: no checkpoint is complete, or the given one is damaged.
        UsageError: the run would be mixed with other checkpoints in its folder.
    """
    present = list_checkpoints(root)
    if resume == "auto":
        return _newest_whole(root, present, note)
    if resume != "none":
        return _named(root, present, Path(resume))
    if present:
        raise UsageError(
            f"{root} already contains checkpoints, up to {present[0].name}",
            "resume with --resume auto, or start a new run in another [save] out",
        )
    return None


def check_adapter_ranks(checkpoint: Path, lora: LoraOptions) -> None:
    """Check that a checkpoint's adapters have the ranks and strengths of the run that resumes from it.

    Args:
        checkpoint: a checkpoint of any family; one without adapters is accepted.
        lora: adapters of the run.
    Raises:
        UsageError: they differ; the hint contains the key to set.
        ModelError: a configuration of an adapter cannot be read.
    """
    family = recognise_adapter(checkpoint)
    if family is None:
        return
    own = family.adapter_ranks
    wanted = (lora.vae_rank or own[0], lora.vae_alpha), (lora.backbone_rank or own[1], lora.backbone_alpha)
    for part, of, (rank, alpha) in zip(family.adapter_parts, ("vae", "backbone"), wanted, strict=True):
        found = load_lora_config(checkpoint / part)
        strength = rank if alpha is None else alpha
        for what, there, here in (("rank", found.r, rank), ("alpha", found.lora_alpha, strength)):
            if there != here:
                raise UsageError(
                    f"{checkpoint / part} has {what} {there:g}, but the configuration has {here:g}",
                    f"set {of}_{what} = {there:g} in [lora], or train another {what} in another [save] out",
                )


def _newest_whole(root: Path, present: list[Path], note: Callable[[str], None]) -> Path | None:
    faults = []
    for checkpoint in present:
        fault = _find_fault(checkpoint)
        if not fault:
            return checkpoint
        faults.append(fault)
        note(f"{checkpoint} is incomplete and is skipped: {fault}")
    if faults:
        raise ModelError(
            f"no checkpoint in {root} is complete; {present[0].name}: {faults[0]}",
            "start a new run in another [save] out",
        )
    return None


def _named(root: Path, present: list[Path], folder: Path) -> Path:
    if not folder.is_dir():
        newest = f"{present[0]} is the newest, or " if present else ""
        raise ModelError(f"the checkpoint {folder} does not exist", f"{newest}use --resume auto or none")
    verify_checkpoint(folder)
    own = step_of(folder) if any(path.samefile(folder) for path in present) else -1
    # The run would reach their steps again, and the order of the names would differ from the order of writing.
    others = [path for path in present if step_of(path) > own]
    if others:
        raise UsageError(
            f"{root} contains {others[0].name}, which does not belong to a run that resumes from {folder}",
            "set another [save] out, or move this checkpoint away",
        )
    return folder


def _find_fault(folder: Path, *, contents: bool = True) -> str:
    """Return the first defect of a checkpoint; empty if it is complete."""
    try:
        damage = find_damage(folder, load_manifest(folder), contents=contents)
    except ModelError as error:
        return error.message
    return f"{damage[0]}{f' (and {len(damage) - 1} more)' if len(damage) > 1 else ''}" if damage else ""


def _rotate(root: Path, step: int, keep: int, spare: int) -> None:
    """Remove all checkpoints up to this step except the newest `keep` complete ones and that of the step `spare`."""
    kept = 0
    for checkpoint in list_checkpoints(root):
        if step_of(checkpoint) > step or step_of(checkpoint) == spare:
            continue
        # Comparing sizes suffices here: hashes would read gigabytes at every step that saves.
        if kept < keep and not _find_fault(checkpoint, contents=False):
            kept += 1
        else:
            _remove(checkpoint)


def _remove(checkpoint: Path) -> None:
    """Rename a folder, then remove it, so that its name never refers to an incomplete folder."""
    aside = checkpoint.with_name(partial_name(checkpoint.name))
    with suppress(OSError):
        os.rename(checkpoint, aside)
        shutil.rmtree(aside, ignore_errors=True)


def _sync(path: Path) -> None:
    """Synchronise a file or a folder's entries to the disk."""
    is_folder = path.is_dir()
    if os.name == "nt" and is_folder:
        # Windows cannot open folders; its file system journals names.
        return
    # Windows synchronises only writable files.
    descriptor = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems synchronise files, but not folders.
        if not is_folder or error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


@dataclass
class Progress:
    """The progress of a run.

    Attributes:
        step: number of finished steps.
        samples: number of samples used by all processes; the next step starts at this sample.
        skipped: number of latest consecutive steps with a loss that was not finite; `skipped_in_all` of the whole run.
        scores: scores of the latest validation, at the step `scored_at`; empty before the first.
        broken: images that could not be read so far, with the reason.
        best: best value of the metric `save.best`, at the step `best_step`; None before the first validation.
    """

    step: int = 0
    samples: int = 0
    skipped: int = 0
    skipped_in_all: int = 0
    scores: dict[str, float] = field(default_factory=dict)
    scored_at: int = 0
    broken: dict[str, str] = field(default_factory=dict)
    best: float | None = None
    best_step: int = 0


def write_state(folder: Path, trainable: Trainable, learner: Learner, progress: Progress) -> None:
    """Write the model, its averaged weights if there are any, and the state of the training into a folder.

    Raises:
        ModelError: a weight is not finite.
    """
    average, adversary = learner.average, learner.adversary
    # A checkpoint with such a weight would replace earlier, usable ones.
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
    """Return the number of finished steps of a checkpoint without reading its tensors.

    Raises:
        ModelError: its state cannot be read.
    """
    steps = read_json(folder / _STATE).get("step")
    if not isinstance(steps, int):
        raise ModelError(f"{folder / _STATE} has no number of finished steps", "resume from another checkpoint")
    return steps


def load_state(folder: Path, learner: Learner) -> Progress:
    """Load the state that `write_state` wrote, in place.

    If the checkpoint has no discriminator or averaged weights, those of the run start from scratch.

    Raises:
        ModelError: a file is missing or damaged, or the weights do not match those to train.
    """
    state = read_json(folder / _STATE)
    updates = int(state.pop("average_updates", 0))
    _put(learner.weights, _load(folder / _WEIGHTS), folder)
    load_optimizer(learner.optimizer, _load(folder / _OPTIMIZER))
    if learner.average is not None:
        average = folder / _AVERAGE
        learner.average.load(_load(average) if average.is_file() else learner.weights, updates)
    if learner.adversary is not None and (folder / _DISCRIMINATOR).is_file():
        _put(learner.adversary.state(), _load(folder / _DISCRIMINATOR), folder)
        load_optimizer(learner.adversary.optimizer, _load(folder / _DISCRIMINATOR_OPTIMIZER))
    return Progress(**state)


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Flatten an optimiser's state to tensors by "number of the weight.name", without settings.

    bitsandbytes counts steps in an int, stored here as "name#", and shares its tables among all weights: the first has
    the tensor, and the others have an empty one under "name@key of the first".
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
    """Load a flattened state into an optimiser."""
    state: dict[int, dict[str, Any]] = {}
    for key, value in tensors.items():
        index, _, named = key.partition(".")
        name, _, original = named.partition("@")
        saved = tensors[original] if original else value
        state.setdefault(int(index), {})[name.removesuffix("#")] = saved.item() if name.endswith("#") else saved
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    for weight, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                # Use the weight's memory layout, so that vectorised updates round as before.
                values[name] = torch.empty_like(weight, dtype=value.dtype).copy_(value)


@torch.no_grad()
def _put(own: Mapping[str, Tensor], values: Mapping[str, Tensor], folder: Path) -> None:
    strange = sorted(own.keys() ^ values.keys())
    strange += [name for name in own.keys() & values.keys() if own[name].shape != values[name].shape]
    if strange:
        raise ModelError(
            f"{folder}: {len(strange)} weights do not match those to train: {strange[0]}",
            "model, ranks and targets must be those of the resumed run",
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
