"""Tiles leave no seams: gradients across borders equal those elsewhere."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from omgsr_cli.geometry import Size, plan_tiles
from omgsr_cli.tiling import run_blended

TILE, SIZE = 64, Size(160, 224)


def network(rows: Tensor) -> Tensor:
    """Like a network on tiles: zeros around each tile darken its rim, and each is a little brighter by its mean."""
    kernel = torch.ones(1, 1, 9, 9) / 81
    return F.conv2d(rows, kernel, padding=4) + 0.02 * rows.mean((-1, -2), keepdim=True)


def inner(image: Tensor) -> Tensor:
    """Without the image's own rim, where there are no other tiles to fade into."""
    return image[..., 8:-8, 8:-8]


def gradients(image: Tensor, overlap: int, axis: int) -> tuple[float, float]:
    """Mean size of the differences from row to row (axis 2) or column to column (3): at tiles' borders, elsewhere."""
    tiles = plan_tiles(SIZE, TILE, overlap)
    spans = {(tile.top, tile.height) if axis == 2 else (tile.left, tile.width) for tile in tiles}
    borders = {start for start, _ in spans} | {start + length for start, length in spans}
    at_borders, elsewhere = [], []
    steps = inner(image).diff(dim=axis).abs().mean(dim=(0, 1, 5 - axis))
    for index, step in enumerate(steps.tolist()):
        # The step to this row or column from the one before, in the whole image's count.
        (at_borders if index + 9 in borders else elsewhere).append(step)
    return sum(at_borders) / len(at_borders), sum(elsewhere) / len(elsewhere)


@pytest.mark.parametrize("overlap", [TILE // 2, TILE * 5 // 8])
def test_a_flat_grey_image_stays_flat_across_borders(overlap: int) -> None:
    grey = torch.full((1, 1, *SIZE), 0.5)
    result = run_blended(network, grey, plan_tiles(SIZE, TILE, overlap))
    # A tenth of one level of 8 bit, where a tile's rim by itself is darker by a third and more.
    assert max(gradients(result, overlap, axis)[0] for axis in (2, 3)) < 0.1 / 255
    assert network(grey[..., :TILE, :TILE])[0, 0, 0, 0] < 0.35


@pytest.mark.parametrize("turned", [False, True])
def test_a_gradient_is_as_steep_across_borders_as_elsewhere(turned: bool) -> None:
    overlap = TILE // 2
    ramp = torch.linspace(0.1, 0.9, SIZE.height if turned else SIZE.width)
    image = (ramp[:, None] if turned else ramp[None, :]).expand(1, 1, *SIZE)
    result = run_blended(network, image, plan_tiles(SIZE, TILE, overlap))
    at_borders, elsewhere = gradients(result, overlap, 2 if turned else 3)
    assert at_borders == pytest.approx(elsewhere, rel=0.02)


def test_the_measure_sees_seams_between_unblended_tiles() -> None:
    image = torch.linspace(0.1, 0.9, SIZE.width).expand(1, 1, *SIZE)
    result = torch.empty_like(image)
    for tile in plan_tiles(SIZE, TILE, 0):
        result[..., tile.rows, tile.columns] = network(image[..., tile.rows, tile.columns])
    at_borders, elsewhere = gradients(result, 0, 3)
    assert at_borders > 1.2 * elsewhere
