"""A backbone that two processes share out (FSDP2) is trained as one that each of them has whole."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Command
from test_models_sd import write_model as write_sd_model
from torch.distributed.tensor import DTensor
from training_run import differing, run_here, run_there, settings, tensors

from omgsr_cli.errors import ModelError, UsageError
from omgsr_cli.models.trainable import find_trainable, load_trainable
from omgsr_cli.training.config import TrainConfig, format_config
from omgsr_cli.training.sharding import share_backbone, shared_names


def test_shared_out_it_is_the_same_training(world: Path, tmp_path: Path) -> None:
    base = write_sd_model(tmp_path / "base")
    common: dict[str, Any] = {
        "model": {"base": str(base), "start_from": None},
        "lora": {"vae_rank": 2, "backbone_rank": 2},
        # Three pictures for two processes: one of them restores another time, as it must.
        "data": {"validation": str(world / "hq"), "batch_size": 1},
        "loss": {"dv3cd": 0.0, "gan": 0.1},
        "train": {"steps": 4, "gradient_checkpointing": True},
        "save": {"every": 2},
        "log": {"validate_every": 4},
    }
    plan = [(_settings(world, tmp_path / name, common, shard=name != "whole"), "none") for name in ("whole", "shared")]
    plan.append((_settings(world, tmp_path / "resumed", common, shard=True), str(tmp_path / "shared/step-00000002")))
    plan.append((_settings(world, tmp_path / "moved", common, shard=False), str(tmp_path / "shared/step-00000002")))
    events = run_there(plan, processes=2)

    whole, shared, resumed, moved = (tensors(tmp_path / name / "step-00000004") for name in (
        "whole", "shared", "resumed", "moved",
    ))  # fmt: skip
    assert differing(shared, tensors(tmp_path / "shared" / "step-00000002")), "it learns"
    for name, value in whole.items():
        torch.testing.assert_close(shared[name], value, atol=1e-6, rtol=1e-4)
        torch.testing.assert_close(moved[name], value, atol=1e-6, rtol=1e-4)
    assert differing(resumed, shared) == []
    for run in ("whole", "shared"):
        assert (tmp_path / run / "rank-0").read_text() == (tmp_path / run / "rank-1").read_text()
    scores = [next(event["scores"] for event in run if event["event"] == "Validated") for run in events[:2]]
    assert scores[1] == pytest.approx(scores[0], rel=1e-4)
    # Of the frozen weights each process has about a half, and of what learns all.
    counts = json.loads((tmp_path / "shared" / "weights-1").read_text())
    assert counts["frozen, here"] < 0.6 * counts["frozen"]
    assert counts["learned, here"] == counts["learned"]


@pytest.mark.parametrize(
    ("variable", "name"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"),
        ("ACCELERATE_USE_FSDP", "accelerate's FSDP"),
        ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM"),
    ],
)
def test_other_ways_to_share_are_refused_with_the_reason(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, name: str
) -> None:
    monkeypatch.setenv(variable, "true")
    with pytest.raises(UsageError, match=f"{name} cannot train this: generator and discriminator are two") as told:
        run_here(settings(world, tmp_path / "run"))
    assert "train.shard_backbone" in str(told.value.hint)
    assert not (tmp_path / "run").exists()


def _settings(world: Path, run: Path, common: dict[str, Any], *, shard: bool) -> Any:
    tables = settings(world, run, **common)
    del tables["model"]["start_from"]
    tables["train"]["shard_backbone"] = shard
    return tables


def test_alone_and_without_frozen_weights_it_is_refused(
    world: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    trainable = load_trainable(find_trainable(start_from=str(world / "model")), torch.device("cpu"))
    with pytest.raises(UsageError, match="this is the only one"):
        share_backbone(trainable, torch.device("cpu"), 1)
    with pytest.raises(ModelError, match="no frozen weights to share out"):
        share_backbone(trainable, torch.device("cpu"), 2)
    assert not any(isinstance(weight, DTensor) for weight in trainable.networks.parameters())
    assert shared_names(trainable.networks) == []
    with pytest.raises(UsageError, match="this is the only one"):
        run_here(settings(world, tmp_path / "run", train={"shard_backbone": True}))
    config = tmp_path / "config.toml"
    config.write_text(format_config(TrainConfig.model_validate(settings(world, tmp_path / "run"))))
    wrong = ("--set", "train.shard_backbone=true", "--set", "train.compile=true", "--set", "model.preset=omgsr-tiny")
    said = Command(capfdbinary, "train")(config, *wrong, "--set", "loss.gan=0")
    assert said.code == 2
    assert "omgsr-tiny is trained whole and has no frozen weights to share out" in said.err
