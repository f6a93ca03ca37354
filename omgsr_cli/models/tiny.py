"""omgsr-tiny: an OMGSR model small enough to live in the package.

A wavelet latent space instead of an autoencoder, an encoder that refines the image, and one step of a small denoiser,
pre-trained as a DDPM on clean latents, from the refined image's latent.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from omgsr_cli.errors import ModelError, UsageError, reason_of
from omgsr_cli.geometry import round_up
from omgsr_cli.models.base import Described, ImageEncoder, Restorer, RestorerInfo, StageInfo
from omgsr_cli.models.devices import PRECISIONS
from omgsr_cli.models.family import ModelSource
from omgsr_cli.models.record import ModelRecord, load_record, read_json, write_record
from omgsr_cli.models.tiny_network import TinyConfig, TinyNetwork, channels_last
from omgsr_cli.models.wavelet import LATENT_PX
from omgsr_cli.models.weight_files import check_finite
from omgsr_cli.schedules import DdpmSchedule, Schedule
from omgsr_cli.transfer import upload
from omgsr_cli.validation import first_mistake

# Measured: some six float32 activations of the first level, and the transform's copies of the image.
_BYTES_PER_PX = 176

# The part of a tile's margin that is counted for the encoder and the wavelets; the rest is the step's.
_CODEC_HALO_PX = 32

# The convolutions pad with zeros, which on a black image is an edge: it is kept outside of the image.
_BORDER_PX = 8

# Measured over five degradations, from a clean reduction to old photographs: 203 to 219, where each interval is wide.
_HARDLY_MOVES = (
    "a wavelet transform takes the place of a learned encoder here, so the value hardly moves with the degradation: "
    "it is for training a model of this family; to tell degradations apart give --base or --vae"
)


class TinyRestorer(Described):
    """omgsr-tiny as a `Restorer`. It has no posterior, so a generator changes nothing: every seed gives the same."""

    def __init__(
        self,
        network: TinyNetwork,
        schedule: DdpmSchedule,
        info: RestorerInfo,
        device: torch.device,
        precision: str,
        notes: tuple[str, ...] = (),
    ) -> None:
        self.network = network
        self.schedule: Schedule = schedule
        # The power that the latent of the low-quality image is given: that of a noisy latent's signal.
        self._signal = schedule.alpha_bar(info.mid_timestep) ** 0.5
        self.info = info
        self.device = device
        self.precision = precision
        self.notes = notes
        self.in_fp32: Callable[[], Restorer] | None = None

    @property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.network.unet.conv_in.weight.dtype
        return dtype

    def compile(self) -> None:
        """Compile both networks in place."""
        self.network.encoder.compile()
        self.network.unet.compile()

    def encode(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Map (B, 3, H, W) float32 in [-1, 1] to the LQ latent, (B, 48, H/4, W/4) float32.

        The learned encoder refines the image. Its wavelet latent is given the power of a noisy latent,
        sqrt(alpha_bar), so that a prediction of no noise leaves the refined image as it is.
        """
        image = channels_last(image)
        correction = self.network.encoder(image.to(self._dtype)).float()
        lq_latent: Tensor = self.network.latents.encode(image + correction)
        return lq_latent.mul_(self._signal)

    def restore(self, lq_latent: Tensor) -> Tensor:
        """Take the one step: (B, 48, h, w) float32 to the clean latent of the same shape and dtype."""
        step = self.info.mid_timestep
        timesteps = torch.full((1,), step, device=lq_latent.device)
        return self.schedule.clean_latent(lq_latent, self.predict(lq_latent, timesteps), step)

    def predict(self, noisy_latent: Tensor, timesteps: Tensor) -> Tensor:
        """Give the denoiser's prediction, of the noise: (B, 48, h, w) float32, for (B,) timesteps, or (1,) for all."""
        noise: Tensor = self.network.unet(noisy_latent.to(self._dtype), timesteps)
        return noise.float()

    def decode(self, latent: Tensor) -> Tensor:
        """Map (B, 48, h, w) to (B, 3, 4h, 4w) float32, nominally in [-1, 1]."""
        return self.network.latents.decode(latent.float())


def describe_tiny(source: ModelSource) -> RestorerInfo:
    """What is known of a model without reading its weights.

    Raises:
        ModelError: `config.json` is missing or does not describe a network.
        UsageError: the size of a tile of the step does not suit the network.
    """
    info = build_info(_load_config(source.folder), source.record, source.name)
    if info.native_tile_px % info.multiple_of_px:
        raise UsageError(
            f"process size {info.native_tile_px} is not a multiple of {info.multiple_of_px}",
            f"try --process-size {round_up(info.native_tile_px, info.multiple_of_px)}",
        )
    return info


def build_info(config: TinyConfig, record: ModelRecord, name: str) -> RestorerInfo:
    """What can be asked of a network of this shape."""
    with torch.device("meta"):
        parameters = sum(weight.numel() for weight in TinyNetwork(config).parameters())
    return RestorerInfo(
        name=name,
        family="tiny",
        scale=record.scale,
        mid_timestep=record.mid_timestep,
        multiple_of_px=config.multiple_of_px,
        native_tile_px=record.native_tile_px,
        latent_px=LATENT_PX,
        codec=StageInfo("exact", _CODEC_HALO_PX, _BYTES_PER_PX),
        step=StageInfo("exact", config.halo_px - _CODEC_HALO_PX, _BYTES_PER_PX),
        border_px=_BORDER_PX,
        color_fix="none",
        prompt=None,
        parameters=parameters,
    )


def load_tiny(source: ModelSource, device: torch.device, precision: str) -> TinyRestorer:
    """Read the weights of a model.

    Args:
        source: its folder is as `recipes/omgsr_tiny/export.py` writes it: `omgsr.json`, `config.json` and
            `model.safetensors`.
        device: where to run.
        precision: "fp32", "bf16" or "fp16": of the networks; the wavelet transform is always float32.
    Raises:
        ModelError: a file is missing, or the weights do not fit the configuration.
        UsageError: as for `describe_tiny`.
    """
    info = describe_tiny(source)
    network = _read_network(source.folder, device)
    network.encoder.to(PRECISIONS[precision])
    network.unet.to(PRECISIONS[precision])
    schedule = DdpmSchedule.from_config(source.record.schedule or DdpmSchedule().to_config())
    return TinyRestorer(network, schedule, info, device, precision, source.notes)


def load_tiny_encoder(source: ModelSource, device: torch.device) -> ImageEncoder:
    """The wavelet transform: (B, 3, H, W) in [-1, 1] to (B, 48, H/4, W/4)."""
    restorer = load_tiny(source, device, "fp32")
    return ImageEncoder(
        source.name,
        restorer.network.latents.encode,
        restorer.schedule,
        restorer.info.multiple_of_px,
        device,
        files=(source.folder,),
        notes=(_HARDLY_MOVES,),
    )


def _read_network(folder: Path, device: torch.device) -> TinyNetwork:
    """Both networks in float32, laid out for convolutions."""
    with torch.device("meta"):
        network = TinyNetwork(_load_config(folder))
    try:
        weights = load_file(folder / "model.safetensors", device=str(device))
        check_finite(weights.items(), folder / "model.safetensors")
        network.load_state_dict({name: value.float() for name, value in weights.items()}, assign=True)
    except (SafetensorError, OSError, RuntimeError) as error:
        raise _unreadable(folder, reason_of(error)) from error
    network.requires_grad_(False).eval()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.data = channels_last(module.weight.data)
    return network


def _load_config(folder: Path) -> TinyConfig:
    try:
        return TinyConfig.model_validate(read_json(folder / "config.json"))
    except ValidationError as error:
        raise _unreadable(folder, first_mistake(error).line()) from error


def _unreadable(folder: Path, reason: str) -> ModelError:
    return ModelError(
        f"{folder} does not hold omgsr-tiny's weights: {reason}", "install omgsr-cli again if they are its own"
    )


class TinyTrainable:
    """A `Trainable` of the tiny family; the path through it is the one that users run."""

    def __init__(self, restorer: TinyRestorer, record: ModelRecord) -> None:
        self.restorer: Restorer = restorer
        self.networks: nn.Module = restorer.network
        self._restorer, self._network = restorer, restorer.network
        self._record = record
        self._network.encoder.requires_grad_(True)
        self._network.unet.requires_grad_(True)

    def trained(self) -> dict[str, nn.Parameter]:
        """Give every weight of the encoder and the denoiser."""
        return dict(self._network.named_parameters())

    def encode(self, image: Tensor, draws: Sequence[torch.Generator]) -> Tensor:
        """(B, 3, H, W) in [-1, 1] to (B, 48, H/4, W/4): there is no posterior, so nothing is drawn."""
        return self.restorer.encode(image)

    @torch.no_grad()
    def encode_clean(self, image: Tensor, draws: Sequence[torch.Generator]) -> Tensor:
        """Take the wavelet latent, which is what the learned encoder corrects."""
        return self._network.latents.encode(image)

    def denoise(self, noisy_latent: Tensor, timesteps: Tensor) -> Tensor:
        """Ask the denoiser."""
        prediction = self._restorer.predict(noisy_latent, upload(timesteps, noisy_latent.device))
        return self._restorer.schedule.clean_latent(noisy_latent, prediction, timesteps)

    def checkpoint_gradients(self) -> None:
        """Refuse: the activations are small."""
        raise ModelError("omgsr-tiny has no gradient checkpointing", "set gradient_checkpointing = false in [train]")

    def share_backbone(self, share: Callable[[nn.Module], None], device: torch.device) -> None:
        """Refuse: every weight learns."""
        raise ModelError("omgsr-tiny has no frozen weights to share out", "set shard_backbone = false in [train]")

    def save(self, folder: Path) -> None:
        """Write `model.safetensors` in float32, `config.json` and `omgsr.json`."""
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.detach().cpu().contiguous() for name, value in self._network.state_dict().items()}
        save_file(weights, folder / "model.safetensors")
        (folder / "config.json").write_text(json.dumps(self._network.config.model_dump(), indent=2) + "\n")
        write_record(self._record, folder)

    @torch.no_grad()
    def load(self, folder: Path) -> None:
        """Read the weights of a model folder of the same shape, its latent space included."""
        if load_record(folder) is None or not (folder / "config.json").is_file():
            raise ModelError(f"{folder} is not a model of the tiny family", "give a folder that holds its omgsr.json")
        other = _read_network(folder, torch.device("cpu"))
        if other.config.model_copy(update={"halo_px": 0}) != self._network.config.model_copy(update={"halo_px": 0}):
            raise ModelError(f"{folder}: its network has another shape than the one to train")
        self._network.load_state_dict(other.state_dict())


def load_tiny_trainable(source: ModelSource, device: torch.device, start_from: Path | None) -> TinyTrainable:
    """Read a model folder; without `start_from`, its shape and latent space only, and new weights.

    Raises:
        ModelError: the folder, or the one to start from, is not such a model.
    """
    restorer = load_tiny(source, device, "fp32")
    if start_from is None:
        fresh = TinyNetwork(restorer.network.config)
        fresh.latents.load_state_dict(restorer.network.latents.state_dict())
        restorer.network.load_state_dict(fresh.state_dict())
    trainable = TinyTrainable(restorer, source.record.model_copy(update={"schedule": restorer.schedule.to_config()}))
    if start_from is not None and start_from != source.folder:
        trainable.load(start_from)
    return trainable
