"""The families of models: the one place where the name of a family becomes code."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from omgsr_cli.errors import ModelError
from omgsr_cli.models.record import RECORD_NAME
from omgsr_cli.models.sd_family import SdFamily
from omgsr_cli.models.tiny_family import TinyFamily
from omgsr_cli.store.hub import ModelFiles

if TYPE_CHECKING:
    import torch

    from omgsr_cli.models.base import ImageEncoder, Restorer, RestorerInfo
    from omgsr_cli.models.lora import LoraOptions
    from omgsr_cli.models.record import ModelRecord
    from omgsr_cli.models.sources import ModelSource
    from omgsr_cli.models.trainable import Trainable
    from omgsr_cli.presets import Preset


class Told(Protocol):
    """Anything that says which family it belongs to: a record, a preset, or what is told of a loaded model."""

    @property
    def family(self) -> str:
        """The name of the family."""
        ...


class Family(Protocol):
    """What the program must know of one kind of network. Its methods import what is heavy themselves.

    Attributes:
        name: as in `omgsr.json`.
        adapter_parts: folders of a published adapter, in the order in which they are merged; none where the family
            is trained whole.
        assumed_preset: what a folder or an adapter that says nothing about itself is taken for; None where every
            model has a record.
        takes_prompt: whether it is conditioned on a text.
        takes_vae: whether an AutoencoderTiny can decode in the place of its own decoder.
        has_posterior: whether an image has many latents, of which a seed draws one.
        clamps_restored: whether the published training keeps restored images in [-1, 1] before it measures them.
        has_checkpointing: whether training can compute activations a second time instead of keeping them.
        small_files: all files of a hub repository but weights that a model of this family is made of, as patterns.
        weight_stems: how the weight file of each part of a repository is called, without its ending.
    """

    name: str
    adapter_parts: tuple[str, ...]
    assumed_preset: str | None
    takes_prompt: bool
    takes_vae: bool
    has_posterior: bool
    clamps_restored: bool
    has_checkpointing: bool
    small_files: tuple[str, ...]
    weight_stems: Mapping[str, str]

    def recognises(self, folder: Path) -> bool:
        """Whether a folder without a record looks like a model of this family."""
        ...

    def find_files(self, folder: Path) -> tuple[Path, ...]:
        """The weight files of a model folder; asks only for what must be there, and reads no weight.

        Raises:
            ModelError: a part is missing, is a pickle, or is of another kind.
        """
        ...

    def assume_record(self, folder: Path, preset: Preset | None) -> ModelRecord:
        """What a model folder says that has no record: the preset's values, or what its configuration tells."""
        ...

    def choose_precision(self, precision: str, device: torch.device) -> str:
        """The number format that a model will have on a device; arguments and errors as in `devices`."""
        ...

    def describe(self, source: ModelSource) -> RestorerInfo:
        """What can be asked of a model without reading its weights.

        Raises:
            ModelError: its configuration does not make a model.
            UsageError: what the user asked for does not go with it.
        """
        ...

    def load(self, source: ModelSource, device: torch.device, precision: str) -> Restorer:
        """Read a model, add its adapter if it has one, and put it on the device.

        Args:
            source: from `find_model`.
            device: where it will run.
            precision: from `choose_precision`.
        Raises:
            ModelError: the files do not make a model, or the adapter does not fit it.
        """
        ...

    def load_encoder(self, source: ModelSource, device: torch.device) -> ImageEncoder:
        """Read the pre-trained encoder and the schedule, and nothing else, in float32.

        Raises:
            ModelError: something is missing or of a kind that is not known.
        """
        ...

    def save_merged(self, restorer: Restorer, folder: Path, *, half: bool, text_encoder: bool) -> None:
        """Write a loaded model into an empty folder, as `find_model` finds it without an adapter.

        Args:
            restorer: from `load`.
            folder: is there and empty.
            half: whether float16 is written, and not the number format that it was loaded in.
            text_encoder: whether the text encoder is copied too.
        Raises:
            ModelError: the text encoder is not there, or the family has nothing to merge.
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
        """Read a model to train.

        Args:
            source: from `find_trainable`.
            device: where to train.
            precision: "fp32" or "bf16": of frozen weights. What learns is float32.
            lora: the adapters; None takes the defaults, or is all that a family without adapters takes.
            start_from: folder of the weights to begin from; None begins with new ones, from torch's random state.
            native_px: side of the square images that it will be trained at, where the size of its tiles is that.
        Raises:
            ModelError: the files do not make a model, or the weights to begin from do not fit.
        """
        ...

    def outline(self, source: ModelSource, device: torch.device, precision: str, lora: LoraOptions | None) -> Trainable:
        """Build the model that `load_trainable` reads, with the values left out, for predictions.

        It is called with `with device:`, and mostly under `FakeTensorMode`, so that what is built takes no memory and
        computes nothing.

        Raises:
            ModelError: its configuration does not make a model.
        """
        ...


FAMILIES: dict[str, Family] = {family.name: family for family in (TinyFamily(), SdFamily())}

#: Until the small files of a repository are here, its family is unknown: the files of any family are asked for.
REPOSITORY_FILES = ModelFiles(
    small=(RECORD_NAME, *dict.fromkeys(pattern for family in FAMILIES.values() for pattern in family.small_files)),
    weight_stems={part: stem for family in FAMILIES.values() for part, stem in family.weight_stems.items()},
)


def family_of(told: Told, where: str) -> Family:
    """The family that a record, a preset or a model's description names.

    Args:
        told: what names it.
        where: what to call it in the error.
    Raises:
        ModelError: there is no such family here.
    """
    if told.family not in FAMILIES:
        raise ModelError(f"{where}: model family {told.family!r} is not known", hint=f"families: {', '.join(FAMILIES)}")
    return FAMILIES[told.family]


def recognise_model(folder: Path) -> Family | None:
    """The family of a model folder that has no record, or None."""
    return next((family for family in FAMILIES.values() if family.recognises(folder)), None)


def recognise_adapter(folder: Path) -> Family | None:
    """The family that a folder is a complete adapter of, or None."""
    return next((family for family in _adapted() if _parts_in(family, folder) == len(family.adapter_parts)), None)


def nearest_adapter(folder: Path) -> Family:
    """The family of which a folder has the most parts of an adapter: whose errors will help most."""
    return max(_adapted(), key=lambda family: _parts_in(family, folder))


def _adapted() -> list[Family]:
    return [family for family in FAMILIES.values() if family.adapter_parts]


def _parts_in(family: Family, folder: Path) -> int:
    return sum((folder / part).is_dir() for part in family.adapter_parts)
