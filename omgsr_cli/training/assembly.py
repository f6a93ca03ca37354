"""Build a run from its configuration."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from omgsr_cli.benchmark.cases import Case
from omgsr_cli.degradation import load_degradation
from omgsr_cli.errors import FileError, ModelError, UsageError, reason_of
from omgsr_cli.models.base import Trainable
from omgsr_cli.models.families import family_of
from omgsr_cli.models.record import load_record
from omgsr_cli.timesteps import MidTimestep
from omgsr_cli.timesteps.find import find_mid_timestep
from omgsr_cli.training.config import TeacherConfig, TrainConfig
from omgsr_cli.training.data import CropOptions, Teaching, TrainingCrops
from omgsr_cli.training.discriminator import build_discriminator
from omgsr_cli.training.distributed import agree, device_of, share_backbone
from omgsr_cli.training.losses import Losses, build_losses
from omgsr_cli.training.model import (
    DenoisingLoss,
    build_generator,
    find_run_model,
    load_run_model,
)
from omgsr_cli.training.perceptual import FeatureNet, find_features, load_features
from omgsr_cli.training.sources import TrainingImage, find_training_images, is_files
from omgsr_cli.training.step import Adversary, Learner, WeightAverage, build_adamw
from omgsr_cli.training.teacher import TeacherImages, identify_teacher
from omgsr_cli.training.validation import ImageMeasure, build_measures, find_held_out, has_references


@dataclass(frozen=True)
class Run:
    """The parts of a run.

    Attributes:
        config: its configuration.
        trainable: the model.
        learner: the trained weights, losses and optimisers.
        crops: training samples.
        images: number of training images.
        held_out: validation images; empty without validation.
        crop_options: how samples are made.
        features: name of the feature network of each section that uses one.
        losses: names of the losses of a step, without their total.
        measures: metrics of restored images; empty without validation.
    """

    config: TrainConfig
    trainable: Trainable
    learner: Learner
    crops: TrainingCrops
    images: int
    held_out: Sequence[TrainingImage | Case]
    crop_options: CropOptions
    features: Mapping[str, str]
    losses: Sequence[str]
    measures: Mapping[str, ImageMeasure]


def build_crop_options(config: TrainConfig) -> CropOptions:
    """Build the options for making samples from images."""
    data, presets = config.data, config.degradation.presets
    # Pre-training has no degradation.
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
    """Build the teacher's images and their cache; None without a teacher."""
    if teacher is None:
        return None
    images = TeacherImages(Path(teacher.cache), identify_teacher(teacher.model, teacher.precision))
    return Teaching(images, teacher.crops, teacher.sigma_px, teacher.low_frequencies)


def load_run(config: TrainConfig, accelerator: Accelerator, *, resumed: bool) -> Run:
    """Load and build the parts of a run.

    Args:
        config: configuration of the run.
        accelerator: accelerator of the process.
        resumed: the weights will be loaded from a checkpoint.
    Raises:
        OmgsrError: the model, the data or the feature network cannot be read.
    """
    options = build_crop_options(config)
    images = _find_images(config, accelerator)
    held_out = find_held_out(config)
    device = device_of(accelerator)
    shards = config.train.shard_backbone
    # The whole network may not fit on the device.
    trainable = load_run_model(config, torch.device("cpu") if shards else device, resumed=resumed)
    if shards:
        share_backbone(trainable, device, accelerator.num_processes)
    networks = load_networks(config, device)
    losses = (DenoisingLoss() if config.loss.denoise else _build_losses(config, networks)).to(device)
    if config.train.compile:
        losses.compile_statistics()
    measures = {}
    if held_out:
        measures = build_measures(config, losses.measures(), device, has_references=has_references(held_out))
    learner = _build_learner(config, trainable, losses, _build_adversary(config, networks.get("gan"), device))
    crops = TrainingCrops(images, options, config.train.seed)
    names = [*losses.names, *(("gan", "discriminator") if learner.adversary else ())]
    return Run(
        config,
        trainable,
        learner,
        crops,
        len(images),
        held_out,
        options,
        {section: network.title for section, network in networks.items()},
        names,
        measures,
    )


def _find_images(config: TrainConfig, accelerator: Accelerator) -> tuple[TrainingImage, ...]:
    """List the training images; the first process reads their headers, and the others use its cached sizes."""
    found: list[TrainingImage] = []

    def find() -> None:
        data = config.data
        found.extend(find_training_images(data.train, data.train_lq, data.resolution, data.on_small))

    agree(accelerator, find)
    if not found:
        find()
    return tuple(found)


def load_networks(config: TrainConfig, device: torch.device) -> dict[str, FeatureNet]:
    """Load the feature networks of a run, by the section that uses them; a shared one is loaded once.

    Raises:
        ModelError: as for `load_features`.
    """
    sources = {section: find_features(*named) for section, named in config.backbones.items()}
    dtype = torch.bfloat16 if config.loss.backbone_precision == "bf16" else torch.float32
    loaded = {source: load_features(source, dtype).to(device) for source in dict.fromkeys(sources.values())}
    return {section: loaded[source] for section, source in sources.items()}


def _build_losses(config: TrainConfig, networks: Mapping[str, FeatureNet]) -> Losses:
    # The published weights of DISTS are for VGG16.
    source = find_features(*config.backbones["loss"]) if "loss" in networks else None
    learned = Path(source.place) if source is not None and source.kind == "vgg16" else None
    return build_losses(config.loss, networks.get("loss"), learned)


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


def _build_adversary(config: TrainConfig, judged: FeatureNet | None, device: torch.device) -> Adversary | None:
    if not config.loss.gan:
        return None
    mixed = config.train.precision == "mixed"
    discriminator = build_discriminator(judged, config.data.resolution, config.gan, config.train.seed, autocast=mixed)
    return Adversary(discriminator.to(device), config.gan, config.optim.weight_decay)


TIMESTEP_NAME = "mid_timestep.json"
_SAMPLES = 64
"""Enough samples for an interval of a few timesteps without a long wait."""


def settle_mid_timestep(config: TrainConfig, accelerator: Accelerator, resumed: Path | None) -> TrainConfig:
    """Replace "auto" with a number: from the checkpoint to resume from, or measured by the first process.

    Value, interval and curve are written to the run's folder.

    Args:
        config: configuration of the run.
        accelerator: accelerator of the process.
        resumed: the checkpoint to resume from, or None.
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
        _write(found, Path(config.save.out))
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


def _write(found: MidTimestep, folder: Path) -> None:
    # The curve may begin with infinity, which JSON does not support.
    curve = [value if value < float("inf") else None for value in found.curve.tolist()]
    record = {
        "mid_timestep": found.mid_timestep,
        "interval": found.interval,
        "flat_region": found.flat_region,
        "samples": found.samples,
        "images": found.images,
        "curve": curve,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / TIMESTEP_NAME).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise FileError(f"{folder / TIMESTEP_NAME} cannot be written: {reason_of(error)}") from error
