"""Trackers: TensorBoard itself, and stand-ins for those that need an account."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import training_run
from command_line import Command
from training_run import settings

from omgsr_cli.training.config import TrainConfig, format_config

STAND_IN = """
import json, os

def say(call, *values):
    with open(os.environ["TRACKED"], "a") as file:
        file.write(json.dumps([__name__, call, *values]) + "\\n")

class Run:
    def log(self, values, step=None, **_):
        say("log", values, step)
    def finish(self):
        say("finish")

class Config:
    def update(self, values, **_):
        say("config", values)

def init(project, **_):
    say("init", project)
    return Run()

config = Config()
"""


def write_package(folder: Path, name: str) -> None:
    """A package that looks installed."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(STAND_IN)
    (folder / f"{name}-1.0.dist-info").mkdir()
    (folder / f"{name}-1.0.dist-info" / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_every_tracker_gets_the_logged_values(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("wandb", "trackio"):
        write_package(tmp_path / "packages", name)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    run, calls = tmp_path / "run", tmp_path / "calls"
    trackers = ["wandb", "trackio", *(["tensorboard"] if find_spec("tensorboard") else [])]
    tables = settings(
        world,
        run,
        loss={"dv3cd": 0.0, "gan": 0.0},
        data={"validation": str(world / "held_out")},
        train={"steps": 4},
        log={"every": 2, "validate_every": 4, "trackers": trackers},
    )
    # accelerate looks for these packages when it is imported.
    (tmp_path / "plan.json").write_text(json.dumps([(tables, "none")]))
    path = os.pathsep.join([os.environ["PYTHONPATH"], str(tmp_path / "packages")])
    variables = os.environ | {"TRACKED": str(calls), "PYTHONPATH": path}
    subprocess.run([sys.executable, training_run.__file__, tmp_path / "plan.json"], env=variables, check=True)

    told = [json.loads(line) for line in calls.read_text().splitlines()]
    (validation,) = read_csv(run / "validation.csv")
    for name in ("wandb", "trackio"):
        own = [call[1:] for call in told if call[0] == name]
        assert [call[0] for call in own] == ["init", "config", "log", "log", "log", "finish"]
        assert own[0] == ["init", "omgsr"]
        assert own[1][1]["optim.lr"] == 1e-3
        assert own[1][1]["data.train"] == json.dumps([str(world / "hq")])
        for row, (_, values, step) in zip(read_csv(run / "log.csv"), (own[2], own[3]), strict=True):
            assert step == int(row.pop("step"))
            assert values == {
                f"train/{key}": pytest.approx(float(value), rel=1e-5) for key, value in row.items() if value
            }
        assert own[4][2] == int(validation["step"]) == 4
        assert own[4][1]["validation/psnr_y"] == pytest.approx(float(validation["psnr_y"]), rel=1e-5)
    if "tensorboard" in trackers:
        assert_tensorboard_has(run / "omgsr", read_csv(run / "log.csv"))


def assert_tensorboard_has(folder: Path, rows: list[dict[str, str]]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events: Any = EventAccumulator(str(folder))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("train/l1")]
    assert found == [(int(row["step"]), pytest.approx(float(row["l1"]), rel=1e-5)) for row in rows]


@pytest.mark.parametrize(
    ("name", "package"), [("tensorboard", "'omgsr-cli[train]'"), ("wandb", "wandb"), ("trackio", "trackio")]
)
def test_a_missing_tracker_is_reported_before_anything_is_read(
    capfdbinary: pytest.CaptureFixture[bytes], world: Path, tmp_path: Path, name: str, package: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("omgsr_cli.training.check.find_spec", lambda _: None)
    config = tmp_path / "config.toml"
    tables = settings(world, tmp_path / "run", loss={"dv3cd": 0.0, "gan": 0.0}, log={"trackers": [name]})
    config.write_text(format_config(TrainConfig.model_validate(tables)))
    said = Command(capfdbinary, "train")(config)
    assert (said.code, len(said.errors)) == (2, 1)
    assert f"log.trackers: {name} is not installed: pip install {package}" in said.err
    assert not (tmp_path / "run").exists()
