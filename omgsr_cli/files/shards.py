"""Divide images among the processes of a cluster; each process computes its own part."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from omgsr_cli.errors import FileError, UsageError
from omgsr_cli.files.addresses import name_hash, shown
from omgsr_cli.files.jobs import Job, Planned

_HINT = "write it like 1/8 to 8/8, or auto"


@dataclass(frozen=True)
class Shard:
    """One of `count` parts; `number` is 1 to `count`."""

    number: int
    count: int

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def holds(self, name: str) -> bool:
        """Whether an image is in this part, by its path below the input folder.

        The part of an image does not depend on the order of a listing or on where the folder is mounted.
        """
        return name_hash(name) % self.count == self.number - 1

    def indices(self, count: int) -> range:
        """The indices in this part, for `count` items without names, in turns."""
        return range(self.number - 1, count, self.count)

    def holds_planned(self, planned: Planned) -> bool:
        """Whether a job or a problem is in this part; skipped inputs and notes are in every part."""
        if isinstance(planned, Job):
            return self.holds(planned.below)
        return not isinstance(planned, FileError) or self.holds(planned.message)


def parse_shard(text: str, environment: Mapping[str, str]) -> Shard:
    """Parse `--shard`: "3/8", or "auto" for the part that a scheduler assigned to this process.

    Args:
        text: the value.
        environment: variables of the process: torchrun's RANK and WORLD_SIZE, SLURM's variables of a job array, or both
            if every task of the array has several ranks.
    Raises:
        UsageError: the value is not a part, or no variable defines one.
    """
    if text == "auto":
        return _scheduled(environment)
    match = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
    if match is None or not 1 <= int(match[1]) <= int(match[2]):
        raise UsageError(f"--shard {shown(text)} is not a valid part", _HINT)
    return Shard(int(match[1]), int(match[2]))


def _scheduled(environment: Mapping[str, str]) -> Shard:
    parts = [part for part in (_of_array(environment), _of_ranks(environment)) if part is not None]
    if not parts:
        raise UsageError("--shard auto: neither RANK and WORLD_SIZE nor SLURM_ARRAY_TASK_ID is set", _HINT)
    index, count = 0, 1
    for part_index, part_count in parts:
        index, count = index * part_count + part_index, count * part_count
    return Shard(index + 1, count)


def _of_array(environment: Mapping[str, str]) -> tuple[int, int] | None:
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return None
    names = [f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "MIN", "MAX", "COUNT")]
    task, first, last, count = (_integer(environment, name) for name in names)
    step = (last - first) // (count - 1) if count > 1 else 1
    # In an array such as 1,5,6 with uneven gaps, a task cannot compute its index.
    if step < 1 or first + step * (count - 1) != last or not first <= task <= last or (task - first) % step:
        raise UsageError(
            f"--shard auto: the array {first} to {last} with {count} tasks is not evenly spaced",
            "use --shard I/N, and compute I from SLURM_ARRAY_TASK_ID",
        )
    return (task - first) // step, count


def _of_ranks(environment: Mapping[str, str]) -> tuple[int, int] | None:
    if "RANK" not in environment:
        return None
    rank, count = _integer(environment, "RANK"), _integer(environment, "WORLD_SIZE")
    if not 0 <= rank < count:
        raise UsageError(f"--shard auto: RANK {rank} must be below WORLD_SIZE {count}", _HINT)
    return rank, count


def _integer(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "")
    if not text.isdecimal():
        raise UsageError(f"--shard auto: {name} is {text!r}, not a number", _HINT)
    return int(text)
