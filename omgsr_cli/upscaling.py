"""Restore and enlarge one picture with any `Restorer`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from PIL import Image
from torch import Tensor

from omgsr_cli.color import match_color
from omgsr_cli.errors import DeviceError, ShapeError
from omgsr_cli.geometry import Canvas, Size, plan_canvas, plan_halo_tiles, plan_tiles, round_up
from omgsr_cli.imaging import Picture
from omgsr_cli.models.base import Restorer, RestorerInfo
from omgsr_cli.models.devices import free_memory_bytes
from omgsr_cli.options import ColorFix, RestoreOptions
from omgsr_cli.tiling import run_blended, run_exact

OnProgress = Callable[[int, int], None]

# Of the memory that is free, this share may go to one tile: other programs, and the picture itself, need some too.
_MEMORY_SHARE = 0.5
# One VAE tile below this would be mostly overlap; above it nothing gets faster.
_MIN_TILE_PX, _MAX_TILE_PX = 256, 4096
_VAE_OVERLAP_PX = 128


@dataclass(frozen=True)
class TilePlan:
    """How a picture is cut up, in pixels of the working size.

    Attributes:
        canvas: the sizes the picture goes through.
        step_px: side of the tiles of the diffusion step; a whole picture has its longer side here.
        step_overlap_px: what neighbours of these share; for exact tiles the margin on each side.
        codec_px: side of the tiles of encoder and decoder.
        codec_overlap_px: what neighbours of these share.
        tiles: how many calls of the networks report progress.
        memory_bytes: expected working memory at the peak, weights left out.
    """

    canvas: Canvas
    step_px: int
    step_overlap_px: int
    codec_px: int
    codec_overlap_px: int
    tiles: int
    memory_bytes: int


def plan_restoration(
    info: RestorerInfo, output: Size, options: RestoreOptions, free_bytes: int, tile_limit_px: int = _MAX_TILE_PX
) -> TilePlan:
    """Decide sizes and tiles before anything is computed.

    Args:
        info: of the model.
        output: exact size of the result.
        options: `tile`, `overlap` and `batch` count here.
        free_bytes: memory that may be used on the model's device.
        tile_limit_px: upper bound of automatic tiles, lowered when memory turns out to be short.
    """
    canvas = _canvas(info, output)
    whole = max(canvas.padded)
    fitting = min(tile_limit_px, _fitting_tile_px(info, free_bytes // options.batch))
    # A tile that the user fixed is never changed; "off" is the whole picture; else what fits.
    fixed = options.tile if isinstance(options.tile, int) else whole if options.tile == "off" else None
    if info.halo_px is not None:
        core = min(fixed or fitting, round_up(whole, info.multiple_of_px))
        halo = info.halo_px if options.overlap is None else options.overlap
        tiles = len(plan_halo_tiles(canvas.padded, core, halo, info.multiple_of_px))
        side = min(core + 2 * halo, whole)
        return TilePlan(canvas, core, halo, core, halo, tiles, _memory(info, canvas, side, options.batch))
    step = round_up(min(fixed or info.native_tile_px, whole), info.multiple_of_px)
    codec = round_up(min(fixed or fitting, whole), info.multiple_of_px)
    step_overlap = _aligned(step // 2 if options.overlap is None else options.overlap, info)
    codec_overlap = _aligned(min(_VAE_OVERLAP_PX, codec // 2) if options.overlap is None else options.overlap, info)
    counts = [
        len(plan_tiles(Size(*canvas.padded), side, overlap))
        for side, overlap in ((step, step_overlap), (codec, codec_overlap))
    ]
    memory = _memory(info, canvas, codec, 1)
    return TilePlan(canvas, step, step_overlap, codec, codec_overlap, counts[0] + 2 * counts[1], memory)


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
    limit = plan.codec_px
    while True:
        try:
            restored = _run_tiles(restorer, enlarged, plan, options, on_progress)
            break
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            limit = limit // 2
            if options.tile != "auto" or limit < _MIN_TILE_PX:
                raise DeviceError(
                    f"memory is short for tiles of {plan.codec_px} pixels", "give a smaller --tile or another --device"
                ) from error
            plan = plan_restoration(info, output, options, free, limit)
    restored = _fix_color(restored, enlarged, options.color_fix or info.color_fix, bit_depth)
    return resize(restored, output, bit_depth) if plan.canvas.working != output else restored


def resize(image: Tensor, size: Size, bit_depth: int = 8) -> Tensor:
    """Resize with Pillow's bicubic filter (a = -0.5, antialiased when reducing).

    Args:
        image: (C, H, W) float32 in [0, 1].
        size: of the result.
        bit_depth: 8 computes in whole levels of 1/255, as the published scripts do; 16 in float32.
    Returns:
        (C, size.height, size.width) float32 in [0, 1].
    """
    if tuple(image.shape[-2:]) == tuple(size):
        return image
    target = (size.width, size.height)
    planes = []
    for plane in image.cpu():
        values = (plane * 255).round_().to(torch.uint8).numpy() if bit_depth == 8 else plane.contiguous().numpy()
        planes.append(np.asarray(Image.fromarray(values).resize(target, Image.Resampling.BICUBIC)))
    result = torch.from_numpy(np.stack(planes))
    return result.float().div_(255) if bit_depth == 8 else result.clamp_(0, 1)


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
    canvas = _canvas(restorer.info, output)
    alpha = picture.alpha
    if alpha is None or bool((alpha == 1).all()):
        reference = resize(picture.rgb, canvas.working, picture.bit_depth)
    else:
        reference = _enlarge_with_alpha(picture.rgb, alpha, canvas.working)
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


def usable_memory(device: torch.device) -> int:
    """Bytes that a tile may use on a device."""
    return int(free_memory_bytes(device) * _MEMORY_SHARE)


def _canvas(info: RestorerInfo, output: Size) -> Canvas:
    return plan_canvas(output, info.native_tile_px, info.multiple_of_px, info.border_px)


def _fitting_tile_px(info: RestorerInfo, free_bytes: int) -> int:
    side = int(math.sqrt(max(free_bytes, 0) / info.bytes_per_px)) - 2 * (info.halo_px or 0)
    return max(_MIN_TILE_PX, side // 64 * 64)


def _memory(info: RestorerInfo, canvas: Canvas, tile_px: int, batch: int) -> int:
    # The picture's own copies: enlarged, restored and fixed, three float32 channels each.
    tile_area = min(tile_px * tile_px, canvas.padded.area)
    return batch * tile_area * info.bytes_per_px + canvas.padded.area * 3 * 3 * 4


def _aligned(value: int, info: RestorerInfo) -> int:
    return value // info.multiple_of_px * info.multiple_of_px


@torch.inference_mode()
def _run_tiles(
    restorer: Restorer, enlarged: Tensor, plan: TilePlan, options: RestoreOptions, on_progress: OnProgress | None
) -> Tensor:
    """(3, H, W) in [0, 1] at the working size, to the restored image of the same size, clamped to [0, 1]."""
    done = 0

    def on_tiles(count: int) -> None:
        nonlocal done
        done += count
        if on_progress:
            on_progress(done, plan.tiles)

    padded = _pad(enlarged * 2 - 1, plan.canvas)[None].to(restorer.device)
    generator = None if options.seed is None else torch.Generator(restorer.device).manual_seed(options.seed)
    if restorer.info.halo_px is not None:
        image = run_exact(
            lambda tile: restorer.decode(restorer.restore(restorer.encode(tile, generator))),
            padded,
            plan_halo_tiles(plan.canvas.padded, plan.step_px, plan.step_overlap_px, restorer.info.multiple_of_px),
            batch=options.batch,
            on_tiles=on_tiles,
        )
    else:
        image = _run_stages(restorer, padded, plan, options.batch, generator, on_tiles)
    (height, width), border = plan.canvas.working, plan.canvas.border
    image = image[0, :, border : border + height, border : border + width]
    return image.float().mul(0.5).add_(0.5).clamp_(0, 1).cpu()


def _run_stages(
    restorer: Restorer,
    padded: Tensor,
    plan: TilePlan,
    batch: int,
    generator: torch.Generator | None,
    on_tiles: Callable[[int], None],
) -> Tensor:
    """Encode all, take the step on all, decode all: the step's tiles are smaller than the codec's."""
    px = restorer.info.latent_px
    latent_size = Size(plan.canvas.padded.height // px, plan.canvas.padded.width // px)
    codec_tiles = plan_tiles(latent_size, plan.codec_px // px, plan.codec_overlap_px // px)
    step_tiles = plan_tiles(latent_size, plan.step_px // px, plan.step_overlap_px // px)
    pixel_tiles = [tile.times(px) for tile in codec_tiles]
    latent = run_blended(lambda tile: restorer.encode(tile, generator), padded, pixel_tiles, on_tiles=on_tiles)
    latent = run_blended(restorer.restore, latent, step_tiles, batch=batch, on_tiles=on_tiles)
    return run_blended(restorer.decode, latent, codec_tiles, on_tiles=on_tiles)


def _pad(image: Tensor, canvas: Canvas) -> Tensor:
    """Extend (3, H, W) to the padded size by reflection, or by repeating where it is too small to reflect."""
    before = canvas.border
    bottom, right = (whole - inner - before for whole, inner in zip(canvas.padded, canvas.working, strict=True))
    if not (before or bottom or right):
        return image
    reflects = bottom < image.shape[1] and right < image.shape[2]
    return F.pad(image[None], (before, right, before, bottom), mode="reflect" if reflects else "replicate")[0]


def _fix_color(restored: Tensor, enlarged: Tensor, method: ColorFix, bit_depth: int) -> Tensor:
    if method == "none":
        return restored
    if bit_depth == 8:
        # As published: the fix works between 8-bit pictures, of which the restored one was truncated. It sets the mean
        # anew, so that the half level lost here does not darken the result.
        restored = (restored * 255).floor_().div_(255)
    return match_color(restored[None], enlarged[None], method)[0].clamp_(0, 1)


def _enlarge_with_alpha(rgb: Tensor, alpha: Tensor, size: Size) -> Tensor:
    """Enlarge colour weighted by alpha; where nothing is opaque nearby, what lies around is drawn in smoothly."""
    filled = _fill_transparent(rgb, alpha)
    enlarged_alpha = resize(alpha, size, 16)
    premultiplied = resize(filled * alpha, size, 16)
    # Below two levels of alpha the quotient is noise, and invisible.
    visible = enlarged_alpha > 2 / 255
    straight = torch.where(visible, premultiplied / enlarged_alpha.clamp(min=1 / 255), resize(filled, size, 16))
    return straight.clamp_(0, 1)


def _fill_transparent(rgb: Tensor, alpha: Tensor) -> Tensor:
    """Give transparent pixels the colours around them: averages by alpha over ever larger squares, coarse to fine."""
    levels = [(rgb * alpha, alpha)]
    while max(levels[-1][1].shape[-2:]) > 1:
        color, weight = levels[-1]
        levels.append((_halve(color), _halve(weight)))
    fill = levels[-1][0] / levels[-1][1].clamp(min=1e-6)
    for color, weight in reversed(levels[:-1]):
        fill = F.interpolate(fill[None], size=color.shape[-2:], mode="bilinear", align_corners=False)[0]
        own = color / weight.clamp(min=1e-6)
        fill = torch.lerp(fill, own, (weight * 4).clamp(max=1))
    # Whatever is visible at all keeps its own colour.
    return torch.where(alpha > 0, rgb, fill)


def _halve(planes: Tensor) -> Tensor:
    return F.avg_pool2d(planes[None], 2, ceil_mode=True)[0]


def _is_out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
