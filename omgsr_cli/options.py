"""What a command was asked to do, checked and frozen before anything is loaded."""

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
#: Other names of formats.
FORMAT_ALIASES = {"jpeg": "jpg", "tif": "tiff"}
MIN_SCALE, MAX_SCALE = 0.5, 16.0


class _Options(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelOptions(_Options):
    """Which model, where and how exactly it runs.

    Attributes:
        model: preset name, merged folder, diffusers folder or hub repository; None takes the default preset.
        base: folder or repository of the pre-trained model that `adapter` belongs to.
        adapter: folder with the published PEFT layout.
        mid_timestep: overrides the one that the model was trained at.
        prompt: overrides the model's own, which is empty as published.
        device: cuda, mps, xpu, cpu, or None for the first of them that is there.
        precision: of weights and arithmetic.
        compile: whether to compile the network, which pays off from some dozens of images on.
        process_size: native size in pixels; smaller images are enlarged to it first and reduced at the end.
        vae: what decodes in the place of the model's own: "tiny" for TAESD, or another AutoencoderTiny.
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
    """How large the result is to be: at most one of the five; none means the model's own scale.

    Attributes:
        scale: factor on both sides.
        size: (height, width) in pixels, whatever the input's proportions.
        long_side: pixels of the longer side, proportions kept.
        short_side: pixels of the shorter side, proportions kept.
        print: pixels of a sheet's longer and shorter side; the result is the largest that fits on the sheet, which may
            be turned.
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
    """What is done to the pixels.

    Attributes:
        process_scale: the image is restored at no less than this multiple of its input size and then reduced; "auto"
            takes the magnification that the model was trained at, 1 restores at the size of the result.
        strength: 1 is the restored image, 0 plain upscaling, and in between both are blended.
        color_fix: how the colours of the input are brought back; None takes what suits the model.
        tile: side of a tile in pixels of the working size, "off" for the whole image at once, or "auto" by free
            memory.
        overlap: pixels that neighbouring tiles share; None takes half a tile, as published.
        batch: tiles that go through the network together.
        memory: MiB that the model may work in beyond its weights; None takes half of what is free.
        seed: samples the latent posterior with it; None takes its mean, so that a result can be repeated.
    """

    size: SizeOptions = SizeOptions()
    process_scale: Literal["auto"] | float = "auto"
    strength: float = Field(default=1.0, ge=0, le=1, allow_inf_nan=False)
    color_fix: ColorFix | None = None
    tile: Literal["auto", "off"] | int = "auto"
    overlap: int | None = Field(default=None, ge=0, le=2048)
    batch: int = Field(default=1, ge=1, le=256)
    memory: int | None = None
    seed: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _has_a_process_scale(self) -> Self:
        if self.process_scale != "auto" and not 1 <= self.process_scale <= MAX_SCALE:
            raise ValueError(f"--process-scale {self.process_scale:g} is not auto or from 1 to {MAX_SCALE:g}")
        return self

    @model_validator(mode="after")
    def _has_memory(self) -> Self:
        if self.memory is not None and self.memory < 16:
            raise ValueError(f"--memory {self.memory}M is less than 16M")
        return self

    @model_validator(mode="after")
    def _tiles_overlap_less_than_they_measure(self) -> Self:
        if isinstance(self.tile, int):
            if self.tile < 64:
                raise ValueError(f"--tile {self.tile} is smaller than 64 pixels")
            if self.overlap is not None and self.overlap > self.tile // 2:
                raise ValueError(f"--overlap {self.overlap} is more than half of --tile {self.tile}")
        return self


class WriteOptions(_Options):
    """How results are written.

    Attributes:
        format: of the file; "same" as the input's where that can be written, else PNG.
        quality: 1 to 100 for JPEG, WebP and AVIF; None takes the format's good default.
        metadata: whether EXIF, XMP and text are kept; an ICC profile always is, being part of the pixels' meaning.
        dpi: dots per inch of the result: "keep" those of the input, so that the print grows with the pixels; "scale"
            them, so that the print keeps its size; or a number.
        keep_times: whether a result gets its input's times of access and change.
        overwrite: whether an existing file that is not this job's finished result may be replaced.
        compare: whether a before/after image is written beside the result.
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
            raise ValueError("is not from 1 to 65535")
        return value

    @field_validator("format", mode="before")
    @classmethod
    def _one_name(cls, value: object) -> object:
        return FORMAT_ALIASES.get(value.lower(), value.lower()) if isinstance(value, str) else value


class EngineOptions(_Options):
    """Who does the work.

    Attributes:
        workers: how many processes; None takes one for each device.
        device: of one process, or several as "cuda:0,cuda:1", or "all"; None takes the first that is there.
        engine: processes of this machine, or a Ray cluster's.
        address: of the Ray cluster; None starts Ray on this machine.
    """

    workers: int | None = Field(default=None, ge=1, le=1024)
    device: str | None = None
    engine: Literal["local", "ray"] = "local"
    address: str | None = None

    @model_validator(mode="after")
    def _only_ray_has_an_address(self) -> Self:
        if self.address is not None and self.engine != "ray":
            raise ValueError(f"--address {self.address} is of a Ray cluster: give --engine ray too")
        return self


class TimestepOptions(_Options):
    """How the mid-timestep of a data set is found.

    Attributes:
        resolution: side of the crops; None takes 512, and with real pairs the whole images.
        scale: the side of a crop over that of the degraded one.
        on_small: what becomes of an image that is smaller than a crop.
        max_samples: upper bound; None takes one sample of each image.
        until_stable: goes on until the interval is narrower than this many timesteps.
        batch: images that are encoded together.
        seed: of crops, degradation and resampling.
    """

    resolution: int | None = Field(default=None, ge=16, le=8192)
    scale: float = Field(default=4.0, ge=1, le=MAX_SCALE)
    on_small: Literal["skip", "resize", "pad"] = "skip"
    max_samples: int | None = Field(default=None, ge=1)
    until_stable: int | None = Field(default=None, ge=1, le=1000)
    batch: int = Field(default=4, ge=1, le=256)
    seed: int = Field(default=0, ge=0)


class BenchOptions(_Options):
    """What stands side by side in a benchmark, and what it is scored by.

    Attributes:
        data: folder of low-quality images, or one with `test_LR/` and `test_HR/`; None takes the package's own.
        hr: folder of their references.
        sr: folders of images that were restored before.
        recursive: whether the folders' folders are searched too.
        scale: factor of images without a reference, and the first to try with one; None takes the first model's own.
        model: presets, folders, repositories, "bicubic", "lanczos" or files of networks; none takes the default
            and bicubic.
        base: base model that `adapter` belongs to.
        adapter: folder with the published PEFT layout.
        device: as in `ModelOptions`.
        precision: likewise.
        repeat: how often each image is restored for its time; None restores only what is not kept, once.
        metrics: names, or "paper"; None takes those that suit the images and are on this machine.
        color_space: what psnr and ssim look at.
        crop_border: pixels that they leave out on each side.
        cache: folder of what is kept between runs; None takes the user's.
        seed: of what is random: a model's latent, which is its mean without one, and the crops of some metrics.
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
    """Make an option record, turning pydantic's report into one line that names the option and its value.

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
