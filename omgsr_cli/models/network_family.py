"""The network family for the registry: restoration networks of other projects, one weight file each."""

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
    """Whether a path is a file that may hold such a network: one that is not the weight file of a model folder."""
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
        """Only files: a folder is never such a network."""
        return is_network_file(folder)

    def find_files(self, folder: Path) -> tuple[Path, ...]:
        """The file itself, or the one in an installed folder."""
        return (find_weight_file(folder),)

    def assume_record(self, folder: Path, preset: Preset | None) -> ModelRecord:
        """Almost nothing: the scale and the sizes come from the weights, which `describe` reads."""
        from omgsr_cli.models.record import ModelRecord

        return ModelRecord(family=self.name, mid_timestep=0, native_tile_px=1)

    def choose_precision(self, precision: str, device: torch.device) -> str:
        """As asked; "auto" is float32 on a CPU. Where a network does not allow a format, `load` takes float32."""
        from omgsr_cli.models.devices import choose_precision

        return choose_precision("fp32" if precision == "auto" and device.type == "cpu" else precision, device)

    def describe(self, source: ModelSource) -> RestorerInfo:
        """Read the weights: the scale and the size of tiles depend on them."""
        from omgsr_cli.models.network import describe_network

        return describe_network(source)

    def load(self, source: ModelSource, device: torch.device, precision: str) -> Restorer:
        """Read the one file."""
        from omgsr_cli.models.network import load_network

        return load_network(source, device, precision)

    def load_encoder(self, source: ModelSource, device: torch.device) -> ImageEncoder:
        """Refuse."""
        raise self._no_step(source)

    def save_merged(self, source: ModelSource, folder: Path, *, half: bool, text_encoder: bool) -> None:
        """Refuse."""
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
        """Refuse."""
        raise self._no_step(source)

    def _no_step(self, source: ModelSource) -> ModelError:
        return ModelError(
            f"{source.name} has no diffusion step: it is a plain restoration network",
            "give a diffusion model, such as omgsr-tiny",
        )
