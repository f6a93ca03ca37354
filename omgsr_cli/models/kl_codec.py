"""Encoder and decoder of the families that have diffusers' AutoencoderKL: whole, or in strips within a bound."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from omgsr_cli.errors import ShapeError
from omgsr_cli.models.devices import is_out_of_memory
from omgsr_cli.models.vae_tiling import Workspace, check_tiling, decode_in_strips, encode_in_strips

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

Result = TypeVar("Result")

_BYTES_PER_CHANNEL = 20
"""Five float32 tensors of the decoder's widest level at full size; with SD's 256 channels 4.1 to 4.7 kB a pixel were
measured, less in bf16."""


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

    def encode(
        self,
        image: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        workspace: Workspace | None = None,
    ) -> Tensor:
        """Map images to latents.

        Args:
            image: (B, 3, H, W) float, sRGB in [-1, 1]; one image where there is a workspace.
            generator: samples the posterior, on its own device; a list has one for each image; None takes the mean.
            workspace: bounds the memory; None runs it in one piece, with gradients.
        Returns:
            (B, C, H/8, W/8) float32 on the VAE's device.
        Raises:
            ShapeError: not (B, 3, H, W) or not multiples.
        """
        height, width = image.shape[-2:]
        if image.ndim != 4 or image.shape[1] != 3 or height % self.latent_px or width % self.latent_px:
            raise ShapeError(f"image {tuple(image.shape)} is not (B, 3, H, W) with multiples of {self.latent_px}")
        posterior: Any = self._whole(self._posterior, image, height * width, workspace)
        if posterior is None:
            from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

            assert workspace is not None
            posterior = DiagonalGaussianDistribution(encode_in_strips(self.vae, image, workspace))
        latent: Tensor = posterior.mean if generator is None else posterior.sample(generator)
        return (latent.float() - self._shift) * self._factor

    def decode(self, latent: Tensor, workspace: Workspace | None = None) -> Tensor:
        """Map latents to images.

        Args:
            latent: (B, C, h, w) float, scaled as `encode` gives it; one where there is a workspace.
            workspace: bounds the memory; None runs it in one piece, with gradients.
        Returns:
            (B, 3, 8h, 8w) float32, nominally in [-1, 1], not clamped; on the VAE's device, or where there is a
            workspace that is too small for the whole, in the host's memory.
        """
        unscaled = latent.float() / self._factor + self._shift
        px = self.latent_px
        whole = self._whole(self._picture, unscaled, latent.shape[-2] * latent.shape[-1] * px * px, workspace)
        if whole is not None:
            return whole.float()
        assert workspace is not None
        image, row = None, 0
        for strip in decode_in_strips(self.vae, unscaled, workspace):
            if image is None:
                image = torch.empty(1, strip.shape[1], latent.shape[-2] * px, strip.shape[3])
            image[:, :, row : row + strip.shape[2]] = strip
            row += strip.shape[2]
        assert image is not None
        return image

    def _posterior(self, image: Tensor) -> DiagonalGaussianDistribution:
        posterior: DiagonalGaussianDistribution = self.vae.encode(image.to(self.vae.device, self.vae.dtype)).latent_dist
        return posterior

    def _picture(self, unscaled: Tensor) -> Tensor:
        picture: Tensor = self.vae.decode(unscaled.to(self.vae.dtype)).sample
        return picture

    def _whole(
        self, function: Callable[[Tensor], Result], source: Tensor, area_px: int, workspace: Workspace | None
    ) -> Result | None:
        """In one piece, where that is expected to fit, and does."""
        if workspace is None:
            return function(source)
        if area_px * self._bytes_per_px > workspace.memory_bytes:
            return None
        try:
            return function(source)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        workspace.shrink()
        return None
