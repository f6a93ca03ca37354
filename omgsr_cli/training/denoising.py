"""Pre-training: the network that takes the step learns to foresee noise at any timestep, as diffusion models do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from omgsr_cli.models.trainable import Trainable
from omgsr_cli.training.draws import Purpose, draw_generator, draw_noise
from omgsr_cli.training.generator import Generator, codec_format, step_format

NAME = "denoise"
"""Of the loss."""

_LARGEST_SNR = 1e6
"""Flow matching begins without noise, where there is nothing to foresee."""


@dataclass(frozen=True)
class Denoised:
    """What one forward pass gives to the loss.

    Attributes:
        error: (B,) float32, mean square of what was foreseen of the noise less the noise, in units of its variance.
    """

    error: Tensor


class Denoising(nn.Module):
    """A trainable model as the one thing that processes synchronise, for pre-training.

    Args:
        trainable: of any family.
        precision: as for `Generator`.
    """

    def __init__(self, trainable: Trainable, precision: str = "fp32") -> None:
        super().__init__()
        self.networks = trainable.networks
        self._trainable = trainable
        self._precision = precision

    def forward(self, lq: Tensor, hq: Tensor, seed: int, numbers: Sequence[int]) -> Denoised:
        """Foresee the noise in the latents of sharp pictures.

        An error of the clean latent, times the signal-to-noise ratio, is one of the noise: so it is the loss of DDPM
        (arXiv:2006.11239, Eq. 14) whatever a model predicts, and with flow matching it has the same meaning.

        Args:
            lq: (B, 3, H, W), not used: pre-training knows no degradation.
            hq: same shape, sRGB in [-1, 1].
            seed: of the run.
            numbers: B, of the samples in the run; with the seed they decide timestep and noise.
        """
        schedule = self._trainable.restorer.schedule
        draws = [draw_generator(seed, Purpose.LATENT, number) for number in numbers]
        timesteps = torch.tensor([draw_timestep(number, draw) for number, draw in zip(numbers, draws, strict=True)])
        with codec_format(self._precision, hq.device):
            clean = self._trainable.encode_clean(hq, draws).float()
        timesteps = timesteps.to(clean.device)
        noisy = schedule.add_noise(clean, draw_noise(clean, draws), timesteps)
        with step_format(self._precision, hq.device):
            foreseen = self._trainable.denoise(noisy, timesteps)
        snr = schedule.snr().to(clean.device, torch.float32)[timesteps].clamp(max=_LARGEST_SNR)
        return Denoised((foreseen.float() - clean).square().mean((1, 2, 3)) * snr)

    def restore(self, lq: Tensor) -> Tensor:
        """Restore (B, 3, H, W) in [-1, 1] as users do, which pre-training has not taught yet."""
        return Generator(self._trainable, self._precision).restore(lq)


class DenoisingLoss(nn.Module):
    """The one loss of pre-training; as `Losses` otherwise."""

    names = (NAME,)

    def forward(self, output: Denoised, *_: object) -> dict[str, Tensor]:
        """Give the mean error by its name."""
        return {NAME: output.error.mean()}

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Give the loss itself."""
        return losses[NAME]

    def measures(self) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
        """Give nothing to measure pictures with."""
        return {}

    def compile_statistics(self) -> None:
        """Do nothing: there are none."""


def draw_timestep(number: int, draw: torch.Generator) -> int:
    """Draw a timestep in 0..999: every other sample has more of the early ones, near which the one step is taken."""
    share = torch.rand((), generator=draw, dtype=torch.float64).item()
    return int(1000 * (share if number % 2 else share**2))
