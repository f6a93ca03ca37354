"""omgsr-tiny: an OMGSR model that is small enough to be bundled.

It has a wavelet latent space instead of an autoencoder. A learned encoder refines the image, and a small denoiser,
pre-trained as a DDPM on clean latents, takes one step from the latent of the refined image.
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
from omgsr_cli.models.base import ImageEncoder, Restorer, RestorerInfo, StageInfo, Trainable
from omgsr_cli.models.devices import PRECISIONS
from omgsr_cli.models.family import ModelSource
from omgsr_cli.models.record import ModelRecord, load_record, read_json, write_record
from omgsr_cli.models.tiny_network import TinyConfig, TinyNetwork, channels_last
from omgsr_cli.models.wavelet import LATENT_PX
from omgsr_cli.models.weight_files import check_finite
from omgsr_cli.schedules import DdpmSchedule, Schedule
from omgsr_cli.transfer import upload
from omgsr_cli.validation import first_mistake

# Measured: about six float32 activations of the first level, and the transform's copies of the image.
_BYTES_PER_PX = 176

# The encoder's and the wavelets' part of a tile's margin; the rest belongs to the step.
_CODEC_HALO_PX = 32

# The convolutions pad with 0, which is mid-grey and makes an edge on a black image. The border keeps it outside.
_BORDER_PX = 8

# Measured for five degradations, from clean downscaling to old photographs: 203 to 219, each with a wide interval.
_HARDLY_MOVES = (
    "a wavelet transform takes the place of a learned encoder here, so the value hardly moves with the degradation: "
    "it is for training a model of this family; to tell degradations apart give --base or --vae"
)


class TinyRestorer(Restorer):
    """omgsr-tiny as a `Restorer`. It has no posterior and ignores generators: every seed gives the same result."""

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
        # The latent of the low-quality image is scaled to the signal amplitude of a noisy latent.
        self._signal = schedule.alpha_bar(info.mid_timestep) ** 0.5
        self.info = info
        self.device = device
        self.precision = precision
        self.notes = notes

    @property
    def _dtype(self) -> torch.dtype:
        dtype: torch.dtype = self.network.unet.conv_in.weight.dtype
        return dtype

    def compile(self) -> None:
        """Compile the encoder and the denoiser in place."""
        self.network.encoder.compile()
        self.network.unet.compile()

    def encode(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Map (B, 3, H, W) float32 in [-1, 1] to the low-quality latent, (B, 48, H/4, W/4) float32.

        The learned encoder refines the image. The wavelet latent is scaled by sqrt(alpha_bar), like the signal of a
        noisy latent, so that a prediction of zero noise leaves the refined image unchanged.
        """
        image = channels_last(image)
        correction = self.network.encoder(image.to(self._dtype)).float()
        lq_latent: Tensor = self.network.latents.encode(image + correction)
        return lq_latent.mul_(self._signal)

    def restore(self, lq_latent: Tensor) -> Tensor:
        """Take the single step: map (B, 48, h, w) float32 to the clean latent of the same shape and dtype."""
        step = self.info.mid_timestep
        timesteps = torch.full((1,), step, device=lq_latent.device)
        return self.schedule.clean_latent(lq_latent, self.predict(lq_latent, timesteps), step)

    def predict(self, noisy_latent: Tensor, timesteps: Tensor) -> Tensor:
        """Predict the noise with the denoiser, (B, 48, h, w) float32, for (B,) timesteps, or (1,) for all."""
        noise: Tensor = self.network.unet(noisy_latent.to(self._dtype), timesteps)
        return noise.float()

    def decode(self, latent: Tensor) -> Tensor:
        """Map (B, 48, h, w) to (B, 3, 4h, 4w) float32, nominally in [-1, 1]."""
        return self.network.latents.decode(latent.float())


def describe_tiny(source: ModelSource) -> RestorerInfo:
    """Describe a model without reading its weights.

    Raises:
        ModelError: `config.json` is missing or does not describe a network.
        UsageError: the tile size of the step is not a multiple of `multiple_of_px`.
    """
    info = build_info(_load_config(source.folder), source.record, source.name)
    if info.native_tile_px % info.multiple_of_px:
        raise UsageError(
            f"process size {info.native_tile_px} is not a multiple of {info.multiple_of_px}",
            f"try --process-size {round_up(info.native_tile_px, info.multiple_of_px)}",
        )
    return info


def build_info(config: TinyConfig, record: ModelRecord, name: str) -> RestorerInfo:
    """Build the description of a model with this configuration."""
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
    """Load a model.

    Args:
        source: a folder in the layout of `recipes/omgsr_tiny/export.py`: `omgsr.json`, `config.json` and
            `model.safetensors`.
        device: device that the model runs on.
        precision: number format of the networks, "fp32", "bf16" or "fp16"; the wavelet transform is always float32.
    Raises:
        ModelError: a file is missing, or the weights do not match the configuration.
        UsageError: as for `describe_tiny`.
    """
    info = describe_tiny(source)
    network = _read_network(source.folder, device)
    network.encoder.to(PRECISIONS[precision])
    network.unet.to(PRECISIONS[precision])
    schedule = DdpmSchedule.from_config(source.record.schedule or DdpmSchedule().to_config())
    return TinyRestorer(network, schedule, info, device, precision, source.notes)


def load_tiny_encoder(source: ModelSource, device: torch.device) -> ImageEncoder:
    """The wavelet transform as an encoder: (B, 3, H, W) in [-1, 1] to (B, 48, H/4, W/4)."""
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
    """Read both networks in float32, with channels-last kernels."""
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


class TinyTrainable(Trainable):
    """A `Trainable` of the tiny family; it trains the networks that users run."""

    def __init__(self, restorer: TinyRestorer, record: ModelRecord) -> None:
        self.restorer: Restorer = restorer
        self.networks: nn.Module = restorer.network
        self._restorer, self._network = restorer, restorer.network
        self._record = record
        self._network.encoder.requires_grad_(True)
        self._network.unet.requires_grad_(True)

    def trained(self) -> dict[str, nn.Parameter]:
        """All weights of the encoder and the denoiser."""
        return dict(self._network.named_parameters())

    def encode(self, image: Tensor, draws: Sequence[torch.Generator]) -> Tensor:
        """Map (B, 3, H, W) in [-1, 1] to (B, 48, H/4, W/4); without a posterior, `draws` is unused."""
        return self.restorer.encode(image)

    @torch.no_grad()
    def encode_clean(self, image: Tensor, draws: Sequence[torch.Generator]) -> Tensor:
        """Map the image to its wavelet latent, without the learned encoder's correction."""
        return self._network.latents.encode(image)

    def denoise(self, noisy_latent: Tensor, timesteps: Tensor) -> Tensor:
        """Recover clean latents with the denoiser."""
        prediction = self._restorer.predict(noisy_latent, upload(timesteps, noisy_latent.device))
        return self._restorer.schedule.clean_latent(noisy_latent, prediction, timesteps)

    def checkpoint_gradients(self) -> None:
        """Raise `ModelError`: the activations are small."""
        raise ModelError("omgsr-tiny has no gradient checkpointing", "set gradient_checkpointing = false in [train]")

    def share_backbone(self, share: Callable[[nn.Module], None], device: torch.device) -> None:
        """Raise `ModelError`: all weights are trained."""
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
        """Load the weights, including the latent space, of a model folder with the same configuration."""
        if load_record(folder) is None or not (folder / "config.json").is_file():
            raise ModelError(f"{folder} is not a model of the tiny family", "give a folder that holds its omgsr.json")
        other = _read_network(folder, torch.device("cpu"))
        if other.config.model_copy(update={"halo_px": 0}) != self._network.config.model_copy(update={"halo_px": 0}):
            raise ModelError(f"{folder}: its network has another shape than the one to train")
        self._network.load_state_dict(other.state_dict())


def load_tiny_trainable(source: ModelSource, device: torch.device, start: Path | None) -> TinyTrainable:
    """Load a model folder; without `start`, keep only its configuration and latent space, with new weights.

    Raises:
        ModelError: the folder or `start` is not a model of the tiny family.
    """
    restorer = load_tiny(source, device, "fp32")
    if start is None:
        fresh = TinyNetwork(restorer.network.config)
        fresh.latents.load_state_dict(restorer.network.latents.state_dict())
        restorer.network.load_state_dict(fresh.state_dict())
    trainable = TinyTrainable(restorer, source.record.model_copy(update={"schedule": restorer.schedule.to_config()}))
    if start is not None and start != source.folder:
        trainable.load(start)
    return trainable
