"""What every noise schedule can be asked, and the look-ups that they share."""

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
    """What all families of noise schedules can be asked."""

    @property
    def num_timesteps(self) -> int:
        """The number of timesteps, T."""
        ...

    @property
    def level_name(self) -> str:
        """What `level` gives, by its name in the field: "alpha_bar" or "sigma"."""
        ...

    def level(self, t: int) -> float:
        """Give the schedule's own measure of noise at a timestep, no unit."""
        ...

    def snr(self) -> Tensor:
        """Tabulate the signal-to-noise ratio of a signal of unit power: (T,) float64, falling; may begin with inf."""
        ...

    def snr_at(self, t: int) -> float:
        """Give `snr` at one timestep."""
        ...

    def add_noise(self, clean: Tensor, noise: Tensor, t: int | Tensor) -> Tensor:
        """Make the noisy latent (B, ...) of a clean one and unit-variance noise, at one timestep or at (B,) of them."""
        ...

    def clean_latent(self, noisy: Tensor, prediction: Tensor, t: int | Tensor) -> Tensor:
        """Recover the clean latent (B, ...) from a noisy one and the network's prediction; not clamped."""
        ...

    def check_timestep(self, t: int) -> None:
        """Raise UsageError where t is not 0..T-1."""
        ...

    def to_config(self) -> dict[str, Any]:
        """Give the configuration, in diffusers' keys, that `build_schedule` takes."""
        ...


class IndexedSchedule(ABC):
    """Checks and table look-ups that both families share; a subclass gives the tables."""

    @property
    @abstractmethod
    def num_timesteps(self) -> int:
        """The number of timesteps, T."""

    @abstractmethod
    def snr(self) -> Tensor:
        """Tabulate the signal-to-noise ratio of a signal of unit power: (T,) float64, falling."""

    @property
    @abstractmethod
    def _signal(self) -> Tensor:
        """How much of the clean latent is in the noisy one: (T,) float64, falling."""

    @property
    @abstractmethod
    def _noise(self) -> Tensor:
        """How much noise of unit variance is in the noisy latent: (T,) float64, rising."""

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
        """Give the signal-to-noise ratio of a signal of unit power at one timestep."""
        return self.at(self.snr(), t)

    def check_timestep(self, t: int) -> None:
        """Raise UsageError where t is not 0..T-1."""
        if not 0 <= t < self.num_timesteps:
            raise UsageError(f"timestep {t} is out of range", f"this schedule has 0 to {self.num_timesteps - 1}")

    def at(self, table: Tensor, t: int) -> float:
        """Look a (T,) table up at one checked timestep."""
        self.check_timestep(t)
        return float(table.numpy()[t])

    def coefficient(self, table: Tensor, t: int | Tensor, like: Tensor) -> Tensor:
        """Look a float64 (T,) table up at t, shaped to multiply `like` (B, ...)."""
        if isinstance(t, int):
            # A number of the CPU goes with tensors of any device, and copying it there would be a wait.
            return torch.tensor(self.at(table, t), dtype=like.dtype)
        if t.shape != like.shape[:1] or t.is_floating_point():
            raise ShapeError(
                f"timesteps are {t.dtype} {tuple(t.shape)}, not one integer for each of {len(like)} samples"
            )
        # Looked up on the CPU: timesteps that are there cost no wait.
        timesteps = t.cpu()
        for end in timesteps.aminmax():
            self.check_timestep(int(end))
        # Cast before the move: not every device has float64.
        values = table[timesteps].to(like.dtype)
        return upload(values, like.device).reshape(-1, *[1] * (like.ndim - 1))


def check_number(key: str, value: object, *, whole: bool = False) -> None:
    """Raise ModelError where a scheduler's configuration has something else in the place of a finite number."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or (whole and not isinstance(value, int)):
        raise ModelError(f"scheduler: {key} is {value!r}, not a {'whole ' if whole else ''}number")


def check_same_shape(first: Tensor, second: Tensor, name: str) -> None:
    """Raise ShapeError where a latent and what goes with it differ in shape."""
    if first.shape != second.shape:
        raise ShapeError(f"latent {tuple(first.shape)} and {name} {tuple(second.shape)} differ in shape")
