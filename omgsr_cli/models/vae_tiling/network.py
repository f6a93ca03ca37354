"""Traverses diffusers' AutoencoderKL and converts its modules to fields, layer by layer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from omgsr_cli.errors import ModelError
from omgsr_cli.models.base import ImageRows, Workspace
from omgsr_cli.models.vae_tiling.attention import Attended
from omgsr_cli.models.vae_tiling.fields import Added, Convolved, Field, InputRows, Normalised, store, strips
from omgsr_cli.models.vae_tiling.storage import StoredRows

if TYPE_CHECKING:
    from diffusers.models.attention_processor import Attention
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.resnet import ResnetBlock2D

_KNOWN = {
    "Encoder",
    "Decoder",
    "DownEncoderBlock2D",
    "UpDecoderBlock2D",
    "UNetMidBlock2D",
    "ResnetBlock2D",
    "Attention",
    "Downsample2D",
    "Upsample2D",
}
"""The supported classes of diffusers; all other modules must be torch's own."""


def check_tiling(vae: AutoencoderKL) -> None:
    """Check that this module supports every part of a VAE.

    Raises:
        ModelError: a part is not supported.
    """
    for part in (vae.encoder, vae.decoder):
        for name, module in part.named_modules():
            kind = type(module)
            if not (kind.__module__.startswith("torch.nn.") or kind.__name__ in _KNOWN):
                raise ModelError(f"the VAE has a part that cannot be tiled: {name}, {kind.__name__}")


def encode_in_strips(vae: AutoencoderKL, image: ImageRows, workspace: Workspace) -> Tensor:
    """Compute the moments of the posterior, like `vae.encode` before it creates the distribution.

    Args:
        vae: VAE of SD or FLUX, with its adapter merged.
        image: sRGB in [-1, 1], of any size.
        workspace: limits the memory.
    Returns:
        (1, 2 C, H/8, W/8) in the VAE's number format on the workspace's device: mean, then logarithm of variance.
    Raises:
        ModelError: a part of the VAE is not supported, such as an adapter's layer.
    """
    check_tiling(vae)
    field = _encoder(vae.encoder, InputRows(image.read, (3, *image.size_px), workspace.device, vae.dtype), workspace)
    if vae.quant_conv is not None:
        field = Convolved(field, vae.quant_conv)
    return torch.cat(list(strips(field, workspace)), dim=2)


def decode_in_strips(vae: AutoencoderKL, latent: Tensor, workspace: Workspace) -> Iterator[Tensor]:
    """Decode a latent to the same image as `vae.decode`, from its first rows to its last.

    Args:
        vae: VAE of SD or FLUX, with its adapter merged.
        latent: (1, C, h, w) float, not scaled, on any device.
        workspace: limits the memory.
    Yields:
        (1, 3, rows, 8 w) in the VAE's number format on the workspace's device.
    """
    check_tiling(vae)
    read = lambda top, bottom: latent[:, :, top:bottom]  # noqa: E731 - shorter than its name
    field: Field = InputRows(read, latent.shape[1:], workspace.device, vae.dtype)
    if vae.post_quant_conv is not None:
        field = Convolved(field, vae.post_quant_conv)
    yield from strips(_decoder(vae.decoder, field, workspace), workspace)


# The next three functions take `Any`: torch's type hints have no attributes of submodules.
def _encoder(encoder: Any, field: Field, workspace: Workspace) -> Field:
    rows = store(Convolved(field, encoder.conv_in), workspace)
    for block in encoder.down_blocks:
        for resnet in block.resnets:
            rows = _resnet(resnet, rows, workspace)
        for down in block.downsamplers or ():
            rows = store(Convolved(rows, down.conv, pad_end_only=down.padding == 0), workspace)
    rows = _middle(encoder.mid_block, rows, workspace)
    return Convolved(Normalised(rows, encoder.conv_norm_out, encoder.conv_act), encoder.conv_out)


def _decoder(decoder: Any, field: Field, workspace: Workspace) -> Field:
    rows = _middle(decoder.mid_block, store(Convolved(field, decoder.conv_in), workspace), workspace)
    for block in decoder.up_blocks:
        for resnet in block.resnets:
            rows = _resnet(resnet, rows, workspace)
        for up in block.upsamplers or ():
            rows = store(Convolved(rows, up.conv, enlarge=2), workspace)
    return Convolved(Normalised(rows, decoder.conv_norm_out, decoder.conv_act), decoder.conv_out)


def _middle(block: Any, rows: StoredRows, workspace: Workspace) -> StoredRows:
    first, *others = block.resnets
    rows = _resnet(first, rows, workspace)
    for attention, resnet in zip(block.attentions, others, strict=True):
        if attention is not None:
            rows = _attention(attention, rows, workspace)
        rows = _resnet(resnet, rows, workspace)
    return rows


def _attention(attention: Attention, rows: StoredRows, workspace: Workspace) -> StoredRows:
    return store(Attended(rows, attention, workspace), workspace)


def _resnet(resnet: ResnetBlock2D, rows: StoredRows, workspace: Workspace) -> StoredRows:
    """shortcut(x) + conv2(act(norm2(conv1(act(norm1(x)))))), without the time embedding of a UNet's blocks."""
    act = resnet.nonlinearity
    between = store(Convolved(Normalised(rows, resnet.norm1, act, hold=True), resnet.conv1), workspace)
    shortcut: Field = rows if resnet.conv_shortcut is None else Convolved(rows, resnet.conv_shortcut)
    sum_ = Added(shortcut, Convolved(Normalised(between, resnet.norm2, act), resnet.conv2), resnet.output_scale_factor)
    return store(sum_, workspace)
