"""The models that a benchmark compares: names to contestants."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from omgsr_cli.benchmark.cache import files_identity, key_of
from omgsr_cli.benchmark.contestants import (
    NETWORK_SUFFIXES,
    Contestant,
    network_contestant,
    resampling_contestant,
    unique_names,
)
from omgsr_cli.benchmark.results import ModelInfo
from omgsr_cli.errors import UsageError
from omgsr_cli.geometry import Size
from omgsr_cli.imaging import FILTERS
from omgsr_cli.models.base import Restorer
from omgsr_cli.models.devices import choose_device
from omgsr_cli.models.loading import describe_model, load_found, suitable_precision
from omgsr_cli.models.sources import find_model
from omgsr_cli.options import ModelOptions, RestoreOptions
from omgsr_cli.presets import DEFAULT_PRESET, PRESETS
from omgsr_cli.upscaling import upscale_image


def build_contestants(
    names: Sequence[str], *, base: str | None, adapter: Path | None, device: str | None, precision: str
) -> list[Contestant]:
    """Make a contestant of each `--model`; the base and adapter belong to the one that is not complete by itself.

    With nothing named it is the default model, and bicubic for a measure.

    Raises:
        UsageError: a name is empty, or several models could take the base or adapter.
        ModelError, DeviceError: a model or device is not there.
    """
    open_names = [name for name in names if _takes_adapter(name)]
    wanted: list[str | None] = list(names)
    if base is not None or adapter is not None:
        if len(open_names) > 1:
            reason = f"--base and --adapter belong to one model, and {' and '.join(open_names)} could take them"
            raise UsageError(reason, "merge one of them first, or compare in two runs")
        if not open_names:
            wanted.append(None)
    made = [
        _contestant(name, base=base, adapter=adapter, device=device, precision=precision)
        for name in wanted or [DEFAULT_PRESET, "bicubic"]
    ]
    names_told = unique_names([contestant.info.name for contestant in made])
    return [
        Contestant(_renamed(contestant.info, name), contestant.load)
        for contestant, name in zip(made, names_told, strict=True)
    ]


def _renamed(info: ModelInfo, name: str) -> ModelInfo:
    return ModelInfo(name, info.kind, info.scale, info.parameters, info.identity, info.detail)


def _takes_adapter(name: str) -> bool:
    preset = PRESETS.get(name)
    return not (name in FILTERS or _is_network(name) or (preset is not None and preset.embedded))


def _is_network(name: str) -> bool:
    path = Path(name)
    return path.suffix.lower() in NETWORK_SUFFIXES and path.is_file()


def _contestant(
    name: str | None, *, base: str | None, adapter: Path | None, device: str | None, precision: str
) -> Contestant:
    if name == "":
        raise UsageError("a --model is empty", "is a variable in the command not set?")
    if name in FILTERS:
        return resampling_contestant(name)
    if name is not None and _is_network(name):
        return network_contestant(Path(name), Path(name).stem, device=device, precision=precision)
    takes = name is None or _takes_adapter(name)
    options = ModelOptions(model=name, base=base if takes else None, adapter=adapter if takes else None)
    return _restorer_contestant(options, device=device, precision=precision)


def _restorer_contestant(options: ModelOptions, *, device: str | None, precision: str) -> Contestant:
    chosen = choose_device(device)
    source = find_model(options.model, base=options.base, adapter=options.adapter)
    number_format = suitable_precision(source, precision, chosen)
    info = describe_model(source)
    identity = key_of(
        weights=files_identity(source.folder),
        adapter=files_identity(source.adapter) if source.adapter else None,
        device=chosen.type,
        precision=(precision, number_format),
        info=[info.mid_timestep, info.native_tile_px, info.prompt, info.scale],
    )
    name = Path(info.name).name if Path(info.name).is_dir() else info.name
    detail = "; ".join((str(source.folder), *source.notes))
    described = ModelInfo(name, "omgsr", info.scale, info.parameters, identity, detail)
    return Contestant(described, lambda: _Restorer(load_found(source, device=device, precision=precision)))


class _Restorer:
    """A model of this program, as `omgsr upscale` runs it."""

    def __init__(self, restorer: Restorer) -> None:
        self.device: torch.device = restorer.device
        self.precision = restorer.precision
        self._restorer = restorer

    def __call__(self, image: Tensor, output: Size) -> Tensor:
        return upscale_image(self._restorer, image, output, RestoreOptions())
