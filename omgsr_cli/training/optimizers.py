"""The optimisers and the learning rate, which is a function of the step's number alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from omgsr_cli.errors import UsageError

_LEAST_SHARE = 0.02
"""What is left of the learning rate at the end of a falling schedule."""


def build_adamw(
    weights: Iterable[nn.Parameter],
    *,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    eight_bit: bool = False,
) -> torch.optim.Optimizer:
    """Build AdamW, arXiv:1711.05101.

    Args:
        weights: that learn.
        lr: before the schedule.
        betas: decay of the averages of the gradient and of its square.
        weight_decay: decoupled.
        eight_bit: keep the averages in 8 bits, by bitsandbytes.
    Raises:
        UsageError: eight_bit, and bitsandbytes is not installed.
    """
    kind: type[torch.optim.Optimizer] = torch.optim.AdamW
    if eight_bit:
        try:
            from bitsandbytes.optim import AdamW8bit  # type: ignore[import-not-found]  # an extra of its own
        except ImportError as error:
            raise UsageError("eight_bit needs bitsandbytes", "pip install bitsandbytes, or leave it out") from error
        kind = AdamW8bit
    return kind(list(weights), lr=lr, betas=betas, weight_decay=weight_decay)  # type: ignore[call-arg]  # AdamW's own


def learning_rate_share(
    step: int, steps: int, schedule: Literal["constant", "linear", "cosine"], warmup_steps: int
) -> float:
    """Share of the learning rate that a step takes.

    It rises linearly over the warm-up, whatever the schedule, and then stays, or falls to 2 % at the last step.

    Args:
        step: number of the step, from 0.
        steps: of the run.
        schedule: what follows the warm-up.
        warmup_steps: the first of them takes 1/warmup_steps.
    Returns:
        In (0, 1].
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup_steps) / max(1, steps - 1 - warmup_steps))
    left = 1 - done if schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return _LEAST_SHARE + (1 - _LEAST_SHARE) * left


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def clip_gradients(weights: Iterable[nn.Parameter], clip: float) -> Tensor:
    """Scale the gradients to a norm of at most `clip`.

    Returns:
        The norm before, a scalar; not finite where any gradient is not.
    """
    return torch.nn.utils.clip_grad_norm_(list(weights), clip)
