"""An exponential moving average of the weights that learn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """Averages of weights, whose decay grows from 0.1 to its value while there is little to average.

    average <- average + (1 - d) (weight - average), with d = min(decay, (1 + n) / (10 + n)) after n updates.

    Args:
        weights: by name; the average begins with their present values.
        decay: in [0, 1).
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
        """Take saved averages."""
        for name, value in self.values.items():
            value.copy_(values[name])
        self.updates = updates

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the averages in the weights' place, to save or to measure them; the weights come back to the bit."""
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
