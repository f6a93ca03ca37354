"""The benchmark of the SD family: sizes, measurements and counted operations."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import torch
from places import ROOT

from omgsr_cli.models.loading import load_restorer

BENCHMARKS = ROOT / "benchmarks"


def test_flicker_is_measured_after_alignment() -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        tool = importlib.import_module("flicker")
    rows, columns = torch.meshgrid(torch.arange(300.0), torch.arange(320.0), indexing="ij")
    photo = torch.stack([0.5 + 0.4 * torch.sin(rows / (9 + i) + columns / (13 - i)) for i in range(3)])
    views = [tool.view_of(frame, tool.Size(300, 320), 96, 4) for frame in range(4)]
    frames = [tool.seen(photo, view, tool.Size(96, 96), tool.SAMPLES) for view in views]
    assert tool.flicker(frames, views) < 0.4
    assert tool.flicker(frames, [views[0]] * 4) > 10
    noisy = [frame + torch.full_like(frame, 0.02 * (number % 2)) for number, frame in enumerate(frames)]
    assert tool.flicker(noisy, views) == pytest.approx(255 * 0.02, rel=0.05)


@pytest.fixture(scope="module")
def sd_size() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        return importlib.import_module("sd_size")


@pytest.fixture(scope="module")
def toy(sd_size: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("toy") / "toy"
    sd_size.make(folder, "toy", "fp16")
    return folder


def test_the_networks_have_the_published_number_of_weights(sd_size: ModuleType) -> None:
    unet, vae = (sum(p.numel() for p in network.parameters()) for network in sd_size.build_networks("sd21"))
    # As counted in the published files of Stable Diffusion 2.1-base.
    assert (unet, vae) == (865_910_724, 83_653_863)


def test_a_toy_is_measured(sd_size: ModuleType, toy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sd_size.run(toy, "fp32", 16)
    lines = capsys.readouterr().out.splitlines()
    table = {cells[1].strip(): cells[2:-1] for line in lines if (cells := line.split("|"))[1:]}
    assert list(table)[2:] == ["load", "first image", "second image", "- encode", "- step", "- decode"]
    whole, *stages = (float(table[name][0]) for name in ("second image", "- encode", "- step", "- decode"))
    assert whole + 0.02 >= sum(stages) > 0
    assert 0.1 < float(table["load"][3]) <= float(table["- decode"][3]) < 64


def test_operations_are_counted_as_they_are_computed(sd_size: ModuleType, toy: Path) -> None:
    restorer = load_restorer(toy, device="cpu", precision="fp32")
    on_meta = sd_size.count_flops(sd_size.without_numbers(restorer, "toy"), 64)
    assert on_meta == sd_size.count_flops(restorer, 64)
    # The decoder's last convolution alone: 3x3 from 32 to 3 channels at 64x64, a multiply-add being two.
    assert on_meta["decode"] > 2 * 9 * 32 * 3 * 64 * 64
    assert restorer.features["prompt_embeds"].device == torch.device("cpu")
