"""Restoration networks of other projects, which spandrel loads: they map a low-quality image to a restored image.

Their input is not upscaled first, and they take no diffusion step. Their weight files do not declare the receptive
field, so the margin that makes tiles exact is measured once for each file and cached.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from omgsr_cli.errors import ModelError, reason_of
from omgsr_cli.files.remembered import Remembered
from omgsr_cli.models.base import Restorer, RestorerInfo, StageInfo
from omgsr_cli.models.devices import PRECISIONS
from omgsr_cli.models.family import ModelSource
from omgsr_cli.models.libraries import explain_broken_torchvision
from omgsr_cli.models.weight_files import find_weight_file
from omgsr_cli.packages import install_command
from omgsr_cli.schedules import DdpmSchedule, Schedule

#: Margins to try for exact tiles, in pixels of the low-quality image. If none is enough, tiles are blended.
MARGINS_PX = (16, 32, 64)

# The largest difference allowed for exact tiles: half of an 8-bit level.
_TOLERANCE = 0.5 / 255
# Side of the compared square, and the distance by which the test image extends beyond the largest margin.
_CORE_PX, _BEYOND_PX = 24, 16
# Side of blended tiles, in pixels of the low-quality image.
_BLENDED_TILE_PX = 256
# Memory of simultaneously stored layers, as a multiple of the largest: two layers and the residual of a block.
_LIVE_LAYERS = 3


class NetworkRestorer(Restorer):
    """A network as a `Restorer`. Encoder and decoder only change the range; every seed gives the same result."""

    def __init__(
        self, network: Any, info: RestorerInfo, device: torch.device, precision: str, notes: tuple[str, ...] = ()
    ) -> None:
        self._network = network
        self.info = info
        self.schedule: Schedule = DdpmSchedule()
        self.device = device
        self.precision = precision
        self.notes = notes

    def compile(self) -> None:
        """Compile the network in place."""
        self._network.model.compile()

    def encode(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Map the low-quality image at its own size, (B, 3, h, w) in [-1, 1], to [0, 1]."""
        return image.mul(0.5).add_(0.5)

    def restore(self, lq_latent: Tensor) -> Tensor:
        """Run the network: map (B, 3, h, w) in [0, 1] to (B, 3, scale*h, scale*w) float32; not clamped."""
        return run_network(self._network, lq_latent.to(PRECISIONS[self.precision]))

    def decode(self, latent: Tensor) -> Tensor:
        """Map [0, 1] to [-1, 1]."""
        return latent.float().mul(2).sub_(1)


def run_network(network: Any, image: Tensor) -> Tensor:
    """Run a network on a colour image; a network for grey images receives the three channels as three images.

    Args:
        network: spandrel's descriptor, which pads to the sizes that the network supports and crops the result.
        image: (B, 3, h, w) in [0, 1].
    Returns:
        (B, 3, scale*h, scale*w) float32.
    """
    if network.input_channels == 3:
        return network(image).float()  # type: ignore[no-any-return]  # spandrel is not typed here
    batch, channels, height, width = image.shape
    restored = network(image.reshape(batch * channels, 1, height, width))
    return restored.float().reshape(batch, channels, *restored.shape[-2:])  # type: ignore[no-any-return]  # as above


def load_network(source: ModelSource, device: torch.device, precision: str) -> NetworkRestorer:
    """Load a network, in fp32 with a note if it does not support the precision; errors as for `read_network`."""
    network = read_network(find_weight_file(source.folder))
    allowed = {"fp32": True, "bf16": network.supports_bfloat16, "fp16": network.supports_half}[precision]
    notes = source.notes
    if not allowed:
        notes = (*notes, f"{network.architecture.name} does not support {precision}: it runs in fp32")
        precision = "fp32"
    info = describe_network(source)
    network.to(device, PRECISIONS[precision]).eval()
    network.model.requires_grad_(False).to(memory_format=torch.channels_last)
    return NetworkRestorer(network, info, device, precision, notes)


def describe_network(source: ModelSource) -> RestorerInfo:
    """Describe a network from its weights and from measurements, which are cached; errors as for `read_network`."""
    traits = _traits_of(find_weight_file(source.folder))
    step = StageInfo("exact", traits.margin_px, traits.bytes_per_px)
    if traits.margin_px == 0:
        step = StageInfo("blended", 0, traits.bytes_per_px)
    return RestorerInfo(
        name=source.name,
        family="network",
        scale=float(traits.scale),
        mid_timestep=0,
        multiple_of_px=traits.multiple_px,
        native_tile_px=_BLENDED_TILE_PX if step.tiling == "blended" else 1,
        latent_px=1,
        codec=StageInfo("exact", 0, 0),
        step=step,
        border_px=0,
        color_fix="none",
        prompt=None,
        parameters=traits.parameters,
        input="lq",
    )


@dataclass(frozen=True)
class _Traits:
    """Properties of a file for `describe_network`; measured once and cached.

    Attributes:
        scale: integer scale of the result.
        multiple_px: sides of tiles must be multiples of it.
        margin_px: margin of exact tiles; 0 if none of `MARGINS_PX` is enough.
        bytes_per_px: working memory in float32 per pixel of the low-quality image.
        parameters: number of weights.
    """

    scale: int
    multiple_px: int
    margin_px: int
    bytes_per_px: int
    parameters: int


def _traits_of(path: Path) -> _Traits:
    with closing(Remembered()) as remembered:
        content = remembered.content(path)
        found = remembered.find(_KIND, content)
        if found is None:
            found = vars(_measure(path))
            remembered.keep(_KIND, content, found)
    return _Traits(**found)


#: Key of the cached measurements; change it together with the method of measurement.
_KIND = f"network 1, margins {MARGINS_PX}"


def _measure(path: Path) -> _Traits:
    network = read_network(path).eval()
    # A network that tiles itself, or should not be tiled according to its authors, is treated as having a global
    # receptive field.
    may_tile = network.tiling.name == "SUPPORTED"
    parameters = sum(weight.numel() for weight in network.model.parameters())
    multiple = int(network.size_requirements.multiple_of)
    margin = measure_margin(network, multiple) if may_tile else 0
    return _Traits(int(network.scale), multiple, margin, _measure_bytes_per_px(network, multiple), parameters)


@torch.inference_mode()
def measure_margin(network: Any, multiple_px: int) -> int:
    """Find the smallest margin with which a tile gives the same result as the complete image.

    The centre of an image with edges and noise is restored as part of the complete image, and as a tile with each
    margin. Networks with global layers (global pooling, attention over the image) do not match with any margin.

    Args:
        network: spandrel's descriptor, in float32.
        multiple_px: margins are multiples of it.
    Returns:
        The margin in pixels of the low-quality image, or 0 if the difference exceeds half of an 8-bit level with all
        `MARGINS_PX`.
    """
    side = -(-(_CORE_PX + 2 * (MARGINS_PX[-1] + _BEYOND_PX)) // (2 * multiple_px)) * 2 * multiple_px
    core = -(-_CORE_PX // (2 * multiple_px)) * 2 * multiple_px
    scale, start = int(network.scale), (side - core) // 2 // multiple_px * multiple_px
    device = next(network.model.parameters()).device
    image = _test_image(side).to(device)
    whole = run_network(network, image)[
        ..., start * scale : (start + core) * scale, start * scale : (start + core) * scale
    ]
    for margin in sorted({-(-each // multiple_px) * multiple_px for each in MARGINS_PX}):
        if margin > start:
            break
        part = slice(start - margin, start + core + margin)
        tile = run_network(network, image[..., part, part])
        inside = slice(margin * scale, (margin + core) * scale)
        if float((tile[..., inside, inside] - whole).abs().max()) <= _TOLERANCE:
            return margin
    return 0


def _test_image(side_px: int) -> Tensor:
    """A test image, (1, 3, side, side) in [0, 1]: smooth colour with hard edges and noise, always the same."""
    generator = torch.Generator().manual_seed(0)
    smooth = F.interpolate(torch.rand(1, 3, 6, 6, generator=generator), (side_px, side_px), mode="bicubic")
    blocks = F.interpolate(torch.rand(1, 3, 24, 24, generator=generator), (side_px, side_px), mode="nearest")
    noise = torch.randn(1, 3, side_px, side_px, generator=generator)
    return (0.5 * smooth + 0.5 * blocks + 0.06 * noise).clamp(0, 1)


@torch.inference_mode()
def _measure_bytes_per_px(network: Any, multiple_px: int) -> int:
    """Measure the working memory in float32 per pixel of the low-quality image, from the sizes of layer outputs."""
    side = -(-64 // multiple_px) * multiple_px
    device = next(network.model.parameters()).device
    sizes: list[int] = []
    hooks = [
        module.register_forward_hook(lambda _, given, made: sizes.extend(_bytes_of((given, made))))
        for module in network.model.modules()
    ]
    try:
        made = run_network(network, torch.rand(1, 3, side, side, device=device))
    finally:
        for hook in hooks:
            hook.remove()
    return -(-(_LIVE_LAYERS * max(sizes, default=0) + 2 * made.numel() * 4) // side**2)


def _bytes_of(values: object) -> Iterator[int]:
    if isinstance(values, Tensor):
        yield values.numel() * values.element_size()
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from _bytes_of(value)


def read_network(path: Path) -> Any:
    """Read a network that maps colour images or grey images to images of the same kind.

    Args:
        path: weight file; spandrel reads pickles without running code in them.
    Returns:
        spandrel's ImageModelDescriptor, on the CPU: (B, 3, H, W) or (B, 1, H, W) in [0, 1] to `scale` times that size.
    Raises:
        ModelError: spandrel is missing or does not support the file, or the network is of another kind.
    """
    spandrel = _import_spandrel(path)
    hint = "give a super-resolution or restoration model of an architecture that spandrel reads"
    try:
        found = spandrel.ModelLoader("cpu").load_from_file(path)
    except spandrel.UnsupportedModelError as error:
        raise ModelError(f"{path}: spandrel does not know its architecture", hint) from error
    except (RuntimeError, ValueError, KeyError, TypeError, EOFError, OSError) as error:
        raise ModelError(f"{path}: spandrel cannot read this file: {reason_of(error)}", hint) from error
    except UnpicklingError as error:
        if "forbidden" not in str(error):
            raise ModelError(f"{path}: corrupt, or not a weight file", "copy or download it again") from error
        hint = "do not trust the file; look for a safetensors version of the model"
        raise ModelError(f"{path}: this pickle wants to run code: {reason_of(error)}", hint) from error
    if not isinstance(found, spandrel.ImageModelDescriptor) or found.purpose == "FaceSR":
        raise ModelError(f"{path}: {found.architecture.name} restores only a part of an image", None)
    channels = (found.input_channels, found.output_channels)
    if channels not in ((3, 3), (1, 1)):
        raise ModelError(f"{path}: {found.architecture.name} maps {channels[0]} channels to {channels[1]}", None)
    return found


def _import_spandrel(path: Path) -> Any:
    try:
        return importlib.import_module("spandrel")
    except (ImportError, RuntimeError) as error:
        missing = getattr(error, "name", None)
        if missing in ("spandrel", "torchvision"):
            reason = f"{path.name}: {missing} is not installed, which reads such files"
            raise ModelError(reason, install_command("networks")) from error
        explanation = explain_broken_torchvision(error)
        if explanation is not None:
            raise ModelError(explanation.message, explanation.hint) from error
        raise ModelError(f"{path.name}: spandrel cannot be imported: {error}", install_command("networks")) from error
