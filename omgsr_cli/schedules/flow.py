"""The flow-matching noise schedule of FLUX."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from omgsr_cli.errors import ModelError
from omgsr_cli.schedules.base import IndexedSchedule, check_number, check_same_shape


@dataclass(frozen=True)
class FlowSchedule(IndexedSchedule):
    """The straight path of flow matching: noisy = (1 - sigma) clean + sigma noise; the network predicts noise - clean.

    sigma has T values from 1 to 0, evenly spaced and then shifted to e^mu / (e^mu + 1/sigma - 1), where mu is linear in
    the number of image tokens. Timesteps are counted from the clean end, sigmas[-(t+1)]: timestep 0 has no noise.
    Source: FLUX's sampler; arXiv:2403.03206, section 5.3.2. The defaults are FLUX.1-dev's at 1024 px.

    Attributes:
        num_train_timesteps: number of timesteps, T.
        tokens: number of image tokens that determines mu; one token is 16x16 pixels.
        base_image_seq_len: tokens at which mu is base_shift.
        max_image_seq_len: tokens at which mu is max_shift.
        base_shift: mu at base_image_seq_len.
        max_shift: mu at max_image_seq_len.
        time_shift_type: whether times are shifted by exp(mu) ("exponential") or by mu itself ("linear").
    """

    num_train_timesteps: int = 1000
    tokens: int = 4096
    base_image_seq_len: int = 256
    max_image_seq_len: int = 4096
    base_shift: float = 0.5
    max_shift: float = 1.15
    time_shift_type: str = "exponential"

    def __post_init__(self) -> None:
        for key in ("num_train_timesteps", "tokens", "base_image_seq_len", "max_image_seq_len"):
            check_number(key, getattr(self, key), whole=True)
        check_number("base_shift", self.base_shift)
        check_number("max_shift", self.max_shift)
        if self.num_train_timesteps < 2:
            raise ModelError(f"scheduler: num_train_timesteps is {self.num_train_timesteps}, but must be at least 2")
        if self.base_image_seq_len >= self.max_image_seq_len:
            raise ModelError(f"scheduler: max_image_seq_len is {self.max_image_seq_len}, not above base_image_seq_len")
        if self.time_shift_type not in ("exponential", "linear"):
            raise ModelError(f"scheduler: time_shift_type is {self.time_shift_type!r}, not exponential or linear")
        if self.time_shift_type == "linear" and not self.mu > 0:
            raise ModelError(f"scheduler: the shift is {self.mu}, not above 0")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Read a diffusers FlowMatchEulerDiscreteScheduler configuration; the key `tokens` is an addition of omgsr.

        Without `use_dynamic_shifting` the constant `shift` is used for any number of tokens.

        Raises:
            ModelError: sizes or the shift are out of range.
        """
        values = {key: config.get(key, default) for key, default in asdict(cls()).items()}
        if not config.get("use_dynamic_shifting", False):
            shift = config.get("shift", 1.0)
            check_number("shift", shift)
            if not shift > 0:
                raise ModelError(f"scheduler: shift is {shift}, not above 0")
            values["base_shift"] = values["max_shift"] = math.log(shift)
            values["time_shift_type"] = "exponential"
        return cls(**values)

    def to_config(self) -> dict[str, Any]:
        """The configuration with diffusers' keys."""
        return {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True, **asdict(self)}

    @property
    def num_timesteps(self) -> int:
        """The number of timesteps, T."""
        return self.num_train_timesteps

    @property
    def level_name(self) -> str:
        """The name of the value of `level`."""
        return "sigma"

    @property
    def mu(self) -> float:
        """The logarithm of the shift, or with linear shifting the shift itself; no unit."""
        slope = (self.max_shift - self.base_shift) / (self.max_image_seq_len - self.base_image_seq_len)
        return self.base_shift + slope * (self.tokens - self.base_image_seq_len)

    def level(self, t: int) -> float:
        """Same as `sigma`."""
        return self.sigma(t)

    def sigma(self, t: int) -> float:
        """The share of noise at a timestep, no unit, in [0, 1]."""
        return self.at(self._sigmas, t)

    def snr(self) -> Tensor:
        """(1 - sigma)^2 / sigma^2: (T,) float64, decreasing from inf to 0."""
        return ((1.0 - self._sigmas) / self._sigmas).square()

    def clean_latent(self, noisy: Tensor, prediction: Tensor, t: int | Tensor) -> Tensor:
        """Recover the clean latent in one step: noisy - sigma prediction.

        Source: OMGSR, arXiv:2508.08227, its flow-matching form.

        Args:
            noisy: (B, ...) float, scaled.
            prediction: the network's velocity, same shape, dtype and device.
            t: one timestep, or (B,) integers.
        Returns:
            (B, ...), dtype and device of noisy; not clamped.
        Raises:
            ShapeError: the shapes differ.
            UsageError: t is out of range.
        """
        check_same_shape(noisy, prediction, "prediction")
        return noisy - self.coefficient(self._noise, t, noisy) * prediction

    @cached_property
    def _sigmas(self) -> Tensor:
        # Both parts of the fraction are multiplied by sigma, which avoids a division by zero.
        linear = torch.linspace(0, 1, self.num_train_timesteps, dtype=torch.float64)
        shift = math.exp(self.mu) if self.time_shift_type == "exponential" else self.mu
        return shift * linear / (1.0 + (shift - 1.0) * linear)

    @property
    def _signal(self) -> Tensor:
        return 1.0 - self._sigmas

    @property
    def _noise(self) -> Tensor:
        return self._sigmas
