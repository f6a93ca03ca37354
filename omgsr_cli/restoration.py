"""One picture on its way through the stages of a model, whatever their tiling, however much memory there is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from omgsr_cli.errors import DeviceError
from omgsr_cli.geometry import HaloTile, Size, halve_halo_tile, plan_halo_tiles, plan_tiles, round_up
from omgsr_cli.imaging import extend
from omgsr_cli.models.base import Restorer, TilesItself
from omgsr_cli.models.devices import is_out_of_memory, release_memory
from omgsr_cli.models.vae_tiling import Workspace
from omgsr_cli.options import RestoreOptions
from omgsr_cli.planning import MIN_TILE_PX, StagePlan, TilePlan, usable_memory
from omgsr_cli.tiling import AnyTile, TileFunction, run_blended, run_exact

OnProgress = Callable[[int, int], None]
OnNote = Callable[[str], None]

_SHORT = "memory was short: went on with smaller tiles"


class Restoration:
    """Runs the stages over one picture; where memory turns out to be short, what is finished stays.

    A batch of tiles is then run one by one; an exact tile is cut in two, with the same result; a stage with blended
    tiles begins again with tiles of half the side; a codec that tiles itself goes on with smaller strips.

    Args:
        restorer: a loaded model.
        plan: how the picture is cut up.
        options: `batch` and `seed` count here, and a tile that the user fixed is not changed.
        memory_bytes: what a codec that tiles itself may work in.
        on_progress: told (done, total) tiles; the total grows where tiles become smaller.
        on_note: told once that memory was short.
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
        host_bytes = 0 if restorer.device.type == "cpu" else usable_memory(torch.device("cpu"))
        self._workspace = Workspace(memory_bytes, restorer.device, host_bytes=host_bytes, on_short=self._tell_short)
        seed = options.seed
        self._generator = None if seed is None else torch.Generator(restorer.device).manual_seed(seed)

    @torch.inference_mode()
    def run(self, enlarged: Tensor) -> Tensor:
        """Restore (3, H, W) in [0, 1] at the working size; the result has the same size and is clamped to [0, 1].

        Raises:
            DeviceError: memory is short even for the smallest tiles, or for the tile that was asked for.
        """
        canvas, plan, info = self._plan.canvas, self._plan, self._restorer.info
        padded = extend(enlarged, canvas.padded, canvas.border)
        padded = padded.clone() if padded is enlarged else padded
        image = padded.mul_(2).sub_(1)[None].to(self._restorer.device)
        del padded
        batch = self._options.batch
        if plan.in_one_go:
            image = self._stage(self._all_stages, image, plan.step, 1, batch)
        else:
            image = self._stage(self._encode, image, plan.codec, 1, 1)
            image = self._stage(self._restorer.restore, image, plan.step, info.latent_px, batch)
            image = self._stage(self._decode, image, plan.codec, info.latent_px, 1)
        (height, width), border = canvas.working, canvas.border
        image = image[0, :, border : border + height, border : border + width]
        return image.float().mul_(0.5).add_(0.5).clamp_(0, 1).cpu()

    def _encode(self, image: Tensor) -> Tensor:
        if self._plan.codec.tiling == "internal":
            assert isinstance(self._restorer, TilesItself)
            return self._restorer.encode_within(image, self._workspace, self._generator)
        return self._restorer.encode(image, self._generator)

    def _decode(self, latent: Tensor) -> Tensor:
        if self._plan.codec.tiling == "internal":
            assert isinstance(self._restorer, TilesItself)
            return self._restorer.decode_within(latent, self._workspace)
        return self._restorer.decode(latent)

    def _all_stages(self, image: Tensor) -> Tensor:
        latent = self._encode(image)
        release_memory()
        return self._decode(self._restorer.restore(latent))

    def _stage(self, function: TileFunction, source: Tensor, stage: StagePlan, source_px: int, batch: int) -> Tensor:
        """Run one stage over the whole of its source, (1, C, H, W), of which an element is `source_px` image pixels."""
        if stage.tiling == "internal":
            return self._whole(function, source)
        if stage.tiling == "exact":
            return self._exact(function, source, stage, source_px, batch)
        multiple = self._restorer.info.multiple_of_px
        size = Size(source.shape[-2] * source_px, source.shape[-1] * source_px)
        before = self._done
        while True:
            try:
                return self._blended(function, source, stage, source_px, batch)
            except (RuntimeError, MemoryError) as error:
                self._check_may_shrink(error, stage.side_px)
            self._total -= stage.count(size, multiple) - (self._done - before)
            side = round_up(stage.side_px // 2, multiple)
            stage = StagePlan("blended", side, min(stage.margin_px, side // 2) // multiple * multiple)
            self._total += stage.count(size, multiple)
            before = self._done

    def _whole(self, function: TileFunction, source: Tensor) -> Tensor:
        try:
            result = function(source)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise DeviceError(
                f"memory is short for the smallest strips of {source.shape[-1]}x{source.shape[-2]}",
                "ask for a smaller size, or use another --device",
            ) from error
        self._on_tiles(1)
        return result

    def _exact(self, function: TileFunction, source: Tensor, stage: StagePlan, source_px: int, batch: int) -> Tensor:
        multiple = self._restorer.info.multiple_of_px
        size = Size(source.shape[-2] * source_px, source.shape[-1] * source_px)
        tiles = plan_halo_tiles(size, stage.side_px, stage.margin_px, multiple)

        def in_place_of(error: Exception, group: Sequence[HaloTile]) -> Sequence[Sequence[HaloTile]]:
            if len(group) > 1:
                return self._one_by_one(error, group)
            self._check_may_shrink(error, max(group[0].core.height, group[0].core.width) * source_px)
            halves = halve_halo_tile(group[0], stage.margin_px // source_px, multiple // source_px)
            self._total += len(halves) - 1
            return [[half] for half in halves]

        placed = [tile.times(1, source_px) for tile in tiles]
        return run_exact(function, source, placed, batch=batch, on_tiles=self._on_tiles, on_error=in_place_of)

    def _blended(self, function: TileFunction, source: Tensor, stage: StagePlan, source_px: int, batch: int) -> Tensor:
        # On the grid of the latents, so that every tile's edge lies on one of their elements.
        px = self._restorer.info.latent_px
        size = Size(source.shape[-2] * source_px // px, source.shape[-1] * source_px // px)
        tiles = plan_tiles(size, stage.side_px // px, stage.margin_px // px)
        placed = [tile.times(px // source_px) for tile in tiles]
        # A Gaussian is made for neighbours that share a half; where they share less it would end in a step.
        ramp = stage.margin_px // source_px if stage.margin_px < stage.side_px // 2 else None
        return run_blended(
            function,
            source,
            placed,
            ramp=ramp,
            batch=batch,
            on_tiles=self._on_tiles,
            on_error=self._one_by_one,
        )

    def _one_by_one(self, error: Exception, group: Sequence[AnyTile]) -> Sequence[Sequence[AnyTile]]:
        if not is_out_of_memory(error) or len(group) == 1:
            raise error
        self._tell_short()
        return [[tile] for tile in group]

    def _check_may_shrink(self, error: Exception, side_px: int) -> None:
        """Raises unless memory was short, and tiles of this side may become smaller."""
        if not is_out_of_memory(error):
            raise error
        if self._options.tile != "auto" or side_px // 2 < MIN_TILE_PX:
            raise DeviceError(
                f"memory is short for tiles of {side_px} pixels", "give a smaller --tile or another --device"
            ) from error
        self._tell_short()

    def _tell_short(self) -> None:
        if self._on_note:
            self._on_note(_SHORT)
            self._on_note = None

    def _on_tiles(self, count: int) -> None:
        self._done += count
        release_memory()
        if self._on_progress:
            self._on_progress(self._done, self._total)
