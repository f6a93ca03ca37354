"""A resumed run equals an uninterrupted one exactly, however it was interrupted."""

from __future__ import annotations

import csv
import json
import math
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from training_run import Processes, differing, run_here, settings, tensors

from omgsr_cli.errors import ModelError, OmgsrError, UsageError
from omgsr_cli.store.manifest import write_manifest
from omgsr_cli.training.checkpoints import find_checkpoint
from omgsr_cli.training.config import TrainConfig
from omgsr_cli.training.data import Order, TrainingCrops
from omgsr_cli.training.loop import Event, Noticed, Saved, Started, StepDone, Validated, build_crop_options, train
from omgsr_cli.training.sources import find_training_images, plan_epoch

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@pytest.fixture(scope="module")
def whole(world: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """The state after four steps without an interruption."""
    run = tmp_path_factory.mktemp("whole") / "run"
    run_here(settings(world, run, **EVERYTHING))
    return tensors(run / "step-00000004")


# All that has a state, changes with the step, or draws.
EVERYTHING: dict[str, Any] = {
    "optim": {"schedule": "cosine", "warmup_steps": 2, "accumulate": 2},
    "gan": {"start_step": 1, "augment": ["color", "translation", "cutout"]},
    "train": {"steps": 4},
    "save": {"every": 2},
}


def test_four_steps_are_two_and_two(world: Path, tmp_path: Path, whole: dict[str, torch.Tensor]) -> None:
    tables = settings(world, tmp_path / "run", **EVERYTHING)
    run_here(tables)
    (tmp_path / "run" / "step-00000004").rename(tmp_path / "elsewhere")
    torch.manual_seed(123)
    result, events = run_here(tables, resume="auto")
    assert isinstance(events[0], Started)
    assert events[0].step == 2
    assert result.checkpoint is not None
    assert differing(tensors(result.checkpoint), whole) == []
    assert differing(tensors(tmp_path / "elsewhere"), whole) == []
    # Without the state of the optimisers it would be another run.
    assert differing(tensors(tmp_path / "run" / "step-00000002"), whole)


def test_sigterm_lets_the_step_finish_and_saves(world: Path, tmp_path: Path, whole: dict[str, torch.Tensor]) -> None:
    tables = settings(world, tmp_path / "run", **EVERYTHING | {"save": {"every": 100}})
    events: list[Event] = []

    def report(event: Event) -> None:
        events.append(event)
        if isinstance(event, StepDone) and event.step == 1:
            signal.raise_signal(signal.SIGTERM)

    stopped = train(TrainConfig.model_validate(tables), report=report)
    assert (stopped.signal, type(events[-1])) == (signal.SIGTERM, Saved)
    assert 1 <= stopped.step < 4
    result, _ = run_here(tables, resume="auto")
    assert result.checkpoint is not None
    assert differing(tensors(result.checkpoint), whole) == []


def test_ctrl_c_lets_the_step_finish_and_saves_with_workers(world: Path, tmp_path: Path) -> None:
    tables = settings(
        world,
        tmp_path / "run",
        train={"steps": 1000},
        data={"workers": 1},
        save={"every": 1000},
        loss={"dv3cd": 0.0, "gan": 0.0},
    )
    run = Processes([(tables, "none")])
    for line in run.events:
        if json.loads(line)["event"] == "StepDone":
            run.send_signal(signal.SIGINT)
            break
    events, code, errors = run.finish()
    assert code == 130, errors
    assert "Traceback" not in errors
    assert events[-1]["event"] == "Saved"


def test_kill_leaves_the_last_checkpoint_whole(world: Path, tmp_path: Path, whole: dict[str, torch.Tensor]) -> None:
    tables = settings(world, tmp_path / "run", **EVERYTHING | {"save": {"every": 1, "keep": 2}})
    run = Processes([(tables, "none")])
    for line in run.events:
        event = json.loads(line)
        # Right after a step the next checkpoint is being written; other moments are tried with checkpoints alone.
        if event["event"] == "StepDone" and event["step"] > 1:
            run.send_signal(signal.SIGKILL)
            break
    run.finish()
    assert find_checkpoint(tmp_path / "run", "auto") is not None
    run_here(tables, resume="auto")
    assert differing(tensors(tmp_path / "run" / "step-00000004"), whole) == []


def test_another_model_cannot_be_resumed(world: Path, tmp_path: Path) -> None:
    run_here(settings(world, tmp_path / "run", train={"steps": 1}))
    other = settings(world, tmp_path / "run", model={"preset": "omgsr-tiny", "start_from": None}, train={"steps": 2})
    with pytest.raises(ModelError, match="do not match those to train"):
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


def test_a_resumed_run_lists_what_changed(world: Path, tmp_path: Path) -> None:
    tables = settings(world, tmp_path / "run", train={"steps": 1})
    _, events = run_here(tables)
    assert next(event.changed for event in events if isinstance(event, Started)) == {}
    tables["train"]["steps"], tables["optim"]["lr"], tables["degradation"] = 2, 2e-3, {"presets": {"light": 1.0}}
    _, events = run_here(tables, resume="auto")
    changed = next(event.changed for event in events if isinstance(event, Started))
    assert changed.pop("train.steps") == (1, 2)
    assert changed.pop("optim.lr") == (1e-3, 2e-3)
    assert {key.rpartition(".")[0] for key in changed} == {"degradation.presets"}
    assert changed["degradation.presets.light"] == (None, 1.0)
    (tmp_path / "run" / "step-00000002" / "config.toml").write_text("[nonsense]")
    write_manifest(tmp_path / "run" / "step-00000002")
    _, events = run_here(tables, resume="auto")
    assert any(isinstance(event, Noticed) and "cannot be compared" in event.text for event in events)


def test_fewer_steps_than_finished_are_refused(world: Path, tmp_path: Path) -> None:
    tables = settings(world, tmp_path / "run", train={"steps": 3})
    first, _ = run_here(tables)
    again, _ = run_here(tables, resume="auto")
    assert (again.step, again.checkpoint) == (3, first.checkpoint)
    tables["train"]["steps"] = 2
    for resume in ("auto", str(first.checkpoint)):
        with pytest.raises(UsageError, match=r"2.*step-00000003.*3"):
            run_here(tables, resume=resume)


# Images that cannot be read


def many(folder: Path, count: int) -> Path:
    """Write small images, each of another colour and with some detail."""
    folder.mkdir()
    rng = np.random.default_rng(3)
    for index in range(count):
        pixels = rng.integers(0, 256, (9, 9, 3)).astype(np.uint8)
        Image.fromarray(pixels).resize((66, 66), Image.Resampling.BICUBIC).save(folder / f"{index:03}.png")
    return folder


def break_body(path: Path) -> None:
    """Keep the header with the size and truncate the pixels."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def image_of(tables: Any, number: int) -> Path:
    """The image that a sample of the run comes from."""
    data = tables["data"]
    images = find_training_images(data["train"], None, data["resolution"], "skip")
    return images[Order(plan_epoch(images, data["resolution"]), 0).index(number)].hq


def test_a_corrupt_image_is_skipped_and_the_run_stays_reproducible(world: Path, tmp_path: Path) -> None:
    data = {"train": [str(many(tmp_path / "hq", 120))]}
    loss = {"gan": 0.0, "dv3cd": 0.0}
    tables = settings(world, tmp_path / "whole", data=data, train={"steps": 4}, save={"every": 2}, loss=loss)
    broken = image_of(tables, 5)
    break_body(broken)
    result, events = run_here(tables)
    notes = [event.text for event in events if isinstance(event, Noticed)]
    assert (result.step, result.broken, len(notes)) == (4, 1, 1)
    assert str(broken) in notes[0]
    with open(tmp_path / "whole" / "log.csv", newline="") as file:
        assert [row["broken_images"] for row in csv.DictReader(file)] == ["", "", "1", "1"]
    # With workers, and in two parts, of which the second knows of the image from the first.
    tables["data"]["workers"], tables["save"]["out"] = 2, str(tmp_path / "parts")
    first, _ = run_here(tables)
    shutil.rmtree(first.checkpoint or "")
    second, _ = run_here(tables, resume="auto")
    shutil.rmtree(tmp_path / "parts" / "step-00000002")
    assert (second.step, second.broken) == (4, 1)
    state = tensors(result.checkpoint or "")
    for one in (first, second):
        assert one.broken == 1
    assert differing(tensors(second.checkpoint or ""), state) == []
    third, events = run_here(tables, resume="auto")
    assert third.broken == 1
    assert not any(isinstance(event, Noticed) for event in events), "it was told before"


def test_all_processes_replace_a_corrupt_image_equally(world: Path, tmp_path: Path) -> None:
    tables = settings(world, tmp_path / "run", data={"train": [str(many(tmp_path / "hq", 30))]})
    for number in (2, 3, 9):
        break_body(image_of(tables, number))
    config = TrainConfig.model_validate(tables)
    images = find_training_images(config.data.train, None, 64, "skip")
    alone, first, second = (TrainingCrops(images, build_crop_options(config), 0) for _ in range(3))
    expected = {number: alone[number] for number in range(12)}
    assert len(alone.broken) == 3
    # Each process meets them in another order, or some of them never.
    for crops, numbers in ((first, (9, 1, 8, 0)), (second, (3, 11, 2, 10))):
        for number in numbers:
            assert all(map(torch.equal, crops[number][1:], expected[number][1:]))
    assert first.broken.keys() < alone.broken.keys()


@pytest.mark.parametrize("workers", [0, 1])
def test_many_corrupt_images_end_the_run_with_one_line(world: Path, tmp_path: Path, workers: int) -> None:
    data = {"train": [str(many(tmp_path / "hq", 20))], "workers": workers}
    tables = settings(world, tmp_path / "run", data=data, loss={"gan": 0.0})
    broken = image_of(tables, 3)
    break_body(broken)
    with pytest.raises(OmgsrError) as told:
        run_here(tables)
    assert "1 of 20" in told.value.message
    assert str(broken) in told.value.message
    assert "\n" not in told.value.message


def test_without_any_readable_image_the_run_ends(world: Path, tmp_path: Path) -> None:
    for path in many(tmp_path / "hq", 3).iterdir():
        break_body(path)
    with pytest.raises(OmgsrError, match="none of 3"):
        run_here(settings(world, tmp_path / "run", data={"train": [str(tmp_path / "hq")]}, loss={"gan": 0.0}))


def test_a_corrupt_held_out_image_is_left_out_of_the_means(world: Path, tmp_path: Path) -> None:
    held_out = many(tmp_path / "held_out", 2)
    data = {"train": [str(many(tmp_path / "hq", 120))], "validation": str(held_out)}
    loss = {"gan": 0.0, "dv3cd": 0.0}
    tables = settings(world, tmp_path / "run", data=data, loss=loss, train={"steps": 1}, log={"validate_every": 1})
    break_body(held_out / "000.png")
    result, events = run_here(tables)
    scores = next(event.scores for event in events if isinstance(event, Validated))
    assert result.broken == 1
    assert scores
    assert all(math.isfinite(value) for value in scores.values())


def test_the_teacher_gets_the_replacement_of_a_corrupt_image(world: Path, tmp_path: Path) -> None:
    teacher = {"model": str(world / "model"), "crops": 6, "cache": str(tmp_path / "kept")}
    data = {"train": [str(many(tmp_path / "hq", 120))], "workers": 1}
    tables = settings(world, tmp_path / "run", data=data, train={"steps": 3}, loss={"gan": 0.0, "teacher": teacher})
    break_body(image_of(tables, 2))
    assert run_here(tables)[0].broken == 1
    assert len(list((tmp_path / "kept").iterdir())) == 6
    tables["save"]["out"] = str(tmp_path / "again")
    assert run_here(tables)[0].broken == 1
    assert len(list((tmp_path / "kept").iterdir())) == 6
