"""One optimiser step: forward and backward passes of generator and discriminator, and their update together."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from omgsr_cli.training.adversary import Adversary
from omgsr_cli.training.average import WeightAverage
from omgsr_cli.training.config import TrainConfig
from omgsr_cli.training.data import Batch
from omgsr_cli.training.denoising import Denoising, DenoisingLoss
from omgsr_cli.training.draws import Purpose, draw_generators
from omgsr_cli.training.generator import Generator
from omgsr_cli.training.losses import Losses
from omgsr_cli.training.optimizers import clip_gradients, learning_rate_share, set_learning_rate
from omgsr_cli.training.processes import is_finite, prepare, share


@dataclass
class Learner:
    """What learns, and what makes it learn.

    Attributes:
        generator: as one module.
        weights: of the generator, those that learn, by name.
        optimizer: of these.
        average: of these, or None.
        adversary: the discriminator's side, or None.
        losses: of the generator.
    """

    generator: Generator | Denoising
    weights: dict[str, nn.Parameter]
    optimizer: torch.optim.Optimizer
    average: WeightAverage | None
    adversary: Adversary | None
    losses: Losses | DenoisingLoss


@dataclass(frozen=True)
class StepResult:
    """What a step gave, the same in every process.

    Attributes:
        losses: unweighted, means over processes and passes; "total" is the weighted sum of the generator's, which has
            none while the discriminator learns alone.
        learning_rate: of the generator.
        gradient_norm: of the generator, before clipping; 0 while it stays as it is.
        is_finite: whether the weights were changed.
        signal: that any process heard, or 0.
        broken: whether any process has a broken image to report.
    """

    losses: dict[str, float]
    learning_rate: float
    gradient_norm: float
    is_finite: bool
    signal: int
    broken: bool = False


class Stepper:
    """Takes steps.

    The generator's passes of a step come with the discriminator's frozen, so that its gradients are its own step's
    alone. Gradients are synchronised once, in the last pass of a step.
    """

    def __init__(self, accelerator: Accelerator, learner: Learner, config: TrainConfig) -> None:
        self._accelerator, self._learner, self._config = accelerator, learner, config
        self._generator = prepare(accelerator, learner.generator)
        if learner.adversary is not None:
            learner.adversary.prepare(accelerator)

    def take(self, step: int, batches: Iterator[Batch], signal: int) -> StepResult:
        """Take a step.

        Args:
            step: its number, from 0.
            batches: of this process; `accumulate` of them are used.
            signal: that this process heard, or 0.
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
            norms["gradient_norm"] = clip_gradients(learner.weights.values(), self._config.optim.clip)
        if adversary is not None:
            norms["discriminator_norm"] = clip_gradients(adversary.weights.values(), self._config.optim.clip)
        # Norms are equal in every process already; a loss may be finite in this one and not in another.
        shared, heard = share(self._accelerator, sums | norms | {"broken": torch.tensor(float(broken))}, signal)
        any_broken = shared.pop("broken") > 0
        finite = is_finite(shared)
        if finite:
            self._update(adversary, alone is None)
        self._clear()
        norm = shared.pop("gradient_norm", 0.0)
        shared.pop("discriminator_norm", None)
        return StepResult(shared, rate, norm, finite, heard, any_broken)

    def _backward(
        self, step: int, batch: Batch, adversary: Adversary | None, passes: int, *, last: bool
    ) -> dict[str, Tensor]:
        """Add one batch's gradients; the losses, without gradients."""
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
        """Add one batch's gradients of the discriminator; its loss."""
        with torch.no_grad():
            output = self._generator(batch.lq, batch.hq, self._config.train.seed, batch.numbers)
        return {"discriminator": self._teach(adversary, batch, output.restored, passes, last=last)}

    def _teach(self, adversary: Adversary, batch: Batch, restored: Tensor, passes: int, *, last: bool) -> Tensor:
        """Add the discriminator's gradients; its loss, without gradients."""
        weight = self._config.loss.gan if self._config.gan.parity else 1.0
        with self._synchronised(adversary.prepared, last):
            loss = adversary.discriminator_loss(batch.hq, restored, self._config.train.seed, batch.numbers)
            torch.autograd.backward(loss * weight / passes)
        return loss.detach()

    def _synchronised(self, module: nn.Module, last: bool) -> AbstractContextManager[None]:
        """Leave a pass's gradients in its process, unless it is the step's last."""
        return nullcontext() if last else self._accelerator.no_sync(module)

    def _set_rates(self, step: int) -> float:
        optim, gan = self._config.optim, self._config.gan
        share_of = learning_rate_share(step, self._config.train.steps, optim.schedule, optim.warmup_steps)
        set_learning_rate(self._learner.optimizer, optim.lr * share_of)
        if self._learner.adversary is not None:
            set_learning_rate(self._learner.adversary.optimizer, gan.lr * share_of)
        return optim.lr * share_of

    def _update(self, adversary: Adversary | None, generator_learned: bool) -> None:
        if generator_learned:
            self._learner.optimizer.step()
            if self._learner.average is not None:
                self._learner.average.update()
        if adversary is not None:
            adversary.optimizer.step()

    def _clear(self) -> None:
        self._learner.optimizer.zero_grad(set_to_none=True)
        if self._learner.adversary is not None:
            self._learner.adversary.optimizer.zero_grad(set_to_none=True)
