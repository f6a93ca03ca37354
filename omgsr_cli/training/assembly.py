"""Building a run from its configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator

from omgsr_cli.degradation import load_degradation
from omgsr_cli.models.families import family_of
from omgsr_cli.models.family import ModelSource
from omgsr_cli.models.loading import load_trainable
from omgsr_cli.models.lora import LoraOptions
from omgsr_cli.models.sources import find_trainable
from omgsr_cli.models.trainable import Trainable
from omgsr_cli.training.adversary import Adversary
from omgsr_cli.training.average import WeightAverage
from omgsr_cli.training.config import TrainConfig
from omgsr_cli.training.data import CropOptions, Teaching, TrainingCrops
from omgsr_cli.training.denoising import Denoising, DenoisingLoss
from omgsr_cli.training.discriminator import build_discriminator
from omgsr_cli.training.features import FeatureNet, load_features
from omgsr_cli.training.generator import Generator
from omgsr_cli.training.loss_sections import TeacherConfig
from omgsr_cli.training.losses import Losses, Measure, build_losses
from omgsr_cli.training.optimizers import build_adamw
from omgsr_cli.training.pictures import TrainingPicture, find_training_pictures
from omgsr_cli.training.processes import device_of
from omgsr_cli.training.sharding import share_backbone
from omgsr_cli.training.step import Learner
from omgsr_cli.training.teacher import KeptPictures, identify_teacher


@dataclass(frozen=True)
class Run:
    """Everything that a run works with.

    Attributes:
        config: as it was asked for.
        trainable: the model.
        learner: what learns, and what makes it learn.
        crops: samples to learn from.
        pictures: how many of them there are.
        held_out: pictures to measure with; empty without validation.
        crop_options: how samples are made.
        features: what the feature network is called; empty without one.
        losses: names of what a step gives, besides their total.
        measures: of restored pictures, besides PSNR and SSIM.
    """

    config: TrainConfig
    trainable: Trainable
    learner: Learner
    crops: TrainingCrops
    pictures: int
    held_out: Sequence[TrainingPicture]
    crop_options: CropOptions
    features: str
    losses: Sequence[str]
    measures: Mapping[str, Measure]


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


def build_lora_options(config: TrainConfig) -> LoraOptions | None:
    """Give the section [lora], or None where it is left out."""
    return None if config.lora is None else LoraOptions(**config.lora.model_dump(exclude_none=True))


def build_crop_options(config: TrainConfig) -> CropOptions:
    """Say how samples are made of pictures."""
    data, presets = config.data, config.degradation.presets
    # Pre-training knows no degradation.
    degradations = () if config.loss.denoise else tuple((load_degradation(p), share) for p, share in presets.items())
    return CropOptions(
        resolution=data.resolution,
        scales=data.scales,
        degradations=degradations,
        flip=data.flip,
        turn=data.turn,
        detail=data.detail,
        halve=data.halve,
        gray=data.gray,
        smooth=data.smooth,
        on_small=data.on_small,
        cache=None if data.cache is None else Path(data.cache),
        margin_px=data.margin,
        noise=config.degradation.lq_noise,
        upscale=data.upscale,
        sampling=data.sampling,
        teaching=build_teaching(config.loss.teacher),
    )


def build_teaching(teacher: TeacherConfig | None) -> Teaching | None:
    """Say where the teacher's pictures are kept; None without a teacher."""
    if teacher is None:
        return None
    kept = KeptPictures(Path(teacher.cache), identify_teacher(teacher.model, teacher.precision))
    return Teaching(kept, teacher.crops, teacher.sigma_px, teacher.low_frequencies)


def load_run(config: TrainConfig, accelerator: Accelerator, *, resumed: bool) -> Run:
    """Read and build everything that a run works with.

    Args:
        config: of the run.
        accelerator: of the process.
        resumed: the weights will be read from a checkpoint.
    Raises:
        OmgsrError: the model, the data or the feature network cannot be read.
    """
    options = build_crop_options(config)
    pictures = find_training_pictures(config.data.train, config.data.train_lq, options.resolution, options.on_small)
    held_out = find_held_out(config)
    device = device_of(accelerator)
    shards = config.train.shard_backbone
    # Whole, it may not fit the device.
    trainable = _load_model(config, torch.device("cpu") if shards else device, resumed=resumed)
    if shards:
        share_backbone(trainable, device, accelerator.num_processes)
    features = load_features(config.loss)
    if features is not None:
        features.to(device)
    losses = (DenoisingLoss() if config.loss.denoise else build_losses(config.loss, features)).to(device)
    if config.train.compile:
        losses.compile_statistics()
    learner = _build_learner(config, trainable, losses, _build_adversary(config, features, device))
    crops = TrainingCrops(pictures, options, config.train.seed)
    names = [*losses.names, *(("gan", "discriminator") if learner.adversary else ())]
    return Run(
        config,
        trainable,
        learner,
        crops,
        len(pictures),
        held_out,
        options,
        "" if features is None else features.title,
        names,
        losses.measures(),
    )


def _build_learner(
    config: TrainConfig, trainable: Trainable, losses: Losses | DenoisingLoss, adversary: Adversary | None
) -> Learner:
    weights, optim = trainable.trained(), config.optim
    return Learner(
        generator=build_generator(config, trainable),
        weights=weights,
        optimizer=build_adamw(
            weights.values(),
            lr=optim.lr,
            betas=optim.betas,
            weight_decay=optim.weight_decay,
            eight_bit=optim.eight_bit,
        ),
        average=WeightAverage(weights, config.train.ema) if config.train.ema else None,
        adversary=adversary,
        losses=losses,
    )


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


def _build_adversary(config: TrainConfig, features: FeatureNet | None, device: torch.device) -> Adversary | None:
    if not config.loss.gan:
        return None
    judged = features if config.loss.discriminator == "heads" else None
    mixed = config.train.precision == "mixed"
    discriminator = build_discriminator(judged, config.data.resolution, config.gan, config.train.seed, autocast=mixed)
    return Adversary(discriminator.to(device), config.gan, config.optim.weight_decay)


def find_held_out(config: TrainConfig) -> tuple[TrainingPicture, ...]:
    """List the pictures to measure with; none without validation.

    Raises:
        OmgsrError: as for `find_training_pictures`.
    """
    data = config.data
    if not data.validation or not config.log.validate_every:
        return ()
    return find_training_pictures([data.validation], [data.validation_lq] if data.validation_lq else None, 1, "pad")


def _load_model(config: TrainConfig, device: torch.device, *, resumed: bool) -> Trainable:
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
