"""What `--check` foretells, beside what real steps count."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from training_run import run_here, settings

from omgsr_cli.training import rehearsal
from omgsr_cli.training.config import TrainConfig
from omgsr_cli.training.model import find_run_model
from omgsr_cli.training.rehearsal import rehearse
from omgsr_cli.training.step import Stepper


@pytest.mark.parametrize(
    "loss",
    [
        {"gan": 0.0, "dv3cd": 0.0},
        {},
        {"gan": 0.0, "teacher": {"dists": 0.5, "dists_every": 3, "dists_px": 48, "encoder": 0.3, "crops": 2}},
        {"gan": 0.0, "dv3cd": 0.0, "lrr": 0.0, "l1": 0.0, "denoise": 1.0},
        {"dv3cd": 0.0, "discriminator": "unet", "backbone_path": None},
    ],
    ids=["pixels", "all", "teacher", "pre-training", "u-net"],
)
def test_the_foretold_operations_are_those_of_real_steps(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loss: dict[str, Any]
) -> None:
    if "teacher" in loss:
        loss["teacher"] |= {"model": str(world / "model"), "cache": str(tmp_path / "kept")}
    gan = {"px": 32, "width": 4} if "discriminator" in loss else {}
    tables = settings(world, tmp_path / "run", loss=loss, gan=gan, train={"steps": 3})
    take, counted = Stepper.take, list[int]()

    def counting(self: Stepper, step: int, batches: Any, signal: int) -> Any:
        # The data are made beforehand: their operations are other processes'.
        batch = next(batches)
        with FlopCounterMode(display=False) as counter:
            result = take(self, step, iter([batch]), signal)
        counted.append(counter.get_total_flops())
        return result

    monkeypatch.setattr(Stepper, "take", counting)
    run_here(tables)
    config = TrainConfig.model_validate(tables)
    flop = rehearse(config, find_run_model(config), torch.device("cpu")).flop
    assert flop == pytest.approx(sum(counted) / 3, rel=0.02)
    assert (counted[0] > counted[1]) == ("teacher" in loss)


def test_an_adapters_operations_are_foretold(base: Path, world: Path, tmp_path: Path) -> None:
    """Of a base with LoRA, checkpointed or not: the second forward pass of what is checkpointed counts."""
    flop = []
    for checkpointed in (False, True):
        tables = settings(
            world,
            tmp_path / "run",
            model={"base": str(base)},
            lora={"vae_rank": 2, "backbone_rank": 2},
            train={"gradient_checkpointing": checkpointed},
        )
        del tables["model"]["start_from"]
        config = TrainConfig.model_validate(tables)
        cost = rehearse(config, find_run_model(config), torch.device("cpu"))
        assert cost.trained < cost.parameters
        flop.append(cost.flop)
    assert flop[0] < flop[1] < 1.5 * flop[0]


def test_quick_steps_are_timed_and_others_follow_from_their_operations(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = TrainConfig.model_validate(settings(world, tmp_path / "run", optim={"accumulate": 3}))
    model, device = find_run_model(config), torch.device("cpu")
    cost = rehearse(config, model, device)
    timed: list[int] = []
    monkeypatch.setattr(rehearsal, "_time", lambda outline, number: timed.append(number) or 7.0)
    monkeypatch.setattr(rehearsal, "_measure_speed", lambda *_: cost.flop / 2.0)
    assert rehearsal.foretell_seconds(config, model, device, cost) == 21.0
    assert timed == [0]
    monkeypatch.setattr(rehearsal, "_measure_speed", lambda *_: cost.flop / 5.0)
    assert rehearsal.foretell_seconds(config, model, device, cost) == 5.0
    too_large = replace(cost, memory_bytes=2**60)
    monkeypatch.setattr(rehearsal, "_measure_speed", lambda *_: cost.flop / 2.0)
    assert rehearsal.foretell_seconds(config, model, device, too_large) == 2.0
    assert timed == [0]
