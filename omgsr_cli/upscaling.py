"""Restore and enlarge one picture with any `Restorer`."""

from __future__ import annotations

from torch import Tensor

from omgsr_cli.color import match_color
from omgsr_cli.errors import ShapeError
from omgsr_cli.geometry import Size
from omgsr_cli.imaging import Picture, enlarge_with_alpha, resize
from omgsr_cli.models.base import Restorer
from omgsr_cli.options import ColorFix, RestoreOptions
from omgsr_cli.planning import allowed_memory, plan_model_canvas, plan_restoration, usable_memory
from omgsr_cli.restoration import OnNote, OnProgress, Restoration


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
        reference: the image enlarged already, (3, h, w) at `plan_canvas(...).working`; None enlarges it here.
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
    info = restorer.info
    free = allowed_memory(options, usable_memory(restorer.device) if free_bytes is None else free_bytes)
    plan = plan_restoration(info, output, options, free)
    enlarged = resize(image, plan.canvas.working, bit_depth) if reference is None else reference
    restored = Restoration(restorer, plan, options, free, on_progress, on_note).run(enlarged)
    restored = _fix_color(restored, enlarged, options.color_fix or info.color_fix, bit_depth)
    return resize(restored, output, bit_depth) if plan.canvas.working != output else restored


def restore_picture(
    restorer: Restorer,
    picture: Picture,
    output: Size,
    options: RestoreOptions,
    *,
    on_progress: OnProgress | None = None,
    on_note: OnNote | None = None,
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
        on_note=on_note,
    )
    return picture.restored(restored, alpha), resize(reference, output, picture.bit_depth)


def _fix_color(restored: Tensor, enlarged: Tensor, method: ColorFix, bit_depth: int) -> Tensor:
    if method == "none":
        return restored
    if bit_depth == 8:
        # As published: the fix works between 8-bit pictures, of which the restored one was truncated. It sets the mean
        # anew, so that the half level lost here does not darken the result.
        restored = (restored * 255).floor_().div_(255)
    return match_color(restored[None], enlarged[None], method)[0].clamp_(0, 1)
