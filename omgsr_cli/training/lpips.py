"""LPIPS v0.1: a distance of pictures with weights that were learned from what people see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from omgsr_cli.errors import ModelError
from omgsr_cli.training.features import AlexNet, Vgg16, load_alexnet, load_vgg16
from omgsr_cli.training.features.weights import find_weights, read_tensors

_OFFSETS = 8
"""A few pixels more than any network or latent space strides by."""


def layer_distance(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """Weigh the squared difference of unit-length feature vectors and average it over space.

    Source: LPIPS, arXiv:1801.03924, Eq. 1.

    Args:
        first: (B, C, H, W), any float type; computed in float32, under autocast too.
        second: same shape.
        weight: (1, C, 1, 1) float32, not negative.
    Returns:
        (B,) float32, not negative.
    """
    with torch.autocast(first.device.type, enabled=False):
        # F.normalize has a zero gradient for an all-zero feature vector, where a bare square root would give NaN.
        difference = F.normalize(first.float(), dim=1, eps=1e-10) - F.normalize(second.float(), dim=1, eps=1e-10)
        return (difference.square() * weight).sum(dim=1).mean(dim=(1, 2))


class Lpips(nn.Module):
    """LPIPS on a frozen network.

    Args:
        features: AlexNet, which figures are reported with, or VGG16.
        weights: for each of its five maps, (1, C, 1, 1), not negative.
    Raises:
        ModelError: the weights do not fit the network.
    """

    def __init__(self, features: AlexNet | Vgg16, weights: list[Tensor]) -> None:
        super().__init__()
        self.features = features
        if tuple(weight.numel() for weight in weights) != features.channels:
            found = [tuple(weight.shape) for weight in weights]
            raise ModelError(f"LPIPS has weights of the shapes {found}, the network has channels {features.channels}")
        for number, weight in enumerate(weights):
            self.register_buffer(f"weight{number}", weight.float().view(1, -1, 1, 1))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Measure the distance of two batches of pictures.

        Args:
            first: (B, 3, H, W) float, sRGB in [-1, 1].
            second: same shape.
        Returns:
            (B,) float32; 0 for equal pictures.
        """
        pairs = zip(self.features(first), self.features(second), strict=True)
        distances = [layer_distance(*pair, self.get_buffer(f"weight{number}")) for number, pair in enumerate(pairs)]
        return torch.stack(distances).sum(dim=0)


def shift(first: Tensor, second: Tensor, draws: Sequence[torch.Generator]) -> tuple[Tensor, Tensor]:
    """Cut both images of each pair at a random offset of 0 to 7 rows and columns; all become 7 smaller.

    AlexNet's first layer strides by 4 pixels: at one offset alone, it would not see a grid of 4 pixels.

    Args:
        first: (B, C, H, W); sides over 7.
        second: same shape.
        draws: one for each pair, decide the offsets.
    Returns:
        Both, (B, C, H - 7, W - 7).
    """
    height, width = (length - _OFFSETS + 1 for length in first.shape[-2:])
    corners = [torch.randint(0, _OFFSETS, (2,), generator=draw).tolist() for draw in draws]
    return tuple(  # type: ignore[return-value]  # two of two
        torch.stack([image[..., y : y + height, x : x + width] for image, (y, x) in zip(batch, corners, strict=True)])
        for batch in (first, second)
    )


def load_lpips(source: Path, net: Literal["alex", "vgg"] = "alex", dtype: torch.dtype = torch.float32) -> Lpips:
    """Read LPIPS from its published files.

    Args:
        source: folder with torchvision's `alexnet*` (or `vgg16*`) and with LPIPS's `alex.pth` (or `vgg.pth`), either
            of them as `.safetensors` too; or one file with the contents of both.
        net: which network.
        dtype: of the network's weights; the distance itself is always float32.
    Raises:
        ModelError: a file is missing or does not fit.
    """
    features = load_alexnet(source, dtype) if net == "alex" else load_vgg16(source, dtype)
    path = find_weights(source, net)
    return Lpips(features, _linear_weights(read_tensors(path), path))


def _linear_weights(tensors: Mapping[str, Tensor], path: Path) -> list[Tensor]:
    names = [f"lin{number}.model.1.weight" for number in range(5)]
    for name in names:
        if name not in tensors:
            raise ModelError(f"{path} has no weights of LPIPS: {name}")
    return [tensors[name] for name in names]
