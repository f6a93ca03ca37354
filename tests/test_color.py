"""Colour fixes against plain NumPy, and against pictures that the published formulas made."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from omgsr_cli.color import (
    ChannelStatistics,
    adain_color_fix,
    adain_from_statistics,
    channel_statistics,
    match_color,
    wavelet_color_fix,
)
from omgsr_cli.errors import ShapeError, UsageError

SHARED = Path(os.environ.get("OMGSR_SHARED", Path(__file__).resolve().parents[2] / "shared"))
GOLDEN = SHARED / "golden" / "sd"
SIZES = [(1, 1), (1, 9), (3, 70), (31, 32), (33, 49), (64, 65)]


def pictures(size: tuple[int, int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, 3, *size, generator=generator), torch.rand(2, 3, *size, generator=generator) * 0.5


def naive_blur(plane: NDArray[np.float64], radius: int) -> NDArray[np.float64]:
    """One a-trous level as it is written down: nine weighted, dilated neighbours with the edge repeated."""
    height, width = plane.shape
    padded = np.pad(plane, radius, mode="edge")
    kernel = np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
    blurred = np.zeros_like(plane)
    for row in range(3):
        for column in range(3):
            top, left = row * radius, column * radius
            blurred += kernel[row, column] * padded[top : top + height, left : left + width]
    return blurred


def naive_wavelet(restored: NDArray[np.float64], reference: NDArray[np.float64], levels: int) -> NDArray[np.float64]:
    high = np.zeros_like(restored)
    for level in range(levels):
        low = naive_blur(restored, 2**level)
        high += restored - low
        restored = low
        reference = naive_blur(reference, 2**level)
    return high + reference


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("levels", [1, 5])
def test_wavelet_equals_the_decomposition(size: tuple[int, int], levels: int) -> None:
    restored, reference = pictures(size)
    fixed = wavelet_color_fix(restored, reference, levels)
    for index in np.ndindex(2, 3):
        expected = naive_wavelet(restored[index].double().numpy(), reference[index].double().numpy(), levels)
        np.testing.assert_allclose(fixed[index].numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("size", SIZES[1:])
def test_adain_gives_the_references_mean_and_spread(size: tuple[int, int]) -> None:
    restored, reference = pictures(size)
    fixed = adain_color_fix(restored, reference)
    for index in np.ndindex(2, 3):
        own, wanted = restored[index].double().numpy(), reference[index].double().numpy()
        spread, wanted_spread = np.sqrt(own.var(ddof=1) + 1e-5), np.sqrt(wanted.var(ddof=1) + 1e-5)
        expected = (own - own.mean()) / spread * wanted_spread + wanted.mean()
        np.testing.assert_allclose(fixed[index].numpy(), expected, atol=2e-6)


def test_adain_of_one_pixel_is_the_references_pixel() -> None:
    restored, reference = pictures((1, 1))
    torch.testing.assert_close(adain_color_fix(restored, reference), reference)


def test_flat_channels_stay_finite() -> None:
    fixed = adain_color_fix(torch.full((1, 3, 4, 4), 0.25), torch.full((1, 3, 4, 4), 0.75))
    torch.testing.assert_close(fixed, torch.full((1, 3, 4, 4), 0.75))


def test_inputs_are_left_alone() -> None:
    restored, reference = pictures((40, 41))
    before = restored.clone(), reference.clone()
    wavelet_color_fix(restored, reference)
    adain_color_fix(restored, reference)
    assert torch.equal(restored, before[0])
    assert torch.equal(reference, before[1])


def test_half_precision_keeps_its_type() -> None:
    restored, reference = (image.half() for image in pictures((20, 21)))
    exact = wavelet_color_fix(restored.float(), reference.float())
    fixed = wavelet_color_fix(restored, reference)
    assert fixed.dtype == torch.float16
    torch.testing.assert_close(fixed.float(), exact, atol=2e-3, rtol=0)
    assert adain_color_fix(restored, reference).dtype == torch.float16


@pytest.mark.parametrize("cut", [1, 7, 32])
def test_statistics_of_parts_merge_to_the_whole(cut: int) -> None:
    image, _ = pictures((33, 21))
    merged = channel_statistics(image[:, :, :cut]).merged(channel_statistics(image[:, :, cut:]))
    whole = channel_statistics(image)
    assert merged.count == whole.count == 33 * 21
    torch.testing.assert_close(merged.mean, whole.mean, atol=1e-12, rtol=0)
    torch.testing.assert_close(merged.std, whole.std, atol=1e-12, rtol=0)


def test_statistics_are_summed_in_double() -> None:
    # In float32 a mean near 1e4 leaves hardly any digits for a spread of 0.01.
    image = 1e4 + torch.rand(1, 1, 600, 700, dtype=torch.float64).float() * 2**-6
    expected = image.double().std()
    statistics = channel_statistics(image)
    assert statistics.mean.dtype == torch.float64
    assert abs(float((statistics.sum_of_squares / (600 * 700 - 1)).sqrt()) / float(expected) - 1) < 1e-6


def test_a_part_can_be_fixed_with_the_wholes_statistics() -> None:
    restored, reference = pictures((16, 17))
    own, wanted = channel_statistics(restored), channel_statistics(reference)
    parts = [adain_from_statistics(part, own, wanted) for part in restored.split(5, dim=2)]
    torch.testing.assert_close(torch.cat(parts, dim=2), adain_color_fix(restored, reference))


def test_methods_by_name() -> None:
    restored, reference = pictures((9, 9))
    assert match_color(restored, reference, "none") is restored
    assert torch.equal(match_color(restored, reference, "adain"), adain_color_fix(restored, reference))
    assert torch.equal(match_color(restored, reference, "wavelet"), wavelet_color_fix(restored, reference))
    with pytest.raises(UsageError, match="ycbcr"):
        match_color(restored, reference, "ycbcr")  # type: ignore[arg-type]


def test_wrong_shapes_are_refused() -> None:
    restored, reference = pictures((8, 8))
    with pytest.raises(ShapeError):
        wavelet_color_fix(restored, reference[..., :7])
    with pytest.raises(ShapeError):
        adain_color_fix(restored, reference[:1])
    with pytest.raises(ShapeError):
        channel_statistics(restored[0])
    assert isinstance(channel_statistics(restored), ChannelStatistics)


def as_tensor(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)[None].float() / 255


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the shared golden pictures are not here")
@pytest.mark.parametrize("method", ["adain", "wavelet"])
@pytest.mark.parametrize("picture", ["0", "1", "2"])
def test_golden_pictures_follow_from_the_unfixed_ones(method: str, picture: str) -> None:
    """The published script fixes 8-bit pictures and cuts off, not rounds, what it computes to 8 bits again."""
    restored = as_tensor(GOLDEN / "expected" / "none" / f"{picture}.png")
    with Image.open(GOLDEN / "in" / f"{picture}.png") as source:
        enlarged = source.convert("RGB").resize((restored.shape[3], restored.shape[2]), Image.Resampling.BICUBIC)
    reference = torch.from_numpy(np.array(enlarged)).permute(2, 0, 1)[None].float() / 255
    fixed = match_color(restored, reference, method)  # type: ignore[arg-type]
    difference = fixed.clamp(0, 1).mul(255).floor() - as_tensor(GOLDEN / "expected" / method / f"{picture}.png") * 255
    assert float((difference.abs() < 0.5).float().mean()) > 0.999
    assert float(difference.abs().max()) < 2.5
