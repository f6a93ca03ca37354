"""Measured samples, kept between runs, so an interrupted run can resume."""

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
    """Finds and keeps measurements, keyed by the content of images and encoder and by the settings.

    Args:
        source: the samples.
        encoder: of the pre-trained model; without files of its own, nothing is kept.
        remembered: the database.
    """

    def __init__(self, source: PairSource, encoder: ImageEncoder, remembered: Remembered) -> None:
        self._source, self._remembered = source, remembered
        self._common = None if not encoder.files else self._settings(encoder)

    def find(self, item: int) -> Measured | Problem | None:
        """The result of sample `item` in an earlier run, or None."""
        found = None if self._common is None else self._remembered.find("sample", self._key(item))
        if found is None:
            return None
        kept = found
        if "problem" in kept:
            return Problem(FileError(*kept["problem"]))
        path = self._source.files_of(item)[0]
        return Measured(path, tuple(kept["window"]), kept["drawn"], kept["power"], kept["snr"])

    def keep(self, item: int, result: Measured | Problem) -> None:
        """Keep the result of sample `item`, if it is reproducible."""
        if self._common is None:
            return
        if isinstance(result, Problem):
            if not isinstance(result.error, FileError):
                return
            record: dict[str, object] = {"problem": [result.error.message, result.error.hint]}
        else:
            record = asdict(result)
            del record["path"]
        self._remembered.keep("sample", self._key(item), record)

    def _content(self, path: Path) -> str:
        """The file's hash; "" for an unreadable file, which may be repaired later."""
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
