"""What can be known of a job without a model: its sizes, its format, what is finished, and what cannot be processed."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import torch

from omgsr_cli.batch.results import FileResult, Status
from omgsr_cli.errors import FileError, OmgsrError, read_reason
from omgsr_cli.files.addresses import Address, Location, shown
from omgsr_cli.files.jobs import Job
from omgsr_cli.files.naming import comparison_path
from omgsr_cli.files.remembered import Remembered
from omgsr_cli.files.storage import LocalCopy, local_copy, look_at, reading
from omgsr_cli.geometry import Size, plan_output_size
from omgsr_cli.imaging import (
    FORMAT_LIMITS,
    ImageHeader,
    check_output,
    format_of_path,
    output_format,
    probe_image,
    read_record,
    record_of_file,
)
from omgsr_cli.models.base import RestorerInfo
from omgsr_cli.models.devices import free_memory_bytes
from omgsr_cli.options import ModelOptions, RestoreOptions, WriteOptions
from omgsr_cli.planning import plan_model_canvas, plan_restoration, process_scale, wanted_size

# Of the model's options these choose it or are in its info, and of the rest these do not change the result.
_NAMES_OF_MODEL = {"model", "base", "adapter", "mid_timestep", "prompt", "process_size", "vae"}
_WITHOUT_EFFECT = {"device", "compile", "offload"}

# Of a result in a format that wants all samples at once: those and its copies.
_WRITTEN_BYTES_PER_PX = 8

# A strip that is padded to more than this many times its result's pixels is refused, if the work is also large.
_MOST_PADDING, _MOST_PADDING_PX = 32, 16_000_000
# Written row by row a result may be larger than memory, but the plan of its tiles may not, nor what a disk holds.
_MOST_PX = 100_000_000_000


@dataclass(frozen=True)
class Settings:
    """Everything that a result depends on beside its input."""

    model: ModelOptions
    restore: RestoreOptions
    write: WriteOptions


class FinishedResults:
    """Finds which outputs exist already, from the same input, weights and settings.

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

        It omits what does not change the result: the device, batches, whether to overwrite, what the model
        and the input are called, and tiles where these are exact.

        Raises:
            FileError: the input or the model cannot be read.
        """
        content = hashlib.sha256(source).hexdigest() if isinstance(source, bytes) else self._remembered.content(source)
        return self._record_of(content)

    def find_known(self, job: Job) -> FileResult | None:
        """The result of a job that is skipped, if that is known without fetching its input; else None.

        Raises:
            FileError: the storage does not answer.
        """
        if not isinstance(job.source, Address) or (content := self._remembered.find_content(job.source)) is None:
            return None
        if job.searched and self._remembered.find("own", content):
            return own_result(job)
        record, outputs = self._record_of(content), outputs_of(job, self._settings)
        if outputs and all(_is_file(path) and self._is_finished(path, record) for path in outputs):
            return FileResult(job.source, job.destination, "skipped")
        return None

    def is_own(self, copy: Path) -> bool:
        """Whether what was fetched is a result of an earlier run, which is remembered."""
        if read_record(copy) is None:
            return False
        self._remembered.keep("own", self._remembered.content(copy), True)
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
            FileError: one exists that is something else, and may not be overwritten.
        """
        present = [path for path in outputs if _exists(path)]
        if not present:
            return frozenset()
        record = self.record(source)
        finished = frozenset(path for path in present if _is_file(path) and self._is_finished(path, record))
        for path in present:
            if path not in finished and not self._settings.write.overwrite:
                raise _not_this_runs(path)
        return finished

    def keep(self, output: Location, record: str) -> None:
        """Note that an output was written just now, if it holds no record."""
        if self._settings.write.metadata == "none":
            self._remembered.keep_result(output, record)

    def _record_of(self, content: str) -> str:
        return json.dumps({"source": content, **self._common}, sort_keys=True)

    def _is_finished(self, path: Location, record: str) -> bool:
        return _record_in(path) == record or self._remembered.result(path) == record

    @cached_property
    def _common(self) -> dict[str, object]:
        settings, info = self._settings, self._info
        model = settings.model.model_dump(mode="json", exclude=_NAMES_OF_MODEL | _WITHOUT_EFFECT, exclude_none=True)
        if settings.model.quantize == "none":
            del model["quantize"]
        model |= {"mid_timestep": info.mid_timestep, "native_tile_px": info.native_tile_px, "prompt": info.prompt}
        left_out = {"batch", "memory"} | (set() if _tiles_matter(info, settings.restore) else {"tile", "overlap"})
        restore = settings.restore.model_dump(mode="json", exclude=left_out, exclude_none=True)
        restore["process_scale"] = process_scale(info, settings.restore)
        write = settings.write.model_dump(mode="json", include={"quality", "metadata"}, exclude_none=True)
        if settings.write.dpi != "keep":
            write["dpi"] = settings.write.dpi
        # A model that comes from no files is known by its name only.
        weights = self._remembered.contents(info.files) if info.files else info.name
        return {"weights": weights, **model, **restore, **write}


def _tiles_matter(info: RestorerInfo, options: RestoreOptions) -> bool:
    """Whether other tiles give other pixels: blended ones, or exact ones with less than their margin."""
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
    hint = "give --overwrite, another -o or a --suffix"
    if _is_file(path) and _record_in(path) is not None:
        return FileError(f"{shown(path)} exists, made from another input or model, or with other settings", hint)
    return FileError(f"{shown(path)} exists and is not this run's result", hint)


@dataclass(frozen=True)
class Checked:
    """What is known of a job from its input's header and its outputs, without a model."""

    content: bytes | Path
    input_px: Size
    output_px: Size
    working_px: Size
    format: str
    held_bytes: int
    """Memory that the input's pixels take while it is restored."""
    reading_bytes: int
    """Memory that reading the input takes at its peak."""
    finished: frozenset[Location]
    """The outputs that exist already, from the same input with the same settings."""

    def is_finished(self, job: Job, settings: Settings) -> bool:
        """Whether nothing is left to do."""
        return bool(self.finished) and self.finished.issuperset(outputs_of(job, settings))


def plan_files(
    jobs: Iterable[Job], settings: Settings, info: RestorerInfo, results: FinishedResults, free_bytes: int
) -> Iterator[FileResult]:
    """Plan what an `Upscaler` would do, reading headers only.

    Args:
        jobs: from `plan_jobs`.
        settings: for all of them.
        info: of the model, which need not be loaded.
        results: of earlier runs with the same settings and model.
        free_bytes: memory that tiles may use.
    """
    for job in jobs:
        started = time.monotonic()
        try:
            with ExitStack() as held:
                content = open_content(job, held, results)
                if is_own_result(job, content, results):
                    yield own_result(job)
                    continue
                checked = check_job(job, content, settings, info, results)
            options = beside_input(settings.restore, checked.held_bytes)
            free = max(free_bytes - checked.held_bytes, 0)
            plan = plan_restoration(info, checked.input_px, checked.output_px, options, free)
            plan = replace(plan, memory_bytes=max(plan.memory_bytes + checked.held_bytes, checked.reading_bytes))
        except OmgsrError as error:
            yield failed(job, error, started)
            continue
        status: Status = "skipped" if checked.is_finished(job, settings) else "planned"
        sizes = checked.input_px, checked.output_px, plan.canvas.working.times(info.factor)
        yield FileResult(job.source, job.destination, status, *sizes, plan=plan)


def open_content(job: Job, held: ExitStack, results: FinishedResults) -> bytes | Path:
    """What to read: all of standard input, the file, or a copy of one on the network for as long as it is held."""
    if job.source is None:
        try:
            return sys.stdin.buffer.read()
        except OSError as error:
            raise FileError(f"standard input: cannot be read: {read_reason(error)}") from error
    copy = held.enter_context(local_copy(job.source))
    if isinstance(job.source, Address):
        results.keep_fetched(job.source, copy)
    return copy.path


def is_own_result(job: Job, content: bytes | Path, results: FinishedResults) -> bool:
    """Whether an input from the network, found in a folder or by a glob, is a result of an earlier run.

    Those on this machine's disks are skipped as jobs are planned; of these, only what is fetched anyway shows it.
    """
    return job.searched and isinstance(job.source, Address) and isinstance(content, Path) and results.is_own(content)


def own_result(job: Job) -> FileResult:
    """The result of a job whose input is a result of an earlier run."""
    return FileResult(job.source, None, "skipped", is_own=True)


def check_job(
    job: Job, content: bytes | Path, settings: Settings, info: RestorerInfo, results: FinishedResults
) -> Checked:
    """Read the input's header, and find the outputs that exist."""
    header = probe_image(content, name_of(job))
    size = Size(*header.size_px)
    output = plan_output_size(size, settings.restore.size, info.scale)
    format_name = _format(job, header.format, settings)
    working = _check_cost(job, header, output, info, settings.restore, format_name)
    # Whether transparency is really used shows only in the pixels.
    check_output(str(job.destination or "standard output"), format_name, output, has_alpha=False)
    finished = results.among(outputs_of(job, settings), content)
    return Checked(content, size, output, working, format_name, header.held_bytes, header.reading_bytes, finished)


def beside_input(options: RestoreOptions, held_bytes: int) -> RestoreOptions:
    """The options with what is left of `--memory` beside an input's pixels."""
    if options.memory is None:
        return options
    return options.model_copy(update={"memory": max(options.memory - (held_bytes >> 20), 16)})


class NoRoomError(FileError):
    """An image needs more memory than is free at the moment."""


def _check_cost(
    job: Job, header: ImageHeader, output: Size, info: RestorerInfo, options: RestoreOptions, format_name: str
) -> Size:
    """The working size; refuses an image that could not be read, restored and written, or is nearly all padding.

    Whether memory is enough for the model is known only when it runs.
    """
    size = Size(*header.size_px)
    canvas, wanted = plan_model_canvas(info, size, output, options), wanted_size(info, size, output, options)
    for made, hint in ((output, "ask for a smaller size"), (canvas.working, "give --process-scale 1")):
        if made.area > _MOST_PX:
            shown = made if made == output else f"{output}, restored at {made},"
            reason = f"{shown} is {made.area / 1e9:.0f} gigapixels, and {_MOST_PX / 1e9:.0f} is the limit"
            raise FileError(f"{name_of(job)}: {reason}", hint)
    padded = canvas.padded
    if padded.area > _MOST_PADDING_PX and padded.area > _MOST_PADDING * wanted.area:
        reason = f"{output} would be restored as {padded}: {padded.area / 1e6:.0f} megapixels of work"
        hint = "cut it into parts that are less thin, or lower --process-size"
        raise FileError(f"{name_of(job)}: out of proportion: {reason} for {wanted.area / 1e6:.2g}", hint)
    if options.memory is not None and header.reading_bytes > options.memory << 20:
        reason = f"reading {size} takes {header.reading_bytes >> 20} MiB, and --memory allows {options.memory}"
        raise FileError(f"{name_of(job)}: {reason}", "allow more, or cut it into parts first")
    written = 0 if FORMAT_LIMITS[format_name].by_rows else output.area
    needed = max(header.reading_bytes, header.held_bytes + written * _WRITTEN_BYTES_PER_PX)
    free = free_memory_bytes(torch.device("cpu"))
    if needed > free:
        what = f"reading {size}" if needed == header.reading_bytes else str(output)
        reason = f"{what} takes {needed >> 20} MiB of memory, and {free >> 20} are free"
        raise NoRoomError(f"{name_of(job)}: {reason}", "ask for a smaller size, or cut the image into parts first")
    return canvas.working.times(info.factor)


def outputs_of(job: Job, settings: Settings) -> tuple[Location, ...]:
    """The files that a job writes: the result, and the comparison beside it."""
    if job.destination is None:
        return ()
    return (job.destination, comparison_path(job.destination)) if settings.write.compare else (job.destination,)


def _format(job: Job, source_format: str, settings: Settings) -> str:
    """The file's name decides, then `--format`; both agree wherever both speak."""
    named = None if job.destination is None else format_of_path(Path(job.destination.name))
    return named or output_format(settings.write.format, source_format)


def name_of(job: Job) -> str:
    """The name of a job's input in messages."""
    return "standard input" if job.source is None else str(job.source)


def forget_frames(error: BaseException) -> None:
    """Drop the tracebacks of an error that is kept, and of all that led to it: their frames hold tensors."""
    waiting: list[BaseException | None] = [error]
    seen = set()
    while waiting:
        each = waiting.pop()
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            each.__traceback__ = None
            waiting += [each.__cause__, each.__context__]


def failed(job: Job, error: OmgsrError, started: float) -> FileResult:
    """The result of a job that ended with an error, begun at that time of `time.monotonic`."""
    forget_frames(error)
    return FileResult(job.source, job.destination, "failed", seconds=time.monotonic() - started, error=error)
