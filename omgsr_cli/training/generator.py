"""The generator as one module: encode, one step, decode.

One module has one forward pass and one backward pass that the processes synchronise. With the encoder, the step and
the decoder prepared one by one, gradients of a part that is called by another way than its wrapper stay unsynchronised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from omgsr_cli.models.trainable import Trainable
from omgsr_cli.training.draws import Purpose, draw_generator, draw_noise


@dataclass(frozen=True)
class GeneratorOutput:
    """What one forward pass gives to the losses.

    Attributes:
        lq_latent: (B, C, h, w) float32, z_L, from the encoder that learns.
        target_latent: same shape, z_H, from the frozen encoder; no gradient.
        noisy_latent: same shape, the target with fresh noise of the mid-timestep; no gradient.
        clean_latent: same shape, after the step.
        restored: (B, 3, H, W) float32, nominally in [-1, 1].
        unstepped: likewise, if the step had foreseen nothing: what the encoder does alone; None where it is not needed.
    """

    lq_latent: Tensor
    target_latent: Tensor
    noisy_latent: Tensor
    clean_latent: Tensor
    restored: Tensor
    unstepped: Tensor | None = None


class Generator(nn.Module):
    """A trainable model as the one thing that processes synchronise.

    Args:
        trainable: of any family.
        precision: "bf16" runs encoder, step and decoder under autocast, "mixed" the step alone, "fp32" nothing.
        shows_encoder: whether `unstepped` is computed.
        clamps: whether restored images are kept in [-1, 1].
    """

    def __init__(
        self, trainable: Trainable, precision: str = "fp32", *, shows_encoder: bool = False, clamps: bool = False
    ) -> None:
        super().__init__()
        self.networks = trainable.networks
        self._trainable = trainable
        self._precision = precision
        self._shows_encoder, self._clamps = shows_encoder, clamps

    def forward(self, lq: Tensor, hq: Tensor, seed: int, numbers: Sequence[int]) -> GeneratorOutput:
        """Restore a batch.

        Source: OMGSR, arXiv:2508.08227, Fig. 3.

        Args:
            lq: (B, 3, H, W) float32, enlarged low-quality pictures, sRGB in [-1, 1].
            hq: same shape, what they should look like.
            seed: of the run.
            numbers: B, of the samples in the run; with the seed they decide everything that is drawn.
        """
        restorer = self._trainable.restorer
        draws = [draw_generator(seed, Purpose.LATENT, number) for number in numbers]
        with self._codec_format(lq.device):
            target_latent = self._trainable.encode_clean(hq, draws)
            lq_latent = self._trainable.encode(lq, draws)
        with step_format(self._precision, lq.device):
            clean_latent = restorer.restore(lq_latent)
        with self._codec_format(lq.device):
            restored = restorer.decode(clean_latent)
            unstepped = self._decode_unstepped(lq_latent) if self._shows_encoder else None
        if self._clamps:
            restored = restored.clamp(-1, 1)
        noise = draw_noise(target_latent, draws)
        noisy_latent = restorer.schedule.add_noise(target_latent, noise, restorer.info.mid_timestep)
        return GeneratorOutput(lq_latent, target_latent, noisy_latent, clean_latent, restored, unstepped)

    def _decode_unstepped(self, lq_latent: Tensor) -> Tensor:
        restorer = self._trainable.restorer
        nothing = torch.zeros_like(lq_latent)
        return restorer.decode(restorer.schedule.clean_latent(lq_latent, nothing, restorer.info.mid_timestep))

    @torch.no_grad()
    def restore(self, lq: Tensor) -> Tensor:
        """Restore (B, 3, H, W) in [-1, 1] as users do, without a draw; same shape, not clamped."""
        restorer = self._trainable.restorer
        with self._codec_format(lq.device):
            latent = restorer.encode(lq)
        with step_format(self._precision, lq.device):
            latent = restorer.restore(latent)
        with self._codec_format(lq.device):
            return restorer.decode(latent)

    def _codec_format(self, device: torch.device) -> torch.autocast:
        return codec_format(self._precision, device)


def codec_format(precision: str, device: torch.device) -> torch.autocast:
    """Give the number format that encoder and decoder compute in: bf16 for "bf16", else that of their weights."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def step_format(precision: str, device: torch.device) -> torch.autocast:
    """Give the number format that the step computes in: bf16 but for "fp32"."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision != "fp32")
