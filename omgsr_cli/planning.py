"""Plan sizes, tiles and memory of an image before anything is computed."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from omgsr_cli.geometry import Canvas, Size, plan_canvas, plan_starts, round_up
from omgsr_cli.options import RestoreOptions

if TYPE_CHECKING:
    import torch

    from omgsr_cli.models.base import RestorerInfo, StageInfo, Tiling

MIN_TILE_PX = 256
"""Smaller tiles would be mostly overlap or margin."""

# Of exact tiles on CPUs: twice 1152 makes 50 megapixels a seventh faster for twice the memory, and tiles larger than
# this gain little (benchmarks/tiles.py). GPUs need large tiles.
_MAX_EXACT_TILE_PX = 2304
# Limit for such a tile and its row together on CPUs, where more is free.
_MOST_BYTES = 1000 << 20
# Share of the free memory that one tile may use: other programs and the image itself need memory too.
_MEMORY_SHARE = 0.5
# Share of a graphics card's own free memory: little else needs it.
_CARD_SHARE = 0.8
# Largest batch that is chosen for a GPU: an estimate, not measured yet.
_MOST_TOGETHER = 8
# Three float32 channels: of one row of tiles, as it is given and as it is restored.
_IMAGE_BYTES_PER_PX = 3 * 4
_HELD_BYTES_PER_PX = 2 * _IMAGE_BYTES_PER_PX
# What neighbours share where the tiles of a network are blended, as a part of their side.
_NETWORK_OVERLAP = 1 / 8
# Limit for a row of exact tiles, if chosen automatically: tiles of wide images are lower than wide.
_MOST_HELD_BYTES = 400 << 20
# For an image in strips: bytes of its latents per pixel, and what is stored in memory meanwhile.
_LATENT_BYTES_PER_PX, _ASIDE_BYTES = 2, 256 << 20


@dataclass(frozen=True)
class StagePlan:
    """The tiles of one stage, in pixels of the working size.

    Attributes:
        tiling: "exact" tiles have a margin that is discarded, "blended" tiles fade into each other, and "internal" is a
            codec that gets the whole image and tiles it itself.
        side_px: side of a tile without its margin; for a whole image, its longer side.
        margin_px: overlap of blended neighbours, or the margin on each side of an exact tile.
        height_px: height of an exact tile that is lower than wide; otherwise None.
    """

    tiling: Tiling
    side_px: int
    margin_px: int
    height_px: int | None = None

    @property
    def core_px(self) -> Size:
        """Height and width of a tile, without its margin."""
        return Size(self.height_px or self.side_px, self.side_px)

    def count(self, size: Size, multiple: int) -> int:
        """The number of tiles for an image of this size, whose sides are multiples of `multiple`."""
        if self.tiling == "internal":
            return 1
        if self.tiling == "exact":
            cores = (round_up(core, multiple) for core in self.core_px)
            return math.prod(-(-side // core) for side, core in zip(size, cores, strict=True))
        return math.prod(len(plan_starts(side, self.side_px, self.margin_px)) for side in size)


@dataclass(frozen=True)
class TilePlan:
    """The sizes and tiles of an image.

    Attributes:
        canvas: the sizes of the image during restoration.
        codec: tiles of encoder and decoder.
        step: tiles of the diffusion step.
        in_one_go: encode, restore and decode each tile before the next one; both stages then have the same tiles.
            Otherwise the whole image is encoded, then restored, then decoded.
        tiles: number of network calls that report progress; 0 if the network is not used.
        memory_bytes: expected peak of the working memory, without weights.
        in_strips: the whole image does not fit in memory, so an "internal" codec works in strips.
        batch: number of tiles per call of the network.
    """

    canvas: Canvas
    codec: StagePlan
    step: StagePlan
    in_one_go: bool
    tiles: int
    memory_bytes: int
    in_strips: bool = False
    batch: int = 1


@dataclass(frozen=True)
class Execution:
    """Where a model runs, as far as it changes the tiles.

    Attributes:
        device: kind of the device, such as "cuda".
        precision: number format of the networks: "fp32", "bf16" or "fp16".
    """

    device: str = "cpu"
    precision: str = "fp32"

    def needs(self, stage: StageInfo) -> StageInfo:
        """The stage with its working memory here."""
        if self.device == "cpu":
            return stage
        from omgsr_cli.models.devices import working_bytes

        return replace(stage, bytes_per_px=working_bytes(stage.bytes_per_px, self.device, self.precision))


def usable_memory(device: torch.device) -> int:
    """The bytes that a tile may use on a device."""
    # The plans themselves need no torch.
    from omgsr_cli.models.devices import free_memory_bytes, shares_host_memory

    return int(free_memory_bytes(device) * (_MEMORY_SHARE if shares_host_memory(device) else _CARD_SHARE))


def allowed_memory(options: RestoreOptions, free_bytes: int) -> int:
    """The bytes of working memory that a model may use: those of the options, or the free ones."""
    return free_bytes if options.memory is None else options.memory << 20


def process_scale(model_scale: float, options: RestoreOptions) -> float:
    """The minimum multiple of the input size that an image is restored at; 1 means no lower bound."""
    return model_scale if options.process_scale == "auto" else options.process_scale


def wanted_size(info: RestorerInfo, source: Size, output: Size, options: RestoreOptions) -> Size:
    """The size that an image is restored at, before it is enlarged to the model's native size."""
    if options.process_scale == 1 or options.strength == 0:
        return output
    return Size(*map(max, output, source.times(process_scale(info.scale, options))))


def plan_model_canvas(info: RestorerInfo, source: Size, output: Size, options: RestoreOptions) -> Canvas:
    """The sizes of one image during restoration by a model.

    Args:
        info: description of the model.
        source: size of the input.
        output: exact size of the result.
        options: `process_scale` and `strength` are used here.
    """
    if options.strength == 0:
        return Canvas(output, output, output)
    if info.input == "lq":
        padded = Size(*(round_up(side, info.multiple_of_px) for side in source))
        return Canvas(output, source, padded)
    wanted = wanted_size(info, source, output, options)
    return plan_canvas(output, wanted, info.native_tile_px, info.multiple_of_px, info.border_px)


def plan_restoration(
    info: RestorerInfo,
    source: Size,
    output: Size,
    options: RestoreOptions,
    free_bytes: int,
    execution: Execution = Execution(),
) -> TilePlan:
    """Choose sizes and tiles.

    Args:
        info: description of the model.
        source: size of the input.
        output: exact size of the result.
        options: `process_scale`, `strength`, `tile`, `overlap`, `batch` and `memory` are used here.
        free_bytes: memory that may be used on the model's device if the options set no limit.
        execution: where the model runs.
    """
    info = replace(info, codec=execution.needs(info.codec), step=execution.needs(info.step))
    canvas = plan_model_canvas(info, source, output, options)
    if options.strength == 0:
        nothing = StagePlan("exact", max(output), 0)
        return TilePlan(canvas, nothing, nothing, True, 0, min(output.area * _HELD_BYTES_PER_PX, _ASIDE_BYTES))
    free_bytes = allowed_memory(options, free_bytes)
    if info.codec.tiling == info.step.tiling == "exact":
        return _plan_in_one_go(info, canvas, options, free_bytes, execution)
    if info.input == "lq":
        return _plan_blended_network(info, canvas, options, free_bytes)
    return _plan_stages(info, canvas, options, free_bytes, execution)


def _plan_in_one_go(
    info: RestorerInfo, canvas: Canvas, options: RestoreOptions, free_bytes: int, execution: Execution
) -> TilePlan:
    halo, multiple, batch = info.codec.halo_px + info.step.halo_px, info.multiple_of_px, options.batch or 1
    bytes_per_px = batch * max(info.codec.bytes_per_px, info.step.bytes_per_px)
    held = _held_bytes_per_px(info)
    stage = _plan_exact(canvas, halo, bytes_per_px, held, multiple, options, free_bytes, execution)
    memory = _memory(canvas, stage, bytes_per_px, held)
    return TilePlan(canvas, stage, stage, True, stage.count(canvas.padded, multiple), memory, batch=batch)


def _plan_exact(
    canvas: Canvas,
    halo_px: int,
    bytes_per_px: int,
    held_bytes_per_px: int,
    multiple: int,
    options: RestoreOptions,
    free_bytes: int,
    execution: Execution,
) -> StagePlan:
    margin = halo_px if options.overlap is None else options.overlap
    whole = round_up(max(canvas.padded), multiple)
    fixed = _fixed_px(options, whole)
    if fixed is not None:
        return StagePlan("exact", min(fixed, whole), margin)
    most_px = whole
    if execution.device == "cpu":
        most_px, free_bytes = _MAX_EXACT_TILE_PX, min(free_bytes, _MOST_BYTES)
    bytes_each = bytes_per_px, held_bytes_per_px
    height, width = _cheapest_core(canvas.padded, margin, multiple, *bytes_each, free_bytes, most_px)
    return StagePlan("exact", width, margin, height)


def _cheapest_core(
    size: Size, margin: int, multiple: int, bytes_per_px: int, held_bytes_per_px: int, free_bytes: int, most_px: int
) -> Size:
    """The even division with the least work on margins, among those whose tiles and rows of tiles fit in memory."""
    height, width = size
    best: tuple[int, Size] | None = None
    for rows in range(-(-height // most_px), max(height // MIN_TILE_PX, 1) + 1):
        core_height = round_up(-(-height // rows), multiple)
        outer = min(core_height + 2 * margin, height)
        held = outer * width * held_bytes_per_px
        fitting = (free_bytes - held) // (bytes_per_px * outer)
        largest = width if fitting >= width else (fitting - 2 * margin) // multiple * multiple
        largest = min(largest, most_px)
        if largest < min(MIN_TILE_PX, width) or held > _MOST_HELD_BYTES:
            continue
        columns = -(-width // largest)
        work = (height + 2 * margin * (rows - 1)) * (width + 2 * margin * (columns - 1))
        if best is None or work < best[0]:
            best = work, Size(core_height, round_up(-(-width // columns), multiple))
    if best is not None:
        return best[1]
    return Size(*(round_up(min(MIN_TILE_PX, side), multiple) for side in size))


def _plan_stages(
    info: RestorerInfo, canvas: Canvas, options: RestoreOptions, free_bytes: int, execution: Execution
) -> TilePlan:
    # A tile size that the user gave is never changed; "off" is the whole image; "auto" uses the step's native size.
    fixed, of_codec = _fixed_px(options, max(canvas.padded)), info.codec
    codec = StagePlan("internal", max(canvas.padded), 0)
    if of_codec.tiling == "exact":
        codec = _plan_exact(
            canvas,
            of_codec.halo_px,
            of_codec.bytes_per_px,
            _HELD_BYTES_PER_PX,
            info.multiple_of_px,
            options,
            free_bytes,
            execution,
        )
    step = _plan_step(info, fixed or info.native_tile_px, canvas, options)
    steps = step.count(canvas.padded, info.multiple_of_px)
    tiles = 2 * codec.count(canvas.padded, info.multiple_of_px) + steps
    tile_bytes = _memory(canvas, step, info.step.bytes_per_px)
    batch = options.batch or (1 if execution.device == "cpu" else _fitting_batch(tile_bytes, free_bytes, steps))
    codec_memory = _memory(canvas, codec, info.codec.bytes_per_px)
    aside = min(canvas.padded.area * _HELD_BYTES_PER_PX, _ASIDE_BYTES)
    in_strips = free_bytes + canvas.padded.area * _LATENT_BYTES_PER_PX + aside
    is_bounded = codec.tiling == "internal" and codec_memory > in_strips
    step_memory = _memory(canvas, step, info.step.bytes_per_px * batch)
    memory = max(in_strips if is_bounded else codec_memory, step_memory)
    return TilePlan(canvas, codec, step, False, tiles, memory, is_bounded, batch)


def _fitting_batch(tile_bytes: int, free_bytes: int, tiles: int) -> int:
    """The batch for a GPU: a power of two, so that few sizes occur."""
    most = max(min(_MOST_TOGETHER, tiles, free_bytes // max(tile_bytes, 1)), 1)
    return int(2 ** (most.bit_length() - 1))


def _plan_blended_network(info: RestorerInfo, canvas: Canvas, options: RestoreOptions, free_bytes: int) -> TilePlan:
    """Tiles of a network that takes the low-quality image; the whole restored image is held."""
    multiple, bytes_per_px = info.multiple_of_px, info.step.bytes_per_px * (options.batch or 1)
    whole, held = round_up(max(canvas.padded), multiple), canvas.padded.area * _held_bytes_per_px(info)
    side = _fixed_px(options, whole)
    if side is None:
        fitting = int((max(free_bytes - held, 0) / bytes_per_px) ** 0.5) // multiple * multiple
        side = whole if fitting >= whole else max(fitting, multiple)
        side = min(side, round_up(info.native_tile_px, multiple)) if side < whole else side
    side = min(round_up(side, multiple), whole)
    margin = int(side * _NETWORK_OVERLAP) if options.overlap is None else options.overlap
    step = StagePlan("blended", side, margin // multiple * multiple)
    tile = Size(*(min(side, length) for length in canvas.padded))
    memory = held + tile.area * bytes_per_px
    codec = StagePlan("exact", whole, 0)
    return TilePlan(canvas, codec, step, False, step.count(canvas.padded, multiple), memory, batch=options.batch or 1)


def _held_bytes_per_px(info: RestorerInfo) -> int:
    return _IMAGE_BYTES_PER_PX * (1 + info.factor**2)


def _plan_step(info: RestorerInfo, side_px: int, canvas: Canvas, options: RestoreOptions) -> StagePlan:
    """Tiles of the step: their margin is the given overlap, or the halo, or half a tile."""
    multiple = info.multiple_of_px
    side_px = round_up(min(side_px, max(canvas.padded)), multiple)
    margin = info.step.halo_px if info.step.tiling == "exact" else side_px // 2
    margin = margin if options.overlap is None else options.overlap
    return StagePlan(info.step.tiling, side_px, margin // multiple * multiple)


def _fixed_px(options: RestoreOptions, whole_px: int) -> int | None:
    """The side of a tile if the user gave one, or None."""
    if isinstance(options.tile, int):
        return options.tile
    return whole_px if options.tile == "off" else None


def _memory(canvas: Canvas, stage: StagePlan, bytes_per_px: int, held_bytes_per_px: int = _HELD_BYTES_PER_PX) -> int:
    """Bytes for one tile, and for the input and output rows of one row of tiles."""
    margins = 2 * stage.margin_px if stage.tiling == "exact" else 0
    outer = Size(*(min(core + margins, side) for core, side in zip(stage.core_px, canvas.padded, strict=True)))
    return outer.area * bytes_per_px + outer.height * canvas.padded.width * held_bytes_per_px
