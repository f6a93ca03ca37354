"""From pictures to their mid-timestep: what is measured, when it is enough, and what it says."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from omgsr_cli.datasets.crops import OnSmall
from omgsr_cli.datasets.pair_source import PairSource
from omgsr_cli.degradation import DegradationConfig, load_degradation
from omgsr_cli.errors import UsageError
from omgsr_cli.files.pairs import FoundPictures, find_pictures
from omgsr_cli.models.base import ImageEncoder
from omgsr_cli.models.encoders import load_encoder
from omgsr_cli.options import TimestepOptions, build_options
from omgsr_cli.timesteps.kept import KeptSamples
from omgsr_cli.timesteps.matching import MidTimestep, match_snr
from omgsr_cli.timesteps.measure import Measured, Problem, measure, plan_samples

Pictures = str | Path | Sequence[str | Path]

DEFAULT_CROP_PX = 512
# A narrow interval of a handful of pictures would be luck.
_STABLE_FROM, _STABLE_EVERY = 32, 16


def find_mid_timestep(
    source: PairSource | Pictures,
    encoder: ImageEncoder | str | None = None,
    *,
    lq: Pictures | None = None,
    degradation: str | Path = "reference",
    resolution: int | None = None,
    scale: float = 4.0,
    on_small: OnSmall = "skip",
    max_samples: int | None = None,
    until_stable: int | None = None,
    batch: int = 4,
    workers: int = 0,
    seed: int = 0,
    device: str | None = None,
    on_result: Callable[[Measured | Problem], None] | None = None,
) -> MidTimestep:
    """Find the timestep at which a model's noise is as strong as the pictures' degradation.

    Source: OMGSR, arXiv:2508.08227.

    Args:
        source: sharp pictures: folders, files or .txt lists; or pairs that are made already, for which only `batch`,
            `workers`, `until_stable` and `seed` count.
        encoder: of the pre-trained model, or the name of a preset, folder or hub repository; None takes the default.
        lq: real low-quality partners of the pictures, by stem; None degrades crops of them.
        degradation: preset or TOML file.
        resolution: side of the crops; None takes 512, and with real pairs the whole pictures.
        scale: the side of a crop over that of the degraded one.
        on_small: what becomes of pictures that are smaller than a crop.
        max_samples: upper bound; None takes one sample of each picture.
        until_stable: goes on until the interval is narrower than this many timesteps.
        batch: images that are encoded together.
        workers: processes that read and degrade; 0 does it in this one.
        seed: of crops, degradation and the interval.
        device: for an encoder that is given by name; as for `load`.
        on_result: told of each sample, those that are left out included.
    Returns:
        The value, its curve and interval.
    Raises:
        FileError: an input cannot be read.
        UsageError: a value is out of range, or no picture can be used.
        ModelError, DeviceError: as for `load`.
    """
    options = build_options(
        TimestepOptions,
        resolution=resolution,
        scale=scale,
        on_small=on_small,
        max_samples=max_samples,
        until_stable=until_stable,
        batch=batch,
        workers=workers,
        seed=seed,
    )
    if not isinstance(encoder, ImageEncoder):
        encoder = load_encoder(encoder, device=device)
    if not isinstance(source, PairSource):
        found = find_pictures(_listed(source), _listed(lq))
        if found.problems:
            raise found.problems[0]
        source = open_pairs(found, encoder, load_degradation(degradation), options)
    survey = Survey(source, encoder, options)
    for result in survey.run():
        if on_result:
            on_result(result)
    return survey.answer()


def open_pairs(
    found: FoundPictures, encoder: ImageEncoder, degradation: DegradationConfig, options: TimestepOptions
) -> PairSource:
    """Make the samples of what was found, in sizes that the encoder takes.

    Raises:
        UsageError: the resolution does not suit the encoder.
    """
    crop_px = options.resolution or (None if found.partners else DEFAULT_CROP_PX)
    multiple = encoder.multiple_of_px
    if crop_px is not None and crop_px % multiple:
        raise UsageError(
            f"--resolution {crop_px} is not a multiple of {multiple}",
            f"try --resolution {max(1, crop_px // multiple) * multiple}",
        )
    count = plan_samples(
        len(found.pictures),
        paired=found.partners is not None,
        whole=crop_px is None,
        max_samples=options.max_samples,
        until_stable=options.until_stable is not None,
    )
    return PairSource(
        pictures=found.pictures,
        partners=found.partners,
        config=degradation,
        resolution_px=crop_px,
        scale=options.scale,
        on_small=options.on_small,
        multiple_of_px=multiple,
        seed=options.seed,
        count=count,
    )


@dataclass
class Survey:
    """The samples that were measured so far, and what they say.

    Attributes:
        source: the samples.
        encoder: of the pre-trained model.
        options: how many, how fast, and until when.
        kept: what earlier runs measured; None keeps nothing.
        items: numbers of the samples that are this process's part of them; None is all of them.
        measured: what counts.
        problems: what was left out.
        found_kept: how many samples an earlier run had measured.
    """

    source: PairSource
    encoder: ImageEncoder
    options: TimestepOptions
    kept: KeptSamples | None = None
    items: Sequence[int] | None = None
    measured: list[Measured] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    found_kept: int = 0

    def run(self) -> Iterator[Measured | Problem]:
        """Measure until all is done or the answer is stable; what was given out is in the lists.

        Raises:
            ModelError: a latent is not finite.
        """
        for place, (item, result) in enumerate(zip(self.planned(), self._results(), strict=True)):
            if self.kept is not None and place >= self.found_kept:
                self.kept.keep(item, result)
            if isinstance(result, Problem):
                self.problems.append(result)
            else:
                self.measured.append(result)
            yield result
            if self._is_due() and self.is_stable():
                return

    def planned(self) -> Sequence[int]:
        """The numbers of all samples that are to be measured, if the answer is not stable before."""
        return range(len(self.source)) if self.items is None else self.items

    def _results(self) -> Iterator[Measured | Problem]:
        """One result for each sample, in order: those that earlier runs came to, then new ones."""
        planned = self.planned()
        while self.kept is not None and self.found_kept < len(planned):
            known = self.kept.find(planned[self.found_kept])
            if known is None:
                break
            self.found_kept += 1
            yield known
        yield from measure(
            self.source,
            self.encoder.encode,
            self.encoder.device,
            items=planned[self.found_kept :],
            batch=self.options.batch,
            workers=self.options.workers,
        )

    def is_stable(self) -> bool:
        """Whether the interval is as narrow as was asked for."""
        wanted = self.options.until_stable
        if wanted is None or not self.measured:
            return False
        interval = self.answer().interval
        return interval is not None and interval[1] - interval[0] < wanted

    def numbers(self) -> tuple[Tensor, Tensor]:
        """Powers of the clean latents and ratios of the low-quality ones, (N,) float64 each."""
        rows = [(item.power, item.snr) for item in self.measured]
        power, snr = torch.tensor(rows, dtype=torch.float64).reshape(-1, 2).T
        return power, snr

    def answer(self) -> MidTimestep:
        """The mid-timestep as far as it is known.

        Raises:
            UsageError: nothing was measured.
        """
        if not self.measured:
            raise UsageError(
                f"none of {len(self.planned())} pictures can be used, for the reasons above",
                "give other pictures, or --on-small resize where they are smaller than a crop",
            )
        pictures = [item.path for item in self.measured]
        return match_snr(*self.numbers(), self.encoder.schedule, pictures=pictures, seed=self.options.seed)

    def _is_due(self) -> bool:
        # The interval takes a moment: it is not asked for after each sample.
        count = len(self.measured)
        return self.options.until_stable is not None and count >= _STABLE_FROM and count % _STABLE_EVERY == 0


def _listed(pictures: Pictures | None) -> list[str]:
    if pictures is None:
        return []
    return [str(pictures)] if isinstance(pictures, str | Path) else [str(one) for one in pictures]
