"""Training omgsr-tiny: all weights of its encoder and its denoiser learn, the latent space stays."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from omgsr_cli.errors import ModelError
from omgsr_cli.models.base import Restorer
from omgsr_cli.models.families import family_of
from omgsr_cli.models.record import ModelRecord, load_record, read_json, write_record
from omgsr_cli.models.sources import ModelSource
from omgsr_cli.models.tiny import TinyRestorer, describe_tiny, load_tiny
from omgsr_cli.models.tiny_family import TinyFamily
from omgsr_cli.models.tiny_network import TinyConfig, TinyNetwork
from omgsr_cli.models.trainable import outline_schedule


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
        prediction = self._restorer.predict(noisy_latent, timesteps)
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
        record = load_record(folder)
        if record is None or not isinstance(family_of(record, str(folder)), TinyFamily):
            raise ModelError(f"{folder} is not a model of the tiny family", "give a folder that holds its omgsr.json")
        other = load_tiny(folder, describe_tiny(folder, record, str(folder)), torch.device("cpu"), "fp32").network
        if other.config.model_copy(update={"halo_px": 0}) != self._network.config.model_copy(update={"halo_px": 0}):
            raise ModelError(f"{folder}: its network has another shape than the one to train")
        self._network.load_state_dict(other.state_dict())


def load_tiny_trainable(source: ModelSource, device: torch.device, start_from: Path | None) -> TinyTrainable:
    """Read a model folder; without `start_from`, its shape and latent space only, and new weights.

    Raises:
        ModelError: the folder, or the one to start from, is not such a model.
    """
    restorer = load_tiny(source.folder, describe_tiny(source.folder, source.record, source.name), device, "fp32")
    if start_from is None:
        fresh = TinyNetwork(restorer.network.config)
        fresh.latents.load_state_dict(restorer.network.latents.state_dict())
        restorer.network.load_state_dict(fresh.state_dict())
    trainable = TinyTrainable(restorer, source.record.model_copy(update={"schedule": restorer.schedule.to_config()}))
    if start_from is not None and start_from != source.folder:
        trainable.load(start_from)
    return trainable


def outline_tiny(source: ModelSource, device: torch.device) -> TinyTrainable:
    """Build the network by its configuration, without its weights."""
    info = describe_tiny(source.folder, source.record, source.name)
    network = TinyNetwork(TinyConfig.model_validate(read_json(source.folder / "config.json")))
    return TinyTrainable(TinyRestorer(network, outline_schedule(), info, device, "fp32"), source.record)
