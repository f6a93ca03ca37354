"""The interface of a model family, and the description of a model before its weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from omgsr_cli.models.record import ModelRecord
from omgsr_cli.options import Offload, Quantize

if TYPE_CHECKING:
    import torch

    from omgsr_cli.models.base import ImageEncoder, Restorer, RestorerInfo, Tiling, Trainable
    from omgsr_cli.models.devices import Layers
    from omgsr_cli.models.lora import LoraOptions
    from omgsr_cli.presets import Preset


@dataclass(frozen=True)
class ModelSource:
    """A model's files and its record.

    Attributes:
        name: as the user gave it.
        folder: the model, or the base model that an adapter is added to.
        adapter: the adapter's folder, or None.
        record: of the folder, of the adapter, or assembled from defaults; with the values that the user asked for.
        notes: for people, one line each.
        vae: of an AutoencoderTiny that decodes instead of the model's own, or None.
        quantize: how its weights are made smaller, for a family that can.
        offload: where they are kept while they are not used.
    """

    name: str
    folder: Path
    adapter: Path | None
    record: ModelRecord
    notes: tuple[str, ...]
    vae: Path | None = None
    quantize: Quantize = "none"
    offload: Offload = "auto"

    @property
    def files(self) -> tuple[Path, ...]:
        """The folders and files that the model is read from."""
        return tuple(part for part in (self.folder, self.adapter, self.vae) if part is not None)

    @property
    def location(self) -> str:
        """The location of the model for records in other folders: its full path, or its hub repository."""
        return str(Path(self.name).resolve()) if Path(self.name).is_dir() else self.name


class Family(Protocol):
    """One kind of network. Its methods import heavy libraries when they are called.

    Attributes:
        name: as in `omgsr.json`.
        adapter_parts: folders of a published adapter, in the order in which they are merged; none where the family
            is trained whole.
        adapter_ranks: of these parts, as published.
        assumed_preset: whose values a folder or an adapter without a record gets; None where every model has one.
        has_step: whether it takes a diffusion step; other networks have no timestep, prompt, base or VAE.
        takes_prompt: whether it is conditioned on a text.
        step_tiling: how its step is tiled: with "blended" tiles, a result depends on them. None where its files decide.
        layers: what is measured to choose a number format on a CPU; None where that is always float32.
        takes_vae: whether an AutoencoderTiny can decode instead of its own decoder.
        has_posterior: whether an image has many latents, of which a seed draws one.
        clamps_restored: whether the published training keeps restored images in [-1, 1] before it measures them.
        has_checkpointing: whether training can compute activations a second time instead of keeping them.
        has_placement: whether its weights can be quantised, and kept in the host's memory while they are not used.
        small_files: all files of a hub repository but weights that a model of this family is made of, as patterns.
        weight_stems: name of the weight file of each part of a repository, without its ending.
    """

    name: str
    adapter_parts: tuple[str, ...]
    adapter_ranks: tuple[int, ...]
    assumed_preset: str | None
    has_step: bool
    takes_prompt: bool
    step_tiling: Tiling | None
    layers: Layers | None
    takes_vae: bool
    has_posterior: bool
    clamps_restored: bool
    has_checkpointing: bool
    has_placement: bool
    small_files: tuple[str, ...]
    weight_stems: Mapping[str, str]

    def recognises(self, folder: Path) -> bool:
        """Whether a folder without a record looks like a model of this family."""
        ...

    def find_files(self, folder: Path) -> tuple[Path, ...]:
        """The weight files of a model folder; no weights are read.

        Raises:
            ModelError: a part is missing, is a pickle, or is of another kind.
        """
        ...

    def assume_record(self, folder: Path, preset: Preset | None) -> ModelRecord:
        """A record for a folder without one, with the values of the preset or of the folder's configuration."""
        ...

    def choose_precision(self, precision: str, device: torch.device) -> str:
        """The number format of a model on a device; arguments and errors as in `devices`."""
        ...

    def describe(self, source: ModelSource) -> RestorerInfo:
        """The properties of a model, without reading its weights.

        Raises:
            ModelError: its configuration is wrong.
            UsageError: the model does not support an option of the user.
        """
        ...

    def load(self, source: ModelSource, device: torch.device, precision: str) -> Restorer:
        """Load a model onto a device and merge its adapter, if it has one.

        Args:
            source: from `find_model`.
            device: device of the model.
            precision: from `choose_precision`.
        Raises:
            ModelError: the files are not a valid model, or the adapter does not match.
        """
        ...

    def load_encoder(self, source: ModelSource, device: torch.device) -> ImageEncoder:
        """Load only the pre-trained encoder and the schedule, in float32.

        Raises:
            ModelError: a part is missing or of an unknown kind.
        """
        ...

    def save_merged(self, source: ModelSource, folder: Path, *, half: bool, text_encoder: bool) -> None:
        """Write a model with its adapter merged into an empty folder, as `find_model` finds it without an adapter.

        Args:
            source: from `find_model`.
            folder: exists and is empty.
            half: whether weights are written in 16 bits that have 32; without it, sums are as exact as the base.
            text_encoder: whether the text encoder is copied too.
        Raises:
            ModelError: the files do not make a model, the adapter does not fit it, the text encoder is missing, or the
                family has nothing to merge.
        """
        ...

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
        """Load a model for training.

        Args:
            source: from `find_trainable`.
            device: device for training.
            precision: "fp32" or "bf16", for frozen weights; trained weights are float32.
            lora: the adapters; None uses the defaults, and is required for a family without adapters.
            start_from: folder of the initial weights; None draws new ones from torch's random state.
            native_px: side of the square training images, for families whose tiles have this size.
        Raises:
            ModelError: the files are not a valid model, or the initial weights do not match.
        """
        ...
