"""The discriminator in the run: judged by it, the generator learns; shown real and restored pictures, it learns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from omgsr_cli.training.discriminator import Discriminator
from omgsr_cli.training.draws import Purpose, draw_generator
from omgsr_cli.training.loss_sections import GanConfig
from omgsr_cli.training.losses import cut_window, discriminator_loss, generator_gan_loss
from omgsr_cli.training.optimizers import build_adamw
from omgsr_cli.training.processes import prepare


class _Panel(nn.Module):
    """The discriminator on any number of batches in one forward pass, as processes synchronise it."""

    def __init__(self, discriminator: Discriminator) -> None:
        super().__init__()
        self.discriminator = discriminator

    def forward(self, images: list[Tensor], draw: torch.Generator) -> list[list[Tensor]]:
        return [self.discriminator(image, draw) for image in images]


class Adversary:
    """A discriminator with its optimiser.

    The published script let the generator's loss leave its gradients in the discriminator, which then stepped along
    the sum. Here its heads are frozen for that loss, unless `parity` is asked for.

    Args:
        discriminator: whose heads learn.
        config: the section [gan].
        weight_decay: of its optimiser.
    """

    def __init__(self, discriminator: Discriminator, config: GanConfig, weight_decay: float) -> None:
        self.discriminator = discriminator
        self.weights = {name: weight for name, weight in discriminator.named_parameters() if weight.requires_grad}
        self.optimizer = build_adamw(self.weights.values(), lr=config.lr, betas=config.betas, weight_decay=weight_decay)
        self._config = config
        self._panel = _Panel(discriminator)
        self.prepared: nn.Module = self._panel

    def learns_alone(self, step: int) -> bool:
        """Whether the generator stays as it is in a step, by its number from 0."""
        return step < self._config.start_step + self._config.alone_steps

    def state(self) -> dict[str, Tensor]:
        """Give the heads' weights and buffers, themselves; the backbone is frozen and not among them."""
        return dict(self.discriminator.heads.state_dict())

    def prepare(self, accelerator: Accelerator) -> None:
        """Let the processes synchronise the heads' gradients."""
        self.prepared = prepare(accelerator, self._panel)

    @contextmanager
    def judging(self) -> Iterator[None]:
        """Freeze the heads, from the generator's forward pass to the end of its backward pass; not for parity."""
        self._learn(self._config.parity)
        try:
            yield
        finally:
            self._learn(True)

    def generator_loss(self, restored: Tensor, seed: int, number: int) -> Tensor:
        """How far restored pictures are from being taken for real: a scalar with gradients to them.

        Args:
            restored: (B, 3, H, W) float32, nominally in [-1, 1].
            seed: of the run.
            number: of the batch's first sample; with the seed it decides the window and the augmentation.
        """
        draw = draw_generator(seed, Purpose.JUDGEMENT, number)
        restored, _ = cut_window(restored, restored, self._config.px, draw)
        panel = self.prepared if self._config.parity else self._panel
        return generator_gan_loss(panel([restored], draw)[0], self._config.real_label)

    def discriminator_loss(self, real: Tensor, restored: Tensor, seed: int, number: int) -> Tensor:
        """How badly the discriminator tells them apart: a scalar with gradients to its heads.

        Args:
            real: (B, 3, H, W) float32 in [-1, 1].
            restored: same shape, without gradients.
            seed: of the run.
            number: of the batch's first sample.
        """
        draw = draw_generator(seed, Purpose.AUGMENT, number)
        real, restored = cut_window(real, restored, self._config.px, draw)
        real_logits, fake_logits = self.prepared([real, restored], draw)
        labels = (self._config.real_label, self._config.fake_label)
        return discriminator_loss(real_logits, fake_logits, labels)

    def _learn(self, learns: bool) -> None:
        for weight in self.weights.values():
            weight.requires_grad_(learns)
