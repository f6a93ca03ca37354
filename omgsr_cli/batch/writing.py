"""Write what a job gives: the picture, the comparison beside it, and the record by which both are known again."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from omgsr_cli.batch.checking import name_of, outputs_of
from omgsr_cli.batch.finished import FinishedResults, Settings
from omgsr_cli.batch.reading import Begun
from omgsr_cli.errors import DeviceError, FileError, NotFiniteError, reason_of
from omgsr_cli.files.addresses import Location
from omgsr_cli.files.naming import comparison_path
from omgsr_cli.files.storage import put_when_whole
from omgsr_cli.imaging import PictureBands, Rows, write_picture
from omgsr_cli.imaging.image import side_by_side
from omgsr_cli.imaging.rows import BandSpool, keeping


def write_result(
    begun: Begun, restored: PictureBands, enlarged: Rows, settings: Settings, results: FinishedResults
) -> tuple[str, ...]:
    """Write one picture as its bands come, and its comparison.

    Args:
        begun: what is restored.
        restored: its bands, computed as they are asked for.
        enlarged: rows of the enlarged input, for the comparison.
        settings: for all jobs.
        results: remembers what was written.
    Returns:
        What a person should be told.
    Raises:
        OmgsrError: it cannot be computed or written; nothing half done is left.
    """
    job, checked, record = begun.job, begun.checked, begun.record
    kept = BandSpool(begun.picture.bit_depth) if settings.write.compare and job.destination is not None else None
    overwrite = settings.write.overwrite or job.destination in checked.finished
    try:
        with _opened(job.destination, overwrite) as place:
            notes = write_picture(
                restored if kept is None else replace(restored, rgb=keeping(restored.rgb, kept)),
                place,
                format=checked.format,
                quality=settings.write.quality,
                metadata=settings.write.metadata,
                dpi=settings.write.dpi,
                record=record,
                overwrite=overwrite,
            )
    except MemoryError as error:
        raise FileError(f"{name_of(job)}: memory is short for {checked.output_px}", "ask for a smaller size") from error
    except (DeviceError, NotFiniteError) as error:
        raise type(error)(f"{name_of(job)}: {error.message}", error.hint) from error
    if kept is not None and job.destination is not None:
        both = side_by_side(enlarged, begun.picture, replace(restored, rgb=iter(kept)))
        path = comparison_path(job.destination)
        overwrite = settings.write.overwrite or path in checked.finished
        metadata = settings.write.metadata
        with put_when_whole(path, overwrite=overwrite) as local:
            write_picture(both, local, format="png", metadata=metadata, record=record, overwrite=overwrite)
    if settings.write.keep_times:
        notes += _keep_times(job.source, outputs_of(job, settings))
    for path in outputs_of(job, settings):
        results.keep(path, record)
    return notes


def _keep_times(source: Location | None, outputs: Sequence[Location]) -> tuple[str, ...]:
    """Give results the times of their input; returns a note where one of them has none that can be set."""
    if not isinstance(source, Path) or not all(isinstance(output, Path) for output in outputs):
        return ("--keep-times has no effect: input and result are not both local files",)
    try:
        found = source.stat()
        for output in outputs:
            os.utime(str(output), ns=(found.st_atime_ns, found.st_mtime_ns))
    except OSError as error:
        return (f"the times of the input were not kept: {reason_of(error)}",)
    return ()


def _opened(destination: Location | None, overwrite: bool) -> AbstractContextManager[Path | BinaryIO]:
    return nullcontext(sys.stdout.buffer) if destination is None else put_when_whole(destination, overwrite=overwrite)
