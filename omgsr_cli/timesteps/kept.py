"""Samples that were measured before: kept between runs, so that an interrupted one goes on where it was."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from omgsr_cli import __version__
from omgsr_cli.datasets.pair_source import PairSource
from omgsr_cli.errors import FileError
from omgsr_cli.files.remembered import Remembered
from omgsr_cli.models.base import ImageEncoder
from omgsr_cli.timesteps.measure import Measured, Problem


class KeptSamples:
    """Finds and keeps what was measured, by all that it depends on: pictures, settings and encoder, by their content.

    Args:
        source: the samples.
        encoder: of the pre-trained model; one that comes from no files keeps nothing.
        remembered: where they are kept.
    """

    def __init__(self, source: PairSource, encoder: ImageEncoder, remembered: Remembered) -> None:
        self._source, self._remembered = source, remembered
        self._common = None if not encoder.files else self._settings(encoder)

    def find(self, item: int) -> Measured | Problem | None:
        """What sample `item` gave in an earlier run."""
        found = None if self._common is None else self._remembered.find_sample(self._key(item))
        if found is None:
            return None
        kept = json.loads(found)
        if "problem" in kept:
            return Problem(FileError(*kept["problem"]))
        path = self._source.files_of(item)[0]
        return Measured(path, tuple(kept["window"]), kept["drawn"], kept["power"], kept["snr"])

    def keep(self, item: int, result: Measured | Problem) -> None:
        """Keep what sample `item` gave, if it would give the same another time."""
        if self._common is None:
            return
        if isinstance(result, Problem):
            if not isinstance(result.error, FileError):
                return
            record: dict[str, object] = {"problem": [result.error.message, result.error.hint]}
        else:
            record = asdict(result)
            del record["path"]
        self._remembered.keep_sample(self._key(item), json.dumps(record))

    def _content(self, path: Path) -> str:
        """The file's hash, or nothing for one that cannot be read, which may be mended."""
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
