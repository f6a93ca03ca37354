"""Antialiased downsampling."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn


class BlurPool(nn.Module):
    """Halve feature maps after a blur, so that a shift of the picture does not change what is seen of it.

    The blur is the outer product of (1, 3, 3, 1) / 8, beyond the border there are zeros.
    Source: "Making convolutional networks shift-invariant again", arXiv:1904.11486.

    Args:
        channels: of the maps.
    """

    kernel: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        taps = torch.tensor((1.0, 3.0, 3.0, 1.0)) / 8
        kernel = taps[:, None] * taps[None, :]
        self.register_buffer("kernel", kernel.repeat(channels, 1, 1, 1), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, C, H, W), sides from 2, to (B, C, H // 2, W // 2), same dtype."""
        return F.conv2d(features, self.kernel, stride=2, padding=1, groups=features.shape[1])
