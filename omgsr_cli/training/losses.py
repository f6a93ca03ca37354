"""Losses of the generator and the discriminator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from omgsr_cli.errors import UsageError
from omgsr_cli.training.config import LossConfig
from omgsr_cli.training.perceptual import Dists, FeatureNet, Lpips, load_dists, load_lpips

if TYPE_CHECKING:
    from omgsr_cli.training.model import GeneratorOutput

TEACHER_NAMES = {
    "teacher": "weight",
    "teacher_lpips": "lpips",
    "teacher_dists": "dists",
    "teacher_encoder": "encoder",
}
"""Names of the losses against the teacher's images, with their keys in [loss.teacher]."""

NAMES = ("lrr", "l1", "dv3cd", "lpips", *TEACHER_NAMES, "denoise")
"""Names of the losses in this module; "gan" comes from the discriminator."""

Measure = Callable[[Tensor, Tensor], Tensor]
"""Function of (restored, reference), both (B, 3, H, W) in [-1, 1], that returns (B,)."""

_OFFSETS = 8
"""Number of offsets per axis of LPIPS, at least the stride of AlexNet's first layer and the pixels per latent element.
At a fixed offset, a stride of 4 pixels would miss grid artefacts of 4 pixels."""


class Losses(nn.Module):
    """The generator's losses; a loss without weight is not computed.

    Args:
        weights: weights by name, from NAMES and "gan".
        dists: structure-texture distance; required if "dv3cd" has a weight.
        lpips: LPIPS; required if "lpips" has a weight.
        teacher_dists_every: interval in steps of the loss "teacher_dists".
        teacher_dists_px: side in px of the window that it compares; 0 for the full image.
    Attributes:
        names: names of the losses that `forward` returns, in order.
    """

    def __init__(
        self,
        weights: Mapping[str, float],
        dists: Dists | None = None,
        lpips: Lpips | None = None,
        *,
        teacher_dists_every: int = 1,
        teacher_dists_px: int = 0,
    ) -> None:
        super().__init__()
        self._every, self._window_px = teacher_dists_every, teacher_dists_px
        self.weights = dict(weights)
        self.names = tuple(name for name in NAMES if self.weights.get(name))
        self.dists, self.lpips = dists, lpips
        needed = {"dv3cd": dists, "lpips": lpips, "teacher_dists": dists, "teacher_lpips": lpips}
        for name, part in needed.items():
            if name in self.names and part is None:
                raise UsageError(f"the loss {name} has a weight, but no network to measure it with")

    def forward(
        self,
        output: GeneratorOutput | Tensor,
        hq: Tensor,
        draws: Sequence[torch.Generator] | None = None,
        target: Tensor | None = None,
        step: int = 0,
    ) -> dict[str, Tensor]:
        """Compute every loss that has a weight.

        Args:
            output: output of the generator, or the errors of pre-training.
            hq: (B, 3, H, W) float32 in [-1, 1], the high-quality images.
            draws: one CPU generator per sample; they determine the offset of LPIPS and the window of DISTS. None uses
                no offset and the upper left window.
            target: same shape as hq, the teacher's images; required if a loss against them has a weight.
            step: step number in the run; some losses are not computed in every step.
        Returns:
            Unweighted losses by name: float32 scalars, means over the batch.
        """
        now = [name for name in self.names if name != "teacher_dists" or step % self._every == 0]
        return {name: self._compute(name, output, hq, draws, target) for name in now}

    def _compute(
        self,
        name: str,
        output: GeneratorOutput | Tensor,
        hq: Tensor,
        draws: Sequence[torch.Generator] | None,
        target: Tensor | None,
    ) -> Tensor:
        if isinstance(output, Tensor):
            return output.mean()
        if name == "lrr":
            return latent_loss(output.noisy_latent, output.lq_latent)
        wanted = target if name in TEACHER_NAMES else hq
        assert wanted is not None, "the data give a target where the configuration has a teacher"
        restored = output.restored
        if name == "teacher_encoder":
            assert output.unstepped is not None, "the generator gives it where this loss has a weight"
            return F.l1_loss(output.unstepped.float(), wanted.float())
        if name in ("l1", "teacher"):
            return F.l1_loss(restored.float(), wanted.float())
        if name in ("dv3cd", "teacher_dists"):
            assert self.dists is not None
            if name == "teacher_dists" and self._window_px:
                restored, wanted = cut_window(restored, wanted, (self._window_px, self._window_px), draws)
            return _mean(self.dists, restored, wanted)
        assert self.lpips is not None
        if draws is not None:
            height, width = (side - _OFFSETS + 1 for side in hq.shape[-2:])
            restored, wanted = cut_window(restored, wanted, (height, width), draws)
        return _mean(self.lpips, restored, wanted)

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum of the losses from `forward` and "gan", a scalar."""
        return torch.stack([self.weights[name] * value for name, value in losses.items()]).sum()

    def measures(self) -> dict[str, Measure]:
        """Return the loaded image distances, with or without a weight, for validation."""
        found = {"dv3cd": self.dists, "lpips": self.lpips}
        return {name: measure for name, measure in found.items() if measure is not None}


def _mean(measure: Measure, first: Tensor, second: Tensor) -> Tensor:
    return measure(first, second).mean()


def cut_window(
    first: Tensor, second: Tensor, size_px: tuple[int, int], draws: Sequence[torch.Generator] | None
) -> tuple[Tensor, Tensor]:
    """Cut the same window out of both images of each pair: (B, 3, H, W) to (B, 3, height, width).

    Args:
        first: images of any dtype.
        second: images of the same size.
        size_px: height and width of the window; a shorter side of the images is kept.
        draws: one generator per pair determines the position; None uses the upper left corners.
    """
    spare = [max(0, length - side) for length, side in zip(first.shape[-2:], size_px, strict=True)]
    cut: tuple[list[Tensor], list[Tensor]] = ([], [])
    for index in range(len(first)):
        y, x = (0 if draws is None else int(torch.randint(each + 1, (), generator=draws[index])) for each in spare)
        for windows, images in zip(cut, (first, second), strict=True):
            windows.append(images[index, :, y : y + size_px[0], x : x + size_px[1]])
    return torch.stack(cut[0]), torch.stack(cut[1])


def loss_weights(config: LossConfig) -> dict[str, float]:
    """Return the weight of every loss by name, including the teacher's losses and "gan"."""
    own = (*NAMES, "gan")
    weights = {name: float(getattr(config, name)) for name in own if name not in TEACHER_NAMES}
    if config.teacher is not None:
        weights |= {name: float(getattr(config.teacher, key)) for name, key in TEACHER_NAMES.items()}
    return weights


def build_losses(config: LossConfig, features: FeatureNet | None, learned: Path | None = None) -> Losses:
    """Build the losses and read the learned weights of LPIPS and DISTS.

    Args:
        config: the [loss] section.
        features: feature network of Dv3CD.
        learned: path where the published weights of DISTS for VGG16 may be; None weights all channels equally.
    Raises:
        ModelError: a file is missing or does not fit.
        UsageError: a loss has a weight, but no network to measure it with.
    """
    dists = None if features is None else load_dists(features, learned)
    lpips = None if config.lpips_path is None else load_lpips(Path(config.lpips_path))
    teacher = config.teacher
    return Losses(
        loss_weights(config),
        dists,
        lpips,
        teacher_dists_every=1 if teacher is None else teacher.dists_every,
        teacher_dists_px=0 if teacher is None else teacher.dists_px,
    )


def latent_loss(noisy_latent: Tensor, lq_latent: Tensor) -> Tensor:
    """Mean squared error between the latent of the low-quality image and the noisy latent of the high-quality one.

    Latent Representation Refinement: the step was trained on noisy latents, so z_L should be distributed like one.
    Source: OMGSR, arXiv:2508.08227.

    Args:
        noisy_latent: (B, C, h, w), z_t of the clean latent with fresh noise, t the mid-timestep; no gradient.
        lq_latent: same shape, z_L.
    Returns:
        A float32 scalar. Its minimum is the variance of the noise, 1 - alpha_bar, because noise cannot be predicted.
    """
    return F.mse_loss(lq_latent.float(), noisy_latent.float())


def generator_gan_loss(logits: Sequence[Tensor], real_label: float = 0.8) -> Tensor:
    """Compute the adversarial loss of the generator.

    Args:
        logits: logits of restored images, (B, 1, h, w) for each level.
        real_label: label of real images in the discriminator's loss.
    Returns:
        A scalar: binary cross-entropy, mean over space and batch, sum over levels.
    """
    return torch.stack(
        [F.binary_cross_entropy_with_logits(level, torch.full_like(level, real_label)) for level in logits]
    ).sum()


def discriminator_loss(
    real_logits: Sequence[Tensor], fake_logits: Sequence[Tensor], labels: tuple[float, float] = (0.8, 0.0)
) -> Tensor:
    """Compute the loss of the discriminator.

    Args:
        real_logits: logits of real images, (B, 1, h, w) for each level.
        fake_logits: same shapes, of restored images without gradients to the generator.
        labels: labels of real and restored images.
    Returns:
        A scalar: the sum of both binary cross-entropies, each as in `generator_gan_loss`.
    """
    real_label, fake_label = labels
    return generator_gan_loss(real_logits, real_label) + generator_gan_loss(fake_logits, fake_label)
