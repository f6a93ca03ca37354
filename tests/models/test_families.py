"""The registry of families: a new one works in every command."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from blur_family import BlurFamily, write_blur
from command_line import Command, draw, pixels, size_of, write_tiny_model
from PIL import Image
from places import ROOT
from random_flux import write_flux_model
from random_sd import write_sd_model
from safetensors.torch import load_file, save_file
from training_run import run_here, settings, write_images

from omgsr_cli.models import families
from omgsr_cli.models.base import Trainable
from omgsr_cli.models.loading import load_restorer, load_trainable
from omgsr_cli.models.lora import LoraOptions
from omgsr_cli.models.record import ModelRecord, write_record
from omgsr_cli.models.sources import find_trainable
from omgsr_cli.training.model import Generator

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def blur(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one registry line of a new family."""
    monkeypatch.setitem(families.FAMILIES, "blur", BlurFamily())


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_blur(tmp_path / "blur", 1.0)


def test_a_new_family_upscales(tmp_path: Path, model: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    upscale = Command(capfdbinary, "upscale")
    source = draw(tmp_path / "a.png", width=61, height=50)
    said = upscale(source, "--model", model, "-o", tmp_path / "out.png", "--tile", "64", "--device", "cpu")
    assert said.code == 0, said.err
    assert size_of(tmp_path / "out.png") == (122, 100)
    with Image.open(source) as image:
        enlarged = np.asarray(image.resize((122, 100), Image.Resampling.BICUBIC)).astype(float)
    padded = np.pad(enlarged, ((1, 1), (1, 1), (0, 0)), "edge")
    mean = sum(padded[y : y + 100, x : x + 122] for y in range(3) for x in range(3)) / 9
    assert np.abs(pixels(tmp_path / "out.png") - mean).max() <= 0.51
    (plan,) = upscale(source, "--model", model, "-o", tmp_path / "b.png", "--dry-run", "--json").records
    assert (plan["overlap_px"], plan["tiles"]) == (1, 1)


def test_a_new_family_has_a_mid_timestep(
    tmp_path: Path, model: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    timestep = Command(capfdbinary, "timestep")
    for number in range(3):
        draw(tmp_path / "hq" / f"{number}.png", width=50 + number, height=40)
    (record,) = timestep(
        "--data", tmp_path / "hq", "--model", model, "--resolution", "33", "--device", "cpu", "--json"
    ).records
    assert record["samples"] == 3
    assert 0 <= record["mid_timestep"] <= 999


def test_a_new_family_trains_and_its_checkpoint_upscales(
    tmp_path: Path, model: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    tables = settings(
        tmp_path,
        tmp_path / "run",
        model={"start_from": str(model)},
        data={"train": [str(write_images(tmp_path / "hq"))], "resolution": 32, "batch_size": 2, "workers": 0},
        loss={"lrr": 0.0, "l1": 1.0, "dv3cd": 0.0, "gan": 0.0, "backbone_path": None},
        train={"steps": 2, "ema": 0.0},
        save={"every": 2},
    )
    result, _ = run_here(tables)
    assert result.checkpoint is not None
    share = load_file(result.checkpoint / "blur.safetensors")["share"]
    assert float(share) < 1.0, "a blur of what is blurred already brings nothing: less of it is better"
    upscale = Command(capfdbinary, "upscale")
    said = upscale(draw(tmp_path / "a.png"), "--model", result.checkpoint, "-o", tmp_path / "b.png", "--device", "cpu")
    assert said.code == 0, said.err


def saved_model(name: str, tmp_path: Path) -> tuple[Trainable, Path]:
    """A model of a family to train on from the weights in a folder."""
    if name in ("sd", "flux"):
        folder = (write_sd_model if name == "sd" else write_flux_model)(tmp_path / "base")
        lora = LoraOptions(vae_rank=2, backbone_rank=2)
        return load_trainable(find_trainable(base=str(folder), lora=lora), CPU, lora=lora), folder
    folder = tmp_path / "base"
    folder = write_blur(folder, 0.5) if name == "blur" else write_tiny_model(folder)
    return load_trainable(find_trainable(start_from=str(folder)), CPU, start_from=str(folder)), folder


@pytest.mark.parametrize("name", ["tiny", "sd", "flux", "blur"])
def test_trained_weights_equal_loaded_ones(name: str, tmp_path: Path) -> None:
    """Two steps through encode, restore and decode, saved and read by what users call, give the same images."""
    trainable, folder = saved_model(name, tmp_path)
    before = load_restorer(folder, device="cpu", precision="fp32")
    generator = Generator(trainable)
    lq, hq = (torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1 for seed in (0, 1))
    optimizer = torch.optim.AdamW(trainable.trained().values(), lr=0.05)
    for step in range(2):
        output = generator(lq, hq, 3, (2 * step, 2 * step + 1))
        loss = (output.restored - hq).abs().mean() + (output.noisy_latent - output.lq_latent).square().mean()
        optimizer.zero_grad()
        loss.backward()
        assert all(weight.grad is not None for weight in trainable.trained().values())
        optimizer.step()
    trainable.save(tmp_path / "saved")
    after = load_restorer(tmp_path / "saved", device="cpu", precision="fp32")
    with torch.inference_mode():
        untrained, loaded = (model.decode(model.restore(model.encode(lq))) for model in (before, after))
    torch.testing.assert_close(loaded, generator.restore(lq), rtol=1e-4, atol=2e-4)
    assert (loaded - untrained).abs().max() > 0.01, "the steps changed nothing"
    assert after.info.mid_timestep == trainable.restorer.info.mid_timestep


def test_the_nearest_adapter_format_explains_the_mismatch(tmp_path: Path) -> None:
    (tmp_path / "unet_lora_adapter").mkdir()
    assert families.recognise_adapter(tmp_path) is None
    assert families.nearest_adapter(tmp_path).name == "sd"
    (tmp_path / "vae_encoder_lora_adapter").mkdir()
    found = families.recognise_adapter(tmp_path)
    assert found is not None
    assert found.name == "sd"


def test_the_family_of_the_contributing_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    entry, code = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.S)
    module = ModuleType("omgsr_cli.models.soft")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(compile(code, "soft.py", "exec"), vars(module))
    registry = dict(vars(families))
    exec(compile(f"from __future__ import annotations\n{entry}", "families.py", "exec"), registry)
    monkeypatch.setitem(families.FAMILIES, "soft", registry["SoftFamily"]())
    folder = tmp_path / "soft"
    folder.mkdir()
    save_file({"share": torch.tensor(0.5)}, folder / "model.safetensors")
    write_record(ModelRecord(family="soft", mid_timestep=20, native_tile_px=64), folder)
    upscale, source = Command(capfdbinary, "upscale"), draw(tmp_path / "a.png", width=33, height=25)
    for name, options in (("whole.png", []), ("tiled.png", ["--tile", "64"])):
        said = upscale(source, "--model", folder, "-o", tmp_path / name, "--device", "cpu", *options)
        assert said.code == 0, said.err
    assert size_of(tmp_path / "tiled.png") == (132, 100)
    assert np.array_equal(pixels(tmp_path / "tiled.png"), pixels(tmp_path / "whole.png"))
