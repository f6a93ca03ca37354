"""The SD family for the registry: a diffusers folder with `unet/` and `vae/`, and its adapters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from omgsr_cli.errors import ModelError
from omgsr_cli.models.adapter_files import SD_PARTS, SD_RANKS
from omgsr_cli.models.record import ModelRecord, read_json
from omgsr_cli.models.weight_files import NETWORK_STEM, refuse_pickles, weight_files
from omgsr_cli.presets import PRESETS

if TYPE_CHECKING:
    import torch

    from omgsr_cli.models.base import ImageEncoder, Restorer, RestorerInfo, Tiling, Trainable
    from omgsr_cli.models.devices import Layers
    from omgsr_cli.models.family import ModelSource
    from omgsr_cli.models.lora import LoraOptions
    from omgsr_cli.presets import Preset

_CLASSES = {"unet": "UNet2DConditionModel", "vae": "AutoencoderKL"}


class SdFamily:
    """A `Family`: Stable Diffusion 1.x and 2.x."""

    name = "sd"
    adapter_parts: tuple[str, ...] = SD_PARTS
    adapter_ranks: tuple[int, ...] = SD_RANKS
    assumed_preset: str | None = "omgsr-s-512"
    has_step = True
    takes_prompt = True
    step_tiling: Tiling | None = "blended"
    layers: Layers | None = "unet"
    takes_vae = True
    has_posterior = True
    clamps_restored = True
    has_checkpointing = True
    has_placement = False
    small_files: tuple[str, ...] = (
        "prompt_embeds.safetensors",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "unet/config.json",
        "vae/config.json",
        "text_encoder/config.json",
        "tokenizer/*.json",
        "tokenizer/*.txt",
    )
    weight_stems: Mapping[str, str] = MappingProxyType(
        {"unet": NETWORK_STEM, "vae": NETWORK_STEM, "text_encoder": "model"}
    )

    def recognises(self, folder: Path) -> bool:
        """Whether the folder contains a UNet."""
        return (folder / "unet" / "config.json").is_file()

    def find_files(self, folder: Path) -> tuple[Path, ...]:
        """The weight files of the UNet and the VAE."""
        if not self.recognises(folder):
            refuse_pickles(folder)
            raise ModelError(f"{folder} is not a model folder: no unet/config.json")
        for part, wanted in _CLASSES.items():
            found = read_json(folder / part / "config.json").get("_class_name")
            if found != wanted:
                raise ModelError(f"{folder / part} is a {found}, not a {wanted}", "give a model of Stable Diffusion")
        return tuple(path for part in _CLASSES for path in weight_files(folder, part))

    def assume_record(self, folder: Path, preset: Preset | None) -> ModelRecord:
        """Build a record from the preset; without a preset, the tile size of the step is the UNet's own."""
        known = preset or PRESETS[str(self.assumed_preset)]
        return ModelRecord(
            family=self.name,
            mid_timestep=known.mid_timestep,
            native_tile_px=known.native_tile_px if preset else _native_px(folder, known.native_tile_px),
            scale=known.scale,
            prompt="",
        )

    def choose_precision(self, precision: str, device: torch.device) -> str:
        """The requested format; "auto" is a fast one on the device."""
        from omgsr_cli.models.devices import choose_precision

        return choose_precision(precision, device)

    def describe(self, source: ModelSource) -> RestorerInfo:
        """Describe the model from its configurations and weight headers; the files for the prompt must also exist."""
        from omgsr_cli.models.sd import check_prompt, describe_sd

        info = describe_sd(source)
        check_prompt(source.folder, info.prompt or "")
        return info

    def load(self, source: ModelSource, device: torch.device, precision: str) -> Restorer:
        """Load both networks and the prompt's embedding, and merge the adapter."""
        from omgsr_cli.models.sd import load_sd

        return load_sd(source, device, precision)

    def load_encoder(self, source: ModelSource, device: torch.device) -> ImageEncoder:
        """The VAE's encoder, without an adapter."""
        from omgsr_cli.models.autoencoders import load_diffusers_encoder

        return load_diffusers_encoder(source.name, source.folder, device)

    def save_merged(self, source: ModelSource, folder: Path, *, half: bool, text_encoder: bool) -> None:
        """Write a diffusers folder with a record and the prompt's embedding."""
        from omgsr_cli.models.sd import save_sd

        save_sd(source, folder, half=half, text_encoder=text_encoder)

    def load_trainable(
        self,
        source: ModelSource,
        device: torch.device,
        precision: str,
        *,
        lora: LoraOptions | None,
        start_from: Path | None,
        native_px: int | None,
    ) -> Trainable:
        """Load the base model, and add adapters to its encoder and UNet."""
        from omgsr_cli.models.sd import load_sd_trainable

        changes = {} if native_px is None else {"native_tile_px": native_px}
        source = replace(source, record=source.record.model_copy(update=changes))
        return load_sd_trainable(source, device, precision, lora, start_from)


def _native_px(folder: Path, otherwise_px: int) -> int:
    """Side of the square images that a diffusers folder's UNet was trained at, in pixels."""
    side = read_json(folder / "unet" / "config.json").get("sample_size")
    if isinstance(side, list) and len(side) == 2 and side[0] == side[1]:
        side = side[0]
    if side is None:
        return otherwise_px
    if type(side) is not int or side < 1:
        raise ModelError(
            f"{folder / 'unet'}: sample_size is {side!r}, not the side of a square",
            hint="name a preset beside --base, or correct its config.json",
        )
    levels = read_json(folder / "vae" / "config.json").get("block_out_channels")
    # The values are checked with the rest of the VAE's configuration.
    return side * int(2 ** (len(levels) - 1)) if isinstance(levels, list) and levels else otherwise_px
