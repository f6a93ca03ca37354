"""Restore and enlarge one picture with any `Restorer`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from omgsr_cli.color import match_color
from omgsr_cli.errors import ShapeError
from omgsr_cli.geometry import Size
from omgsr_cli.imaging import EnlargedWithAlpha, Picture, PictureBands, ResizedRows, Rows, WholeRows, resize
from omgsr_cli.models.base import Restorer
from omgsr_cli.options import RestoreOptions
from omgsr_cli.planning import allowed_memory, plan_model_canvas, plan_restoration, usable_memory
from omgsr_cli.restoration import OnNote, OnProgress, Restoration


def upscale_image(
    restorer: Restorer,
    image: Tensor,
    output: Size,
    options: RestoreOptions | None = None,
    *,
    free_bytes: int | None = None,
    bit_depth: int = 8,
    on_progress: OnProgress | None = None,
    on_note: OnNote | None = None,
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
        free_bytes: memory for tiles; None asks the device.
        bit_depth: 8 or 16 of the picture; at 8 the enlarged image has whole levels, as the published scripts have.
        on_progress: told (done, total) tiles; the total grows where memory is short.
        on_note: told, in a line, what a person should know; once that tiles had to become smaller.
    Returns:
        (3, output.height, output.width) float32 on the CPU, sRGB in [0, 1].
    Raises:
        ShapeError: the image is not (3, H, W).
        DeviceError: memory is short even for the smallest tiles, or for the tile that was asked for.
    """
    if image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
        raise ShapeError(f"an image is (3, H, W) with pixels, not {tuple(image.shape)}")
    options = options or RestoreOptions()
    working = plan_model_canvas(restorer.info, output).working
    enlarged = ResizedRows(image, working, bit_depth)
    return torch.cat(
        list(_bands(restorer, enlarged, output, options, free_bytes, bit_depth, on_progress, on_note)), dim=1
    )


def restore_picture(
    restorer: Restorer,
    picture: Picture,
    output: Size,
    options: RestoreOptions,
    *,
    on_progress: OnProgress | None = None,
    on_note: OnNote | None = None,
) -> tuple[PictureBands, Rows]:
    """Restore a picture with its alpha, as the result is read.

    Colour is enlarged premultiplied by alpha, so that what lies under transparent pixels does not bleed into the
    edge; alpha itself is enlarged bicubically.

    Returns:
        The restored picture, of which nothing is computed yet, and the enlarged input at its size, for a comparison.
    Raises:
        DeviceError: as the bands are read: as `upscale_image`.
    """
    working = plan_model_canvas(restorer.info, output).working
    alpha, depth = picture.alpha, picture.bit_depth
    enlarged: Rows
    if alpha is None or bool((alpha == 1).all()):
        enlarged = ResizedRows(picture.rgb, working, depth)
    else:
        enlarged = EnlargedWithAlpha(picture.rgb, alpha, working)
    bands = _bands(restorer, enlarged, output, options, None, depth, on_progress, on_note)
    result = PictureBands(picture, output, bands, None if alpha is None else ResizedRows(alpha, output, depth))
    if working == output:
        return result, enlarged
    return result, WholeRows(resize(enlarged.read(0, working.height), output, depth))


def _bands(
    restorer: Restorer,
    enlarged: Rows,
    output: Size,
    options: RestoreOptions,
    free_bytes: int | None,
    bit_depth: int,
    on_progress: OnProgress | None,
    on_note: OnNote | None,
) -> Iterator[Tensor]:
    """The restored picture from its first rows to its last, (3, n, output.width) float32 in [0, 1]."""
    info = restorer.info
    free = allowed_memory(options, usable_memory(restorer.device) if free_bytes is None else free_bytes)
    plan = plan_restoration(info, output, options, free)
    restored = Restoration(restorer, plan, options, free, on_progress, on_note).run(enlarged)
    fixed = match_color(restored, enlarged, options.color_fix or info.color_fix, bit_depth)
    if plan.canvas.working == output:
        yield from fixed
    else:
        yield resize(torch.cat(list(fixed), dim=1), output, bit_depth)
