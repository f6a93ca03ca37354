"""What the generator and the discriminator are trained to make small."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from omgsr_cli.errors import UsageError
from omgsr_cli.models.wavelet import LATENT_CHANNELS, remove_lines
from omgsr_cli.training.dists import Dists, load_dists
from omgsr_cli.training.features import FeatureNet
from omgsr_cli.training.lpips import Lpips, load_lpips, shift
from omgsr_cli.training.sections import LossConfig

if TYPE_CHECKING:
    from omgsr_cli.training.generator import GeneratorOutput

NAMES = ("lrr", "l1", "dv3cd", "lpips", "lines")
"""Of the losses here; "gan" comes from the discriminator."""

_REACHES = (1, 4)
"""Elements on each side over which the bands' running means are taken."""

Measure = Callable[[Tensor, Tensor], Tensor]
"""Of (restored, reference), both (B, 3, H, W) in [-1, 1], to (B,)."""


class Losses(nn.Module):
    """The generator's losses; one without weight is not computed.

    Args:
        weights: by name, out of NAMES and "gan".
        dists: the structure-texture distance; needed where "dv3cd" has a weight.
        lpips: needed where "lpips" has a weight.
    Attributes:
        names: of the losses that `forward` gives, in their order.
    """

    def __init__(self, weights: Mapping[str, float], dists: Dists | None = None, lpips: Lpips | None = None) -> None:
        super().__init__()
        self.weights = dict(weights)
        self.names = tuple(name for name in NAMES if self.weights.get(name))
        self.dists, self.lpips = dists, lpips
        for name, part in (("dv3cd", dists), ("lpips", lpips)):
            if name in self.names and part is None:
                raise UsageError(f"the loss {name} has a weight, but nothing to measure it with")

    def forward(self, output: GeneratorOutput, hq: Tensor, draw: torch.Generator | None = None) -> dict[str, Tensor]:
        """Compute every loss that has a weight.

        Args:
            output: of the generator.
            hq: (B, 3, H, W) float32 in [-1, 1], what it should have restored.
            draw: of the CPU, decides the offset of LPIPS; None takes none.
        Returns:
            By name, not weighted: scalars, float32, means over the batch.
        """
        losses: dict[str, Tensor] = {}
        for name in self.names:
            if name == "lrr":
                losses[name] = latent_loss(output.noisy_latent, output.lq_latent)
            elif name == "l1":
                losses[name] = F.l1_loss(output.restored.float(), hq.float())
            elif name == "dv3cd" and self.dists is not None:
                losses[name] = self.dists(output.restored, hq).mean()
            elif name == "lpips" and self.lpips is not None:
                pair = (output.restored, hq) if draw is None else shift(output.restored, hq, draw)
                losses[name] = self.lpips(*pair).mean()
            else:
                losses[name] = line_loss(output.clean_latent, output.target_latent)
        return losses

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Sum losses with their weights: from `forward`, and "gan" beside them; a scalar."""
        return torch.stack([self.weights[name] * value for name, value in losses.items()]).sum()

    def measures(self) -> dict[str, Measure]:
        """Give the distances of pictures that there are, with or without a weight, for validation."""
        found = {"dv3cd": self.dists, "lpips": self.lpips}
        return {name: measure for name, measure in found.items() if measure is not None}

    def compile_statistics(self) -> None:
        """Compile what gains by it."""
        if self.dists is not None:
            self.dists.compile_statistics()


def build_losses(config: LossConfig, features: FeatureNet | None) -> Losses:
    """Build the losses, reading what LPIPS and DISTS have learned.

    Args:
        config: the section [loss].
        features: for Dv3CD.
    Raises:
        ModelError: a file is missing or does not fit.
        UsageError: a loss has a weight, but nothing to measure it with.
    """
    weights = {name: float(getattr(config, name)) for name in (*NAMES, "gan")}
    # DISTS' own weights are for VGG16; on DINOv3 all channels weigh alike.
    learned = Path(config.backbone_path) if config.backbone == "vgg16" and config.backbone_path else None
    dists = None if features is None else load_dists(features, learned)
    lpips = None if config.lpips_path is None else load_lpips(Path(config.lpips_path))
    return Losses(weights, dists, lpips)


def latent_loss(noisy_latent: Tensor, lq_latent: Tensor) -> Tensor:
    """Compare the latent of the low-quality picture with the noisy latent of the sharp one, as a mean of squares.

    Latent Representation Refinement: the step was trained on noisy latents, so z_L should be distributed like one.
    Source: OMGSR, arXiv:2508.08227.

    Args:
        noisy_latent: (B, C, h, w), z_t of the clean latent with fresh noise, t the mid-timestep; no gradient.
        lq_latent: same shape, z_L.
    Returns:
        A scalar, float32. The noise cannot be foreseen: not under its share 1 - alpha_bar.
    """
    return F.mse_loss(lq_latent.float(), noisy_latent.float())


def line_loss(latent: Tensor, target: Tensor) -> Tensor:
    """Measure how far the running means of wavelet bands are from the target's: the grids that flat areas show.

    Args:
        latent: (B, 48, h, w) float, a latent of the tiny family.
        target: same shape.
    Returns:
        A scalar, float32: mean absolute values, summed over two reaches of the mean.
    Raises:
        UsageError: latents of another family.
    """
    if latent.shape[1] != LATENT_CHANNELS:
        raise UsageError(
            f"the loss lines is for wavelet latents of {LATENT_CHANNELS} channels, not of {latent.shape[1]}",
            hint="set lines = 0: only omgsr-tiny has them",
        )
    difference = latent.float() - target.float()
    return torch.stack([(difference - remove_lines(difference, reach)).abs().mean() for reach in _REACHES]).sum()


def generator_gan_loss(logits: Sequence[Tensor], real_label: float = 0.8) -> Tensor:
    """Measure how far restored pictures are from being taken for real ones.

    Args:
        logits: of restored pictures, (B, 1, h, w) for each level.
        real_label: as the discriminator learns it.
    Returns:
        A scalar: binary cross-entropy, mean over space and batch, sum over levels.
    """
    return torch.stack(
        [F.binary_cross_entropy_with_logits(level, torch.full_like(level, real_label)) for level in logits]
    ).sum()


def discriminator_loss(
    real_logits: Sequence[Tensor], fake_logits: Sequence[Tensor], labels: tuple[float, float] = (0.8, 0.0)
) -> Tensor:
    """Measure how badly real and restored pictures are told apart.

    Args:
        real_logits: (B, 1, h, w) for each level.
        fake_logits: likewise, of restored pictures without gradients to the generator.
        labels: that real and restored ones should have.
    Returns:
        A scalar: the sum of both binary cross-entropies, each as in `generator_gan_loss`.
    """
    real_label, fake_label = labels
    return generator_gan_loss(real_logits, real_label) + generator_gan_loss(fake_logits, fake_label)
