"""Tiles put together equal the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from omgsr_cli.geometry import HaloTile, Size, Tile, halve_halo_tile, plan_halo_tiles, plan_tiles
from omgsr_cli.tiling import TileFunction, gaussian_window, ramp_window, run_blended, run_exact


def exact(function: TileFunction, source: Tensor, tiles: Sequence[HaloTile], **options: Any) -> Tensor:
    """All bands of `run_exact` together."""
    return torch.cat(list(run_exact(function, lambda top, bottom: source[:, :, top:bottom], tiles, **options)), dim=2)


SIZES = [(1, 1), (49, 50), (64, 64), (65, 64), (127, 129), (3, 170)]


@pytest.mark.parametrize("size", SIZES)
def test_blending_a_pointwise_function_changes_nothing(size: tuple[int, int]) -> None:
    source = torch.rand(1, 3, *size)
    tiles = plan_tiles(Size(*size), 64, 32)
    for batch in (1, 3):
        result = run_blended(lambda tile: tile * 2 - 1, source, tiles, batch=batch)
        torch.testing.assert_close(result, source * 2 - 1, rtol=0, atol=4e-6)


def test_tiles_that_disagree_fade_into_each_other() -> None:
    """Each tile adds its own constant, the worst case: the result must move in steps much smaller than these."""
    constants = iter(torch.linspace(-1, 1, 5))
    result = run_blended(lambda x: x + next(constants), torch.zeros(1, 1, 64, 192), plan_tiles(Size(64, 192), 64, 32))
    step = result.diff(dim=3).abs().max()
    assert step < 0.12
    assert result.max() - result.min() > 1.9


@pytest.mark.parametrize("tile", [64, 256, 1024])
def test_a_ramp_fades_over_the_overlap_whatever_the_tile(tile: int) -> None:
    """Two tiles that differ by 1: no step between neighbours is more than the overlap's share of it."""
    constants = iter((0.0, 1.0))
    size = Size(16, 2 * tile - 32)
    result = run_blended(lambda x: x + next(constants), torch.zeros(1, 1, *size), plan_tiles(size, tile, 32), ramp=32)
    assert result.diff(dim=3).abs().max() <= 1 / 33 + 1e-6
    assert (result[0, 0, 0, 0], result[0, 0, 0, -1]) == (0, 1)


def test_a_ramp_without_overlap_is_level() -> None:
    assert ramp_window(3, 5, 0).eq(1).all()


def test_window_is_symmetric_and_never_vanishes() -> None:
    window = gaussian_window(48, 64)
    assert window.shape == (48, 64)
    assert torch.equal(window, window.flip(0))
    assert torch.equal(window, window.flip(1))
    assert window.min() > 1e-12
    assert window.max() <= 1


@pytest.mark.parametrize("size", [(16, 16), (48, 160), (160, 144)])
@pytest.mark.parametrize("batch", [1, 4])
def test_exact_tiles_equal_the_whole(size: tuple[int, int], batch: int) -> None:
    kernel = torch.randn(3, 3, 9, 9)

    def function(x: Tensor) -> Tensor:
        return F.conv2d(F.relu(F.conv2d(x, kernel, padding=4)), kernel, padding=4)

    source = torch.randn(1, 3, *size)
    done: list[int] = []
    tiles = plan_halo_tiles(Size(*size), (32, 48), 8, 16)
    result = exact(function, source, tiles, batch=batch, on_tiles=done.append)
    torch.testing.assert_close(result, function(source), rtol=1e-4, atol=1e-3)
    assert sum(done) == len(tiles)


def test_exact_tiles_across_a_change_of_scale() -> None:
    source = torch.rand(1, 2, 40, 56)
    tiles = plan_halo_tiles(Size(40, 56), (16, 16), 0, 8)
    up = exact(lambda x: x.repeat_interleave(8, 2).repeat_interleave(8, 3), source, tiles)
    assert torch.equal(up, source.repeat_interleave(8, 2).repeat_interleave(8, 3))
    down = exact(lambda x: F.avg_pool2d(x, 8), up, [tile.times(8) for tile in tiles])
    torch.testing.assert_close(down, source)


def test_too_small_a_margin_is_visible() -> None:
    """The test above can fail: with half the margin the result differs."""
    kernel = torch.ones(1, 1, 17, 17)
    source = torch.rand(1, 1, 64, 64)
    size = Size(64, 64)
    tiles = plan_halo_tiles(size, (16, 16), 4, 4)
    result = exact(lambda x: F.conv2d(x, kernel, padding=8), source, tiles)
    assert (result - F.conv2d(source, kernel, padding=8)).abs().max() > 1


@pytest.mark.parametrize("size", [(48, 160), (160, 48), (64, 64)])
def test_halves_of_a_tile_are_the_tile(size: tuple[int, int]) -> None:
    kernel = torch.randn(1, 1, 9, 9)
    source = torch.randn(1, 1, *size)
    tiles = plan_halo_tiles(Size(*size), (64, 64), 8, 8)
    halves: list[HaloTile] = []

    def short(tile: Tensor) -> Tensor:
        if max(tile.shape[2:]) > 60:
            raise RuntimeError("out of memory")
        return F.conv2d(tile, kernel, padding=4)

    def halve(error: Exception, group: Sequence[HaloTile]) -> list[list[HaloTile]]:
        found = halve_halo_tile(group[0], 8, 8)
        halves.extend(found)
        return [[half] for half in found]

    result = exact(short, source, tiles, on_error=halve)
    assert len(halves) >= 2
    torch.testing.assert_close(result, F.conv2d(source, kernel, padding=4), rtol=1e-4, atol=1e-4)


def test_a_tile_of_one_multiple_has_no_halves() -> None:
    assert halve_halo_tile(HaloTile(Tile(0, 0, 24, 24), Tile(8, 8, 8, 8)), 8, 8) == ()
