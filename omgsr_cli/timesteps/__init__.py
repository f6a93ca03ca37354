"""Find the mid-timestep of a dataset by matching signal-to-noise ratios (OMGSR, arXiv:2508.08227)."""

from omgsr_cli.timesteps.matching import MidTimestep, latent_snr, match_snr, own_timesteps, spread_by
from omgsr_cli.timesteps.measure import Measured, measure, plan_samples

__all__ = [
    "Measured",
    "MidTimestep",
    "latent_snr",
    "match_snr",
    "measure",
    "own_timesteps",
    "plan_samples",
    "spread_by",
]
