"""Mean and variance of a whole layer, added up from its strips."""

from __future__ import annotations

import torch
from torch import Tensor


class MomentSums:
    """Adds up strips to the moments of every channel, in float64.

    Each strip is summed in float32 around a value of its own and merged by the formula of Chan, Golub and LeVeque
    (1979), so that nothing cancels where the mean is large.

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
        ones = centred.new_ones(1, len(centred))
        offset = (ones @ centred)[0].cpu().double() / len(values)
        squares = (ones @ centred.square_())[0].cpu().double() - offset.square() * len(values)
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
