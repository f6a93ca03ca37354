"""Plan and check a job without a model: its sizes and format, and whether it is finished or can be processed."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from omgsr_cli.batch.finished import FinishedResults, Settings, failed, name_of, outputs_of, own_result
from omgsr_cli.batch.reports import FileResult, Status
from omgsr_cli.errors import FileError, OmgsrError, UnreadableError, read_reason
from omgsr_cli.files.addresses import Address, Location, local_copy
from omgsr_cli.files.folders import FORMAT_OF_SUFFIX
from omgsr_cli.files.jobs import Job
from omgsr_cli.geometry import Size, plan_output_size
from omgsr_cli.imaging import FORMAT_LIMITS, ImageHeader, check_output, output_format, probe_image
from omgsr_cli.models.base import RestorerInfo
from omgsr_cli.models.devices import free_memory_bytes
from omgsr_cli.options import RestoreOptions
from omgsr_cli.planning import Execution, plan_model_canvas, plan_restoration, wanted_size

# Bytes per pixel of a result in a format that needs all samples at once, including its copies.
_WRITTEN_BYTES_PER_PX = 8

# A thin image that is padded to more than this many times its result's pixels is refused, if the work is also large.
_MOST_PADDING, _MOST_PADDING_PX = 32, 16_000_000
# A result that is written row by row may exceed the memory, but the plan of its tiles and the disk set a limit.
_MOST_PX = 100_000_000_000


@dataclass(frozen=True)
class Checked:
    """The properties of a job from its input's header and its outputs, without a model."""

    content: bytes | Path
    input_px: Size
    output_px: Size
    working_px: Size
    format: str
    held_bytes: int
    """Memory for the input's pixels while it is restored."""
    reading_bytes: int
    """Memory that reading the input takes at its peak."""
    finished: frozenset[Location]
    """The outputs that exist already, from the same input with the same settings."""

    def is_finished(self, job: Job, settings: Settings) -> bool:
        """Whether nothing is left to do."""
        return bool(self.finished) and self.finished.issuperset(outputs_of(job, settings))


def plan_files(
    jobs: Iterable[Job],
    settings: Settings,
    info: RestorerInfo,
    results: FinishedResults,
    free_bytes: int,
    execution: Execution,
) -> Iterator[FileResult]:
    """Plan the work of an `Upscaler`; only headers are read.

    Args:
        jobs: from `plan_jobs`.
        settings, info, results: as for `check_job`.
        free_bytes: memory that tiles may use.
        execution: where the model would run.
    """
    for job in jobs:
        started = time.monotonic()
        try:
            with ExitStack() as held:
                checked = check_job(job, held, settings, info, results)
            if isinstance(checked, FileResult):
                yield checked
                continue
            options = beside_input(settings.restore, checked.held_bytes)
            free = max(free_bytes - checked.held_bytes, 0)
            plan = plan_restoration(info, checked.input_px, checked.output_px, options, free, execution)
            plan = replace(plan, memory_bytes=max(plan.memory_bytes + checked.held_bytes, checked.reading_bytes))
        except OmgsrError as error:
            yield failed(job, error, started)
            continue
        status: Status = "skipped" if checked.is_finished(job, settings) else "planned"
        sizes = checked.input_px, checked.output_px, plan.canvas.working.times(info.factor)
        yield FileResult(job.source, job.destination, status, *sizes, plan=plan)


def _open_content(job: Job, held: ExitStack, results: FinishedResults) -> bytes | Path:
    """The content of standard input, the path of a file, or the path of a temporary copy of a file on the network."""
    if job.source is None:
        try:
            return sys.stdin.buffer.read()
        except OSError as error:
            raise FileError(f"standard input: cannot be read: {read_reason(error)}") from error
    copy = held.enter_context(local_copy(job.source))
    if isinstance(job.source, Address):
        results.keep_fetched(job.source, copy)
    return copy.path


def check_job(
    job: Job, held: ExitStack, settings: Settings, info: RestorerInfo, results: FinishedResults
) -> Checked | FileResult:
    """Open an input, read its header, and find the outputs that exist.

    Args:
        job: the job.
        held: keeps a temporary copy of a file on the network.
        settings: settings of all jobs.
        info: properties of the model, which need not be loaded.
        results: results of earlier runs with the same settings and model.
    Returns:
        What is known of the job, or the result of an input that is a result of an earlier run.
    """
    content = _open_content(job, held, results)
    # Results on this machine are skipped when jobs are planned. Those on the network are only known when fetched.
    if job.searched and isinstance(job.source, Address) and isinstance(content, Path) and results.is_own(content):
        return own_result(job)
    with reading_input():
        header = probe_image(content, name_of(job))
    size = Size(*header.size_px)
    output = plan_output_size(size, settings.restore.size, info.scale)
    # Planning ensures that the name of the output and --format agree.
    named = None if job.destination is None else FORMAT_OF_SUFFIX.get(job.destination.suffix.lower())
    format_name = named or output_format(settings.write.format, header.format)
    working = _check_cost(job, header, output, info, settings.restore, format_name)
    # Only the pixels show whether transparency is really used.
    check_output(str(job.destination or "standard output"), format_name, output, has_alpha=False)
    finished = results.among(job, content)
    return Checked(content, size, output, working, format_name, header.held_bytes, header.reading_bytes, finished)


@contextmanager
def reading_input() -> Iterator[None]:
    """Raise an `UnreadableError` for each error of a file in this block."""
    try:
        yield
    except FileError as error:
        raise UnreadableError(error.message, error.hint) from error


def beside_input(options: RestoreOptions, held_bytes: int) -> RestoreOptions:
    """The options with `--memory` reduced by the memory of an input's pixels."""
    if options.memory is None:
        return options
    return options.model_copy(update={"memory": max(options.memory - (held_bytes >> 20), 16)})


class NoRoomError(FileError):
    """An image needs more memory than is free at the moment."""


def _check_cost(
    job: Job, header: ImageHeader, output: Size, info: RestorerInfo, options: RestoreOptions, format_name: str
) -> Size:
    """The working size; refuses images that are too large to read, restore and write, or that are nearly all padding.

    Whether the memory suffices for the model is only known when it runs.
    """
    size = Size(*header.size_px)
    canvas, wanted = plan_model_canvas(info, size, output, options), wanted_size(info, size, output, options)
    for made, hint in ((output, "choose a smaller size"), (canvas.working, "use --process-scale 1")):
        if made.area > _MOST_PX:
            shown = made if made == output else f"{output}, restored at {made},"
            reason = f"{shown} is {made.area / 1e9:.0f} gigapixels, and {_MOST_PX / 1e9:.0f} is the limit"
            raise FileError(f"{name_of(job)}: {reason}", hint)
    padded = canvas.padded
    if padded.area > _MOST_PADDING_PX and padded.area > _MOST_PADDING * wanted.area:
        reason = f"{output} would be restored as {padded}: {padded.area / 1e6:.0f} megapixels of work"
        hint = "cut it into parts that are less thin, or use a smaller --process-size"
        raise FileError(f"{name_of(job)}: out of proportion: {reason} for {wanted.area / 1e6:.2g}", hint)
    if options.memory is not None and header.reading_bytes > options.memory << 20:
        reason = f"reading {size} takes {header.reading_bytes >> 20} MiB, and --memory allows {options.memory}"
        raise FileError(f"{name_of(job)}: {reason}", "allow more memory, or cut the image into parts first")
    written = 0 if FORMAT_LIMITS[format_name].by_rows else output.area
    needed = max(header.reading_bytes, header.held_bytes + written * _WRITTEN_BYTES_PER_PX)
    free = free_memory_bytes(torch.device("cpu"))
    if needed > free:
        what = f"reading {size}" if needed == header.reading_bytes else str(output)
        reason = f"{what} takes {needed >> 20} MiB of memory, and {free >> 20} are free"
        raise NoRoomError(f"{name_of(job)}: {reason}", "choose a smaller size, or cut the image into parts first")
    return canvas.working.times(info.factor)
