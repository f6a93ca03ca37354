"""Two processes train as one: weights, samples and logs; or they share one model."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from random_flux import write_flux_model
from random_sd import write_sd_model
from torch import Tensor
from training_run import Table, differing, largest_difference, run_here, run_there, settings, tensors

from omgsr_cli.training.config import GanConfig

# Spectral norm moves a little in every forward pass: with a GAN, half as many passes of twice the samples are another
# run.
NO_GAN: dict[str, Any] = {"loss": {"gan": 0.0}}
SHORT: dict[str, Any] = {"train": {"steps": 4}, "save": {"every": 1, "keep": 9}}
FILES = ("weights.safetensors", "average.safetensors", "optimizer.safetensors")


@dataclass(frozen=True)
class Runs:
    """Runs of two processes by name, and their events."""

    folder: Path
    events: dict[str, list[dict[str, Any]]]

    def tensors(self, name: str, step: int) -> dict[str, Tensor]:
        return tensors(self.folder / name / f"step-{step:08}")

    def told(self, name: str, event: str) -> list[dict[str, Any]]:
        return [told for told in self.events[name] if told["event"] == event]


def train_in_two_processes(world: Path, folder: Path) -> Runs:
    """One launch for all of them: starting processes takes longer than the runs."""
    everything = {"log": {"validate_every": 4}, "data": {"validation": str(world / "held_out")}}
    passes = {"data": {"batch_size": 1}, "optim": {"accumulate": 2}}
    plan = {
        "whole": (settings(world, folder / "whole", **SHORT, **everything), "none"),
        "resumed": (
            settings(world, folder / "resumed", **SHORT, **everything),
            str(folder / "whole" / "step-00000002"),
        ),
        "passes": (settings(world, folder / "passes", **NO_GAN, **passes, train={"steps": 2}), "none"),
    }
    base, halfway = write_sd_model(folder / "base"), str(folder / "sharded lora" / "step-00000001")
    for name, shard, resume in (("sharded", True, "none"), ("unsharded", False, halfway), ("resumed", True, halfway)):
        plan[f"{name} lora"] = (lora_settings(world, folder / f"{name} lora", base, shard=shard), resume)
    flow = write_flux_model(folder / "flux")
    plan["flow"] = (lora_settings(world, folder / "flow", flow, shard=True), "none")
    return Runs(folder, dict(zip(plan, run_there(list(plan.values()), 2), strict=True)))


def lora_settings(world: Path, run: Path, base: Path, *, shard: bool) -> Table:
    tables = settings(
        world,
        run,
        model={"base": str(base)},
        lora={"vae_rank": 2, "backbone_rank": 2},
        # Three images for two processes: one of them restores another time, as it must.
        data={"validation": str(world / "hq"), "batch_size": 1},
        loss={"dv3cd": 0.0, "gan": 0.1},
        train={"steps": 2, "gradient_checkpointing": True, "shard_backbone": shard},
        save={"every": 1},
        log={"validate_every": 2},
    )
    del tables["model"]["start_from"]
    return tables


def check_both_processes_hold_the_same_weights(runs: Runs) -> None:
    for name in runs.events:
        digests = [(runs.folder / name / f"rank-{rank}").read_text() for rank in (0, 1)]
        assert digests[0] == digests[1], f"the processes of {name} hold other weights"


def check_one_process_logs_for_both(runs: Runs) -> None:
    assert runs.events["whole"][0]["processes"] == 2
    assert [event["step"] for event in runs.told("whole", "StepDone")] == [1, 2, 3, 4]
    with open(runs.folder / "whole" / "log.csv", newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [1, 2, 3, 4]


def check_four_steps_are_two_and_two(runs: Runs) -> None:
    assert runs.events["resumed"][0]["step"] == 2
    assert differing(runs.tensors("resumed", 4), runs.tensors("whole", 4)) == []


def check_two_processes_equal_one_with_twice_the_batch(runs: Runs, world: Path, tmp_path: Path) -> None:
    """With the discriminator and its default augmentation."""
    assert GanConfig().augment == ("color", "translation", "cutout")
    _, here = run_here(settings(world, tmp_path / "one", **SHORT, data={"batch_size": 4}))
    first = runs.told("whole", "StepDone")[0]
    for name, value in here[1].losses.items():  # type: ignore[union-attr]  # the event after the first is a step's
        # Every process's share is in the log: rank 0's alone would be off by percents.
        assert first["losses"][name] == pytest.approx(value, rel=1e-3)
    # After one step AdamW's first average is a tenth of the gradient.
    for name in ("optimizer.safetensors", "optimizer_discriminator.safetensors"):
        two, one = (
            torch.cat(
                [
                    value.flatten()
                    for key, value in state.items()
                    if key.startswith(name) and "exp_avg" in key and "exp_avg_sq" not in key
                ]
            )
            for state in (runs.tensors("whole", 1), tensors(tmp_path / "one" / "step-00000001"))
        )
        assert float((two - one).norm() / one.norm()) < 1e-3, name
    # Adam moves a weight by up to 1e-3 a step: an encoder that is not synchronised is off by as much.
    assert largest_difference(runs.tensors("whole", 3), tensors(tmp_path / "one" / "step-00000003"), FILES) < 6e-4


def check_several_passes_equal_one_large_batch(runs: Runs, world: Path, tmp_path: Path) -> None:
    one = settings(
        world, tmp_path / "one", **NO_GAN, data={"batch_size": 1}, optim={"accumulate": 4}, train={"steps": 2}
    )
    run_here(one)
    assert largest_difference(runs.tensors("passes", 2), tensors(tmp_path / "one" / "step-00000002"), FILES) < 6e-4


def check_processes_share_a_validation(runs: Runs, world: Path, tmp_path: Path) -> None:
    (shared,) = runs.told("whole", "Validated")
    still = settings(world, tmp_path / "still", data={"validation": str(world / "held_out")})
    still["model"] = {"start_from": str(runs.folder / "whole" / "step-00000004")}
    still["optim"]["lr"], still["log"] = 1e-12, {"validate_every": 1}
    still["train"] |= {"steps": 1, "ema": 0.0}
    scores = next(event.scores for event in run_here(still)[1] if type(event).__name__ == "Validated")  # type: ignore[union-attr]  # as filtered
    for name, value in scores.items():
        assert shared["scores"][name] == pytest.approx(value, rel=1e-3)


def check_a_sharded_backbone_trains_like_a_whole_one(runs: Runs) -> None:
    """FSDP2; and a run may resume with it or without."""
    sharded, unsharded, resumed = (runs.tensors(f"{name} lora", 2) for name in ("sharded", "unsharded", "resumed"))
    assert differing(sharded, runs.tensors("sharded lora", 1)), "it learns"
    assert differing(resumed, sharded) == []
    for name, value in sharded.items():
        torch.testing.assert_close(value, unsharded[name], atol=1e-6, rtol=1e-4)
    scores = [runs.told(f"{name} lora", "Validated")[0]["scores"] for name in ("unsharded", "sharded")]
    assert scores[1] == pytest.approx(scores[0], rel=1e-4)
    # Each process holds about half of the frozen weights, and all that learn.
    counts = json.loads((runs.folder / "sharded lora" / "weights-1").read_text())
    assert counts["frozen, here"] < 0.6 * counts["frozen"]
    assert counts["learned, here"] == counts["learned"]


def check_a_sharded_transformer_learns(runs: Runs) -> None:
    assert differing(runs.tensors("flow", 2), runs.tensors("flow", 1))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.long
def test_two_processes_are_one_training(world: Path, tmp_path: Path) -> None:
    """One test, so that the processes are started once however the tests are distributed."""
    runs = train_in_two_processes(world, tmp_path)
    check_both_processes_hold_the_same_weights(runs)
    check_one_process_logs_for_both(runs)
    check_four_steps_are_two_and_two(runs)
    check_two_processes_equal_one_with_twice_the_batch(runs, world, tmp_path / "batch")
    check_several_passes_equal_one_large_batch(runs, world, tmp_path / "passes_of_one")
    check_a_sharded_transformer_learns(runs)
    check_processes_share_a_validation(runs, world, tmp_path / "validation")
    check_a_sharded_backbone_trains_like_a_whole_one(runs)
