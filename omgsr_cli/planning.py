"""How a picture is cut up for a model: sizes, tiles and memory, decided before anything is computed."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from omgsr_cli.geometry import Canvas, Size, plan_canvas, plan_halo_tiles, plan_tiles, round_up
from omgsr_cli.models.base import RestorerInfo, StageInfo, Tiling
from omgsr_cli.models.devices import free_memory_bytes
from omgsr_cli.options import RestoreOptions

MIN_TILE_PX, MAX_TILE_PX = 256, 4096
"""A blended tile below this would be mostly overlap; above it nothing gets faster."""

# Exact tiles: their margin costs some time, and larger ones cost more memory than that is worth.
_MAX_EXACT_TILE_PX = 1152
# Of the memory that is free, this share may go to one tile: other programs, and the picture itself, need some too.
_MEMORY_SHARE = 0.5
# Three float32 channels each, enlarged, restored and fixed: of the rows that go through together.
_HELD_BYTES_PER_PX = 3 * 3 * 4
# Of a picture that goes through in strips: its latents, for each of its pixels, and what is put aside in memory.
_LATENT_BYTES_PER_PX, _ASIDE_BYTES = 2, 256 << 20


@dataclass(frozen=True)
class StagePlan:
    """How one stage goes over a picture, in pixels of the working size.

    Attributes:
        tiling: "exact" tiles have a margin that is thrown away, "blended" ones fade into each other, and a codec
            that tiles itself ("internal") is given the whole.
        side_px: side of a tile, without its margin; a whole picture has its longer side here.
        margin_px: what blended neighbours share, or the margin on each side of an exact tile.
    """

    tiling: Tiling
    side_px: int
    margin_px: int

    def count(self, size: Size, multiple: int) -> int:
        """How many tiles cover a picture of that size, whose sides are multiples of `multiple`."""
        if self.tiling == "internal":
            return 1
        if self.tiling == "exact":
            return len(plan_halo_tiles(size, self.side_px, self.margin_px, multiple))
        return len(plan_tiles(size, self.side_px, self.margin_px))


@dataclass(frozen=True)
class TilePlan:
    """How a picture is cut up.

    Attributes:
        canvas: the sizes the picture goes through.
        codec: tiles of encoder and decoder.
        step: tiles of the diffusion step.
        in_one_go: each tile is encoded, restored and decoded before the next one begins; both stages then have the
            same tiles. Else all is encoded, then all restored, then all decoded.
        tiles: how many calls of the networks report progress.
        memory_bytes: expected working memory at the peak, weights left out.
        in_strips: a codec that tiles itself has to, because the whole picture does not fit.
    """

    canvas: Canvas
    codec: StagePlan
    step: StagePlan
    in_one_go: bool
    tiles: int
    memory_bytes: int
    in_strips: bool = False


def usable_memory(device: torch.device) -> int:
    """Bytes that a tile may use on a device."""
    return int(free_memory_bytes(device) * _MEMORY_SHARE)


def allowed_memory(options: RestoreOptions, free_bytes: int) -> int:
    """Bytes that a model may work in: what the options say, or else what is free."""
    return free_bytes if options.memory is None else options.memory << 20


def plan_model_canvas(info: RestorerInfo, output: Size) -> Canvas:
    """The sizes that one picture goes through with a model."""
    return plan_canvas(output, info.native_tile_px, info.multiple_of_px, info.border_px)


def plan_restoration(
    info: RestorerInfo, output: Size, options: RestoreOptions, free_bytes: int, tile_limit_px: int = MAX_TILE_PX
) -> TilePlan:
    """Decide sizes and tiles before anything is computed.

    Args:
        info: of the model.
        output: exact size of the result.
        options: `tile`, `overlap`, `batch` and `memory` count here.
        free_bytes: memory that may be used on the model's device, where the options do not say.
        tile_limit_px: upper bound of automatic tiles, lowered when memory turns out to be short.
    """
    canvas = plan_model_canvas(info, output)
    free_bytes = allowed_memory(options, free_bytes)
    if info.codec.tiling == info.step.tiling == "exact":
        return _plan_in_one_go(info, canvas, options, free_bytes, tile_limit_px)
    return _plan_stages(info, canvas, options, free_bytes, tile_limit_px)


def _plan_in_one_go(
    info: RestorerInfo, canvas: Canvas, options: RestoreOptions, free_bytes: int, limit_px: int
) -> TilePlan:
    whole, halo = max(canvas.padded), info.codec.halo_px + info.step.halo_px
    bytes_per_px = max(info.codec.bytes_per_px, info.step.bytes_per_px)
    fitting = _fitting_px(bytes_per_px, free_bytes // options.batch, halo)
    automatic = _even_px(whole, min(limit_px, fitting, _MAX_EXACT_TILE_PX))
    side = min(
        _fixed_px(options, whole) or round_up(automatic, info.multiple_of_px), round_up(whole, info.multiple_of_px)
    )
    stage = StagePlan("exact", side, halo if options.overlap is None else options.overlap)
    memory = _memory(canvas, stage, options.batch * bytes_per_px)
    return TilePlan(canvas, stage, stage, True, stage.count(canvas.padded, info.multiple_of_px), memory)


def _plan_stages(
    info: RestorerInfo, canvas: Canvas, options: RestoreOptions, free_bytes: int, limit_px: int
) -> TilePlan:
    # A tile that the user fixed is never changed; "off" is the whole picture; else the step's size is the model's own.
    fixed = _fixed_px(options, max(canvas.padded))
    codec = StagePlan("internal", max(canvas.padded), 0)
    if info.codec.tiling == "exact":
        fitting = _fitting_px(info.codec.bytes_per_px, free_bytes // options.batch, info.codec.halo_px)
        codec = _plan_stage(info.codec, fixed or min(limit_px, fitting), canvas, options, info)
    step = _plan_stage(info.step, fixed or info.native_tile_px, canvas, options, info)
    tiles = 2 * codec.count(canvas.padded, info.multiple_of_px) + step.count(canvas.padded, info.multiple_of_px)
    codec_memory = _memory(canvas, codec, info.codec.bytes_per_px)
    aside = min(canvas.padded.area * _HELD_BYTES_PER_PX, _ASIDE_BYTES)
    in_strips = free_bytes + canvas.padded.area * _LATENT_BYTES_PER_PX + aside
    is_bounded = codec.tiling == "internal" and codec_memory > in_strips
    step_memory = _memory(canvas, step, info.step.bytes_per_px * options.batch)
    return TilePlan(
        canvas, codec, step, False, tiles, max(in_strips if is_bounded else codec_memory, step_memory), is_bounded
    )


def _plan_stage(
    stage: StageInfo, side_px: int, canvas: Canvas, options: RestoreOptions, info: RestorerInfo
) -> StagePlan:
    """Tiles with the margin that was asked for, or else a halo, or an overlap of half a tile."""
    multiple = info.multiple_of_px
    side_px = round_up(min(side_px, max(canvas.padded)), multiple)
    margin = stage.halo_px if stage.tiling == "exact" else side_px // 2
    margin = margin if options.overlap is None else options.overlap
    return StagePlan(stage.tiling, side_px, margin // multiple * multiple)


def _fixed_px(options: RestoreOptions, whole_px: int) -> int | None:
    """The side of a tile that the user decided, or None."""
    if isinstance(options.tile, int):
        return options.tile
    return whole_px if options.tile == "off" else None


def _fitting_px(bytes_per_px: int, free_bytes: int, halo_px: int) -> int:
    side = int(math.sqrt(max(free_bytes, 0) / bytes_per_px)) - 2 * halo_px
    return max(MIN_TILE_PX, side // 64 * 64)


def _even_px(whole: int, largest: int) -> int:
    """Side of tiles of one size, so that none is a narrow rest that is nearly all margin."""
    return -(-whole // -(-whole // largest))


def _memory(canvas: Canvas, stage: StagePlan, bytes_per_px: int) -> int:
    """Of a tile in work, and of the rows of the picture that go through together with it."""
    outer_px = stage.side_px + (2 * stage.margin_px if stage.tiling == "exact" else 0)
    height, width = canvas.padded
    return min(outer_px**2, height * width) * bytes_per_px + min(outer_px, height) * width * _HELD_BYTES_PER_PX
