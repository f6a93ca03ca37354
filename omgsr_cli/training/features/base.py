"""What a feature network is to the losses and the discriminator."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Self

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from omgsr_cli.errors import ShapeError

# ImageNet's mean and deviation, of images in [-1, 1]: 2 * mean - 1 and 2 * deviation.
_SHIFT = tuple(2 * mean - 1 for mean in (0.485, 0.456, 0.406))
_SCALE = tuple(2 * deviation for deviation in (0.229, 0.224, 0.225))


class FrozenNet(nn.Module):
    """A network on normalised images that never learns, but lets gradients through to its input.

    It runs in the number format of its own weights, under autocast too, unless that is asked for: what it measures is
    the same wherever it is called.

    Attributes:
        min_px: sides of images are at least this.
    """

    min_px: int = 1
    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1), persistent=False)

    def freeze(self, dtype: torch.dtype = torch.float32) -> Self:
        """Turn off the gradients of all weights and store them in a number format; returns itself."""
        for weight in self.parameters():
            # The buffers stay float32: images are normalised before they are rounded.
            weight.data = weight.data.to(dtype)
        return self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Stay as it is: a frozen network has no training mode."""
        return super().train(False)

    def normalise(self, image: Tensor) -> Tensor:
        """Give images ImageNet's mean and deviation, in the number format of the weights.

        Args:
            image: (B, 3, H, W) float, sRGB in [-1, 1].
        Raises:
            ShapeError: another shape, or a side under `min_px`.
        """
        if image.ndim != 4 or image.shape[1] != 3 or min(image.shape[2:]) < self.min_px:
            shape = tuple(image.shape)
            raise ShapeError(f"images must be (B, 3, H, W) with sides from {self.min_px} px on, not {shape}")
        return ((image.float() - self.shift) / self.scale).to(next(self.parameters()).dtype)


class FeatureNet(FrozenNet, ABC):
    """A frozen network with a feature map for each of its stages.

    Attributes:
        title: what people call it.
        channels: of each stage's map.
        strides: image pixels per element of each stage's map, on each side.
    """

    title: str
    channels: tuple[int, ...]
    strides: tuple[int, ...]

    def forward(self, image: Tensor, pooled: bool = False, autocast: bool = False) -> list[Tensor]:
        """Compute the feature maps of images.

        Args:
            image: (B, 3, H, W) float, sRGB in [-1, 1]; sides at least `min_px`.
            pooled: take the chain with L2 pooling that DISTS compares, instead of the network as it was trained.
            autocast: compute in bf16 where torch's autocast does.
        Returns:
            For each stage (B, channels, H // stride, W // stride), dtype of the weights, or with
            autocast bf16; pooled, sides may round up.
        Raises:
            ShapeError: the image has another shape.
        """
        with torch.autocast(image.device.type, torch.bfloat16, enabled=autocast):
            return self._maps(self.normalise(image), pooled)

    @abstractmethod
    def _maps(self, image: Tensor, pooled: bool) -> list[Tensor]:
        """Compute the maps of a normalised image."""


def pool_l2(features: Tensor, stride: int) -> Tensor:
    """Pool features by an antialiased root mean square.

    out = sqrt(blur(x^2) + 1e-12) with the outer product of hanning(5)[1:-1], normalised to sum 1, padding 1.
    Source: DISTS, arXiv:2004.07728, section II-A.

    Args:
        features: (B, C, H, W) float.
        stride: 1 keeps the size.
    Returns:
        (B, C, ceil(H / stride), ceil(W / stride)), dtype of features, positive.
    """
    taps = torch.tensor((0.25, 0.5, 0.25), dtype=features.dtype, device=features.device)
    channels = features.shape[1]
    kernel = (taps[:, None] * taps[None, :]).expand(channels, 1, 3, 3).contiguous()
    return (F.conv2d(features.square(), kernel, stride=stride, padding=1, groups=channels) + 1e-12).sqrt()
