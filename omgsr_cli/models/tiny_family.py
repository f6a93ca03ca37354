"""The tiny family for the registry: omgsr-tiny, and models that are trained from it."""

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
        """Always False: every model of this family has a record."""
        return False

    def find_files(self, folder: Path) -> tuple[Path, ...]:
        """The weight file; a missing one is reported when it is read together with the configuration."""
        return (folder / "model.safetensors",)

    def assume_record(self, folder: Path, preset: Preset | None) -> ModelRecord:
        """Raise `ModelError`."""
        raise ModelError(f"{folder} has no omgsr.json", "every model of this family has one")

    def choose_precision(self, precision: str, device: torch.device) -> str:
        """The requested format; "auto" is a fast one. In bf16 tiles differ from the complete image by a few levels."""
        from omgsr_cli.models.devices import choose_precision

        return choose_precision(precision, device, "chain")

    def describe(self, source: ModelSource) -> RestorerInfo:
        """Describe the model from its configuration; the step's tile size must be a multiple of `multiple_of_px`."""
        from omgsr_cli.models.tiny import describe_tiny

        return describe_tiny(source)

    def load(self, source: ModelSource, device: torch.device, precision: str) -> Restorer:
        """Load the weight file."""
        from omgsr_cli.models.tiny import load_tiny

        return load_tiny(source, device, precision)

    def load_encoder(self, source: ModelSource, device: torch.device) -> ImageEncoder:
        """The wavelet transform, because the learned encoder is not part of the pre-trained model."""
        from omgsr_cli.models.tiny import load_tiny_encoder

        return load_tiny_encoder(source, device)

    def save_merged(self, source: ModelSource, folder: Path, *, half: bool, text_encoder: bool) -> None:
        """Raise `ModelError`: the family has no adapters."""
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
        """Load all weights; `native_px` is ignored, because the model's record sets the tile size."""
        from omgsr_cli.models.tiny import load_tiny_trainable

        return load_tiny_trainable(source, device, start_from)
