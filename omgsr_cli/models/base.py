"""What every model family is to the rest of the program: a `Restorer`, a `Trainable` and an `ImageEncoder`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from omgsr_cli.options import ColorFix
from omgsr_cli.schedules import Schedule

Tiling = Literal["exact", "blended", "internal"]

_STRIP_SHARE = 0.25
"""Of the memory that is given, this share may go to the strip in work; the rest holds layers."""


@dataclass(frozen=True)
class StageInfo:
    """How one stage of a model can be run on tiles, and what that costs.

    Attributes:
        tiling: "exact" where a tile with a margin gives what the whole image gives. Where every pixel depends on all
            others (attention, group norm), a step is "blended": its tiles overlap and fade into each other; and a
            codec is "internal": it tiles itself, is given the whole, and the model is a `TilesItself`.
        halo_px: the margin of exact tiles, in image pixels; else 0. A codec's counts for encoder and decoder together.
        bytes_per_px: working memory at its peak for one image pixel of a tile, weights left out.
    """

    tiling: Tiling
    halo_px: int
    bytes_per_px: int


@dataclass(frozen=True)
class RestorerInfo:
    """What is known of a model without running it.

    Attributes:
        name: preset name or folder, as the user gave it.
        family: its name, for people; code asks `families.family_of`.
        scale: the enlargement it was trained for; the default of `--scale`.
        mid_timestep: index into the schedule at which the one step is taken.
        multiple_of_px: image heights and widths given to `encode` are multiples of this.
        native_tile_px: side of the square image that the step was trained at; tiles of the step have it.
        latent_px: image pixels per latent element, on each side (8 for AutoencoderKL, 4 for tiny).
        codec: how encoder and decoder are tiled.
        step: how the diffusion step is tiled. Where both are exact, a tile with the margin of both goes through all.
        border_px: pixels by which an image is extended on every side by reflection and cropped again.
        color_fix: the colour fix that suits the model: "adain", "wavelet" or "none".
        prompt: the text that the model is conditioned on, or None where it takes none.
        parameters: number of weights.
        files: the folders that it is read from; none for a model that was made otherwise.
        input: what `encode` takes: the image "upscaled" to the size that it is restored at, or "lq", the image at its
            own size, which `restore` enlarges by `scale`. Tiles are then counted in pixels of the low-quality image.
    """

    name: str
    family: str
    scale: float
    mid_timestep: int
    multiple_of_px: int
    native_tile_px: int
    latent_px: int
    codec: StageInfo
    step: StageInfo
    border_px: int
    color_fix: ColorFix
    prompt: str | None
    parameters: int
    files: tuple[Path, ...] = ()
    input: Literal["upscaled", "lq"] = "upscaled"

    @property
    def factor(self) -> int:
        """By how much the restored image is larger than the one that `encode` takes."""
        return round(self.scale) if self.input == "lq" else 1


@runtime_checkable
class Restorer(Protocol):
    """One-step restoration: clean = decode(restore(encode(lq))).

    Every tensor is on `device`. Methods run under `torch.inference_mode` by the caller's choice: none of them
    disables gradients, so that training uses the same code.
    """

    info: RestorerInfo
    schedule: Schedule
    device: torch.device
    precision: str
    notes: tuple[str, ...]
    in_fp32: Callable[[], Restorer] | None
    """Loads the same model in float32, once; None where it is float32, or where the user chose its number format."""

    def compile(self) -> None:
        """Compile the networks in place: slow at the first image of a size, faster from then on."""
        ...

    def encode(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Map an upscaled low-quality image to its latent.

        Args:
            image: (B, 3, H, W) float32, sRGB in [-1, 1]; H and W multiples of `info.multiple_of_px`.
            generator: samples the posterior where the family has one; None takes its mean.
        Returns:
            lq_latent, (B, C, H/latent_px, W/latent_px), scaled as the schedule expects.
        """
        ...

    def restore(self, lq_latent: Tensor) -> Tensor:
        """Take the one step at the mid-timestep.

        Args:
            lq_latent: (B, C, h, w) from `encode`.
        Returns:
            clean_latent, same shape and dtype; not clamped.
        """
        ...

    def decode(self, latent: Tensor) -> Tensor:
        """Map a latent back to an image.

        Args:
            latent: (B, C, h, w), scaled as `encode` gives it.
        Returns:
            (B, 3, h*latent_px, w*latent_px) float32, nominally in [-1, 1]; not clamped.
        """
        ...


class Described:
    """Gives a loaded model a `repr` with its name, family, device and precision."""

    info: RestorerInfo
    device: torch.device
    precision: str

    def __repr__(self) -> str:
        kind, info = type(self).__name__, self.info
        device, precision = str(self.device), self.precision
        return f"{kind}(name={info.name!r}, family={info.family!r}, {device=}, {precision=})"


class ImageRows(Protocol):
    """An image of which any rows can be read.

    Attributes:
        size_px: height and width.
    """

    size_px: tuple[int, int]

    def read(self, top: int, bottom: int) -> Tensor:
        """Rows top to bottom, (1, 3, bottom - top, W) float32 on the model's device, sRGB in [-1, 1]."""
        ...


class Workspace:
    """How much memory may be used, and what of it is.

    Args:
        memory_bytes: on the device, for the strip in work and for whole layers together; input and result left out.
        device: where strips are computed.
        host_bytes: of the host's memory for whole layers that do not fit on another device; on a CPU without meaning.
        folder: for what fits in neither, in files that vanish with the workspace; None takes the system's own.
        on_short: called once, when less memory was free than expected and strips became smaller.
    """

    def __init__(
        self,
        memory_bytes: int,
        device: torch.device,
        *,
        host_bytes: int = 0,
        folder: Path | None = None,
        on_short: Callable[[], None] | None = None,
    ) -> None:
        self.device = device
        self.memory_bytes = memory_bytes
        self.folder = folder
        self.strip_bytes = int(memory_bytes * _STRIP_SHARE)
        self._free = {device: memory_bytes - self.strip_bytes}
        if device.type != "cpu":
            self._free[torch.device("cpu")] = host_bytes
        self._on_short = on_short

    def shrink(self) -> None:
        """Halve the strips and put nothing more on the device, which ran out of memory."""
        self.strip_bytes //= 2
        self._free[self.device] = min(0, self._free[self.device])
        if self._on_short:
            self._on_short()
            self._on_short = None

    def reserve(self, size: int) -> torch.device | None:
        """Take bytes where there are some left, the device first; None means a file."""
        for place, free in self._free.items():
            if size <= free:
                self._free[place] -= size
                return place
        return None

    def give_back(self, size: int, place: torch.device) -> None:
        """Return what was reserved."""
        self._free[place] += size


@runtime_checkable
class TilesItself(Protocol):
    """What a `Restorer` adds whose codec is tiled by itself ("internal")."""

    def encode_within(self, image: ImageRows, workspace: Workspace, generator: torch.Generator | None = None) -> Tensor:
        """As `Restorer.encode` of one image, in no more memory than the workspace has."""
        ...

    def decode_within(self, latent: Tensor, workspace: Workspace) -> Iterator[Tensor]:
        """As `Restorer.decode` of one latent, in no more memory than the workspace has.

        Yields:
            (1, 3, n, W) of any device, from the first rows to the last.
        """
        ...


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
        """Map an upscaled low-quality image to its latent, as the restorer does.

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
            timesteps: (B,) int64 on the CPU, each in 0..999: how noisy each of them is.
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


@dataclass(frozen=True)
class ImageEncoder:
    """Images to latents, as the pre-trained model's own (frozen) encoder makes them.

    Attributes:
        name: as the user gave it.
        encode: (B, 3, H, W) float32 on `device`, sRGB in [-1, 1], to (B, C, h, w), scaled as the schedule expects;
            the posterior's mean where there is one.
        schedule: of the pre-trained model.
        multiple_of_px: heights and widths are multiples of it.
        device: where it runs.
        files: the files and folders that it is read from; none for one that was made otherwise.
        notes: about values that are measured with it, for people.
    """

    name: str
    encode: Callable[[Tensor], Tensor]
    schedule: Schedule
    multiple_of_px: int
    device: torch.device
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
