"""Take samples through the encoder, once each, and keep the two numbers that count."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omgsr_cli.datasets.pair_source import ImagePair, PairSource
from omgsr_cli.errors import FileError, ModelError
from omgsr_cli.timesteps.matching import latent_snr


@dataclass(frozen=True)
class Measured:
    """What is known of one sample.

    Attributes:
        path: of the clean picture.
        window: (top, left) of the crop in it.
        drawn: what the degradation drew.
        power: mean square of the clean latent.
        snr: of the low-quality latent; inf where both are the same.
    """

    path: Path
    window: tuple[int, int]
    drawn: dict[str, str]
    power: float
    snr: float


@dataclass(frozen=True)
class Problem:
    """A sample that is left out, and why."""

    error: FileError


def plan_samples(
    pictures: int, *, paired: bool, whole: bool, max_samples: int | None, until_stable: bool, default_max: int = 4096
) -> int:
    """Decide how many samples are drawn: once through the data, unless more are asked for and can differ.

    Args:
        pictures: number of them.
        paired: whether they have real partners.
        whole: whether whole pictures are taken, of which another epoch would bring nothing new.
        max_samples: upper bound that the user gave.
        until_stable: whether it goes on until the interval is narrow.
        default_max: bound of the latter where the user gave none.
    """
    if whole and paired:
        return min(pictures, max_samples or pictures)
    if max_samples is not None:
        return max_samples
    return max(pictures, default_max) if until_stable else pictures


def measure(
    source: PairSource,
    encode: Callable[[Tensor], Tensor],
    device: torch.device,
    *,
    items: Sequence[int] | None = None,
    batch: int = 4,
    workers: int = 0,
) -> Iterator[Measured | Problem]:
    """Measure samples in order.

    Args:
        source: the samples.
        encode: (B, 3, H, W) in [-1, 1] on the device, to scaled latents.
        device: of the encoder.
        items: numbers of the samples; None measures all.
        batch: samples that are encoded together, where they have one size.
        workers: processes that read, crop and degrade; 0 does it here.
    Yields:
        One result for each sample.
    Raises:
        ModelError: a latent is not finite.
    """
    loader: Iterable[ImagePair | FileError] = torch.utils.data.DataLoader(
        torch.utils.data.Subset(source, range(len(source)) if items is None else items),
        batch_size=None,
        num_workers=workers,
        collate_fn=_as_it_is,
    )
    waiting: list[ImagePair] = []
    for item in loader:
        if isinstance(item, FileError):
            yield Problem(item)
            continue
        if waiting and item.clean.shape != waiting[0].clean.shape:
            yield from _measure_batch(waiting, encode, device)
            waiting = []
        waiting.append(item)
        if len(waiting) == batch:
            yield from _measure_batch(waiting, encode, device)
            waiting = []
    if waiting:
        yield from _measure_batch(waiting, encode, device)


def _as_it_is(item: Any) -> Any:
    return item


@torch.inference_mode()
def _encode(
    samples: list[ImagePair], encode: Callable[[Tensor], Tensor], device: torch.device
) -> tuple[Tensor, Tensor]:
    clean = encode(torch.stack([sample.clean for sample in samples]).to(device))
    degraded = encode(torch.stack([sample.degraded for sample in samples]).to(device))
    return latent_snr(clean, degraded)


def _measure_batch(
    samples: list[ImagePair], encode: Callable[[Tensor], Tensor], device: torch.device
) -> Iterator[Measured | Problem]:
    power, snr = _encode(samples, encode, device)
    for sample, own_power, own_snr in zip(samples, power.tolist(), snr.tolist(), strict=True):
        # An infinite ratio is an identical pair, or a latent without any error; NaN or infinite power is neither.
        if not (own_power < float("inf") and own_snr == own_snr and own_power > 0):
            raise ModelError(
                f"the latent of {sample.path} is not finite, or zero everywhere", "the encoder does not fit its file"
            )
        if own_snr == float("inf"):
            yield Problem(
                FileError(
                    f"{sample.path} is identical to its low-quality partner: its signal-to-noise ratio is infinite",
                    "give pairs that differ",
                )
            )
            continue
        yield Measured(sample.path, sample.window, sample.drawn, own_power, own_snr)
