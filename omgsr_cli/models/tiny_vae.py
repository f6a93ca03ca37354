"""The decoder of an AutoencoderTiny (TAESD) in the place of a VAE's: about a tenth of the work, and coarser.

Source: TAESD, github.com/madebyollin/taesd; the networks are diffusers' own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from omgsr_cli.errors import ModelError, reason_of
from omgsr_cli.geometry import Size, plan_halo_tiles
from omgsr_cli.models.kl_codec import check_vae_config
from omgsr_cli.models.libraries import explained_imports, quiet_libraries
from omgsr_cli.models.record import read_json
from omgsr_cli.models.weight_files import NETWORK_STEM, check_finite
from omgsr_cli.tiling import run_exact

if TYPE_CHECKING:
    from diffusers.models.autoencoders.vae import DecoderTiny

    from omgsr_cli.models.vae_tiling import Workspace

# TAESD's decoder as published: residual blocks for each level, all 64 wide, and eight times the size.
_BLOCKS, _WIDTH = (3, 3, 3, 1), 64
# Float32 tensors of one level that are alive at the peak, and room to work in.
_TENSORS = 6
_MIN_TILE = 16


class TinyDecoder:
    """Decodes scaled latents, as the UNet gives them, in tiles with a margin: it has no norm and no attention.

    Args:
        network: of diffusers, on its device, in the number format that it computes in.
    """

    def __init__(self, network: DecoderTiny) -> None:
        self.network = network
        self.reach, self.latent_px, width = _reach(network)
        self._bytes_per_element = _TENSORS * 4 * width * self.latent_px**2

    def decode(self, latent: Tensor) -> Tensor:
        """Map (B, C, h, w) float, scaled, to (B, 3, 8h, 8w) float32, nominally in [-1, 1]."""
        weight = next(self.network.parameters())
        picture: Tensor = self.network(latent.to(weight.device, weight.dtype))
        return picture.float()

    def decode_within(self, latent: Tensor, workspace: Workspace) -> Iterator[Tensor]:
        """As `decode` of one latent, in tiles that the workspace has room for: the same pixels.

        Yields:
            (1, 3, n, 8w) float32, from the first rows to the last.
        """
        fitting = math.isqrt(max(workspace.memory_bytes, 0) // self._bytes_per_element) - 2 * self.reach
        size = Size(*latent.shape[-2:])
        side = min(max(fitting, _MIN_TILE), max(size))
        return run_exact(
            self.decode,
            lambda top, bottom: latent[:, :, top:bottom],
            plan_halo_tiles(size, (side, side), self.reach, 1),
        )


def load_tiny_decoder(path: Path, channels: int, device: torch.device, dtype: torch.dtype) -> TinyDecoder:
    """Read the decoder of what `find_tiny_vae` found.

    Args:
        path: folder or file.
        channels: of the latents that it is to decode.
        device, dtype: where and in which number format it computes.
    Raises:
        ModelError: its weights cannot be read or do not fit, or its latents have other channels.
    """
    file = path if path.is_file() else path / f"{NETWORK_STEM}.safetensors"
    config = {} if path.is_file() else read_json(path / "config.json")
    with quiet_libraries(), explained_imports():
        from diffusers.models.autoencoders.vae import DecoderTiny
    check_vae_config({"block_out_channels": [_WIDTH]} | config, path)
    if config.get("scaling_factor", 1.0) != 1.0 or config.get("shift_factor"):
        raise ModelError(f"{path} scales its latents in a way of its own", "give a TAESD, whose scaling_factor is 1")
    own = int(config.get("latent_channels", channels))
    if own != channels:
        raise ModelError(f"{path} decodes latents of {own} channels, the model has {channels}", "give its own kind's")
    try:
        blocks = tuple(config.get("num_decoder_blocks", _BLOCKS))
        with torch.device("meta"):
            network = DecoderTiny(
                channels,
                3,
                blocks,
                tuple(config.get("decoder_block_out_channels", (_WIDTH,) * len(blocks))),
                int(config.get("upsampling_scaling_factor", 2)),
                str(config.get("act_fn", "relu")),
                str(config.get("upsample_fn", "nearest")),
            )
        weights = load_file(file)
        check_finite(weights.items(), file)
        network.load_state_dict(_decoder_weights(weights, dtype), assign=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, TypeError) as error:
        reason = reason_of(error)
        raise ModelError(f"{path} is not the decoder of an AutoencoderTiny: {reason}") from error
    return TinyDecoder(network.requires_grad_(False).eval().to(device))


def _decoder_weights(weights: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights by diffusers' names; the published file counts a clamp before the first layer, which has none."""
    if any(name.startswith("decoder.") for name in weights):
        named = {name.removeprefix("decoder."): value for name, value in weights.items() if name.startswith("decoder.")}
    else:
        parts = (name.partition(".") for name in weights)
        named = {f"layers.{int(number) - 1}.{rest}": weights[f"{number}.{rest}"] for number, _, rest in parts}
    return {name: value.to(dtype) for name, value in named.items()}


def _reach(network: Any) -> tuple[int, int, int]:
    """How far a latent element is seen, in latent elements; how many pixels it becomes; the widest layer."""
    reach, scale, width = 0.0, 1, 1
    for module in network.layers.modules():
        if isinstance(module, nn.Conv2d):
            reach += (module.kernel_size[0] // 2) / scale
            width = max(width, module.out_channels)
        elif isinstance(module, nn.Upsample):
            scale *= int(module.scale_factor)  # type: ignore[arg-type]  # one number for both sides here
    # A convolution after an enlargement may see one element of the smaller grid more than its share of it.
    return math.ceil(reach) + 1, scale, width
