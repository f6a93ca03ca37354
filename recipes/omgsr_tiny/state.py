"""What a stage needs to go on after an interruption, written whole or not at all."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn


class Ema:
    """An exponential moving average of the weights, with the usual warm-up of its decay."""

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self.weights = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """Move the average one step towards the network's weights."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        own, new = list(self.weights.values()), [v.detach() for v in network.state_dict().values()]
        torch._foreach_lerp_(own, new, 1 - decay)


@dataclass
class State:
    """Everything that a training stage changes as it goes."""

    network: nn.Module
    ema: Ema
    optimizers: dict[str, torch.optim.Optimizer]
    step: int
    discriminator: nn.Module | None = None


def save_state(path: Path, state: State) -> None:
    """Write beside and rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    torch.save(
        {
            "network": state.network.state_dict(),
            "ema": state.ema.weights,
            "ema_updates": state.ema.updates,
            "optimizers": {name: opt.state_dict() for name, opt in state.optimizers.items()},
            "discriminator": state.discriminator.state_dict() if state.discriminator else None,
            "step": state.step,
        },
        partial,
    )
    os.replace(partial, path)


def load_state(path: Path, state: State) -> bool:
    """Go on from `path`; False where there is none."""
    if not path.exists():
        return False
    saved = torch.load(path, weights_only=True)
    state.network.load_state_dict(saved["network"])
    state.ema.weights = saved["ema"]
    state.ema.updates = saved["ema_updates"]
    for name, optimizer in state.optimizers.items():
        optimizer.load_state_dict(saved["optimizers"][name])
    if state.discriminator:
        state.discriminator.load_state_dict(saved["discriminator"])
    state.step = saved["step"]
    return True
