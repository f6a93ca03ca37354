"""Noise and JPEG at the low-quality picture's own pixels, and surfaces that have no detail at all."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from omgsr_cli.degradation.pipeline import jpeg
from omgsr_cli.training.draws import choose
from omgsr_cli.training.sections import LqNoise

_SURFACE_SPREAD = 0.25
_SURFACE_NOISE = 12
_GRAY_SURFACES = 0.4


def add_lq_noise(lq: Tensor, noise: LqNoise, rng: np.random.Generator) -> Tensor:
    """Put noise onto the low-quality picture's own pixels and save it as JPEG, or one of these, or neither.

    Args:
        lq: (3, h, w) float32 in [0, 1].
        noise: how often, how strong and of which kind.
        rng: decides; it is drawn from alike whether there will be noise or not.
    Returns:
        (3, h, w) float32 in [0, 1]; "blurred" noise has the same deviation after it was blurred. "grain" is blurred
        and the same in all channels; it has its full deviation in middle tones, and 0.7 of it in black and in white.
    """
    chance, sigma = rng.random(), rng.uniform(*noise.sigma) / 255
    kind = choose(tuple(noise.kinds.items()), rng)
    drawn = torch.from_numpy(rng.standard_normal((3, *lq.shape[1:]), dtype=np.float32))
    saved, quality = rng.random() < noise.jpeg, int(rng.integers(noise.quality[0], noise.quality[1] + 1))
    if chance < noise.probability:
        lq = (lq + _shape_noise(drawn, kind, lq) * sigma).clamp(0, 1)
    return jpeg(lq, quality) if saved else lq


def _shape_noise(drawn: Tensor, kind: str, lq: Tensor) -> Tensor:
    """Make a kind of noise of unit deviation from (3, h, w) white noise."""
    if kind == "white":
        return drawn
    if kind == "grey":
        return drawn[:1]
    blurred = F.avg_pool2d(F.pad(drawn, (1, 0, 1, 0), "replicate"), 2, 1) * 2
    if kind == "blurred":
        return blurred
    tone = lq.mean(0, keepdim=True)
    return blurred[:1] * (0.7 + 1.2 * tone * (1 - tone))


def draw_surface(side_px: int, scale: float, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Draw a surface without detail, one tone or a few that run into each other, as skies and walls are.

    Where nothing is, nothing may appear: a network learns here that noise alone is not the shadow of a texture.

    Args:
        side_px: of the sharp picture.
        scale: its side over the low-quality one's.
        rng: decides.
    Returns:
        Low-quality (3, h, h) in whole levels of 1/255, with a little noise, and sharp (3, side, side); both in [0, 1].
    """
    knots = int(rng.integers(1, 4))
    spread = float(rng.uniform(0, _SURFACE_SPREAD))
    tones = torch.from_numpy(rng.random((1, 3, knots, knots), dtype=np.float32)) * spread
    tones = tones + torch.from_numpy(rng.uniform(0.03, 0.85, (1, 3, 1, 1)).astype(np.float32))
    if rng.random() < _GRAY_SURFACES:
        tones = tones.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    sharp = F.interpolate(tones, size=(side_px, side_px), mode="bicubic", align_corners=True).clamp(0, 1)
    small_px = max(1, round(side_px / scale))
    lq = F.interpolate(sharp, size=(small_px, small_px), mode="area")[0]
    noise = rng.standard_normal(tuple(lq.shape), dtype=np.float32) * float(rng.uniform(0, _SURFACE_NOISE)) / 255
    return (lq + torch.from_numpy(noise)).clamp(0, 1).mul(255).round().div(255), sharp[0]
