"""NaN and infinity are found in every stage, never written, and retried in float32."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from command_line import Command, draw, files_below, pixels, write_tiny_model
from random_sd import write_sd_model
from safetensors.torch import load_file, save_file
from torch import Tensor
from training_run import run_here, settings

import omgsr_cli
from omgsr_cli.datasets import ImagePair
from omgsr_cli.errors import ModelError, NotFiniteError
from omgsr_cli.geometry import Size
from omgsr_cli.imaging import to_samples
from omgsr_cli.models.devices import choose_precision
from omgsr_cli.models.families import TinyFamily
from omgsr_cli.models.loading import load_encoder, load_restorer
from omgsr_cli.models.tiny import TinyRestorer
from omgsr_cli.models.weight_files import check_file_finite
from omgsr_cli.options import RestoreOptions
from omgsr_cli.timesteps.measure import _measure_batch
from omgsr_cli.training.checkpoints import Progress, list_checkpoints, write_state
from omgsr_cli.training.config import TrainConfig
from omgsr_cli.training.loop import load_run
from omgsr_cli.training.model import Generator
from omgsr_cli.training.publish import collect_files
from omgsr_cli.upscaling import upscale_image

NAN, INF = float("nan"), float("inf")
ROOMY, TIGHT = 10**12, 4 << 20


@pytest.fixture(scope="module")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sd_model(tmp_path_factory.mktemp("models") / "sd")


def spoil(function: Callable[..., Tensor], value: float) -> Callable[..., Tensor]:
    """The same function with a wrong value in every row and column of one channel: margins of tiles are cut away."""

    def spoilt(*arguments: object) -> Tensor:
        result = function(*arguments).clone()
        result[0, 0] = value
        return result

    return spoilt


@pytest.mark.parametrize(
    ("stage", "value", "options"),
    [
        ("encode", NAN, RestoreOptions()),
        ("restore", INF, RestoreOptions()),
        ("decode", -INF, RestoreOptions()),
        ("restore", NAN, RestoreOptions(tile=64, batch=2)),
        ("decode", INF, RestoreOptions(tile=64, batch=2)),
    ],
)
def test_every_stage_of_the_tiny_family(
    model: Path, monkeypatch: pytest.MonkeyPatch, stage: str, value: float, options: RestoreOptions
) -> None:
    restorer = load_restorer(model, device="cpu")
    monkeypatch.setattr(restorer, stage, spoil(getattr(restorer, stage), value))
    with pytest.raises(NotFiniteError, match="fp32"):
        upscale_image(restorer, torch.rand(3, 20, 30), Size(80, 120), options, free_bytes=ROOMY)


@pytest.mark.parametrize(
    ("part", "tile", "free", "value"),
    [
        ("encoder", "auto", ROOMY, NAN),
        ("unet", 64, ROOMY, INF),
        ("decoder", "auto", TIGHT, -INF),
        ("encoder", "auto", TIGHT, INF),
        ("decoder", 64, ROOMY, NAN),
    ],
)
def test_every_stage_of_the_sd_family(
    sd_folder: Path, monkeypatch: pytest.MonkeyPatch, part: str, value: float, tile: int, free: int
) -> None:
    restorer = load_restorer(sd_folder, device="cpu", precision="fp32")
    network = restorer.backbone if part == "unet" else getattr(restorer.vae, part)  # type: ignore[attr-defined]  # an SdRestorer
    # In the last layer, where no norm spreads it.
    network.conv_out.weight.data[0, 0, 1, 1] = value
    with pytest.raises(NotFiniteError):
        upscale_image(restorer, torch.rand(3, 24, 40), Size(96, 160), RestoreOptions(tile=tile), free_bytes=free)


def test_an_image_with_nan_fails_alone(omgsr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, width in (("a", 20), ("b", 9), ("c", 16)):
        draw(tmp_path / "in" / f"{name}.png", width)
    decode = TinyRestorer.decode
    # In rows, so that some of an image is written before it fails.
    monkeypatch.setattr(TinyRestorer, "decode", lambda self, x: decode(self, x) * (NAN if x.shape[3] < 20 else 1))
    said = omgsr(tmp_path / "in", "-o", tmp_path / "out", "--scale", "4")
    assert said.code == 1
    (line,) = said.errors
    assert "b.png" in line
    assert files_below(tmp_path / "out") == ["a.png", "c.png"]
    monkeypatch.setattr(TinyRestorer, "decode", decode)
    again = omgsr(tmp_path / "in", "-o", tmp_path / "out", "--scale", "4", "--json")
    statuses = {Path(record["input"]).name: record["status"] for record in again.records}
    assert (again.code, statuses) == (0, {"a.png": "skipped", "b.png": "done", "c.png": "skipped"})


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A machine that prefers bf16, in which every image overflows; the number formats that were tried."""
    tried: list[str] = []
    decode = TinyRestorer.decode

    def overflow(self: TinyRestorer, latent: Tensor) -> Tensor:
        tried.append(self.precision)
        return decode(self, latent) * (INF if self.precision == "bf16" else 1)

    monkeypatch.setattr(TinyRestorer, "decode", overflow)
    monkeypatch.setattr(
        TinyFamily,
        "choose_precision",
        lambda self, name, device: choose_precision("bf16" if name == "auto" else name, device),
    )
    return tried


def test_an_automatic_precision_falls_back_to_fp32(omgsr: Command, tmp_path: Path, narrow: list[str]) -> None:
    for number in range(5):
        draw(tmp_path / "in" / f"{number}.png", 12 + number)
    said = omgsr(tmp_path / "in", "-o", tmp_path / "out", "--json")
    assert (said.code, len(said.records)) == (0, 5)
    assert all(any("fp32" in note for note in record["notes"]) for record in said.records[:3])
    assert 3 <= narrow.count("bf16") <= 4
    wide = omgsr(tmp_path / "in", "-o", tmp_path / "wide", "--precision", "fp32")
    assert wide.code == 0
    for name in files_below(tmp_path / "out"):
        assert np.array_equal(pixels(tmp_path / "out" / name), pixels(tmp_path / "wide" / name))


def test_a_chosen_precision_is_kept(omgsr: Command, tmp_path: Path, narrow: list[str]) -> None:
    said = omgsr(draw(tmp_path / "a.png"), "-o", tmp_path / "b.png", "--precision", "bf16")
    assert said.code == 1
    assert "bf16" in said.errors[0]
    assert "--precision fp32" in said.err
    assert set(narrow) == {"bf16"}
    assert files_below(tmp_path) == ["a.png"]


def test_the_library_warns_and_retries(model: Path, narrow: list[str]) -> None:
    image = (np.random.default_rng(0).random((9, 7, 3)) * 255).astype(np.uint8)
    with pytest.warns(UserWarning, match="fp32") as caught:
        restored = omgsr_cli.upscale_image(omgsr_cli.load(model, device="cpu"), image)
    assert {each.filename for each in caught if "fp32" in str(each.message)} == {__file__}
    wide = omgsr_cli.upscale_image(omgsr_cli.load(model, device="cpu", precision="fp32"), image)
    assert np.array_equal(restored, wide)
    with pytest.raises(NotFiniteError):
        omgsr_cli.upscale_image(omgsr_cli.load(model, device="cpu", precision="bf16"), image)


def test_bench_reports_the_measured_precision(bench: Command, model: Path, tmp_path: Path, narrow: list[str]) -> None:
    draw(tmp_path / "set" / "test_LR" / "a.png", 8, 6)
    draw(tmp_path / "set" / "test_HR" / "a.png", 32, 24)
    said = bench("--data", tmp_path / "set", "--model", model, "--metrics", "psnr", "--json")
    assert said.code == 0, said.err
    (record,) = said.records
    assert "fp32" in record["speeds"][0]["precision"]
    assert record["failures"] == []


def test_nan_never_becomes_an_integer() -> None:
    image = torch.rand(3, 4, 5)
    image[1, 2, 3] = NAN
    for depth in (8, 16):
        with pytest.raises(NotFiniteError):
            to_samples(image, depth)
    image[1, 2, 3] = INF
    assert to_samples(image, 8)[2, 3, 1] == 255


def break_weights(file: Path, value: float) -> None:
    weights = load_file(file)
    name = sorted(name for name, weight in weights.items() if weight.is_floating_point())[0]
    weights[name].view(-1)[-1] = value
    save_file(weights, file)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("float64", INF), ("float32", NAN), ("float32", -INF), ("float16", INF), ("bfloat16", NAN),
        ("float8_e5m2", -INF), ("float8_e4m3fn", NAN),
    ],
)  # fmt: skip
def test_weights_of_every_precision_are_checked(tmp_path: Path, name: str, value: float) -> None:
    dtype = getattr(torch, name)
    largest = torch.finfo(dtype).max
    fine = torch.tensor([0.0, largest, -largest, 1e-3] * 5, dtype=torch.float64).to(dtype)
    file = tmp_path / "weights.safetensors"
    save_file({"a": torch.full((3,), -1), "b": fine, "c": fine.reshape(4, 5).clone()}, file)
    check_file_finite(file)
    wrong = fine.clone()
    wrong[-1] = value
    save_file({"a": torch.full((3,), -1), "b": fine, "c": wrong}, file)
    with pytest.raises(ModelError, match="weight c"):
        check_file_finite(file)


@pytest.mark.parametrize("value", [NAN, -INF])
def test_weights_that_are_not_finite_are_refused_everywhere(
    tmp_path: Path, value: float, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    folder = write_tiny_model(tmp_path / "model")
    verify = Command(capfdbinary, "models")
    assert verify("verify", folder).code == 0
    break_weights(folder / "model.safetensors", value)
    said = verify("verify", folder)
    assert (said.code, "not finite" in said.err) == (1, True)
    for read in (load_restorer, load_encoder, collect_files):
        with pytest.raises(ModelError, match="not finite"):
            read(folder)  # type: ignore[operator]  # each takes a folder
    said = Command(capfdbinary)(draw(tmp_path / "a.png"), "-o", tmp_path / "b.png", "--model", folder)
    assert (said.code, "not finite" in said.err, (tmp_path / "b.png").exists()) == (1, True, False)


@pytest.mark.parametrize("part", ["unet", "vae"])
def test_a_base_whose_weights_are_not_finite_is_refused(sd_folder: Path, tmp_path: Path, part: str) -> None:
    shutil.copytree(sd_folder, tmp_path / "sd")
    break_weights(tmp_path / "sd" / part / "diffusion_pytorch_model.safetensors", NAN)
    with pytest.raises(ModelError, match=part):
        load_restorer(tmp_path / "sd", device="cpu")


def test_a_merge_that_overflows_is_not_written(
    base: Path, adapter: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    shutil.copytree(base, tmp_path / "base")
    break_weights(tmp_path / "base" / "vae" / "diffusion_pytorch_model.safetensors", 1e6)
    merge = Command(capfdbinary, "models")
    assert merge("merge", tmp_path / "base", adapter, tmp_path / "full").code == 0
    said = merge("merge", "--half", tmp_path / "base", adapter, tmp_path / "half")
    assert (said.code, "not finite" in said.err) == (1, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "full"]


@pytest.mark.parametrize(("which", "value"), [("clean", NAN), ("degraded", INF)])
def test_a_latent_that_is_not_finite_is_no_measurement(model: Path, value: float, which: str) -> None:
    encoder = load_encoder(str(model), device="cpu")
    images = {name: torch.rand(3, 32, 32) for name in ("clean", "degraded")}
    images[which][0, 3, 4] = value
    pair = ImagePair(path=Path("x.png"), window=(0, 0), drawn={}, **images)
    with pytest.raises(ModelError, match=r"x\.png"):
        list(_measure_batch([pair], encoder, None))


def test_training_refuses_to_keep_what_has_diverged(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = settings(world, tmp_path / "run", train={"steps": 1}, log={"validate_every": 1})
    tables["data"]["validation"] = str(world / "hq")
    monkeypatch.setattr(Generator, "restore", lambda self, lq: torch.full_like(lq, INF))
    with pytest.raises(NotFiniteError, match="validation"):
        run_here(tables)
    run = load_run(TrainConfig.model_validate(tables), Accelerator(cpu=True), resumed=False)
    weight = next(iter(run.learner.weights.values()))
    weight.data.fill_(NAN)
    with pytest.raises(ModelError, match="not finite"):
        write_state(tmp_path, run.trainable, run.learner, Progress())
    assert list_checkpoints(tmp_path / "run") == []


def test_checkpoints_have_the_permissions_of_any_new_file(world: Path, tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        run_here(settings(world, tmp_path / "run", train={"steps": 1}))
    finally:
        os.umask(before)
    (checkpoint,) = list_checkpoints(tmp_path / "run")
    check_modes(checkpoint, 0o027)


@pytest.mark.parametrize("umask", [0o002, 0o077])
def test_merged_weights_have_the_permissions_of_any_new_file(
    base: Path, adapter: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], umask: int
) -> None:
    before = os.umask(umask)
    try:
        assert Command(capfdbinary, "models")("merge", base, adapter, tmp_path / "merged").code == 0
    finally:
        os.umask(before)
    check_modes(tmp_path / "merged", umask)


def check_modes(folder: Path, umask: int) -> None:
    for path in (folder, *folder.rglob("*")):
        wanted = (0o777 if path.is_dir() else 0o666) & ~umask
        assert oct(stat.S_IMODE(path.stat().st_mode)) == oct(wanted), path
