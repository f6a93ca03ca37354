"""The bundled model: latents, tiles, and artefacts that its images must not show."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from places import ROOT

from omgsr_cli.errors import ModelError
from omgsr_cli.geometry import Size
from omgsr_cli.imaging.resize import resize
from omgsr_cli.models.base import Restorer
from omgsr_cli.models.loading import load_restorer
from omgsr_cli.models.tiny_network import TinyConfig, TinyNetwork, timestep_embedding
from omgsr_cli.models.wavelet import WaveletLatents, transform_matrix
from omgsr_cli.options import RestoreOptions
from omgsr_cli.presets import PRESETS
from omgsr_cli.training.validation import draw_noisy_grey, strongest_direction_db
from omgsr_cli.upscaling import upscale_image


@pytest.fixture(scope="module")
def tiny() -> Restorer:
    return load_restorer("omgsr-tiny", device="cpu", precision="fp32")


@pytest.fixture(scope="module")
def photo() -> torch.Tensor:
    with Image.open(ROOT / "docs" / "images" / "sample.jpg") as image:
        return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1).float() / 255


@pytest.mark.parametrize("size", [(4, 4), (8, 4), (24, 28), (64, 100)])
def test_latents_are_recovered(size: tuple[int, int]) -> None:
    latents = WaveletLatents().double()
    latents.channel_std.uniform_(0.1, 3)
    latents.channel_mean.uniform_(-1, 1)
    image = torch.randn(2, 3, *size, dtype=torch.float64)
    found = latents.encode(image)
    assert found.shape == (2, 48, size[0] // 4, size[1] // 4)
    torch.testing.assert_close(latents.decode(found), image, rtol=0, atol=1e-12)
    # Whole matrices, which short sides take, are what longer sides are transformed by.
    rows, columns = (transform_matrix(side // 4) for side in size)
    luma = (rows @ (image.sum(1) / 3**0.5) @ columns.T).unflatten(2, (-1, 4)).unflatten(1, (-1, 4))
    bands = luma.permute(0, 2, 4, 1, 3).unflatten(2, (2, 2)).unflatten(1, (2, 2)).transpose(2, 3).flatten(1, 4)
    expected = (bands - latents.channel_mean[::3, None, None]) / latents.channel_std[::3, None, None]
    torch.testing.assert_close(found[:, ::3], expected, rtol=0, atol=1e-11)


def test_wavelet_has_the_published_filters_and_is_nearly_orthonormal() -> None:
    """The low-pass of CDF 9/7 as tabulated for JPEG 2000, twice; a flat image goes into one band."""
    right = [0.602949018236, 0.266864118443, -0.078223266529, -0.016864118443, 0.026748757411]
    once = np.array([*right[:0:-1], *right])
    twice = np.convolve(once, np.kron(once, [1, 0])[:-1])
    matrix = transform_matrix(16).numpy()
    row = matrix[32]
    np.testing.assert_allclose(row[20:45] / row[32], twice / twice[12], atol=1e-8)
    assert np.abs(np.delete(row, range(20, 45))).max() == 0
    assert np.square(matrix).sum(1).mean() == pytest.approx(1, rel=0.1)
    flat = matrix.sum(1).reshape(-1, 4)
    np.testing.assert_allclose(flat, [[2, 0, 0, 0]] * 16, atol=1e-7)


def test_timestep_embedding_is_the_formula() -> None:
    embedding = timestep_embedding(torch.tensor([0, 273]), 64)
    frequencies = 10_000.0 ** (-np.arange(32) / 32)
    expected = np.concatenate([np.sin(273 * frequencies), np.cos(273 * frequencies)])
    np.testing.assert_allclose(embedding[1], expected, atol=2e-5)
    assert torch.equal(embedding[0], torch.cat([torch.zeros(32), torch.ones(32)]))


def test_an_untrained_network_returns_the_image() -> None:
    """No correction and no noise predicted: the step must be the identity, whatever the timestep."""
    from omgsr_cli.models.record import ModelRecord
    from omgsr_cli.models.tiny import TinyRestorer, build_info
    from omgsr_cli.schedules import DdpmSchedule

    config = TinyConfig(encoder_width=8, encoder_layers=1, step_width=16, step_bottleneck=8, step_blocks=1)
    info = build_info(config, ModelRecord(family="tiny", mid_timestep=500, native_tile_px=64), "test")
    restorer = TinyRestorer(TinyNetwork(config), DdpmSchedule(), info, torch.device("cpu"), "fp32")
    image = torch.rand(1, 3, 32, 48) * 2 - 1
    restored = restorer.decode(restorer.restore(restorer.encode(image)))
    torch.testing.assert_close(restored, image, rtol=0, atol=1e-5)


def test_the_bundled_model_is_small_and_described(tiny: Restorer) -> None:
    preset = PRESETS["omgsr-tiny"]
    assert preset.folder is not None
    size = sum(file.stat().st_size for file in preset.folder.rglob("*") if file.is_file())
    assert size < 30 * 2**20
    assert (preset.folder / "README.md").is_file()
    assert tiny.info.mid_timestep == preset.mid_timestep
    assert tiny.info.native_tile_px == preset.native_tile_px
    assert tiny.info.multiple_of_px == preset.multiple_of_px
    assert tiny.info.parameters > 1_000_000


def test_weights_that_do_not_fit_are_one_line(tmp_path: Path) -> None:
    folder = PRESETS["omgsr-tiny"].folder
    assert folder is not None
    for name in ("omgsr.json", "config.json"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelError, match="does not hold omgsr-tiny's weights") as caught:
        load_restorer(tmp_path, device="cpu")
    assert "\n" not in caught.value.message
    (tmp_path / "config.json").write_text('{"widths": "wide"}')
    with pytest.raises(ModelError, match="does not hold omgsr-tiny's weights"):
        load_restorer(tmp_path, device="cpu")


def test_another_mid_timestep_changes_the_signal_too() -> None:
    """The identity holds at every timestep: a flat image stays flat only if encoder and step agree on alpha_bar."""
    other = load_restorer("omgsr-tiny", device="cpu", mid_timestep=200)
    assert other.info.mid_timestep == 200
    assert "200" in other.notes[0]
    restored = upscale_image(other, torch.full((3, 32, 32), 0.75), Size(128, 128))
    assert (restored - 0.75).abs().max() < 0.05


def test_tiles_equal_the_whole_image(tiny: Restorer, photo: torch.Tensor) -> None:
    image = photo[:, :80, :96]
    size = Size(320, 384)
    whole = upscale_image(tiny, image, size, RestoreOptions(tile="off"))
    tiled = upscale_image(tiny, image, size, RestoreOptions(tile=192, batch=2))
    difference = (whole - tiled).abs() * 255
    assert (difference <= 1).float().mean() >= 0.999
    assert difference.max() <= 3


def test_bf16_differs_by_few_levels(tiny: Restorer, photo: torch.Tensor) -> None:
    narrow = load_restorer("omgsr-tiny", device="cpu", precision="bf16")
    assert narrow.precision == "bf16"
    image, size = photo[:, :48, :64], Size(192, 256)
    difference = (upscale_image(narrow, image, size) - upscale_image(tiny, image, size)) * 255
    assert difference.abs().max() < 4
    assert -10 * (difference / 255).square().mean().log10() > 50


def test_a_flat_image_stays_flat(tiny: Restorer) -> None:
    for level in (0.0, 0.25, 0.5, 1.0):
        flat = torch.full((3, 32, 32), level)
        restored = upscale_image(tiny, flat, Size(128, 128))
        assert (restored - level).abs().max() * 255 < 4


def spectrum_peaks(image: torch.Tensor, window: int = 64) -> dict[int, float]:
    """How far the amplitude at periods 2, 4 and 8 px stands out of its neighbours, over the flattest windows.

    Args:
        image: (H, W) luma in [0, 1].
    Returns:
        Period -> amplitude over the geometric mean of the neighbours' (two to four bins away), minus 1; the larger of
        rows and columns.
    """
    patches = image.unfold(0, window, window // 2).unfold(1, window, window // 2).reshape(-1, window, window)
    flattest = patches[patches.std(dim=(1, 2)).argsort()[: max(8, len(patches) // 3)]]
    hann = torch.hann_window(window, periodic=True)
    peaks = {}
    for period in (2, 4, 8):
        k = window // period
        worst = -1.0
        for axis in (1, 2):
            lines = flattest if axis == 2 else flattest.transpose(1, 2)
            lines = lines - lines.mean(2, keepdim=True)
            amplitude = torch.fft.rfft(lines * hann, dim=2).abs().square().mean((0, 1)).sqrt()
            # Mirrored beyond the highest frequency, so that period 2 has neighbours on both sides.
            mirrored = torch.cat([amplitude, amplitude.flip(0)[1:]])
            near = torch.stack([mirrored[k + d] for d in (-4, -3, -2, 2, 3, 4)])
            # What white noise of a tenth of a grey level has is seen by nobody, and is added to both.
            unseen = 0.1 / 255 * hann.square().sum().sqrt()
            worst = max(worst, float((amplitude[k] + unseen) / (near.log().mean().exp() + unseen)) - 1)
        peaks[period] = worst
    return peaks


def test_the_spectrum_measure_detects_a_grid() -> None:
    """The measure below can fail: half a grey level of a 4 px grid on soft noise is found."""
    noise = torch.from_numpy(np.random.default_rng(0).normal(0.5, 0.01, (512, 512))).float()
    assert max(spectrum_peaks(noise).values()) < 0.05
    grid = noise.clone()
    grid[:, ::4] += 1 / 255
    assert spectrum_peaks(grid)[4] > 0.05


def test_no_grid_on_flat_areas(tiny: Restorer, photo: torch.Tensor) -> None:
    restored = upscale_image(tiny, photo, Size(photo.shape[1] * 4, photo.shape[2] * 4))
    peaks = spectrum_peaks(restored.mean(0))
    assert max(peaks.values()) < 0.05, peaks


def test_the_direction_measure_detects_a_hatching() -> None:
    """The measure below can fail: a hatching of one grey level on formless noise stands far out."""
    luma = draw_noisy_grey(0.5, 3, 256, seed=0).mean(0) * 255
    assert strongest_direction_db(luma) < 3
    rows, columns = torch.meshgrid(torch.arange(256), torch.arange(256), indexing="ij")
    assert strongest_direction_db(luma + torch.sin((rows + columns) * 0.8)) > 6


def test_noise_leaves_no_pattern(tiny: Restorer) -> None:
    restored = upscale_image(tiny, draw_noisy_grey(0.7, 30, 160, seed=1), Size(640, 640))
    assert strongest_direction_db(restored.mean(0)[64:576, 64:576] * 255) < 4


def test_large_areas_keep_their_colour(tiny: Restorer, photo: torch.Tensor) -> None:
    image = photo[:, :128, :128]
    size = Size(512, 512)
    drift = (upscale_image(tiny, image, size) - resize(image, size)).unfold(1, 64, 64).unfold(2, 64, 64).mean((3, 4))
    assert drift.square().mean().sqrt() * 255 < 0.3
    assert drift.abs().max() * 255 < 1
    assert drift.mean((1, 2)).abs().max() * 255 < 0.05


def draw_scene(side: int) -> torch.Tensor:
    """Discs with clean edges on a gradient, (3, side, side) in [0, 1]."""
    y, x = torch.meshgrid(torch.arange(side) / side, torch.arange(side) / side, indexing="ij")
    scene = torch.stack([0.2 + 0.6 * x, 0.7 - 0.4 * y, 0.3 + 0.3 * x * y])
    for row, column, radius, color in (
        (0.3, 0.3, 0.18, (0.9, 0.3, 0.2)),
        (0.65, 0.6, 0.22, (0.1, 0.4, 0.7)),
        (0.4, 0.75, 0.1, (0.95, 0.9, 0.8)),
    ):
        inside = ((radius - ((y - row) ** 2 + (x - column) ** 2).sqrt()) * side + 0.5).clamp(0, 1)
        scene = torch.lerp(scene, torch.tensor(color)[:, None, None], inside)
    return scene


@pytest.mark.parametrize(("content", "scale"), [("scene", 1), ("photo", 1.5)])
def test_a_noisy_image_gains_below_the_magnification_of_training(
    tiny: Restorer, photo: torch.Tensor, content: str, scale: float
) -> None:
    # Like most photographs, this one is softer than its pixels once it is enlarged.
    clean = draw_scene(96) if content == "scene" else resize(photo[:, 40:100, 40:100], (160, 160))
    size = Size(*clean.shape[1:])
    small = resize(clean, size.times(1 / scale), 16)
    noise = torch.randn(small.shape, generator=torch.Generator().manual_seed(0)) * 10
    noisy = (small * 255 + noise).round().clamp(0, 255) / 255

    def psnr_db(image: torch.Tensor) -> float:
        return float(-10 * (image - clean).square().mean().log10())

    plain, restored = psnr_db(resize(noisy, size)), psnr_db(upscale_image(tiny, noisy, size))
    assert restored > plain + 3
    at_output_size = psnr_db(upscale_image(tiny, noisy, size, RestoreOptions(process_scale=1)))
    assert restored > at_output_size + 1
    half = psnr_db(upscale_image(tiny, noisy, size, RestoreOptions(strength=0.5)))
    assert plain < half < restored


def test_noise_leaves_no_pattern_at_its_own_size(tiny: Restorer) -> None:
    restored = upscale_image(tiny, draw_noisy_grey(0.5, 10, 160, seed=1), Size(160, 160))
    assert strongest_direction_db(restored.mean(0) * 255) < 4
