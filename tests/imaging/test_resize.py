"""Resizing and reflection against Pillow, torch and NumPy."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, product

import numpy as np
import pytest
import torch
from PIL import Image

from omgsr_cli.imaging import (
    FILTERS,
    ColorUnderAlpha,
    ExtendedRows,
    ResizedRows,
    WholeRows,
    extend,
    resize,
    resize_bands,
)

IMAGE = torch.rand(3, 13, 21, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("method", FILTERS)
def test_eight_bit_results_equal_pillow(method: str) -> None:
    levels = (IMAGE * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    for size in ((40, 9), (5, 64), (13, 22), (1, 1)):
        expected = np.asarray(Image.fromarray(levels).resize((size[1], size[0]), FILTERS[method]))
        found = resize(IMAGE, size, method=method)
        assert np.array_equal((found * 255).round().to(torch.uint8).permute(1, 2, 0).numpy(), expected), size


def test_sixteen_bits_are_computed_in_float() -> None:
    expected = np.asarray(Image.fromarray(IMAGE[1].numpy()).resize((28, 20), Image.Resampling.BICUBIC)).clip(0, 1)
    assert np.array_equal(resize(IMAGE, (20, 28), 16)[1].numpy(), expected)
    assert len(np.unique(expected)) > 300
    assert resize(IMAGE, (13, 21)) is IMAGE


@pytest.mark.parametrize(
    ("size", "before"), [((13, 21), 0), ((20, 30), 4), ((14, 21), 0), ((70, 23), 15), ((300, 300), 4)]
)
def test_extension_is_numpys_reflection(size: tuple[int, int], before: int) -> None:
    height, width = (max(side, own + before) for side, own in zip(size, (13, 21), strict=True))
    padding = [(0, 0), (before, height - 13 - before), (before, width - 21 - before)]
    assert np.array_equal(extend(IMAGE, (height, width), before).numpy(), np.pad(IMAGE.numpy(), padding, "reflect"))


def test_a_single_pixel_is_repeated() -> None:
    assert torch.equal(extend(IMAGE[:, :1, :1], (5, 6), 2), IMAGE[:, :1, :1].expand(3, 5, 6))


def test_rows_equal_the_whole_exactly() -> None:
    """Sizes at random: larger, smaller, and larger in one direction only."""
    rng = np.random.default_rng(0)
    for _ in range(60):
        (height, width), (high, wide) = rng.integers(1, 60, 2), rng.integers(1, 250, 2)
        image = torch.rand(2, int(height), int(width), generator=torch.Generator().manual_seed(int(wide)))
        cuts = sorted({0, int(high), *rng.integers(0, high, 3).tolist()})
        for depth in (8, 16):
            rows = ResizedRows(image, (int(high), int(wide)), depth)
            found = torch.cat([rows.read(top, bottom) for top, bottom in pairwise(cuts)], dim=1)
            assert torch.equal(found, resize(image, (int(high), int(wide)), depth)), (height, width, high, wide, depth)


@pytest.mark.parametrize("size", [(64, 96), (61, 97), (1, 1), (1, 50), (50, 1), (200, 9), (7, 200), (129, 33)])
def test_bands_equal_the_whole_exactly(size: tuple[int, int]) -> None:
    """Tall, wide and square images: which axis is resized first depends on the proportions."""
    rng = np.random.default_rng(size[0])
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(size[1]))
    for ratio, depth in product((4, 2.67, 1.01, 1, 8, 0.7), (8, 16)):
        target = (max(1, round(size[0] / ratio)), max(1, round(size[1] / ratio)))
        cuts = sorted({0, size[0], *rng.integers(0, size[0], 5).tolist()})
        bands = (image[:, top:bottom] for top, bottom in pairwise(cuts))
        found = list(resize_bands(bands, size, target, depth))
        assert torch.equal(torch.cat(found, dim=1), resize(image, target, depth)), (ratio, depth)


def test_bands_at_random_sizes_are_resized_exactly_and_late_by_the_filter_only() -> None:
    rng = np.random.default_rng(1)
    for _ in range(40):
        (height, width), (high, wide) = rng.integers(1, 90, 2).tolist(), rng.integers(1, 90, 2).tolist()
        image = torch.rand(1, height, width, generator=torch.Generator().manual_seed(wide))
        taken = 0

        def rows(image: torch.Tensor = image) -> Iterator[torch.Tensor]:
            nonlocal taken
            for taken, row in enumerate(image.split(1, dim=1), 1):  # noqa: B007 - counts what was drawn
                yield row

        given, parts = 0, []
        for part in resize_bands(rows(), (height, width), (high, wide), 8):
            parts.append(part)
            given += part.shape[1]
            assert taken <= given * height / high + 3 * max(1, height / high) + 1
        assert torch.equal(torch.cat(parts, dim=1), resize(image, (high, wide)))


def test_rows_that_are_not_clamped_and_bilinear_ones() -> None:
    image = torch.randn(1, 7, 9, generator=torch.Generator().manual_seed(0))
    expected = np.asarray(Image.fromarray(image[0].numpy()).resize((20, 15), Image.Resampling.BILINEAR))
    assert np.array_equal(ResizedRows(image, (15, 20), 16, "bilinear", clamp=False).read(0, 15)[0].numpy(), expected)
    assert expected.max() > 1


@pytest.mark.parametrize(("size", "before"), [((13, 21), 0), ((20, 30), 4), ((70, 23), 15), ((300, 300), 4)])
def test_extended_rows_are_those_of_the_whole(size: tuple[int, int], before: int) -> None:
    padded = tuple(max(side, own + before) for side, own in zip(size, (13, 21), strict=True))
    rows, whole = ExtendedRows(WholeRows(IMAGE), (padded[0], padded[1]), before), extend(IMAGE, padded, before)
    for top in range(0, padded[0], 6):
        assert torch.equal(rows.read(top, min(top + 6, padded[0])), whole[:, top : top + 6])


def test_rows_with_alpha_do_not_depend_on_cuts() -> None:
    alpha = (torch.rand(1, 13, 21, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    rows = ColorUnderAlpha(IMAGE, alpha).resized((40, 50))
    parts = torch.cat([rows.read(top, min(top + 7, 40)) for top in range(0, 40, 7)], dim=1)
    assert torch.equal(parts, rows.read(0, 40))
