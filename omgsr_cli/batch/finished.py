"""What a finished result says of how it was made, and by which the next run knows it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from omgsr_cli.errors import FileError
from omgsr_cli.files.addresses import Address, Location, shown
from omgsr_cli.files.remembered import Remembered
from omgsr_cli.files.storage import LocalCopy, look_at, reading
from omgsr_cli.imaging import read_record, record_of_file
from omgsr_cli.models.base import RestorerInfo
from omgsr_cli.options import ModelOptions, RestoreOptions, WriteOptions
from omgsr_cli.planning import process_scale

# Of the model's options these choose it or are in its info, and those of the rest change the way and not the result.
_NAMES_OF_MODEL = {"model", "base", "adapter", "mid_timestep", "prompt", "process_size", "vae"}
_NO_MATTER = {"device", "compile"}


@dataclass(frozen=True)
class Settings:
    """Everything that a result depends on beside its input."""

    model: ModelOptions
    restore: RestoreOptions
    write: WriteOptions


class FinishedResults:
    """Tells which outputs are there already, from the same input, weights and settings.

    Args:
        settings: of this run.
        info: of the model, with what was asked for instead of its own.
        remembered: hashes of files, and results that hold no record.
    """

    def __init__(self, settings: Settings, info: RestorerInfo, remembered: Remembered) -> None:
        self._settings = settings
        self._info = info
        self._remembered = remembered

    def record(self, source: bytes | Path) -> str:
        """The text that a result of this input carries.

        Left out is what changes the way and not the result: the device, batches, whether to overwrite, what the model
        and the input are called, and tiles where these are exact.

        Raises:
            FileError: the input or the model cannot be read.
        """
        content = hashlib.sha256(source).hexdigest() if isinstance(source, bytes) else self._remembered.content(source)
        return self._record_of(content)

    def fetched_before(self, source: Address) -> str | None:
        """The SHA-256 of what an address holds, if it was fetched before and is still the same.

        Raises:
            FileError: the storage does not answer.
        """
        return self._remembered.find_content(source)

    def are_known(self, outputs: Sequence[Location], content: str) -> bool:
        """Whether all of a job's outputs are there, made from an input with this SHA-256.

        Raises:
            FileError: the storage does not answer.
        """
        record = self._record_of(content)
        return bool(outputs) and all(_is_file(path) and self._is_finished(path, record) for path in outputs)

    def is_own_content(self, content: str) -> bool:
        """Whether an input with this SHA-256 is known to be a result of an earlier run."""
        return self._remembered.is_result_content(content)

    def is_own(self, copy: Path) -> bool:
        """Whether what was fetched is a result of an earlier run, which is remembered."""
        if read_record(copy) is None:
            return False
        self._remembered.keep_result_content(self._remembered.content(copy))
        return True

    def keep_fetched(self, source: Address, copy: LocalCopy) -> None:
        """Remember what was fetched from an address.

        Raises:
            FileError: the copy cannot be read.
        """
        self._remembered.keep_content(source, copy.stamp, self._remembered.content(copy.path))

    def among(self, outputs: Sequence[Location], source: bytes | Path) -> frozenset[Location]:
        """Those of a job's outputs that an earlier run wrote from the same input with the same settings.

        Raises:
            FileError: one is there that is something else, and may not be overwritten.
        """
        present = [path for path in outputs if _is_there(path)]
        if not present:
            return frozenset()
        record = self.record(source)
        finished = frozenset(path for path in present if _is_file(path) and self._is_finished(path, record))
        for path in present:
            if path not in finished and not self._settings.write.overwrite:
                raise _not_this_runs(path)
        return finished

    def keep(self, output: Location, record: str) -> None:
        """Note that an output was written just now, where it does not say so itself."""
        if self._settings.write.metadata == "none":
            self._remembered.keep_result(output, record)

    def _record_of(self, content: str) -> str:
        return json.dumps({"source": content, **self._common}, sort_keys=True)

    def _is_finished(self, path: Location, record: str) -> bool:
        return _record_in(path) == record or self._remembered.is_result(path, record)

    @cached_property
    def _common(self) -> dict[str, object]:
        settings, info = self._settings, self._info
        model = settings.model.model_dump(mode="json", exclude=_NAMES_OF_MODEL | _NO_MATTER, exclude_none=True)
        model |= {"mid_timestep": info.mid_timestep, "native_tile_px": info.native_tile_px, "prompt": info.prompt}
        left_out = {"batch", "memory"} | (set() if _tiles_show(info, settings.restore) else {"tile", "overlap"})
        restore = settings.restore.model_dump(mode="json", exclude=left_out, exclude_none=True)
        restore["process_scale"] = process_scale(info, settings.restore)
        write = settings.write.model_dump(mode="json", include={"quality", "metadata"}, exclude_none=True)
        if settings.write.dpi != "keep":
            write["dpi"] = settings.write.dpi
        # A model that comes from no files is known by its name only.
        weights = self._remembered.contents(info.files) if info.files else info.name
        return {"weights": weights, **model, **restore, **write}


def _tiles_show(info: RestorerInfo, options: RestoreOptions) -> bool:
    """Whether other tiles give other pixels: blended ones, or exact ones with less than their margin."""
    stages = (info.codec, info.step)
    margin = sum(stage.halo_px for stage in stages if stage.tiling == "exact")
    is_short = options.overlap is not None and options.overlap < margin
    return is_short or any(stage.tiling == "blended" for stage in stages)


def _is_there(path: Location) -> bool:
    return os.path.lexists(path) if isinstance(path, Path) else look_at(path) is not None


def _is_file(path: Location) -> bool:
    if isinstance(path, Path):
        return path.is_file()
    entry = look_at(path)
    return entry is not None and not entry.is_folder


def _record_in(path: Location) -> str | None:
    if isinstance(path, Path):
        return read_record(path)
    with reading(path) as file:
        return record_of_file(file)


def _not_this_runs(path: Location) -> FileError:
    hint = "give --overwrite, another -o or a --suffix"
    if _is_file(path) and _record_in(path) is not None:
        return FileError(f"{shown(path)} exists, made from another input or model, or with other settings", hint)
    return FileError(f"{shown(path)} exists and is not this run's result", hint)
