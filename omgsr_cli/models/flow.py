"""The common interface of flow-matching transformers, and their common restorer and trainable.

Base models differ in the time input, the sign of the prediction, the positions of tokens and the features of the
prompt. A `FlowModel` implements these. The schedule, the codec, tiles and training are the same for all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from omgsr_cli.errors import ShapeError
from omgsr_cli.models.autoencoders import KlCodec, TinyDecoder
from omgsr_cli.models.base import ImageRows, Restorer, RestorerInfo, Workspace
from omgsr_cli.models.family import ModelSource
from omgsr_cli.models.lora import adapter_weights, load_lora
from omgsr_cli.models.record import ModelRecord, write_record
from omgsr_cli.schedules import Schedule

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from peft import PeftModel

PATCH = 2
"""Latent elements per token, on each side."""


class FlowModel(Protocol):
    """A transformer with the conventions of its base model.

    Attributes:
        network: the transformer, on its device or offloaded, in the number format in which it computes.
    """

    network: nn.Module

    def velocity(self, noisy_latent: Tensor, sigma: Tensor) -> Tensor:
        """Predict noise - clean, independent of the network's own sign and time.

        Args:
            noisy_latent: (B, C, h, w) float, scaled, with even h and w.
            sigma: (B,) float32, the share of noise, in [0, 1].
        Returns:
            (B, C, h, w), dtype of the latent.
        """
        ...

    def move(self, device: torch.device) -> None:
        """Move tensors that are not part of the network, such as the prompt's features."""
        ...

    def save_features(self, folder: Path) -> None:
        """Write the prompt's features to a folder, so that the text encoders are not needed again."""
        ...


def pack(latent: Tensor) -> Tensor:
    """Convert (B, C, h, w) to tokens (B, h/2 * w/2, 4 C), row by row; a token has each channel's 2x2 elements."""
    batch, channels, height, width = latent.shape
    split = latent.reshape(batch, channels, height // PATCH, PATCH, width // PATCH, PATCH)
    return split.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * PATCH**2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """Convert tokens (B, h/2 * w/2, 4 C) back to a latent (B, C, h, w) of the given height and width."""
    batch, channels = len(tokens), tokens.shape[-1] // PATCH**2
    split = tokens.reshape(batch, height // PATCH, width // PATCH, channels, PATCH, PATCH)
    return split.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, height, width)


def position_ids(height: int, width: int, first: tuple[int, int], device: torch.device) -> Tensor:
    """Compute the positions of a latent's tokens, row by row.

    Args:
        height, width: size of the latent.
        first: row and column of the first token.
        device: device of the result.
    Returns:
        (h/2 * w/2, 3) float32: 0, the row and the column.
    """
    rows, columns = (
        torch.arange(length // PATCH, dtype=torch.float32, device=device) + start
        for length, start in zip((height, width), first, strict=True)
    )
    grid = torch.cartesian_prod(rows, columns)
    return torch.cat((torch.zeros_like(grid[:, :1]), grid), dim=1)


class FlowRestorer:
    """A `Restorer` of a flow-matching model. Latents are float32; the networks compute in their own number formats.

    Args:
        model: predicts the velocity.
        vae: VAE whose latents have a quarter of a token's channels.
        schedule: schedule of the base model.
        info: properties of the model, for the user and the planner.
        precision: number format of the transformer; the VAE's may be wider.
        source: files that the model was loaded from.
        device: device that computes the networks.
        decoder: replaces the VAE's decoder.
        release: called before the codec runs, to move a completely offloaded transformer off the device.
    """

    def __init__(
        self,
        model: FlowModel,
        vae: AutoencoderKL,
        schedule: Schedule,
        info: RestorerInfo,
        precision: str,
        source: ModelSource,
        device: torch.device,
        decoder: TinyDecoder | None = None,
        release: Callable[[], None] | None = None,
    ) -> None:
        self.model, self.vae, self.schedule, self.info = model, vae, schedule, info
        self.precision, self.source, self.notes, self.device = precision, source, source.notes, device
        self.in_fp32: Callable[[], Restorer] | None = None
        self._codec = KlCodec(vae)
        self._decoder: KlCodec | TinyDecoder = decoder or self._codec
        self._release = release

    def compile(self) -> None:
        """Compile the transformer and the VAE's encoder and decoder in place."""
        own = self._decoder.network if isinstance(self._decoder, TinyDecoder) else self.vae.decoder
        for network in (self.model.network, self.vae.encoder, own):
            network.compile()

    def encode(self, image: Tensor, generator: torch.Generator | list[torch.Generator] | None = None) -> Tensor:
        """Map (B, 3, H, W) float32 in [-1, 1] to (B, C, H/8, W/8) float32; generators as for `KlCodec.encode`."""
        self._make_room()
        return self._codec.encode(image, generator)

    def encode_within(self, image: ImageRows, workspace: Workspace, generator: torch.Generator | None = None) -> Tensor:
        """Like `encode` for one image, in bounded memory: in strips if the image does not fit."""
        self._make_room()
        return self._codec.encode_within(image, workspace, generator)

    def restore(self, lq_latent: Tensor) -> Tensor:
        """Take the single step: map (B, C, h, w) float, even h and w, to the clean latent, same shape and dtype.

        The published code averages the velocities of overlapping tiles. Averaging their clean latents is equivalent,
        because each is its tile of the same latent minus sigma times its velocity.

        Raises:
            ShapeError: a side is odd.
        """
        step = self.info.mid_timestep
        return self.schedule.clean_latent(lq_latent, self.predict(lq_latent, self._sigma(step, lq_latent)), step)

    def predict(self, noisy_latent: Tensor, sigma: Tensor) -> Tensor:
        """Predict the velocity, noise - clean, in the shape and dtype of the latents, for (B,) sigmas."""
        if any(side % PATCH for side in noisy_latent.shape[-2:]):
            raise ShapeError(
                f"latent {tuple(noisy_latent.shape)} has an odd side; "
                f"images of this model have sides that are multiples of {self.info.multiple_of_px}"
            )
        return self.model.velocity(noisy_latent, sigma)

    def decode(self, latent: Tensor) -> Tensor:
        """Map (B, C, h, w) float, scaled as by `encode`, to (B, 3, 8h, 8w) float32, nominally in [-1, 1]."""
        self._make_room()
        return self._decoder.decode(latent)

    def decode_within(self, latent: Tensor, workspace: Workspace) -> Iterator[Tensor]:
        """Like `decode` for one latent, in bounded memory: in strips if the image does not fit."""
        self._make_room()
        return self._decoder.decode_within(latent, workspace)

    def sigmas(self, timesteps: Tensor) -> Tensor:
        """The share of noise at each of (B,) timesteps: (B,) float32 on the model's device."""
        levels = [self.schedule.level(step) for step in timesteps.tolist()]
        return torch.tensor(levels, dtype=torch.float32, device=self.device)

    def _sigma(self, step: int, latent: Tensor) -> Tensor:
        return torch.full((len(latent),), self.schedule.level(step), dtype=torch.float32, device=latent.device)

    def _make_room(self) -> None:
        if self._release is not None:
            self._release()


class FlowTrainable:
    """A `Trainable` of a flow-matching model: LoRA in the VAE's encoder and in the transformer.

    Args:
        restorer: restorer of the base model, on the device for training.
        adapters: peft's wrappers of the encoder and the transformer, by part name.
        record: written to saved folders.
    """

    def __init__(self, restorer: FlowRestorer, adapters: dict[str, PeftModel], record: ModelRecord) -> None:
        self.restorer: Restorer = restorer
        self._flow, self._adapters, self._record = restorer, adapters, record
        self.networks: nn.Module = nn.ModuleDict({"vae": restorer.vae, "transformer": restorer.model.network})

    def trained(self) -> dict[str, nn.Parameter]:
        """The weights of the adapters."""
        return adapter_weights(self._adapters)

    def encode(self, image: Tensor, draws: Sequence[torch.Generator]) -> Tensor:
        """Map (B, 3, H, W) in [-1, 1] to (B, C, H/8, W/8), sampled from the posterior."""
        return self._flow.encode(image, list(draws))

    @torch.no_grad()
    def encode_clean(self, image: Tensor, draws: Sequence[torch.Generator]) -> Tensor:
        """Sample the posterior of the encoder without its adapter."""
        encoder = next(iter(self._adapters.values()))
        with encoder.disable_adapter():
            return self._flow.encode(image, list(draws))

    def denoise(self, noisy_latent: Tensor, timesteps: Tensor) -> Tensor:
        """Recover clean latents with the transformer and its adapter."""
        velocity = self._flow.predict(noisy_latent, self._flow.sigmas(timesteps))
        return self._flow.schedule.clean_latent(noisy_latent, velocity, timesteps)

    def checkpoint_gradients(self) -> None:
        """Store only the inputs of blocks, in both networks."""
        networks: tuple[Any, ...] = (self._flow.model.network, self._flow.vae)
        for network in networks:
            network.enable_gradient_checkpointing()

    def share_backbone(self, share: Callable[[nn.Module], None], device: torch.device) -> None:
        """Shard the transformer's weights, except its adapter's; the VAE moves to the device completely."""
        share(self._flow.model.network)
        self.networks.to(device)
        self._flow.model.move(device)
        self._flow.device = device

    def save(self, folder: Path) -> None:
        """Write the adapters in the published layout, `omgsr.json` and the prompt's features."""
        for part, adapter in self._adapters.items():
            adapter.save_pretrained(str(folder / part))
        self._flow.model.save_features(folder)
        write_record(self._record, folder)

    def load(self, folder: Path) -> None:
        """Load adapters with the same ranks and layers."""
        for part, adapter in self._adapters.items():
            load_lora(adapter, folder / part)
