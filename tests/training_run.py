"""Helpers for tests of training: a small model, images, a random feature network, and runs in other processes.

As a program, it trains: `python training_run.py PLAN.json`.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterable, Mapping
from copy import deepcopy
from hashlib import sha256
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from omgsr_cli.models.base import Trainable
from omgsr_cli.training import loop
from omgsr_cli.training.config import TrainConfig
from omgsr_cli.training.loop import Event, TrainResult, train

Table = dict[str, dict[str, Any]]


def write_images(folder: Path, count: int = 3) -> Path:
    """Write smooth images with edges, each with a different size."""
    folder.mkdir(parents=True)
    for index in range(count):
        rows, columns = np.mgrid[0 : 70 + 7 * index, 0 : 90 + 5 * index].astype(float)
        waves = [127 + 90 * np.sin(rows / (4 + band) + index) * np.cos(columns / (6 - band)) for band in range(3)]
        pixels = np.stack(waves, 2) + 60 * ((rows // 16 + columns // 16) % 2)[:, :, None] - 30
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{index}.png")
    return folder


def write_features(folder: Path) -> Path:
    """Write a random DINOv3 ConvNeXt with few channels."""
    from transformers import DINOv3ConvNextConfig, DINOv3ConvNextModel

    torch.manual_seed(5)
    DINOv3ConvNextModel(DINOv3ConvNextConfig(hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1])).save_pretrained(folder)
    return folder


def write_world(folder: Path) -> Path:
    """Write all inputs of a run."""
    # Import this here, so that processes that only train do not wait for it.
    from command_line import write_tiny_model

    write_tiny_model(folder / "model")
    write_images(folder / "hq")
    write_images(folder / "held_out", 2)
    write_features(folder / "features")
    return folder


def settings(world: Path, run: Path, **changes: Mapping[str, Any]) -> Table:
    """Return the tables of a run with all losses, with changes by section."""
    tables: Table = {
        # Use one thread everywhere, so that sums have one order and runs can be compared bit by bit.
        "model": {"start_from": str(world / "model")},
        "data": {"train": [str(world / "hq")], "resolution": 64, "batch_size": 2, "workers": 0},
        "loss": {"lrr": 1.0, "l1": 1.0, "dv3cd": 0.5, "gan": 0.1, "backbone_path": str(world / "features")},
        "gan": {"start_step": 0, "lr": 1e-4},
        "optim": {"lr": 1e-3, "accumulate": 1},
        "train": {"steps": 8, "precision": "fp32", "ema": 0.9, "threads": 1},
        "save": {"out": str(run), "every": 4, "keep": 3},
        "log": {"every": 1},
    }
    for section, values in changes.items():
        tables[section] = {**tables.get(section, {}), **values}
    return deepcopy(tables)


def run_here(tables: Table, resume: str = "none") -> tuple[TrainResult, list[Event]]:
    """Train in this process."""
    events: list[Event] = []
    result = train(TrainConfig.model_validate(tables), resume=resume, report=events.append)
    return result, events


Plan = list[tuple[Table, str]]
"""Runs in order, each with the checkpoint from which it resumes."""


class Processes:
    """Processes of one training, of which the first one writes its events.

    On Linux they are forked from this one, so that they import nothing. Elsewhere, forks of a process with libraries'
    threads may crash.

    Attributes:
        events: lines of JSON, while the processes run.
    """

    def __init__(self, plan: Plan, processes: int = 1) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed with the object
        self._child: subprocess.Popen[str] | None = None
        if sys.platform != "linux":
            path = Path(plan[0][0]["save"]["out"]).with_suffix(".json")
            path.write_text(json.dumps(plan))
            launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
            command = [sys.executable, *(launcher if processes > 1 else ()), __file__, str(path)]
            self._child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=self._errors, text=True)
            assert self._child.stdout is not None
            self._pids, self.events = [self._child.pid], self._child.stdout
            return
        reading, writing = os.pipe()
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._pids = []
        for rank in range(processes):
            variables = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            pid = os.fork()
            if pid == 0:
                os.close(reading)
                os.environ |= {name: str(value) for name, value in variables.items() if processes > 1}
                os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
                self._train(plan, writing)
            self._pids.append(pid)
        os.close(writing)
        self.events: IO[str] = os.fdopen(reading)

    def _train(self, plan: Plan, writing: int) -> NoReturn:
        code: object = 1
        try:
            os.dup2(self._errors.fileno(), 2)
            # A fork has none of the threads of its parent, and would wait for them.
            torch.set_num_threads(1)
            AcceleratorState._reset_state(reset_partial_state=True)
            train_plan(plan, os.fdopen(writing, "w", buffering=1))
            code = 0
        except SystemExit as end:
            code = end.code
        except BaseException:  # noqa: BLE001 - reported to the parent
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(code if isinstance(code, int) else 1)

    def send_signal(self, number: int) -> None:
        for pid in self._pids:
            os.kill(pid, number)

    def finish(self) -> tuple[list[dict[str, Any]], int, str]:
        """Wait for the end; return the remaining events, the largest exit code and what was written to stderr."""
        events = [json.loads(line) for line in self.events]
        if self._child is not None:
            codes = [self._child.wait()]
        else:
            codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in self._pids]
        self._errors.seek(0)
        return events, max(codes), self._errors.read()


def run_there(plan: Plan, processes: int) -> list[list[dict[str, Any]]]:
    """Train in other processes to the end, and return the events of each run."""
    events, code, errors = Processes(plan, processes).finish()
    assert code == 0, errors
    runs: list[list[dict[str, Any]]] = []
    for event in events:
        if event["event"] == "Started":
            runs.append([])
        runs[-1].append(event)
    return runs


def tensors(checkpoint: Path | str) -> dict[str, Tensor]:
    """Return every tensor of a checkpoint."""
    files = sorted(Path(checkpoint).rglob("*.safetensors"))
    assert files, f"{checkpoint} holds no tensors"
    return {f"{file.name}: {name}": value for file in files for name, value in load_file(file).items()}


def differing(first: Mapping[str, Tensor], second: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors that are not bit-identical."""
    assert first.keys() == second.keys()
    return [name for name, value in first.items() if not torch.equal(value, second[name])]


def largest_difference(first: Mapping[str, Tensor], second: Mapping[str, Tensor], names: Iterable[str]) -> float:
    """Return the largest difference of any value in the tensors of the named files."""
    chosen = [name for name in first if name.partition(":")[0] in set(names)]
    assert chosen
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in chosen)


def train_plan(plan: Plan, out: IO[str]) -> None:
    """Train according to the plan, write the events, and in each process a digest of its final weights."""
    load, runs = loop.load_run, []

    def keep(*arguments: Any, **options: Any) -> Any:
        runs.append(load(*arguments, **options))
        return runs[-1]

    loop.load_run = keep

    def report(event: Event) -> None:
        values = {name: str(value) if isinstance(value, Path) else value for name, value in vars(event).items()}
        out.write(json.dumps({"event": type(event).__name__, **values}) + "\n")

    if len(plan) > 1:
        # Keep the process group, because the next run needs it.
        Accelerator.end_training = lambda self: None
    for tables, resume in plan:
        result = train(TrainConfig.model_validate(tables), resume=resume, report=report)
        if result.signal:
            sys.exit(128 + result.signal)
        learner = runs[-1].learner
        state = learner.weights | (learner.adversary.state() if learner.adversary else {})
        digest = sha256(b"".join(value.detach().numpy().tobytes() for value in state.values())).hexdigest()
        out_folder, rank = Path(tables["save"]["out"]), os.environ.get("RANK", "0")
        (out_folder / f"rank-{rank}").write_text(digest)
        (out_folder / f"weights-{rank}").write_text(json.dumps(count_weights(runs[-1].trainable)))


def count_weights(trainable: Trainable) -> dict[str, int]:
    """Count the trained and the frozen weights of the step's network, in total and in this process."""
    counts = {name + place: 0 for name in ("learned", "frozen") for place in ("", ", here")}
    backbone = getattr(trainable.restorer, "backbone", trainable.networks)
    for weight in backbone.parameters():
        name = "learned" if weight.requires_grad else "frozen"
        counts[name] += weight.numel()
        # A sharded weight is a DTensor; avoid importing its module, which takes a second.
        counts[f"{name}, here"] += getattr(weight, "to_local", lambda whole=weight: whole)().numel()
    return counts


if __name__ == "__main__":
    sys.stdout.reconfigure(line_buffering=True)
    train_plan(json.loads(Path(sys.argv[1]).read_text()), sys.stdout)
