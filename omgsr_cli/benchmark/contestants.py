"""What stands side by side in a benchmark: anything that makes a picture of a given size out of a smaller one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import PIL
import torch
from torch import Tensor

from omgsr_cli.benchmark.cache import files_identity, key_of
from omgsr_cli.benchmark.results import ModelInfo
from omgsr_cli.errors import DeviceError
from omgsr_cli.geometry import Size
from omgsr_cli.imaging import resize
from omgsr_cli.models.devices import PRECISIONS, choose_device, choose_precision
from omgsr_cli.models.foreign import read_foreign_network

NETWORK_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt")


class Enlarger(Protocol):
    """A loaded contestant."""

    device: torch.device
    precision: str

    def __call__(self, image: Tensor, output: Size) -> Tensor:
        """Enlarge (3, H, W) float32 in [0, 1] to (3, output.height, output.width), on the CPU, in [0, 1]."""
        ...


@dataclass(frozen=True)
class Contestant:
    """One that is not loaded yet.

    Attributes:
        info: what can be told of it without loading.
        load: gives the loaded one; called at most once, when there is something to restore.
    """

    info: ModelInfo
    load: Callable[[], Enlarger]


def resampling_contestant(name: str) -> Contestant:
    """Bicubic or Lanczos as Pillow has them, on 8-bit pixels."""
    info = ModelInfo(name, "resampling", None, None, f"pillow {PIL.__version__} {name}", f"Pillow's {name} filter")
    return Contestant(info, lambda: _Resampling(name))


class _Resampling:
    def __init__(self, method: str) -> None:
        self.device = torch.device("cpu")
        self.precision = "8-bit"
        self._method = method

    def __call__(self, image: Tensor, output: Size) -> Tensor:
        return resize(image, output, method=self._method)


def network_contestant(path: Path, name: str, *, device: str | None, precision: str) -> Contestant:
    """A single file of weights that spandrel knows the architecture of.

    Args:
        path: of the file.
        name: what to call it.
        device: as for `choose_device`.
        precision: as for `choose_precision`; "auto" is fp32 on a CPU.
    """
    chosen_device = choose_device(device)
    if precision == "auto" and chosen_device.type == "cpu":
        precision = "fp32"
    chosen_precision = choose_precision(precision, chosen_device)
    # What it enlarges by, and how many weights it has, shows only when it is read.
    identity = key_of(weights=files_identity(path), device=chosen_device.type, precision=chosen_precision)
    info = ModelInfo(name, "network", None, None, identity, str(path))
    return Contestant(info, lambda: _load_network(path, chosen_device, chosen_precision))


def _load_network(path: Path, device: torch.device, precision: str) -> Enlarger:
    network = read_foreign_network(path)
    supported = {"fp16": network.supports_half, "bf16": network.supports_bfloat16, "fp32": True}[precision]
    if not supported:
        raise DeviceError(f"{path.name} does not compute in {precision}", "give --precision fp32")
    return _Network(network.to(device, PRECISIONS[precision]).eval(), device, precision)


class _Network:
    def __init__(self, network: Any, device: torch.device, precision: str) -> None:
        self.device = device
        self.precision = precision
        self._network = network

    @torch.inference_mode()
    def __call__(self, image: Tensor, output: Size) -> Tensor:
        batch = image[None].to(self.device, PRECISIONS[self.precision])
        enlarged: Tensor = self._network(batch)[0].float().clamp(0, 1).cpu()
        if tuple(enlarged.shape[-2:]) == tuple(output):
            return enlarged
        # Asked for another factor than its own: brought to size as Real-ESRGAN's program does.
        return resize(enlarged, output, method="lanczos")


def unique_names(names: Sequence[str]) -> list[str]:
    """Names that tell apart what is called the same: the second "x" becomes "x 2"."""
    found: list[str] = []
    for name in names:
        count = 1 + sum(other == name for other in names[: len(found)])
        found.append(name if count == 1 else f"{name} {count}")
    return found
