"""The side of a model that learns, behind one meaning for every family: a `Trainable`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import unset_fake_temporarily

from omgsr_cli.errors import ModelError, UsageError
from omgsr_cli.models.base import Restorer
from omgsr_cli.models.families import family_of
from omgsr_cli.models.lora import LoraOptions
from omgsr_cli.models.sources import ModelSource, find_model
from omgsr_cli.presets import PRESETS
from omgsr_cli.schedules import DdpmSchedule


@runtime_checkable
class Trainable(Protocol):
    """A restorer whose weights, or the adapters beside them, learn.

    Attributes:
        restorer: what a user runs; its `restore` and `decode` carry gradients, and `encode` below is its own.
        networks: every network of it, trained or frozen, in one module.
    """

    restorer: Restorer
    networks: nn.Module

    def trained(self) -> dict[str, nn.Parameter]:
        """Give the weights that learn, float32, by names that stay the same from run to run."""
        ...

    def encode(self, image: Tensor, draws: Sequence[torch.Generator]) -> Tensor:
        """Map an enlarged low-quality image to its latent, as the restorer does.

        Args:
            image: (B, 3, H, W) float32, sRGB in [-1, 1].
            draws: one for each sample; samples the posterior where the family has one.
        Returns:
            (B, C, h, w) float32, with gradients to the weights of the encoder.
        """
        ...

    def encode_clean(self, image: Tensor, draws: Sequence[torch.Generator]) -> Tensor:
        """Map a clean image to its latent by the encoder of the pre-trained model, which does not learn.

        Args: as for `encode`.
        Returns:
            (B, C, h, w) float32 without gradients.
        """
        ...

    def denoise(self, noisy_latent: Tensor, timesteps: Tensor) -> Tensor:
        """Recover clean latents from noisy ones by the network that takes the step; pre-training asks it.

        Args:
            noisy_latent: (B, C, h, w) float32.
            timesteps: (B,) int64, each in 0..999: how noisy each of them is.
        Returns:
            clean_latent, same shape and dtype, with gradients to the weights of that network.
        """
        ...

    def checkpoint_gradients(self) -> None:
        """Compute activations a second time in the backward pass rather than keep them, where the family can."""
        ...

    def share_backbone(self, share: Callable[[nn.Module], None], device: torch.device) -> None:
        """Have the frozen weights of the network that takes the step shared out among processes; move all else.

        Args:
            share: changes a network in place, so that each process keeps a share of its frozen weights on its device.
            device: where the rest goes.
        Raises:
            ModelError: the family has no frozen weights.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write the present weights into a folder, as `omgsr upscale` reads them, with `omgsr.json`."""
        ...

    def load(self, folder: Path) -> None:
        """Read weights that `save` or the published code wrote, in place.

        Raises:
            ModelError: they do not fit.
        """
        ...


def find_trainable(
    preset: str | None = None,
    *,
    base: str | None = None,
    start_from: str | None = None,
    mid_timestep: int | None = None,
    prompt: str | None = None,
    lora: LoraOptions | None = None,
) -> ModelSource:
    """Find the files of the model to train, and check what can be checked without reading a weight.

    Args:
        preset: name of a preset; may be left out where `base`, or a whole model in `start_from`, says it all.
        base: folder or hub repository of the pre-trained model, instead of the preset's.
        start_from: folder of weights to begin from, or the name of a preset that is embedded.
        mid_timestep: instead of the model's own.
        prompt: instead of the model's own.
        lora: the adapters, for a family that has them.
    Raises:
        ModelError: something is missing or of a kind that is not known.
        UsageError: the arguments do not go together.
    """
    if preset is not None and preset not in PRESETS:
        raise UsageError(f"no preset is called {preset!r}", f"known names: {', '.join(PRESETS)}")
    if preset is None and base is None and start_from is None:
        raise UsageError("there is no model to train", "give a preset, a base or start_from in [model]")
    start = start_folder(start_from)
    if start is not None and not start.is_dir():
        raise ModelError(f"start_from: there is no folder {start_from}")
    # A preset's own adapter, where it is installed, is not what training begins with: its base is named.
    named = base or preset or start_from
    source = find_model(preset if base else None, base=named, mid_timestep=mid_timestep, prompt=prompt)
    if lora is not None and not family_of(source.record, source.name).adapter_parts:
        raise UsageError(f"{source.name} is trained whole and takes no adapters", "leave [lora] out")
    return source


def load_trainable(
    source: ModelSource,
    device: torch.device,
    *,
    start_from: str | None = None,
    lora: LoraOptions | None = None,
    precision: str = "fp32",
    seed: int = 0,
    native_px: int | None = None,
    scale: float | None = None,
) -> Trainable:
    """Read the model to train.

    Args:
        source: from `find_trainable`.
        device: where to train.
        start_from: weights to begin from; None begins with new ones, drawn from the seed.
        lora: the adapters; None takes the defaults of the family.
        precision: "fp32" or "bf16": of frozen weights. What learns is float32.
        seed: of new weights.
        native_px: side of the square image that it will be trained at.
        scale: the enlargement that it will be trained for; both go into `omgsr.json`.
    Raises:
        ModelError: the files do not make a model, or the weights to begin from do not fit.
    """
    changes = {} if scale is None else {"scale": scale}
    source = replace(source, record=source.record.model_copy(update=changes))
    # New weights come from the seed alone, whatever was drawn before, and change nothing that is drawn after.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return family_of(source.record, source.name).load_trainable(
            source, device, precision, lora=lora, start_from=start_folder(start_from), native_px=native_px
        )


def start_folder(start_from: str | None) -> Path | None:
    """The folder of the weights to begin from: that of a preset which is embedded, or the one that was named."""
    if start_from is None:
        return None
    embedded = PRESETS[start_from].folder if start_from in PRESETS else None
    return embedded or Path(start_from)


def outline_schedule() -> DdpmSchedule:
    """Give a schedule whose numbers are real under `FakeTensorMode`: a step asks for them as plain numbers."""
    with unset_fake_temporarily():
        schedule, latent = DdpmSchedule(), torch.zeros(1, 1, 1, 1)
        # It computes its tables when they are first asked for.
        schedule.clean_latent(schedule.add_noise(latent, latent, 0), latent, 0)
    return schedule
