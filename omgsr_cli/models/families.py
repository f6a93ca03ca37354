"""The model families: the registry, and what is known about each of them without torch.

Methods of a family that need weights import its own module, which contains the networks: `tiny`, `sd`, `network` or
`flux`. No other module knows a family by its name.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from omgsr_cli.errors import ModelError
from omgsr_cli.models.adapter_files import FLUX_PARTS, SD_PARTS
from omgsr_cli.models.family import Family, ModelSource
from omgsr_cli.models.record import ModelRecord, read_json
from omgsr_cli.models.weight_files import (
    NETWORK_STEM,
    NETWORK_SUFFIXES,
    find_weight_file,
    refuse_pickles,
    weight_files,
)
from omgsr_cli.presets import PRESETS, Preset
from omgsr_cli.store.hub import ModelFiles
from omgsr_cli.store.installed import RECORD_NAME

if TYPE_CHECKING:
    import torch

    from omgsr_cli.models.base import ImageEncoder, Restorer, RestorerInfo, Trainable
    from omgsr_cli.models.lora import LoraOptions


class TinyFamily(Family):
    """omgsr-tiny, and models that are trained from it: `omgsr.json`, `config.json` and `model.safetensors`."""

    name = "tiny"
    step_tiling = "exact"
    layers = "chain"

    def describe(self, source: ModelSource) -> RestorerInfo:
        """From the configuration; the step's tile size must be a multiple of `multiple_of_px`."""
        from omgsr_cli.models.tiny import describe_tiny

        return describe_tiny(source)

    def load(self, source: ModelSource, device: torch.device, precision: str) -> Restorer:
        """Load the weight file. In bf16, tiles differ from the complete image by a few levels."""
        from omgsr_cli.models.tiny import load_tiny

        return load_tiny(source, device, precision)

    def load_encoder(self, source: ModelSource, device: torch.device) -> ImageEncoder:
        """The wavelet transform, because the learned encoder is not part of the pre-trained model."""
        from omgsr_cli.models.tiny import load_tiny_encoder

        return load_tiny_encoder(source, device)

    def save_merged(self, source: ModelSource, folder: Path, *, half: bool, text_encoder: bool) -> None:
        """Copy the model, which has neither an adapter nor a text encoder."""
        for name in (RECORD_NAME, "config.json", "model.safetensors"):
            shutil.copyfile(source.folder / name, folder / name)

    def load_trainable(
        self, source: ModelSource, device: torch.device, precision: str, lora: LoraOptions | None, start: Path | None
    ) -> Trainable:
        """Load all weights, of which all but those of the latent space are trained."""
        from omgsr_cli.models.tiny import load_tiny_trainable

        return load_tiny_trainable(source, device, start)


class NetworkFamily(Family):
    """A file that spandrel reads, such as ESRGAN, SPAN, SwinIR or DAT. It has no diffusion step."""

    name = "network"
    has_step = False

    def recognises(self, path: Path) -> bool:
        """Whether the path is a weight file, and not that of a model folder; folders are never recognised."""
        is_alone = path.is_file() and not (path.parent / RECORD_NAME).is_file()
        return is_alone and path.suffix.lower() in NETWORK_SUFFIXES

    def find_files(self, path: Path) -> tuple[Path, ...]:
        """The file itself, or the weight file in an installed folder."""
        return (find_weight_file(path),)

    def assume_record(self, path: Path, preset: Preset | None) -> ModelRecord:
        """A minimal record; `describe` reads the scale and the sizes from the weights."""
        return ModelRecord(family=self.name, mid_timestep=0, native_tile_px=1)

    def describe(self, source: ModelSource) -> RestorerInfo:
        """From the weights, which determine the scale and the tile size."""
        from omgsr_cli.models.network import describe_network

        return describe_network(source)

    def load(self, source: ModelSource, device: torch.device, precision: str) -> Restorer:
        """Load the weight file, in float32 if the network does not support the precision."""
        from omgsr_cli.models.network import load_network

        return load_network(source, device, precision)


class LatentFamily(Family):
    """Families whose backbone works in the latents of an AutoencoderKL: a diffusers folder, and its adapters.

    Attributes:
        classes: diffusers' class of each part, by its folder; the backbone first.
        text_encoders: folders of the text encoders.
        advice: the hint for a part of another class.
    """

    takes_prompt = True
    step_tiling = "blended"
    layers = "unet"
    takes_vae = True
    has_posterior = True
    has_checkpointing = True
    classes: Mapping[str, str]
    text_encoders: tuple[str, ...]
    advice: str

    def __init__(self) -> None:
        (self.backbone, *_), texts = self.classes, self.text_encoders
        configured = (f"{part}/config.json" for part in (*self.classes, *texts))
        tokenizers = (f"{part.replace('text_encoder', 'tokenizer')}/*" for part in texts)
        fixed = ("prompt_embeds.safetensors", "model_index.json", "scheduler/scheduler_config.json")
        self.small_files = (*fixed, *configured, *tokenizers)
        self.weight_stems = dict.fromkeys(self.classes, NETWORK_STEM) | dict.fromkeys(texts, "model")

    def find_files(self, path: Path) -> tuple[Path, ...]:
        """The weight files of the backbone and the VAE."""
        if not (path / self.backbone / "config.json").is_file():
            refuse_pickles(path)
            raise ModelError(f"{path} is not a model folder: no {self.backbone}/config.json")
        for part, wanted in self.classes.items():
            found = read_json(path / part / "config.json").get("_class_name")
            if found != wanted:
                raise ModelError(f"{path / part} is a {found}, not a {wanted}", self.advice)
        return tuple(file for part in self.classes for file in weight_files(path, part))

    def assume_record(self, path: Path, preset: Preset | None) -> ModelRecord:
        """A record from the preset, or from the family's preset if it is None."""
        known = preset or PRESETS[str(self.assumed_preset)]
        return ModelRecord(
            family=self.name,
            mid_timestep=known.mid_timestep,
            native_tile_px=known.native_tile_px,
            scale=known.scale,
            prompt="",
        )

    def load_encoder(self, source: ModelSource, device: torch.device) -> ImageEncoder:
        """The VAE's encoder, without an adapter."""
        from omgsr_cli.models.autoencoders import load_diffusers_encoder

        return load_diffusers_encoder(source.name, source.folder, device)


class SdFamily(LatentFamily):
    """Stable Diffusion 1.x and 2.x."""

    name = "sd"
    adapter_parts = SD_PARTS
    assumed_preset = "omgsr-s-512"
    clamps_restored = True
    classes: Mapping[str, str] = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}
    text_encoders = ("text_encoder",)
    advice = "give a model of Stable Diffusion"

    def recognises(self, path: Path) -> bool:
        """Whether the folder contains a UNet."""
        return (path / "unet" / "config.json").is_file()

    def assume_record(self, path: Path, preset: Preset | None) -> ModelRecord:
        """As for other families; without a preset, the tile size of the step is the UNet's own."""
        record = super().assume_record(path, preset)
        return record if preset else record.model_copy(update={"native_tile_px": _native_px(path, record)})

    def describe(self, source: ModelSource) -> RestorerInfo:
        """From the configurations and weight headers; the files for the prompt must also exist."""
        from omgsr_cli.models.sd import describe_sd

        return describe_sd(source)

    def load(self, source: ModelSource, device: torch.device, precision: str) -> Restorer:
        """Load both networks and the prompt's embedding, and merge the adapter."""
        from omgsr_cli.models.sd import load_sd

        return load_sd(source, device, precision)

    def save_merged(self, source: ModelSource, folder: Path, *, half: bool, text_encoder: bool) -> None:
        """Write a diffusers folder with a record and the prompt's embedding."""
        from omgsr_cli.models.sd import save_sd

        save_sd(source, folder, half=half, text_encoder=text_encoder)

    def load_trainable(
        self, source: ModelSource, device: torch.device, precision: str, lora: LoraOptions | None, start: Path | None
    ) -> Trainable:
        """Load the base model, and add adapters to its encoder and UNet."""
        from omgsr_cli.models.sd import load_sd_trainable

        return load_sd_trainable(source, device, precision, lora, start)


class FluxFamily(LatentFamily):
    """FLUX.1-dev and models with the same layout."""

    name = "flux"
    adapter_parts = FLUX_PARTS
    assumed_preset = "omgsr-f-1024"
    has_placement = True
    classes: Mapping[str, str] = {"transformer": "FluxTransformer2DModel", "vae": "AutoencoderKL"}
    text_encoders = ("text_encoder", "text_encoder_2")
    advice = "give FLUX.1-dev"

    def recognises(self, path: Path) -> bool:
        """Whether the folder contains a transformer of FLUX's class."""
        config = path / "transformer" / "config.json"
        return config.is_file() and read_json(config).get("_class_name") == self.classes["transformer"]

    def choose_precision(self, precision: str, device: torch.device) -> str:
        """The requested format; "auto" is bf16 on a GPU, as published, because the range of fp16 is too small."""
        return super().choose_precision("bf16" if precision == "auto" and device.type != "cpu" else precision, device)

    def describe(self, source: ModelSource) -> RestorerInfo:
        """From the configurations and weight headers; the files for the prompt must also exist."""
        from omgsr_cli.models.flux import describe_flux

        return describe_flux(source)

    def load(self, source: ModelSource, device: torch.device, precision: str) -> Restorer:
        """Load both networks and the prompt's features, and merge the adapter."""
        from omgsr_cli.models.flux import load_flux

        return load_flux(source, device, precision)

    def save_merged(self, source: ModelSource, folder: Path, *, half: bool, text_encoder: bool) -> None:
        """Write a diffusers folder with a record and the prompt's features, one weight file at a time."""
        from omgsr_cli.models.flux import save_flux

        save_flux(source, folder, half=half, text_encoder=text_encoder)

    def load_trainable(
        self, source: ModelSource, device: torch.device, precision: str, lora: LoraOptions | None, start: Path | None
    ) -> Trainable:
        """Load the base model, and add adapters to its encoder and transformer."""
        from omgsr_cli.models.flux import load_flux_trainable

        return load_flux_trainable(source, device, precision, lora, start)


def _native_px(folder: Path, assumed: ModelRecord) -> int:
    """Side of the square images that a diffusers folder's UNet was trained at, in pixels."""
    side = read_json(folder / "unet" / "config.json").get("sample_size")
    if isinstance(side, list) and len(side) == 2 and side[0] == side[1]:
        side = side[0]
    if side is None:
        return assumed.native_tile_px
    if type(side) is not int or side < 1:
        raise ModelError(
            f"{folder / 'unet'}: sample_size is {side!r}, not the side of a square",
            hint="name a preset beside --base, or correct its config.json",
        )
    levels = read_json(folder / "vae" / "config.json").get("block_out_channels")
    # The values are checked with the rest of the VAE's configuration.
    return side * int(2 ** (len(levels) - 1)) if isinstance(levels, list) and levels else assumed.native_tile_px


FAMILIES: dict[str, Family] = {
    family.name: family for family in (TinyFamily(), SdFamily(), NetworkFamily(), FluxFamily())
}

#: The family of a repository is unknown until its small files are fetched, so the files of all families are requested.
REPOSITORY_FILES = ModelFiles(
    small=(RECORD_NAME, *dict.fromkeys(pattern for family in FAMILIES.values() for pattern in family.small_files)),
    weight_stems={part: stem for family in FAMILIES.values() for part, stem in family.weight_stems.items()},
)


def family_of(model: ModelRecord | Preset | RestorerInfo, where: str) -> Family:
    """The family in a record, a preset or a model's description.

    Args:
        model: record, preset or description with the name of the family.
        where: name of the model in messages.
    Raises:
        ModelError: the family does not exist.
    """
    if model.family not in FAMILIES:
        raise ModelError(f"{where}: unknown model family {model.family!r}", hint=f"families: {', '.join(FAMILIES)}")
    return FAMILIES[model.family]


def recognise_model(path: Path) -> Family | None:
    """The family of a model folder without a record, or of a file; None if no family recognises it."""
    return next((family for family in FAMILIES.values() if family.recognises(path)), None)


def is_model_file(path: Path) -> bool:
    """Whether a path is a single file that is a whole model."""
    return path.is_file() and recognise_model(path) is not None


def recognise_adapter(folder: Path) -> Family | None:
    """The family of a folder with a complete adapter, or None."""
    family = nearest_adapter(folder)
    return family if _parts_in(family, folder) == len(family.adapter_parts) else None


def nearest_adapter(folder: Path) -> Family:
    """The family with the most adapter parts in a folder, whose error messages will be the most helpful."""
    adapted = (family for family in FAMILIES.values() if family.adapter_parts)
    return max(adapted, key=lambda family: _parts_in(family, folder))


def _parts_in(family: Family, folder: Path) -> int:
    return sum((folder / part).is_dir() for part in family.adapter_parts)
