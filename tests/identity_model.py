"""A model that returns its input."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from omgsr_cli.models.base import RestorerInfo, StageInfo
from omgsr_cli.schedules import DdpmSchedule

INFO = RestorerInfo(
    name="identity",
    family="none",
    scale=1.0,
    mid_timestep=273,
    multiple_of_px=8,
    native_tile_px=64,
    latent_px=8,
    codec=StageInfo("exact", 0, 1000),
    step=StageInfo("blended", 0, 1000),
    border_px=0,
    color_fix="none",
    prompt=None,
    parameters=0,
)


def exact_info(halo_px: int) -> RestorerInfo:
    stage = StageInfo("exact", halo_px, 1000)
    return replace(INFO, codec=stage, step=stage)


class Identity:
    """Returns the image unchanged; runs out of memory if a side is longer than `most_px`."""

    def __init__(self, most_px: int = 10**6, reason: str = "", exact: bool = False) -> None:
        self.info = exact_info(8) if exact else INFO
        self.schedule = DdpmSchedule()
        self.device = torch.device("cpu")
        self.precision = "fp32"
        self.notes: tuple[str, ...] = ()
        self._most_px, self._reason = most_px, reason

    def compile(self) -> None:
        """Nothing to compile."""

    def encode(self, image: Tensor, generator: torch.Generator | None = None) -> Tensor:
        if max(image.shape[2:]) > self._most_px:
            raise RuntimeError(self._reason)
        return F.pixel_unshuffle(image, 8)

    def restore(self, lq_latent: Tensor) -> Tensor:
        return lq_latent

    def decode(self, latent: Tensor) -> Tensor:
        return F.pixel_shuffle(latent, 8)
