"""Encode each sample once, and measure its power and signal-to-noise ratio."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from omgsr_cli.datasets import ImagePair, PairSource
from omgsr_cli.engines.work import OneByOne, Place, Say, Worker
from omgsr_cli.errors import FileError, ModelError, OmgsrError
from omgsr_cli.models.base import ImageEncoder
from omgsr_cli.models.loading import NamedEncoder
from omgsr_cli.timesteps.matching import latent_snr

_MOST_SAMPLES = 4096
"""Number of samples until the result is stable, if the user sets no other."""

_LATENT = 3
"""The random stream of sampled latents; crops and order of `PairSource` use 1 and 2."""


@dataclass(frozen=True)
class Measured:
    """The measurement of one sample.

    Attributes:
        path: path of the clean image; `window` is (top, left) of the crop in it.
        drawn: the random choices of the degradation.
        power: mean square of the clean latent.
        snr: signal-to-noise ratio of the low-quality latent.
    """

    path: Path
    window: tuple[int, int]
    drawn: dict[str, str]
    power: float
    snr: float


Result = Measured | OmgsrError
"""A FileError belongs to the skipped image and occurs again in the next run; another error, such as a killed process,
does not."""

Results = tuple[tuple[int, Result], ...]
"""Results of some samples, each with its number."""


def plan_samples(images: int, *, paired: bool, whole: bool, max_samples: int | None, until_stable: bool) -> int:
    """Return the number of samples: one per image, unless more are requested and can differ.

    Args:
        images: number of images.
        paired: whether they have real partners.
        whole: whether whole images are used; another epoch would only repeat them.
        max_samples: the user's upper bound.
        until_stable: whether samples are added until the interval is narrow.
    """
    if whole and paired:
        return min(images, max_samples or images)
    if max_samples is not None:
        return max_samples
    return max(images, _MOST_SAMPLES) if until_stable else images


def measure(
    source: PairSource,
    encoder: ImageEncoder,
    items: Sequence[int] | None = None,
    *,
    batch: int = 4,
    latents: Literal["mean", "sample"] = "mean",
) -> Iterator[Result]:
    """Measure samples in order.

    Args:
        source: the samples.
        encoder: the pre-trained model's encoder.
        items: numbers of the samples; None measures all.
        batch: number of samples of one size that are encoded together.
        latents: the mean of the encoder's posterior, or a sample of it that depends on the seed and the sample's
            number. Both are the same for an encoder without a posterior.
    Yields:
        One result for each sample.
    Raises:
        ModelError: a latent is not finite.
    """
    waiting: list[ImagePair] = []
    draws: list[torch.Generator] | None = None
    if latents == "sample" and encoder.has_posterior:
        draws = []
    for number in range(len(source)) if items is None else items:
        sample = source[number]
        # Results are in order, so a skipped sample waits for the samples before it.
        if waiting and (isinstance(sample, FileError) or sample.clean.shape != waiting[0].clean.shape):
            yield from _measure_batch(waiting, encoder, draws)
            waiting = []
        if isinstance(sample, FileError):
            yield sample
            continue
        waiting.append(sample)
        if draws is not None:
            draws.append(_generator(source.seed, number))
        if len(waiting) == batch:
            yield from _measure_batch(waiting, encoder, draws)
            waiting = []
    if waiting:
        yield from _measure_batch(waiting, encoder, draws)


def _generator(seed: int, number: int) -> torch.Generator:
    state = np.random.SeedSequence((seed, _LATENT, number)).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> np.uint64(1)))


@dataclass(frozen=True)
class MeasureWork:
    """Tasks for an engine: batches of sample numbers; a loaded encoder works in this process only."""

    source: PairSource
    encoder: NamedEncoder | ImageEncoder
    latents: Literal["mean", "sample"] = "mean"

    def open(self, place: Place, say: Say) -> Worker[tuple[int, ...], Results]:
        """See `Work.open`."""
        encoder = self.encoder if isinstance(self.encoder, ImageEncoder) else self.encoder.load(place.device)

        def do(items: tuple[int, ...]) -> Results:
            results = measure(self.source, encoder, items, batch=len(items), latents=self.latents)
            return tuple(zip(items, results, strict=True))

        return OneByOne(do)

    def lost(self, task: tuple[int, ...], error: OmgsrError) -> Results:
        """See `Work.lost`."""
        named = [OmgsrError(f"{self.source.files_of(item)[0]}: {error.message}", error.hint) for item in task]
        return tuple(zip(task, named, strict=True))


@torch.inference_mode()
def _encode(
    samples: list[ImagePair], encoder: ImageEncoder, draws: list[torch.Generator] | None
) -> tuple[Tensor, Tensor]:
    more = () if draws is None else (draws,)
    clean = encoder.encode(torch.stack([sample.clean for sample in samples]).to(encoder.device), *more)
    degraded = encoder.encode(torch.stack([sample.degraded for sample in samples]).to(encoder.device), *more)
    return latent_snr(clean, degraded)


def _measure_batch(
    samples: list[ImagePair], encoder: ImageEncoder, draws: list[torch.Generator] | None
) -> Iterator[Result]:
    power, snr = _encode(samples, encoder, draws)
    if draws is not None:
        draws.clear()
    for sample, own_power, own_snr in zip(samples, power.tolist(), snr.tolist(), strict=True):
        # An infinite ratio means an identical pair or a latent without error. NaN or infinite power is a fault.
        if not (0 < own_power < float("inf") and own_snr > 0):
            raise ModelError(
                f"the latent of {sample.path} is not finite, or zero everywhere",
                "check that the encoder's weights are correct",
            )
        if own_snr == float("inf"):
            yield FileError(
                f"{sample.path} is identical to its low-quality partner: its signal-to-noise ratio is infinite",
                "use pairs that differ",
            )
            continue
        yield Measured(sample.path, sample.window, sample.drawn, own_power, own_snr)
