"""Noise schedules: what share of a latent is noise at a timestep, and the one step back to the clean latent.

A timestep is an index 0..T-1; the noise grows with it in every schedule. Latents are scaled as the model's VAE
configuration says. Tables are made in float64 on the CPU once; tensors keep their own dtype and device.
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

    A Stable Diffusion folder may name any sampler of its family (PNDM, DDIM, Euler): all share the betas.

    Raises:
        ModelError: the configuration is not supported.
    """
    name = str(config.get("_class_name", "DDPMScheduler"))
    return FlowSchedule.from_config(config) if name.startswith("FlowMatch") else DdpmSchedule.from_config(config)
