"""The mid-timestep of a dataset: a noisy latent there has the signal-to-noise ratio of a low-quality latent."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from omgsr_cli.errors import ShapeError, UsageError
from omgsr_cli.schedules import Schedule

BOOTSTRAP_DRAWS = 1000
FLAT = 0.01
#: A bootstrap interval needs at least this many images.
MIN_IMAGES = 8
_CHUNK = 2048


@dataclass(frozen=True)
class MidTimestep:
    """A mid-timestep with its evidence.

    Attributes:
        mid_timestep: argmin of the curve, an index 0..T-1.
        loss: the curve's value there, no unit.
        level: alpha_bar or sigma there.
        samples: number of crops or whole images.
        images: number of different images.
        interval: bootstrap 95 % interval of the mid-timestep, both ends included; None with fewer images than
            `MIN_IMAGES`.
        flat_region: first and last timestep of the range around the mid-timestep in which the loss is within 1 % of
            the minimum.
        curve: (T,) float64, the loss at every timestep; may begin with inf.
    """

    mid_timestep: int
    loss: float
    level: float
    samples: int
    images: int
    interval: tuple[int, int] | None
    flat_region: tuple[int, int]
    curve: Tensor


def latent_snr(clean: Tensor, degraded: Tensor) -> tuple[Tensor, Tensor]:
    """Measure the power of clean latents, and the signal-to-noise ratio of degraded ones.

    power = mean(z_H^2); snr = power / mean((z_L - z_H)^2), each over one image's latent.
    Source: OMGSR, arXiv:2508.08227.

    Args:
        clean: (B, C, h, w) float, z_H, scaled as the schedule expects.
        degraded: same shape, z_L.
    Returns:
        power and snr, (B,) float64 on the CPU, no unit; the snr of identical latents is inf.
    Raises:
        ShapeError: the shapes differ.
    """
    if clean.shape != degraded.shape:
        raise ShapeError(f"latents {tuple(clean.shape)} and {tuple(degraded.shape)} differ in shape")
    # Sum in float32: the device may lack float64, and a latent has only about 10^4 to 10^6 values.
    power = clean.float().square().mean((1, 2, 3))
    error = (degraded.float() - clean.float()).square().mean((1, 2, 3))
    return power.double().cpu(), (power / error).double().cpu()


def match_snr(
    power: Tensor,
    snr: Tensor,
    schedule: Schedule,
    *,
    images: Sequence[Hashable] | None = None,
    seed: int = 0,
    draws: int = BOOTSTRAP_DRAWS,
) -> MidTimestep:
    """Find the timestep at which noisy latents have the signal-to-noise ratio of the low-quality ones.

    curve[t] = mean_i | power_i schedule.snr[t] - snr_i |, and the mid-timestep is its argmin over all timesteps. The
    interval is that of the argmin over resampled sets of images (percentile bootstrap). Crops of one image are similar,
    so they are resampled together.
    Source: OMGSR, arXiv:2508.08227; Efron 1979 for the bootstrap.

    Args:
        power: (N,) float, mean square of each clean latent, no unit.
        snr: (N,) float, signal-to-noise ratio of each low-quality latent, finite and no unit.
        schedule: schedule of the pre-trained model.
        images: (N,) the image of each sample; None means that all differ.
        seed: seed of the resampling.
        draws: number of resampled sets.
    Raises:
        ShapeError: power and snr are not two (N,) tensors.
        UsageError: there is no sample, or a value is not finite.
    """
    if power.ndim != 1 or power.shape != snr.shape:
        raise ShapeError(f"power {tuple(power.shape)} and snr {tuple(snr.shape)} are not two lists of one length")
    if not len(power):
        raise UsageError("no image is left to find the mid-timestep from")
    if not bool((power.isfinite() & snr.isfinite()).all()):
        raise UsageError("a latent has a power or a signal-to-noise ratio that is not finite")
    names = range(len(power)) if images is None else images
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    draws = draws if len(numbers) >= MIN_IMAGES else 0
    chosen = torch.randint(len(numbers), (draws, len(numbers)), generator=torch.Generator().manual_seed(seed))
    of_image = torch.tensor([numbers[name] for name in names])
    # Row 0 is the data itself, the others are the resampled sets.
    counts = torch.cat((torch.ones(1, len(power)), _counts(chosen, len(numbers))[:, of_image]))
    curves = _curves(power.double(), snr.double(), schedule.snr(), counts.double())
    curve = curves[0] / len(power)
    best = int(curve.argmin())
    return MidTimestep(
        mid_timestep=best,
        loss=float(curve[best]),
        level=schedule.level(best),
        samples=len(power),
        images=len(numbers),
        interval=_interval(curves[1:].argmin(1).double()) if draws else None,
        flat_region=_flat_region(curve, best),
        curve=curve,
    )


def own_timesteps(power: Tensor, snr: Tensor, schedule: Schedule) -> Tensor:
    """Return the mid-timestep of each single image, as `match_snr` defines it: (N,) int64.

    The schedule's ratio decreases, so a binary search finds the nearest entry.

    Args: as for `match_snr`.
    """
    rising = schedule.snr().flip(0).contiguous()
    wanted = snr.double() / power.double()
    above = torch.searchsorted(rising, wanted).clamp(1, len(rising) - 1)
    nearer_below = (wanted - rising[above - 1]) < (rising[above] - wanted)
    return len(rising) - 1 - torch.where(nearer_below, above - 1, above)


def spread_by(groups: Sequence[str], power: Tensor, snr: Tensor, schedule: Schedule) -> dict[str, tuple[int, int]]:
    """Find the mid-timestep of each group of images.

    Args:
        groups: (N,) the name of each image's group.
        power: as for `match_snr`.
        snr: as for `match_snr`.
        schedule: as for `match_snr`.
    Returns:
        For each name, in alphabetical order, the mid-timestep and the number of images.
    """
    spread = {}
    for name in sorted(set(groups)):
        members = torch.tensor([group == name for group in groups])
        found = match_snr(power[members], snr[members], schedule, draws=0)
        spread[name] = (found.mid_timestep, found.samples)
    return spread


def _curves(power: Tensor, snr: Tensor, table: Tensor, counts: Tensor) -> Tensor:
    """Sum the distances at every timestep over sets of images; `counts` is how often each set contains each image.

    Args:
        power: (N,) float64.
        snr: (N,) float64.
        table: (T,) float64, the schedule's ratios; not finite where it has no noise.
        counts: (sets, N) float64.
    Returns:
        (sets, T) float64, inf where the table is not finite.
    """
    finite = table.isfinite()
    sums = torch.zeros(len(counts), int(finite.sum()), dtype=torch.float64)
    for start in range(0, len(power), _CHUNK):
        part = slice(start, start + _CHUNK)
        # One matrix product computes all curves.
        sums.addmm_(counts[:, part], (power[part, None] * table[finite] - snr[part, None]).abs_())
    curves = torch.full((len(counts), len(table)), torch.inf, dtype=torch.float64)
    curves[:, finite] = sums
    return curves


def _counts(chosen: Tensor, samples: int) -> Tensor:
    """Count how often each resampled set (draws, N) contains each sample: (draws, N) float32."""
    ones = torch.ones_like(chosen, dtype=torch.float32)
    return torch.zeros(len(chosen), samples).scatter_add_(1, chosen, ones)


def _interval(minima: Tensor) -> tuple[int, int]:
    low, high = torch.quantile(minima, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return math.floor(low), math.ceil(high)


def _flat_region(curve: Tensor, best: int) -> tuple[int, int]:
    """Return the range of timesteps around the best one in which the loss is within 1 % of the minimum."""
    outside = (curve > curve[best] * (1 + FLAT)).nonzero().flatten()
    before, after = outside[outside < best], outside[outside > best]
    first = int(before[-1]) + 1 if len(before) else 0
    last = int(after[0]) - 1 if len(after) else len(curve) - 1
    return first, last
