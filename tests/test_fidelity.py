"""PSNR and SSIM against their definitions and published scores."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.ndimage import correlate1d
from torch import Tensor

from omgsr_cli.errors import ShapeError
from omgsr_cli.fidelity import ColorSpace, psnr, ssim
from omgsr_cli.imaging import read_image


def pair(height: int, width: int, count: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    first = torch.rand(count, 3, height, width, generator=generator)
    second = (first + 0.2 * torch.randn(first.shape, generator=generator)).clamp(0, 1)
    # Whole levels, as files have them: rounding is then the same everywhere.
    return (first * 255).round() / 255, (second * 255).round() / 255


def planes(image: Tensor, color_space: ColorSpace, crop: int) -> NDArray[np.float64]:
    pixels = image[0].numpy().astype(np.float64)
    pixels = pixels[:, crop : pixels.shape[1] - crop, crop : pixels.shape[2] - crop]
    if color_space == "rgb":
        return pixels * 255
    weights = {"ycbcr": [65.481, 128.553, 24.966], "yiq": [76.245, 149.685, 29.07]}[color_space]
    return np.tensordot(weights, pixels, 1)[None] + (16 if color_space == "ycbcr" else 0)


def reference_ssim(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    window = np.exp(-np.square(np.arange(-5, 6)) / (2 * 1.5**2))
    window /= window.sum()

    def blur(plane: NDArray[np.float64]) -> NDArray[np.float64]:
        return correlate1d(correlate1d(plane, window, 0), window, 1)[5:-5, 5:-5]

    found = []
    for x, y in zip(np.round(first), np.round(second), strict=True):
        mean_x, mean_y = blur(x), blur(y)
        var_x, var_y, cov = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2, blur(x * y) - mean_x * mean_y
        contrast = np.maximum((2 * cov + 58.5225) / (var_x + var_y + 58.5225), 0)
        found.append(((2 * mean_x * mean_y + 6.5025) / (mean_x**2 + mean_y**2 + 6.5025) * contrast).mean())
    return float(np.mean(found))


@pytest.mark.parametrize("color_space", ["ycbcr", "yiq", "rgb"])
@pytest.mark.parametrize(("height", "width", "crop"), [(11, 11, 0), (49, 50, 0), (37, 23, 4)])
def test_psnr_and_ssim_follow_their_definitions(color_space: ColorSpace, height: int, width: int, crop: int) -> None:
    first, second = pair(height, width)
    x, y = planes(first, color_space, crop), planes(second, color_space, crop)
    mse = np.square((x - y) / 255).mean()
    assert psnr(first, second, color_space=color_space, crop_border_px=crop).item() == pytest.approx(
        -10 * np.log10(mse + 1e-8), abs=1e-9
    )
    assert ssim(first, second, color_space=color_space, crop_border_px=crop).item() == pytest.approx(
        reference_ssim(x, y), abs=1e-9
    )


def test_equal_images_have_the_best_score() -> None:
    first, _ = pair(20, 30)
    assert psnr(first, first).item() == pytest.approx(80)
    assert ssim(first, first).item() == pytest.approx(1)


def test_ssim_of_opposite_structure_is_not_negative() -> None:
    first, _ = pair(20, 30)
    assert 0 <= ssim(first, 1 - first, color_space="rgb").item() < 0.05


def test_a_batch_is_scored_image_by_image() -> None:
    first, second = pair(16, 18, count=3)
    for measure in (psnr, ssim):
        scores = measure(first, second)
        assert scores.shape == (3,)
        assert scores.dtype == torch.float64
        for index in range(3):
            alone = measure(first[index : index + 1], second[index : index + 1])
            assert scores[index].item() == pytest.approx(alone.item(), abs=1e-12)


def test_the_default_is_the_published_protocol() -> None:
    first, second = pair(20, 20)
    for measure in (psnr, ssim):
        assert measure(first, second).item() == measure(first, second, color_space="ycbcr", crop_border_px=0).item()
        assert measure(first, second).item() != measure(first, second, color_space="yiq").item()


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_shapes_that_do_not_fit_are_refused(measure: object) -> None:
    assert callable(measure)
    first, second = pair(20, 20)
    for left, right in ((first, second[..., 1:]), (first[0], second[0]), (first[:, :1], second[:, :1])):
        with pytest.raises(ShapeError):
            measure(left, right)
    with pytest.raises(ShapeError, match="border of 10 px"):
        measure(first, second, crop_border_px=10)
    with pytest.raises(ShapeError):
        measure(first, second, crop_border_px=-1)


def test_an_image_smaller_than_the_window_has_no_ssim() -> None:
    first, second = pair(10, 40)
    assert psnr(first, second).item() > 0
    with pytest.raises(ShapeError, match="11x11"):
        ssim(first, second)


@pytest.mark.parametrize("name", ["realsr", "drealsr"])
def test_scores_equal_those_published_for_another_method(shared: Path, name: str) -> None:
    folder = shared / "benchmarks" / name
    with (folder / "osediff_scores.csv").open(encoding="utf-8") as file:
        published = {row["image"]: row for row in csv.DictReader(file) if row["image"].endswith(".png")}
    images = sorted((folder / "osediff").iterdir())[:3]
    assert images
    for path in images:
        restored, reference = (read_image(each).rgb[None] for each in (path, folder / "hr" / path.name))
        assert psnr(restored, reference).item() == pytest.approx(float(published[path.name]["PSNR"]), abs=1e-5)
        assert ssim(restored, reference).item() == pytest.approx(float(published[path.name]["SSIM"]), abs=1e-5)


def test_scores_equal_the_calibrated_values_of_a_metric_library(shared: Path) -> None:
    folder = shared / "golden" / "iqa"
    with (folder / "calibration_summary.csv").open(encoding="utf-8") as file:
        rows = {row.pop("Method"): row for row in csv.DictReader(file)}
    for name in rows["psnr(ours)"]:
        restored, reference = (read_image(folder / half / name).rgb[None] for half in ("dist_dir", "ref_dir"))
        found = psnr(restored, reference, color_space="rgb").item(), ssim(restored, reference, color_space="yiq").item()
        wanted = [float(rows[row][name]) for row in ("psnr(ours)", "ssim(ours)")]
        assert found == pytest.approx(wanted, abs=6e-5)
