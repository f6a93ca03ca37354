"""Find the mid-timestep of images: measure samples in order until the result is stable; reuse those of earlier runs."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from omgsr_cli import __version__
from omgsr_cli.datasets import OnSmall, PairSource
from omgsr_cli.degradation import DegradationConfig, load_degradation
from omgsr_cli.engines.local import Here, choose_local, plan_places
from omgsr_cli.engines.work import Engine, Place, say_nothing
from omgsr_cli.errors import FileError, OmgsrError, UsageError
from omgsr_cli.files.pairs import FoundImages, find_images
from omgsr_cli.files.remembered import Remembered
from omgsr_cli.files.shards import Shard
from omgsr_cli.models.base import ImageEncoder
from omgsr_cli.models.devices import named_devices
from omgsr_cli.models.loading import NamedEncoder
from omgsr_cli.options import EngineOptions, TimestepOptions, build_options
from omgsr_cli.presets import DEFAULT_PRESET, default_degradation
from omgsr_cli.timesteps.matching import MidTimestep, match_snr
from omgsr_cli.timesteps.measure import Measured, MeasureWork, Result, Results, plan_samples

Images = str | Path | Sequence[str | Path]

DEFAULT_CROP_PX = 512


def find_mid_timestep(
    source: PairSource | Images,
    encoder: ImageEncoder | str | None = None,
    *,
    lq: Images | None = None,
    degradation: str | Path | None = None,
    resolution: int | None = None,
    scale: float = 4.0,
    on_small: OnSmall = "skip",
    max_samples: int | None = None,
    until_stable: int | None = None,
    batch: int = 4,
    workers: int | None = None,
    seed: int = 0,
    latents: Literal["mean", "sample"] = "mean",
    device: str | None = None,
    on_result: Callable[[Result], None] | None = None,
) -> MidTimestep:
    """Find the timestep at which a model's noise is as strong as the degradation of the images.

    Source: OMGSR, arXiv:2508.08227.

    Args:
        source: high-quality images: folders, files or .txt lists; or a `PairSource`, which uses only `batch`,
            `workers`, `until_stable`, `seed` and `latents`.
        encoder: the pre-trained model's encoder, or the name of a preset, folder or hub repository; None uses the
            default. A loaded encoder works in this process only.
        lq: real low-quality partners of the images, matched by stem; None degrades crops of the images.
        degradation: preset or TOML file; None uses the degradation of the encoder's model.
        resolution: side of the crops in pixels; None uses 512, and whole images with real pairs.
        scale: the side of a crop divided by the side of the degraded crop.
        on_small: what to do with images that are smaller than a crop.
        max_samples: upper bound; None takes one sample per image.
        until_stable: add samples until the interval is narrower than this many timesteps.
        batch: number of images that are encoded together.
        workers: number of processes, each with its own encoder; None uses one per device.
        seed: seed of crops, degradation, sampled latents and the interval.
        latents: the mean of the autoencoder's posterior or, as published, a sample of it.
        device: device of an encoder given by name; as for `load`, or several: "cuda:0,cuda:1" or "all".
        on_result: called with each sample, skipped ones included.
    Returns:
        The mid-timestep with its curve and interval.
    Raises:
        FileError: an input cannot be read.
        UsageError: a value is out of range, or no image can be used.
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
        seed=seed,
        latents=latents,
    )
    engine_options = build_options(EngineOptions, workers=workers, device=device)
    named = encoder if isinstance(encoder, ImageEncoder) else NamedEncoder(encoder)
    images: PairSource | FoundImages = (
        source if isinstance(source, PairSource) else find_images(*map(_listed, (source, lq)))
    )
    if isinstance(images, FoundImages) and images.problems:
        raise images.problems[0]
    name = encoder.name if isinstance(encoder, ImageEncoder) else encoder or DEFAULT_PRESET
    config = load_degradation(degradation or default_degradation(name))
    survey = open_survey(images, named, config, options, engine_options)
    for result in survey.run():
        if on_result:
            on_result(result)
    return survey.answer()


def open_survey(
    images: FoundImages | PairSource,
    encoder: NamedEncoder | ImageEncoder,
    degradation: DegradationConfig,
    options: TimestepOptions,
    engine_options: EngineOptions,
    *,
    remembered: Remembered | None = None,
    shard: Shard | None = None,
) -> Survey:
    """Load the encoder and plan the samples of images; `Survey.run` measures them.

    Args:
        images: from `find_images`, or planned samples.
        encoder: an encoder's name, or a loaded encoder, which works in this process only.
        degradation: degradation of crops; not used for real pairs.
        options, engine_options: the samples; processes and their devices, of which this process uses the first.
        remembered: keeps samples between runs; None keeps none.
        shard: the part of the samples to measure; None measures all.
    Raises:
        UsageError: the encoder does not support the resolution, the part has no samples, or several processes cannot
            share the loaded encoder.
        ModelError, DeviceError: as for `load`.
    """
    engine: Engine = Here(Place())
    if isinstance(encoder, NamedEncoder):
        devices = named_devices(engine_options.device)
        engine = choose_local(plan_places(devices, engine_options.workers))
        loaded: ImageEncoder = encoder.load(devices[0])
    elif engine_options.workers in (None, 1):
        loaded = encoder
    else:
        message = f"{engine_options.workers} workers cannot share one loaded encoder"
        raise UsageError(message, "give the encoder by its name")
    source = images if isinstance(images, PairSource) else _pair_source(images, loaded, degradation, options)
    items = None if shard is None else shard.indices(len(source))
    if items is not None and not items:
        raise UsageError(f"--shard {shard}: none of {len(source)} samples is in this part", "use fewer parts")
    is_sampled = options.latents == "sample" and loaded.has_posterior
    kept = None if remembered is None else KeptSamples(source, loaded, remembered, is_sampled=is_sampled)
    # This process uses the encoder that is already loaded; other processes load their own.
    elsewhere = loaded if engine.in_this_process else encoder
    return Survey(source, loaded, options, kept, items, engine, MeasureWork(source, elsewhere, options.latents))


def _pair_source(
    found: FoundImages, encoder: ImageEncoder, degradation: DegradationConfig, options: TimestepOptions
) -> PairSource:
    """Plan the samples of the found images in sizes that the encoder supports."""
    crop_px = options.resolution or (None if found.partners else DEFAULT_CROP_PX)
    multiple = encoder.multiple_of_px
    if crop_px is not None and crop_px % multiple:
        raise UsageError(
            f"--resolution {crop_px} is not a multiple of {multiple}",
            f"try --resolution {max(1, crop_px // multiple) * multiple}",
        )
    count = plan_samples(
        len(found.images),
        paired=found.partners is not None,
        whole=crop_px is None,
        max_samples=options.max_samples,
        until_stable=options.until_stable is not None,
    )
    return PairSource(
        images=found.images,
        partners=found.partners,
        config=degradation,
        resolution_px=crop_px,
        scale=options.scale,
        on_small=options.on_small,
        multiple_of_px=multiple,
        seed=options.seed,
        count=count,
    )


def _listed(images: Images | None) -> list[str]:
    if images is None:
        return []
    return [str(images)] if isinstance(images, str | Path) else [str(one) for one in images]


# With few images, the interval may be narrow by chance.
_STABLE_FROM, _STABLE_EVERY = 32, 16

_Found = dict[int, Result | None]
"""Results of some samples by their numbers; None for samples that are not measured yet."""


class KeptSamples:
    """Finds and keeps measurements; the keys depend on the content of images and encoder and on the settings.

    Nothing is kept for an encoder without files.
    """

    def __init__(
        self, source: PairSource, encoder: ImageEncoder, remembered: Remembered, *, is_sampled: bool = False
    ) -> None:
        self._source, self._remembered = source, remembered
        self._common = None if not encoder.files else [*self._settings(encoder), *(["sample"] if is_sampled else [])]

    def find(self, item: int) -> Result | None:
        """Return the result of sample `item` from an earlier run, or None."""
        kept = None if self._common is None else self._remembered.find("sample", self._key(item))
        if kept is None:
            return None
        if "problem" in kept:
            return FileError(*kept["problem"])
        path = self._source.files_of(item)[0]
        return Measured(path, tuple(kept["window"]), kept["drawn"], kept["power"], kept["snr"])

    def keep(self, item: int, result: Result) -> None:
        """Keep the result of sample `item`, if it is reproducible."""
        if self._common is None:
            return
        if isinstance(result, Measured):
            record: dict[str, object] = {name: value for name, value in vars(result).items() if name != "path"}
        elif isinstance(result, FileError):
            record = {"problem": [result.message, result.hint]}
        else:
            return
        self._remembered.keep("sample", self._key(item), record)

    def _content(self, path: Path) -> str:
        """Return the file's hash; "" for an unreadable file, which may be repaired later."""
        try:
            return self._remembered.content(path)
        except FileError:
            return ""

    def _key(self, item: int) -> str:
        files = [self._content(path) for path in self._source.files_of(item)]
        text = json.dumps([self._common, self._source.place_of(item), files])
        return hashlib.sha256(text.encode()).hexdigest()

    def _settings(self, encoder: ImageEncoder) -> list[object]:
        source, files = self._source, [Path(file) for file in encoder.files]
        config = None if source.partners is not None else source.config.model_dump(mode="json")
        sizes = [source.resolution_px, source.scale, source.on_small, source.multiple_of_px]
        weights = self._remembered.contents(files)
        return [__version__, weights, encoder.device.type, config, *sizes, source.seed]


@dataclass
class Survey:
    """The samples measured so far, and their result.

    Attributes:
        options: number of samples, batch and stopping rule.
        kept: samples of earlier runs; None keeps nothing.
        items: numbers of the samples in this part; None means all.
        engine: runs the processes that measure; `work` is their work.
        measured: the results, in order; `problems` are the errors of skipped samples.
        found_kept: number of samples that are reused from earlier runs.
    """

    source: PairSource
    encoder: ImageEncoder
    options: TimestepOptions
    kept: KeptSamples | None = None
    items: Sequence[int] | None = None
    engine: Engine = field(default_factory=lambda: Here(Place()))
    work: MeasureWork | None = None
    measured: list[Measured] = field(default_factory=list)
    problems: list[OmgsrError] = field(default_factory=list)
    found_kept: int = 0

    def run(self) -> Iterator[Result]:
        """Measure all samples, or until the result is stable; yield each result and add it to the lists.

        Raises:
            ModelError: a latent is not finite.
            DeviceError: processes cannot run.
        """
        with closing(self._results()) as results:
            for result in results:
                if isinstance(result, Measured):
                    self.measured.append(result)
                else:
                    self.problems.append(result)
                yield result
                if self._is_due() and self.is_stable():
                    return

    def planned(self) -> Sequence[int]:
        """Return the numbers of all samples to measure; a stable result may end the survey earlier."""
        return range(len(self.source)) if self.items is None else self.items

    def is_stable(self) -> bool:
        """Whether the interval is as narrow as requested."""
        wanted = self.options.until_stable
        if wanted is None or not self.measured:
            return False
        interval = self.answer().interval
        return interval is not None and interval[1] - interval[0] < wanted

    def numbers(self) -> tuple[Tensor, Tensor]:
        """Return power of the clean latents and ratio of the low-quality latents, (N,) float64 each."""
        rows = [(item.power, item.snr) for item in self.measured]
        power, snr = torch.tensor(rows, dtype=torch.float64).reshape(-1, 2).T
        return power, snr

    def answer(self) -> MidTimestep:
        """Return the mid-timestep of the samples measured so far.

        Raises:
            UsageError: nothing was measured.
        """
        if not self.measured:
            raise UsageError(
                f"none of the {len(self.planned())} samples can be used, for the reasons above",
                "use other images, or --on-small resize if they are smaller than a crop",
            )
        images = [item.path for item in self.measured]
        return match_snr(*self.numbers(), self.encoder.schedule, images=images, seed=self.options.seed)

    def _results(self) -> Generator[Result, None, None]:
        """Yield one result per sample in the planned order, regardless of the order of measurement."""
        planned, known = self.planned(), 0
        while known < len(planned) and (found := self._find(planned[known])) is not None:
            known += 1
            yield found
        drawn: deque[_Found] = deque()
        for measured in self._measure(self._missing(planned[known:], drawn)):
            for item, result in measured:
                if self.kept is not None:
                    self.kept.keep(item, result)
                next(group for group in drawn if item in group)[item] = result
            yield from _complete(drawn)
        yield from _complete(drawn)

    def _missing(self, planned: Sequence[int], drawn: deque[_Found]) -> Iterator[tuple[int, ...]]:
        """Yield the samples to measure, one batch at a time; add all samples with their known results to `drawn`.

        A batch with kept samples is not filled from the next batch, so images are not read far ahead.
        """
        for start in range(0, len(planned), self.options.batch):
            group = {item: self._find(item) for item in planned[start : start + self.options.batch]}
            drawn.append(group)
            missing = tuple(item for item, result in group.items() if result is None)
            if missing:
                yield missing

    def _measure(self, tasks: Iterator[tuple[int, ...]]) -> Iterator[Results]:
        work = self.work or MeasureWork(self.source, self.encoder, self.options.latents)
        # This process already showed the encoder's notes when it loaded it.
        with closing(self.engine.run(work, tasks, on_start=lambda task: None, say=say_nothing)) as results:
            yield from results

    def _find(self, item: int) -> Result | None:
        found = None if self.kept is None else self.kept.find(item)
        self.found_kept += found is not None
        return found

    def _is_due(self) -> bool:
        # The interval takes time to compute, so check only some sample counts.
        count = len(self.measured)
        return self.options.until_stable is not None and count >= _STABLE_FROM and count % _STABLE_EVERY == 0


def _complete(drawn: deque[_Found]) -> Iterator[Result]:
    """Remove the leading complete groups and yield their results."""
    while drawn and None not in drawn[0].values():
        yield from (result for result in drawn.popleft().values() if result is not None)
