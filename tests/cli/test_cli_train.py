"""`omgsr train` at the command line: configurations, their errors, a run, and its checkpoint in `upscale`."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path

import numpy as np
import pytest
from command_line import Command, draw, files_below, pixels
from places import GOLDEN
from random_sd import write_sd_model
from safetensors.torch import load_file

from omgsr_cli.training.config import PRESET_CONFIGS, TrainConfig, format_config, read_preset_config


@pytest.fixture
def upscale(capfdbinary: pytest.CaptureFixture[bytes]) -> Command:
    return Command(capfdbinary, "upscale")


def write_config(folder: Path, world: Path, more: str = "") -> Path:
    path = folder / "config.toml"
    path.write_text(
        f"""
[model]
start_from = "{world / "model"}"
[data]
train = ["{world / "hq"}"]
resolution = 64
workers = 0
[loss]
dv3cd = 0.0
gan = 0.0
[optim]
accumulate = 1
[train]
steps = 2
precision = "fp32"
threads = 1
[save]
out = "{folder / "run"}"
{more}"""
    )
    return path


@pytest.mark.parametrize("name", PRESET_CONFIGS)
def test_a_printed_configuration_is_complete_and_valid(train: Command, name: str) -> None:
    said = train("--print-config", name)
    assert said.code == 0
    table = tomllib.loads(said.out.decode())
    config = TrainConfig.model_validate(table)
    assert config.model.preset == name
    assert TrainConfig.model_validate(tomllib.loads(format_config(config))) == config
    text = read_preset_config(name)
    for section in ("data", "loss", "optim", "train", "save", "log"):
        missing = [key for key in type(getattr(config, section)).model_fields if f"\n{key} = " not in text]
        assert [key for key in missing if f"# {key} = " not in text and f"# [{section}.{key}]" not in text] == []


def test_the_printed_configuration_of_the_bundled_model_needs_photographs_alone(
    train: Command, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.toml").write_bytes(train("--print-config", "omgsr-tiny").out)
    side = TrainConfig.model_validate(tomllib.loads((tmp_path / "config.toml").read_text())).data.resolution
    (tmp_path / "photos").mkdir()
    draw(tmp_path / "photos" / "0.png", side + 8, side + 4)
    checked = train("config.toml", "--check", "--json", "--set", "data.workers=0", "--set", "data.batch_size=1")
    assert (checked.code, checked.errors) == (0, [])
    assert checked.records[0]["images"] == 1


def test_check_lists_every_missing_piece_at_once(
    train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    draw(tmp_path / "photos" / "0.png", 530, 530)
    said = train("omgsr-s-512", "--check", "--set", "train.gradient_checkpointing=false")
    assert said.code == 1
    assert [piece for piece in ("stable-diff", "dinov3") if piece not in said.err] == []


def test_the_schema_describes_every_key(train: Command) -> None:
    schema = json.loads(train("--schema").out)
    assert schema["properties"].keys() == TrainConfig.model_fields.keys()
    assert schema["$defs"]["DataConfig"]["properties"]["train"]["description"]


def keys_of(errors: list[str]) -> list[str]:
    return sorted(line.removeprefix("error: ").partition(": ")[0] for line in errors)


def test_wrong_values_are_reported_at_once_and_then_what_does_not_fit_or_exist(
    train: Command, tmp_path: Path, world: Path
) -> None:
    wrong = ("data.resolutoin=64", "degradation.presets={ reference = 0.5, light = 0.4 }", "optim.lr=fast")
    wrong += ("optim.warmup_steps=-5", "train.precision=fp16", "gan.real_label=0.0")
    options = [word for change in wrong for word in ("--set", change)]
    for more in ([], ["--check"]):
        said = train(write_config(tmp_path, world), *options, *more)
        assert said.code == 2
        assert keys_of(said.errors) == sorted(change.partition("=")[0] for change in wrong)
        for hint in ("did you mean resolution?", "sum to 0.9", "-5", "fast", "bf16 or fp32"):
            assert hint in said.err
    conflicts = ("log.noise_pattern=true", "optim.warmup_steps=9", "data.resolution=66")
    said = train(write_config(tmp_path, world), *[word for change in conflicts for word in ("--set", change)])
    assert keys_of(said.errors) == ["data.resolution", "log.noise_pattern", "optim.warmup_steps"]
    missing = ("data.train=nowhere", "loss.lpips_path=nowhere", "log.metrics=musik", "degradation.presets={ no = 1.0 }")
    said = train(write_config(tmp_path, world), *[word for change in missing for word in ("--set", change)])
    assert keys_of(said.errors) == sorted(change.partition("=")[0] for change in missing)


def test_a_nested_table_has_its_own_keys(train: Command, tmp_path: Path, world: Path) -> None:
    config = write_config(tmp_path, world, '[loss.teacher]\nmodel = "omgsr-tiny"\nsigma = 3.0\n')
    said = train(config)
    assert said.code == 2
    assert "did you mean sigma_px? [loss.teacher] has model, weight" in said.errors[0]


def test_the_model_in_the_folder_of_a_run_is_recognised(upscale: Command, tmp_path: Path, world: Path) -> None:
    run = tmp_path / "run"
    for step in ("step-00000002", "step-00000010"):
        (run / step).mkdir(parents=True)
        (run / step / "omgsr.json").write_text("{}")
    said = upscale(draw(tmp_path / "a.png"), "--model", run)
    assert (said.code, said.errors) == (
        1,
        [f"error: {run} is not a model folder: no omgsr.json and no unet/config.json"],
    )
    assert f"hint: {run / 'step-00000010'} is one" in said.err
    weights = run / "step-00000010" / "model.safetensors"
    weights.write_bytes(b"")
    said = upscale(draw(tmp_path / "a.png"), "--model", weights)
    assert (said.code, said.errors) == (1, [f"error: {weights} is a file, but a model is a folder"])
    assert f"{weights.parent}\n" in said.err


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("lr=1e-4", "did you mean gan.lr or optim.lr?"),
        ("model.mid_timestep=1000", 'from 0 to 999, or "auto"'),
        ("model.mid_timestep=soon", 'from 0 to 999, or "auto"'),
        ("data.scale=large", "should be a number from 1 to 16, or a table"),
        ("optim.schedule=cosin", "did you mean cosine?"),
        ("log.trackers=wandb", "should be a list"),
        ("optim.betas=[0.9]", "optim.betas.1"),
        ("model.start_from=.", "the folder has no omgsr.json"),
        ("loss.teacher.model=nobody", "no model is called 'nobody'"),
        ("loss.teacher.model=.", "is not a model folder"),
    ],
)
def test_each_of_these_is_one_error(train: Command, tmp_path: Path, world: Path, change: str, reason: str) -> None:
    said = train(write_config(tmp_path, world), "--set", "model.preset=omgsr-tiny", "--set", change, "--check")
    assert (said.code, len(said.errors)) == (2, 1)
    assert said.errors[0].startswith(f"error: {change.partition('=')[0]}")
    assert reason in said.errors[0]


def test_an_unreadable_teacher_is_refused(
    train: Command, tmp_path: Path, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teacher = tmp_path / "teacher.safetensors"
    teacher.write_bytes(b"")
    monkeypatch.setattr("omgsr_cli.training.check.find_spec", lambda name: None)
    said = train(write_config(tmp_path, world), "--set", f"loss.teacher.model={teacher}", "--check")
    assert (said.code, len(said.errors)) == (2, 1)
    assert "spandrel, which reads it, is not installed" in said.errors[0]


def test_unknown_names_are_reported_with_the_known_ones(train: Command, tmp_path: Path, world: Path) -> None:
    config = write_config(tmp_path, world)
    for option, reason in (
        ("model.preset=omgsr-tinny", "did you mean omgsr-tiny?"),
        ("loss.backbone=dinov2", "loss.backbone: dinov2"),
    ):
        said = train(config, "--set", option, "--set", "loss.dv3cd=1")
        assert (said.code, len(said.errors)) == (2, 1)
        assert reason in said.err
    said = train(config, "--set", "model.preset=omgsr-tiny", "--set", "model.base=x")
    assert (said.code, len(said.errors)) == (2, 1)
    assert "omgsr-tiny has no base model" in said.err


def test_check_takes_steps_and_writes_nothing(train: Command, tmp_path: Path, world: Path) -> None:
    said = train(write_config(tmp_path, world), "--check", "--json", "--device", "cpu")
    assert said.code == 0, said.err
    (record,) = said.records
    assert record["images"] == 3
    weights = load_file(world / "model" / "model.safetensors")
    learned = sum(weight.numel() for name, weight in weights.items() if not name.startswith("latents."))
    assert record["parameters"] == record["trained"] == learned
    assert 0 < record["step_seconds"] < 60
    # Weights, gradients and two averages are the least.
    assert record["memory_bytes"] > 16 * record["trained"]
    assert files_below(tmp_path) == ["config.toml"]


def test_a_run_its_checkpoint_and_their_use(train: Command, upscale: Command, tmp_path: Path, world: Path) -> None:
    config = write_config(tmp_path, world)
    said = train(config, "--device", "cpu")
    assert said.code == 0, said.err
    checkpoint = tmp_path / "run" / "step-00000002"
    assert said.lines == [str(checkpoint)]
    assert "2 of 2: lrr" in said.err
    names = {path.name for path in checkpoint.iterdir()}
    assert {"omgsr.json", "state.json", "config.toml", "README.md", "manifest.json", "model.safetensors"} <= names
    image = draw(tmp_path / "small.png")
    assert upscale(image, "-o", tmp_path / "large.png", "--model", checkpoint, "--device", "cpu").code == 0

    again = train(config, "--device", "cpu", "--set", "train.steps=3", "--json")
    assert [record["step"] for record in again.records if record["event"] == "step"] == [3]
    merged = train(config, "--export", "merged", tmp_path / "merged")
    assert (merged.code, merged.lines) == (0, [str(tmp_path / "merged")])
    assert upscale(image, "-o", tmp_path / "m.png", "--model", tmp_path / "merged", "--device", "cpu").code == 0
    assert train(config, "--export", "merged", tmp_path / "merged").code == 2, "nothing is overwritten"


def test_the_measured_timestep_is_trained(
    train: Command, capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path, world: Path
) -> None:
    config = write_config(tmp_path, world)
    crops = ("--data", world / "hq", "--model", world / "model", "--device", "cpu", "--resolution", "32")
    said = Command(capfdbinary, "timestep")(*crops, "--json", "--write", config)
    found = said.records[0]["mid_timestep"]
    before = json.loads((world / "model" / "omgsr.json").read_text())["mid_timestep"]
    assert found != before, "the test needs another one than the model's own"
    assert tomllib.loads(config.read_text())["model"]["mid_timestep"] == found
    assert train(config, "--device", "cpu", "--set", "train.steps=1").code == 0
    record = json.loads((tmp_path / "run" / "step-00000001" / "omgsr.json").read_text())
    assert record["mid_timestep"] == found


def test_an_adapter_of_the_sd_kit_learns_and_is_used(train: Command, upscale: Command, tmp_path: Path) -> None:
    base = write_sd_model(tmp_path / "base")
    config = tmp_path / "sd.toml"
    config.write_text(
        f"""
model = {{ base = "{base}" }}
lora = {{ vae_rank = 2, backbone_rank = 2 }}
data = {{ train = "{GOLDEN / "sd" / "pairs" / "hq"}", resolution = 32, on_small = "resize", workers = 0 }}
loss = {{ dv3cd = 1.0, gan = 0.0, backbone = "{GOLDEN / "dv3cd" / "backbone"}" }}
optim = {{ lr = 1e-2, accumulate = 1 }}
train = {{ steps = 2, precision = "fp32", threads = 1 }}
save = {{ out = "{tmp_path / "run"}" }}
"""
    )
    said = train(config, "--device", "cpu", "--json")
    assert said.code == 0, said.err
    losses = next(record for record in said.records if record["event"] == "step")["losses"]
    assert losses.keys() == {"lrr", "l1", "dv3cd", "total"}
    checkpoint = tmp_path / "run" / "step-00000002"
    card = (checkpoint / "README.md").read_text()
    assert "structure-texture distance on DINOv3-ConvNeXt" in card
    assert str(GOLDEN) not in card
    image = draw(tmp_path / "small.png")
    common = ("--scale", "1", "--device", "cpu", "--color-fix", "none")
    for name, model in (("a", ("--model", checkpoint)), ("b", ("--base", base, "--adapter", checkpoint))):
        made = upscale(image, "-o", tmp_path / f"{name}.png", *model, *common)
        assert made.code == 0, made.err
    assert np.array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))
    before = load_file(checkpoint / "unet_lora_adapter" / "adapter_model.safetensors")
    assert max(float(value.abs().max()) for name, value in before.items() if "lora_B" in name) > 0
    refused = train(config, "--set", "lora.vae_rank=3")
    assert refused.code == 2
    assert "rank 2" in refused.errors[0]


def test_all_unreadable_headers_are_named_before_the_first_step(train: Command, world: Path, tmp_path: Path) -> None:
    shutil.copytree(world / "hq", tmp_path / "hq")
    held_out = tmp_path / "held_out"
    shutil.copytree(world / "hq", held_out)
    for name, content in (("x.png", b""), ("y.jpg", b"no image"), ("z.webp", b"RIFF")):
        (tmp_path / "hq" / name).write_bytes(content)
    (held_out / "w.png").write_bytes(b"")
    sets = [f"data.train=['{tmp_path / 'hq'}']", f"data.validation={held_out}", "log.validate_every=1"]
    options = [part for each in sets for part in ("--set", each)]
    checked = train(write_config(tmp_path, world), *options, "--check")
    assert (checked.code, checked.out) == (1, b"")
    for name in ("x.png", "y.jpg", "z.webp", "w.png"):
        assert sum(name in line for line in checked.errors[:-1]) == 1, name
    said = train(write_config(tmp_path, world), *options)
    assert (said.code, said.out) == (1, b"")
    assert all(any(name in line for line in said.errors) for name in ("x.png", "y.jpg", "z.webp", "w.png"))
    assert "4 of 10" in said.errors[-1]
    assert not list((tmp_path / "run").glob("step-*"))


def test_resuming_with_other_settings_lists_them(train: Command, world: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, world)
    assert train(config).code == 0
    said = train(config, "--set", "train.steps=1")
    assert (said.code, said.out) == (2, b"")
    assert "train.steps is 1" in said.errors[-1]
    said = train(config, "--set", "train.steps=3", "--set", "optim.lr=1e-5", "--json")
    started = next(event for event in said.records if event["event"] == "started")
    assert started["changed"] == {"optim.lr": [5e-5, 1e-5], "train.steps": [2, 3]}
    assert said.records[-1]["broken_images"] == 0
    assert "optim.lr was 5e-05, now 1e-05" in said.err
