"""`omgsr bench` agrees with pyiqa and spandrel, in an environment that has both."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import Command, Said, draw
from PIL import Image
from safetensors.torch import save_file

from omgsr_cli.benchmark import scoring
from omgsr_cli.fidelity import ColorSpace, psnr, ssim

Bench = Callable[..., Said]


@pytest.fixture
def torch_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("OMGSR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    folder = tmp_path / "torch" / "hub"
    # pyiqa asks for its folder as it is imported, and keeps it.
    import pyiqa.utils.download_util

    (folder / "pyiqa").mkdir(parents=True)
    monkeypatch.setattr(pyiqa.utils.download_util, "DEFAULT_CACHE_DIR", str(folder / "pyiqa"))
    scoring._hub_answers.cache_clear()
    return folder


@pytest.fixture
def bench(capfdbinary: pytest.CaptureFixture[bytes], torch_hub: Path) -> Command:
    return Command(capfdbinary, "bench")


def scores(said: Said, metric: str) -> dict[str, float]:
    assert said.code == 0, said.err
    # One line, and JSON: whatever pyiqa printed went elsewhere.
    (record,) = said.records
    (model,) = (each["name"] for each in record["models"])
    return {image["name"]: image["scores"][model][metric] for image in record["images"]}


def pyiqa_score(name: str, *paths: Path, **options: Any) -> float:
    import pyiqa

    return float(pyiqa.create_metric(name, device=torch.device("cpu"), **options)(*map(str, paths)))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    generator = np.random.default_rng(0)
    for number in range(2):
        smooth = Image.fromarray(generator.integers(0, 256, (30, 34, 3), dtype=np.uint8)).resize((230, 210))
        noise = generator.normal(0, 12, (210, 230, 3))
        path = tmp_path / "sr" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray((np.asarray(smooth) + noise).clip(0, 255).astype(np.uint8)).save(path)
    return tmp_path / "sr"


@pytest.mark.parametrize("color_space", ["ycbcr", "yiq", "rgb"])
@pytest.mark.parametrize("crop", [0, 4])
def test_psnr_and_ssim_equal_pyiqa(color_space: ColorSpace, crop: int) -> None:
    import pyiqa

    generator = torch.Generator().manual_seed(crop)
    first = (torch.rand(2, 3, 41, 50, generator=generator) * 255).round() / 255
    second = ((first + 0.1 * torch.randn(first.shape, generator=generator)).clamp(0, 1) * 255).round() / 255
    options: dict[str, Any] = {"test_y_channel": color_space != "rgb", "crop_border": crop}
    if color_space != "rgb":
        options["color_space"] = color_space
    for name, measure in (("psnr", psnr), ("ssim", ssim)):
        theirs = pyiqa.create_metric(name, device=torch.device("cpu"), **options)(first, second)
        ours = measure(first, second, color_space=color_space, crop_border_px=crop)
        assert ours.tolist() == pytest.approx(theirs.flatten().tolist(), abs=1e-5)


@pytest.mark.parametrize("name", ["realsr", "drealsr"])
def test_the_command_agrees_with_pyiqa_on_another_methods_images(bench: Command, shared: Path, name: str) -> None:
    folder = shared / "benchmarks" / name
    said = bench("--sr", folder / "osediff", "--hr", folder / "hr", "--metrics", "psnr,ssim", "--json")
    for metric in ("psnr", "ssim"):
        found = scores(said, metric)
        assert len(found) in (16, 17)
        for stem, score in found.items():
            paths = folder / "osediff" / f"{stem}.png", folder / "hr" / f"{stem}.png"
            wanted = pyiqa_score(metric, *paths, color_space="ycbcr", test_y_channel=True)
            assert score == pytest.approx(wanted, abs=1e-4)


def test_piqe_needs_no_weights(bench: Command, images: Path) -> None:
    found = scores(bench("--sr", images, "--metrics", "piqe", "--json"), "piqe")
    assert found == {stem: pytest.approx(pyiqa_score("piqe", images / f"{stem}.png"), abs=1e-5) for stem in "01"}
    assert found["0"] != found["1"]


def test_niqe_with_given_parameters(bench: Command, images: Path, torch_hub: Path) -> None:
    from scipy.io import savemat

    generator = np.random.default_rng(1)
    basis = generator.normal(size=(36, 36))
    parameters = {"mu_prisparam": generator.normal(size=(1, 36)), "cov_prisparam": basis @ basis.T + np.eye(36)}
    savemat(torch_hub / "pyiqa" / "niqe_modelparameters.mat", parameters)
    found = scores(bench("--sr", images, "--metrics", "niqe", "--json"), "niqe")
    assert found == {stem: pytest.approx(pyiqa_score("niqe", images / f"{stem}.png"), abs=1e-5) for stem in "01"}


def test_niqe_is_the_calibrated_one(bench: Command, shared: Path, torch_hub: Path) -> None:
    golden = shared / "golden" / "iqa"
    parameters = golden / "niqe_modelparameters_from_basicsr.mat"
    (torch_hub / "pyiqa" / "niqe_modelparameters.mat").write_bytes(parameters.read_bytes())
    lines = (golden / "calibration_summary.csv").read_text("utf-8").splitlines()
    (row,) = (line.split(",") for line in lines if line.startswith("niqe(ours),"))
    wanted = dict(zip(lines[0].replace(".bmp", "").split(",")[1:], map(float, row[1:]), strict=True))
    found = scores(bench("--sr", golden / "dist_dir", "--metrics", "niqe", "--json"), "niqe")
    assert found == {stem: pytest.approx(value, abs=5e-3) for stem, value in wanted.items()}


def test_musiq_with_random_weights(bench: Command, images: Path, torch_hub: Path) -> None:
    from pyiqa.archs.musiq_arch import MUSIQ

    torch.manual_seed(4)
    torch.save(MUSIQ(pretrained=False, num_class=1).state_dict(), torch_hub / "pyiqa" / "musiq_koniq_ckpt-e95806b9.pth")
    said = bench("--sr", images, "--metrics", "musiq,piqe", "--json")
    found = scores(said, "musiq")
    assert "Loading pretrained model MUSIQ" in said.err
    for stem, score in found.items():
        assert score == pytest.approx(pyiqa_score("musiq", images / f"{stem}.png"), abs=1e-4)


def test_missing_weights_are_reported_at_once(bench: Command, images: Path) -> None:
    said = bench("--sr", images, "--metrics", "musiq,clipiqa,maniqa-pipal,topiq_nr,liqe,brisque,piqe", "--json")
    assert said.code == 1
    assert [line.split(":")[1].strip() for line in said.errors] == [
        *("musiq", "clipiqa", "maniqa-pipal", "topiq_nr", "liqe", "brisque")
    ]
    assert all("HF_ENDPOINT" in line for line in said.errors)
    assert said.records[0]["summaries"][-1]["mean"] > 0


def test_clip_works_without_pkg_resources(
    bench: Command, images: Path, torch_hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (torch_hub / "clip").mkdir()
    torch.save({}, torch_hub / "clip" / "RN50.pt")
    for name in [name for name in sys.modules if name.partition(".")[0] == "clip" or "clipiqa" in name]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "pyiqa.archs.clip_imports", raising=False)
    monkeypatch.setitem(sys.modules, "pkg_resources", None)
    said = bench("--sr", images, "--metrics", "clipiqa,piqe", "--json")
    assert said.code == 1
    assert "setuptools<82" in said.errors[0]


def test_a_mismatched_torchvision_is_reported_with_both_versions(images: Path, tmp_path: Path) -> None:
    # Another process: here its two names were given to it.
    command = [sys.executable, "-m", "omgsr_cli", "bench", "--sr", str(images), "--hr", str(images)]
    command += ["--metrics", "piqe,psnr", "--json", "--cache", str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        pytest.skip("the torchvision of this environment fits its torch")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: piqe: the installed torchvision ")
    assert f"does not work with torch {torch.__version__}" in done.stderr
    (image, _) = json.loads(done.stdout)["images"]
    assert image["scores"]["sr"] == {"piqe": None, "psnr": pytest.approx(80)}


def test_a_file_that_spandrel_reads_is_a_model(bench: Command, tmp_path: Path) -> None:
    import spandrel
    from spandrel.architectures.Compact import Compact

    torch.manual_seed(2)
    network = Compact(num_feat=8, num_conv=2, upscale=4)
    path = tmp_path / "compact-x4.safetensors"
    save_file(network.state_dict(), path)
    draw(tmp_path / "lr" / "one.png", 20, 14)
    draw(tmp_path / "hr" / "one.png", 80, 56)
    asked = ("--data", tmp_path, "--model", path, "--metrics", "psnr", "--json")
    record = bench(*asked).records[0]
    assert record["models"][0]["name"] == "compact-x4"
    restored = np.asarray(Image.open(record["images"][0]["restored"]["compact-x4"]))
    lq = torch.from_numpy(np.asarray(Image.open(tmp_path / "lr" / "one.png")).copy()).permute(2, 0, 1)[None].float()
    loaded = spandrel.ModelLoader("cpu").load_from_file(path)
    with torch.inference_mode():
        wanted = (loaded(lq / 255).clamp(0, 1)[0] * 255).round().permute(1, 2, 0).numpy()
    assert np.abs(restored.astype(float) - wanted).max() <= 1
