"""The models of a benchmark, which restore an image to a given size or are folders of restored images; their speed."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Protocol

import PIL
import psutil
import torch
from torch import Tensor

from omgsr_cli.benchmark.results import ModelInfo, Speed, files_identity, key_of, quantiles
from omgsr_cli.errors import UsageError
from omgsr_cli.geometry import Size
from omgsr_cli.imaging import FILTERS, resize
from omgsr_cli.models.devices import choose_device, read_kib
from omgsr_cli.models.families import is_model_file
from omgsr_cli.models.family import ModelSource
from omgsr_cli.models.loading import describe_model, load_found, suitable_precision
from omgsr_cli.models.sources import find_model
from omgsr_cli.options import BenchOptions, ModelOptions, RestoreOptions
from omgsr_cli.presets import DEFAULT_PRESET, PRESETS
from omgsr_cli.upscaling import upscale_image

_MIB = 1 << 20


class LoadedModel(Protocol):
    """A loaded model."""

    device: torch.device
    precision: str

    def __call__(self, image: Tensor, output: Size) -> Tensor:
        """Upscale (3, H, W) float32 in [0, 1] to (3, output.height, output.width), on the CPU, in [0, 1]."""
        ...


@dataclass(frozen=True)
class Model:
    """A model of the comparison, not loaded yet.

    Attributes:
        info: its description, which needs no loading.
        load: loads the model on the named device, or on the preferred one; called at most once per process, and only if
            an image must be restored. It can be pickled. None for images restored before.
    """

    info: ModelInfo
    load: Callable[[str | None], LoadedModel] | None = None


def given_models(folders: Sequence[Path]) -> list[Model]:
    """Return a model for each folder of restored images."""
    return _named([Model(ModelInfo(folder.name, "given", detail=str(folder))) for folder in folders])


def restoring_models(options: BenchOptions) -> list[Model]:
    """Find each `--model`; base and adapter complete the model that needs them.

    By default these are the default model, and bicubic for comparison.

    Raises:
        UsageError: a name is empty, or several models could use the base or adapter.
        ModelError, DeviceError: a model or device is missing.
    """
    names: list[str | None] = list(options.model)
    if options.base is not None or options.adapter is not None:
        open_names = [name for name in options.model if _takes_adapter(name)]
        if len(open_names) > 1:
            reason = f"--base and --adapter apply to one model, but {' and '.join(open_names)} could use them"
            raise UsageError(reason, "merge one of them first, or compare in two runs")
        if not open_names:
            names.append(None)
    return _named([_find(name, options) for name in names or [DEFAULT_PRESET, "bicubic"]])


def _named(models: Sequence[Model]) -> list[Model]:
    names = unique_names([model.info.name for model in models])
    return [replace(model, info=replace(model.info, name=name)) for model, name in zip(models, names, strict=True)]


def unique_names(names: Sequence[str]) -> list[str]:
    """Make names unique: the second "x" becomes "x 2"."""
    counts = [1 + names[:index].count(name) for index, name in enumerate(names)]
    return [name if count == 1 else f"{name} {count}" for name, count in zip(names, counts, strict=True)]


def _takes_adapter(name: str) -> bool:
    preset = PRESETS.get(name)
    return not (name in FILTERS or is_model_file(Path(name)) or (preset is not None and preset.embedded))


def _find(name: str | None, options: BenchOptions) -> Model:
    if name == "":
        raise UsageError("--model is empty", "check that variables in the command are set")
    if name in FILTERS:
        return resampling_model(name)
    takes = name is None or _takes_adapter(name)
    base, adapter = (options.base, options.adapter) if takes else (None, None)
    return _omgsr_model(ModelOptions(model=name, base=base, adapter=adapter), options)


def resampling_model(name: str) -> Model:
    """Return a model that resizes with Pillow's bicubic or Lanczos filter, on 8-bit pixels."""
    info = ModelInfo(name, "resampling", None, None, f"pillow {PIL.__version__} {name}", f"Pillow's {name} filter")
    return Model(info, partial(_Resampling, name))


class _Resampling:
    device, precision = torch.device("cpu"), "8-bit"

    def __init__(self, method: str, device: str | None = None) -> None:
        self._method = method

    def __call__(self, image: Tensor, output: Size) -> Tensor:
        return resize(image, output, method=self._method)


def _omgsr_model(wanted: ModelOptions, options: BenchOptions) -> Model:
    device, source = choose_device(options.device), find_model(wanted)
    info = describe_model(source)
    identity = key_of(
        weights=files_identity(source.folder),
        adapter=files_identity(source.adapter) if source.adapter else None,
        device=device.type,
        precision=(options.precision, suitable_precision(source, options.precision, device)),
        info=[info.mid_timestep, info.native_tile_px, info.prompt, info.scale],
        seed=options.seed,
    )
    path = Path(info.name)
    name = path.stem if path.is_file() else path.name if path.is_dir() else info.name
    detail = "; ".join((str(source.folder), *source.notes))
    described = ModelInfo(name, "omgsr", info.scale, info.parameters, identity, detail)
    return Model(described, partial(_Omgsr, source, options.precision, options.seed))


class _Omgsr:
    """A model of this program; it runs in the same way as in `omgsr upscale`."""

    def __init__(self, source: ModelSource, precision: str, seed: int | None, device: str | None = None) -> None:
        self._restorer = load_found(source, device=device, precision=precision)
        self._options = RestoreOptions(seed=seed)
        self.device: torch.device = self._restorer.device
        self.precision = self._restorer.precision

    def __call__(self, image: Tensor, output: Size) -> Tensor:
        return upscale_image(self._restorer, image, output, self._options, on_note=self._on_note)

    def _on_note(self, note: str) -> None:
        # The speed table shows the precision with its note.
        self.precision = f"{self._restorer.precision} ({note})"


@dataclass(frozen=True)
class Timing:
    """Time and memory of restoring one image with a model.

    Attributes:
        seconds: seconds of each timed restoration.
        megapixels: megapixels of the output.
        load_s: seconds to load the model.
        process_mib: peak resident memory during any of the calls.
        device_mib: peak memory of tensors on an accelerator during any of the calls; None on the CPU.
        device: readable name.
        precision: readable name.
        is_kept: whether an earlier run measured it.
    """

    seconds: tuple[float, ...]
    megapixels: float
    load_s: float
    process_mib: float
    device_mib: float | None
    device: str
    precision: str
    is_kept: bool = False

    def with_another(self, other: Timing) -> Timing:
        """Combine two timings of one image."""
        device_mib = None if self.device_mib is None else max(self.device_mib, other.device_mib or 0.0)
        return replace(
            other,
            seconds=(*self.seconds, *other.seconds),
            process_mib=max(self.process_mib, other.process_mib),
            device_mib=device_mib,
        )


def speed_of(model: str, timings: Sequence[Timing]) -> Speed | None:
    """Return a model's speed from the timings of its images; None if no image was timed."""
    if not timings:
        return None
    seconds = [each for timing in timings for each in timing.seconds]
    # Device and loading time come from this run, if it measured anything.
    newest = min(timings, key=lambda timing: timing.is_kept)
    device_mib = [timing.device_mib for timing in timings if timing.device_mib is not None]
    return Speed(
        model,
        newest.device,
        newest.precision,
        len(seconds),
        newest.load_s,
        quantiles(seconds),
        quantiles([each / timing.megapixels for timing in timings for each in timing.seconds]),
        max(timing.process_mib for timing in timings),
        max(device_mib, default=None),
        sum(len(timing.seconds) for timing in timings if timing.is_kept),
    )


def time_call(model: LoadedModel, image: Tensor, output: Size, load_s: float) -> tuple[Tensor, Timing]:
    """Restore an image, wait until the model's device is idle, and return the result with time and memory.

    Args:
        image, output: as for `LoadedModel`.
        load_s: the model's loading time in seconds, for the record.
    """
    device = model.device
    accelerator = torch.get_device_module(device) if device.type in ("cuda", "xpu") else None
    if accelerator is not None:
        accelerator.reset_peak_memory_stats(device)
    with contextlib.suppress(OSError):
        # On Linux, this resets the peak to the current resident memory.
        Path("/proc/self/clear_refs").write_text("5", "ascii")
    _synchronize(device)
    started = perf_counter()
    result = model(image, output)
    _synchronize(device)
    took = perf_counter() - started
    device_mib = accelerator.max_memory_allocated(device) / _MIB if accelerator else None
    # Such as "cuda (NVIDIA H100)".
    name = f"{device} ({accelerator.get_device_name(device)})" if accelerator else str(device)
    # The model may have switched to another precision meanwhile.
    return result, Timing((took,), output.area / 1e6, load_s, _peak_process_mib(), device_mib, name, model.precision)


def _peak_process_mib() -> float:
    """Return the peak resident memory since the last reset, or since the process started if it cannot be reset."""
    peak = read_kib("/proc/self/status", "VmHWM:")
    if peak is not None:
        return peak / _MIB
    if sys.platform == "win32":
        return float(psutil.Process().memory_info().peak_wset) / _MIB
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / _MIB


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(*(() if device.type == "mps" else (device,)))
