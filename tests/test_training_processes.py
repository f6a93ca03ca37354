"""Two processes are one training: one set of weights, one stream of samples, one log."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import psutil
import pytest
from training_run import Table, differing, largest_difference, run_here, run_there, settings, start, tensors

# Spectral norm goes on a little in every forward pass, and augmentation is drawn a batch at a time: with a GAN,
# half as many passes of twice the samples are another run.
NO_GAN: dict[str, Any] = {"loss": {"gan": 0.0}}
SHORT: dict[str, Any] = {"train": {"steps": 3}}
FILES = ("weights.safetensors", "average.safetensors", "optimizer.safetensors")


def kill_after_four_steps(tables: Table) -> None:
    """Begin in two processes, and kill -9 both and their launcher once the fourth step is saved."""
    launcher = start([(tables, "none")], processes=2)
    assert launcher.stdout is not None
    for line in launcher.stdout:
        if json.loads(line)["event"] == "Saved":
            break
    family = psutil.Process(launcher.pid).children(recursive=True)
    assert len(family) == 2
    launcher.kill()
    for process in family:
        process.kill()
    launcher.communicate(timeout=60)


def test_two_processes_are_one_training(world: Path, tmp_path: Path) -> None:
    """One launch, several runs: starting processes takes longer than all of them."""
    everything = {"log": {"validate_every": 8}, "data": {"validation": str(world / "held_out")}}
    killed = tmp_path / "killed"
    kill_after_four_steps(settings(world, killed, **everything))
    assert [path.name for path in killed.glob("step-*")] == ["step-00000004"]
    whole, resumed, twice, passes = (tmp_path / name for name in ("whole", "resumed", "twice", "passes"))
    plan = [
        (settings(world, whole, **everything), "none"),
        (settings(world, resumed, **everything), str(whole / "step-00000004")),
        (settings(world, twice, **NO_GAN, **SHORT), "none"),
        (
            settings(world, passes, **NO_GAN, **SHORT, data={"batch_size": 1}, optim={"accumulate": 2}),
            "none",
        ),
        (settings(world, killed, **everything), "auto"),
    ]
    events = run_there(plan, processes=2)

    assert [event["step"] for event in events[0] if event["event"] == "StepDone"] == list(range(1, 9))
    assert events[0][0]["processes"] == 2
    with open(whole / "log.csv", newline="") as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == list(range(1, 9))
    for run in (whole, resumed, twice, passes, killed):
        assert (run / "rank-0").read_text() == (run / "rank-1").read_text(), "the processes hold other weights"

    assert events[1][0]["step"] == 4
    assert differing(tensors(resumed / "step-00000008"), tensors(whole / "step-00000008")) == []

    assert events[4][0]["step"] == 4
    assert differing(tensors(killed / "step-00000008"), tensors(whole / "step-00000008")) == []
    assert (killed / "log.csv").read_text().count("\n") == 9

    one, many = tmp_path / "one", tmp_path / "many"
    _, here = run_here(settings(world, one, **NO_GAN, **SHORT, data={"batch_size": 4}))
    first = next(event for event in events[2] if event["event"] == "StepDone")
    for name, value in here[1].losses.items():  # type: ignore[union-attr]  # the event after the first is a step's
        # Every process's share is in the log: rank 0's alone would be off by percents.
        assert first["losses"][name] == pytest.approx(value, rel=1e-3)
    # Adam moves a weight by up to 1e-3 a step: an encoder that is not synchronised is off by as much.
    assert largest_difference(*(tensors(run / "step-00000003") for run in (twice, one)), FILES) < 6e-4

    run_here(settings(world, many, **NO_GAN, **SHORT, data={"batch_size": 1}, optim={"accumulate": 4}))
    assert largest_difference(*(tensors(run / "step-00000003") for run in (passes, many)), FILES) < 6e-4

    shared = next(event["scores"] for event in events[0] if event["event"] == "Validated")
    still = settings(world, tmp_path / "still", data={"validation": str(world / "held_out")})
    still["model"] = {"start_from": str(whole / "step-00000008")}
    still["optim"]["lr"], still["log"] = 1e-12, {"validate_every": 1}
    still["train"] |= {"steps": 1, "ema": 0.0}
    scores = next(event.scores for event in run_here(still)[1] if type(event).__name__ == "Validated")  # type: ignore[union-attr]  # as filtered
    for name, value in scores.items():
        assert shared[name] == pytest.approx(value, rel=1e-3)
