"""Restore and enlarge one picture with any `Restorer`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from omgsr_cli.color import match_color
from omgsr_cli.errors import DeviceError, ShapeError
from omgsr_cli.geometry import Size, plan_halo_tiles, plan_tiles
from omgsr_cli.imaging import Picture, enlarge_with_alpha, extend, resize
from omgsr_cli.models.base import Restorer, RestorerInfo
from omgsr_cli.models.devices import is_out_of_memory, release_memory
from omgsr_cli.options import ColorFix, RestoreOptions
from omgsr_cli.planning import MIN_TILE_PX, StagePlan, TilePlan, plan_model_canvas, plan_restoration, usable_memory
from omgsr_cli.tiling import OnTiles, TileFunction, run_blended, run_exact

OnProgress = Callable[[int, int], None]


def upscale_image(
    restorer: Restorer,
    image: Tensor,
    output: Size,
    options: RestoreOptions | None = None,
    *,
    reference: Tensor | None = None,
    free_bytes: int | None = None,
    bit_depth: int = 8,
    on_progress: OnProgress | None = None,
) -> Tensor:
    """Restore an image at exactly the size that is asked for.

    The image is enlarged to the output size (bicubic), or to the model's native size where that is larger, padded by
    reflection to the model's multiple, encoded, taken through the one step, decoded, cropped, given the colours
    of the enlarged image back, and reduced if it had been enlarged beyond the output.

    Args:
        restorer: a loaded model.
        image: (3, H, W) float32, sRGB in [0, 1], any size from 1x1.
        output: height and width of the result.
        options: None takes the defaults.
        reference: the image enlarged already, (3, h, w) at `plan_canvas(...).working`; None enlarges it here.
        free_bytes: memory for tiles; None asks the device.
        bit_depth: 8 or 16 of the picture; at 8 the enlarged image has whole levels, as the published scripts have.
        on_progress: told (done, total) tiles.
    Returns:
        (3, output.height, output.width) float32 on the CPU, sRGB in [0, 1].
    Raises:
        ShapeError: the image is not (3, H, W).
        DeviceError: memory is short even for the smallest tiles, or for the tile that was asked for.
    """
    if image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
        raise ShapeError(f"an image is (3, H, W) with pixels, not {tuple(image.shape)}")
    options = options or RestoreOptions()
    info = restorer.info
    free = usable_memory(restorer.device) if free_bytes is None else free_bytes
    plan = plan_restoration(info, output, options, free)
    enlarged = resize(image, plan.canvas.working, bit_depth) if reference is None else reference
    limit = plan.codec.side_px
    while True:
        try:
            restored = _run_tiles(restorer, enlarged, plan, options, on_progress)
            break
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            limit = limit // 2
            if options.tile != "auto" or limit < MIN_TILE_PX:
                raise DeviceError(
                    f"memory is short for tiles of {plan.codec.side_px} pixels",
                    "give a smaller --tile or another --device",
                ) from error
            plan = plan_restoration(info, output, options, free, limit)
    restored = _fix_color(restored, enlarged, options.color_fix or info.color_fix, bit_depth)
    return resize(restored, output, bit_depth) if plan.canvas.working != output else restored


def restore_picture(
    restorer: Restorer,
    picture: Picture,
    output: Size,
    options: RestoreOptions,
    *,
    on_progress: OnProgress | None = None,
) -> tuple[Picture, Tensor]:
    """Restore a picture with its alpha.

    Colour is enlarged premultiplied by alpha, so that what lies under transparent pixels does not bleed into the
    edge; alpha itself is enlarged bicubically.

    Returns:
        The restored picture, and the enlarged input at the output's size, (3, h, w), for a comparison.
    """
    canvas = plan_model_canvas(restorer.info, output)
    alpha = picture.alpha
    if alpha is None or bool((alpha == 1).all()):
        reference = resize(picture.rgb, canvas.working, picture.bit_depth)
    else:
        reference = enlarge_with_alpha(picture.rgb, alpha, canvas.working)
    if alpha is not None:
        alpha = resize(alpha, output, picture.bit_depth)
    restored = upscale_image(
        restorer,
        picture.rgb,
        output,
        options,
        reference=reference,
        bit_depth=picture.bit_depth,
        on_progress=on_progress,
    )
    return picture.restored(restored, alpha), resize(reference, output, picture.bit_depth)


@torch.inference_mode()
def _run_tiles(
    restorer: Restorer, enlarged: Tensor, plan: TilePlan, options: RestoreOptions, on_progress: OnProgress | None
) -> Tensor:
    """(3, H, W) in [0, 1] at the working size, to the restored image of the same size, clamped to [0, 1]."""
    done = 0

    def on_tiles(count: int) -> None:
        nonlocal done
        done += count
        release_memory()
        if on_progress:
            on_progress(done, plan.tiles)

    canvas = plan.canvas
    padded = extend(enlarged, canvas.padded, canvas.border)
    padded = padded.clone() if padded is enlarged else padded
    image = padded.mul_(2).sub_(1)[None].to(restorer.device)
    del padded
    generator = None if options.seed is None else torch.Generator(restorer.device).manual_seed(options.seed)
    px, batch = restorer.info.latent_px, options.batch

    def encode(tile: Tensor) -> Tensor:
        return restorer.encode(tile, generator)

    stages: list[tuple[TileFunction, StagePlan, int, int]] = [
        (encode, plan.codec, 1, 1),
        (restorer.restore, plan.step, px, batch),
        (restorer.decode, plan.codec, px, 1),
    ]
    if plan.in_one_go:
        stages = [(lambda tile: restorer.decode(restorer.restore(_released(encode(tile)))), plan.step, 1, batch)]
    for function, stage, source_px, together in stages:
        image = _run_stage(function, image, stage, restorer.info, source_px, together, on_tiles)
    (height, width), border = canvas.working, canvas.border
    image = image[0, :, border : border + height, border : border + width]
    return image.float().mul_(0.5).add_(0.5).clamp_(0, 1).cpu()


def _run_stage(
    function: TileFunction,
    source: Tensor,
    stage: StagePlan,
    info: RestorerInfo,
    source_px: int,
    batch: int,
    on_tiles: OnTiles,
) -> Tensor:
    """Run one stage over the whole of its source, (1, C, H, W), of which an element is `source_px` image pixels."""
    if stage.tiling == "internal":
        result = function(source)
        on_tiles(1)
        return result
    size = Size(source.shape[-2] * source_px, source.shape[-1] * source_px)
    if stage.tiling == "exact":
        halo_tiles = plan_halo_tiles(size, stage.side_px, stage.margin_px, info.multiple_of_px)
        return run_exact(
            function, source, [tile.times(1, source_px) for tile in halo_tiles], batch=batch, on_tiles=on_tiles
        )
    # On the grid of the latents, so that every tile's edge lies on one of their elements.
    px = info.latent_px
    tiles = plan_tiles(Size(size.height // px, size.width // px), stage.side_px // px, stage.margin_px // px)
    placed = [tile.times(px // source_px) for tile in tiles]
    # A Gaussian is made for neighbours that share a half; where they share less it would end in a step.
    ramp = stage.margin_px // source_px if stage.margin_px < stage.side_px // 2 else None
    return run_blended(function, source, placed, ramp=ramp, batch=batch, on_tiles=on_tiles)


def _released(latent: Tensor) -> Tensor:
    release_memory()
    return latent


def _fix_color(restored: Tensor, enlarged: Tensor, method: ColorFix, bit_depth: int) -> Tensor:
    if method == "none":
        return restored
    if bit_depth == 8:
        # As published: the fix works between 8-bit pictures, of which the restored one was truncated. It sets the mean
        # anew, so that the half level lost here does not darken the result.
        restored = (restored * 255).floor_().div_(255)
    return match_color(restored[None], enlarged[None], method)[0].clamp_(0, 1)
