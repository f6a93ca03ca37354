"""Pre-trained autoencoders: AutoencoderKL as a whole or in strips, AutoencoderTiny's decoder, and both encoders."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from omgsr_cli.errors import ModelError, ShapeError, UnknownModelError, reason_of
from omgsr_cli.geometry import Size, plan_halo_tiles
from omgsr_cli.models.base import ImageEncoder, ImageRows, Workspace
from omgsr_cli.models.devices import is_out_of_memory, working_bytes
from omgsr_cli.models.libraries import quiet_libraries
from omgsr_cli.models.record import load_record, read_json
from omgsr_cli.models.vae_tiling import check_tiling, decode_in_strips, encode_in_strips
from omgsr_cli.models.weight_files import check_finite, load_part
from omgsr_cli.schedules import DdpmSchedule, FlowSchedule, Schedule, build_schedule
from omgsr_cli.tiling import run_exact

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.vae import DecoderTiny

_BYTES_PER_CHANNEL = 20
"""Number of float32 tensors of the decoder's widest level at full size; with SD's 256 channels, 4.1 to 4.7 kB per pixel
were measured, and less in bf16."""

_MOST_WHOLE_PX_ON_MPS = 1200 * 1200
"""Above this area, the VAE runs in strips on MPS: the attention stores all (area / 64)^2 products in one buffer there,
and a buffer of more than 2^32 bytes aborts the process."""

_TINY_PX = 8
"""Image pixels per latent element of TAESD, on each side."""
# Number of float32 tensors of one level of its decoder at the peak, including work space.
_TINY_TENSORS = 6
_MIN_TILE = 16

_FLOW_CHANNELS = 16
"""The number of latent channels shows the schedule of an autoencoder without a scheduler."""


def check_vae_config(config: Mapping[str, Any], where: object) -> None:
    """Check that a VAE's configuration has RGB images and supported scaling factors.

    Args:
        config: diffusers' configuration of an AutoencoderKL or AutoencoderTiny.
        where: name of the configuration in messages.
    Raises:
        ModelError: a value is wrong; the message names the first.
    """
    levels = config.get("block_out_channels", config.get("encoder_block_out_channels", ()))
    if not (isinstance(levels, list | tuple) and levels and all(type(each) is int and each > 0 for each in levels)):
        raise ModelError(f"{where}: block_out_channels is {levels!r}, not a list of channels")
    factor, shift = config.get("scaling_factor", 1.0), config.get("shift_factor")
    if not _is_number(factor) or factor <= 0:
        raise ModelError(
            f"{where}: scaling_factor is {factor!r}, not a number above 0", "Stable Diffusion uses 0.18215"
        )
    if shift is not None and not _is_number(shift):
        raise ModelError(f"{where}: shift_factor is {shift!r}, not a number")
    for key in ("latents_mean", "latents_std"):
        if config.get(key) is not None:
            raise ModelError(
                f"{where}: {key} is not supported", "use a VAE that has scaling_factor and shift_factor only"
            )
    for key in ("in_channels", "out_channels"):
        if config.get(key, 3) != 3:
            raise ModelError(f"{where}: {key} is {config[key]!r}, but images have 3 channels")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def latent_px_of(vae_config: Mapping[str, Any]) -> int:
    """Image pixels per latent element: the VAE halves the size after each level except the last."""
    return int(2 ** (len(vae_config["block_out_channels"]) - 1))


def bytes_per_px_of(vae_config: Mapping[str, Any]) -> int:
    """Working memory per pixel for an image that is processed as a whole."""
    return _BYTES_PER_CHANNEL * int(max(vae_config["block_out_channels"][:2]))


class KlCodec:
    """Encodes images to scaled latents and decodes them.

    latent = (posterior - shift_factor) * scaling_factor
    Source: LDM, arXiv:2112.10752, appendix G; FLUX added the shift.

    Args:
        vae: the VAE, on its device and in its number format.
    Raises:
        ModelError: a part of the VAE cannot run in strips.
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
            generator: samples the posterior, on its own device or the CPU; a list has one for each image; None uses the
                mean.
        Returns:
            (B, C, H/8, W/8) float32 on the VAE's device.
        Raises:
            ShapeError: the image is not (B, 3, H, W), or H and W are not multiples of `latent_px`.
        """
        if image.ndim != 4 or image.shape[1] != 3 or image.shape[2] % self.latent_px or image.shape[3] % self.latent_px:
            raise ShapeError(f"image {tuple(image.shape)} must be (B, 3, H, W) with multiples of {self.latent_px}")
        return self._latent(self.vae.encode(image.to(self.vae.device, self.vae.dtype)).latent_dist, generator)

    def encode_within(self, image: ImageRows, workspace: Workspace, generator: torch.Generator | None = None) -> Tensor:
        """Like `encode` for one image, in strips if the whole image does not fit."""
        height, width = image.size_px
        latent = self._whole(height * width, workspace, lambda: self.encode(image.read(0, height), generator))
        if latent is not None:
            return latent
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

        return self._latent(DiagonalGaussianDistribution(encode_in_strips(self.vae, image, workspace)), generator)

    def decode(self, latent: Tensor) -> Tensor:
        """Map latents to images, with gradients.

        Args:
            latent: (B, C, h, w) float, scaled as by `encode`.
        Returns:
            (B, 3, 8h, 8w) float32 on the VAE's device, nominally in [-1, 1]; not clamped.
        """
        image: Tensor = self.vae.decode(self._unscaled(latent).to(self.vae.dtype)).sample
        return image.float()

    def decode_within(self, latent: Tensor, workspace: Workspace) -> Iterator[Tensor]:
        """Like `decode` for one latent, in strips if the whole image does not fit.

        Yields:
            (1, 3, n, 8w) float on the VAE's device, from top to bottom.
        """
        area_px = latent.shape[2] * latent.shape[3] * self.latent_px**2
        image = self._whole(area_px, workspace, lambda: self.decode(latent))
        if image is not None:
            yield image
        else:
            yield from decode_in_strips(self.vae, self._unscaled(latent), workspace)

    def _latent(self, posterior: Any, generator: torch.Generator | list[torch.Generator] | None) -> Tensor:
        latent: Tensor = posterior.mean if generator is None else posterior.sample(generator)
        return (latent.float() - self._shift) * self._factor

    def _unscaled(self, latent: Tensor) -> Tensor:
        return latent.float() / self._factor + self._shift

    def _whole(self, area_px: int, workspace: Workspace, run: Callable[[], Tensor]) -> Tensor | None:
        """The result for the whole image; None if it is not expected to fit, or did not, which makes strips smaller."""
        precision = "fp32" if self.vae.dtype.itemsize == 4 else "bf16"
        bytes_per_px = working_bytes(self._bytes_per_px, workspace.device.type, precision)
        is_too_large = self.vae.device.type == "mps" and area_px > _MOST_WHOLE_PX_ON_MPS
        if is_too_large or area_px * bytes_per_px > workspace.memory_bytes:
            return None
        try:
            return run()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        workspace.shrink()
        return None


class TinyDecoder:
    """The decoder of an AutoencoderTiny (TAESD), which needs about a tenth of a VAE's work and is coarser.

    It has neither normalisation nor attention, so tiles with a margin give the same pixels.
    Source: TAESD, github.com/madebyollin/taesd; the networks are those of diffusers.

    Args:
        network: diffusers' decoder, on its device and in its number format.
    """

    def __init__(self, network: DecoderTiny) -> None:
        self.network = network
        self.reach, self.latent_px, width = _reach(network)
        self._bytes_per_element = _TINY_TENSORS * 4 * width * self.latent_px**2

    def decode(self, latent: Tensor) -> Tensor:
        """Map (B, C, h, w) float, scaled, to (B, 3, 8h, 8w) float32, nominally in [-1, 1]."""
        weight = next(self.network.parameters())
        image: Tensor = self.network(latent.to(weight.device, weight.dtype))
        return image.float()

    def decode_within(self, latent: Tensor, workspace: Workspace) -> Iterator[Tensor]:
        """Like `decode` for one latent, with the same pixels, in tiles that fit in the workspace.

        Yields:
            (1, 3, n, 8w) float32, from top to bottom.
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
    """Load the decoder of an AutoencoderTiny.

    Args:
        path: folder or file from `find_tiny_vae`.
        channels: channels of the latents to decode.
        device, dtype: device and number format of the decoder.
    Raises:
        ModelError: the weights cannot be read or do not match, or the latents have another number of channels.
    """
    if path.is_file():
        network = _read_tiny(path, "decoder", channels)
    else:
        # diffusers' default for levels that are missing.
        config = {"block_out_channels": [64]} | read_json(path / "config.json")
        check_vae_config(config, path)
        if config.get("scaling_factor", 1.0) != 1.0 or config.get("shift_factor"):
            raise ModelError(
                f"{path}: the scaling of its latents is not supported", "use a TAESD, whose scaling_factor is 1"
            )
        own = int(config.get("latent_channels", 4))
        if own != channels:
            raise ModelError(
                f"{path} decodes latents with {own} channels, but those of the model have {channels}",
                "use an autoencoder for this kind of model",
            )
        with quiet_libraries():
            from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

            network = load_part(AutoencoderTiny, path.parent, path.name, dtype).decoder
    return TinyDecoder(network.to(device, dtype))


def _read_tiny(path: Path, half: Literal["encoder", "decoder"], channels: int | None) -> Any:
    """Read one half of TAESD from its published file: a numbered sequence, which diffusers stores under `layers`.

    The file may also be that of diffusers, with both halves. Its latents are those of the large autoencoder, including
    the scaling. The decoder's first member is a clamp, which has no weights and is no layer of diffusers. None counts
    the channels of the encoder's latents.
    Source: TAESD, github.com/madebyollin/taesd; diffusers' AutoencoderTiny.
    """
    with quiet_libraries():
        from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
    first = 1 if half == "decoder" else 0
    try:
        weights = load_file(path)
        check_finite(weights.items(), path)
        own = f"{half}."
        named = {name.removeprefix(own): value.float() for name, value in weights.items() if name.startswith(own)}
        if not named:
            parts = ((name.partition("."), value.float()) for name, value in weights.items())
            named = {f"layers.{int(number) - first}.{rest}": value for (number, _, rest), value in parts}
        channels = channels or len(named[max(named, key=lambda name: int(name.split(".")[1]))])
        with torch.device("meta"):
            network: nn.Module = getattr(AutoencoderTiny(latent_channels=channels), half)
        network.load_state_dict(named, assign=True)
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        raise ModelError(f"{path} is not the {half} of an AutoencoderTiny: {reason_of(error)}") from error
    return network.requires_grad_(False).eval()


def _reach(network: Any) -> tuple[int, int, int]:
    """The reach in latent elements, the number of pixels per latent element, and the channels of the widest layer."""
    reach, scale, width = 0.0, 1, 1
    for module in network.layers.modules():
        if isinstance(module, nn.Conv2d):
            reach += (module.kernel_size[0] // 2) / scale
            width = max(width, module.out_channels)
        elif isinstance(module, nn.Upsample):
            scale *= int(module.scale_factor)  # type: ignore[arg-type]  # the same number for both sides
    # A convolution after an upscaling can reach one more element of the coarser grid than its radius suggests.
    return math.ceil(reach) + 1, scale, width


def load_diffusers_encoder(name: str, folder: Path, device: torch.device) -> ImageEncoder:
    """Load `vae/` and the schedule of a Diffusers folder, for any network that takes the step."""
    return load_vae_encoder(name, folder / "vae", load_schedule(folder), device)


def load_schedule(folder: Path) -> Schedule:
    """Load the schedule of a model folder, from `omgsr.json` or its scheduler's configuration."""
    record = load_record(folder)
    if record is not None and record.schedule is not None:
        return build_schedule(record.schedule)
    return build_schedule(read_json(folder / "scheduler" / "scheduler_config.json"))


def load_vae_encoder(name: str, path: Path, schedule: Schedule | None, device: torch.device) -> ImageEncoder:
    """Load the encoder of an autoencoder.

    Args:
        name: name of the encoder, for people.
        path: folder of diffusers' AutoencoderKL or AutoencoderTiny, or TAESD's encoder as a safetensors file.
        schedule: None takes that of FLUX.1 if the latents have 16 channels, otherwise that of Stable Diffusion.
        device: device of the encoder.
    Raises:
        ModelError: the autoencoder is of another kind, or its files cannot be read.
    """
    encode: Callable[..., Tensor]
    multiple_px, kind = _TINY_PX, "AutoencoderTiny"
    if path.is_file() and path.suffix == ".safetensors":
        tiny = _read_tiny(path, "encoder", None).to(device)
        encode, channels = tiny.forward, tiny.layers[-1].out_channels
    elif not (path / "config.json").is_file():
        raise UnknownModelError(
            f"{path} is not an autoencoder", "use a folder with config.json, or TAESD's encoder .safetensors"
        )
    else:
        config = read_json(path / "config.json")
        kind, channels = str(config.get("_class_name")), int(config.get("latent_channels", 4))
        with quiet_libraries():
            from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
            from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
        classes: dict[str, Any] = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
        if kind not in classes:
            raise ModelError(f"{path} is a {kind}", f"supported encoders: {', '.join(classes)}")
        check_vae_config(config, path)
        network = load_part(classes[kind], path.parent, path.name, torch.float32)
        if kind == "AutoencoderKL":
            codec = KlCodec(network)
            encode, multiple_px = codec.encode, codec.latent_px
        else:
            # The network's own configuration has diffusers' defaults for missing keys.
            scale, shift = network.config["scaling_factor"], network.config["shift_factor"] or 0.0
            encode = lambda image: (network.encode(image).latents - shift) * scale  # noqa: E731 - shorter than a function
        network.decoder = None  # not needed; it has half of the weights
        network.to(device)
    if schedule is None:
        schedule = FlowSchedule() if channels == _FLOW_CHANNELS else DdpmSchedule()
    is_variational = kind == "AutoencoderKL"
    return ImageEncoder(name, encode, schedule, multiple_px, device, (path,), has_posterior=is_variational)
