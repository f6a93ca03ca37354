"""The part of a model that the mid-timestep needs: images to latents, and the noise schedule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from omgsr_cli.errors import ModelError, UnknownModelError, UsageError, reason_of
from omgsr_cli.models.base import ImageEncoder
from omgsr_cli.models.devices import PRECISIONS, choose_device
from omgsr_cli.models.families import family_of
from omgsr_cli.models.kl_codec import check_vae_config
from omgsr_cli.models.libraries import explained_imports, quiet_libraries
from omgsr_cli.models.record import load_record, read_json
from omgsr_cli.models.sources import ModelSource, find_base_folder
from omgsr_cli.models.weight_files import check_finite, load_part
from omgsr_cli.presets import DEFAULT_PRESET
from omgsr_cli.schedules import DdpmSchedule, FlowSchedule, Schedule, build_schedule

# AutoencoderTiny's encoder, as published: residual blocks per level, all 64 wide, and an eighth of the size.
_TINY_BLOCKS, _TINY_WIDTH, _TINY_PX = (1, 3, 3, 3), 64, 8
# Latent channels tell the family where an autoencoder comes without a scheduler.
_FLOW_CHANNELS = 16


@dataclass(frozen=True)
class NamedEncoder:
    """An encoder by its name, which can be sent to another process; arguments and errors as for `load_encoder`."""

    model: str | None = None
    base: str | None = None
    vae: str | None = None

    def load(self, device: str | None) -> ImageEncoder:
        """Read it."""
        return load_encoder(self.model, base=self.base, vae=self.vae, device=device)


def load_encoder(
    model: str | None = None, *, base: str | None = None, vae: str | None = None, device: str | None = None
) -> ImageEncoder:
    """Load the encoder and the schedule of a model, and nothing else of it.

    Args:
        model: preset's name, model folder or hub repository; None takes the default preset.
        base: folder or hub repository of a pre-trained model, instead of `model`.
        vae: another autoencoder for it: a folder of diffusers' AutoencoderKL or AutoencoderTiny, or the encoder of
            TAESD as a single safetensors file. Alone, its latent channels tell the schedule: Stable Diffusion's,
            or with 16 of them FLUX.1's.
        device: as for `choose_device`.
    Raises:
        ModelError: something is missing or of a kind that is not known.
        UsageError: the arguments do not go together.
        DeviceError: the device is not there.
    """
    if model is not None and base is not None:
        raise UsageError("--model and --base were both given", "leave one of them out")
    place = choose_device(device)
    if vae is not None:
        encode, channels, multiple = _load_vae(Path(vae), place)
        named = model or base
        schedule = _load_schedule(find_base_folder(named, parts=("vae",))) if named else _schedule_of(channels)
        told = vae if named is None else f"{named} with {vae}"
        return ImageEncoder(told, encode, schedule, multiple, place, files=(Path(vae),))
    name = model or base or DEFAULT_PRESET
    folder = find_base_folder(name, parts=("vae",))
    record = load_record(folder)
    if record is None:
        return load_diffusers_encoder(name, folder, place)
    return family_of(record, str(folder)).load_encoder(ModelSource(name, folder, None, record, ()), place)


def load_diffusers_encoder(name: str, folder: Path, device: torch.device) -> ImageEncoder:
    """Read `vae/` and the schedule of a folder of diffusers' layout, whatever takes the step there."""
    encode, _, multiple = _load_vae(folder / "vae", device)
    return ImageEncoder(name, encode, _load_schedule(folder), multiple, device, files=(folder / "vae",))


def _load_schedule(folder: Path) -> Schedule:
    record = load_record(folder)
    if record is not None and record.schedule is not None:
        return build_schedule(record.schedule)
    return build_schedule(read_json(folder / "scheduler" / "scheduler_config.json"))


def _schedule_of(channels: int) -> Schedule:
    return FlowSchedule() if channels == _FLOW_CHANNELS else DdpmSchedule()


def _load_vae(path: Path, device: torch.device) -> tuple[Callable[[Tensor], Tensor], int, int]:
    """Read an autoencoder's encoder: the function, its latent channels, and the multiple of its image sizes."""
    if path.is_file() and path.suffix == ".safetensors":
        return _load_tiny_file(path, device)
    if not (path / "config.json").is_file():
        raise UnknownModelError(
            f"{path} is no autoencoder", "give a folder with config.json, or TAESD's encoder .safetensors"
        )
    config = read_json(path / "config.json")
    kind = config.get("_class_name")
    with quiet_libraries(), explained_imports():
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
    if kind not in ("AutoencoderKL", "AutoencoderTiny"):
        raise ModelError(f"{path} is a {kind}", "encoders that can be read: AutoencoderKL, AutoencoderTiny")
    check_vae_config(config, path)
    network: Any = load_part(
        AutoencoderKL if kind == "AutoencoderKL" else AutoencoderTiny, path.parent, path.name, PRECISIONS["fp32"]
    )
    network.decoder = None  # half of the weights, and not needed
    network.to(device)
    # With diffusers' defaults for what the file does not say.
    scale, shift = float(network.config["scaling_factor"]), float(network.config["shift_factor"] or 0.0)

    def encode(image: Tensor) -> Tensor:
        encoded = network.encode(image)
        latent: Tensor = encoded.latent_dist.mean if kind == "AutoencoderKL" else encoded.latents
        return (latent - shift) * scale

    return encode, int(config.get("latent_channels", 4)), _multiple_of_px(config, kind)


def _multiple_of_px(config: dict[str, Any], kind: str) -> int:
    levels = config.get("block_out_channels") or config.get("encoder_block_out_channels") or (0,) * 4
    return int(2 ** (len(levels) - 1)) if kind == "AutoencoderKL" else _TINY_PX


def _load_tiny_file(path: Path, device: torch.device) -> tuple[Callable[[Tensor], Tensor], int, int]:
    """TAESD's encoder as published: a numbered sequence, which diffusers keeps under `layers`.

    Its latents are those of the large autoencoder, scaling included.
    Source: TAESD, github.com/madebyollin/taesd; diffusers' AutoencoderTiny.
    """
    with quiet_libraries(), explained_imports():
        from diffusers.models.autoencoders.vae import EncoderTiny
    try:
        weights = load_file(path)
        check_finite(weights.items(), path)
        outputs = [key for key, value in weights.items() if key.endswith("weight") and value.ndim == 4]
        channels = int(weights[max(outputs, key=lambda key: int(key.partition(".")[0]))].shape[0])
        with torch.device("meta"):
            network = EncoderTiny(3, channels, _TINY_BLOCKS, (_TINY_WIDTH,) * 4, "relu")
        network.load_state_dict({f"layers.{key}": value.float() for key, value in weights.items()}, assign=True)
    except (SafetensorError, OSError, RuntimeError, ValueError) as error:
        reason = reason_of(error)
        raise ModelError(f"{path} is not the encoder of an AutoencoderTiny: {reason}") from error
    network.requires_grad_(False).eval().to(device)
    return network.forward, channels, _TINY_PX
