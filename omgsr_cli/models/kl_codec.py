"""Encoder and decoder of the families that have diffusers' AutoencoderKL: whole, or in strips within a bound."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from omgsr_cli.errors import ModelError, ShapeError
from omgsr_cli.models.base import ImageRows
from omgsr_cli.models.devices import is_out_of_memory
from omgsr_cli.models.vae_tiling import Workspace, check_tiling, decode_in_strips, encode_in_strips

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

_BYTES_PER_CHANNEL = 20
"""Five float32 tensors of the decoder's widest level at full size; with SD's 256 channels 4.1 to 4.7 kB a pixel were
measured, less in bf16."""


def check_vae_config(config: Mapping[str, Any], where: object) -> None:
    """Check that a VAE's configuration scales latents by numbers, in the way that is known here, and has RGB images.

    Args:
        config: of an AutoencoderKL or AutoencoderTiny, as diffusers writes it.
        where: what to call it in the error.
    Raises:
        ModelError: names the first wrong value.
    """
    levels = config.get("block_out_channels", config.get("encoder_block_out_channels", ()))
    if not (isinstance(levels, list | tuple) and levels and all(type(each) is int and each > 0 for each in levels)):
        raise ModelError(f"{where}: block_out_channels is {levels!r}, not a list of channels")
    factor, shift = config.get("scaling_factor", 1.0), config.get("shift_factor")
    if not _is_number(factor) or factor <= 0:
        raise ModelError(
            f"{where}: scaling_factor is {factor!r}, not a number above 0", "Stable Diffusion's is 0.18215"
        )
    if shift is not None and not _is_number(shift):
        raise ModelError(f"{where}: shift_factor is {shift!r}, not a number")
    for key in ("latents_mean", "latents_std"):
        if config.get(key) is not None:
            raise ModelError(
                f"{where}: {key} is not supported", "give a VAE with scaling_factor and shift_factor alone"
            )
    for key in ("in_channels", "out_channels"):
        if config.get(key, 3) != 3:
            raise ModelError(f"{where}: {key} is {config[key]!r}, and images have 3")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_MOST_WHOLE_PX_ON_MPS = 1200 * 1200
"""Above it the VAE runs in strips on MPS: there the attention holds all products in one buffer, (area / 64)^2 of them,
and a buffer of more than 2^32 bytes aborts the process."""


def latent_px_of(vae_config: Mapping[str, Any]) -> int:
    """Image pixels per latent element: the VAE halves the size after each of its levels but the last."""
    return int(2 ** (len(vae_config["block_out_channels"]) - 1))


def bytes_per_px_of(vae_config: Mapping[str, Any]) -> int:
    """Working memory for one pixel of a picture that goes through in one piece."""
    return _BYTES_PER_CHANNEL * int(max(vae_config["block_out_channels"][:2]))


class KlCodec:
    """Images to scaled latents and back.

    latent = (posterior - shift_factor) * scaling_factor
    Source: LDM, arXiv:2112.10752, appendix G; the shift came with FLUX.

    Args:
        vae: on its device, in the number format that it computes in.
    Raises:
        ModelError: it has a part that cannot be run in strips.
    """

    def __init__(self, vae: AutoencoderKL) -> None:
        check_tiling(vae)
        self.vae = vae
        self.latent_px = latent_px_of(vae.config)
        self._bytes_per_px = bytes_per_px_of(vae.config)
        self._factor = float(vae.config["scaling_factor"])
        self._shift = float(vae.config["shift_factor"] or 0.0)

    def encode(self, image: Tensor, generator: torch.Generator | list[torch.Generator] | None = None) -> Tensor:
        """Map images to latents, with gradients.

        Args:
            image: (B, 3, H, W) float, sRGB in [-1, 1].
            generator: samples the posterior, on its own device or the CPU; a list has one for each image; None takes
                the mean.
        Returns:
            (B, C, H/8, W/8) float32 on the VAE's device.
        Raises:
            ShapeError: not (B, 3, H, W) or not multiples.
        """
        if image.ndim != 4 or image.shape[1] != 3 or image.shape[2] % self.latent_px or image.shape[3] % self.latent_px:
            raise ShapeError(f"image {tuple(image.shape)} is not (B, 3, H, W) with multiples of {self.latent_px}")
        return self._latent(self.vae.encode(image.to(self.vae.device, self.vae.dtype)).latent_dist, generator)

    def encode_within(self, image: ImageRows, workspace: Workspace, generator: torch.Generator | None = None) -> Tensor:
        """As `encode` of one image, in strips where the whole does not fit."""
        (height, width), latent = image.size_px, None
        with self._perhaps_whole(height * width, workspace) as fits:
            if fits:
                latent = self.encode(image.read(0, height), generator)
        if latent is not None:
            return latent
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

        return self._latent(DiagonalGaussianDistribution(encode_in_strips(self.vae, image, workspace)), generator)

    def decode(self, latent: Tensor) -> Tensor:
        """Map latents to images, with gradients.

        Args:
            latent: (B, C, h, w) float, scaled as `encode` gives it.
        Returns:
            (B, 3, 8h, 8w) float32 on the VAE's device, nominally in [-1, 1], not clamped.
        """
        picture: Tensor = self.vae.decode(self._unscaled(latent).to(self.vae.dtype)).sample
        return picture.float()

    def decode_within(self, latent: Tensor, workspace: Workspace) -> Iterator[Tensor]:
        """As `decode` of one latent, in strips where the whole does not fit.

        Yields:
            (1, 3, n, 8w) float on the VAE's device, from the first rows to the last.
        """
        picture = None
        with self._perhaps_whole(latent.shape[2] * latent.shape[3] * self.latent_px**2, workspace) as fits:
            if fits:
                picture = self.decode(latent)
        if picture is not None:
            yield picture
        else:
            yield from decode_in_strips(self.vae, self._unscaled(latent), workspace)

    def _latent(self, posterior: Any, generator: torch.Generator | list[torch.Generator] | None) -> Tensor:
        latent: Tensor = posterior.mean if generator is None else posterior.sample(generator)
        return (latent.float() - self._shift) * self._factor

    def _unscaled(self, latent: Tensor) -> Tensor:
        return latent.float() / self._factor + self._shift

    @contextmanager
    def _perhaps_whole(self, area_px: int, workspace: Workspace) -> Iterator[bool]:
        """Whether a picture is expected to fit in one piece; where it does not after all, the strips are told so."""
        try:
            fits = area_px * self._bytes_per_px <= workspace.memory_bytes
            yield fits and not (self.vae.device.type == "mps" and area_px > _MOST_WHOLE_PX_ON_MPS)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            workspace.shrink()
