"""Mean and variance of a whole layer, added up from its strips."""

from __future__ import annotations

import torch
from torch import Tensor

# Positions whose sum is left to float32. Matrix products, which are quickest, add one after the other: over a whole
# strip of half a million the sum of squares was 1e-4 off, over so many it is 2e-8.
_TOGETHER = 256


class MomentSums:
    """Adds up strips to the moments of every channel, in float64.

    Each strip is summed around a value of its own, a few hundred positions at a time in float32, and merged by the
    formula of Chan, Golub and LeVeque (1979): nothing cancels where the mean is large, or is lost where the sum is.

    Args:
        channels: of the layer.
    """

    def __init__(self, channels: int) -> None:
        self._count = 0
        self._mean = torch.zeros(channels, dtype=torch.float64)
        self._squares = torch.zeros(channels, dtype=torch.float64)

    def add(self, rows: Tensor) -> None:
        """Add (1, C, rows, W) of any device."""
        values = rows.permute(0, 2, 3, 1).reshape(-1, rows.shape[1]).float()
        pivot = values[:: max(1, len(values) // 64)].mean(dim=0)
        centred = values - pivot
        offset = _sum(centred) / len(values)
        squares = _sum(centred.square_()) - offset.square() * len(values)
        mean = pivot.cpu().double() + offset
        count = self._count + len(values)
        delta = mean - self._mean
        self._squares += squares + delta.square() * (self._count * len(values) / count)
        self._mean += delta * (len(values) / count)
        self._count = count

    def moments(self, groups: int) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of equal groups of channels, each repeated for its channels: (C,) float32."""
        means = self._mean.view(groups, -1)
        mean = means.mean(dim=1, keepdim=True)
        within = self._squares.view(groups, -1) / self._count
        variance = (within + (means - mean).square()).mean(dim=1, keepdim=True)
        return mean.expand_as(means).reshape(-1).float(), variance.expand_as(means).reshape(-1).float()


def _sum(values: Tensor) -> Tensor:
    """(N, C) float32 of any device to the sums over N, (C,) float64 on the CPU."""
    whole = len(values) // _TOGETHER * _TOGETHER
    blocks, rest = values[:whole].view(-1, _TOGETHER, values.shape[1]), values[whole:]
    sums = torch.cat((values.new_ones(1, _TOGETHER) @ blocks, rest.sum(dim=0)[None, None]))
    return sums[:, 0].cpu().double().sum(dim=0)
