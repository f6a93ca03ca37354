"""Restoration networks of other projects: their own call, tiles that equal the whole, and what they cannot do."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import stand_in_spandrel
import torch
from command_line import Command, draw
from hub_server import Hub, Repository, serve_hub
from huggingface_hub import constants
from PIL import Image
from stand_in_spandrel import write_network

from omgsr_cli import load, upscale_image
from omgsr_cli.errors import ModelError
from omgsr_cli.geometry import Size
from omgsr_cli.models.network import MARGINS_PX, measure_margin, read_network
from omgsr_cli.models.sources import find_model
from omgsr_cli.options import ModelOptions, RestoreOptions
from omgsr_cli.presets import NETWORKS, NetworkFile
from omgsr_cli.training.teacher import load_teacher
from omgsr_cli.upscaling import upscale_image as upscale_tensor

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def spandrel(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in_spandrel.install(monkeypatch)


@pytest.fixture
def upscale(capfdbinary: pytest.CaptureFixture[bytes]) -> Command:
    return Command(capfdbinary)


def restore_directly(path: Path, image: torch.Tensor) -> torch.Tensor:
    network = read_network(path)
    with torch.inference_mode():
        if network.input_channels == 1:
            return network(image[:, None])[:, 0]
        return network(image[None])[0]


@pytest.mark.parametrize(("channels", "scale"), [(3, 4), (3, 2), (3, 1), (1, 1), (1, 3)])
def test_whole_and_tiled_images_equal_the_networks_own_call(channels: int, scale: int, tmp_path: Path) -> None:
    path = write_network(tmp_path / "net.safetensors", channels=channels, scale=scale)
    model = load(str(path), device="cpu")
    assert (model.info.scale, model.info.family) == (scale, "network")
    image = torch.rand(3, 150, 91, generator=torch.Generator().manual_seed(1))
    wanted = restore_directly(path, image).clamp(0, 1)
    size = Size(150 * scale, 91 * scale)
    whole = upscale_tensor(model, image, size)
    torch.testing.assert_close(whole, wanted, atol=1e-5, rtol=0)
    tiled = upscale_tensor(model, image, size, RestoreOptions(tile=64, batch=2))
    torch.testing.assert_close(tiled, wanted, atol=1e-5, rtol=0)


def test_margins_are_measured_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = (write_network(tmp_path / f"{layers}.safetensors", layers=layers) for layers in (3, 20))
    assert measure_margin(read_network(near), 1) == MARGINS_PX[0]
    pooled = write_network(tmp_path / "pooled.safetensors", pooled=True)
    assert measure_margin(read_network(pooled), 1) == 0
    first = load(str(far), device="cpu").info
    monkeypatch.setattr("omgsr_cli.models.network.measure_margin", lambda *_: pytest.fail("it was kept"))
    assert load(str(far), device="cpu").info == first


def test_a_network_that_sees_the_whole_image_is_blended(tmp_path: Path) -> None:
    path = write_network(tmp_path / "pooled.safetensors", pooled=True, scale=2)
    model = load(str(path), device="cpu")
    assert model.info.step.tiling == "blended"
    image = torch.full((3, 90, 170), 0.25)
    image[:, :, 60:] = 0.4
    whole = upscale_tensor(model, image, Size(180, 340))
    tiled = upscale_tensor(model, image, Size(180, 340), RestoreOptions(tile=64))
    assert tiled.shape == whole.shape == (3, 180, 340)
    # Tiles differ in what they see, but fade into each other.
    assert not torch.equal(tiled, whole)
    inside = tiled[:, 20:-20, 20:100]
    assert float(inside.diff(dim=2).abs().max()) < 0.05


def test_the_command_upscales_with_a_file(upscale: Command, tmp_path: Path) -> None:
    path = write_network(tmp_path / "2x-net.safetensors", scale=2)
    draw(tmp_path / "a.png", 37, 22)
    said = upscale(tmp_path / "a.png", "-o", tmp_path / "b.png", "--model", path)
    assert said.code == 0, said.err
    source = torch.from_numpy(np.array(Image.open(tmp_path / "a.png"))).permute(2, 0, 1).float() / 255
    wanted = (restore_directly(path, source).clamp(0, 1) * 255).round().permute(1, 2, 0).numpy()
    with Image.open(tmp_path / "b.png") as image:
        assert image.size == (74, 44)
        assert np.abs(np.array(image).astype(float) - wanted).max() <= 1
    # Another scale than its own, and nothing is restored twice.
    said = upscale(tmp_path / "a.png", "-o", tmp_path / "c.png", "--model", path, "--scale", "3", "--json")
    assert said.records[0]["restored_size"] == [74, 44]
    assert Image.open(tmp_path / "c.png").size == (111, 66)
    again = upscale(tmp_path / "a.png", "-o", tmp_path / "b.png", "--model", path, "--json")
    assert [record["status"] for record in again.records] == ["skipped"]


@pytest.mark.parametrize("option", ["--prompt", "--mid-timestep", "--base", "--vae"])
def test_options_of_diffusion_models_are_refused(option: str, upscale: Command, tmp_path: Path) -> None:
    path = write_network(tmp_path / "net.safetensors")
    draw(tmp_path / "a.png", 8, 8)
    said = upscale(tmp_path / "a.png", "-o", tmp_path / "b.png", "--model", path, option, "5")
    assert said.code == 2
    assert option in said.errors[0]


def test_commands_that_need_a_diffusion_step_refuse_networks(
    tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    path = write_network(tmp_path / "net.safetensors")
    draw(tmp_path / "hq" / "a.png", 64, 64)
    said = Command(capfdbinary, "timestep")("--data", tmp_path / "hq", "--model", path)
    assert said.code != 0
    assert "no diffusion step" in said.errors[0]
    config = f'[model]\npreset = "omgsr-s-512"\nbase = "{path}"\n[data]\ntrain = ["{tmp_path / "hq"}"]\n'
    (tmp_path / "c.toml").write_text(config)
    said = Command(capfdbinary, "train")(tmp_path / "c.toml", "--check")
    assert said.code != 0
    assert "diffusion step" in said.err


def test_pickles_are_read_by_spandrel_only_with_a_note(tmp_path: Path, upscale: Command) -> None:
    path = tmp_path / "net.pth"
    path.write_bytes(b"\x80\x04 a pickle")
    assert any("safetensors" in note for note in find_model(ModelOptions(model=str(path))).notes)
    draw(tmp_path / "a.png", 8, 8)
    said = upscale(tmp_path / "a.png", "-o", tmp_path / "b.png", "--model", path)
    assert said.code == 1
    assert "run code" in said.errors[0]
    path.write_bytes(b"no pickle")
    said = upscale(tmp_path / "a.png", "-o", tmp_path / "b.png", "--model", path)
    assert (said.code, "run code" in said.err) == (1, False)


def test_a_format_that_a_network_does_not_support_becomes_float32(tmp_path: Path) -> None:
    path = write_network(tmp_path / "net.safetensors", half=False)
    model = load(str(path), device="cpu", precision="bf16")
    assert model.precision == "fp32"
    assert any("bf16" in note for note in model.notes)
    other = load(str(write_network(tmp_path / "half.safetensors")), device="cpu", precision="bf16")
    assert other.precision == "bf16"
    assert upscale_image(other, Image.new("RGB", (9, 7), (200, 100, 50))).size == (36, 28)


def test_models_info_describes_a_file(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    path = write_network(tmp_path / "net.safetensors", scale=2)
    about = Command(capfdbinary, "models")("info", path, "--json").records[0]
    assert (about["scale"], about["mid_timestep"]) == (2, None)
    assert about["parameters"] == about["parts"][0]["parameters"] > 0


def test_a_teacher_is_the_same_network(tmp_path: Path) -> None:
    path = write_network(tmp_path / "net.safetensors", channels=1)
    image = torch.rand(3, 12, 10, generator=torch.Generator().manual_seed(2))
    taught = load_teacher(str(path), CPU)(image, 48, 40)
    torch.testing.assert_close(taught, restore_directly(path, image).clamp(0, 1), atol=1e-5, rtol=0)


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Hub, NetworkFile]]:
    """A network as its project publishes it, on a server of this machine."""
    content = write_network(tmp_path / "release.safetensors", scale=2).read_bytes()
    monkeypatch.setenv("OMGSR_HOME", str(tmp_path / "home"))
    with serve_hub({"o/r": Repository({"net.safetensors": content})}) as hub:
        url = f"{hub.url}/o/r/resolve/main/net.safetensors"
        network = NetworkFile("anyone-x2", "for tests", url, len(content), sha256(content).hexdigest(), "bsd-3-clause")
        monkeypatch.setitem(NETWORKS, "anyone-x2", network)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield hub, network


def test_a_published_network_is_pulled_and_used_by_its_name(
    published: tuple[Hub, NetworkFile], tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    hub, network = published
    hub.repositories["o/r"].cut["net.safetensors"] = [700]
    models = Command(capfdbinary, "models")
    draw(tmp_path / "a.png", 20, 16)
    upscale = Command(capfdbinary)
    before = upscale(tmp_path / "a.png", "-o", tmp_path / "b.png", "--model", "anyone-x2")
    assert before.code == 1
    assert "omgsr models pull anyone-x2" in before.err
    assert models("pull", "anyone-x2").code == 0
    assert models("verify", "anyone-x2").code == 0
    about = models("info", "anyone-x2", "--json").records[0]
    assert (about["licence"], about["scale"], about["sources"][0]["place"]) == ("bsd-3-clause", 2, network.url)
    assert upscale(tmp_path / "a.png", "-o", tmp_path / "b.png", "--model", "anyone-x2").code == 0
    assert Image.open(tmp_path / "b.png").size == (40, 32)
    refused = upscale(tmp_path / "a.png", "-o", tmp_path / "c.png", "--model", "anyone-x2", "--mid-timestep", "3")
    assert refused.code == 2


def test_a_changed_release_is_refused(
    published: tuple[Hub, NetworkFile], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    hub, _ = published
    files = hub.repositories["o/r"].files
    files["net.safetensors"] = files["net.safetensors"][:-1] + b"!"
    said = Command(capfdbinary, "models")("pull", "anyone-x2")
    assert said.code == 1
    assert "SHA-256" in said.errors[0]
    assert Command(capfdbinary, "models")("path", "anyone-x2").code == 1


def test_without_spandrel_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(ModelError, match="spandrel") as caught:
        load(str(write_network(tmp_path / "net.safetensors")), device="cpu")
    assert "[networks]" in str(caught.value.hint)
