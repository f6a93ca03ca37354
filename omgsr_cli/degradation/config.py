"""Configuration of the degradation: frozen records, presets, and TOML files. This module imports no torch."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from omgsr_cli.errors import FileError, UsageError, reason_of
from omgsr_cli.validation import first_mistake

_PROBABILITY_TOLERANCE = 1e-6

Probability = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]


def _check_ordered(value: tuple[float, float]) -> tuple[float, float]:
    if value[0] > value[1]:
        raise ValueError(f"the lower end {value[0]:g} is above the upper end {value[1]:g}")
    return value


def _check_sum(value: tuple[float, ...]) -> tuple[float, ...]:
    if abs(sum(value) - 1.0) > _PROBABILITY_TOLERANCE:
        raise ValueError(f"the probabilities sum to {sum(value):g}, but must sum to 1")
    return value


def _check_odd(value: tuple[int, ...]) -> tuple[int, ...]:
    for size in value:
        if size % 2 == 0:
            raise ValueError(f"kernel size {size} is even")
    return value


NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0.0, allow_inf_nan=False)]
Range = Annotated[tuple[NonNegative, NonNegative], AfterValidator(_check_ordered)]
PositiveRange = Annotated[tuple[Positive, Positive], AfterValidator(_check_ordered)]
QualityRange = Annotated[
    tuple[Annotated[float, Field(ge=1, le=100)], Annotated[float, Field(ge=1, le=100)]], AfterValidator(_check_ordered)
]
KernelSizes = Annotated[tuple[Annotated[int, Field(ge=1, le=99)], ...], Field(min_length=1), AfterValidator(_check_odd)]
ResizeProbabilities = Annotated[tuple[Probability, Probability, Probability], AfterValidator(_check_sum)]
KernelProbabilities = Annotated[tuple[Probability, ...], Field(min_length=6, max_length=6), AfterValidator(_check_sum)]


class StageConfig(BaseModel):
    """One round of blur, resize, noise and JPEG.

    Source of the names and of the values in `reference`: Real-ESRGAN, arXiv:2107.10833, and its training options.

    Attributes:
        blur_prob: probability of any blur in this stage.
        kernel_sizes: odd kernel sides to draw from, pixels.
        kernel_prob: probabilities of iso, aniso, generalised iso, generalised aniso, plateau iso and plateau aniso.
        sinc_prob: probability of a sinc filter instead of these six.
        blur_sigma: range of the standard deviation of each axis, pixels.
        betag_range: range of the exponent of the generalised Gaussian; half of the draws are below 1, half above.
        betap_range: range of the exponent of the plateau kernel, drawn in the same way.
        resize_prob: probabilities of enlarging, reducing and keeping the size.
        resize_range: smallest and largest factor; enlarging draws above 1, reducing below 1.
        gaussian_noise_prob: probability of Gaussian noise; Poisson noise otherwise.
        noise_range: standard deviation of the Gaussian noise, 8-bit grey levels.
        poisson_scale_range: factor on the Poisson noise.
        gray_noise_prob: probability that the noise is the same in R, G and B.
        jpeg_range: libjpeg quality.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    blur_prob: Probability
    kernel_sizes: KernelSizes = (7, 9, 11, 13, 15, 17, 19, 21)
    kernel_prob: KernelProbabilities = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
    sinc_prob: Probability = 0.1
    blur_sigma: PositiveRange
    betag_range: PositiveRange = (0.5, 4.0)
    betap_range: PositiveRange = (1.0, 2.0)
    resize_prob: ResizeProbabilities
    resize_range: PositiveRange
    gaussian_noise_prob: Probability = 0.5
    noise_range: Range
    poisson_scale_range: Range
    gray_noise_prob: Probability = 0.4
    jpeg_range: QualityRange

    @model_validator(mode="after")
    def _check_reaches_one(self) -> Self:
        low, high = self.resize_range
        enlarging, reducing, _ = self.resize_prob
        if enlarging > 0 and high < 1:
            raise ValueError(f"resize_range ends at {high:g}, but resize_prob asks for enlarging")
        if reducing > 0 and low > 1:
            raise ValueError(f"resize_range starts at {low:g}, but resize_prob asks for reducing")
        for name, (low, high) in (("betag_range", self.betag_range), ("betap_range", self.betap_range)):
            if not low <= 1 <= high:
                raise ValueError(f"{name} {low:g} to {high:g} does not contain 1")
        return self


class DegradationConfig(BaseModel):
    """A halftone screen, two stages, and a final sinc filter before or after the last JPEG.

    Attributes:
        first: the stage at full size.
        second: the stage that ends at the low-quality size; its JPEG is the last one.
        final_sinc_prob: probability of the sinc filter at the end.
        final_kernel_sizes: odd sides of that filter, pixels.
        halftone_prob: probability that the image was printed, with a screen of dots before the first stage.
        halftone_pitch: distance of the dots, pixels of the sharp image.
        halftone_strength: contrast between dot and paper in middle tones, no unit; black and white have no dots.
        jpeg: "libjpeg", as in files, or as published "simulated" by a cosine transform in torch.
        target_blur_sigma: standard deviation, in pixels, of a Gaussian blur of the training target, applied after the
            low-quality image is made: unreduced camera images are softer than reduced ones, and so should results be.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    first: StageConfig
    second: StageConfig
    final_sinc_prob: Probability = 0.8
    final_kernel_sizes: KernelSizes = (7, 9, 11, 13, 15, 17, 19, 21)
    halftone_prob: Probability = 0.0
    halftone_pitch: PositiveRange = (5.0, 9.0)
    halftone_strength: Range = (0.15, 0.5)
    jpeg: Literal["libjpeg", "simulated"] = "libjpeg"
    target_blur_sigma: Range = (0.0, 0.0)


_REFERENCE = DegradationConfig(
    first=StageConfig(
        blur_prob=1.0,
        blur_sigma=(0.2, 3.0),
        resize_prob=(0.2, 0.7, 0.1),
        resize_range=(0.15, 1.5),
        noise_range=(1, 30),
        poisson_scale_range=(0.05, 3.0),
        jpeg_range=(30, 95),
    ),
    second=StageConfig(
        blur_prob=0.8,
        blur_sigma=(0.2, 1.5),
        resize_prob=(0.3, 0.4, 0.3),
        resize_range=(0.3, 1.2),
        noise_range=(1, 25),
        poisson_scale_range=(0.05, 2.5),
        jpeg_range=(30, 95),
    ),
)

# The published numbers of OMGSR (arXiv:2508.08227); all others are those of Real-ESRGAN.
_OMGSR = DegradationConfig(
    first=_REFERENCE.first.model_copy(
        update={
            "resize_range": (0.3, 1.5),
            "noise_range": (1.0, 15.0),
            "poisson_scale_range": (0.05, 2.0),
            "jpeg_range": (60.0, 95.0),
        }
    ),
    second=_REFERENCE.second.model_copy(
        update={
            "blur_prob": 0.5,
            "resize_range": (0.6, 1.2),
            "noise_range": (1.0, 12.0),
            "poisson_scale_range": (0.05, 1.0),
            "jpeg_range": (60.0, 100.0),
        }
    ),
)

# Zoomed images of a phone or a compact camera, saved once or twice: soft, a little noisy, lightly compressed.
_LIGHT = DegradationConfig(
    first=StageConfig(
        blur_prob=1.0,
        sinc_prob=0.05,
        blur_sigma=(0.2, 1.5),
        resize_prob=(0.2, 0.5, 0.3),
        resize_range=(0.5, 1.2),
        noise_range=(1, 8),
        poisson_scale_range=(0.05, 0.6),
        jpeg_range=(60, 98),
    ),
    second=StageConfig(
        blur_prob=0.3,
        sinc_prob=0.05,
        blur_sigma=(0.2, 0.8),
        resize_prob=(0.2, 0.3, 0.5),
        resize_range=(0.7, 1.1),
        noise_range=(1, 4),
        poisson_scale_range=(0.05, 0.3),
        jpeg_range=(70, 98),
    ),
    final_sinc_prob=0.3,
)

PRESETS: dict[str, DegradationConfig] = {"omgsr": _OMGSR, "reference": _REFERENCE, "light": _LIGHT}


def load_degradation(name_or_path: str | Path) -> DegradationConfig:
    """Return a preset by name, or read a configuration from a TOML file.

    The file has the fields of `DegradationConfig`, with the stages as tables `[first]` and `[second]`. Missing fields
    come from the preset in the key `extends`, or from `reference`.

    Raises:
        UsageError: the name is neither a preset nor a file, or the file is no valid configuration.
        FileError: the file cannot be read.
    """
    if str(name_or_path) in PRESETS:
        return PRESETS[str(name_or_path)]
    path = Path(name_or_path)
    if not path.is_file():
        raise UsageError(
            f"no degradation is called '{name_or_path}'",
            f"use {', '.join(sorted(PRESETS))}, or the path of a TOML file",
        )
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{path} is not a TOML file: {reason_of(error)}") from error
    except OSError as error:
        raise FileError(f"cannot read {path}: {reason_of(error)}") from error
    return _parse(table, path)


def _parse(table: dict[str, Any], path: Path) -> DegradationConfig:
    extends = table.pop("extends", "reference")
    if not isinstance(extends, str) or extends not in PRESETS:
        raise UsageError(f"{path}: extends = {extends!r} is not a preset", f"use {' or '.join(sorted(PRESETS))}")
    merged = PRESETS[extends].model_dump()
    for key, value in table.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = {**merged[key], **value} if nested else value
    try:
        return DegradationConfig.model_validate(merged)
    except ValidationError as error:
        mistake = first_mistake(error)
        record = StageConfig if mistake.place[:1] in (("first",), ("second",)) else DegradationConfig
        hint = f"the keys are {', '.join(record.model_fields)}" if mistake.kind == "extra_forbidden" else None
        raise UsageError(f"{path}: {mistake.line()}", hint) from error
