"""A run's parts without their values, and one step of them: what it costs shows without anything being read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from omgsr_cli.models.families import family_of
from omgsr_cli.models.family import ModelSource
from omgsr_cli.models.record import read_json
from omgsr_cli.models.trainable import Trainable
from omgsr_cli.training.config import LossConfig, TrainConfig
from omgsr_cli.training.discriminator import Discriminator, build_discriminator
from omgsr_cli.training.draws import Purpose, draw_generator
from omgsr_cli.training.losses import Losses, cut_window, join_losses
from omgsr_cli.training.model import build_generator, build_lora_options, codec_format, step_format
from omgsr_cli.training.perceptual import AlexNet, DinoV3, Dists, FeatureNet, Lpips, Vgg16, find_features

_DINOV3_WIDTHS = {
    "convnext-tiny": (96, 192, 384, 768),
    "convnext-small": (96, 192, 384, 768),
    "convnext-base": (128, 256, 512, 1024),
    "convnext-large": (192, 384, 768, 1536),
}
_DINOV3_DEPTHS = {"convnext-tiny": (3, 3, 9, 3)}
"""Those of the other sizes are 3, 3, 27, 3."""


@dataclass(frozen=True)
class Outline:
    """What a step works with.

    Attributes:
        config: of the run.
        trainable: the model.
        losses: of the generator.
        features: the feature network, or None.
        discriminator: or None.
        device: where all of it is.
    """

    config: TrainConfig
    trainable: Trainable
    losses: Losses
    features: FeatureNet | None
    discriminator: Discriminator | None
    device: torch.device

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        """Everything with weights."""
        heads = self.discriminator and self.discriminator.heads
        return tuple(part for part in (self.trainable.networks, self.losses, self.features, heads) if part is not None)

    def step(self, number: int) -> None:
        """Run the forward and backward passes of one batch in step `number`, of which not all have all losses."""
        config, discriminator = self.config, self.discriminator
        batch, side = config.data.batch_size, config.data.resolution
        hq = torch.zeros(batch, 3, side, side, device=self.device)
        # What is drawn is drawn on the CPU.
        with torch.device("cpu"):
            if config.loss.denoise:
                torch.autograd.backward(self._denoise(hq))
                return
            output = build_generator(config, self.trainable)(hq, hq, config.train.seed, range(batch))
        total = self.losses.total(self.losses(output, hq, target=hq, step=number))
        if discriminator is None:
            torch.autograd.backward(total)
            return
        hq, restored = cut_window(hq, output.restored, config.gan.px, None)
        discriminator.heads.requires_grad_(False)
        torch.autograd.backward(total + _judge(discriminator, restored))
        discriminator.heads.requires_grad_(True)
        torch.autograd.backward(_judge(discriminator, hq) + _judge(discriminator, restored.detach()))

    def _denoise(self, hq: Tensor) -> Tensor:
        """As `Denoising` does, at one timestep: others cost the same, and tensors without values cannot say theirs."""
        train = self.config.train
        draws = [draw_generator(train.seed, Purpose.LATENT, number) for number in range(len(hq))]
        with codec_format(train.precision, hq.device):
            clean_latent = self.trainable.encode_clean(hq, draws).float()
        with step_format(train.precision, hq.device):
            return (self.trainable.restorer.restore(clean_latent).float() - clean_latent).square().mean()


def outline_run(config: TrainConfig, source: ModelSource, device: torch.device) -> Outline:
    """Build the parts by their configurations, on the device; weights have any values.

    Args:
        config: of the run.
        source: of the model, from `find_run_model`.
        device: where it is going to be trained.
    Raises:
        ModelError: the configuration of the model or the feature network cannot be read.
    """
    with device:
        family = family_of(source.record, source.name)
        trainable = family.outline(source, device, config.train.frozen_precision, build_lora_options(config))
        if config.train.gradient_checkpointing:
            trainable.checkpoint_gradients()
        features = _outline_features(config)
        losses = _outline_losses(config.loss, features)
        discriminator = None
        if config.loss.gan:
            judged = features if config.loss.discriminator == "heads" else None
            discriminator = build_discriminator(
                judged, config.data.resolution, config.gan, autocast=config.train.precision == "mixed"
            )
    return Outline(config, trainable, losses, features, discriminator, device)


def _outline_features(config: TrainConfig) -> FeatureNet | None:
    """Build the feature network without its weights; None where nothing needs one."""
    source = find_features(config.loss)
    if source is None:
        return None
    if source.kind == "vgg16":
        return Vgg16().requires_grad_(False)
    from transformers import DINOv3ConvNextConfig, DINOv3ConvNextModel

    widths, depths = _dinov3_sizes(source.place)
    model = DINOv3ConvNextModel(DINOv3ConvNextConfig(hidden_sizes=list(widths), depths=list(depths)))
    encoder = getattr(model, "model", model)
    return DinoV3(list(encoder.get_submodule("stages").children())[:3], widths[:3]).requires_grad_(False)


def _dinov3_sizes(place: str) -> tuple[Sequence[int], Sequence[int]]:
    """Widths and depths of a DINOv3: a folder's own, or by the name of a repository or file."""
    own = read_json(Path(place) / "config.json") if Path(place).is_dir() else {}
    # What the name does not tell, OMGSR's own choice does: a prediction needs no more.
    path = place.replace("_", "-")
    size = next((name for name in _DINOV3_WIDTHS if name in path), "convnext-large")
    widths, depths = _DINOV3_WIDTHS[size], _DINOV3_DEPTHS.get(size, (3, 3, 27, 3))
    return own.get("hidden_sizes", widths), own.get("depths", depths)


def _outline_losses(config: LossConfig, features: FeatureNet | None) -> Losses:
    """The losses, without what their networks have learned."""
    lpips = Lpips(AlexNet(), [torch.ones(width) for width in AlexNet.channels]) if config.needs_lpips else None
    return join_losses(config, None if features is None else Dists(features), lpips).requires_grad_(False)


def _judge(discriminator: Discriminator, image: Tensor) -> Tensor:
    return torch.stack([level.mean() for level in discriminator.judge(image)]).sum()
