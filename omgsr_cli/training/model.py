"""The model of a run: finding and loading it, and its forward pass as one module, for training and pre-training.

Processes synchronise the one forward pass and the one backward pass of a single module. If the encoder, the step and
the decoder were prepared separately, gradients of a part that is called without its wrapper would stay unsynchronised.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from omgsr_cli.errors import ModelError, UsageError
from omgsr_cli.files.atomic import write_atomically
from omgsr_cli.models.base import Trainable
from omgsr_cli.models.families import family_of
from omgsr_cli.models.family import ModelSource
from omgsr_cli.models.loading import load_trainable
from omgsr_cli.models.lora import LoraOptions
from omgsr_cli.models.record import load_record
from omgsr_cli.models.sources import find_trainable
from omgsr_cli.timesteps import MidTimestep
from omgsr_cli.timesteps.find import find_mid_timestep
from omgsr_cli.training.config import TrainConfig
from omgsr_cli.training.data import Purpose, draw_generator, draw_noise
from omgsr_cli.training.distributed import device_of
from omgsr_cli.training.sources import is_files
from omgsr_cli.transfer import upload


@dataclass(frozen=True)
class GeneratorOutput:
    """Output of one forward pass, the input of the losses.

    Attributes:
        lq_latent: (B, C, h, w) float32, z_L, from the trained encoder.
        target_latent: same shape, z_H, from the frozen encoder; no gradient.
        noisy_latent: same shape, the target with fresh noise of the mid-timestep; no gradient.
        clean_latent: same shape, after the step.
        restored: (B, 3, H, W) float32, nominally in [-1, 1].
        unstepped: as `restored`, decoded after a step with zero predicted noise, so that it shows the encoder's own
            result; None if no loss needs it.
    """

    lq_latent: Tensor
    target_latent: Tensor
    noisy_latent: Tensor
    clean_latent: Tensor
    restored: Tensor
    unstepped: Tensor | None = None


class Generator(nn.Module):
    """A trainable model as a single module that processes synchronise.

    Args:
        trainable: model of any family.
        precision: "bf16" runs encoder, step and decoder under autocast, "mixed" only the step, "fp32" nothing.
        shows_encoder: whether `unstepped` is computed.
        clamps: whether restored images are clamped to [-1, 1].
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
            hq: same shape, the high-quality images.
            seed: seed of the run.
            numbers: B sample numbers in the run; together with the seed they determine all random numbers.
        """
        restorer = self._trainable.restorer
        draws = [draw_generator(seed, Purpose.LATENT, number) for number in numbers]
        with autocast(lq.device, self._precision == "bf16"):
            target_latent = self._trainable.encode_clean(hq, draws)
            lq_latent = self._trainable.encode(lq, draws)
        with autocast(lq.device, self._precision != "fp32"):
            clean_latent = restorer.restore(lq_latent)
        with autocast(lq.device, self._precision == "bf16"):
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
        """Restore (B, 3, H, W) in [-1, 1] as in inference, without random numbers; same shape, not clamped."""
        restorer = self._trainable.restorer
        with autocast(lq.device, self._precision == "bf16"):
            latent = restorer.encode(lq)
        with autocast(lq.device, self._precision != "fp32"):
            latent = restorer.restore(latent)
        with autocast(lq.device, self._precision == "bf16"):
            return restorer.decode(latent)


def autocast(device: torch.device, enabled: bool) -> torch.autocast:
    """Return the context in which networks compute in bf16, or if not enabled in the dtype of their weights."""
    return torch.autocast(device.type, torch.bfloat16, enabled=enabled)


_LARGEST_SNR = 1e6
"""Upper bound, because flow matching starts without noise, where the ratio is infinite and nothing can be predicted."""


class Denoising(nn.Module):
    """A trainable model as a single module that processes synchronise, for pre-training.

    Args:
        trainable: model of any family.
        precision: as for `Generator`.
    """

    def __init__(self, trainable: Trainable, precision: str = "fp32") -> None:
        super().__init__()
        self.networks = trainable.networks
        self._trainable = trainable
        self._precision = precision

    def forward(self, lq: Tensor, hq: Tensor, seed: int, numbers: Sequence[int]) -> Tensor:
        """Measure the predicted noise in the latents of high-quality images.

        The squared error of the clean latent times the signal-to-noise ratio is the squared error of the noise. The
        loss is therefore that of DDPM (arXiv:2006.11239, Eq. 14) for every prediction type, and has the same meaning
        with flow matching.

        Args:
            lq: (B, 3, H, W), not used: pre-training has no degradation.
            hq: same shape, sRGB in [-1, 1].
            seed: seed of the run.
            numbers: B sample numbers in the run; together with the seed they determine timestep and noise.
        Returns:
            (B,) float32, mean squared error of the predicted noise, in units of its variance.
        """
        schedule = self._trainable.restorer.schedule
        draws = [draw_generator(seed, Purpose.LATENT, number) for number in numbers]
        timesteps = torch.tensor([draw_timestep(number, draw) for number, draw in zip(numbers, draws, strict=True)])
        with autocast(hq.device, self._precision == "bf16"):
            clean = self._trainable.encode_clean(hq, draws).float()
        noisy = schedule.add_noise(clean, draw_noise(clean, draws), timesteps)
        with autocast(hq.device, self._precision != "fp32"):
            foreseen = self._trainable.denoise(noisy, timesteps)
        snr = schedule.snr()[timesteps].float().clamp(max=_LARGEST_SNR)
        return (foreseen.float() - clean).square().mean((1, 2, 3)) * upload(snr, clean.device)

    def restore(self, lq: Tensor) -> Tensor:
        """Restore (B, 3, H, W) in [-1, 1] as in inference, although pre-training does not train this."""
        return Generator(self._trainable, self._precision).restore(lq)


def draw_timestep(number: int, draw: torch.Generator) -> int:
    """Draw a timestep in 0..999; every other sample favours early timesteps, near the one of the single step."""
    share = torch.rand((), generator=draw, dtype=torch.float64).item()
    return int(1000 * (share if number % 2 else share**2))


def build_lora_options(config: TrainConfig) -> LoraOptions | None:
    """Build the options from the [lora] section, or None without that section."""
    return None if config.lora is None else LoraOptions(**config.lora.model_dump(exclude_none=True))


def find_run_model(config: TrainConfig, *, resumed: bool = False) -> ModelSource:
    """Find the files of the model to train, without reading weights; a resumed run needs no initial weights.

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
    """Load the model to train onto a device; `resumed` as for `find_run_model`."""
    trainable = load_trainable(
        find_run_model(config, resumed=resumed),
        device,
        start_from=None if resumed else config.model.start_from,
        lora=build_lora_options(config),
        precision="bf16" if config.train.precision == "bf16" else "fp32",
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
    """Wrap the model in one module that restores or, for pre-training, denoises."""
    if config.loss.denoise:
        return Denoising(trainable, config.train.precision)
    teacher = config.loss.teacher
    clamps, info = config.loss.clamp, trainable.restorer.info
    if clamps is None:
        clamps = family_of(info, info.name).clamps_restored
    shows_encoder = bool(teacher and teacher.encoder)
    return Generator(trainable, config.train.precision, shows_encoder=shows_encoder, clamps=clamps)


TIMESTEP_NAME = "mid_timestep.json"
_SAMPLES = 64
"""Enough samples for an interval of a few timesteps without a long wait."""


def settle_mid_timestep(config: TrainConfig, accelerator: Accelerator, resumed: Path | None) -> TrainConfig:
    """Replace "auto" with a number: from the checkpoint to resume from, or measured by the first process.

    Value, interval and curve are written to the run's folder.

    Raises:
        OmgsrError: no image can be measured, or the record cannot be written.
    """
    if config.model.mid_timestep != "auto":
        return config
    values: list[int | None] = [None]
    if resumed is not None:
        record = load_record(resumed)
        if record is None:
            raise ModelError(f"{resumed} has no omgsr.json", "set model.mid_timestep to the number of the run")
        values[0] = record.mid_timestep
    elif accelerator.is_main_process:
        found = _measure(config, accelerator)
        # The curve may begin with infinity, which JSON does not support.
        curve = [value if value < math.inf else None for value in found.curve.tolist()]
        text = json.dumps({**vars(found), "curve": curve}, indent=2) + "\n"
        write_atomically(Path(config.save.out, TIMESTEP_NAME), [text.encode()], overwrite=True)
        values[0] = found.mid_timestep
    settled = broadcast_object_list(values)[0]
    return config.model_copy(update={"model": config.model.model_copy(update={"mid_timestep": settled})})


def check_measurable(config: TrainConfig) -> None:
    """Check that "auto" can measure the training images.

    Raises:
        UsageError: some of them are not files, or are resized.
    """
    other = [each for each in config.data.train if not is_files(each) or each.first or each.resize]
    if config.model.mid_timestep == "auto" and other:
        raise UsageError(
            f'"auto" measures whole folders of files, and data.train has {other[0].images}',
            "set a number: omgsr timestep --data FOLDER measures one",
        )


def _measure(config: TrainConfig, accelerator: Accelerator) -> MidTimestep:
    data, shares = config.data, config.degradation.presets
    check_measurable(config)
    source = find_run_model(config)
    return find_mid_timestep(
        [each.images for each in data.train],
        family_of(source.record, source.name).load_encoder(source, device_of(accelerator)),
        lq=data.train_lq,
        # The degradation with the largest share is measured.
        degradation=max(shares, key=lambda name: shares[name]),
        resolution=data.resolution,
        scale=data.scales[0][0],
        on_small=data.on_small,
        max_samples=_SAMPLES,
        seed=config.train.seed,
        latents=config.model.latents,
    )
