"""One optimiser step: forward and backward passes of the generator and the discriminator, and their joint update."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from omgsr_cli.errors import UsageError
from omgsr_cli.models.base import Trainable
from omgsr_cli.training.config import GanConfig, TrainConfig
from omgsr_cli.training.data import Batch, Purpose, draw_generators
from omgsr_cli.training.discriminator import Discriminator, Draws, build_discriminator
from omgsr_cli.training.distributed import prepare, share
from omgsr_cli.training.losses import Losses, cut_window, discriminator_loss, generator_gan_loss
from omgsr_cli.training.model import Denoising, Generator, build_generator
from omgsr_cli.training.perceptual import FeatureNet

_LEAST_SHARE = 0.02
"""Fraction of the learning rate at the end of a decaying schedule."""


def build_adamw(
    weights: Iterable[nn.Parameter],
    *,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    eight_bit: bool = False,
) -> torch.optim.Optimizer:
    """Build AdamW, arXiv:1711.05101, or with `eight_bit` that of bitsandbytes, which keeps its averages in 8 bits.

    Raises:
        UsageError: eight_bit is set and bitsandbytes is not installed.
    """
    kind: type[torch.optim.Optimizer] = torch.optim.AdamW
    if eight_bit:
        try:
            from bitsandbytes.optim import AdamW8bit
        except ImportError as error:
            raise UsageError("eight_bit needs bitsandbytes", "pip install bitsandbytes, or set it to false") from error
        kind = AdamW8bit
    return kind(list(weights), lr=lr, betas=betas, weight_decay=weight_decay)  # type: ignore[call-arg]  # AdamW's own


def learning_rate_share(
    step: int, steps: int, schedule: Literal["constant", "linear", "cosine"], warmup_steps: int
) -> float:
    """Compute the fraction of the learning rate that a step (numbered from 0) uses: in (0, 1].

    Every schedule rises linearly over the warm-up, whose first step uses 1/warmup_steps. The rate then stays constant
    or decays to 2 % at the last step.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup_steps) / max(1, steps - 1 - warmup_steps))
    left = 1 - done if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return _LEAST_SHARE + (1 - _LEAST_SHARE) * left


class WeightAverage:
    """Exponential moving averages of weights by name, whose decay grows from 0.1 to its final value, `decay` in [0, 1).

    average <- average + (1 - d) (weight - average), with d = min(decay, (1 + n) / (10 + n)) after n updates.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter], decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._weights = dict(weights)
        self.values = {name: weight.detach().clone() for name, weight in weights.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Move the averages one step towards the weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.values.values()), list(self._weights.values()), 1 - decay)

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor], updates: int) -> None:
        """Load saved averages."""
        for name, value in self.values.items():
            value.copy_(values[name])
        self.updates = updates

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Replace the weights with their averages, for saving or validation; restore them bit for bit on exit."""
        own = {name: weight.detach().clone() for name, weight in self._weights.items()}
        self._put(self.values)
        try:
            yield
        finally:
            self._put(own)

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, weight in self._weights.items():
            weight.copy_(values[name])


class _Panel(nn.Module):
    """Run the discriminator on several batches in one forward pass, because processes synchronise one pass."""

    def __init__(self, discriminator: Discriminator) -> None:
        super().__init__()
        self.discriminator = discriminator

    def forward(self, images: list[Tensor], draws: Draws) -> list[list[Tensor]]:
        return [self.discriminator(image, draws) for image in images]


class Adversary:
    """A discriminator with its optimiser.

    The published script keeps the gradients of the generator's loss in the discriminator, and also multiplies the
    discriminator's losses by the weight of that loss: it steps along w * gan + w * (real + fake). Here the heads are
    frozen for the generator's loss and their own loss is unweighted, unless `parity` is set.

    Args:
        discriminator: the discriminator; only its heads are trained.
        config: the [gan] section.
        weight_decay: weight decay of its optimiser.
    """

    def __init__(self, discriminator: Discriminator, config: GanConfig, weight_decay: float) -> None:
        self.discriminator = discriminator
        self.weights = {name: weight for name, weight in discriminator.named_parameters() if weight.requires_grad}
        self.optimizer = build_adamw(self.weights.values(), lr=config.lr, betas=config.betas, weight_decay=weight_decay)
        self._config = config
        self._panel = _Panel(discriminator)
        self.prepared: nn.Module = self._panel

    def learns_alone(self, step: int) -> bool:
        """Return whether the generator is not updated in this step (numbered from 0)."""
        return step < self._config.start_step + self._config.alone_steps

    def state(self) -> dict[str, Tensor]:
        """Return the heads' weights and buffers, not copies; the frozen backbone is not included."""
        return dict(self.discriminator.heads.state_dict())

    def prepare(self, accelerator: Accelerator) -> None:
        """Prepare the heads so that processes synchronise their gradients."""
        self.prepared = prepare(accelerator, self._panel)

    @contextmanager
    def judging(self) -> Iterator[None]:
        """Freeze the heads from the generator's forward pass to the end of its backward pass, except for parity."""
        self._learn(self._config.parity)
        try:
            yield
        finally:
            self._learn(True)

    def generator_loss(self, restored: Tensor, seed: int, numbers: Sequence[int]) -> Tensor:
        """Compute the generator's adversarial loss of (B, 3, H, W): a scalar with gradients to the restored images.

        Seed and sample numbers determine the windows and the augmentation.
        """
        draws = draw_generators(seed, Purpose.JUDGEMENT, numbers)
        restored, _ = self._cut(restored, restored, draws)
        panel = self.prepared if self._config.parity else self._panel
        return generator_gan_loss(panel([restored], draws)[0], self._config.real_label)

    def discriminator_loss(self, real: Tensor, restored: Tensor, seed: int, numbers: Sequence[int]) -> Tensor:
        """Compute the discriminator's loss of (B, 3, H, W) in [-1, 1]: a scalar with gradients to its heads.

        Restored images have no gradients; seed and sample numbers are used as in `generator_loss`.
        """
        draws = draw_generators(seed, Purpose.AUGMENT, numbers)
        real, restored = self._cut(real, restored, draws)
        real_logits, fake_logits = self.prepared([real, restored], draws)
        labels = (self._config.real_label, self._config.fake_label)
        return discriminator_loss(real_logits, fake_logits, labels)

    def _cut(self, first: Tensor, second: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        px = self._config.px
        return cut_window(first, second, (px, px), draws) if px else (first, second)

    def _learn(self, learns: bool) -> None:
        for weight in self.weights.values():
            weight.requires_grad_(learns)


@dataclass
class Learner:
    """The generator as one module with its trained weights by name, their optimiser and losses.

    Without a moving average or a discriminator, these are None.
    """

    generator: Generator | Denoising
    weights: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None
    adversary: Adversary | None
    losses: Losses


def build_learner(
    config: TrainConfig,
    trainable: Trainable,
    losses: Losses,
    judged: FeatureNet | None,
    device: torch.device,
) -> Learner:
    """Build the generator and the discriminator with their optimisers.

    `judged` is the feature network of the discriminator; None without one, or for the U-Net.

    Raises:
        UsageError: crops are too small for the discriminator, or bitsandbytes is not installed.
    """
    weights, optim = trainable.trained(), config.optim
    adversary = None
    if config.loss.gan:
        mixed = config.train.precision == "mixed"
        built = build_discriminator(judged, config.data.resolution, config.gan, config.train.seed, autocast=mixed)
        adversary = Adversary(built.to(device), config.gan, optim.weight_decay)
    return Learner(
        generator=build_generator(config, trainable),
        weights=weights,
        optimizer=build_adamw(
            weights.values(),
            lr=optim.lr,
            betas=optim.betas,
            weight_decay=optim.weight_decay,
            eight_bit=optim.eight_bit,
        ),
        average=WeightAverage(weights, config.train.ema) if config.train.ema else None,
        adversary=adversary,
        losses=losses,
    )


@dataclass(frozen=True)
class StepResult:
    """Result of a step, the same in every process.

    Attributes:
        losses: unweighted means over processes and passes; "total" is the weighted sum of the generator's losses and
            is missing while only the discriminator is trained.
        learning_rate: learning rate of the generator.
        gradient_norm: gradient norm of the generator before clipping; 0 while the generator is not updated.
        is_finite: whether all values were finite and the weights were updated.
        signal: signal that any process received, or 0.
        broken: whether any process has a broken image to report.
    """

    losses: dict[str, float]
    learning_rate: float
    gradient_norm: float
    is_finite: bool
    signal: int
    broken: bool = False


class Stepper:
    """Runs optimiser steps.

    The discriminator is frozen during the generator's passes, so that its gradients come only from its own loss.
    Gradients are synchronised once, in the last pass of a step.
    """

    def __init__(self, accelerator: Accelerator, learner: Learner, config: TrainConfig) -> None:
        self._accelerator, self._learner, self._config = accelerator, learner, config
        self._generator = prepare(accelerator, learner.generator)
        if learner.adversary is not None:
            learner.adversary.prepare(accelerator)

    def take(self, step: int, batches: Iterator[Batch], signal: int) -> StepResult:
        """Run one step, numbered from 0.

        Args:
            step: number of the step.
            batches: batches of this process; the step uses `accumulate` of them.
            signal: signal that this process received, or 0.
        """
        learner, passes = self._learner, self._config.optim.accumulate
        adversary = learner.adversary if step >= self._config.gan.start_step else None
        alone = adversary if adversary is not None and adversary.learns_alone(step) else None
        rate = self._set_rates(step)
        sums: dict[str, Tensor] = {}
        broken = 0
        for number in range(passes):
            batch, last = next(batches), number == passes - 1
            broken += len(batch.broken)
            if alone is not None:
                losses = self._backward_alone(batch, alone, passes, last=last)
            else:
                losses = self._backward(step, batch, adversary, passes, last=last)
            for name, value in losses.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value / passes
        norms = {}
        if alone is None:
            norms["gradient_norm"] = nn.utils.clip_grad_norm_(learner.weights.values(), self._config.optim.clip)
        if adversary is not None:
            norms["discriminator_norm"] = nn.utils.clip_grad_norm_(adversary.weights.values(), self._config.optim.clip)
        # Norms are already equal in every process; a loss may be finite in this process and not in another.
        shared, heard = share(self._accelerator, sums | norms | {"broken": torch.tensor(float(broken))}, signal)
        any_broken = shared.pop("broken") > 0
        finite = all(map(math.isfinite, shared.values()))
        learning = [] if alone is not None else [learner.optimizer]
        learning += [] if adversary is None else [adversary.optimizer]
        for optimizer in learning if finite else ():
            optimizer.step()
        if finite and alone is None and learner.average is not None:
            learner.average.update()
        for optimizer in learning:
            optimizer.zero_grad()
        norm = shared.pop("gradient_norm", 0.0)
        shared.pop("discriminator_norm", None)
        return StepResult(shared, rate, norm, finite, heard, any_broken)

    def _backward(
        self, step: int, batch: Batch, adversary: Adversary | None, passes: int, *, last: bool
    ) -> dict[str, Tensor]:
        """Accumulate the gradients of one batch; return the losses without gradients."""
        learner, seed = self._learner, self._config.train.seed
        with ExitStack() as stack:
            stack.enter_context(self._synchronised(self._generator, last))
            if adversary is not None:
                stack.enter_context(self._synchronised(adversary.prepared, last))
                stack.enter_context(adversary.judging())
            output = self._generator(batch.lq, batch.hq, seed, batch.numbers)
            draws = draw_generators(seed, Purpose.LOSS, batch.numbers)
            losses = learner.losses(output, batch.hq, draws, batch.target, step)
            if adversary is not None:
                losses["gan"] = adversary.generator_loss(output.restored, seed, batch.numbers)
            total = learner.losses.total(losses)
            torch.autograd.backward(total / passes)
        losses["total"] = total
        if adversary is not None:
            losses["discriminator"] = self._teach(adversary, batch, output.restored.detach(), passes, last=last)
        return {name: value.detach() for name, value in losses.items()}

    def _backward_alone(self, batch: Batch, adversary: Adversary, passes: int, *, last: bool) -> dict[str, Tensor]:
        """Accumulate only the discriminator's gradients of one batch; return its loss."""
        with torch.no_grad():
            output = self._generator(batch.lq, batch.hq, self._config.train.seed, batch.numbers)
        return {"discriminator": self._teach(adversary, batch, output.restored, passes, last=last)}

    def _teach(self, adversary: Adversary, batch: Batch, restored: Tensor, passes: int, *, last: bool) -> Tensor:
        """Accumulate the discriminator's gradients; return its loss without gradients."""
        weight = self._config.loss.gan if self._config.gan.parity else 1.0
        with self._synchronised(adversary.prepared, last):
            loss = adversary.discriminator_loss(batch.hq, restored, self._config.train.seed, batch.numbers)
            torch.autograd.backward(loss * weight / passes)
        return loss.detach()

    def _synchronised(self, module: nn.Module, last: bool) -> AbstractContextManager[None]:
        """Skip gradient synchronisation, except in the last pass of a step."""
        return nullcontext() if last else self._accelerator.no_sync(module)

    def _set_rates(self, step: int) -> float:
        optim, gan = self._config.optim, self._config.gan
        share_of = learning_rate_share(step, self._config.train.steps, optim.schedule, optim.warmup_steps)
        adversary = self._learner.adversary
        for group in self._learner.optimizer.param_groups:
            group["lr"] = optim.lr * share_of
        for group in [] if adversary is None else adversary.optimizer.param_groups:
            group["lr"] = gan.lr * share_of
        return optim.lr * share_of
