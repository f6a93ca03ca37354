"""The Real-ESRGAN second-order degradation: sharp images to realistic low-quality ones."""

from omgsr_cli.degradation.config import PRESETS, DegradationConfig, StageConfig, load_degradation
from omgsr_cli.degradation.pipeline import degrade, describe_degradation, in_one_thread

__all__ = [
    "PRESETS",
    "DegradationConfig",
    "StageConfig",
    "degrade",
    "describe_degradation",
    "in_one_thread",
    "load_degradation",
]
