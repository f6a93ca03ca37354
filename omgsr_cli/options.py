"""The options of the commands as frozen records, checked before anything is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from omgsr_cli.errors import UsageError
from omgsr_cli.validation import first_mistake

ColorFix = Literal["adain", "wavelet", "none"]
ColorSpace = Literal["ycbcr", "yiq", "rgb"]
Quantize = Literal["none", "int8", "nf4", "fp8"]
Offload = Literal["auto", "none", "model", "group"]
OutputFormat = Literal["same", "png", "jpg", "webp", "tiff", "avif"]
#: Alternative names of formats.
FORMAT_ALIASES = {"jpeg": "jpg", "tif": "tiff"}
MIN_SCALE, MAX_SCALE = 0.5, 16.0


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelOptions(_Options):
    """The model, and how it runs.

    Attributes:
        model: preset name, merged folder, Diffusers folder or hub repository; None uses the default preset.
        base: folder or repository of the base model of `adapter`.
        adapter: folder in the published PEFT layout.
        mid_timestep: replaces the mid-timestep that the model was trained at.
        prompt: replaces the model's own prompt, which is empty as published.
        device: cuda, mps, xpu or cpu; None uses the first available one.
        precision: number format of weights and arithmetic.
        compile: compile the network, which pays off after a few dozen images.
        process_size: native size in pixels; smaller images are enlarged to it first and reduced at the end.
        vae: what decodes instead of the model's own decoder: "tiny" for TAESD, or another AutoencoderTiny.
        quantize: how the weights of a large model are made smaller.
        offload: where they are kept while they are not used.
    """

    model: str | None = None
    base: str | None = None
    adapter: Path | None = None
    mid_timestep: int | None = Field(default=None, ge=0, le=999)
    prompt: str | None = None
    device: str | None = None
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    compile: bool = False
    process_size: int | None = Field(default=None, ge=16, le=4096, multiple_of=8)
    vae: str | None = None
    quantize: Quantize = "none"
    offload: Offload = "auto"


class SizeOptions(_Options):
    """The size of the result: at most one of these five; without any, the model's own scale.

    Attributes:
        scale: factor for both sides.
        size: (height, width) in pixels, also if this changes the proportions.
        long_side: pixels of the longer side; proportions are kept.
        short_side: pixels of the shorter side; proportions are kept.
        print: pixels of a sheet's longer and shorter side; the result is the largest that fits on the sheet, which is
            turned if needed.
    """

    scale: float | None = Field(default=None, ge=MIN_SCALE, le=MAX_SCALE)
    size: tuple[int, int] | None = None
    long_side: int | None = Field(default=None, ge=1)
    short_side: int | None = Field(default=None, ge=1)
    print: tuple[int, int] | None = None

    @model_validator(mode="after")
    def _only_one(self) -> Self:
        given = [name for name, value in self if value is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join('--' + name.replace('_', '-') for name in given)} exclude each other")
        if self.size is not None and min(self.size) < 1:
            raise ValueError(f"--size {self.size[1]}x{self.size[0]} has no pixels")
        return self


class RestoreOptions(_Options):
    """How the pixels are restored.

    Attributes:
        process_scale: restore at this multiple of the input size at least, then reduce; "auto" uses the magnification
            that the model was trained at, and 1 restores at the size of the result.
        strength: 1 is the restored image, 0 is plain upscaling, and values in between blend both.
        color_fix: method that matches the colours of the input; None uses the model's default.
        tile: side of a tile in pixels of the working size, "off" for the whole image at once, or "auto" to choose by
            free memory.
        overlap: pixels that neighbouring tiles share; None uses half a tile, as published.
        batch: number of tiles per call of the network; None uses 1 on a CPU, and up to 8 by free memory on a GPU.
        memory: MiB of working memory beside the weights; None uses half of the free memory, or 80 % on a graphics card.
        seed: sample the latent posterior with this seed; None uses its mean, so results are reproducible.
    """

    size: SizeOptions = SizeOptions()
    process_scale: Literal["auto"] | float = "auto"
    strength: float = Field(default=1.0, ge=0, le=1, allow_inf_nan=False)
    color_fix: ColorFix | None = None
    tile: Literal["auto", "off"] | int = "auto"
    overlap: int | None = Field(default=None, ge=0, le=2048)
    batch: int | None = Field(default=None, ge=1, le=256)
    memory: int | None = None
    seed: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _values_fit_together(self) -> Self:
        if self.process_scale != "auto" and not 1 <= self.process_scale <= MAX_SCALE:
            raise ValueError(f"--process-scale {self.process_scale:g} must be auto, or 1 to {MAX_SCALE:g}")
        if self.memory is not None and self.memory < 16:
            raise ValueError(f"--memory {self.memory}M is less than 16M")
        if isinstance(self.tile, int) and self.tile < 64:
            raise ValueError(f"--tile {self.tile} is smaller than 64 pixels")
        if isinstance(self.tile, int) and self.overlap is not None and self.overlap > self.tile // 2:
            raise ValueError(f"--overlap {self.overlap} is more than half of --tile {self.tile}")
        return self


class WriteOptions(_Options):
    """How results are written.

    Attributes:
        format: file format; "same" is the input's format, or PNG if that cannot be written.
        quality: 1 to 100 for JPEG, WebP and AVIF; None uses the format's default.
        metadata: keep EXIF, XMP and texts, or none; an ICC profile is always kept, because it defines the colours.
        dpi: dots per inch of the result: "keep" those of the input, so the print grows with the pixels; "scale" them,
            so the print keeps its size; or a number.
        keep_times: give the result the access and modification times of its input.
        overwrite: replace existing files that are not this job's finished result.
        compare: write a before/after image beside the result.
    """

    format: OutputFormat = "same"
    quality: int | None = Field(default=None, ge=1, le=100)
    metadata: Literal["keep", "none"] = "keep"
    dpi: Literal["keep", "scale"] | float = "keep"
    keep_times: bool = False
    overwrite: bool = False
    compare: bool = False

    @field_validator("dpi")
    @classmethod
    def _dpi_can_be_written(cls, value: Literal["keep", "scale"] | float) -> Literal["keep", "scale"] | float:
        if not isinstance(value, str) and not 1 <= value <= 65535:
            raise ValueError("must be 1 to 65535")
        return value

    @field_validator("format", mode="before")
    @classmethod
    def _one_name(cls, value: object) -> object:
        return FORMAT_ALIASES.get(value.lower(), value.lower()) if isinstance(value, str) else value


class EngineOptions(_Options):
    """The processes that do the work.

    Attributes:
        workers: number of processes; None uses one per device.
        device: one device, several such as "cuda:0,cuda:1", or "all"; None uses the first available one.
        engine: "local" for processes on this machine, "ray" for a Ray cluster.
        address: address of the Ray cluster; None starts Ray on this machine.
    """

    workers: int | None = Field(default=None, ge=1, le=1024)
    device: str | None = None
    engine: Literal["local", "ray"] = "local"
    address: str | None = None

    @model_validator(mode="after")
    def _only_ray_has_an_address(self) -> Self:
        if self.address is not None and self.engine != "ray":
            raise ValueError(f"--address {self.address} needs --engine ray")
        return self


class TimestepOptions(_Options):
    """How the mid-timestep of a dataset is measured.

    Attributes:
        resolution: side of the crops in pixels; None uses 512, or whole images for real pairs.
        scale: the side of a crop over the side of its degraded version.
        on_small: what to do with images that are smaller than a crop.
        max_samples: maximum number of samples; None uses one per image.
        until_stable: add samples until the interval is narrower than this many timesteps.
        batch: number of images that are encoded together.
        seed: seed of crops, degradation, sampled latents and resampling.
        latents: the mean of the autoencoder's posterior or, as published, a sample of it.
    """

    resolution: int | None = Field(default=None, ge=16, le=8192)
    scale: float = Field(default=4.0, ge=1, le=MAX_SCALE)
    on_small: Literal["skip", "resize", "pad"] = "skip"
    max_samples: int | None = Field(default=None, ge=1)
    until_stable: int | None = Field(default=None, ge=1, le=1000)
    batch: int = Field(default=4, ge=1, le=256)
    seed: int = Field(default=0, ge=0)
    latents: Literal["mean", "sample"] = "mean"


class BenchOptions(_Options):
    """The models, images and metrics of a benchmark.

    Attributes:
        data: folder of low-quality images, or one with `test_LR/` and `test_HR/`; None uses the bundled images.
        hr: folder of their references.
        sr: folders of images that are already restored.
        recursive: search subfolders.
        scale: scale of images without a reference, and the first to try with one; None uses the first model's own.
        model: presets, folders, repositories, "bicubic", "lanczos" or network files; empty for the default model and
            bicubic.
        base: base model of `adapter`.
        adapter: folder in the published PEFT layout.
        device: as in `ModelOptions`.
        precision: as in `ModelOptions`.
        repeat: number of restorations per image, to measure the speed; None restores each image that is not cached
            once.
        metrics: names, or "paper"; None uses those that suit the images and are available on this machine.
        color_space: colour space in which psnr and ssim compare.
        crop_border: pixels that psnr and ssim ignore on each side.
        cache: folder of results that are kept between runs; None uses the user's cache folder.
        seed: seed of a model's latent, which is the posterior's mean without a seed, and of random crops in metrics.
    """

    data: Path | None = None
    hr: Path | None = None
    sr: tuple[Path, ...] = ()
    recursive: bool = False
    scale: float | None = None
    model: tuple[str, ...] = ()
    base: str | None = None
    adapter: Path | None = None
    device: str | None = None
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    repeat: int | None = Field(default=None, ge=1)
    metrics: tuple[str, ...] | None = None
    color_space: ColorSpace = "ycbcr"
    crop_border: int = Field(default=0, ge=0)
    cache: Path | None = None
    seed: int | None = Field(default=None, ge=0)

    @field_validator("sr", "model", "metrics", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, str | Path) else value


T = TypeVar("T", bound=_Options)


def build_options(kind: type[T], **values: object) -> T:
    """Build a record of options; pydantic's report becomes one line with the option and its value.

    Raises:
        UsageError: a value is out of range, or values exclude each other.
    """
    try:
        return kind(**values)
    except ValidationError as error:
        mistake = first_mistake(error)
        if mistake.kind == "extra_forbidden":
            raise UsageError(
                f"there is no option {mistake.place[0]!r}", f"options: {', '.join(kind.model_fields)}"
            ) from error
        option = f"--{mistake.place[0].replace('_', '-')} {mistake.value} " if mistake.place else ""
        raise UsageError(f"{option}{mistake.reason}", "see --help for the values that each option accepts") from error
