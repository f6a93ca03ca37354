"""The interfaces of all model families: `Restorer`, `Trainable` and `ImageEncoder`."""

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
"""Share of the working memory for the current strip; the rest stores layers."""


@dataclass(frozen=True)
class StageInfo:
    """How one stage of a model runs on tiles, and how much memory it needs.

    Attributes:
        tiling: "exact" if a tile with a margin gives the same result as the whole image. If every pixel depends on all
            others (attention, group norm), a step is "blended": its tiles overlap and fade into each other. A codec of
            that kind is "internal": it gets the whole image and tiles it itself, and the model is a `TilesItself`.
        halo_px: margin of exact tiles in image pixels, otherwise 0; for a codec, of encoder and decoder together.
        bytes_per_px: peak working memory per image pixel of a tile, without weights.
    """

    tiling: Tiling
    halo_px: int
    bytes_per_px: int


@dataclass(frozen=True)
class RestorerInfo:
    """The properties of a model.

    Attributes:
        name: preset name or folder, as the user gave it.
        family: name of the family, for messages only; code uses `families.family_of`.
        scale: magnification that it was trained for, the default of `--scale`.
        mid_timestep: index into the schedule for the single step.
        multiple_of_px: image heights and widths for `encode` must be multiples of this.
        native_tile_px: side of the square images that the step was trained at, and of its tiles.
        latent_px: image pixels per latent element, on each side (8 for AutoencoderKL, 4 for tiny).
        codec: tiling of encoder and decoder.
        step: tiling of the diffusion step. If both are exact, all stages run on one tile with the margins of both.
        border_px: pixels by which an image is extended on every side by reflection, and cropped afterwards.
        color_fix: the model's default colour fix: "adain", "wavelet" or "none".
        prompt: text that the model is conditioned on, or None if it does not use one.
        parameters: number of weights.
        bytes_per_weight: mean of quantised ones; None for those of the number format.
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
    bytes_per_weight: float | None = None

    @property
    def factor(self) -> int:
        """By how much the restored image is larger than the one that `encode` takes."""
        return round(self.scale) if self.input == "lq" else 1

    def weight_bytes(self, element_bytes: int) -> int:
        """Memory of all weights, where those that are not quantised have so many bytes."""
        return int(self.parameters * (self.bytes_per_weight or element_bytes))


@runtime_checkable
class Restorer(Protocol):
    """One-step restoration: clean = decode(restore(encode(lq))).

    Every tensor is on `device`. The methods do not disable gradients, so training can use them too; other callers use
    `torch.inference_mode`.
    """

    info: RestorerInfo
    schedule: Schedule
    device: torch.device
    precision: str
    notes: tuple[str, ...] = ()
    in_fp32: Callable[[], Restorer] | None = None
    """Loads the same model in float32, once; None if it is float32 already, or if the user chose the precision."""

    def compile(self) -> None:
        """Compile the networks in place; the first image of each size is slow, later ones are faster."""
        ...

    def encode(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Map an upscaled low-quality image to its latent.

        Args:
            image: (B, 3, H, W) float32, sRGB in [-1, 1]; H and W multiples of `info.multiple_of_px`.
            generator: samples the posterior, if the family has one; None uses its mean.
        Returns:
            lq_latent, (B, C, H/latent_px, W/latent_px), scaled as the schedule expects.
        """
        ...

    def restore(self, lq_latent: Tensor) -> Tensor:
        """Take the single step at the mid-timestep.

        Args:
            lq_latent: (B, C, h, w) from `encode`.
        Returns:
            clean_latent, same shape and dtype; not clamped.
        """
        ...

    def decode(self, latent: Tensor) -> Tensor:
        """Map a latent back to an image.

        Args:
            latent: (B, C, h, w), scaled as by `encode`.
        Returns:
            (B, 3, h*latent_px, w*latent_px) float32, nominally in [-1, 1]; not clamped.
        """
        ...

    def __repr__(self) -> str:
        kind, info, device = type(self).__name__, self.info, str(self.device)
        return f"{kind}(name={info.name!r}, family={info.family!r}, {device=}, precision={self.precision!r})"


class ImageRows(Protocol):
    """An image whose rows can be read in any order.

    Attributes:
        size_px: height and width.
    """

    size_px: tuple[int, int]

    def read(self, top: int, bottom: int) -> Tensor:
        """Rows top to bottom, (1, 3, bottom - top, W) float32 on the model's device, sRGB in [-1, 1]."""
        ...


class Workspace:
    """The memory that may be used, and what is used of it.

    Args:
        memory_bytes: bytes on the device for the current strip and for whole layers, without input and result.
        device: device that computes the strips.
        host_bytes: bytes of host memory for whole layers that do not fit on another device; unused for a CPU.
        folder: folder for layers that fit in neither, in files that are deleted with the workspace; None uses the
            system's temporary folder.
        on_short: called once if less memory was free than expected and the strips became smaller.
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
        """Halve the strips and store nothing more on the device, which ran out of memory."""
        self.strip_bytes //= 2
        self._free[self.device] = min(0, self._free[self.device])
        if self._on_short:
            self._on_short()
            self._on_short = None

    def reserve(self, size: int) -> torch.device | None:
        """Reserve bytes on the device, or else on the host; None means that a file must be used."""
        for place, free in self._free.items():
            if size <= free:
                self._free[place] -= size
                return place
        return None

    def give_back(self, size: int, place: torch.device) -> None:
        """Release reserved bytes."""
        self._free[place] += size


@runtime_checkable
class TilesItself(Protocol):
    """The additional methods of a `Restorer` whose codec tiles images itself ("internal")."""

    def encode_within(self, image: ImageRows, workspace: Workspace, generator: torch.Generator | None = None) -> Tensor:
        """Like `Restorer.encode` for one image, within the memory of the workspace."""
        ...

    def decode_within(self, latent: Tensor, workspace: Workspace) -> Iterator[Tensor]:
        """Like `Restorer.decode` for one latent, within the memory of the workspace.

        Yields:
            (1, 3, n, W) on any device, from top to bottom.
        """
        ...


@runtime_checkable
class Trainable(Protocol):
    """A restorer whose weights or adapters are trained.

    Attributes:
        restorer: the model that users run; its `restore` and `decode` support gradients, but training uses `encode`
            below.
        networks: all networks, trained or frozen, in one module.
    """

    restorer: Restorer
    networks: nn.Module

    def trained(self) -> dict[str, nn.Parameter]:
        """The trained weights, float32, by names that do not change between runs."""
        ...

    def encode(self, image: Tensor, draws: Sequence[torch.Generator]) -> Tensor:
        """Map an upscaled low-quality image to its latent, as the restorer does.

        Args:
            image: (B, 3, H, W) float32, sRGB in [-1, 1].
            draws: one generator per sample, for the posterior, if the family has one.
        Returns:
            (B, C, h, w) float32, with gradients for the weights of the encoder.
        """
        ...

    def encode_clean(self, image: Tensor, draws: Sequence[torch.Generator]) -> Tensor:
        """Map a clean image to its latent with the frozen encoder of the pre-trained model.

        Args: as for `encode`.
        Returns:
            (B, C, h, w) float32 without gradients.
        """
        ...

    def denoise(self, noisy_latent: Tensor, timesteps: Tensor) -> Tensor:
        """Recover clean latents from noisy ones with the network that takes the step, for pre-training.

        Args:
            noisy_latent: (B, C, h, w) float32.
            timesteps: (B,) int64 on the CPU, each in 0..999: how noisy each of them is.
        Returns:
            clean_latent, same shape and dtype, with gradients for the weights of this network.
        """
        ...

    def checkpoint_gradients(self) -> None:
        """Recompute activations in the backward pass instead of storing them, if the family supports it."""
        ...

    def share_backbone(self, share: Callable[[nn.Module], None], device: torch.device) -> None:
        """Shard the frozen weights of the network that takes the step among processes, and move everything else.

        Args:
            share: changes a network in place so that each process keeps a share of its frozen weights on its device.
            device: device for everything else.
        Raises:
            ModelError: the family has no frozen weights.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write the current weights into a folder that `omgsr upscale` can read, with `omgsr.json`."""
        ...

    def load(self, folder: Path) -> None:
        """Load weights in place that `save` or the published code wrote.

        Raises:
            ModelError: they do not match the networks.
        """
        ...


@dataclass(frozen=True)
class ImageEncoder:
    """The frozen encoder of a pre-trained model, and its schedule.

    Attributes:
        name: name as the user gave it.
        encode: maps (B, 3, H, W) float32 on `device`, sRGB in [-1, 1], to (B, C, h, w), scaled as the schedule expects;
            the posterior's mean, if there is one. With `has_posterior` it also takes a list of CPU generators, one
            for each image, and samples.
        schedule: schedule of the pre-trained model.
        multiple_of_px: heights and widths must be multiples of it.
        device: device of the encoder.
        files: its files and folders; empty for an encoder that was not loaded from files.
        notes: notes for the user about values that are measured with it.
        has_posterior: whether an image has many latents.
    """

    name: str
    encode: Callable[..., Tensor]
    schedule: Schedule
    multiple_of_px: int
    device: torch.device
    files: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()
    has_posterior: bool = False
