"""The functions of `omgsr_cli`: restore an image or a folder, compare models, find a mid-timestep.

Their errors name arguments, where those of the command line name options.
"""

from __future__ import annotations

import functools
import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from omgsr_cli.batch.finished import FinishedResults, Settings
from omgsr_cli.batch.reports import FileResult
from omgsr_cli.batch.upscaler import Upscaler, UpscaleWork, writers_for
from omgsr_cli.benchmark import runner
from omgsr_cli.engines.local import choose_local, plan_places
from omgsr_cli.engines.work import say_nothing
from omgsr_cli.errors import NotFiniteError, OmgsrError, ShapeError, UsageError
from omgsr_cli.files.jobs import JobOptions, clear_leftovers, plan_jobs
from omgsr_cli.files.naming import size_suffix
from omgsr_cli.files.remembered import Remembered
from omgsr_cli.geometry import Size, plan_output_size
from omgsr_cli.imaging import SourceImage, encode_image, from_samples, luma, read_image, to_samples
from omgsr_cli.imaging.opening import decoding
from omgsr_cli.models import loading
from omgsr_cli.models.base import Restorer, RestorerInfo
from omgsr_cli.models.devices import named_devices
from omgsr_cli.models.loading import describe_model
from omgsr_cli.models.sources import find_model
from omgsr_cli.options import (
    ColorFix,
    EngineOptions,
    ModelOptions,
    OutputFormat,
    RestoreOptions,
    SizeOptions,
    WriteOptions,
    build_options,
)
from omgsr_cli.restoration import OnNote, OnProgress
from omgsr_cli.timesteps import find
from omgsr_cli.upscaling import load_wider, restore_image

__all__ = ["find_mid_timestep", "load", "run_bench", "upscale_folder", "upscale_image"]

P = ParamSpec("P")
R = TypeVar("R")

_OPTION = re.compile(r"(?<![\w/-])--([a-z][a-z-]*)(?: ([^\s,;:)]+))?")
_OUTPUT = re.compile(r"(?<![\w/-])-o\b")
_FLAGS = ("compare", "compile", "keep_times", "overwrite", "recursive")


def names_arguments(function: Callable[P, R], name: str | None = None) -> Callable[P, R]:
    """Wrap a function so that the errors it raises name arguments: `tile=32`, not `--tile 32`.

    Args:
        function: a public function whose arguments have the names of the options.
        name: what to call the result; None keeps the function's name.
    """

    @functools.wraps(function)
    def wrapped(*arguments: P.args, **values: P.kwargs) -> R:
        try:
            return function(*arguments, **values)
        except OmgsrError as error:
            raise with_arguments(error)  # noqa: B904 - the same exception

    wrapped.__name__ = wrapped.__qualname__ = name or function.__name__
    wrapped.__module__ = "omgsr_cli"
    return wrapped


def with_arguments(error: OmgsrError) -> OmgsrError:
    """Replace options by arguments in an error's message and hint, in place, and return it."""
    error.message = _as_arguments(error.message)
    error.hint = error.hint and _as_arguments(error.hint)
    error.args = (error.message,)
    return error


def _as_arguments(text: str) -> str:
    return _OUTPUT.sub("output", _OPTION.sub(_argument, text))


def _argument(match: re.Match[str]) -> str:
    name, value = match[1].replace("-", "_"), match[2]
    if name == "help":
        name = "help(omgsr_cli)"
    elif name in _FLAGS:
        name += "=True"
    elif value and re.fullmatch(r"[\d.]+|[A-Z_/]+", value):  # a number, or a placeholder such as FOLDER
        return f"{name}={value}"
    elif value and not value.isalpha():  # a word would continue the sentence
        return f"{name}={value!r}"
    return f"{name} {value}" if value else name


load = names_arguments(loading.load_restorer, "load")
run_bench = names_arguments(runner.run_bench)
find_mid_timestep = names_arguments(find.find_mid_timestep)

AnyImage = TypeVar("AnyImage", Image.Image, Tensor, NDArray[Any])
"""The result has the type of the input."""

# Modes that PNG stores without conversion; images in other modes are passed to the reader as TIFF.
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
_NAME = "the image"
_RANGE_TOLERANCE = 0.02


@names_arguments
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
    """Restore and upscale one image.

    Nothing is printed. The same call always gives the same pixels.

    Args:
        model: from `load`.
        image: a PIL image of any mode (its profile, EXIF and transparency are kept, and the result is upright); an
            array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), RGB(A) in sRGB, of uint8, uint16 or float in [0, 1]; or a
            tensor (C, H, W) or (B, C, H, W) with 1, 3 or 4 channels, of uint8 or float in [0, 1], on any device.
        scale: factor for both sides, 0.5 to 16; None uses the model's own.
        size: (height, width) of the result, instead of `scale`.
        process_scale: restore at this multiple of the image's size at least, 1 to 16, and then reduce; "auto" uses the
            magnification that the model was trained at, and 1 restores at the size of the result.
        strength: 0 to 1: result = upscaled + strength * (restored - upscaled); 0 does not run the model.
        color_fix: "adain", "wavelet" or "none"; None uses the model's default.
        tile: side of a tile in pixels of the working size, "off", or "auto" to choose by free memory.
        seed: sample the latent posterior with this seed; None uses the posterior's mean.
        bit_depth: 8 rounds to multiples of 1/255 between the stages, as the published scripts do; 16 does not. The
            results differ by a few levels. None uses 8 for 8-bit images, and 16 for floats and all others.
        on_progress: called with (done, total) tiles. To cancel, raise an exception in it: it ends the work and is
            passed on to the caller.
    Returns:
        The upscaled image with the type, dtype, layout and device of the input; floats are in [0, 1].
    Raises:
        ShapeError: the image's type, shape, dtype or range is not supported.
        FileError: the file of a PIL image is truncated or corrupt.
        UsageError: a value is out of range.
        DeviceError: the device ran out of memory.
        NotFiniteError: the model gives NaN or infinity. If `load` chose the precision, float32 is tried first, with a
            warning.
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
        raise UsageError(f"bit_depth={bit_depth!r} is not 8 or 16", "leave it out to use the image's own")
    if not isinstance(getattr(model, "info", None), RestorerInfo):
        raise UsageError(f"{model!r} is not a loaded model", "load one: model = load(NAME_OR_FOLDER)")
    notes: list[str] = []
    result = _upscale(_Task(model, options, bit_depth, on_progress, notes.append), image)
    for note in dict.fromkeys(notes):
        # The wrapper that names arguments is a frame of its own.
        warnings.warn(note, stacklevel=3)
    return result


def _upscale(task: _Task, image: AnyImage) -> AnyImage:
    if isinstance(image, Image.Image):
        return _upscale_pil(task, image)
    if isinstance(image, Tensor):
        return _upscale_tensor(task, image)
    if isinstance(image, np.ndarray):
        return _upscale_array(task, image)
    hint = None
    if isinstance(image, str | Path):
        hint = "for files call upscale_folder(model, path, output); or open the file with PIL.Image.open"
    elif isinstance(image, list | tuple):
        hint = "call upscale_image for each image, or upscale_folder for files; a tensor (B, C, H, W) is a batch"
    raise ShapeError(f"an image is a PIL image, an array or a tensor, not a {type(image).__name__}", hint)


@dataclass(frozen=True)
class _Task:
    """The model and settings of one call."""

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
    """Use the reader and writer of files, so that profiles, palettes and 16 bits are interpreted in the same way."""
    with decoding(_NAME):
        image.load()
    format_name = "PNG" if image.mode in _PNG_MODES else "TIFF"
    if image.mode == "La":
        image = image.convert("LA")
    if image.mode in ("HSV", "YCbCr", "RGBa", "RGBX", "PA"):
        image = image.convert("RGBA" if image.has_transparency_data or image.mode in ("PA", "RGBa") else "RGB")
        format_name = "PNG"
    held = io.BytesIO()
    # Keep what describes the image; the other entries describe how its file was compressed.
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
            raise ShapeError(f"a batch must have at least one image; the shape is {tuple(image.shape)}")
        return torch.stack([_upscale_tensor(task, one) for one in image])
    if image.ndim != 3 or image.shape[0] not in (1, 3, 4) or not image.numel():
        raise ShapeError(
            f"a tensor must be (C, H, W) or (B, C, H, W) with 1, 3 or 4 channels, not {tuple(image.shape)}"
        )
    if not image.is_floating_point() and image.dtype != torch.uint8:
        raise ShapeError(f"a tensor must be uint8, or float in [0, 1], not {image.dtype}")
    whole = image.dtype == torch.uint8
    planes = image.detach().to("cpu", torch.float32)
    restored = _restore_planes(task, planes / 255 if whole else planes, 8 if whole else 16)
    if whole:
        restored = (restored * 255).round_()
    return restored.to(image.device, image.dtype)


def _upscale_array(task: _Task, image: NDArray[Any]) -> NDArray[Any]:
    channels = 1 if image.ndim == 2 else image.shape[-1]
    if image.ndim not in (2, 3) or channels not in (1, 3, 4) or not image.size:
        raise ShapeError(f"an array must be (H, W) or (H, W, C) with 1, 3 or 4 channels, not {image.shape}")
    if image.dtype not in (np.uint8, np.uint16) and not np.issubdtype(image.dtype, np.floating):
        raise ShapeError(f"an array must be uint8, uint16, or float in [0, 1], not {image.dtype}")
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
        return "convert from [-1, 1] with (image + 1) / 2"
    return "convert from [0, 255] with image / 255" if low >= 0 and high <= 255 else "clip to [0, 1] first"


def _restore_planes(task: _Task, planes: Tensor, bit_depth: int) -> Tensor:
    """Restore planes.

    Args:
        planes: (C, H, W) float32 with 1, 3 or 4 channels, in [0, 1].
        bit_depth: 8 or 16, as for `upscale_image`.
    Returns:
        (C, H', W') float32 in [0, 1].
    """
    if not bool(planes.isfinite().all()):
        raise ShapeError("the image has values that are not finite")
    low, high = (float(value) for value in planes.aminmax())
    # Small excesses are rounding errors of the caller; larger ones mean another range, where clipping would do harm.
    if low < -_RANGE_TOLERANCE or high > 1 + _RANGE_TOLERANCE:
        hint = _range_hint(low, high)
        raise ShapeError(f"floats must be in [0, 1], but the image's are in [{low:.4g}, {high:.4g}]", hint)
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


@names_arguments
def upscale_folder(
    model: Restorer | str | Path,
    inputs: str | Path | Sequence[str | Path],
    output: str | Path | None = None,
    *,
    scale: float | None = None,
    size: tuple[int, int] | None = None,
    process_scale: Literal["auto"] | float = "auto",
    strength: float = 1.0,
    color_fix: ColorFix | None = None,
    tile: Literal["auto", "off"] | int = "auto",
    seed: int | None = None,
    recursive: bool = False,
    suffix: str | None = None,
    format: OutputFormat = "same",
    quality: int | None = None,
    metadata: Literal["keep", "none"] = "keep",
    overwrite: bool = False,
    workers: int | None = None,
    device: str | None = None,
    on_result: Callable[[FileResult], None] | None = None,
) -> list[FileResult]:
    """Restore and upscale the images of a folder, or of several files and folders.

    Metadata, profile, transparency and 16 bits are kept. An image that fails does not stop the others, and results that
    an earlier call with the same model and settings finished are skipped.

    Args:
        model: from `load`; or a name or folder, as several `workers` need it.
        inputs: folders, files, globs or .txt lists.
        output: a folder, or a file for a single image; None writes beside the input, as NAME_x4.EXT or FOLDER_x4/.
        scale: as for `upscale_image`, like `size`, `process_scale`, `strength`, `color_fix`, `tile` and `seed`.
        recursive: search subfolders.
        suffix: added to names.
        format: "same" as the input's, or "png", "jpg", "webp", "tiff", "avif".
        quality: 1 to 100, for lossy formats; None uses the format's default.
        metadata: "keep" or "none".
        overwrite: replace existing files that are not finished results of this call.
        workers: number of processes, each of which loads the model; None uses one per device. A script that uses
            several must run under `if __name__ == "__main__":`.
        device: for a model given by name; as for `load`, or several: "cuda:0,cuda:1" or "all".
        on_result: called with each result.
    Returns:
        One result for each image, and one for each input that has no image; `error` is the reason of a failure.
    Raises:
        UsageError: a value is out of range, or arguments exclude each other.
    """
    options = build_options(EngineOptions, workers=workers, device=device)
    if isinstance(model, str | Path):
        source = find_model(ModelOptions(model=str(model)))
        info = describe_model(source)
    elif options == EngineOptions():
        info = model.info
    else:
        raise UsageError(
            "a loaded model stays in its process and on its device", "pass its name to use --workers or --device"
        )
    sizes = build_options(SizeOptions, scale=scale, size=size)
    settings = Settings(
        # The model's part of what identifies a result.
        ModelOptions(model=info.name, mid_timestep=info.mid_timestep, prompt=info.prompt),
        build_options(
            RestoreOptions,
            size=sizes,
            process_scale=process_scale,
            strength=strength,
            color_fix=color_fix,
            tile=tile,
            seed=seed,
        ),
        build_options(WriteOptions, format=format, quality=quality, metadata=metadata, overwrite=overwrite),
    )
    remembered = Remembered()
    plan = plan_jobs(
        [str(inputs)] if isinstance(inputs, str | Path) else [str(one) for one in inputs],
        None if output is None else str(output),
        JobOptions(recursive, suffix, size_suffix(sizes, info.scale), settings.write.format),
        remembered,
    )
    clear_leftovers(plan.jobs)
    results = [FileResult(None, None, "failed", error=problem) for problem in plan.problems]
    for problem in plan.problems:
        with_arguments(problem)
    if isinstance(model, str | Path):
        engine = choose_local(plan_places(named_devices(options.device), options.workers))
        work = UpscaleWork(settings, source, info)
        found: Iterator[FileResult] = engine.run(work, plan.jobs, on_start=lambda job: None, say=say_nothing)
    else:
        kept, writers = FinishedResults(settings, info, remembered), writers_for(model.device, settings)
        found = Upscaler(settings, info, kept, lambda: model, writers=writers).stream(plan.jobs, lambda job: None)
    for result in found:
        if result.error is not None:
            with_arguments(result.error)
        results.append(result)
        if on_result:
            on_result(result)
    return results
