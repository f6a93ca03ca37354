"""The registry of families: one that nobody knew goes through every command."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from blur_family import BlurFamily, write_blur
from command_line import Command, draw, pixels, size_of
from PIL import Image

from omgsr_cli.errors import ModelError
from omgsr_cli.models import families
from omgsr_cli.models.loading import load_restorer


@pytest.fixture(autouse=True)
def blur(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one registry line of a new family."""
    monkeypatch.setitem(families.FAMILIES, "blur", BlurFamily())  # type: ignore[misc]  # it has no adapters to merge


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_blur(tmp_path / "blur", 1.0)


def test_it_is_a_restorer(model: Path) -> None:
    restorer = load_restorer(model, device="cpu")
    image = torch.rand(1, 3, 5, 7)
    assert torch.equal(restorer.decode(restorer.encode(image)), image)
    assert restorer.info.scale == 2


def test_it_upscales(tmp_path: Path, model: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
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


def test_it_has_a_mid_timestep(tmp_path: Path, model: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    timestep = Command(capfdbinary, "timestep")
    for number in range(3):
        draw(tmp_path / "hq" / f"{number}.png", width=50 + number, height=40)
    (record,) = timestep(
        "--data", tmp_path / "hq", "--model", model, "--resolution", "33", "--device", "cpu", "--json"
    ).records
    assert record["samples"] == 3
    assert 0 <= record["mid_timestep"] <= 999


def test_a_record_of_a_family_that_is_not_here(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(families.FAMILIES, "blur")
    with pytest.raises(ModelError, match="model family 'blur' is not known") as caught:
        load_restorer(model, device="cpu")
    assert caught.value.hint == "families: tiny, sd"


@pytest.mark.parametrize("name", ["tiny", "sd"])
def test_every_family_says_what_it_is_made_of(name: str) -> None:
    family = families.FAMILIES[name]
    assert family.name == name
    assert all(isinstance(pattern, str) for pattern in (*family.small_files, *family.adapter_parts))
    assert not family.recognises(Path("nowhere"))


def test_the_adapter_that_is_nearest_explains_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "unet_lora_adapter").mkdir()
    assert families.recognise_adapter(tmp_path) is None
    assert families.nearest_adapter(tmp_path).name == "sd"
    (tmp_path / "vae_encoder_lora_adapter").mkdir()
    found = families.recognise_adapter(tmp_path)
    assert found is not None
    assert found.name == "sd"
