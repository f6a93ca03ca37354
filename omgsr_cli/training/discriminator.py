"""The discriminator: a few learned layers on each level of a frozen feature network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from omgsr_cli.training.augment import augment
from omgsr_cli.training.blur import BlurPool
from omgsr_cli.training.features import FeatureNet
from omgsr_cli.training.heads import STRIDES, Block, plan_heads
from omgsr_cli.training.loss_sections import GanConfig

_SLOPE = 0.2


class Discriminator(nn.Module):
    """Tells sharp pictures from restored ones, on three levels.

    Source: OMGSR, arXiv:2508.08227; heads on frozen features as in "Ensembling off-the-shelf models for GAN training",
    arXiv:2112.09130.

    Args:
        features: frozen; its plain maps at STRIDES are judged.
        plans: the blocks of each head.
        changes: what is done to every picture before it is judged, out of `augment.CHANGES`.
        blur_pool: blur before halving; else means of 2x2.
    """

    def __init__(
        self, features: FeatureNet, plans: Sequence[Sequence[Block]], changes: Sequence[str], *, blur_pool: bool = True
    ) -> None:
        super().__init__()
        self.features = features
        self.changes = tuple(changes)
        self.heads = nn.ModuleList(_build_head(plan, blur_pool) for plan in plans)
        self._stages = [features.strides.index(stride) for stride in STRIDES]

    def forward(self, image: Tensor, draw: torch.Generator) -> list[Tensor]:
        """Judge pictures.

        Args:
            image: (B, 3, H, W) float, sRGB in [-1, 1].
            draw: decides the augmentation.
        Returns:
            For each level (B, 1, h, w) float32: logits, higher for real.
        """
        maps = self.features(augment(image, self.changes, draw))
        return [head(maps[stage].float()) for stage, head in zip(self._stages, self.heads, strict=True)]


def build_discriminator(features: FeatureNet, resolution: int, config: GanConfig, seed: int = 0) -> Discriminator:
    """Build a discriminator with new heads.

    Args:
        features: frozen, may be shared with the losses.
        resolution: side in px of the square images that it will judge.
        config: the section [gan].
        seed: of the heads' weights.
    Raises:
        UsageError: the resolution is too small.
    """
    plans = plan_heads(resolution, [features.channels[features.strides.index(stride)] for stride in STRIDES])
    # New weights come from the seed alone, whatever was drawn before, and change nothing that is drawn after.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Discriminator(features, plans, config.augment, blur_pool=config.blur_pool)


def _build_head(plan: Sequence[Block], blur_pool: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    for block in plan:
        layers += [
            _build_halving(block.inputs, blur_pool),
            spectral_norm(nn.Conv2d(block.inputs, block.outputs, 3, block.stride, 1)),
            nn.LeakyReLU(_SLOPE, inplace=True),
        ]
    last = plan[-1].outputs
    return nn.Sequential(*layers, _build_halving(last, blur_pool), spectral_norm(nn.Conv2d(last, 1, 1)))


def _build_halving(channels: int, blur_pool: bool) -> nn.Module:
    return BlurPool(channels) if blur_pool else nn.AvgPool2d(2)
