"""The FLUX family for the registry: a diffusers folder with `transformer/` and `vae/`, and its adapters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from omgsr_cli.errors import ModelError
from omgsr_cli.models.adapter_files import FLUX_PARTS, FLUX_RANKS
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

_CLASSES = {"transformer": "FluxTransformer2DModel", "vae": "AutoencoderKL"}


class FluxFamily:
    """A `Family`: FLUX.1-dev and models with the same layout."""

    name = "flux"
    adapter_parts: tuple[str, ...] = FLUX_PARTS
    adapter_ranks: tuple[int, ...] = FLUX_RANKS
    assumed_preset: str | None = "omgsr-f-1024"
    has_step = True
    takes_prompt = True
    step_tiling: Tiling | None = "blended"
    layers: Layers | None = "unet"
    takes_vae = True
    has_posterior = True
    clamps_restored = False
    has_checkpointing = True
    has_placement = True
    small_files: tuple[str, ...] = (
        "prompt_embeds.safetensors",
        "model_index.json",
        "scheduler/scheduler_config.json",
        "transformer/config.json",
        "vae/config.json",
        *(f"{part}/config.json" for part in ("text_encoder", "text_encoder_2")),
        *(f"{part}/*" for part in ("tokenizer", "tokenizer_2")),
    )
    weight_stems: Mapping[str, str] = MappingProxyType(
        {"transformer": NETWORK_STEM, "vae": NETWORK_STEM, "text_encoder": "model", "text_encoder_2": "model"}
    )

    def recognises(self, folder: Path) -> bool:
        """Whether the folder contains a transformer of FLUX's class."""
        config = folder / "transformer" / "config.json"
        return config.is_file() and read_json(config).get("_class_name") == _CLASSES["transformer"]

    def find_files(self, folder: Path) -> tuple[Path, ...]:
        """The weight files of the transformer and the VAE."""
        if not (folder / "transformer" / "config.json").is_file():
            refuse_pickles(folder)
            raise ModelError(f"{folder} is not a model folder: no transformer/config.json")
        for part, wanted in _CLASSES.items():
            found = read_json(folder / part / "config.json").get("_class_name")
            if found != wanted:
                raise ModelError(f"{folder / part} is a {found}, not a {wanted}", "give FLUX.1-dev")
        return tuple(path for part in _CLASSES for path in weight_files(folder, part))

    def assume_record(self, folder: Path, preset: Preset | None) -> ModelRecord:
        """Build a record from the preset, or from the family's preset if it is None."""
        known = preset or PRESETS[str(self.assumed_preset)]
        return ModelRecord(
            family=self.name,
            mid_timestep=known.mid_timestep,
            native_tile_px=known.native_tile_px,
            scale=known.scale,
            prompt="",
        )

    def choose_precision(self, precision: str, device: torch.device) -> str:
        """The requested format; "auto" is bf16 on a GPU, as published, because the range of fp16 is too small."""
        from omgsr_cli.models.devices import choose_precision

        return choose_precision("bf16" if precision == "auto" and device.type != "cpu" else precision, device)

    def describe(self, source: ModelSource) -> RestorerInfo:
        """Describe the model from its configurations and weight headers; the files for the prompt must also exist."""
        from omgsr_cli.models.flux import check_prompt, describe_flux

        info = describe_flux(source)
        check_prompt(source)
        return info

    def load(self, source: ModelSource, device: torch.device, precision: str) -> Restorer:
        """Load both networks and the prompt's features, and merge the adapter."""
        from omgsr_cli.models.flux import load_flux

        return load_flux(source, device, precision)

    def load_encoder(self, source: ModelSource, device: torch.device) -> ImageEncoder:
        """The VAE's encoder, without an adapter."""
        from omgsr_cli.models.autoencoders import load_diffusers_encoder

        return load_diffusers_encoder(source.name, source.folder, device)

    def save_merged(self, source: ModelSource, folder: Path, *, half: bool, text_encoder: bool) -> None:
        """Write a diffusers folder with a record and the prompt's features, one weight file at a time."""
        from omgsr_cli.models.flux import save_flux

        save_flux(source, folder, half=half, text_encoder=text_encoder)

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
        """Load the base model, and add adapters to its encoder and transformer."""
        from omgsr_cli.models.flux import load_flux_trainable

        changes = {} if native_px is None else {"native_tile_px": native_px}
        source = replace(source, record=source.record.model_copy(update=changes))
        return load_flux_trainable(source, device, precision, lora, start_from)
