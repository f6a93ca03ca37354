"""What is finished already: which outputs exist, from the same input, model and settings; known without torch."""

from __future__ import annotations

import hashlib
import json
import os
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from omgsr_cli.batch.reports import FileResult
from omgsr_cli.errors import FileError, OmgsrError, OtherSettingsError
from omgsr_cli.files.addresses import Address, LocalCopy, Location, look_at, reading, shown
from omgsr_cli.files.containers import read_record, record_of_file
from omgsr_cli.files.jobs import Job
from omgsr_cli.files.naming import comparison_path
from omgsr_cli.files.remembered import Remembered
from omgsr_cli.models.families import family_of
from omgsr_cli.models.family import ModelSource
from omgsr_cli.options import ModelOptions, RestoreOptions, WriteOptions
from omgsr_cli.planning import process_scale

if TYPE_CHECKING:
    from omgsr_cli.models.base import RestorerInfo

# Options that choose the model or are in its info, and options that do not change the result.
_NAMES_OF_MODEL = {"model", "base", "adapter", "mid_timestep", "prompt", "process_size", "vae"}
_WITHOUT_EFFECT = {"device", "compile", "offload"}


@dataclass(frozen=True)
class Settings:
    """Everything that a result depends on, apart from its input."""

    model: ModelOptions
    restore: RestoreOptions
    write: WriteOptions


class StageOutline(NamedTuple):
    """What a result depends on of a stage of a model."""

    tiling: str
    halo_px: int


@dataclass(frozen=True)
class ModelOutline:
    """What a result depends on of a model, known without torch; attributes as of a `RestorerInfo`."""

    name: str
    scale: float
    mid_timestep: int
    native_tile_px: int
    prompt: str | None
    files: tuple[Path, ...]
    codec: StageOutline
    step: StageOutline


def outline_model(source: ModelSource, options: RestoreOptions) -> ModelOutline | None:
    """What is known of a model from its record; None where a result depends on more, as its halo."""
    family, record = family_of(source.record, source.name), source.record
    if options.overlap is not None or family.step_tiling is None:
        return None
    prompt = (record.prompt or "") if family.takes_prompt else None
    stage = StageOutline(family.step_tiling, 0)
    return ModelOutline(
        *(source.name, record.scale, record.mid_timestep, record.native_tile_px, prompt, source.files),
        codec=stage,
        step=stage,
    )


class FinishedResults:
    """Finds which outputs exist already, from the same input, weights and settings.

    Args:
        settings: of this run.
        info: of the model, with what was asked for instead of its own; an outline is enough.
        remembered: hashes of files, and results that hold no record.
    """

    def __init__(self, settings: Settings, info: RestorerInfo | ModelOutline, remembered: Remembered) -> None:
        self._settings = settings
        self._info = info
        self._remembered = remembered

    def record(self, source: bytes | Path) -> str:
        """The text that identifies a result of this input.

        It omits everything that does not change the result: the device, batches, whether to overwrite, the names of the
        model and the input, and the size of exact tiles.

        Raises:
            FileError: the input or the model cannot be read.
        """
        content = hashlib.sha256(source).hexdigest() if isinstance(source, bytes) else self._remembered.content(source)
        return self._record_of(content)

    def find_known(self, job: Job) -> FileResult | None:
        """The result of a job that is skipped, if that is known without opening its input; else None.

        Raises:
            FileError: the storage does not answer, or the model cannot be read.
        """
        outputs = outputs_of(job, self._settings)
        if isinstance(job.source, Address):
            content = self._remembered.find_content(job.source)
            if content is not None and job.searched and self._remembered.find("own", content):
                return own_result(job)
        elif job.source is None or not outputs or not all(map(_exists, outputs)) or not job.source.is_file():
            return None
        else:
            content = self._remembered.content(job.source)
        if content is None or not outputs:
            return None
        record = self._record_of(content)
        if all(_is_file(path) and self._record_at(path) == record for path in outputs):
            return FileResult(job.source, job.destination, "skipped")
        return None

    def find_certain(self, job: Job) -> FileResult | None:
        """The result of a job that is finished, or whose output is certainly another file; for files of this machine.

        Raises:
            FileError: the model cannot be read.
        """
        started, outputs = time.monotonic(), outputs_of(job, self._settings)
        local = [path for path in outputs if isinstance(path, Path)]
        if not isinstance(job.source, Path) or not outputs or len(local) < len(outputs):
            return None
        if (known := self.find_known(job)) is not None or self._settings.write.overwrite:
            return known
        for path in local:
            if os.path.lexists(path) and self._record_at(path) is None:
                return failed(job, _not_this_runs(path), started)
        return None

    def is_own(self, copy: Path) -> bool:
        """Whether a fetched file is a result of an earlier run; the answer is remembered."""
        if read_record(copy) is None:
            return False
        self._remembered.keep("own", self._remembered.content(copy), True)
        return True

    def keep_fetched(self, source: Address, copy: LocalCopy) -> None:
        """Remember the hash of a file that was fetched from an address.

        Raises:
            FileError: the copy cannot be read.
        """
        self._remembered.keep_content(source, copy.stamp, self._remembered.content(copy.path))

    def among(self, job: Job, source: bytes | Path) -> frozenset[Location]:
        """The outputs of a job that an earlier run wrote from the same input with the same settings.

        Raises:
            FileError: another file exists in its place and must not be overwritten.
        """
        present = [path for path in outputs_of(job, self._settings) if _exists(path)]
        if not present:
            return frozenset()
        record = self.record(source)
        finished = frozenset(path for path in present if _is_file(path) and self._record_at(path) == record)
        for path in present:
            is_replaced = self._settings.write.overwrite or (job.replaces and self._record_at(path) is not None)
            if path not in finished and not is_replaced:
                raise _not_this_runs(path)
        return finished

    def keep(self, output: Location, record: str) -> None:
        """Remember an output that was just written, if it contains no record."""
        if self._settings.write.metadata == "none":
            self._remembered.keep_result(output, record)

    def _record_of(self, content: str) -> str:
        return json.dumps({"source": content, **self._common}, sort_keys=True)

    def _record_at(self, path: Location) -> str | None:
        """The record of a result: the one in the file, or the one that is remembered for a file without."""
        return _record_in(path) or self._remembered.result(path)

    @cached_property
    def _common(self) -> dict[str, object]:
        settings, info = self._settings, self._info
        model = settings.model.model_dump(mode="json", exclude=_NAMES_OF_MODEL | _WITHOUT_EFFECT, exclude_none=True)
        if settings.model.quantize == "none":
            del model["quantize"]
        model |= {"mid_timestep": info.mid_timestep, "native_tile_px": info.native_tile_px, "prompt": info.prompt}
        left_out = {"batch", "memory"} | (set() if _tiles_matter(info, settings.restore) else {"tile", "overlap"})
        restore = settings.restore.model_dump(mode="json", exclude=left_out, exclude_none=True)
        restore["process_scale"] = process_scale(info.scale, settings.restore)
        write = settings.write.model_dump(mode="json", include={"quality", "metadata"}, exclude_none=True)
        if settings.write.dpi != "keep":
            write["dpi"] = settings.write.dpi
        # A model that was not loaded from files is identified by its name only.
        weights = self._remembered.contents(info.files) if info.files else info.name
        return {"weights": weights, **model, **restore, **write}


def _tiles_matter(info: RestorerInfo | ModelOutline, options: RestoreOptions) -> bool:
    """Whether the tiles affect the pixels: blended tiles, or exact tiles with less than their margin."""
    stages = (info.codec, info.step)
    margin = sum(stage.halo_px for stage in stages if stage.tiling == "exact")
    is_short = options.overlap is not None and options.overlap < margin
    return is_short or any(stage.tiling == "blended" for stage in stages)


def _exists(path: Location) -> bool:
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
    hint = "use --overwrite, another -o or a --suffix"
    if _is_file(path) and _record_in(path) is not None:
        return OtherSettingsError(
            f"{shown(path)} exists, made from another input or model, or with other settings", hint
        )
    return FileError(f"{shown(path)} exists and is not this run's result", hint)


def own_result(job: Job) -> FileResult:
    """The result for a job whose input is a result of an earlier run."""
    return FileResult(job.source, None, "skipped", is_own=True)


def outputs_of(job: Job, settings: Settings) -> tuple[Location, ...]:
    """The files that a job writes: the result, and its comparison."""
    if job.destination is None:
        return ()
    return (job.destination, comparison_path(job.destination)) if settings.write.compare else (job.destination,)


def name_of(job: Job) -> str:
    """The name of a job's input in messages."""
    return "standard input" if job.source is None else str(job.source)


def forget_frames(error: BaseException) -> None:
    """Drop the tracebacks of a stored error and of its causes, because their frames keep tensors alive."""
    waiting: list[BaseException | None] = [error]
    seen = set()
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            each.__traceback__ = None
            waiting += [each.__cause__, each.__context__]


def failed(job: Job, error: OmgsrError, started: float) -> FileResult:
    """The result of a failed job, which began at `started` (`time.monotonic`)."""
    forget_frames(error)
    return FileResult(job.source, job.destination, "failed", seconds=time.monotonic() - started, error=error)
