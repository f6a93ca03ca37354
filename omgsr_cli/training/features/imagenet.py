"""VGG16 and AlexNet, from torchvision's weight files but without torchvision."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from omgsr_cli.training.features.base import FeatureNet, FrozenNet, pool_l2
from omgsr_cli.training.features.weights import fill, find_weights, read_tensors

_Net = TypeVar("_Net", bound=FrozenNet)

_VGG16_CONVOLUTIONS = (2, 2, 3, 3, 3)
_ALEXNET_GEOMETRIES = ((11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1))
"""Kernel, stride and padding."""

# Where torchvision's checkpoints have the convolutions, among ReLUs and poolings.
_VGG16_PLACES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_ALEXNET_PLACES = (0, 3, 6, 8, 10)


class Vgg16(FeatureNet):
    """VGG16, arXiv:1409.1556, after the last ReLU of each of its five stages: relu1_2 to relu5_3."""

    title = "VGG16"
    channels = (64, 128, 256, 512, 512)
    strides = (1, 2, 4, 8, 16)
    min_px = 16

    def __init__(self) -> None:
        super().__init__()
        stages, before = [], 3
        for channels, count in zip(self.channels, _VGG16_CONVOLUTIONS, strict=True):
            inputs = (before, *[channels] * (count - 1))
            stages.append(nn.ModuleList(nn.Conv2d(each, channels, 3, padding=1) for each in inputs))
            before = channels
        self.stages = nn.ModuleList(stages)

    def _maps(self, image: Tensor, pooled: bool) -> list[Tensor]:
        hidden, maps = image, list[Tensor]()
        for number, stage in enumerate(self.stages):
            if number:
                hidden = pool_l2(hidden, stride=2) if pooled else F.max_pool2d(hidden, 2)
            for convolution in stage.children():
                hidden = F.relu(convolution(hidden), inplace=True)
            maps.append(hidden)
        return maps


class AlexNet(FrozenNet):
    """AlexNet, as torchvision has it, after each of its five ReLUs; what LPIPS is reported with."""

    channels = (64, 192, 384, 256, 256)
    min_px = 31

    def __init__(self) -> None:
        super().__init__()
        inputs = (3, *self.channels[:-1])
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, kernel, stride, padding)
            for before, after, (kernel, stride, padding) in zip(inputs, self.channels, _ALEXNET_GEOMETRIES, strict=True)
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """Compute the five feature maps of images.

        Args:
            image: (B, 3, H, W) float, sRGB in [-1, 1]; sides at least `min_px`.
        Returns:
            For each of `channels` (B, channels, h, w), dtype of the weights, not negative.
        Raises:
            ShapeError: the image has another shape.
        """
        with torch.autocast(image.device.type, enabled=False):
            hidden, maps = self.normalise(image), list[Tensor]()
            for number, convolution in enumerate(self.convolutions):
                if number in (1, 2):
                    hidden = F.max_pool2d(hidden, 3, stride=2)
                hidden = F.relu(convolution(hidden), inplace=True)
                maps.append(hidden)
        return maps


def load_vgg16(source: Path, dtype: torch.dtype = torch.float32) -> Vgg16:
    """Read VGG16 from a file of torchvision's layout (`features.0.weight`, ...), or from a folder with `vgg16*`.

    Args:
        source: the file or folder.
        dtype: of the weights, in which it will run.
    Raises:
        ModelError: there is none, or it does not fit.
    """
    return _load(Vgg16(), _VGG16_PLACES, find_weights(source, "vgg16")).freeze(dtype)


def load_alexnet(source: Path, dtype: torch.dtype = torch.float32) -> AlexNet:
    """Read AlexNet from a file of torchvision's layout, or from a folder with `alexnet*`.

    Args: as for `load_vgg16`.

    Raises:
        ModelError: there is none, or it does not fit.
    """
    return _load(AlexNet(), _ALEXNET_PLACES, find_weights(source, "alexnet")).freeze(dtype)


def _load(net: _Net, places: tuple[int, ...], path: Path) -> _Net:
    tensors = read_tensors(path)
    own = [name.rpartition(".")[0] for name in net.state_dict() if name.endswith(".weight")]
    theirs = {f"features.{place}": name for place, name in zip(places, own, strict=True)}
    renamed = {}
    for name, value in tensors.items():
        layer, _, part = name.rpartition(".")
        if layer in theirs:
            renamed[f"{theirs[layer]}.{part}"] = value
    fill(net, renamed, path)
    return net
