"""Plans of sizes and tiles are integers, so every size can be tried."""

from __future__ import annotations

from itertools import pairwise

import pytest

from omgsr_cli.errors import UsageError
from omgsr_cli.geometry import (
    Size,
    Tile,
    plan_canvas,
    plan_halo_tiles,
    plan_output_size,
    plan_starts,
    plan_tiles,
    round_up,
)
from omgsr_cli.options import SizeOptions


@pytest.mark.parametrize(("tile", "overlap"), [(64, 32), (64, 0), (96, 32), (7, 3), (512, 256), (1, 0)])
def test_starts_cover_every_length_with_the_overlap(tile: int, overlap: int) -> None:
    for length in range(1, 601):
        starts = plan_starts(length, tile, overlap)
        ends = [min(length, start + tile) for start in starts]
        assert starts[0] == 0
        assert ends[-1] == length
        assert all(end - start == min(tile, length) for start, end in zip(starts, ends, strict=True))
        for end, following in zip(ends, starts[1:], strict=False):
            assert end - following >= overlap


def test_starts_are_as_few_as_can_be_and_evenly_spread() -> None:
    for length in range(65, 601):
        starts = plan_starts(length, 64, 32)
        assert len(starts) == 1 + -(-(length - 64) // 32)
        steps = {b - a for a, b in pairwise(starts)}
        assert max(steps) - min(steps) <= 1


@pytest.mark.parametrize("overlap", [-1, 64, 100])
def test_overlap_must_be_below_the_tile(overlap: int) -> None:
    with pytest.raises(UsageError, match="is too large for tiles of 64"):
        plan_starts(100, 64, overlap)


def test_tiles_of_a_small_image_are_the_image() -> None:
    assert plan_tiles(Size(3, 700), 512, 256) == (Tile(0, 0, 3, 512), Tile(0, 188, 3, 512))
    assert plan_tiles(Size(1, 1), 512, 256) == (Tile(0, 0, 1, 1),)


@pytest.mark.parametrize(("core", "halo"), [((64, 64), 16), ((128, 256), 96), ((100, 20), 5), ((16, 16), 0)])
def test_cores_cover_once_and_outers_have_the_margin(core: tuple[int, int], halo: int) -> None:
    for height, width in [(16, 16), (16, 592), (128, 144), (400, 160), (592, 608)]:
        covered = [[0] * width for _ in range(height)]
        for tile in plan_halo_tiles(Size(height, width), core, halo, 16):
            for row in covered[tile.core.rows]:
                for column in range(tile.core.left, tile.core.left + tile.core.width):
                    row[column] += 1
            assert all(edge % 16 == 0 for edge in (*tile.outer, *tile.core))
            top_margin = tile.core.top - tile.outer.top
            assert top_margin == min(tile.core.top, round_up(halo, 16))
            right = tile.outer.left + tile.outer.width - tile.core.left - tile.core.width
            assert right == min(width - tile.core.left - tile.core.width, round_up(halo, 16))
        assert {count for row in covered for count in row} == {1}


def test_canvas_is_never_below_native_and_always_a_multiple() -> None:
    for height in range(1, 601, 7):
        for width in (1, 3, 63, 64, 65, 127, 600):
            canvas = plan_canvas(Size(height, width), Size(1, 1), 64, 16)
            assert canvas.output == (height, width)
            short, long = sorted((height, width))
            thin = long > 4 * short
            assert min(canvas.padded) >= 64
            assert min(canvas.working) >= 64 or thin
            assert (canvas.working == canvas.output) == (
                min(height, width) >= 64 or (thin and max(height, width) > 255)
            )
            assert all(p == max(64, round_up(w, 16)) for p, w in zip(canvas.padded, canvas.working, strict=True))


@pytest.mark.parametrize("size", [Size(4, 80_000), Size(80_000, 4), Size(1, 300), Size(1, 20), Size(63, 253)])
def test_a_thin_image_is_padded_instead_of_enlarged_enormously(size: Size) -> None:
    canvas = plan_canvas(size, size, 64, 16)
    assert max(canvas.working) == max(256, *size)
    assert canvas.padded.area <= 64 * round_up(max(canvas.working), 16)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (SizeOptions(), (508, 516)),
        (SizeOptions(scale=2.5), (318, 322)),
        (SizeOptions(scale=0.5), (64, 64)),
        (SizeOptions(size=(7, 900)), (7, 900)),
        (SizeOptions(long_side=1000), (984, 1000)),
        (SizeOptions(short_side=1000), (1000, 1016)),
    ],
)
def test_output_size(options: SizeOptions, expected: tuple[int, int]) -> None:
    assert plan_output_size(Size(127, 129), options, 4.0) == expected


def test_named_side_is_exact_for_every_size() -> None:
    for side in range(1, 601):
        long = plan_output_size(Size(side, 37), SizeOptions(long_side=523), 4)
        short = plan_output_size(Size(37, side), SizeOptions(short_side=523), 4)
        assert max(long) == 523
        assert min(short) == 523
        assert min(long) >= 1


def test_one_pixel_remains() -> None:
    assert plan_output_size(Size(1, 1), SizeOptions(scale=0.5), 4) == (1, 1)
    assert str(Size(2, 3)) == "3x2"
    assert Tile(1, 2, 3, 4).times(8) == (8, 16, 24, 32)
