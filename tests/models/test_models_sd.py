"""The SD family against the published formulas' images and against diffusers' own scheduler."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler
from places import SHARED
from random_sd import SCHEDULER, write_sd_model
from torch import Tensor

from omgsr_cli.errors import ModelError, ShapeError
from omgsr_cli.geometry import Size
from omgsr_cli.models.base import StageInfo
from omgsr_cli.models.latent import SEQUENCE
from omgsr_cli.models.loading import load_restorer
from omgsr_cli.models.sd import SdRestorer, vae_precision
from omgsr_cli.options import RestoreOptions
from omgsr_cli.planning import plan_restoration
from omgsr_cli.upscaling import upscale_image

GOLDEN = SHARED / "golden" / "sd"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden images of the SD family are not here")


def load_sd_restorer(folder: Path, **options: object) -> SdRestorer:
    restorer = load_restorer(folder, device="cpu", **({"precision": "fp32"} | options))  # type: ignore[arg-type]
    assert isinstance(restorer, SdRestorer)
    return restorer


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sd_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def restorer(model_folder: Path) -> SdRestorer:
    return load_sd_restorer(model_folder)


def test_info_describes_the_model(restorer: SdRestorer) -> None:
    assert (restorer.info.latent_px, restorer.info.multiple_of_px) == (4, 4)
    assert restorer.info.native_tile_px == 8 * 4
    assert restorer.info.codec == StageInfo("internal", 0, 20 * 8)
    assert restorer.info.step == StageInfo("blended", 0, 160 * 8 // 4**2)
    assert restorer.info.color_fix == "adain"
    weights = sum(p.numel() for part in (restorer.backbone, restorer.vae) for p in part.parameters())
    assert restorer.info.parameters == weights


@pytest.mark.parametrize(("height", "width"), [(4, 4), (4, 28), (20, 36), (68, 12)])
def test_odd_sizes_keep_their_size(restorer: SdRestorer, height: int, width: int) -> None:
    image = torch.rand(2, 3, height, width) * 2 - 1
    with torch.inference_mode():
        latent = restorer.encode(image)
        clean = restorer.restore(latent)
        result = restorer.decode(clean)
    assert latent.shape == clean.shape == (2, 4, height // 4, width // 4)
    assert result.shape == image.shape
    assert {latent.dtype, clean.dtype, result.dtype} == {torch.float32}


@pytest.mark.parametrize("shape", [(1, 3, 6, 8), (1, 1, 8, 8), (3, 8, 8)])
def test_images_of_a_wrong_shape_are_refused(restorer: SdRestorer, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="multiples of 4"):
        restorer.encode(torch.zeros(shape))


def test_a_batch_equals_single_images(restorer: SdRestorer) -> None:
    images = torch.rand(3, 3, 16, 16) * 2 - 1
    with torch.inference_mode():
        together = restorer.restore(restorer.encode(images))
        alone = torch.cat([restorer.restore(restorer.encode(image[None])) for image in images])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_the_mean_is_repeatable_and_a_seed_samples(restorer: SdRestorer) -> None:
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.inference_mode():
        assert torch.equal(restorer.encode(image), restorer.encode(image))
        first, again, other = (restorer.encode(image, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("mid_timestep", [1, 273, 998])
def test_the_step_is_that_of_the_schedule(tmp_path: Path, prediction_type: str, mid_timestep: int) -> None:
    folder = write_sd_model(tmp_path, prediction_type=prediction_type)
    model = load_sd_restorer(folder, mid_timestep=mid_timestep)
    latent = torch.randn(1, 4, 8, 8)
    scheduler = DDPMScheduler.from_config(SCHEDULER | {"prediction_type": prediction_type, "clip_sample": False})
    with torch.inference_mode():
        embeds = model.features[SEQUENCE]
        prediction = model.backbone(latent, mid_timestep, encoder_hidden_states=embeds).sample
        expected = scheduler.step(prediction, mid_timestep, latent).pred_original_sample
        actual = model.restore(latent)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_a_shift_factor_is_removed_and_added_back(tmp_path: Path) -> None:
    shifted = load_sd_restorer(write_sd_model(tmp_path / "a", shift_factor=0.25))
    plain = load_sd_restorer(write_sd_model(tmp_path / "b"))
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.inference_mode():
        latent = plain.encode(image)
        torch.testing.assert_close(shifted.encode(image), latent - 0.25 * 0.5)
        torch.testing.assert_close(shifted.decode(latent - 0.25 * 0.5), plain.decode(latent), rtol=1e-4, atol=1e-5)


def test_gradients_reach_the_image(restorer: SdRestorer) -> None:
    image = torch.zeros(1, 3, 16, 16, requires_grad=True)
    restorer.decode(restorer.restore(restorer.encode(image))).square().mean().backward()
    assert image.grad is not None
    assert bool(image.grad.any())


def test_bf16_is_close_to_fp32_and_gives_float_images(model_folder: Path, restorer: SdRestorer) -> None:
    half = load_sd_restorer(model_folder, precision="bf16")
    assert {half.backbone.dtype, half.vae.dtype} == {torch.bfloat16}
    image = torch.rand(1, 3, 32, 32) * 2 - 1
    with torch.inference_mode():
        exact, near = (model.decode(model.restore(model.encode(image))) for model in (restorer, half))
    assert near.dtype == torch.float32
    assert 0 < (near - exact).abs().mean() < 0.05 * exact.std()


@pytest.mark.parametrize(
    ("precision", "force_upcast", "bf16", "expected"),
    [
        ("fp16", True, False, "fp32"),
        ("fp16", True, True, "bf16"),
        ("fp16", False, True, "fp16"),
        ("bf16", True, True, "bf16"),
        ("fp32", True, True, "fp32"),
    ],
)
def test_the_vae_never_overflows(
    monkeypatch: pytest.MonkeyPatch, precision: str, force_upcast: bool, bf16: bool, expected: str
) -> None:
    monkeypatch.setattr("omgsr_cli.models.sd.multiplies_in_bf16", lambda device: bf16)
    assert vae_precision(precision, force_upcast, torch.device("cpu")) == expected


def test_compiling_covers_every_network_that_runs(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_sd_restorer(model_folder)
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    with torch.inference_mode():
        expected = model.decode(model.restore(model.encode(image)))
    ran: list[str] = []

    def record_runs(call: Callable[..., object], **options: object) -> Callable[..., object]:
        def recorded(*arguments: object, **named: object) -> object:
            ran.append(type(call.__self__).__name__)  # type: ignore[attr-defined]  # a bound method
            return call(*arguments, **named)

        return recorded

    monkeypatch.setattr(torch, "compile", record_runs)
    model.compile()
    with torch.inference_mode():
        assert torch.equal(model.decode(model.restore(model.encode(image))), expected)
    assert ran == ["Encoder", "UNet2DConditionModel", "Decoder"]


def test_mismatched_parts_are_refused(tmp_path: Path) -> None:
    folder = write_sd_model(tmp_path)
    path = folder / "vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"latent_channels": 16}))
    with pytest.raises(ModelError, match="UNet takes 4 channels, the VAE gives 16"):
        load_sd_restorer(folder)


@needs_golden
def test_little_memory_gives_the_same_image() -> None:
    """The codec in strips, layers in a file, against the codec in one piece."""
    model = load_sd_restorer(GOLDEN / "base")
    image = torch.rand(3, 66, 82, generator=torch.Generator().manual_seed(0))
    output = Size(264, 328)
    options = RestoreOptions(memory=16)
    assert plan_restoration(model.info, Size(66, 82), output, options, 0).in_strips
    little = upscale_image(model, image, output, options)
    enough = upscale_image(model, image, output, RestoreOptions(memory=4096))
    assert ((little - enough).abs() <= 2 / 255).float().mean() >= 0.999
    # A value between two levels may be rounded to either; convolutions of other sizes differ in their last digits.
    assert ((little - enough).abs() < 1e-3).float().mean() >= 0.99


@needs_golden
def test_a_codec_that_runs_out_of_memory_uses_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_sd_restorer(GOLDEN / "base")
    image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0))
    expected = upscale_image(model, image, Size(64, 64))

    def short(tensor: Tensor) -> Tensor:
        raise torch.OutOfMemoryError("short")

    monkeypatch.setattr(model.vae.encoder, "forward", short)
    monkeypatch.setattr(model.vae.decoder, "forward", short)
    notes: list[str] = []
    actual = upscale_image(model, image, Size(64, 64), on_note=notes.append)
    assert ((actual - expected).abs() < 1e-3).float().mean() >= 0.999
    assert (actual - expected).abs().max() <= 1.01 / 255
    assert len(notes) == 1
