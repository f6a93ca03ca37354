"""Restore and upscale one image with any `Restorer`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from omgsr_cli.color import match_color
from omgsr_cli.errors import DeviceError, NotFiniteError, ShapeError
from omgsr_cli.geometry import Size
from omgsr_cli.imaging import (
    ColorUnderAlpha,
    ImageBands,
    ResizedRows,
    Rows,
    SourceImage,
    WholeRows,
    bands_of,
    resize_bands,
)
from omgsr_cli.models.base import Restorer
from omgsr_cli.options import RestoreOptions
from omgsr_cli.planning import Execution, allowed_memory, plan_restoration, usable_memory
from omgsr_cli.restoration import OnNote, OnProgress, Restoration
from omgsr_cli.transfer import download


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
    """Restore an image at an exact size.

    The image is upscaled (bicubic) to the working size: the size of the output, or a larger one if the model was
    trained at a larger magnification or native size. It is padded by reflection to the model's multiple, encoded,
    restored by the single step, decoded, cropped, colour-matched to the upscaled image, reduced to the output size, and
    blended with plain upscaling if the strength is below 1.

    Args:
        restorer: a loaded model.
        image: (3, H, W) float32, sRGB in [0, 1], any size from 1x1.
        output: height and width of the result.
        options: None uses the defaults.
        free_bytes: memory for tiles; None uses the free memory of the device.
        bit_depth: 8 or 16; 8 rounds the upscaled image to integer levels, as in the published scripts.
        on_progress: called with (done, total) tiles; the total increases if memory runs out.
        on_note: called with notes for the user, one line each.
    Returns:
        (3, output.height, output.width) float32 on the CPU, sRGB in [0, 1].
    Raises:
        ShapeError: the image is not (3, H, W).
        DeviceError: memory ran out even for the smallest tiles, or for the tile size that the user gave.
        NotFiniteError: the model returns NaN or infinity, also in float32, unless the user chose the precision.
    """
    if image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0:
        raise ShapeError(f"an image must be (3, H, W) and not empty, not {tuple(image.shape)}")
    source, chosen = _Input(image, None, bit_depth), options or RestoreOptions()

    def restore(model: Restorer) -> Tensor:
        return torch.cat(list(_bands(model, source, output, chosen, free_bytes, on_progress, on_note)), dim=1)

    try:
        return restore(restorer)
    except NotFiniteError as error:
        return restore(load_wider(restorer, error, on_note))


def load_wider(restorer: Restorer, error: NotFiniteError, on_note: OnNote | None = None) -> Restorer:
    """Load a model in float32, for an image that overflowed in an automatically chosen precision.

    Raises:
        NotFiniteError: the given error, if the model is float32 already, the user chose the precision, or memory runs
            out.
        ModelError: the model can no longer be read.
    """
    if restorer.in_fp32 is None:
        raise error
    try:
        wide = restorer.in_fp32()
    except DeviceError as short:
        raise error from short
    if on_note:
        on_note(f"values overflowed in {restorer.precision}: restored again in fp32")
    return wide


def restore_image(
    restorer: Restorer | None,
    image: SourceImage,
    output: Size,
    options: RestoreOptions,
    *,
    on_progress: OnProgress | None = None,
    on_note: OnNote | None = None,
    whole_levels: bool = False,
) -> tuple[ImageBands, Rows]:
    """Restore an image with its alpha, as the result is read.

    Colour is enlarged premultiplied by alpha, so that what is under transparent pixels does not bleed into the
    edge; alpha itself is enlarged bicubically. At a strength of 0 no restorer is needed.

    Args:
        whole_levels: the result is only written, so that a GPU may round it to the levels of an 8-bit image.
    Returns:
        The restored image, of which nothing is computed yet, and plain upscaling to its size, for a comparison.
    Raises:
        DeviceError: as the bands are read: as `upscale_image`.
    """
    alpha, depth = image.alpha, image.bit_depth
    is_opaque = alpha is None or bool((alpha == 1).all())
    source = _Input(image.rgb, None if alpha is None or is_opaque else ColorUnderAlpha(image.rgb, alpha), depth)
    bands = _bands(restorer, source, output, options, None, on_progress, on_note, whole_levels)
    result = ImageBands(image, output, bands, None if alpha is None else ResizedRows(alpha, output, depth))
    return result, source.resized(output)


@dataclass(frozen=True)
class _Input:
    """The image to restore, resized to any size as its rows are read.

    Attributes:
        rgb: (3, H, W) float32, sRGB in [0, 1].
        color: the colours with their alpha if some pixel is not opaque; otherwise None.
        bit_depth: 8 or 16.
    """

    rgb: Tensor
    color: ColorUnderAlpha | None
    bit_depth: int

    def for_model(self, size: Size) -> Rows:
        """The input of the model, in which transparent pixels have the colours around them."""
        return self.color.resized(size) if self.color else ResizedRows(self.rgb, size, self.bit_depth)

    def resized(self, size: Size) -> Rows:
        """Plain upscaling; the image itself at its own size."""
        return WholeRows(self.rgb) if size == tuple(self.rgb.shape[1:]) else self.for_model(size)


def _bands(
    restorer: Restorer | None,
    source: _Input,
    output: Size,
    options: RestoreOptions,
    free_bytes: int | None,
    on_progress: OnProgress | None,
    on_note: OnNote | None,
    whole_levels: bool = False,
) -> Iterator[Tensor]:
    """The restored image from its first rows to its last, (3, n, output.width) float32 in [0, 1].

    With `whole_levels` also uint8, which is then what rounding gives.
    """
    if options.strength == 0:
        yield from bands_of(source.resized(output))
        return
    assert restorer is not None
    info = restorer.info
    free = allowed_memory(options, usable_memory(restorer.device) if free_bytes is None else free_bytes)
    execution = Execution(restorer.device.type, restorer.precision)
    plan = plan_restoration(info, Size(*source.rgb.shape[1:]), output, options, free, execution)
    working = plan.canvas.working
    enlarged, size = source.for_model(working), working.times(info.factor)
    restored = Restoration(restorer, plan, options, free, on_progress, on_note).run(enlarged)
    reference = source.for_model(size) if info.input == "lq" else enlarged
    fixed = match_color(restored, reference, options.color_fix or info.color_fix, source.bit_depth)
    # The resize of 8 bits rounds to whole levels, which a GPU does before the copy; so does the writer of plain images.
    rounds = source.bit_depth == 8 and (size != output or (whole_levels and options.strength == 1))
    reduced = resize_bands(_on_cpu(fixed, rounds), size, output, source.bit_depth)
    yield from reduced if options.strength == 1 else _blended(reduced, source.resized(output), options.strength)


def _on_cpu(bands: Iterator[Tensor], rounds: bool) -> Iterator[Tensor]:
    """Bands in [0, 1] on the CPU; those of a GPU as uint8 where they are to be rounded."""
    for band in bands:
        if rounds and band.device.type != "cpu":
            band = (band * 255).round_().to(torch.uint8)
        yield download(band)[0]


def _blended(restored: Iterator[Tensor], plain: Rows, strength: float) -> Iterator[Tensor]:
    """Plain + strength * (restored - plain), in float32 without rounding."""
    row = 0
    for band in restored:
        bottom = row + band.shape[1]
        yield torch.lerp(plain.read(row, bottom), band, strength)
        row = bottom
