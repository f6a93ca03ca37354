"""Measure the samples of a dataset in order until the result is stable; reuse the samples of earlier runs."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from omgsr_cli import __version__
from omgsr_cli.datasets.pair_source import PairSource
from omgsr_cli.engines.local import Here
from omgsr_cli.engines.work import Engine, Place, say_nothing
from omgsr_cli.errors import FileError, UsageError
from omgsr_cli.files.remembered import Remembered
from omgsr_cli.models.base import ImageEncoder
from omgsr_cli.options import TimestepOptions
from omgsr_cli.timesteps.matching import MidTimestep, match_snr
from omgsr_cli.timesteps.measure import Measured, MeasureWork, Problem, Results

# With few images, the interval may be narrow by chance.
_STABLE_FROM, _STABLE_EVERY = 32, 16

_Found = dict[int, Measured | Problem | None]
"""Results of some samples by their numbers; None for samples that are not measured yet."""


class KeptSamples:
    """Finds and keeps measurements; the keys depend on the content of images and encoder and on the settings.

    Args:
        source: the samples.
        encoder: the pre-trained model's encoder; nothing is kept if it has no files.
        remembered: the database.
        is_sampled: whether latents are sampled.
    """

    def __init__(
        self, source: PairSource, encoder: ImageEncoder, remembered: Remembered, *, is_sampled: bool = False
    ) -> None:
        self._source, self._remembered = source, remembered
        self._common = None if not encoder.files else [*self._settings(encoder), *(["sample"] if is_sampled else [])]

    def find(self, item: int) -> Measured | Problem | None:
        """Return the result of sample `item` from an earlier run, or None."""
        kept = None if self._common is None else self._remembered.find("sample", self._key(item))
        if kept is None:
            return None
        if "problem" in kept:
            return Problem(FileError(*kept["problem"]))
        path = self._source.files_of(item)[0]
        return Measured(path, tuple(kept["window"]), kept["drawn"], kept["power"], kept["snr"])

    def keep(self, item: int, result: Measured | Problem) -> None:
        """Keep the result of sample `item`, if it is reproducible."""
        if self._common is None:
            return
        if isinstance(result, Measured):
            record: dict[str, object] = {name: value for name, value in vars(result).items() if name != "path"}
        elif isinstance(result.error, FileError):
            record = {"problem": [result.error.message, result.error.hint]}
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
        source: the samples.
        encoder: the pre-trained model's encoder.
        options: number of samples, batch and stopping rule.
        kept: samples of earlier runs; None keeps nothing.
        items: numbers of the samples in this part; None means all.
        engine: runs the processes that measure.
        work: the work of these processes.
        measured: the results, in order.
        problems: the skipped samples.
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
    problems: list[Problem] = field(default_factory=list)
    found_kept: int = 0

    def run(self) -> Iterator[Measured | Problem]:
        """Measure all samples, or until the result is stable; yield each result and add it to the lists.

        Raises:
            ModelError: a latent is not finite.
            DeviceError: processes cannot run.
        """
        with closing(self._results()) as results:
            for result in results:
                if isinstance(result, Problem):
                    self.problems.append(result)
                else:
                    self.measured.append(result)
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

    def _results(self) -> Generator[Measured | Problem, None, None]:
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

    def _find(self, item: int) -> Measured | Problem | None:
        found = None if self.kept is None else self.kept.find(item)
        self.found_kept += found is not None
        return found

    def _is_due(self) -> bool:
        # The interval takes time to compute, so check only some sample counts.
        count = len(self.measured)
        return self.options.until_stable is not None and count >= _STABLE_FROM and count % _STABLE_EVERY == 0


def _complete(drawn: deque[_Found]) -> Iterator[Measured | Problem]:
    """Remove the leading complete groups and yield their results."""
    while drawn and None not in drawn[0].values():
        yield from (result for result in drawn.popleft().values() if result is not None)
