"""Colour fixes against plain NumPy, and against images that the published formulas made."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from places import SHARED

from omgsr_cli.color import RowStatistics, match_color, wavelet_color_fix
from omgsr_cli.errors import ShapeError, UsageError
from omgsr_cli.imaging import WholeRows
from omgsr_cli.options import ColorFix

GOLDEN = SHARED / "golden" / "sd"
SIZES = [(1, 1), (1, 9), (3, 70), (31, 32), (33, 49), (64, 65)]


def images(size: tuple[int, int], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(2, 3, *size, generator=generator), torch.rand(2, 3, *size, generator=generator) * 0.5


def match(restored: torch.Tensor, reference: torch.Tensor, method: ColorFix, rows: int = 10**6) -> torch.Tensor:
    """A fix of 16 bits, given the image in bands of so many rows."""
    bands = iter(restored.clone().split(rows, dim=1))
    return torch.cat(list(match_color(bands, WholeRows(reference), method, 16)), dim=1)


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
def test_wavelet_equals_the_decomposition(size: tuple[int, int]) -> None:
    restored, reference = images(size)
    for levels in (1, 5):
        fixed = wavelet_color_fix(restored, reference, levels)
        for index in np.ndindex(2, 3):
            expected = naive_wavelet(restored[index].double().numpy(), reference[index].double().numpy(), levels)
            np.testing.assert_allclose(fixed[index].numpy(), expected, atol=2e-6)


@pytest.mark.parametrize("size", SIZES[1:])
def test_adain_gives_the_references_mean_and_spread(size: tuple[int, int]) -> None:
    restored, reference = (image[0] * 0.2 + 0.4 for image in images(size))
    fixed = match(restored, reference, "adain")
    for channel in range(3):
        own, wanted = restored[channel].double().numpy(), reference[channel].double().numpy()
        spread, wanted_spread = np.sqrt(own.var(ddof=1) + 1e-5), np.sqrt(wanted.var(ddof=1) + 1e-5)
        expected = (own - own.mean()) / spread * wanted_spread + wanted.mean()
        np.testing.assert_allclose(fixed[channel].numpy(), expected, atol=2e-6)


def test_adain_of_one_pixel_is_the_references_pixel() -> None:
    restored, reference = images((1, 1))
    torch.testing.assert_close(match(restored[0], reference[0], "adain"), reference[0])


def test_flat_channels_stay_finite() -> None:
    fixed = match(torch.full((3, 4, 4), 0.25), torch.full((3, 4, 4), 0.75), "adain")
    torch.testing.assert_close(fixed, torch.full((3, 4, 4), 0.75))


@pytest.mark.parametrize("method", ["adain", "wavelet"])
def test_bands_change_no_bit(method: ColorFix) -> None:
    for size in ((1, 9), (3, 70), (33, 49), (700, 24)):
        restored, reference = (image[0] for image in images(size))
        whole = match(restored, reference, method)
        for rows in (1, 7, 64, 333):
            assert torch.equal(match(restored, reference, method, rows), whole)


def test_the_wavelet_fix_emits_rows_early() -> None:
    """It must not wait for the whole image, which would need memory."""
    restored, reference = (image[0] for image in images((900, 8)))
    given: list[int] = []

    def bands() -> Iterator[torch.Tensor]:
        for band in restored.split(100, dim=1):
            given.append(band.shape[1])
            yield band

    fixed = match_color(bands(), WholeRows(reference), "wavelet", 16)
    next(fixed)
    assert sum(given) <= 300


def test_eight_bit_values_are_clipped_before_a_fix() -> None:
    restored, reference = (image[0] for image in images((20, 30)))
    fixed = torch.cat(list(match_color(iter([restored]), WholeRows(reference), "wavelet", 8)), dim=1)
    expected = match((restored * 255).floor() / 255, reference, "wavelet")
    torch.testing.assert_close(fixed, expected)


def test_inputs_are_not_changed() -> None:
    restored, reference = (image[0] for image in images((40, 41)))
    before = restored.clone(), reference.clone()
    for method in ("adain", "wavelet"):
        list(match_color(iter([restored]), WholeRows(reference), method, 8))
    assert torch.equal(restored, before[0])
    assert torch.equal(reference, before[1])


def test_half_precision_keeps_its_type() -> None:
    restored, reference = (image.half() for image in images((20, 21)))
    exact = wavelet_color_fix(restored.float(), reference.float())
    fixed = wavelet_color_fix(restored, reference)
    assert fixed.dtype == torch.float16
    torch.testing.assert_close(fixed.float(), exact, atol=2e-3, rtol=0)


@pytest.mark.parametrize("cut", [1, 7, 32])
def test_statistics_of_parts_are_those_of_the_whole(cut: int) -> None:
    image = images((33, 21))[0][0]
    whole, parts = RowStatistics(), RowStatistics()
    whole.add(image)
    for part in image.split(cut, dim=1):
        parts.add(part)
    assert torch.equal(parts.whole().mean, whole.whole().mean)
    assert torch.equal(parts.whole().std, whole.whole().std)


def test_statistics_are_summed_in_double() -> None:
    # In float32 a mean near 1e4 leaves hardly any digits for a spread of 0.01.
    image = 1e4 + torch.rand(1, 600, 700, dtype=torch.float64).float() * 2**-6
    statistics = RowStatistics()
    statistics.add(image)
    found = statistics.whole()
    assert found.mean.dtype == torch.float64
    assert abs(float((found.std.square() - 1e-5).sqrt()) / float(image.double().std()) - 1) < 1e-6


def test_methods_are_found_by_name() -> None:
    restored, reference = (image[0] for image in images((9, 9)))
    assert torch.equal(match(restored, reference, "none"), restored)
    expected = wavelet_color_fix(restored[None], reference[None])[0].clamp(0, 1)
    assert torch.equal(match(restored, reference, "wavelet"), expected)
    with pytest.raises(UsageError, match="ycbcr"):
        match(restored, reference, "ycbcr")  # type: ignore[arg-type]


def test_wrong_shapes_are_refused() -> None:
    restored, reference = images((8, 8))
    with pytest.raises(ShapeError):
        wavelet_color_fix(restored, reference[..., :7])
    statistics = RowStatistics()
    statistics.add(restored[0])
    with pytest.raises(ShapeError):
        statistics.add(restored)
    with pytest.raises(ShapeError):
        statistics.add(restored[0, :, :, :7])


def as_tensor(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1).float() / 255


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the shared golden images are not here")
@pytest.mark.parametrize("method", ["adain", "wavelet"])
@pytest.mark.parametrize("image", ["0", "1", "2"])
def test_golden_images_follow_from_unfixed_ones(method: ColorFix, image: str) -> None:
    """The published script fixes 8-bit images and cuts off, not rounds, what it computes to 8 bits again."""
    restored = as_tensor(GOLDEN / "expected" / "none" / f"{image}.png")
    with Image.open(GOLDEN / "in" / f"{image}.png") as source:
        enlarged = source.convert("RGB").resize((restored.shape[2], restored.shape[1]), Image.Resampling.BICUBIC)
    reference = torch.from_numpy(np.array(enlarged)).permute(2, 0, 1).float() / 255
    fixed = match(restored, reference, method)
    difference = fixed.mul(255).floor() - as_tensor(GOLDEN / "expected" / method / f"{image}.png") * 255
    assert float((difference.abs() < 0.5).float().mean()) > 0.999
    assert float(difference.abs().max()) < 2.5
