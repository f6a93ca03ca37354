"""A stand-in for spandrel, which needs torchvision: the same interface with small networks."""

from __future__ import annotations

import pickle
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn


class _Network(nn.Module):
    """Convolutions on the low-quality image, and a pixel shuffle; with `pooled`, each pixel depends on all others."""

    def __init__(self, channels: int, scale: int, layers: int, pooled: bool) -> None:
        super().__init__()
        widths = [channels, *[8] * (layers - 1), channels * scale**2]
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.scale, self.pooled = scale, pooled

    def forward(self, image: Tensor) -> Tensor:
        x = image
        for conv in self.convs:
            x = torch.tanh(conv(x))
        if self.pooled:
            x = x + 4 * image.mean(dim=(1, 2, 3), keepdim=True)
        return F.interpolate(image, scale_factor=self.scale) + 0.2 * F.pixel_shuffle(x, self.scale)


class ImageModelDescriptor:
    """Replaces spandrel's class of this name."""

    def __init__(self, model: _Network, channels: int, purpose: str, half: bool) -> None:
        self.model, self.scale, self.purpose = model, model.scale, purpose
        self.input_channels = self.output_channels = channels
        self.supports_half = self.supports_bfloat16 = half
        self.size_requirements = SimpleNamespace(multiple_of=1)
        self.tiling, self.architecture = SimpleNamespace(name="SUPPORTED"), SimpleNamespace(name="StandIn")

    def to(self, *place: object) -> ImageModelDescriptor:
        self.model.to(*place)  # type: ignore[call-overload]
        return self

    def eval(self) -> ImageModelDescriptor:
        self.model.eval()
        return self

    def __call__(self, image: Tensor) -> Tensor:
        return self.model(image)


class UnsupportedModelError(Exception):
    """Replaces spandrel's class of this name."""


class ModelLoader:
    """Replaces spandrel's class of this name: a pickle with other objects than weights raises an error."""

    def __init__(self, device: str) -> None:
        assert device == "cpu"

    def load_from_file(self, path: Path) -> ImageModelDescriptor:
        if path.suffix != ".safetensors":
            if not path.read_bytes().startswith(b"\x80"):
                raise pickle.UnpicklingError("invalid load key, 'n'.")
            raise pickle.UnpicklingError("Global 'os.system' is forbidden")
        with safe_open(path, "pt") as file:
            about = file.metadata()
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        if not about or "layers" not in about:
            raise UnsupportedModelError
        channels = int(about["channels"])
        network = _Network(channels, int(about["scale"]), int(about["layers"]), about["pooled"] == "True")
        network.load_state_dict(weights)
        return ImageModelDescriptor(network, channels, about["purpose"], about["half"] == "True")


def write_network(
    path: Path, *, channels: int = 3, scale: int = 4, layers: int = 4, pooled: bool = False, half: bool = True
) -> Path:
    """Write a random network that the stand-in can read."""
    torch.manual_seed(5)
    network = _Network(channels, scale, layers, pooled)
    about = {"channels": channels, "scale": scale, "layers": layers, "pooled": pooled, "half": half, "purpose": "SR"}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), path, {name: str(value) for name, value in about.items()})
    return path


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace spandrel with the stand-in."""
    module = ModuleType("spandrel")
    vars(module).update(
        ModelLoader=ModelLoader,
        ImageModelDescriptor=ImageModelDescriptor,
        UnsupportedModelError=UnsupportedModelError,
    )
    monkeypatch.setitem(sys.modules, "spandrel", module)
