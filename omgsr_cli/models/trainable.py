"""What every model family is to training: a `Trainable`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from omgsr_cli.models.base import Restorer


@runtime_checkable
class Trainable(Protocol):
    """A restorer whose weights, or the adapters beside them, learn.

    Attributes:
        restorer: what a user runs; its `restore` and `decode` carry gradients, and `encode` below is its own.
        networks: every network of it, trained or frozen, in one module.
    """

    restorer: Restorer
    networks: nn.Module

    def trained(self) -> dict[str, nn.Parameter]:
        """Give the weights that learn, float32, by names that stay the same from run to run."""
        ...

    def encode(self, image: Tensor, draws: Sequence[torch.Generator]) -> Tensor:
        """Map an upscaled low-quality image to its latent, as the restorer does.

        Args:
            image: (B, 3, H, W) float32, sRGB in [-1, 1].
            draws: one for each sample; samples the posterior where the family has one.
        Returns:
            (B, C, h, w) float32, with gradients to the weights of the encoder.
        """
        ...

    def encode_clean(self, image: Tensor, draws: Sequence[torch.Generator]) -> Tensor:
        """Map a clean image to its latent by the encoder of the pre-trained model, which does not learn.

        Args: as for `encode`.
        Returns:
            (B, C, h, w) float32 without gradients.
        """
        ...

    def denoise(self, noisy_latent: Tensor, timesteps: Tensor) -> Tensor:
        """Recover clean latents from noisy ones by the network that takes the step; pre-training asks it.

        Args:
            noisy_latent: (B, C, h, w) float32.
            timesteps: (B,) int64, each in 0..999: how noisy each of them is.
        Returns:
            clean_latent, same shape and dtype, with gradients to the weights of that network.
        """
        ...

    def checkpoint_gradients(self) -> None:
        """Compute activations a second time in the backward pass rather than keep them, where the family can."""
        ...

    def share_backbone(self, share: Callable[[nn.Module], None], device: torch.device) -> None:
        """Have the frozen weights of the network that takes the step shared out among processes; move all else.

        Args:
            share: changes a network in place, so that each process keeps a share of its frozen weights on its device.
            device: where the rest goes.
        Raises:
            ModelError: the family has no frozen weights.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write the present weights into a folder, as `omgsr upscale` reads them, with `omgsr.json`."""
        ...

    def load(self, folder: Path) -> None:
        """Read weights that `save` or the published code wrote, in place.

        Raises:
            ModelError: they do not fit.
        """
        ...
