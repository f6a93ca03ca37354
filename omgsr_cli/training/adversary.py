"""The discriminator in the run: judged by it, the generator learns; shown real and restored pictures, it learns."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from accelerate import Accelerator
from torch import Tensor, nn

from omgsr_cli.training.augment import Draws
from omgsr_cli.training.discriminator import Discriminator
from omgsr_cli.training.draws import Purpose, draw_generators
from omgsr_cli.training.loss_sections import GanConfig
from omgsr_cli.training.losses import cut_window, discriminator_loss, generator_gan_loss
from omgsr_cli.training.optimizers import build_adamw
from omgsr_cli.training.processes import prepare


class _Panel(nn.Module):
    """The discriminator on any number of batches in one forward pass, as processes synchronise it."""

    def __init__(self, discriminator: Discriminator) -> None:
        super().__init__()
        self.discriminator = discriminator

    def forward(self, images: list[Tensor], draws: Draws) -> list[list[Tensor]]:
        return [self.discriminator(image, draws) for image in images]


class Adversary:
    """A discriminator with its optimiser.

    The published script let the generator's loss leave its gradients in the discriminator, and multiplied the
    discriminator's losses by the weight of that loss too: it stepped along w * gan + w * (real + fake). Here its heads
    are frozen for the generator's loss, and their own has no weight, unless `parity` is asked for.

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

    def generator_loss(self, restored: Tensor, seed: int, numbers: Sequence[int]) -> Tensor:
        """How far restored pictures are from being taken for real: a scalar with gradients to them.

        Args:
            restored: (B, 3, H, W) float32, nominally in [-1, 1].
            seed: of the run.
            numbers: B, of the samples; each with the seed decides its window and its augmentation.
        """
        draws = draw_generators(seed, Purpose.JUDGEMENT, numbers)
        restored, _ = cut_window(restored, restored, self._config.px, draws)
        panel = self.prepared if self._config.parity else self._panel
        return generator_gan_loss(panel([restored], draws)[0], self._config.real_label)

    def discriminator_loss(self, real: Tensor, restored: Tensor, seed: int, numbers: Sequence[int]) -> Tensor:
        """How badly the discriminator tells them apart: a scalar with gradients to its heads.

        Args:
            real: (B, 3, H, W) float32 in [-1, 1].
            restored: same shape, without gradients.
            seed: of the run.
            numbers: B, of the samples.
        """
        draws = draw_generators(seed, Purpose.AUGMENT, numbers)
        real, restored = cut_window(real, restored, self._config.px, draws)
        real_logits, fake_logits = self.prepared([real, restored], draws)
        labels = (self._config.real_label, self._config.fake_label)
        return discriminator_loss(real_logits, fake_logits, labels)

    def _learn(self, learns: bool) -> None:
        for weight in self.weights.values():
            weight.requires_grad_(learns)
