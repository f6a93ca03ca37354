"""The network family for the registry: restoration networks of other projects, each in one weight file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from omgsr_cli.errors import ModelError
from omgsr_cli.models.weight_files import NETWORK_SUFFIXES, find_weight_file

if TYPE_CHECKING:
    import torch

    from omgsr_cli.models.base import ImageEncoder, Restorer, RestorerInfo, Tiling, Trainable
    from omgsr_cli.models.devices import Layers
    from omgsr_cli.models.family import ModelSource
    from omgsr_cli.models.lora import LoraOptions
    from omgsr_cli.models.record import ModelRecord
    from omgsr_cli.presets import Preset


def is_network_file(path: Path) -> bool:
    """Whether a path is a file that may contain a network, and not the weight file of a model folder."""
    return path.suffix.lower() in NETWORK_SUFFIXES and path.is_file() and not (path.parent / "omgsr.json").is_file()


class NetworkFamily:
    """A `Family`: a file that spandrel reads, such as ESRGAN, SPAN, SwinIR or DAT. It has no diffusion step."""

    name = "network"
    adapter_parts: tuple[str, ...] = ()
    adapter_ranks: tuple[int, ...] = ()
    assumed_preset: str | None = None
    has_step = False
    takes_prompt = False
    step_tiling: Tiling | None = None
    layers: Layers | None = None
    takes_vae = False
    has_posterior = False
    clamps_restored = False
    has_checkpointing = False
    has_placement = False
    small_files: tuple[str, ...] = ()
    weight_stems: Mapping[str, str] = MappingProxyType({})

    def recognises(self, folder: Path) -> bool:
        """Whether the path is a network's weight file; folders are never recognised."""
        return is_network_file(folder)

    def find_files(self, folder: Path) -> tuple[Path, ...]:
        """The file itself, or the weight file in an installed folder."""
        return (find_weight_file(folder),)

    def assume_record(self, folder: Path, preset: Preset | None) -> ModelRecord:
        """Return a minimal record; `describe` reads the scale and the sizes from the weights."""
        from omgsr_cli.models.record import ModelRecord

        return ModelRecord(family=self.name, mid_timestep=0, native_tile_px=1)

    def choose_precision(self, precision: str, device: torch.device) -> str:
        """The requested format; "auto" is fp32 on a CPU. If a network does not support a format, `load` uses fp32."""
        from omgsr_cli.models.devices import choose_precision

        return choose_precision("fp32" if precision == "auto" and device.type == "cpu" else precision, device)

    def describe(self, source: ModelSource) -> RestorerInfo:
        """Describe the network from its weights, which determine the scale and the tile size."""
        from omgsr_cli.models.network import describe_network

        return describe_network(source)

    def load(self, source: ModelSource, device: torch.device, precision: str) -> Restorer:
        """Load the weight file."""
        from omgsr_cli.models.network import load_network

        return load_network(source, device, precision)

    def load_encoder(self, source: ModelSource, device: torch.device) -> ImageEncoder:
        """Raise `ModelError`."""
        raise self._no_step(source)

    def save_merged(self, source: ModelSource, folder: Path, *, half: bool, text_encoder: bool) -> None:
        """Raise `ModelError`."""
        raise ModelError(f"{source.name} has no adapter to merge", "give a base model and an adapter")

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
        """Raise `ModelError`."""
        raise self._no_step(source)

    def _no_step(self, source: ModelSource) -> ModelError:
        return ModelError(
            f"{source.name} has no diffusion step: it is a plain restoration network",
            "give a diffusion model, such as omgsr-tiny",
        )
