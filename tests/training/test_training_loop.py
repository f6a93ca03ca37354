"""Whole runs in one process: losses, logs, validation, teachers and steps that are not finite."""

from __future__ import annotations

import csv
import json
import math
import os
import shutil
import signal
import sys
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from command_line import draw
from PIL import Image
from places import ROOT
from pydantic import ValidationError
from safetensors.torch import load_file
from torch import Tensor, nn
from training_run import differing, run_here, settings, tensors

from omgsr_cli.benchmark.runner import run_bench
from omgsr_cli.degradation import degrade
from omgsr_cli.errors import OmgsrError, UsageError
from omgsr_cli.fidelity import psnr
from omgsr_cli.models.base import Trainable
from omgsr_cli.models.loading import load_restorer, load_trainable
from omgsr_cli.models.sources import find_trainable
from omgsr_cli.training import validation
from omgsr_cli.training.check import check_files
from omgsr_cli.training.checkpoints import list_checkpoints
from omgsr_cli.training.config import ConfigError, OptimConfig, TrainConfig
from omgsr_cli.training.data import TrainingCrops, load_batches, number_batches, read_pixels
from omgsr_cli.training.logs import CsvLog, Means
from omgsr_cli.training.loop import (
    Event,
    Noticed,
    Saved,
    Started,
    StepDone,
    Validated,
    build_crop_options,
    load_run,
    train,
)
from omgsr_cli.training.losses import discriminator_loss, generator_gan_loss
from omgsr_cli.training.model import Denoising
from omgsr_cli.training.sources import find_training_images
from omgsr_cli.training.step import Adversary, Stepper, learning_rate_share


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# Random features teach nothing: their losses have small weights.
WEIGHTS = {"lrr": 0.5, "l1": 5.0, "dv3cd": 0.05, "gan": 0.01}


def test_a_run_learns_and_logs_it(world: Path, tmp_path: Path) -> None:
    tables = settings(
        world,
        tmp_path / "run",
        train={"steps": 20},
        save={"every": 8, "keep": 2},
        log={"every": 2, "validate_every": 10},
        data={"validation": str(world / "held_out"), "resolution": 64},
        degradation={"presets": {"light": 1.0}},
        loss=WEIGHTS,
        optim={"lr": 1e-2, "schedule": "cosine", "clip": 100.0},
    )
    result, events = run_here(tables)
    assert (result.step, result.steps, result.signal) == (20, 20, 0)
    assert isinstance(events[0], Started)
    assert (events[0].images, events[0].processes, events[0].resumed_from) == (3, 1, None)
    done = [event for event in events if isinstance(event, StepDone)]
    assert [event.step for event in done] == list(range(1, 21))
    for name in ("l1", "total"):
        first, last = (sum(e.losses[name] for e in part) / 5 for part in (done[:5], done[-5:]))
        assert last < 0.9 * first, name
    assert set(done[0].losses) == {"lrr", "l1", "dv3cd", "gan", "discriminator", "total"}
    expected = sum(weight * done[7].losses[name] for name, weight in WEIGHTS.items())
    assert done[7].losses["total"] == pytest.approx(expected, rel=1e-5)
    assert done[-1].seconds_left == 0
    assert all(event.memory_mib > 50 and event.images_per_s > 0 and not event.skipped for event in done)

    saved = [event for event in events if isinstance(event, Saved)]
    assert [event.step for event in saved] == [8, 16, 20]
    kept = sorted(path.name for path in (tmp_path / "run").glob("step-*"))
    assert kept == ["step-00000016", "step-00000020"]
    assert result.checkpoint == tmp_path / "run" / "step-00000020"

    table = rows(tmp_path / "run" / "log.csv")
    assert [int(row["step"]) for row in table] == list(range(2, 21, 2))
    assert float(table[0]["l1"]) == pytest.approx((done[0].losses["l1"] + done[1].losses["l1"]) / 2, rel=1e-4)
    measured = [event for event in events if isinstance(event, Validated)]
    assert [event.step for event in measured] == [10, 20]
    last_row = rows(tmp_path / "run" / "validation.csv")[-1]
    for name in ("psnr_y", "ssim_y", "dv3cd"):
        assert float(last_row[name]) == pytest.approx(measured[1].scores[name], rel=1e-4)
    with Image.open(measured[1].grid) as grid:
        # Two images under each other, trimmed to multiples of 8: LQ | output | HQ.
        assert grid.size == (3 * 88, 64 + 72)


def test_a_checkpoint_is_a_usable_model(world: Path, tmp_path: Path) -> None:
    result, _ = run_here(settings(world, tmp_path / "run", train={"steps": 3}))
    assert result.checkpoint is not None
    trained = load_restorer(result.checkpoint, precision="fp32")
    before = load_restorer(world / "model", precision="fp32")
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.inference_mode():
        one, two = (model.decode(model.restore(model.encode(image))) for model in (trained, before))
    assert not torch.allclose(one, two, atol=1e-4)
    # What users get is the average, not the last step.
    state = tensors(result.checkpoint)
    name = "encoder.conv_in.weight"
    assert torch.equal(state[f"model.safetensors: {name}"], state[f"average.safetensors: {name}"])
    assert not torch.equal(state[f"model.safetensors: {name}"], state[f"weights.safetensors: {name}"])


def test_validation_scores_are_those_of_the_images(world: Path, tmp_path: Path) -> None:
    # Pairs whose low-quality image is another one, and new weights, which leave an image as it is.
    low_quality = tmp_path / "low_quality"
    low_quality.mkdir()
    for name in ("0.png", "1.png"):
        (low_quality / name).write_bytes((world / "hq" / name).read_bytes())
    tables = settings(
        world,
        tmp_path / "run",
        model={"base": str(world / "model"), "start_from": None},
        data={"validation": str(world / "held_out"), "validation_lq": str(low_quality)},
        optim={"lr": 1e-9},
        train={"steps": 1},
        log={"validate_every": 1},
    )
    _, events = run_here(tables)
    scores = next(event.scores for event in events if isinstance(event, Validated))
    pairs = []
    for name in ("0.png", "1.png"):
        sharp, low = (torch.from_numpy(read_pixels(world / part / name).copy()) for part in ("held_out", "hq"))
        sides = [side // 8 * 8 for side in sharp.shape[:2]]
        pairs.append([t[: sides[0], : sides[1]].permute(2, 0, 1)[None].float() / 255 for t in (low, sharp)])
    assert scores["psnr_y"] == pytest.approx(sum(float(psnr(*pair)) for pair in pairs) / 2, abs=0.01)


def test_validation_has_the_metrics_and_test_sets_of_bench_and_the_best_is_kept(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A reference is larger than four times its input, as published sets have it.
    for name, size in (("test_LR/0_LR4.png", (24, 16)), ("test_LR/1_LR4.png", (20, 24))):
        draw(tmp_path / "set" / name, *size)
    for name, size in (("test_HR/0_HR.png", (98, 64)), ("test_HR/1_HR.png", (80, 99))):
        draw(tmp_path / "set" / name, *size)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "pyiqa.py").write_text(
        "values = [5, 5, 2, 4, 4, 4, 6, 6]\ndef create_metric(name, device): return lambda image: values.pop(0)"
    )
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    monkeypatch.delitem(sys.modules, "pyiqa", raising=False)
    tables = settings(
        world,
        tmp_path / "run",
        model={"base": str(world / "model"), "start_from": None},
        data={"validation": str(tmp_path / "set")},
        optim={"lr": 1e-9},
        train={"steps": 4},
        save={"every": 4, "keep": 1, "best": "PIQE"},
        log={"validate_every": 1, "metrics": ["psnr", "piqe"]},
    )
    result, events = run_here(tables)
    monkeypatch.delitem(sys.modules, "pyiqa")
    scores = [event.scores for event in events if isinstance(event, Validated)]
    assert [each["piqe"] for each in scores] == [5, 3, 4, 6]
    kept = [path.name for path in list_checkpoints(tmp_path / "run")]
    assert (result.best, kept) == (tmp_path / "run" / kept[1], ["step-00000004", "step-00000002"])
    # New weights leave an image as it is.
    report = run_bench(data=tmp_path / "set", model="bicubic", metrics="psnr", device="cpu", cache=tmp_path / "cache")
    assert scores[0]["psnr_y"] == pytest.approx(report.summaries[0].mean, abs=0.05)
    tables["train"]["steps"], tables["save"]["best"], tables["log"] = 5, None, {"validate_every": 0}
    assert run_here(tables, "auto")[0].best == result.best
    assert [path.name for path in list_checkpoints(tmp_path / "run")] == ["step-00000005", "step-00000002"]


@pytest.mark.parametrize(
    ("metrics", "best", "named"), [(["musik"], None, "musiq"), (["fid"], None, "fid"), (["lpips"], "musiq", "musiq")]
)
def test_metrics_that_cannot_be_measured_are_errors_of_the_configuration(
    world: Path, tmp_path: Path, metrics: list[str], best: str | None, named: str
) -> None:
    tables = settings(world, tmp_path, data={"validation": str(world / "held_out")}, log={"metrics": metrics})
    tables["save"]["best"] = best
    with pytest.raises((ConfigError, ValidationError), match=named) as caught:
        check_files(TrainConfig.model_validate(tables))
    assert len(getattr(caught.value, "problems", [1])) == 1


def step_once(tables: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Tensor], Any]:
    """Gradients of the generator and of the heads in a run's first step, and the run."""
    accelerator = Accelerator(cpu=True)
    run = load_run(TrainConfig.model_validate(tables), accelerator, resumed=False)
    stepper = Stepper(accelerator, run.learner, run.config)
    found: list[dict[str, Tensor]] = []
    adversary = run.learner.adversary
    assert adversary is not None

    def keep(*_: Any) -> None:
        for weights in (run.learner.weights, adversary.weights):
            found.append({name: weight.grad.clone() for name, weight in weights.items() if weight.grad is not None})

    run.learner.optimizer.register_step_pre_hook(keep)
    numbers = number_batches(run.config.data.batch_size, 0, 0, 1)
    stepper.take(0, load_batches(run.crops, numbers, 0, torch.device("cpu")), 0)
    return found[0], found[1], run


@pytest.mark.parametrize("parity", [False, True])
def test_the_discriminator_does_not_see_the_generators_gradients(world: Path, tmp_path: Path, parity: bool) -> None:
    tables = settings(
        world,
        tmp_path / "run",
        gan={"parity": parity, "augment": []},
        optim={"clip": 1e9},
        # One number, so that every forward pass of the discriminator sees the same image.
        data={"batch_size": 1},
    )
    _, found, run = step_once(tables)
    fresh = load_run(TrainConfig.model_validate(tables), Accelerator(cpu=True), resumed=False)
    judge: nn.Module = fresh.learner.adversary.discriminator
    batch = next(load_batches(fresh.crops, number_batches(1, 0, 0, 1), 0, torch.device("cpu")))
    draw = [torch.Generator()]
    output = fresh.learner.generator(batch.lq, batch.hq, run.config.train.seed, batch.numbers)
    alone = generator_gan_loss(judge(output.restored, draw))
    generators = torch.autograd.grad(alone * 0.1, list(judge.heads.parameters()), retain_graph=True)
    real, fake = judge(batch.hq, draw), judge(output.restored.detach(), draw)
    own = torch.autograd.grad(discriminator_loss(real, fake), list(judge.heads.parameters()))
    # Published: lambda_GAN multiplies the discriminator's losses too, and the generator's loss leaves its gradients.
    expected = [0.1 * mine + theirs if parity else mine for mine, theirs in zip(own, generators, strict=True)]
    assert max(float(theirs.abs().max()) for theirs in generators) > 1e-3
    for gradient, wanted in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-5)


def test_accumulated_passes_are_one_large_batch(world: Path, tmp_path: Path) -> None:
    common: dict[str, Any] = {"gan": {"augment": []}, "loss": {"dv3cd": 0.0}}
    whole, *_ = step_once(settings(world, tmp_path / "a", data={"batch_size": 4}, optim={"clip": 1e9}, **common))
    parts, *_ = step_once(
        settings(world, tmp_path / "b", data={"batch_size": 1}, optim={"accumulate": 4, "clip": 1e9}, **common)
    )
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-2, atol=2e-4)


def test_the_gan_waits_for_its_step(world: Path, tmp_path: Path) -> None:
    _, events = run_here(settings(world, tmp_path / "run", gan={"start_step": 3}, train={"steps": 5}))
    done = [event for event in events if isinstance(event, StepDone)]
    assert ["gan" in event.losses for event in done] == [False] * 3 + [True] * 2
    table = rows(tmp_path / "run" / "log.csv")
    assert [row["gan"] == "" for row in table] == [True] * 3 + [False] * 2


def test_the_discriminator_can_learn_alone_first(world: Path, tmp_path: Path) -> None:
    tables = settings(
        world,
        tmp_path / "run",
        gan={"start_step": 1, "alone_steps": 2},
        train={"steps": 5},
        save={"every": 1, "keep": 9},
    )
    _, events = run_here(tables)
    done = [event for event in events if isinstance(event, StepDone)]
    assert ["discriminator" in event.losses for event in done] == [False] + [True] * 4
    assert ["total" in event.losses for event in done] == [True, False, False, True, True]
    assert [event.gradient_norm > 0 for event in done] == [True, False, False, True, True]
    states = [tensors(tmp_path / "run" / f"step-0000000{step}") for step in range(1, 6)]
    changed = [
        {name.partition(":")[0] for name in one.keys() & two.keys() if not torch.equal(one[name], two[name])}
        for one, two in pairwise(states)
    ]
    assert changed[0] == {"discriminator.safetensors"}, "its optimiser has no state before"
    assert changed[1] == {"discriminator.safetensors", "optimizer_discriminator.safetensors"}
    for files in changed[2:]:
        assert {"model.safetensors", "weights.safetensors", "discriminator.safetensors"} <= files


def test_windows_and_a_u_net_need_no_feature_network(world: Path, tmp_path: Path) -> None:
    """Judged by windows, the generator learns, and a resumed run equals an uninterrupted one."""
    tables = settings(
        world,
        tmp_path / "run",
        gan={"px": 32, "width": 4},
        loss={"lrr": 0.0, "l1": 0.0, "dv3cd": 0.0, "gan": 1.0, "discriminator": "unet", "backbone_path": None},
        train={"steps": 4},
        save={"every": 2},
    )
    run_here(tables)
    whole = tensors(tmp_path / "run" / "step-00000004")
    assert differing(whole, tensors(tmp_path / "run" / "step-00000002"))
    shutil.rmtree(tmp_path / "run" / "step-00000004")
    result, _ = run_here(tables, resume="auto")
    assert result.checkpoint is not None
    assert differing(tensors(result.checkpoint), whole) == []
    assert "U-Net" in (result.checkpoint / "README.md").read_text()


@pytest.mark.parametrize(
    ("section", "values", "reason"),
    [
        ("gan", {"alone_steps": 8}, "never learns"),
        ("gan", {"start_step": 4, "alone_steps": 4}, "never learns"),
        ("gan", {"px": 128}, "at most data.resolution"),
        ("log", {"noise_pattern": True}, "set data.validation"),
    ],
)
def test_settings_without_effect_are_refused(world: Path, section: str, values: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValidationError, match=reason):
        TrainConfig.model_validate(settings(world, world, **{section: values}))


def test_a_u_net_takes_multiples_of_eight(world: Path) -> None:
    for px, is_right in ((40, True), (36, False)):
        tables = settings(world, world, gan={"px": px}, loss={"discriminator": "unet"})
        if is_right:
            assert TrainConfig.model_validate(tables).gan.px == px
        else:
            with pytest.raises(ValidationError, match="multiples"):
                TrainConfig.model_validate(tables)


def test_the_pattern_on_noise_is_measured_with_the_averages(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "_NOISE_LQ_PX", 64)
    tables = settings(
        world,
        tmp_path / "run",
        data={"validation": str(world / "held_out")},
        train={"steps": 2},
        log={"validate_every": 1, "noise_pattern": True},
    )
    result, events = run_here(tables)
    scores = [event.scores["noise_pattern_db"] for event in events if isinstance(event, Validated)]
    table = rows(tmp_path / "run" / "validation.csv")
    assert [float(row["noise_pattern_db"]) for row in table] == pytest.approx(scores, rel=1e-4)
    assert result.checkpoint is not None
    saved = load_restorer(result.checkpoint, precision="fp32")

    def restore(image: Tensor) -> Tensor:
        return saved.decode(saved.restore(saved.encode(image)))

    assert validation.measure_noise_pattern(restore, torch.device("cpu")) == pytest.approx(scores[-1], abs=0.02)

    def draw_formless(image: Tensor) -> Tensor:
        return torch.randn(image.shape, generator=torch.Generator().manual_seed(0)) * 0.02

    def hatch(image: Tensor) -> Tensor:
        rows, columns = (torch.arange(side, dtype=torch.float32) for side in image.shape[2:])
        return draw_formless(image) + 0.02 * torch.sin((rows[:, None] + columns) * 0.8)

    monkeypatch.setattr(validation, "_NOISE_LQ_PX", 96)
    assert validation.measure_noise_pattern(draw_formless, torch.device("cpu")) < 3
    assert validation.measure_noise_pattern(hatch, torch.device("cpu")) > 6


def poison(monkeypatch: pytest.MonkeyPatch, steps: set[int]) -> None:
    """Make a loss infinite in some steps."""
    take, present = Stepper.take, [0]

    def remember(self: Stepper, step: int, *arguments: Any) -> Any:
        present[0] = step
        return take(self, step, *arguments)

    loss = Adversary.generator_loss

    def poisoned(*arguments: Any) -> Tensor:
        value: Tensor = loss(*arguments)
        return value * (math.inf if present[0] in steps else 1)

    monkeypatch.setattr(Stepper, "take", remember)
    monkeypatch.setattr(Adversary, "generator_loss", poisoned)


def test_a_step_that_is_not_finite_changes_nothing(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {2, 3})
    tables = settings(world, tmp_path / "run", train={"steps": 4, "nan_limit": 3}, save={"every": 1, "keep": 9})
    result, events = run_here(tables)
    assert [event.skipped for event in events if isinstance(event, StepDone)] == [False, False, True, True]
    states = [tensors(tmp_path / "run" / f"step-0000000{step}") for step in (1, 2, 4)]
    assert differing(states[0], states[1])
    changed = {name.partition(":")[0] for name in differing(states[1], states[2])}
    assert changed <= {"discriminator.safetensors"}, "only the spectral norm's vectors may go on"
    assert result.step == 4


def test_too_many_such_steps_end_the_run_and_keep_the_last_checkpoint(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, {2, 4, 5, 6, 7})
    tables = settings(world, tmp_path / "run", train={"steps": 9, "nan_limit": 3}, save={"every": 4})
    with pytest.raises(OmgsrError, match="3 consecutive steps were not finite, the last of them step 7") as told:
        run_here(tables)
    assert str(tmp_path / "run" / "step-00000004") in str(told.value.hint)
    state = tensors(tmp_path / "run" / "step-00000004")
    assert all(bool(value.isfinite().all()) for value in state.values() if value.is_floating_point())


def test_a_folder_with_checkpoints_needs_resume(world: Path, tmp_path: Path) -> None:
    tables = settings(world, tmp_path / "run", train={"steps": 1})
    run_here(tables)
    with pytest.raises(UsageError, match="contains checkpoints"):
        run_here(tables)
    result, events = run_here(tables, resume="auto")
    assert result.step == 1
    assert not [event for event in events if isinstance(event, StepDone | Saved)]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_learning_rate_is_a_function_of_the_step(schedule: Any) -> None:
    shares = [learning_rate_share(step, 100, schedule, 10) for step in range(100)]
    assert shares[:10] == [pytest.approx((step + 1) / 10) for step in range(10)]
    assert shares[10] == 1
    assert shares[-1] == pytest.approx(1 if schedule == "constant" else 0.02)
    assert all(one >= two for one, two in pairwise(shares[10:]))
    middle = {"constant": 1.0, "linear": 1 - 0.98 * 45 / 89, "cosine": 0.02 + 0.49 * (1 + math.cos(math.pi * 45 / 89))}
    assert shares[55] == pytest.approx(middle[schedule])
    assert learning_rate_share(0, 1, schedule, 0) == 1
    assert OptimConfig(schedule=schedule, warmup_steps=10).warmup_steps == 10


def test_a_table_of_a_resumed_run_continues(tmp_path: Path) -> None:
    log = CsvLog(tmp_path / "log.csv", ["l1", "gan"], 0)
    for step in (1, 2, 3):
        log.write(step, {"l1": step / 3, "unknown": 1.0})
    with open(log.path, "a") as file:
        file.write("4,0.")
    again = CsvLog(log.path, ["lrr", "l1"], 2)
    again.write(3, {"l1": 9.0, "lrr": 1.0})
    assert [dict(row) for row in rows(log.path)] == [
        {"step": "1", "l1": "0.333333", "gan": "", "lrr": ""},
        {"step": "2", "l1": "0.666667", "gan": "", "lrr": ""},
        {"step": "3", "l1": "9", "gan": "", "lrr": "1"},
    ]
    assert rows(CsvLog(log.path, ["l1"], 0).path) == []


def test_means_are_over_the_steps_that_have_the_loss() -> None:
    means = Means()
    means.add({"l1": 1.0})
    means.add({"l1": 2.0, "gan": 4.0})
    assert means.take() == {"l1": 1.5, "gan": 4.0}
    assert means.take() == {}


def test_teacher_targets_are_computed_once(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = {
        "model": str(world / "model"),
        "weight": 2.0,
        "dists": 0.5,
        "encoder": 0.3,
        "crops": 5,
        "cache": str(tmp_path / "kept"),
    }
    noise = {"lq_noise": {"probability": 0.5}}
    tables = settings(world, tmp_path / "run", loss={"gan": 0.0, "teacher": teacher}, degradation=noise)
    tables["train"]["steps"] = 2
    _, events = run_here(tables)
    done = [event for event in events if isinstance(event, StepDone)]
    assert set(done[0].losses) == {"lrr", "l1", "dv3cd", "teacher", "teacher_dists", "teacher_encoder", "total"}
    weights = {"lrr": 1.0, "l1": 1.0, "dv3cd": 0.5, "teacher": 2.0, "teacher_dists": 0.5, "teacher_encoder": 0.3}
    expected = sum(weight * done[0].losses[name] for name, weight in weights.items())
    assert done[0].losses["total"] == pytest.approx(expected, rel=1e-5)
    assert len(list((tmp_path / "kept").iterdir())) == 5
    monkeypatch.setattr("omgsr_cli.training.loop.load_teacher", lambda *_: pytest.fail("its images were all there"))
    run_here(tables | {"save": {"out": str(tmp_path / "again")}})


def test_the_bundled_recipe_with_a_teacher_runs_with_workers(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, parent = ROOT, os.getpid()
    tables = tomllib.loads((root / "recipes" / "omgsr_tiny" / "teach.toml").read_text())
    # What is smaller or faster here; perceptual losses need weights that only the recipe's reader has.
    tables["model"] = {"start_from": str(world / "model")}
    tables["data"] |= {"train": [str(world / "hq")], "resolution": 48, "batch_size": 2, "cache": str(tmp_path / "px")}
    teacher = {"model": str(world / "model"), "crops": 12, "cache": str(tmp_path / "kept")}
    del tables["loss"]["lpips_path"]
    tables["loss"]["teacher"] |= teacher | {"lpips": 0.0, "dists": 0.0, "precision": "fp32"}
    tables["train"] |= {"steps": 5, "precision": "fp32"}
    tables["optim"]["warmup_steps"] = 0
    tables["save"]["out"] = str(tmp_path / "run")
    assert tables["data"]["workers"] > 0

    def degrade_otherwise(*arguments: Any, **options: Any) -> Tensor:
        lq = degrade(*arguments, **options)
        return lq if os.getpid() == parent else (lq + 1 / 255).clamp(0, 1)

    monkeypatch.chdir(root)
    monkeypatch.setattr("omgsr_cli.training.data.degrade", degrade_otherwise)
    assert run_here(tables)[0].step == 5
    assert len(list((tmp_path / "kept").iterdir())) == 12


def test_a_signal_stops_the_run_while_the_teacher_works(world: Path, tmp_path: Path) -> None:
    teacher = {"model": str(world / "model"), "crops": 5, "cache": str(tmp_path / "kept")}
    tables = settings(world, tmp_path / "run", loss={"gan": 0.0, "teacher": teacher})

    def stop(event: Event) -> None:
        if isinstance(event, Noticed) and "the teacher" in event.text:
            os.kill(os.getpid(), signal.SIGTERM)

    result = train(TrainConfig.model_validate(tables), report=stop)
    assert (result.step, result.signal, result.checkpoint) == (0, signal.SIGTERM, None)
    assert len(list((tmp_path / "kept").iterdir())) == 1, "the image that was being made is kept"
    tables["train"]["steps"] = 1
    assert run_here(tables)[0].step == 1


def load_run_crops(tables: Any) -> TrainingCrops:
    config = TrainConfig.model_validate(tables)
    options = build_crop_options(config)
    return TrainingCrops(find_training_images(config.data.train, None, options.data.resolution, "skip"), options, 0)


def load_folder(folder: Path) -> Trainable:
    source = find_trainable(start_from=str(folder))
    return load_trainable(source, torch.device("cpu"), start_from=str(folder))


def test_training_can_start_from_pretrained_weights(world: Path, tmp_path: Path) -> None:
    weights = {"lrr": 0.0, "l1": 0.0, "dv3cd": 0.0, "gan": 0.0, "denoise": 1.0}
    tables = settings(world, tmp_path / "pre", loss=weights, train={"steps": 30}, optim={"lr": 2e-2})
    result, events = run_here(tables)
    done = [event.losses for event in events if isinstance(event, StepDone)]
    assert set(done[0]) == {"denoise", "total"}
    assert build_crop_options(TrainConfig.model_validate(tables)).degradations == ()
    assert result.checkpoint is not None
    hq = torch.stack([crop for _, _, crop in (load_run_crops(tables)[number] for number in range(8))])
    # The same noise at the same timesteps: those of each step differ too much for their losses to be compared.
    before, after = (
        float(Denoising(load_folder(folder))(hq, hq, 0, range(8)).detach().mean())
        for folder in (world / "model", result.checkpoint)
    )
    assert after < 0.96 * before
    begun, learned = (load_file(folder / "model.safetensors") for folder in (world / "model", result.checkpoint))
    changed = {name.split(".")[0] for name in begun if not torch.equal(begun[name], learned[name])}
    assert changed == {"unet"}, "the encoder has no part in it"
    tables = settings(world, tmp_path / "run", model={"start_from": str(result.checkpoint)}, train={"steps": 1})
    assert run_here(tables)[0].step == 1
    with pytest.raises(ValidationError, match="pre-training has no other loss"):
        TrainConfig.model_validate(settings(world, tmp_path / "no", loss=weights | {"l1": 1.0}))


def test_an_automatic_mid_timestep_is_measured_once_and_kept(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = settings(world, tmp_path / "run", loss={"gan": 0.0, "dv3cd": 0.0})
    tables["model"]["mid_timestep"] = "auto"
    tables["train"]["steps"] = 1
    result, _ = run_here(tables)
    found = json.loads((tmp_path / "run" / "mid_timestep.json").read_text())
    assert found["images"] == 3
    assert len(found["curve"]) == 1000
    assert result.checkpoint is not None
    assert json.loads((result.checkpoint / "omgsr.json").read_text())["mid_timestep"] == found["mid_timestep"]
    monkeypatch.setattr("omgsr_cli.training.model.find_mid_timestep", lambda *_, **__: pytest.fail("again"))
    tables["train"]["steps"] = 2
    again, _ = run_here(tables, resume="auto")
    assert again.step == 2
