"""`--check` takes two real steps and leaves no files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import files_below
from training_run import settings

from omgsr_cli.errors import OmgsrError
from omgsr_cli.training.check import find_missing, try_steps
from omgsr_cli.training.config import TrainConfig
from omgsr_cli.training.step import Stepper, StepResult


@pytest.mark.parametrize(
    ("loss", "steps"),
    [
        ({}, [2, 2]),
        ({"gan": 0.0, "teacher": {"dists": 0.5, "dists_every": 3, "dists_px": 48, "crops": 100}}, [0, 0, 1]),
        ({"gan": 0.0, "dv3cd": 0.0, "lrr": 0.0, "l1": 0.0, "denoise": 1.0}, [0, 0]),
    ],
    ids=["discriminator", "teacher", "pre-training"],
)
def test_steps_have_all_losses_and_leave_nothing(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: dict[str, Any], steps: list[int]
) -> None:
    if "teacher" in loss:
        loss["teacher"] |= {"model": str(world / "model"), "cache": str(tmp_path / "kept")}
    tables = settings(
        world,
        tmp_path / "run",
        loss=loss,
        gan={"start_step": 1, "alone_steps": 1},
        data={"cache": str(tmp_path / "px")},
    )
    take, results = Stepper.take, list[tuple[int, StepResult]]()

    def noted(self: Stepper, step: int, batches: Any, signal: int) -> StepResult:
        results.append((step, take(self, step, batches, signal)))
        return results[-1][1]

    monkeypatch.setattr(Stepper, "take", noted)
    trial = try_steps(TrainConfig.model_validate(tables))
    assert [step for step, _ in results] == steps
    names = results[0][1].losses.keys()
    assert ("gan" in names, "teacher_dists" in names, "denoise" in names) == (
        "gan" not in loss,
        "teacher" in loss,
        "denoise" in loss,
    )
    assert trial.is_finite
    assert trial.broken == ()
    assert trial.step_seconds > 0
    # Weights twice, their average and AdamW's two, which pre-training has of some weights only.
    checkpoint_bytes = trial.disk_bytes / (tables["save"]["keep"] + 1)
    assert checkpoint_bytes > (4 if "denoise" in loss else 5) * 4 * trial.trained
    assert files_below(tmp_path) == []


def test_too_little_memory_is_one_line(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> StepResult:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    monkeypatch.setattr(Stepper, "take", fail)
    with pytest.raises(OmgsrError, match="memory") as error:
        try_steps(TrainConfig.model_validate(settings(world, tmp_path / "run", loss={"gan": 0.0, "dv3cd": 0.0})))
    assert "batch_size" in str(error.value.hint)


def test_all_unreadable_parts_are_named(world: Path, tmp_path: Path) -> None:
    (tmp_path / "features").mkdir()
    (tmp_path / "lpips").mkdir()
    loss = {"backbone_path": str(tmp_path / "features"), "lpips_path": str(tmp_path / "lpips"), "lpips": 1.0}
    tables = settings(world, tmp_path / "run", loss=loss, model={"start_from": str(tmp_path / "nowhere")})
    missing = find_missing(TrainConfig.model_validate(tables))
    for name in ("nowhere", "features", "lpips"):
        assert sum(name in error.message for error in missing) == 1, name
