"""Sizes, tiles and padding: integers only, height before width."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from omgsr_cli.errors import UsageError
from omgsr_cli.options import SizeOptions


class Size(NamedTuple):
    """Height and width in pixels."""

    height: int
    width: int

    @property
    def area(self) -> int:
        """Number of pixels."""
        return self.height * self.width

    def times(self, factor: float) -> Size:
        """Both sides times a factor, rounded, at least 1."""
        return Size(max(1, round(self.height * factor)), max(1, round(self.width * factor)))

    def __str__(self) -> str:
        return f"{self.width}x{self.height}"


class Tile(NamedTuple):
    """A rectangle of an image: its first row and column, and its size."""

    top: int
    left: int
    height: int
    width: int

    def times(self, numerator: int, denominator: int = 1) -> Tile:
        """The same rectangle on a grid that is finer by a ratio; every side is a multiple of the denominator."""
        return Tile(*(value * numerator // denominator for value in self))

    @property
    def rows(self) -> slice:
        """Rows of the tile in its image."""
        return slice(self.top, self.top + self.height)

    @property
    def columns(self) -> slice:
        """Columns of the tile in its image."""
        return slice(self.left, self.left + self.width)


@dataclass(frozen=True)
class HaloTile:
    """A tile that is computed with a margin; only its core is kept.

    Attributes:
        outer: the part of the image that is passed to the function.
        core: the part of the result that is kept; the cores of a plan cover the image exactly once.
    """

    outer: Tile
    core: Tile

    def times(self, numerator: int, denominator: int = 1) -> HaloTile:
        """The same tile on a grid that is finer by a ratio; every side is a multiple of the denominator."""
        return HaloTile(self.outer.times(numerator, denominator), self.core.times(numerator, denominator))


@dataclass(frozen=True)
class Canvas:
    """The sizes of an image during restoration.

    Attributes:
        output: size of the result.
        working: size that the model restores: the output size, or a larger one if the output is below the magnification
            or the size that the model was trained at.
        padded: the working size with a border on every side, rounded up to the native size and the model's multiple.
        border: pixels of that border; all other padding is at the right and the bottom.
    """

    output: Size
    working: Size
    padded: Size
    border: int = 0


#: Small images are enlarged to the native size up to this aspect ratio; thinner ones are padded.
_THIN = 4


def round_up(value: int, multiple: int) -> int:
    """The smallest multiple that is not below the value."""
    return -(-value // multiple) * multiple


def plan_output_size(source: Size, options: SizeOptions, model_scale: float) -> Size:
    """The exact size of the result, from the options or the model's own scale."""
    if options.size is not None:
        return Size(*options.size)
    if options.long_side is not None:
        return _with_side(source, options.long_side, max(source))
    if options.short_side is not None:
        return _with_side(source, options.short_side, min(source))
    if options.print is not None:
        long, short = options.print
        # The side that reaches the edge of the sheet first is exact.
        if long * min(source) <= short * max(source):
            return _with_side(source, long, max(source))
        return _with_side(source, short, min(source))
    return source.times(options.scale or model_scale)


def _with_side(source: Size, wanted: int, side: int) -> Size:
    # Set the given side exactly: round(side * (wanted / side)) can be off by one.
    height, width = (wanted if value == side else max(1, round(value * wanted / side)) for value in source)
    return Size(height, width)


def plan_canvas(output: Size, least: Size, native_px: int, multiple_px: int, border_px: int = 0) -> Canvas:
    """The sizes for one image.

    A model restores well only at about the magnification that it was trained at, so the working size is at least that
    multiple of the input, and the result is reduced. Images below the native size, which the model has not seen in
    training, are enlarged to it and reduced afterwards, as in the published scripts; larger ones are cut into tiles.
    A thin image would become enormous that way, so its longer side is enlarged to at most four times the native size,
    and the other side is padded.

    Args:
        output: exact size of the result.
        least: size of the input times the magnification; `output` for no lower bound. The sides are independent, so an
            input whose proportions change is restored with its own proportions.
        native_px: side of the square images that the model was trained at.
        multiple_px: the padded sides are multiples of it.
        border_px: border on every side.
    """
    working, longest = Size(*map(max, output, least)), _THIN * native_px
    if min(working) < native_px and max(working) <= _THIN * min(working):
        working = _with_side(working, native_px, min(working))
    elif min(working) < native_px and max(working) < longest:
        working = _with_side(working, longest, max(working))
    height, width = (round_up(max(side, native_px) + 2 * border_px, multiple_px) for side in working)
    return Canvas(output, working, Size(height, width), border_px)


def plan_starts(length: int, tile: int, overlap: int) -> tuple[int, ...]:
    """First positions of tiles that cover a length and overlap by at least `overlap`.

    The tiles are spaced evenly. Moving only the last one back would make two of them overlap much more than the others,
    which would cost time and soften one strip of the image.

    Args:
        length: elements to cover.
        tile: elements of a tile; one tile is enough if it is as long as the whole.
        overlap: minimum number of elements that neighbours share, in 0..tile-1.
    """
    if tile >= length:
        return (0,)
    if not 0 <= overlap < tile:
        raise UsageError(f"an overlap of {overlap} is too large for tiles of {tile}", "use an --overlap below --tile")
    count = 1 + -(-(length - tile) // (tile - overlap))
    return tuple((length - tile) * i // (count - 1) for i in range(count))


def plan_tiles(size: Size, tile: int, overlap: int) -> tuple[Tile, ...]:
    """Cover an image with equal tiles, row by row.

    Args:
        size: size of the image, in pixels or latent elements.
        tile: side of a tile; along a smaller side of the image, tiles are smaller too.
        overlap: minimum number of elements that neighbours share.
    """
    height, width = min(tile, size.height), min(tile, size.width)
    return tuple(
        Tile(top, left, height, width)
        for top in plan_starts(size.height, tile, overlap)
        for left in plan_starts(size.width, tile, overlap)
    )


def plan_halo_tiles(size: Size, core: tuple[int, int], halo: int, multiple: int) -> tuple[HaloTile, ...]:
    """Cut an image into cores, each with a margin that ends at the border of the image.

    Args:
        size: size of the image; both sides are multiples of `multiple`.
        core: height and width of a core, rounded up to the multiple.
        halo: margin on each side, rounded up to the multiple.
        multiple: all edges are multiples of it, so the network's grid is the same in a tile as in the whole image.
    """
    (height, width), halo = (round_up(side, multiple) for side in core), round_up(halo, multiple)
    return tuple(
        HaloTile(
            outer=Tile(outer_top, outer_left, outer_bottom - outer_top, outer_right - outer_left),
            core=Tile(top, left, bottom - top, right - left),
        )
        for top, bottom, outer_top, outer_bottom in _halo_spans(size.height, height, halo)
        for left, right, outer_left, outer_right in _halo_spans(size.width, width, halo)
    )


def halve_halo_tile(tile: HaloTile, halo: int, multiple: int) -> tuple[HaloTile, ...]:
    """Cut a tile in two across its longer side; returns no tiles if that side is only one multiple long.

    Args:
        tile: from `plan_halo_tiles`.
        halo: margin of a cut, rounded up to the multiple.
        multiple: the cut is at a multiple of it.
    """
    core, outer, halo = tile.core, tile.outer, round_up(halo, multiple)
    if core.width > core.height:
        # Turn the tile, cut it, and turn the parts back.
        turned = halve_halo_tile(HaloTile(_turned(outer), _turned(core)), halo, multiple)
        return tuple(HaloTile(_turned(half.outer), _turned(half.core)) for half in turned)
    first = round_up(core.height // 2, multiple)
    if not 0 < first < core.height:
        return ()
    cut, end = core.top + first, outer.top + outer.height
    upper, lower = min(end, cut + halo), max(outer.top, cut - halo)
    return (
        HaloTile(outer._replace(height=upper - outer.top), core._replace(height=first)),
        HaloTile(outer._replace(top=lower, height=end - lower), core._replace(top=cut, height=core.height - first)),
    )


def _turned(tile: Tile) -> Tile:
    return Tile(tile.left, tile.top, tile.width, tile.height)


def _halo_spans(length: int, core: int, halo: int) -> Iterator[tuple[int, int, int, int]]:
    for start in range(0, length, core):
        end = min(length, start + core)
        yield start, end, max(0, start - halo), min(length, end + halo)
