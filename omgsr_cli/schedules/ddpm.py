"""The variance-preserving noise schedule of the Stable Diffusion family."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from omgsr_cli.errors import ModelError, UsageError
from omgsr_cli.schedules.base import IndexedSchedule, check_number, check_same_shape

BETA_SCHEDULES = ("scaled_linear", "linear", "squaredcos_cap_v2")
PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")

_MAX_BETA = 0.999
_DIFFUSERS_DEFAULTS = {"num_train_timesteps": 1000, "prediction_type": "epsilon", "rescale_betas_zero_snr": False}

_SAMPLERS = {
    f"{name}Scheduler": {"beta_start": start, "beta_end": end, "beta_schedule": schedule}
    for (start, end, schedule), names in {
        (0.0001, 0.02, "linear"): (
            *("DDPM", "DDPMParallel", "DDIM", "DDIMParallel", "DDIMInverse", "PNDM", "LMSDiscrete", "EulerDiscrete"),
            *("EulerAncestralDiscrete", "DPMSolverMultistep", "DPMSolverMultistepInverse", "DPMSolverSinglestep"),
            *("DEISMultistep", "UniPCMultistep", "SASolver"),
        ),
        (0.00085, 0.012, "linear"): ("HeunDiscrete", "KDPM2Discrete", "KDPM2AncestralDiscrete", "DPMSolverSDE"),
        (0.00085, 0.012, "scaled_linear"): ("LCM", "TCD"),
    }.items()
    for name in names
}
"""Diffusers schedulers with DDPM's noise, and their default betas."""


@dataclass(frozen=True)
class DdpmSchedule(IndexedSchedule):
    """The variance-preserving schedule: noisy = sqrt(alpha_bar) clean + sqrt(1 - alpha_bar) noise.

    Source: DDPM, arXiv:2006.11239; v-prediction, arXiv:2202.00512; zero terminal SNR, arXiv:2305.08891, Algorithm 1.
    The fields are those of diffusers' DDPMScheduler, with the defaults of Stable Diffusion.

    Attributes:
        beta_start: first beta, in (0, 1); unused by squaredcos_cap_v2.
        beta_end: last beta, in (0, 1); unused by squaredcos_cap_v2.
        beta_schedule: "linear" in beta, "scaled_linear" in sqrt(beta), or "squaredcos_cap_v2".
        num_train_timesteps: number of timesteps, T.
        prediction_type: what the network predicts: "epsilon", "v_prediction" or "sample".
        rescale_betas_zero_snr: the last timestep is pure noise.
    """

    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    num_train_timesteps: int = 1000
    prediction_type: str = "epsilon"
    rescale_betas_zero_snr: bool = False

    def __post_init__(self) -> None:
        _check_choice("beta_schedule", self.beta_schedule, BETA_SCHEDULES)
        _check_choice("prediction_type", self.prediction_type, PREDICTION_TYPES)
        check_number("num_train_timesteps", self.num_train_timesteps, whole=True)
        if self.num_train_timesteps < 2:
            raise ModelError(f"scheduler: num_train_timesteps is {self.num_train_timesteps}, but must be at least 2")
        if not isinstance(self.rescale_betas_zero_snr, bool):
            raise ModelError(f"scheduler: rescale_betas_zero_snr is {self.rescale_betas_zero_snr!r}, not true or false")
        check_number("beta_start", self.beta_start)
        check_number("beta_end", self.beta_end)
        if not 0 < self.beta_start <= self.beta_end < 1:
            raise ModelError(f"scheduler: betas {self.beta_start:g} to {self.beta_end:g} must increase within (0, 1)")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Read a diffusers scheduler configuration; keys that do not affect the noise are ignored.

        Raises:
            ModelError: the scheduler, schedule, prediction type or betas are not supported.
        """
        name = str(config.get("_class_name", "DDPMScheduler"))
        if name not in _SAMPLERS:
            raise ModelError(f"scheduler: {name} is not supported", "use a base model with DDPM's noise")
        if config.get("use_flow_sigmas"):
            raise ModelError(
                "scheduler: use_flow_sigmas is not supported", "use a base model that was not trained by flow matching"
            )
        if config.get("trained_betas") is not None:
            raise ModelError("scheduler: trained_betas are not supported", f"use {' or '.join(BETA_SCHEDULES)}")
        return cls(
            **{key: config.get(key, default) for key, default in (_DIFFUSERS_DEFAULTS | _SAMPLERS[name]).items()}
        )

    def to_config(self) -> dict[str, Any]:
        """The configuration with diffusers' keys."""
        return {"_class_name": "DDPMScheduler", **asdict(self)}

    @property
    def num_timesteps(self) -> int:
        """The number of timesteps, T."""
        return self.num_train_timesteps

    @property
    def level_name(self) -> str:
        """The name of the value of `level`."""
        return "alpha_bar"

    def level(self, t: int) -> float:
        """Same as `alpha_bar`."""
        return self.alpha_bar(t)

    def alpha_bar(self, t: int) -> float:
        """The share of signal power at a timestep, no unit, in [0, 1)."""
        return self.at(self._alpha_bars, t)

    def snr(self) -> Tensor:
        """alpha_bar / (1 - alpha_bar): (T,) float64, decreasing."""
        return self._alpha_bars / (1.0 - self._alpha_bars)

    def clean_latent(self, noisy: Tensor, prediction: Tensor, t: int | Tensor) -> Tensor:
        """Recover the clean latent in one step, with s = sqrt(alpha_bar) and n = sqrt(1 - alpha_bar).

        epsilon: (noisy - n prediction) / s; v_prediction: s noisy - n prediction; sample: the prediction itself.
        Source: DDPM, arXiv:2006.11239, Eq. 15; used for a single step as in OMGSR, arXiv:2508.08227.

        Args:
            noisy: (B, ...) float, scaled.
            prediction: the network's output, same shape, dtype and device.
            t: one timestep, or (B,) integers.
        Returns:
            (B, ...), dtype and device of noisy; not clamped.
        Raises:
            ShapeError: the shapes differ.
            UsageError: t is out of range, or the latent has no signal at t.
        """
        check_same_shape(noisy, prediction, "prediction")
        signal, noise = self.coefficient(self._signal, t, noisy), self.coefficient(self._noise, t, noisy)
        if self.prediction_type == "sample":
            return prediction
        if self.prediction_type == "v_prediction":
            return signal * noisy - noise * prediction
        if self.rescale_betas_zero_snr and bool((signal == 0).any()):
            raise UsageError(f"timestep {self.num_timesteps - 1} has no signal to recover from a noise prediction")
        return (noisy - noise * prediction) / signal

    @cached_property
    def _betas(self) -> Tensor:
        count = self.num_train_timesteps
        if self.beta_schedule == "linear":
            return torch.linspace(self.beta_start, self.beta_end, count, dtype=torch.float64)
        if self.beta_schedule == "scaled_linear":
            return torch.linspace(self.beta_start**0.5, self.beta_end**0.5, count, dtype=torch.float64).square()
        # Cosine, arXiv:2102.09672, Eq. 17.
        time = torch.linspace(0, 1, count + 1, dtype=torch.float64)
        share = torch.cos((time + 0.008) / 1.008 * math.pi / 2).square()
        return (1.0 - share[1:] / share[:-1]).clamp_max(_MAX_BETA)

    @cached_property
    def _alpha_bars(self) -> Tensor:
        alpha_bars = torch.cumprod(1.0 - self._betas, dim=0)
        if not self.rescale_betas_zero_snr:
            return alpha_bars
        root = alpha_bars.sqrt()
        return ((root - root[-1]) * (root[0] / (root[0] - root[-1]))).square()

    @cached_property
    def _signal(self) -> Tensor:
        return self._alpha_bars.sqrt()

    @cached_property
    def _noise(self) -> Tensor:
        return (1.0 - self._alpha_bars).sqrt()


def _check_choice(key: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ModelError(f"scheduler: {key} is {value!r}", f"supported are {', '.join(choices)}")
