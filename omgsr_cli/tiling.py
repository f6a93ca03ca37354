"""Run a function on the tiles of an image and join the results."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import TypeVar

import torch
from torch import Tensor

from omgsr_cli.geometry import HaloTile, Tile

TileFunction = Callable[[Tensor], Tensor]
ReadRows = Callable[[int, int], Tensor]
OnTiles = Callable[[int], None]
AnyTile = TypeVar("AnyTile")
OnError = Callable[[Exception, Sequence[AnyTile]], Sequence[Sequence[AnyTile]]]
"""Called with an exception of the function and its tiles; returns tiles to try instead, or raises."""


def gaussian_window(height: int, width: int) -> Tensor:
    """Weights that decrease from the centre of a tile, so that tiles fade into each other.

    w(y, x) = exp(-((y - cy)/H)^2 / (2 v)) * exp(-((x - cx)/W)^2 / (2 v)), v = 0.01.
    Source: Mixture of Diffusers, arXiv:2302.02412. The weights have no lower bound: where only one tile covers a
    border, its weight divides out again, and a bound would cause a step where tiles begin.

    Returns:
        (height, width) float32 in (1e-11, 1].
    """

    def profile(length: int) -> Tensor:
        position = (torch.arange(length, dtype=torch.float32) - (length - 1) / 2) / length
        return torch.exp(-position.square() / 0.02)

    return profile(height)[:, None] * profile(width)[None, :]


def ramp_window(height: int, width: int, overlap: int) -> Tensor:
    """Weights that rise over the overlap and are constant inside, for any size of the tile.

    If two tiles share exactly the overlap, their weights have a constant sum there. The step from one element to the
    next is then at most 1/(overlap + 1) of the difference between the tiles.

    Args:
        height, width: size of the tile.
        overlap: minimum number of elements that neighbours share.
    Returns:
        (height, width) float32 in (0, 1].
    """

    def profile(length: int) -> Tensor:
        position = torch.arange(1, length + 1, dtype=torch.float32)
        return (torch.minimum(position, length + 1 - position) / (overlap + 1)).clamp(max=1)

    return profile(height)[:, None] * profile(width)[None, :]


def run_blended(
    function: TileFunction,
    source: Tensor,
    tiles: Sequence[Tile],
    *,
    ramp: int | None = None,
    batch: int = 1,
    on_tiles: OnTiles | None = None,
    on_error: OnError[Tile] | None = None,
) -> Tensor:
    """Run a function on overlapping tiles and average the results in float32, weighted by a window.

    Args:
        function: maps (N, C, h, w) to (N, C', h*r, w*r) with one integer r.
        source: (1, C, H, W).
        tiles: tiles of equal size that cover the source.
        ramp: elements of the source over which a tile fades in, at most the overlap; None uses a Gaussian window, which
            suits tiles that overlap by about a half.
        batch: number of tiles per call of the function.
        on_tiles: called after every batch with its number of tiles.
        on_error: called when the function raises, and returns tiles to try instead; it may only regroup them.
    Returns:
        (1, C', H*r, W*r), dtype and device of the function's result.
    """
    if len(tiles) == 1:
        result = function(source)
        if on_tiles:
            on_tiles(1)
        return result
    total, weights, ratio = None, None, 1
    groups = [tiles[start : start + batch] for start in range(0, len(tiles), batch)]

    def run(group: Sequence[Tile]) -> Tensor:
        return function(torch.cat([source[..., tile.rows, tile.columns] for tile in group]))

    for group, results in _run_groups(run, groups, on_error):
        if total is None or weights is None:
            high, wide = results.shape[-2:]
            ratio = wide // group[0].width
            size = [side * ratio for side in source.shape[-2:]]
            total = results.new_zeros((1, results.shape[1], *size), dtype=torch.float32)
            weights = total.new_zeros(size)
            window = gaussian_window(high, wide) if ramp is None else ramp_window(high, wide, ramp * ratio)
            window = window.to(total.device)
        for result, tile in zip(results, (each.times(ratio) for each in group), strict=True):
            total[0, :, tile.rows, tile.columns] += result.float() * window
            weights[tile.rows, tile.columns] += window
        if on_tiles:
            on_tiles(len(group))
    assert total is not None and weights is not None
    return total.div_(weights).to(results.dtype)


def run_exact(
    function: TileFunction,
    read: ReadRows,
    tiles: Sequence[HaloTile],
    *,
    batch: int = 1,
    on_tiles: OnTiles | None = None,
    on_error: OnError[HaloTile] | None = None,
) -> Iterator[Tensor]:
    """Run a function of limited reach on tiles with a margin and keep their cores, with the result of the whole image.

    Args:
        function: maps (N, C, h, w) to (N, C', h*r, w*r) with the same ratio r for all tiles, an integer or 1 / integer.
            Its reach must not exceed the tiles' margin.
        read: returns the rows of the source from top to bottom, (1, C, bottom - top, W).
        tiles: from `plan_halo_tiles`, row by row; if r is 1/n, every edge must be a multiple of n.
        batch: number of tiles of the same size and row per call of the function.
        on_tiles: called after every batch with its number of tiles.
        on_error: called when the function raises, and returns tiles to try instead, which may be smaller.
    Yields:
        (1, C', n, W*r), one band for each row of tiles, from top to bottom, with the dtype and device of the
        function's result.
    """
    for _, row in groupby(tiles, key=lambda tile: tile.core.top):
        yield _exact_band(function, read, list(row), batch, on_tiles, on_error)


def _exact_band(
    function: TileFunction,
    read: ReadRows,
    tiles: Sequence[HaloTile],
    batch: int,
    on_tiles: OnTiles | None,
    on_error: OnError[HaloTile] | None,
) -> Tensor:
    """All cores of one row of tiles."""
    above, top, core_height = tiles[0].outer.top, tiles[0].core.top, tiles[0].core.height
    source = read(above, above + tiles[0].outer.height)
    band = None

    def run(group: Sequence[HaloTile]) -> Tensor:
        outers = [tile.outer._replace(top=tile.outer.top - above) for tile in group]
        return function(torch.cat([source[..., outer.rows, outer.columns] for outer in outers]))

    for group, results in _run_groups(run, _equal_groups(tiles, batch), on_error):
        ratio = _ratio(results.shape[-1], group[0].outer.width)
        if band is None:
            height, width = (side * ratio[0] // ratio[1] for side in (core_height, source.shape[-1]))
            # In the layout of the tiles: to change it would take as long as to copy it several times.
            if results.is_contiguous(memory_format=torch.channels_last):
                band = results.new_empty((1, height, width, results.shape[1])).permute(0, 3, 1, 2)
            else:
                band = results.new_empty((1, results.shape[1], height, width))
        for result, tile in zip(results, group, strict=True):
            core = tile.core.times(*ratio)
            inner = core._replace(
                top=core.top - tile.outer.times(*ratio).top, left=core.left - tile.outer.times(*ratio).left
            )
            place = core._replace(top=core.top - top * ratio[0] // ratio[1])
            band[0, :, place.rows, place.columns] = result[:, inner.rows, inner.columns]
        if on_tiles:
            on_tiles(len(group))
    assert band is not None
    return band


def _run_groups(
    run: Callable[[Sequence[AnyTile]], Tensor],
    groups: Sequence[Sequence[AnyTile]],
    on_error: OnError[AnyTile] | None,
) -> Iterator[tuple[Sequence[AnyTile], Tensor]]:
    """Yield each group, or the groups that replace it, with its results; finished tiles are not run again."""
    waiting = deque(groups)
    while waiting:
        group = waiting.popleft()
        try:
            results = run(group)
        except (RuntimeError, MemoryError) as error:
            if on_error is None:
                raise
            waiting.extendleft(reversed(on_error(error, group)))
            continue
        yield group, results


def _equal_groups(tiles: Sequence[HaloTile], batch: int) -> list[list[HaloTile]]:
    groups = []
    for _, run in groupby(tiles, key=lambda tile: (tile.outer.height, tile.outer.width)):
        equal = list(run)
        groups += [equal[start : start + batch] for start in range(0, len(equal), batch)]
    return groups


def _ratio(result: int, source: int) -> tuple[int, int]:
    return (result // source, 1) if result >= source else (1, source // result)
