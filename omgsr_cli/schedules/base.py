"""The interface of noise schedules, and the look-ups that they share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from omgsr_cli.errors import ModelError, ShapeError, UsageError
from omgsr_cli.transfer import upload


@runtime_checkable
class Schedule(Protocol):
    """The interface of noise schedules."""

    @property
    def num_timesteps(self) -> int:
        """The number of timesteps, T."""
        ...

    @property
    def level_name(self) -> str:
        """The usual name of the value of `level`: "alpha_bar" or "sigma"."""
        ...

    def level(self, t: int) -> float:
        """The schedule's own measure of noise at a timestep, no unit."""
        ...

    def snr(self) -> Tensor:
        """The signal-to-noise ratio of a signal of unit power: (T,) float64, decreasing; may begin with inf."""
        ...

    def snr_at(self, t: int) -> float:
        """The value of `snr` at one timestep."""
        ...

    def add_noise(self, clean: Tensor, noise: Tensor, t: int | Tensor) -> Tensor:
        """Add unit-variance noise to a clean latent (B, ...), at one timestep or at (B,) timesteps."""
        ...

    def clean_latent(self, noisy: Tensor, prediction: Tensor, t: int | Tensor) -> Tensor:
        """Recover the clean latent (B, ...) from a noisy one and the network's prediction; not clamped."""
        ...

    def check_timestep(self, t: int) -> None:
        """Raise UsageError unless t is in 0..T-1."""
        ...

    def to_config(self) -> dict[str, Any]:
        """The configuration with diffusers' keys, as `build_schedule` reads it."""
        ...


class IndexedSchedule(ABC):
    """Checks and table look-ups that all schedules share; subclasses provide the tables."""

    @property
    @abstractmethod
    def num_timesteps(self) -> int:
        """The number of timesteps, T."""

    @abstractmethod
    def snr(self) -> Tensor:
        """The signal-to-noise ratio of a signal of unit power: (T,) float64, decreasing."""

    @property
    @abstractmethod
    def _signal(self) -> Tensor:
        """The factor of the clean latent in the noisy one: (T,) float64, decreasing."""

    @property
    @abstractmethod
    def _noise(self) -> Tensor:
        """The factor of the unit-variance noise in the noisy latent: (T,) float64, increasing."""

    def add_noise(self, clean: Tensor, noise: Tensor, t: int | Tensor) -> Tensor:
        """Mix a clean latent with noise: sqrt(alpha_bar) clean + sqrt(1 - alpha_bar) noise, or (1 - sigma) and sigma.

        Args:
            clean: (B, ...) float, scaled.
            noise: same shape, dtype and device; unit variance.
            t: one timestep, or (B,) integers.
        Returns:
            (B, ...), dtype and device of clean.
        Raises:
            ShapeError: the shapes differ.
            UsageError: t is out of range.
        """
        check_same_shape(clean, noise, "noise")
        return self.coefficient(self._signal, t, clean) * clean + self.coefficient(self._noise, t, clean) * noise

    def snr_at(self, t: int) -> float:
        """The signal-to-noise ratio of a signal of unit power at one timestep."""
        return self.at(self.snr(), t)

    def check_timestep(self, t: int) -> None:
        """Raise UsageError unless t is in 0..T-1."""
        if not 0 <= t < self.num_timesteps:
            raise UsageError(f"timestep {t} is out of range", f"this schedule has 0 to {self.num_timesteps - 1}")

    def at(self, table: Tensor, t: int) -> float:
        """The value of a (T,) table at one timestep, which is checked."""
        self.check_timestep(t)
        return float(table.numpy()[t])

    def coefficient(self, table: Tensor, t: int | Tensor, like: Tensor) -> Tensor:
        """The values of a float64 (T,) table at t, shaped to multiply `like` (B, ...)."""
        if isinstance(t, int):
            # A CPU scalar works with tensors on any device, and copying it there would block.
            return torch.tensor(self.at(table, t), dtype=like.dtype)
        if t.shape != like.shape[:1] or t.is_floating_point():
            raise ShapeError(
                f"timesteps must be one integer for each of {len(like)} samples, not {t.dtype} {tuple(t.shape)}"
            )
        # Look the values up on the CPU: timesteps that are there already cause no wait.
        timesteps = t.cpu()
        for end in timesteps.aminmax():
            self.check_timestep(int(end))
        # Cast first, because some devices have no float64.
        values = table[timesteps].to(like.dtype)
        return upload(values, like.device).reshape(-1, *[1] * (like.ndim - 1))


def check_number(key: str, value: object, *, whole: bool = False) -> None:
    """Raise ModelError if a value of a scheduler's configuration is not a finite number."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or (whole and not isinstance(value, int)):
        raise ModelError(f"scheduler: {key} is {value!r}, not a {'whole ' if whole else ''}number")


def check_same_shape(first: Tensor, second: Tensor, name: str) -> None:
    """Raise ShapeError if the shapes of a latent and a second tensor differ."""
    if first.shape != second.shape:
        raise ShapeError(f"latent {tuple(first.shape)} and {name} {tuple(second.shape)} differ in shape")
