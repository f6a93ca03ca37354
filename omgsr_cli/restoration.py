"""Run the stages of a model on one image, for any tiling and any amount of free memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import groupby

import torch
from torch import Tensor

from omgsr_cli.errors import DeviceError, NotFiniteError
from omgsr_cli.geometry import HaloTile, Size, halve_halo_tile, plan_halo_tiles, plan_tiles, round_up
from omgsr_cli.imaging import ExtendedRows, Rows
from omgsr_cli.imaging.rows import split_bands
from omgsr_cli.models.base import Restorer, TilesItself, Workspace
from omgsr_cli.models.devices import is_out_of_memory, release_memory, shares_host_memory
from omgsr_cli.options import RestoreOptions
from omgsr_cli.planning import MIN_TILE_PX, StagePlan, TilePlan, usable_memory
from omgsr_cli.tiling import AnyTile, ReadRows, TileFunction, run_blended, run_exact
from omgsr_cli.transfer import ASYNCHRONOUS, download, pinned, start_ahead, upload

OnProgress = Callable[[int, int], None]
OnNote = Callable[[str], None]

_SHORT = "ran out of memory; continued with smaller tiles"
# Memory in addition to the plan's: the image itself, and what the C library has not returned.
_HELD_BESIDE_BYTES = 256 << 20


class Restoration:
    """Runs the stages on one image, from top to bottom; if memory runs out, finished tiles are kept.

    A batch of tiles is then run one by one, an exact tile is cut in two with the same result, a step with blended tiles
    starts again with tiles of half the side, and a codec that tiles itself continues with smaller strips.

    Args:
        restorer: a loaded model.
        plan: how the image is cut up.
        options: `seed` counts here, and a tile that the user fixed is not changed.
        memory_bytes: what a codec that tiles itself may work in.
        on_progress: called with (done, total) tiles; the total grows when tiles become smaller.
        on_note: called once if memory was short.
    """

    def __init__(
        self,
        restorer: Restorer,
        plan: TilePlan,
        options: RestoreOptions,
        memory_bytes: int,
        on_progress: OnProgress | None = None,
        on_note: OnNote | None = None,
    ) -> None:
        self._restorer, self._plan, self._options = restorer, plan, options
        self._on_progress, self._on_note = on_progress, on_note
        self._done, self._total = 0, plan.tiles
        host_bytes = 0 if shares_host_memory(restorer.device) else usable_memory(torch.device("cpu"))
        self._workspace = Workspace(memory_bytes, restorer.device, host_bytes=host_bytes, on_short=self._tell_short)
        seed = options.seed
        # A CPU generator, so a seed gives the same result on every device.
        self._generator = None if seed is None else torch.Generator().manual_seed(seed)
        self._sums: dict[str, Tensor] = {}

    @torch.inference_mode()
    def run(self, enlarged: Rows) -> Iterator[Tensor]:
        """Restore (3, H, W) in [0, 1] at the working size.

        Yields:
            (3, n, W) float32 on the model's device, clamped to [0, 1], from the first rows to the last; a model that
            takes the low-quality image gives `info.factor` times its height and width.
        Raises:
            DeviceError: memory ran out even for the smallest tiles, or for the tile size that the user gave.
            NotFiniteError: a stage returned NaN or infinity.
        """
        # If a tile does not fit, `_exact` and `_blended` use smaller ones; allocations for the whole image fail here.
        with self._telling_short(f"an image of {self._plan.canvas.working}"):
            yield from self._bands(enlarged)

    def _bands(self, enlarged: Rows) -> Iterator[Tensor]:
        canvas, plan = self._plan.canvas, self._plan
        image = ExtendedRows(enlarged, canvas.padded, canvas.border)
        if plan.in_one_go:
            bands = self._exact(self._all_stages, _planes_of(image), canvas.padded, plan.step, 1, plan.batch)
        elif self._restorer.info.input == "lq":
            latent = self._encode(_planes_of(image)(0, canvas.padded.height))
            bands = iter([self._restorer.decode(self._watch("step", self._restore(latent)))])
        else:
            latent = self._watch("encoder", self._encode_whole(image))
            self._check_finite()
            latent = self._watch("step", self._restore(latent))
            self._check_finite()
            bands = self._decode_bands(latent)
        factor = self._restorer.info.factor
        height, width, border = (side * factor for side in (*canvas.working, canvas.border))
        row = -border
        for band in bands:
            self._watch("decoder", band)
            inside = band[0, :, max(-row, 0) : max(height - row, 0), border : border + width]
            row += band.shape[2]
            self._check_finite()
            if inside.shape[1]:
                # A few rows at a time: only the current band is in memory, and it is freed before the next is computed.
                yield from (part.float().mul(0.5).add_(0.5).clamp_(0, 1) for part in split_bands(iter([inside])))
            del band, inside

    def _encode_whole(self, image: Rows) -> Tensor:
        """The latent of a whole image, (1, C, h, w)."""
        codec, size = self._plan.codec, self._plan.canvas.padded
        if codec.tiling == "exact":
            return torch.cat(list(self._exact(self._encode, _planes_of(image), size, codec, 1, 1)), dim=2)
        assert isinstance(self._restorer, TilesItself)
        with self._telling_short(f"the smallest strips of {size}"):
            rows = _ModelRows(image, self._restorer.device)
            latent = self._restorer.encode_within(rows, self._workspace, self._generator)
        self._on_tiles(1)
        return latent

    def _decode_bands(self, latent: Tensor) -> Iterator[Tensor]:
        """The image of a whole latent, in bands of (1, 3, n, W)."""
        codec, size, px = self._plan.codec, self._plan.canvas.padded, self._restorer.info.latent_px
        if codec.tiling == "exact":
            yield from self._exact(self._restorer.decode, _rows_of(latent), size, codec, px, 1)
            return
        assert isinstance(self._restorer, TilesItself)
        with self._telling_short(f"the smallest strips of {size}"):
            yield from self._restorer.decode_within(latent, self._workspace)
        self._on_tiles(1)

    def _encode(self, tiles: Tensor) -> Tensor:
        return self._restorer.encode(_to_model(tiles, self._restorer.device), self._generator)

    def _all_stages(self, image: Tensor) -> Tensor:
        latent = self._watch("encoder", self._encode(image))
        return self._restorer.decode(self._watch("step", self._restorer.restore(latent)))

    def _watch(self, stage: str, result: Tensor) -> Tensor:
        """Add the result of a stage to a sum on its device, and return the result."""
        # One pass without a mask or a wait: NaN and infinity make this sum and all later sums not finite.
        total = result.sum(dtype=torch.float32)
        self._sums[stage] = self._sums[stage] + total if stage in self._sums else total
        return result

    def _check_finite(self) -> None:
        if not self._sums:
            return
        totals = download(torch.stack(list(self._sums.values())))[0]
        for stage, total in zip(self._sums, totals.tolist(), strict=True):
            if not math.isfinite(total):
                info, precision = self._restorer.info, self._restorer.precision
                verify = f"check its weights: omgsr models verify {info.name}"
                raise NotFiniteError(
                    f"the {stage} of {info.name} gives values that are not finite (NaN or infinity) in {precision}",
                    verify if precision == "fp32" else f"use --precision fp32, or {verify}",
                )
        self._sums.clear()

    def _restore(self, latent: Tensor) -> Tensor:
        """Run the step on a whole latent, (1, C, h, w)."""
        stage, px, size = self._plan.step, self._restorer.info.latent_px, self._plan.canvas.padded
        multiple, before = self._restorer.info.multiple_of_px, self._done
        if stage.tiling == "exact":
            bands = self._exact(self._restorer.restore, _rows_of(latent), size, stage, px, self._plan.batch)
            return torch.cat(list(bands), dim=2)
        while True:
            try:
                return self._blended(latent, stage)
            except (RuntimeError, MemoryError) as error:
                self._check_may_shrink(error, stage.side_px)
            self._total -= stage.count(size, multiple) - (self._done - before)
            side = round_up(stage.side_px // 2, multiple)
            stage = StagePlan("blended", side, min(stage.margin_px, side // 2) // multiple * multiple)
            self._total += stage.count(size, multiple)
            before = self._done

    @contextmanager
    def _telling_short(self, what: str) -> Iterator[None]:
        """Turn out-of-memory exceptions in the block into a `DeviceError`."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise DeviceError(
                f"ran out of memory for {what}",
                "choose a smaller size, or use another --device",
            ) from error

    def _exact(
        self, function: TileFunction, read: ReadRows, size: Size, stage: StagePlan, source_px: int, batch: int
    ) -> Iterator[Tensor]:
        """Run stages on an image of `size`, whose elements are `source_px` image pixels; yields bands."""
        multiple = self._restorer.info.multiple_of_px
        tiles = plan_halo_tiles(size, stage.core_px, stage.margin_px, multiple)

        def in_place_of(error: Exception, group: Sequence[HaloTile]) -> Sequence[Sequence[HaloTile]]:
            if len(group) > 1:
                return self._one_by_one(error, group)
            self._check_may_shrink(error, max(group[0].core.height, group[0].core.width) * source_px)
            halves = halve_halo_tile(group[0], stage.margin_px // source_px, multiple // source_px)
            self._total += len(halves) - 1
            return [[half] for half in halves]

        placed = [tile.times(1, source_px) for tile in tiles]

        def run(read: ReadRows) -> Iterator[Tensor]:
            return run_exact(function, read, placed, batch=batch, on_tiles=self._on_tiles, on_error=in_place_of)

        # Rows of an image are computed as they are read; those of a latent are on the device.
        is_ahead = source_px == 1 and self._restorer.device.type in ASYNCHRONOUS
        return self._reading_ahead(run, read, placed) if is_ahead else run(read)

    def _reading_ahead(
        self, run: Callable[[ReadRows], Iterator[Tensor]], read: ReadRows, tiles: Sequence[HaloTile]
    ) -> Iterator[Tensor]:
        """Run over tiles while a thread reads the next row of them into memory that the device reads by itself."""
        rows = [next(row).outer for _, row in groupby(tiles, key=lambda tile: tile.core.top)]
        with ThreadPoolExecutor(1) as reader:
            sources = start_ahead(rows, lambda row: pinned(read(row.top, row.top + row.height)), reader)
            yield from run(lambda top, bottom: upload(next(sources), self._restorer.device))

    def _blended(self, latent: Tensor, stage: StagePlan) -> Tensor:
        px = self._restorer.info.latent_px
        tiles = plan_tiles(Size(*latent.shape[-2:]), stage.side_px // px, stage.margin_px // px)
        # A Gaussian suits neighbours that overlap by a half; with a smaller overlap, it would end in a step.
        ramp = stage.margin_px // px if stage.margin_px < stage.side_px // 2 else None
        return run_blended(
            self._restorer.restore,
            latent,
            tiles,
            ramp=ramp,
            batch=self._plan.batch,
            on_tiles=self._on_tiles,
            on_error=self._one_by_one,
        )

    def _one_by_one(self, error: Exception, group: Sequence[AnyTile]) -> Sequence[Sequence[AnyTile]]:
        if not is_out_of_memory(error) or len(group) == 1:
            raise error
        self._tell_short()
        return [[tile] for tile in group]

    def _check_may_shrink(self, error: Exception, side_px: int) -> None:
        """Raise unless memory ran out and tiles of this side may become smaller."""
        if not is_out_of_memory(error):
            raise error
        if self._options.tile != "auto" or side_px // 2 < MIN_TILE_PX:
            raise DeviceError(
                f"ran out of memory for tiles of {side_px} pixels", "use a smaller --tile or another --device"
            ) from error
        self._tell_short()

    def _tell_short(self) -> None:
        if self._on_note:
            self._on_note(_SHORT)
            self._on_note = None

    def _on_tiles(self, count: int) -> None:
        self._done += count
        release_memory(self._plan.memory_bytes + _HELD_BESIDE_BYTES)
        if self._on_progress:
            self._on_progress(self._done, self._total)


def _rows_of(latent: Tensor) -> ReadRows:
    return lambda top, bottom: latent[:, :, top:bottom]


def _planes_of(image: Rows) -> ReadRows:
    return lambda top, bottom: image.read(top, bottom)[None]


def _to_model(image: Tensor, device: torch.device) -> Tensor:
    """Convert [0, 1] to [-1, 1] on the model's device."""
    return upload(image, device).mul(2).sub_(1)


class _ModelRows:
    """Rows of an image in [0, 1], for a codec that tiles itself: (1, 3, n, W) in [-1, 1] on its device."""

    def __init__(self, rows: Rows, device: torch.device) -> None:
        self._rows, self._device = rows, device
        self.size_px = rows.size_px

    def read(self, top: int, bottom: int) -> Tensor:
        return _to_model(self._rows.read(top, bottom)[None], self._device)
