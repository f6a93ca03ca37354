"""The tiny family for the registry: omgsr-tiny, and what is trained of its kind."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from omgsr_cli.errors import ModelError

if TYPE_CHECKING:
    import torch

    from omgsr_cli.models.base import ImageEncoder, Restorer, RestorerInfo, Tiling, Trainable
    from omgsr_cli.models.devices import Layers
    from omgsr_cli.models.family import ModelSource
    from omgsr_cli.models.lora import LoraOptions
    from omgsr_cli.models.record import ModelRecord
    from omgsr_cli.presets import Preset


class TinyFamily:
    """A `Family`: a folder with `omgsr.json`, `config.json` and `model.safetensors`."""

    name = "tiny"
    adapter_parts: tuple[str, ...] = ()
    adapter_ranks: tuple[int, ...] = ()
    assumed_preset: str | None = None
    has_step = True
    takes_prompt = False
    step_tiling: Tiling | None = "exact"
    layers: Layers | None = "chain"
    takes_vae = False
    has_posterior = False
    clamps_restored = False
    has_checkpointing = False
    has_placement = False
    small_files: tuple[str, ...] = ()
    weight_stems: Mapping[str, str] = MappingProxyType({})

    def recognises(self, folder: Path) -> bool:
        """Never: every model of this family has a record."""
        return False

    def find_files(self, folder: Path) -> tuple[Path, ...]:
        """The one file; a missing one is reported when it is read, with the configuration."""
        return (folder / "model.safetensors",)

    def assume_record(self, folder: Path, preset: Preset | None) -> ModelRecord:
        """Refuse."""
        raise ModelError(f"{folder} has no omgsr.json", "every model of this family has one")

    def choose_precision(self, precision: str, device: torch.device) -> str:
        """As asked, or what is fast on the device; in bf16 tiles differ from the whole image by a few levels."""
        from omgsr_cli.models.devices import choose_precision

        return choose_precision(precision, device, "chain")

    def describe(self, source: ModelSource) -> RestorerInfo:
        """From the configuration; the size of a tile of the step must suit the network."""
        from omgsr_cli.models.tiny import describe_tiny

        return describe_tiny(source)

    def load(self, source: ModelSource, device: torch.device, precision: str) -> Restorer:
        """Read the one file."""
        from omgsr_cli.models.tiny import load_tiny

        return load_tiny(source, device, precision)

    def load_encoder(self, source: ModelSource, device: torch.device) -> ImageEncoder:
        """The wavelet transform: the learned encoder is not part of what was pre-trained."""
        from omgsr_cli.models.tiny import load_tiny_encoder

        return load_tiny_encoder(source, device)

    def save_merged(self, source: ModelSource, folder: Path, *, half: bool, text_encoder: bool) -> None:
        """Refuse: there is no adapter."""
        raise ModelError(f"a model of the family {self.name!r} has nothing to merge")

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
        """Read all of it; the size of its tiles is its own."""
        from omgsr_cli.models.tiny import load_tiny_trainable

        return load_tiny_trainable(source, device, start_from)
