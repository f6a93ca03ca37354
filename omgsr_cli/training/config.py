"""The configuration of a training run: records, errors, presets and schema. This module imports no torch."""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from omgsr_cli.errors import FileError, UsageError, reason_of
from omgsr_cli.files.addresses import shown
from omgsr_cli.models.families import family_of
from omgsr_cli.presets import FEATURE_NETWORKS, PRESETS
from omgsr_cli.validation import Mistake, list_mistakes

_SUM_TOLERANCE = 1e-6


class ConfigError(UsageError):
    """A configuration with errors.

    Args:
        problems: one line each, `section.key: reason`.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems), "`omgsr train --schema` lists what each key takes")
        self.problems = tuple(problems)


class Section(BaseModel):
    """A table of the configuration: unknown keys are errors, and so are valid values that conflict with each other."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def _conflicts(self) -> Iterator[tuple[str, str]]:
        """Yield each conflict between values: the key to change, relative to this table, and the reason."""
        yield from ()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        found = [
            InitErrorDetails(type=refuse(reason), loc=tuple(key.split(".")), input=None)
            for key, reason in self._conflicts()
        ]
        if found:
            raise ValidationError.from_exception_data(type(self).__name__, found)
        return self


def key(default: Any, description: str, **more: Any) -> Any:
    """Describe a key that has a default; text in [brackets] is what None stands for."""
    return Field(default, description=description, **more)


def refuse(reason: str) -> PydanticCustomError:
    """Build the error of a value from a reason, which is one line without a full stop."""
    return PydanticCustomError("refused", "{reason}", {"reason": reason})


def _should_be(expected: str) -> WrapValidator:
    """Replace the errors of a union, one for each of its types, by a single one."""

    def check(value: object, validate: ValidatorFunctionWrapHandler) -> object:
        try:
            return validate(value)
        except ValidationError:
            raise refuse(f"should be {expected}") from None

    return WrapValidator(check)


def check_shares(value: dict[str, float]) -> dict[str, float]:
    """Refuse probabilities whose sum is not 1."""
    total = math.fsum(value.values())
    if abs(total - 1) > _SUM_TOLERANCE:
        raise refuse(f"the probabilities sum to {total:g}, not to 1")
    return value


def _check_rises(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise refuse(f"should be a range from low to high, not {value[0]:g} to {value[1]:g}")
    return value


def _listed(value: object) -> object:
    return (value,) if isinstance(value, str | dict) else value


# Strict: in TOML, "4" is a text and true is not a number; converting them would hide mistakes.
Whole = Annotated[int, Field(strict=True, ge=0)]
Count = Annotated[int, Field(strict=True, ge=1)]
Number = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]
Quality = Annotated[int, Field(strict=True, ge=1, le=100)]
Scale = Annotated[float, Field(strict=True, ge=1, le=16)]
Momentum = Annotated[float, Field(strict=True, ge=0, lt=1, allow_inf_nan=False)]
Switch = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(_listed), Field(min_length=1)]
Betas = tuple[Momentum, Momentum]


class ModelConfig(Section):
    """The model to train, and its initial weights."""

    preset: str | None = key(
        None, "the kind of model [that of base or start_from]", json_schema_extra={"enum": [*PRESETS, None]}
    )
    base: Text | None = key(None, "folder or hub repository of the pre-trained model [the preset's]")
    start_from: Text | None = key(
        None, "folder of initial weights: an adapter, a tiny model or a checkpoint [new weights]"
    )
    mid_timestep: (
        Annotated[
            Annotated[int, Field(strict=True, ge=0, le=999)] | Literal["auto"],
            _should_be('a whole number from 0 to 999, or "auto"'),
        ]
        | None
    ) = key(None, 'timestep of the one step; "auto" measures it on the training data [the model\'s]')
    latents: Literal["mean", "sample"] = key(
        "mean", 'what "auto" measures: the mean of the posterior, or as published a sample of it'
    )
    prompt: str = key("", "text that conditions the model; published models have an empty one")

    @field_validator("preset")
    @classmethod
    def _is_known(cls, value: str | None) -> str | None:
        if value is not None and value not in PRESETS:
            near = difflib.get_close_matches(value, PRESETS, n=1)
            raise refuse(f"should be one of {', '.join(PRESETS)}" + (f"; did you mean {near[0]}?" if near else ""))
        return value

    def _conflicts(self) -> Iterator[tuple[str, str]]:
        if self.preset is None and self.base is None and self.start_from is None:
            yield "preset", "no model to train: set preset, base or start_from"
        if self.preset is not None and self.base is not None and not PRESETS[self.preset].base_sources:
            yield "base", f"{self.preset} has no base model; use start_from for initial weights"


class LoraConfig(Section):
    """The adapters. All weights of omgsr-tiny are trained, so it does not use this table."""

    vae_rank: Count | None = key(None, "rank of the adapters in the VAE's encoder [as published: 16, of OMGSR-F 64]")
    backbone_rank: Count | None = key(
        None, "rank of those in the network that takes the step [as published: 32, of OMGSR-F 64]"
    )
    vae_alpha: Positive | None = key(None, "alpha; B A has the factor alpha / rank [the rank]")
    backbone_alpha: Positive | None = key(None, "the same for the backbone [the rank]")
    vae_targets: Texts | None = key(None, "name endings of the layers with an adapter [as published]")
    backbone_targets: Texts | None = key(None, "the same for the backbone [as published]")


class SourceConfig(Section):
    """A source of sharp images, and its share."""

    images: Text = Field(
        description="folder with its subfolders, file, glob or .txt list; uncompressed shards of WebDataset, such "
        "as shards/{000..099}.tar; or a data set of Hugging Face: hf://datasets/OWNER/NAME, a folder that "
        "save_to_disk wrote, or a .parquet file"
    )
    weight: Annotated[float, Field(strict=True, ge=0.01, le=100)] = key(
        1.0, "frequency of each of its images, relative to those of other sources"
    )
    first: Count | None = key(None, "use only this many of its first images [all]")
    resize: Annotated[int, Field(strict=True, ge=16, le=4096)] | None = key(
        None,
        "reduce larger images to this shorter side first, px: 512 has faces of FFHQ whole in crops of 512 "
        "[their own size]",
    )
    split: Text | None = key(None, "of a data set of Hugging Face [train]")
    column: Text | None = key(
        None, "column of the images in a data set, or their suffix in shards [the only one with images]"
    )

    @property
    def is_plain(self) -> bool:
        """Whether `images` is the only key that is set."""
        return self == SourceConfig(images=self.images)

    @model_serializer(mode="wrap")
    def _as_written(self, write: SerializerFunctionWrapHandler) -> object:
        return (
            self.images if self.is_plain else {name: value for name, value in write(self).items() if value is not None}
        )


def _as_source(value: object) -> object:
    return {"images": value} if isinstance(value, str) else value


Sources = Annotated[
    tuple[Annotated[SourceConfig, BeforeValidator(_as_source, json_schema_input_type=Text | SourceConfig)], ...],
    BeforeValidator(_listed),
    Field(min_length=1),
]


class DataConfig(Section):
    """The images. Paths are relative to the current folder."""

    train: Sources = Field(
        description="sharp images: folders with their subfolders, files, .txt lists, shards or data sets; or tables "
        'such as { images = "ffhq", weight = 0.5, first = 10000, resize = 512 }'
    )
    train_lq: Texts | None = key(None, "real low-quality partners by file name, instead of the degradation")
    validation: Text | None = key(
        None,
        "folder of held-out sharp images, or a test set as for `omgsr bench --data`, with "
        "test_LR/ or lr/ and optionally test_HR/ or hr/ [no validation]",
    )
    validation_lq: Text | None = key(None, "their low-quality partners [made by the degradation]")
    resolution: Annotated[int, Field(strict=True, ge=16, le=4096)] = key(512, "side of a crop, px")
    batch_size: Count = key(1, "crops per forward pass and process")
    margin: Whole = key(16, "crops are this many px larger while they are degraded, and then cut at random")
    scale: Annotated[
        Scale | dict[str, Fraction], _should_be("a number from 1 to 16, or a table of such numbers with their shares")
    ] = key(4.0, 'scale to learn, or several with their shares: { "4" = 0.9, "2" = 0.1 }')
    upscale: Literal["bicubic", "random"] = key(
        "bicubic",
        "filter that upscales low-quality crops: bicubic as `omgsr upscale` does, or, as published, one of "
        "area, bilinear and bicubic at random",
    )
    sampling: Literal["area", "equal"] = key(
        "area", "use large images more often, by the root of their area, or all equally, as published"
    )
    on_small: Literal["skip", "resize", "pad"] = key("skip", "what to do with images that are smaller than a crop")
    flip: Switch = key(True, "mirror half of the crops")
    turn: Switch = key(False, "turn crops by multiples of 90 degrees")
    detail: Fraction = key(0.0, "share of crops from the place with the most detail")
    halve: Fraction = key(0.0, "share of crops of twice the side that are halved, if the image is large enough")
    gray: Fraction = key(0.0, "share of crops that are made black and white")
    smooth: Fraction = key(
        0.0, "share of samples that are drawn smooth surfaces such as skies; a teacher does not see them"
    )
    workers: Whole = key(4, "processes that read and degrade images; 0 does it between steps")
    cache: Text | None = key(None, "folder for decoded images, which replace the files [none]")

    @property
    def scales(self) -> tuple[tuple[float, float], ...]:
        """Scales and their shares, the most frequent first."""
        if isinstance(self.scale, float):
            return ((self.scale, 1.0),)
        return tuple(sorted(((float(name), share) for name, share in self.scale.items()), key=lambda each: -each[1]))

    @field_validator("scale")
    @classmethod
    def _are_scales(cls, value: float | dict[str, float]) -> float | dict[str, float]:
        if isinstance(value, float):
            return value
        for name in value or ("",):
            if not re.fullmatch(r"\d+(\.\d+)?", name) or not 1 <= float(name) <= 16:
                raise refuse(f"{name!r} is not a scale from 1 to 16")
        return check_shares(value)

    def _conflicts(self) -> Iterator[tuple[str, str]]:
        if self.train_lq is not None and any(source.resize for source in self.train):
            yield "train", "real pairs cannot be resized: remove resize from data.train"
        if self.validation_lq is not None and self.validation is None:
            yield "validation_lq", "these low-quality images need high-quality ones: set data.validation"


class LqNoise(Section):
    """Camera-like noise in the pixels of the low-quality image; the target does not have it."""

    probability: Fraction = key(0.0, "share of crops with noise")
    sigma: Annotated[tuple[Number, Number], AfterValidator(_check_rises)] = key(
        (2.0, 35.0), "range of its standard deviation, 8-bit grey levels"
    )
    kinds: Annotated[dict[Literal["white", "grey", "blurred", "grain"], Fraction], AfterValidator(check_shares)] = key(
        {"white": 0.4, "grey": 0.3, "blurred": 0.3},
        "probabilities of independent channels, equal channels, slightly blurred noise, and film grain",
        min_length=1,
    )
    jpeg: Fraction = key(0.0, "share of crops that are saved as JPEG, after the noise if any")
    quality: Annotated[tuple[Quality, Quality], AfterValidator(_check_rises)] = key(
        (30, 95), "range of the quality of this JPEG"
    )


class DegradationConfig(Section):
    """How low-quality images are made; not used with real ones in data.train_lq."""

    presets: Annotated[dict[str, Fraction], AfterValidator(check_shares)] = key(
        {"omgsr": 1.0},
        'probability of each degradation: "omgsr", "reference", "light" or the path of a TOML file',
        min_length=1,
    )

    lq_noise: LqNoise = key(LqNoise(), "noise at the low-quality image's own pixels")


class OptimConfig(Section):
    """AdamW and its learning rate."""

    lr: Positive = key(5e-5, "learning rate")
    betas: Betas = key((0.9, 0.999), "decay of the averages of the gradient and of its square")
    weight_decay: Number = key(1e-4, "decoupled weight decay of both optimisers")
    clip: Positive = key(1.0, "maximum norm of the gradients of each optimiser")
    accumulate: Count = key(4, "forward passes per step")
    schedule: Literal["constant", "cosine", "linear"] = key(
        "constant", "schedule of the learning rate: constant, or decreasing to 2 % at the last step"
    )
    warmup_steps: Whole = key(0, "steps of a linear increase at the start, with any schedule")
    eight_bit: Switch = key(False, "store AdamW's averages in 8 bits; needs bitsandbytes")


class StepsConfig(Section):
    """The length and the arithmetic of the training."""

    steps: Count = key(6000, "total number of optimiser steps")
    precision: Literal["mixed", "bf16", "fp32"] = key(
        "mixed",
        "mixed, as published: step and discriminator in bf16 with fp32 weights, VAE in fp32; bf16: encode, "
        "step and decode in bf16, with frozen weights in bf16; trained weights are always fp32",
    )
    seed: Whole = key(0, "determines all random choices, together with a sample's number")
    gradient_checkpointing: Switch = key(False, "recompute activations: less memory, a third slower")
    shard_backbone: Switch = key(
        False, "shard the backbone's frozen weights among the processes, if they are too large for one GPU"
    )
    compile: Switch = key(False, "compile the networks; for long runs")
    channels_last: Switch = key(False, "memory format that suits convolutions in bf16")
    ema: Annotated[float, Field(strict=True, ge=0, lt=1)] = key(
        0.0, "decay of averaged weights, which are validated and saved too; 0 for none"
    )
    nan_limit: Count = key(10, "maximum number of consecutive steps that are not finite")
    threads: Count | None = key(None, "CPU threads per process [torch's default]")

    @field_validator("precision", mode="before")
    @classmethod
    def _not_fp16(cls, value: object) -> object:
        if value in ("fp16", "float16", "half"):
            raise refuse("in fp16 gradients of these losses underflow and SD's VAE overflows: use mixed, bf16 or fp32")
        return value


class SaveConfig(Section):
    """Checkpoints."""

    out: Text = key("runs/omgsr", "folder of checkpoints, logs and validation images")
    every: Count = key(500, "steps between checkpoints; the last step is always saved")
    keep: Count = key(3, "number of newest checkpoints to keep")
    best: Text | None = key(
        None,
        "also keep the best checkpoint by this validation metric: psnr, ssim or one of log.metrics; a "
        "validation that improves it saves a checkpoint [none]",
    )


class LogConfig(Section):
    """Logs and validations; log.csv and validation.csv are always written."""

    every: Count = key(10, "steps between lines of the log")
    validate_every: Whole = key(500, "steps between validations; 0 for none")
    metrics: Annotated[tuple[Text, ...], BeforeValidator(_listed)] = key(
        (), "metrics of `omgsr bench` for validations in addition to PSNR and SSIM, such as lpips and musiq"
    )
    noise_pattern: Switch = key(
        False,
        "measure at each validation how much one direction dominates in restored noise, in dB, which "
        "increases before hatching is visible",
    )
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = key(
        (), "additional loggers; each needs its package"
    )


UNET_MULTIPLE_PX = 8
"""Input sides of the U-Net discriminator are multiples of this, because it halves them three times."""

BACKBONES = ("dinov3", *FEATURE_NETWORKS)
"""Names of feature networks; "dinov3" is the large one. Any other text is a folder."""


class TeacherConfig(Section):
    """Another network whose images are a target: T = t + G * (hq - t), with the photograph's low frequencies."""

    model: Text = Field(description="a preset, a model's folder or hub repository, or a file that spandrel reads")
    weight: Number = key(1.0, "weight of the absolute difference to T")
    lpips: Number = key(0.0, "weight of LPIPS-AlexNet to T; needs loss.lpips_path")
    dists: Number = key(0.0, "weight of DISTS to T, on loss.backbone")
    dists_every: Count = key(1, "compute DISTS every N steps, because it is slow")
    dists_px: Whole = key(0, "side of the random window for DISTS; 0 for the whole crop")
    encoder: Number = key(
        0.0, "weight of the absolute difference to T without the step, which trains the encoder alone"
    )
    low_frequencies: Literal["hq", "none"] = key(
        "hq", "low frequencies of T: those of the photograph, or the teacher's own"
    )
    sigma_px: Positive = key(3.0, "standard deviation of the Gaussian G, px")
    precision: Literal["bf16", "fp32"] = key("fp32", "precision of its convolutions")
    crops: Count = key(1000, "number of crops that the teacher sees; training uses windows and turns of these only")
    cache: Text = key("cache/teacher", "folder of its images, which are stored by content")

    def _conflicts(self) -> Iterator[tuple[str, str]]:
        if not (self.weight or self.lpips or self.dists or self.encoder):
            yield "weight", "every weight of the teacher is 0: set one, or remove [loss.teacher]"


class LossConfig(Section):
    """The weight of each loss; 0 switches it off."""

    lrr: Number = key(5.0, "noisy latent of the sharp image vs. latent of the low-quality one")
    l1: Number = key(0.5, "absolute difference of the pixels")
    dv3cd: Number = key(5.0, "structure and texture distance (DISTS) on the feature network")
    gan: Number = key(0.5, "adversarial loss")
    discriminator: Literal["heads", "unet"] = key(
        "heads",
        "discriminator: trained heads on the feature network, or Real-ESRGAN's U-Net, which needs no "
        "feature network and judges every pixel",
    )
    lpips: Number = key(0.0, "LPIPS-AlexNet; needs lpips_path")
    denoise: Number = key(0.0, "pre-training: predict the noise in latents of sharp images; excludes all other losses")
    clamp: Switch | None = key(
        None,
        "clamp the restored image to [-1, 1] before the losses [as published: true for omgsr-s-512, false "
        "for omgsr-tiny and for FLUX]",
    )
    backbone: Text = key(
        "dinov3",
        'feature network of dv3cd and gan: "dinov3" (dinov3-convnext-large), another name for '
        "`omgsr models pull`, or a folder",
        examples=[*BACKBONES],
    )
    backbone_path: Text | None = key(
        None, "folder, hub repository or published file of this network [fetched by its name]"
    )
    backbone_precision: Literal["bf16", "fp32"] = key(
        "fp32", "precision of VGG16's convolutions; statistics and DINOv3 are always fp32"
    )
    lpips_path: Text | None = key(None, "folder with alexnet-*.pth and LPIPS' alex.pth, or one file with both")

    teacher: TeacherConfig | None = key(None, "another network to learn from [none]")

    def _conflicts(self) -> Iterator[tuple[str, str]]:
        others = (self.lrr, self.l1, self.dv3cd, self.gan, self.lpips, self.teacher)
        if self.denoise and any(others):
            yield "denoise", "pre-training has no other loss: set lrr, l1, dv3cd and gan to 0, or denoise to 0"
        if not (self.denoise or any(others)):
            yield "l1", "every loss has the weight 0: set one above 0"
        if (self.lpips or (self.teacher and self.teacher.lpips)) and self.lpips_path is None:
            yield "lpips", "this loss needs lpips_path, the file with its weights"
        if self.backbone not in BACKBONES and self.backbone_path is not None:
            reason = 'loss.backbone is a folder already: remove this key, or set loss.backbone to "dinov3" or "vgg16"'
            yield "backbone_path", reason


class GanConfig(Section):
    """The discriminator, which is used if loss.gan is above 0."""

    backbone: Text | None = key(
        None, "its feature network, as for loss.backbone [loss.backbone]", examples=[*BACKBONES]
    )
    backbone_path: Text | None = key(None, "location of this network, as for loss.backbone_path [fetched by its name]")
    start_step: Whole = key(0, "first step with the discriminator")
    alone_steps: Whole = key(0, "number of steps from start_step in which only the discriminator learns")
    px: Whole = key(0, "side of the random window that it sees of each sample, px; 0 for the whole crop")
    width: Count = key(64, "channels of the U-Net at the image's size; the heads have their own")
    lr: Positive = key(5e-5, "its learning rate")
    betas: Betas = key((0.9, 0.999), "decay rates of its AdamW")
    real_label: Fraction = key(0.8, "target for sharp images; below 1 for label smoothing")
    fake_label: Fraction = key(0.0, "target for restored images")
    augment: tuple[Literal["color", "translation", "cutout"], ...] = key(
        ("color", "translation", "cutout"), "DiffAugment's augmentations of its input; [] for none"
    )
    blur_pool: Switch = key(True, "blur before each halving, as published, or average 2x2 pixels")
    parity: Switch = key(False, "keep the generator's gradients in the discriminator's step, like the published script")

    def _conflicts(self) -> Iterator[tuple[str, str]]:
        if self.backbone_path is not None and self.backbone not in BACKBONES:
            yield "backbone_path", "it needs gan.backbone, the name of its network"
        if self.real_label <= self.fake_label:
            yield "real_label", f"{self.real_label:g} should be greater than gan.fake_label, {self.fake_label:g}"


CONFIG_NAME = "config.toml"
"""Name of the configuration in a checkpoint."""

PRESET_CONFIGS = ("omgsr-s-512", "omgsr-f-1024", "omgsr-tiny")
"""Names that `--print-config` accepts."""


class TrainConfig(Section):
    """One training run, checked and frozen; each attribute is a table of the TOML file."""

    model: ModelConfig = Field(description="the model to train, and its initial weights")
    lora: LoraConfig | None = key(None, "the adapters [as published]")
    data: DataConfig = Field(description="the images")
    degradation: DegradationConfig = key(DegradationConfig(), "how low-quality images are made")
    loss: LossConfig = key(LossConfig(), "the weight of each loss")
    gan: GanConfig = key(GanConfig(), "the discriminator")
    optim: OptimConfig = key(OptimConfig(), "AdamW and its learning rate")
    train: StepsConfig = key(StepsConfig(), "the length and the arithmetic of the training")
    save: SaveConfig = key(SaveConfig(), "checkpoints")
    log: LogConfig = key(LogConfig(), "logs and validations")

    @property
    def backbones(self) -> dict[str, tuple[str, str | None]]:
        """Name and location of the feature network of each section that uses one: "loss" and "gan"."""
        loss, gan, found = self.loss, self.gan, dict[str, tuple[str, str | None]]()
        has_heads = bool(loss.gan and loss.discriminator == "heads")
        # Validation measures with a network that is loaded anyway.
        if loss.dv3cd or (loss.teacher and loss.teacher.dists) or (has_heads and gan.backbone is None):
            found["loss"] = (loss.backbone, loss.backbone_path)
        if has_heads:
            found["gan"] = found["loss"] if gan.backbone is None else (gan.backbone, gan.backbone_path)
        return found

    def _conflicts(self) -> Iterator[tuple[str, str]]:
        yield from self._conflicts_with_the_model()
        yield from self._conflicts_of_the_discriminator()
        is_validated = self.data.validation and self.log.validate_every
        unmeasured = "it is measured at validations: set data.validation and log.validate_every"
        if self.train.shard_backbone and self.train.compile:
            yield "train.compile", "a compiled network cannot be sharded: set one of the two to false"
        if self.log.noise_pattern and not is_validated:
            yield "log.noise_pattern", unmeasured
        if self.save.best is not None:
            named = {"psnr", "ssim", *map(str.casefold, self.log.metrics)}
            if self.save.best.casefold() not in named:
                known = ", ".join(sorted(named))
                yield "save.best", f"{self.save.best} is not measured: add it to log.metrics, or use one of {known}"
            if not is_validated:
                yield "save.best", unmeasured
        if self.optim.warmup_steps >= self.train.steps:
            yield "optim.warmup_steps", f"{self.optim.warmup_steps} should be less than train.steps, {self.train.steps}"

    def _conflicts_with_the_model(self) -> Iterator[tuple[str, str]]:
        name, side = self.model.preset, self.data.resolution
        multiple = PRESETS[name].multiple_of_px if name in PRESETS else 8
        if side % multiple:
            near = max(multiple, round(side / multiple) * multiple)
            reason = f"{side} is not a multiple of {multiple}, which {name or 'the model'} needs: try {near}"
            yield "data.resolution", reason
        if name not in PRESETS:
            return
        family = family_of(PRESETS[name], name)
        if self.lora is not None and not family.adapter_parts:
            yield "lora", f"all weights of {name} are trained, without adapters: remove [lora]"
        if self.model.prompt and not family.takes_prompt:
            yield "model.prompt", f"{name} does not use a prompt"
        if self.train.gradient_checkpointing and not family.has_checkpointing:
            yield "train.gradient_checkpointing", f"{name} has no gradient checkpointing"
        if self.train.shard_backbone and not family.adapter_parts:
            yield "train.shard_backbone", f"all weights of {name} are trained: there are no frozen weights to shard"

    def _conflicts_of_the_discriminator(self) -> Iterator[tuple[str, str]]:
        gan, side, steps = self.gan, self.data.resolution, self.train.steps
        if gan.backbone is not None and "gan" not in self.backbones:
            yield "gan.backbone", "no discriminator uses it: set loss.gan above 0 and loss.discriminator to heads"
        if self.loss.gan == 0:
            return
        if gan.start_step >= steps:
            yield "gan.start_step", f"{gan.start_step} should be less than train.steps, {steps}; or set loss.gan = 0"
        elif gan.start_step + gan.alone_steps >= steps:
            yield "gan.alone_steps", f"the model never learns from the discriminator in {steps} steps"
        if gan.px > side:
            yield "gan.px", f"{gan.px} should be at most data.resolution, {side}"
        if self.loss.discriminator == "unet" and gan.px % UNET_MULTIPLE_PX:
            yield "gan.px", f"the U-Net needs multiples of {UNET_MULTIPLE_PX}"


def load_config(path: Path, sets: Sequence[str] = ()) -> TrainConfig:
    """Read and check the configuration of a training run.

    Args:
        path: a TOML file in UTF-8, or one of PRESET_CONFIGS unless a file has that name.
        sets: changes, as for `parse_table`.
    Raises:
        ConfigError: the configuration has errors.
        UsageError: the file is not TOML, or a change does not have the form "a.b=v".
        FileError: the file cannot be read.
    """
    name = shown(path)
    try:
        is_preset = str(path) in PRESET_CONFIGS and not path.exists()
        text = read_preset_config(str(path)) if is_preset else path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        hint = "`omgsr train --print-config NAME` prints a configuration to start with"
        raise FileError(f"cannot read {name}: {reason_of(error)}", hint) from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not TOML: it is not UTF-8, at byte {error.start}", "save it as UTF-8") from error
    return check_config(parse_table(text, name, sets))


def check_config(table: Mapping[str, Any]) -> TrainConfig:
    """Check the tables of a configuration.

    Raises:
        ConfigError: the configuration has errors. Conflicts between tables are found once all values are valid.
    """
    try:
        return TrainConfig.model_validate(table)
    except ValidationError as error:
        lines = (replace(each, reason=each.reason + _suggest(each)).line() for each in list_mistakes(error))
        raise ConfigError([shown(line) for line in lines]) from None


def _suggest(mistake: Mistake) -> str:
    """Suggest what may be meant; describe a missing key, and for an unknown one list the keys of its table."""
    if mistake.kind == "literal_error":
        near = difflib.get_close_matches(str(mistake.value), re.findall("'([^']+)'", mistake.reason), n=1)
        return f"; did you mean {near[0]}?" if near else ""
    if mistake.kind not in ("extra_forbidden", "missing"):
        return ""
    *tables, name = mistake.place
    owner: type[BaseModel] = TrainConfig
    for part in tables:
        # The number of a list's element does not change the class.
        table = owner if part.isdigit() else next(_tables_in(owner.model_fields[part].annotation), None)
        if table is None:  # a list of numbers is too short
            return ""
        owner = table
    if mistake.kind == "missing":
        return f": {owner.model_fields[name].description}"
    near = [
        f"{section}.{name}"
        for section, field in TrainConfig.model_fields.items()
        for table in _tables_in(field.annotation)
        if name in table.model_fields
    ]
    near = near or difflib.get_close_matches(name, owner.model_fields, n=1)
    hint = f"; did you mean {' or '.join(near)}?" if near else ";"
    known = f"[{'.'.join(tables)}] has" if tables else "the tables are"
    return f"{hint} {known} {', '.join(owner.model_fields)}"


def _tables_in(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the records in an annotation: itself, members of a union, or elements of a tuple."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _tables_in(part)


def parse_table(text: str, name: str, sets: Sequence[str] = ()) -> dict[str, Any]:
    """Parse the text of a configuration.

    Args:
        text: TOML.
        name: name of the file, for errors.
        sets: changes "a.b=v", with v in TOML or as bare text; an empty v restores the default.
    Raises:
        UsageError: the text is not TOML, or a change does not have the form "a.b=v".
    """
    try:
        table = tomllib.loads(text)
    except RecursionError as error:
        raise UsageError(f"{name} is not a configuration: its values are nested too deeply") from error
    except ValueError as error:  # TOMLDecodeError, and a number with thousands of digits
        raise UsageError(f"{name} is not TOML: {error}") from error
    for assignment in sets:
        _change(table, assignment)
    return table


def _change(table: dict[str, Any], assignment: str) -> None:
    dotted, equals, text = assignment.partition("=")
    *sections, name = (part.strip() for part in dotted.split("."))
    if not equals or not all((*sections, name)):
        raise UsageError(f"--set {shown(assignment)}: not KEY=VALUE", "write it like --set optim.lr=1e-4")
    for section in sections:
        below = table.setdefault(section, {})
        if not isinstance(below, dict):
            hint = "write it like --set optim.lr=1e-4"
            raise UsageError(f"--set {shown(assignment)}: {section} is not a table", hint)
        table = below
    if text.strip():
        table[name] = _parse_value(text)
    else:
        table.pop(name, None)


def _parse_value(text: str) -> object:
    """Parse a TOML value; other text is returned as a string."""
    try:
        table = tomllib.loads(f"value = {text}")
    except (ValueError, RecursionError):
        return text.strip()
    return table["value"] if len(table) == 1 else text.strip()


def read_preset_config(name: str) -> str:
    """Read a complete, commented configuration as text.

    Args:
        name: one of PRESET_CONFIGS.
    Raises:
        UsageError: no configuration has that name.
    """
    if name not in PRESET_CONFIGS:
        raise UsageError(f"no configuration is called {name!r}", f"use one of {', '.join(PRESET_CONFIGS)}")
    return (resources.files("omgsr_cli.training") / "configs" / f"{name}.toml").read_text("utf-8")


def config_schema() -> dict[str, Any]:
    """Build the JSON schema of the configuration, for editors that complete and check TOML."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **TrainConfig.model_json_schema()}


def format_config(config: TrainConfig) -> str:
    """Format a configuration as TOML that `load_config` reads back as equal; keys without a value are left out."""
    import tomlkit

    return tomlkit.dumps(config.model_dump(exclude_none=True))


def compare_configs(before: Path, now: TrainConfig) -> dict[str, tuple[object, object]]:
    """List the keys whose values differ between a checkpoint's configuration and that of the run that resumes from it.

    Args:
        before: the checkpoint's `config.toml`.
        now: configuration of the run.
    Returns:
        "section.key" to the value before and now; None for a key without a value.
    Raises:
        OmgsrError: as for `load_config`.
    """
    first, second = (flatten(config.model_dump(mode="json")) for config in (load_config(before), now))
    return {
        key: (first.get(key), second.get(key))
        for key in [*first, *(second.keys() - first.keys())]
        if first.get(key) != second.get(key)
    }


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    """Flatten nested tables to "section.key" and value."""
    flat: dict[str, object] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat
