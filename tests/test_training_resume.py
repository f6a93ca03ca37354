"""A run that is interrupted and goes on is the run that was not: to the bit, however it ended."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from training_run import differing, run_here, settings, start, tensors

from omgsr_cli.errors import ModelError
from omgsr_cli.training.checkpoints import find_checkpoint
from omgsr_cli.training.config import TrainConfig
from omgsr_cli.training.events import Event, Saved, StepDone
from omgsr_cli.training.loop import train


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The state after eight steps in one go."""
    run = tmp_path_factory.mktemp("whole") / "run"
    run_here(settings(world, run, **EVERYTHING))
    return tensors(run / "step-00000008")


# All that has a state, changes with the step, or draws.
EVERYTHING: dict[str, Any] = {
    "optim": {"schedule": "cosine", "warmup_steps": 3, "accumulate": 2},
    "gan": {"start_step": 2, "augment": ["color", "translation", "cutout"]},
}


def test_eight_steps_are_four_and_four(world: Path, tmp_path: Path, whole: dict[str, torch.Tensor]) -> None:
    tables = settings(world, tmp_path / "run", **EVERYTHING)
    run_here(tables)
    for path in (tmp_path / "run").glob("step-00000008"):
        path.rename(tmp_path / "elsewhere")
    torch.manual_seed(123)
    result, events = run_here(tables, resume="auto")
    assert type(events[0]).__name__ == "Started"
    assert events[0].step == 4
    assert result.checkpoint is not None
    assert differing(tensors(result.checkpoint), whole) == []
    assert differing(tensors(tmp_path / "elsewhere"), whole) == []
    # Without the state of the optimisers it would be another run.
    assert differing(tensors(tmp_path / "run" / "step-00000004"), whole)


def test_sigterm_lets_the_step_finish_and_saves(world: Path, tmp_path: Path, whole: dict[str, torch.Tensor]) -> None:
    tables = settings(world, tmp_path / "run", **EVERYTHING, save={"every": 100})
    events: list[Event] = []

    def report(event: Event) -> None:
        events.append(event)
        if isinstance(event, StepDone) and event.step == 3:
            signal.raise_signal(signal.SIGTERM)

    stopped = train(TrainConfig.model_validate(tables), report=report)
    assert (stopped.signal, type(events[-1])) == (signal.SIGTERM, Saved)
    assert 3 <= stopped.step < 8
    result, _ = run_here(tables, resume="auto")
    assert result.checkpoint is not None
    assert differing(tensors(result.checkpoint), whole) == []


def test_ctrl_c_does_likewise_with_workers(world: Path, tmp_path: Path) -> None:
    tables = settings(
        world,
        tmp_path / "run",
        train={"steps": 1000},
        data={"workers": 1},
        save={"every": 1000},
        loss={"dv3cd": 0.0, "gan": 0.0},
    )
    process = start([(tables, "none")])
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["event"] == "StepDone":
            process.send_signal(signal.SIGINT)
            break
    out, err = process.communicate(timeout=600)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    assert json.loads(out.splitlines()[-1])["event"] == "Saved"


def test_kill_leaves_the_last_checkpoint_whole(world: Path, tmp_path: Path, whole: dict[str, torch.Tensor]) -> None:
    tables = settings(world, tmp_path / "run", **EVERYTHING, save={"every": 1, "keep": 2})
    process = start([(tables, "none")])
    assert process.stdout is not None
    for line in process.stdout:
        event = json.loads(line)
        # Right after a step the next checkpoint is being written; other moments are tried with checkpoints alone.
        if event["event"] == "StepDone" and event["step"] > 1:
            process.kill()
            break
    process.communicate(timeout=600)
    assert find_checkpoint(tmp_path / "run", "auto") is not None
    run_here(tables, resume="auto")
    assert differing(tensors(tmp_path / "run" / "step-00000008"), whole) == []


def test_another_model_cannot_be_resumed(world: Path, tmp_path: Path) -> None:
    run_here(settings(world, tmp_path / "run", train={"steps": 1}))
    other = settings(world, tmp_path / "run", model={"preset": "omgsr-tiny", "start_from": None}, train={"steps": 2})
    with pytest.raises(ModelError, match="do not fit those to train"):
        run_here(other, resume="auto")


def test_a_resumed_run_needs_no_weights_to_start_from(world: Path, tmp_path: Path) -> None:
    start_from = tmp_path / "begin"
    start_from.mkdir()
    for file in (world / "model").iterdir():
        (start_from / file.name).write_bytes(file.read_bytes())
    model = {"base": str(world / "model"), "start_from": str(start_from)}
    run_here(settings(world, tmp_path / "run", model=model, train={"steps": 1}))
    for file in start_from.iterdir():
        file.unlink()
    start_from.rmdir()
    result, _ = run_here(settings(world, tmp_path / "run", model=model, train={"steps": 2}), resume="auto")
    assert result.step == 2
