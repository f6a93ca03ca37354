"""Refusals of sharding; test_training_processes trains a sharded model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command_line import Command
from torch.distributed.tensor import DTensor
from training_run import run_here, settings

from omgsr_cli.errors import ModelError, UsageError
from omgsr_cli.models.loading import load_trainable
from omgsr_cli.models.sources import find_trainable
from omgsr_cli.training.config import TrainConfig, format_config
from omgsr_cli.training.distributed import share_backbone


@pytest.mark.parametrize(
    ("variable", "name"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"),
        ("ACCELERATE_USE_FSDP", "accelerate's FSDP"),
        ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM"),
    ],
)
def test_other_ways_to_shard_are_refused_with_the_reason(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, name: str
) -> None:
    monkeypatch.setenv(variable, "true")
    with pytest.raises(UsageError, match=f"{name} is not supported: generator and discriminator are two") as told:
        run_here(settings(world, tmp_path / "run"))
    assert "train.shard_backbone" in str(told.value.hint)
    assert not (tmp_path / "run").exists()


def test_sharding_needs_several_processes_and_frozen_weights(world: Path, tmp_path: Path, train: Command) -> None:
    trainable = load_trainable(find_trainable(start_from=str(world / "model")), torch.device("cpu"))
    with pytest.raises(UsageError, match="there is only one"):
        share_backbone(trainable, torch.device("cpu"), 1)
    with pytest.raises(ModelError, match="no frozen weights to share out"):
        share_backbone(trainable, torch.device("cpu"), 2)
    assert not any(isinstance(weight, DTensor) for weight in trainable.networks.parameters())
    with pytest.raises(UsageError, match="there is only one"):
        run_here(settings(world, tmp_path / "run", train={"shard_backbone": True}))
    config = tmp_path / "config.toml"
    config.write_text(format_config(TrainConfig.model_validate(settings(world, tmp_path / "run"))))
    wrong = ("--set", "train.shard_backbone=true", "--set", "train.compile=true", "--set", "model.preset=omgsr-tiny")
    said = train(config, *wrong, "--set", "loss.gan=0")
    assert said.code == 2
    assert "train.shard_backbone: " in said.err
    assert "train.compile: " in said.err
