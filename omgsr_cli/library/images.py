"""An image from Python, of whatever kind: enlarged, it is of the same kind."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from omgsr_cli.errors import NotFiniteError, ShapeError, UsageError
from omgsr_cli.geometry import Size, plan_output_size
from omgsr_cli.imaging import SourceImage, encode_image, from_samples, luma, read_image, to_samples
from omgsr_cli.models.base import Restorer, RestorerInfo
from omgsr_cli.options import ColorFix, RestoreOptions, SizeOptions, build_options
from omgsr_cli.restoration import OnNote, OnProgress
from omgsr_cli.upscaling import load_wider, restore_image

AnyImage = TypeVar("AnyImage", Image.Image, Tensor, NDArray[Any])
"""What comes out is of the kind that went in."""

# Pillow's modes that PNG holds as they are; others are stored as TIFF on their way in.
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
_NAME = "the image"
_RANGE_TOLERANCE = 0.02


def upscale_image(
    model: Restorer,
    image: AnyImage,
    *,
    scale: float | None = None,
    size: tuple[int, int] | None = None,
    process_scale: Literal["auto"] | float = "auto",
    strength: float = 1.0,
    color_fix: ColorFix | None = None,
    tile: Literal["auto", "off"] | int = "auto",
    seed: int | None = None,
    bit_depth: Literal[8, 16] | None = None,
    on_progress: OnProgress | None = None,
) -> AnyImage:
    """Restore and enlarge one image; nothing is printed, and the same call gives the same pixels.

    Args:
        model: from `load`.
        image: a PIL image of any mode (its profile, EXIF and transparency are kept; it comes out upright); an array
            (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), RGB(A) in sRGB, of uint8, uint16 or float in [0, 1]; or a
            tensor (C, H, W) or (B, C, H, W) with 1, 3 or 4 channels, of uint8 or float in [0, 1], on any device.
        scale: factor on both sides, 0.5 to 16; None takes the model's own.
        size: (height, width) of the result in place of `scale`.
        process_scale: the image is restored at no less than this multiple of its size, 1 to 16, and then reduced;
            "auto" takes the magnification that the model was trained at, and 1 restores at the size of the result.
        strength: 0 to 1: result = upscaled + strength * (restored - upscaled); 0 does not run the model.
        color_fix: "adain", "wavelet" or "none"; None takes what suits the model.
        tile: side of a tile in pixels of the working size, "off", or "auto" by free memory.
        seed: samples the latent posterior with it; None takes its mean.
        bit_depth: 8 rounds to whole levels of 1/255 between the stages, as the published scripts do, 16 does not; the
            results differ by some levels. None takes 8 for what has 8 bits, and 16 for floats and all others.
        on_progress: told (done, total) tiles. An exception that it raises ends the work and comes out of this call,
            which is how to cancel it.
    Returns:
        The same kind, dtype, layout and device, enlarged; floats lie in [0, 1].
    Raises:
        ShapeError: the image's shape, dtype or range is not one of these.
        UsageError: a value is out of range.
        DeviceError: memory is short.
        NotFiniteError: the model gives NaN or infinity. Where its number format was chosen by `load`, float32 is tried
            first, with a warning.
    """
    options = build_options(
        RestoreOptions,
        size=build_options(SizeOptions, scale=scale, size=size),
        process_scale=process_scale,
        strength=strength,
        color_fix=color_fix,
        tile=tile,
        seed=seed,
    )
    if bit_depth not in (None, 8, 16):
        raise UsageError(f"bit depth {bit_depth!r} is not 8 or 16", "leave it out for the image's own")
    if not isinstance(getattr(model, "info", None), RestorerInfo):
        raise UsageError(f"{model!r} is not a loaded model", "load one first: model = load(NAME_OR_FOLDER)")
    notes: list[str] = []
    result = _upscale(_Task(model, options, bit_depth, on_progress, notes.append), image)
    for note in dict.fromkeys(notes):
        warnings.warn(note, stacklevel=2)
    return result


def _upscale(task: _Task, image: AnyImage) -> AnyImage:
    if isinstance(image, Image.Image):
        return _upscale_pil(task, image)
    if isinstance(image, Tensor):
        return _upscale_tensor(task, image)
    if isinstance(image, np.ndarray):
        return _upscale_array(task, image)
    raise ShapeError(f"an image is a PIL image, an array or a tensor, not a {type(image).__name__}")


@dataclass(frozen=True)
class _Task:
    """What is to be done to an image of any kind."""

    model: Restorer
    options: RestoreOptions
    bit_depth: int | None
    on_progress: OnProgress | None
    on_note: OnNote

    def restore(self, image: SourceImage) -> SourceImage:
        output = plan_output_size(Size(*image.size_px), self.options.size, self.model.info.scale)
        own_depth = image.bit_depth
        if self.bit_depth is not None:
            image = replace(image, bit_depth=self.bit_depth)

        def restore(model: Restorer) -> SourceImage:
            return restore_image(model, image, output, self.options, on_progress=self.on_progress)[0].whole()

        try:
            restored = restore(self.model)
        except NotFiniteError as error:
            restored = restore(load_wider(self.model, error, self.on_note))
        return replace(restored, bit_depth=own_depth)


def _upscale_pil(task: _Task, image: Image.Image) -> Image.Image:
    """Through the reader and writer of files, so that a profile, a palette or 16 bits mean what they mean there."""
    format_name = "PNG" if image.mode in _PNG_MODES else "TIFF"
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("HSV", "YCbCr", "RGBa", "RGBX", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data or image.mode in ("PA", "RGBa") else "RGB")
        format_name = "PNG"
    held = io.BytesIO()
    # Options of the file it came from do not apply to this one; what belongs to the image does.
    kept = {name: image.info[name] for name in ("icc_profile", "exif", "dpi", "transparency") if name in image.info}
    fast = {"compress_level": 0} if format_name == "PNG" else {}
    image.save(held, format_name, **kept, **fast)
    restored = task.restore(read_image(held.getvalue(), _NAME))
    parts, _ = encode_image(restored, name=_NAME, format="png")
    result = Image.open(io.BytesIO(b"".join(parts)))
    result.load()
    return result


def _upscale_tensor(task: _Task, image: Tensor) -> Tensor:
    if image.ndim == 4:
        if not len(image):
            raise ShapeError(f"a batch has at least one image, not {tuple(image.shape)}")
        return torch.stack([_upscale_tensor(task, one) for one in image])
    if image.ndim != 3 or image.shape[0] not in (1, 3, 4) or not image.numel():
        raise ShapeError(f"a tensor is (C, H, W) or (B, C, H, W) with 1, 3 or 4 channels, not {tuple(image.shape)}")
    if not image.is_floating_point() and image.dtype != torch.uint8:
        raise ShapeError(f"a tensor is of uint8 or float in [0, 1], not {image.dtype}")
    whole = image.dtype == torch.uint8
    planes = image.detach().to("cpu", torch.float32)
    restored = _restore_planes(task, planes / 255 if whole else planes, 8 if whole else 16)
    if whole:
        restored = (restored * 255).round_()
    return restored.to(image.device, image.dtype)


def _upscale_array(task: _Task, image: NDArray[Any]) -> NDArray[Any]:
    channels = 1 if image.ndim == 2 else image.shape[-1]
    if image.ndim not in (2, 3) or channels not in (1, 3, 4) or not image.size:
        raise ShapeError(f"an array is (H, W) or (H, W, C) with 1, 3 or 4 channels, not {image.shape}")
    if image.dtype not in (np.uint8, np.uint16) and not np.issubdtype(image.dtype, np.floating):
        raise ShapeError(f"an array is of uint8, uint16 or float in [0, 1], not {image.dtype}")
    if np.issubdtype(image.dtype, np.floating):
        planes = torch.from_numpy(image.reshape(*image.shape[:2], channels).astype(np.float32)).permute(2, 0, 1)
        restored = _restore_planes(task, planes, 16)
        result: NDArray[Any] = restored.permute(1, 2, 0).numpy().astype(image.dtype)
    else:
        depth = 8 if image.dtype == np.uint8 else 16
        result = to_samples(_restore_planes(task, from_samples(image), depth), depth)
    return np.ascontiguousarray(result[:, :, 0] if image.ndim == 2 else result)


def _range_hint(low: float, high: float) -> str:
    if low >= -1 - _RANGE_TOLERANCE and high <= 1 + _RANGE_TOLERANCE:
        return "from [-1, 1]: (image + 1) / 2"
    return "from [0, 255]: image / 255" if low >= 0 and high <= 255 else "clip it to [0, 1] first"


def _restore_planes(task: _Task, planes: Tensor, bit_depth: int) -> Tensor:
    """(C, H, W) float32 with 1, 3 or 4 channels, in [0, 1], to the restored planes of as many channels."""
    if not bool(planes.isfinite().all()):
        raise ShapeError("the image has values that are not finite")
    low, high = (float(value) for value in planes.aminmax())
    # A little beyond is the rounding of whoever computed it; more is another range, which clipping would spoil.
    if low < -_RANGE_TOLERANCE or high > 1 + _RANGE_TOLERANCE:
        hint = _range_hint(low, high)
        raise ShapeError(f"floats are in [0, 1], and the image's are in [{low:.4g}, {high:.4g}]", hint)
    planes = planes.clamp(0, 1)
    grey = len(planes) == 1
    image = SourceImage(
        rgb=planes[:3].expand(3, -1, -1).contiguous(),
        alpha=planes[3:] if len(planes) == 4 else None,
        bit_depth=bit_depth,
        is_grey=grey,
        is_neutral=grey,
    )
    restored = task.restore(image)
    if grey:
        return luma(restored.rgb)
    return restored.rgb if restored.alpha is None else torch.cat((restored.rgb, restored.alpha))
