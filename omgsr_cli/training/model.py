"""The model in a run: finding and loading it, and its forward pass as one module, for training and pre-training.

One module has one forward pass and one backward pass that the processes synchronise. With the encoder, the step and
the decoder prepared one by one, gradients of a part that is called without its wrapper stay unsynchronised.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from omgsr_cli.models.base import Trainable
from omgsr_cli.models.families import family_of
from omgsr_cli.models.family import ModelSource
from omgsr_cli.models.loading import load_trainable
from omgsr_cli.models.lora import LoraOptions
from omgsr_cli.models.sources import find_trainable
from omgsr_cli.training.config import TrainConfig
from omgsr_cli.training.draws import Purpose, draw_generator, draw_noise
from omgsr_cli.transfer import upload


@dataclass(frozen=True)
class GeneratorOutput:
    """What one forward pass gives to the losses.

    Attributes:
        lq_latent: (B, C, h, w) float32, z_L, from the encoder that learns.
        target_latent: same shape, z_H, from the frozen encoder; no gradient.
        noisy_latent: same shape, the target with fresh noise of the mid-timestep; no gradient.
        clean_latent: same shape, after the step.
        restored: (B, 3, H, W) float32, nominally in [-1, 1].
        unstepped: likewise, after a step that predicts no noise: the encoder's own result; None if no loss needs it.
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
            lq: (B, 3, H, W) float32, upscaled low-quality images, sRGB in [-1, 1].
            hq: same shape, what they should look like.
            seed: of the run.
            numbers: B, of the samples in the run; with the seed they decide everything that is drawn.
        """
        restorer = self._trainable.restorer
        draws = [draw_generator(seed, Purpose.LATENT, number) for number in numbers]
        with codec_format(self._precision, lq.device):
            target_latent = self._trainable.encode_clean(hq, draws)
            lq_latent = self._trainable.encode(lq, draws)
        with step_format(self._precision, lq.device):
            clean_latent = restorer.restore(lq_latent)
        with codec_format(self._precision, lq.device):
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
        with codec_format(self._precision, lq.device):
            latent = restorer.encode(lq)
        with step_format(self._precision, lq.device):
            latent = restorer.restore(latent)
        with codec_format(self._precision, lq.device):
            return restorer.decode(latent)


def codec_format(precision: str, device: torch.device) -> torch.autocast:
    """Give the number format that encoder and decoder compute in: bf16 for "bf16", else that of their weights."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")


def step_format(precision: str, device: torch.device) -> torch.autocast:
    """Give the number format that the step computes in: bf16 but for "fp32"."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision != "fp32")


DENOISE = "denoise"
"""Of the loss."""

_LARGEST_SNR = 1e6
"""Flow matching begins without noise, where nothing can be predicted."""


@dataclass(frozen=True)
class Denoised:
    """What one forward pass gives to the loss.

    Attributes:
        error: (B,) float32, mean square error of the predicted noise, in units of its variance.
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
        """Predict the noise in the latents of sharp images.

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
        noisy = schedule.add_noise(clean, draw_noise(clean, draws), timesteps)
        with step_format(self._precision, hq.device):
            foreseen = self._trainable.denoise(noisy, timesteps)
        snr = schedule.snr()[timesteps].float().clamp(max=_LARGEST_SNR)
        return Denoised((foreseen.float() - clean).square().mean((1, 2, 3)) * upload(snr, clean.device))

    def restore(self, lq: Tensor) -> Tensor:
        """Restore (B, 3, H, W) in [-1, 1] as users do, which pre-training has not taught yet."""
        return Generator(self._trainable, self._precision).restore(lq)


class DenoisingLoss(nn.Module):
    """The one loss of pre-training; as `Losses` otherwise."""

    names = (DENOISE,)

    def forward(self, output: Denoised, *_: object) -> dict[str, Tensor]:
        """Give the mean error by its name."""
        return {DENOISE: output.error.mean()}

    def total(self, losses: Mapping[str, Tensor]) -> Tensor:
        """Give the loss itself."""
        return losses[DENOISE]

    def measures(self) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
        """Give nothing to measure images with."""
        return {}

    def compile_statistics(self) -> None:
        """Do nothing: there are none."""


def draw_timestep(number: int, draw: torch.Generator) -> int:
    """Draw a timestep in 0..999: every other sample has more of the early ones, near which the one step is taken."""
    share = torch.rand((), generator=draw, dtype=torch.float64).item()
    return int(1000 * (share if number % 2 else share**2))


def build_lora_options(config: TrainConfig) -> LoraOptions | None:
    """Give the section [lora], or None without one."""
    return None if config.lora is None else LoraOptions(**config.lora.model_dump(exclude_none=True))


def find_run_model(config: TrainConfig, *, resumed: bool = False) -> ModelSource:
    """Find the files of the model to train, without reading a weight.

    Args:
        config: of the run.
        resumed: weights come from a checkpoint, so that those to start from may be gone.
    Raises:
        ModelError, UsageError: as for `find_trainable`.
    """
    model = config.model
    return find_trainable(
        model.preset,
        base=model.base,
        start_from=None if resumed and (model.preset or model.base) else model.start_from,
        mid_timestep=None if model.mid_timestep == "auto" else model.mid_timestep,
        prompt=model.prompt or None,
        lora=build_lora_options(config),
    )


def load_run_model(config: TrainConfig, device: torch.device, *, resumed: bool) -> Trainable:
    """Read the model to train, onto a device; `resumed` as for `find_run_model`."""
    trainable = load_trainable(
        find_run_model(config, resumed=resumed),
        device,
        start_from=None if resumed else config.model.start_from,
        lora=build_lora_options(config),
        precision=config.train.frozen_precision,
        seed=config.train.seed,
        native_px=config.data.resolution,
        scale=config.data.scales[0][0],
    )
    if config.train.channels_last:
        trainable.networks.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's own omission
    if config.train.gradient_checkpointing:
        trainable.checkpoint_gradients()
    if config.train.compile:
        trainable.restorer.compile()
    return trainable


def build_generator(config: TrainConfig, trainable: Trainable) -> Generator | Denoising:
    """Make one module of the model: what restores, or for pre-training what denoises."""
    if config.loss.denoise:
        return Denoising(trainable, config.train.precision)
    teacher = config.loss.teacher
    clamps, info = config.loss.clamp, trainable.restorer.info
    if clamps is None:
        clamps = family_of(info, info.name).clamps_restored
    shows_encoder = bool(teacher and teacher.encoder)
    return Generator(trainable, config.train.precision, shows_encoder=shows_encoder, clamps=clamps)
