"""What a model family is, and the description of a model before its weights are read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from omgsr_cli.errors import ModelError
from omgsr_cli.models.record import ModelRecord
from omgsr_cli.options import Offload, Quantize
from omgsr_cli.presets import PRESETS, Preset

if TYPE_CHECKING:
    import torch

    from omgsr_cli.models.base import ImageEncoder, Restorer, RestorerInfo, Tiling, Trainable
    from omgsr_cli.models.devices import Layers
    from omgsr_cli.models.lora import LoraOptions


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


class Family:
    """One kind of network. A subclass sets the facts that differ from these and implements `describe` and `load`.

    The other methods have a default: a model is a folder with a record and `model.safetensors`, has no adapters, and
    cannot be trained. Methods import heavy libraries when they are called.

    Attributes:
        name: as in `omgsr.json`.
        adapter_parts: folders of a published adapter, in the order in which they are merged; none where the family
            is trained whole.
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
    adapter_parts: tuple[str, ...] = ()
    assumed_preset: str | None = None
    has_step = True
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

    @property
    def adapter_ranks(self) -> tuple[int, ...]:
        """The ranks of the published adapter's parts."""
        preset = PRESETS.get(self.assumed_preset or "")
        return tuple(rank for rank in (preset.vae_rank, preset.backbone_rank) if rank) if preset else ()

    def recognises(self, path: Path) -> bool:
        """Whether a folder without a record, or a file, looks like a model of this family."""
        return False

    def find_files(self, path: Path) -> tuple[Path, ...]:
        """The weight files of a model; no weights are read.

        Raises:
            ModelError: a part is missing, is a pickle, or is of another kind.
        """
        return (path / "model.safetensors",)

    def assume_record(self, path: Path, preset: Preset | None) -> ModelRecord:
        """A record for a model without one, with the values of the preset or of the folder's configuration.

        Raises:
            ModelError: every model of the family has a record.
        """
        raise ModelError(f"{path} has no omgsr.json", "every model of this family has one")

    def choose_precision(self, precision: str, device: torch.device) -> str:
        """The number format of a model on a device; arguments and errors as for `devices.choose_precision`."""
        from omgsr_cli.models.devices import choose_precision

        return choose_precision(precision, device, self.layers)

    def describe(self, source: ModelSource) -> RestorerInfo:
        """The properties of a model, without reading its weights.

        Raises:
            ModelError: its configuration is wrong.
            UsageError: the model does not support an option of the user.
        """
        raise NotImplementedError

    def load(self, source: ModelSource, device: torch.device, precision: str) -> Restorer:
        """Load a model onto a device and merge its adapter, if it has one.

        Args:
            source: from `find_model`.
            device: device of the model.
            precision: from `choose_precision`.
        Raises:
            ModelError: the files are not a valid model, or the adapter does not match.
        """
        raise NotImplementedError

    def load_encoder(self, source: ModelSource, device: torch.device) -> ImageEncoder:
        """Load only the pre-trained encoder and the schedule, in float32.

        Raises:
            ModelError: a part is missing or of an unknown kind, or the family has no diffusion step.
        """
        raise _no_step(source)

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
        raise ModelError(f"{source.name} has no adapter to merge", "give a base model and an adapter")

    def load_trainable(
        self, source: ModelSource, device: torch.device, precision: str, lora: LoraOptions | None, start: Path | None
    ) -> Trainable:
        """Load a model for training.

        Args:
            source: from `find_trainable`.
            device: device for training.
            precision: "fp32" or "bf16", for frozen weights; trained weights are float32.
            lora: the adapters; None uses the defaults, as does a family without adapters.
            start: folder of the initial weights; None draws new ones from torch's random state.
        Raises:
            ModelError: the files are not a valid model, the initial weights do not match, or the family cannot be
                trained.
        """
        raise _no_step(source)


def _no_step(source: ModelSource) -> ModelError:
    reason = f"{source.name} has no diffusion step that could be measured or trained"
    return ModelError(reason, "give a diffusion model, such as omgsr-tiny")
