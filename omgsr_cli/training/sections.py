"""The tables of a training's configuration: what each key means, what it may be, and its default.

Plain records: importing this loads no torch. The defaults are those of OMGSR-S (arXiv:2508.08227).
What is learned from has its tables in `loss_sections`.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from omgsr_cli.presets import PRESETS
from omgsr_cli.training.fields import (
    Betas,
    Count,
    Fraction,
    Number,
    Positive,
    Quality,
    Scale,
    Section,
    Switch,
    Text,
    Texts,
    Whole,
    check_shares,
    is_scale,
    not_among,
    refuse,
)


class ModelConfig(Section):
    """Which model is trained, and from which weights."""

    preset: str | None = Field(
        default=None,
        description="the kind of model; without it, base or start_from says it",
        json_schema_extra={"enum": [*PRESETS, None]},
    )
    base: Text | None = Field(
        default=None, description="folder or hub repository of the pre-trained model [the preset's]"
    )
    start_from: Text | None = Field(
        default=None,
        description="folder of weights to begin from: an adapter, a tiny model or a checkpoint [new weights]",
    )
    mid_timestep: Annotated[int, Field(strict=True, ge=0, le=999)] | Literal["auto"] | None = Field(
        default=None, description='timestep of the one step; "auto" measures it on the training data [the model\'s]'
    )
    prompt: str = Field(default="", description="text that conditions the model; published models have an empty one")

    @field_validator("preset")
    @classmethod
    def _is_known(cls, value: str | None) -> str | None:
        if value is not None and value not in PRESETS:
            raise not_among(*PRESETS)
        return value

    @model_validator(mode="after")
    def _names_a_model(self) -> Self:
        if self.preset is None and self.base is None and self.start_from is None:
            raise refuse("there is no model to train: give a preset, a base or start_from", "model.preset")
        if self.preset is not None and self.base is not None and not PRESETS[self.preset].base_sources:
            raise refuse(f"{self.preset} has no base model; start_from names weights to begin from", "model.base")
        return self


class LoraConfig(Section):
    """The adapters. omgsr-tiny is trained whole and has none: leave this table out."""

    vae_rank: Count = Field(default=16, description="rank of the adapters in the VAE's encoder")
    backbone_rank: Count = Field(default=32, description="rank of the adapters in the network that takes the step")
    vae_alpha: Positive | None = Field(default=None, description="B A counts alpha / rank times [the rank]")
    backbone_alpha: Positive | None = Field(default=None, description="likewise for the backbone [the rank]")
    vae_targets: Texts | None = Field(
        default=None, description="ends of the names of layers with an adapter [as published]"
    )
    backbone_targets: Texts | None = Field(default=None, description="likewise for the backbone [as published]")


class DataConfig(Section):
    """The pictures. Paths are relative to the folder that the command is typed in."""

    train: Texts = Field(description="sharp pictures: folders (searched to the bottom), files, .txt lists")
    train_lq: Texts | None = Field(
        default=None, description="real low-quality partners by file name, instead of the degradation"
    )
    validation: Text | None = Field(
        default=None, description="folder of sharp pictures that are held out [no validation]"
    )
    validation_lq: Text | None = Field(default=None, description="their low-quality partners [made by the degradation]")
    resolution: Annotated[int, Field(strict=True, ge=16, le=4096)] = Field(
        default=512, description="side of a crop, px"
    )
    batch_size: Count = Field(default=1, description="crops in a forward pass, in each process")
    margin: Whole = Field(
        default=16, description="crops are this much larger while they are degraded, and then cut anywhere, px"
    )
    scale: Scale | dict[str, Fraction] = Field(
        default=4.0, description='enlargement to be learned, or several with their shares: { "4" = 0.9, "2" = 0.1 }'
    )
    upscale: Literal["bicubic", "random"] = Field(
        default="bicubic",
        description="filter that enlarges low-quality crops: the one that users get, or as published one of area, "
        "bilinear and bicubic at random",
    )
    sampling: Literal["area", "equal"] = Field(
        default="area", description="large images come more often, by the root of their area, or as published all alike"
    )
    on_small: Literal["skip", "resize", "pad"] = Field(
        default="skip", description="what is done with pictures that are smaller than a crop"
    )
    flip: Switch = Field(default=True, description="mirror half of the crops")
    turn: Switch = Field(default=False, description="turn crops by multiples of 90 degrees")
    detail: Fraction = Field(default=0.0, description="share of crops taken where the picture has the most detail")
    halve: Fraction = Field(
        default=0.0, description="share of crops taken at twice the side and halved, where there is room"
    )
    gray: Fraction = Field(default=0.0, description="share of crops that are made black and white")
    smooth: Fraction = Field(
        default=0.0,
        description="share of samples that are drawn surfaces, smooth as skies; no teacher sees them",
    )
    workers: Whole = Field(default=4, description="processes that read and degrade; 0 does it between the steps")
    cache: Text | None = Field(
        default=None, description="folder for decoded pictures, read in place of the files [none]"
    )

    @property
    def scales(self) -> tuple[tuple[float, float], ...]:
        """Enlargements and their shares, the most frequent first."""
        if isinstance(self.scale, float):
            return ((self.scale, 1.0),)
        return tuple(sorted(((float(name), share) for name, share in self.scale.items()), key=lambda each: -each[1]))

    @field_validator("scale")
    @classmethod
    def _are_enlargements(cls, value: float | dict[str, float]) -> float | dict[str, float]:
        if isinstance(value, float):
            return value
        wrong = [name for name in value if not is_scale(name)]
        if wrong or not value:
            raise refuse(f"{wrong[0]!r} is no enlargement from 1 to 16" if wrong else "no enlargement is named")
        return check_shares(value)

    @model_validator(mode="after")
    def _partners_have_partners(self) -> Self:
        if self.validation_lq is not None and self.validation is None:
            raise refuse("low-quality partners without sharp pictures", "data.validation_lq", "data.validation")
        return self


class LqNoise(Section):
    """Noise at the low-quality picture's own pixels, as a camera's; targets are kept from the picture without it."""

    probability: Fraction = Field(default=0.0, description="share of the crops that get it")
    sigma: tuple[Number, Number] = Field(default=(2.0, 35.0), description="range of its deviation, 8-bit grey levels")
    kinds: dict[Literal["white", "grey", "blurred", "grain"], Fraction] = Field(
        default={"white": 0.4, "grey": 0.3, "blurred": 0.3},
        description="probability of each: of channels alone, of all alike, a little blurred, or a film's grain",
        min_length=1,
    )
    jpeg: Fraction = Field(default=0.0, description="share of the crops that are saved as JPEG, after the noise if any")
    quality: tuple[Quality, Quality] = Field(default=(30, 95), description="range of that JPEG's quality")

    @field_validator("sigma", "quality")
    @classmethod
    def _rises(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[0] > value[1]:
            raise refuse(f"{value[0]:g} to {value[1]:g} is no range")
        return value

    @field_validator("kinds")
    @classmethod
    def _sums_to_one(cls, value: dict[str, float]) -> dict[str, float]:
        return check_shares(value)


class DegradationConfig(Section):
    """How low-quality pictures are made; not used where [data] lq gives real ones."""

    presets: dict[str, Fraction] = Field(
        default={"omgsr": 1.0},
        description='probability of each degradation: "omgsr", "reference", "light" or the path of a TOML file',
        min_length=1,
    )

    lq_noise: LqNoise = Field(default=LqNoise(), description="noise at the low-quality picture's own pixels")

    @field_validator("presets")
    @classmethod
    def _sums_to_one(cls, value: dict[str, float]) -> dict[str, float]:
        return check_shares(value)


class OptimConfig(Section):
    """AdamW and its learning rate."""

    lr: Positive = Field(default=5e-5, description="learning rate")
    betas: Betas = Field(default=(0.9, 0.999), description="decay of the averages of the gradient and of its square")
    weight_decay: Number = Field(default=1e-4, description="decoupled; of both optimisers")
    clip: Positive = Field(default=1.0, description="largest norm of the gradients, of either optimiser")
    accumulate: Count = Field(default=4, description="forward passes for one step")
    schedule: Literal["constant", "cosine", "linear"] = Field(
        default="constant", description="of the learning rate: it stays, or falls to 2 % at the last step"
    )
    warmup_steps: Whole = Field(default=0, description="steps of a linear rise at the beginning, with any schedule")
    eight_bit: Switch = Field(default=False, description="keep AdamW's averages in 8 bits; needs bitsandbytes")


class StepsConfig(Section):
    """How long and how it is computed."""

    steps: Count = Field(default=6000, description="steps of the optimiser in all")
    precision: Literal["mixed", "bf16", "fp32"] = Field(
        default="mixed",
        description="mixed, as published: step and discriminator in bf16 with fp32 weights, VAE in fp32; bf16: encode, "
        "step and decode, frozen weights too; what learns is always fp32",
    )
    seed: Whole = Field(default=0, description="decides, with a sample's number, everything that is drawn")
    gradient_checkpointing: Switch = Field(
        default=False, description="compute activations twice: less memory, a third slower"
    )
    shard_backbone: Switch = Field(
        default=False,
        description="each process keeps a share of the backbone's frozen weights; for those too large for a card",
    )
    compile: Switch = Field(default=False, description="compile the networks; for long runs")
    channels_last: Switch = Field(default=False, description="memory format that convolutions in bf16 like")
    ema: Annotated[float, Field(strict=True, ge=0, lt=1)] = Field(
        default=0.0,
        description="decay of the average of the weights that is validated and saved beside them; 0 for none",
    )
    nan_limit: Count = Field(default=10, description="steps in a row that may be skipped as not finite")
    threads: Count | None = Field(default=None, description="of the CPU in each process [torch's own choice]")

    @property
    def frozen_precision(self) -> Literal["bf16", "fp32"]:
        """Number format of frozen weights."""
        return "bf16" if self.precision == "bf16" else "fp32"

    @field_validator("precision", mode="before")
    @classmethod
    def _not_fp16(cls, value: object) -> object:
        if value in ("fp16", "float16", "half"):
            raise refuse("in fp16 gradients of these losses underflow and SD's VAE overflows: use mixed, bf16 or fp32")
        return value


class SaveConfig(Section):
    """Checkpoints."""

    out: Text = Field(default="runs/omgsr", description="where checkpoints, logs and validation pictures go")
    every: Count = Field(default=500, description="steps between checkpoints; the last step is always saved")
    keep: Count = Field(default=3, description="how many checkpoints are kept, the newest")


class LogConfig(Section):
    """What is written down; log.csv and validation.csv always are."""

    every: Count = Field(default=10, description="steps between lines of the log")
    validate_every: Whole = Field(default=500, description="steps between validations; 0 for none")
    noise_pattern: Switch = Field(
        default=False,
        description="measure at each validation how far one direction stands out where only noise was restored, dB: "
        "it rises before a hatching is visible",
    )
    trackers: tuple[Literal["tensorboard", "wandb", "trackio"], ...] = Field(
        default=(), description="where the figures go besides; each needs its package"
    )
