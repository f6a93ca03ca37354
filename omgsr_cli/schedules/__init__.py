"""Noise schedules: the share of noise at each timestep, and the single step back to the clean latent.

A timestep is an index 0..T-1, and the noise increases with it in every schedule. Latents are scaled as in the
configuration of the model's VAE. Tables are computed once, in float64 on the CPU; tensors keep their dtype and device.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from omgsr_cli.schedules.base import Schedule
from omgsr_cli.schedules.ddpm import BETA_SCHEDULES, PREDICTION_TYPES, DdpmSchedule
from omgsr_cli.schedules.flow import FlowSchedule

__all__ = ["BETA_SCHEDULES", "PREDICTION_TYPES", "DdpmSchedule", "FlowSchedule", "Schedule", "build_schedule"]


def build_schedule(config: Mapping[str, Any]) -> DdpmSchedule | FlowSchedule:
    """Build the schedule of a diffusers scheduler configuration, by its `_class_name`.

    A Stable Diffusion folder may name any sampler (PNDM, DDIM, Euler): all of them have the same betas.

    Raises:
        ModelError: the configuration is not supported.
    """
    name = str(config.get("_class_name", "DDPMScheduler"))
    return FlowSchedule.from_config(config) if name.startswith("FlowMatch") else DdpmSchedule.from_config(config)
