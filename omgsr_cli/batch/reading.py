"""Begin a job: look at what is to be done, and read its picture if it is."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass

from omgsr_cli.batch.checking import (
    Checked,
    check_job,
    failed,
    is_own_result,
    name_of,
    open_content,
    outputs_of,
    own_result,
)
from omgsr_cli.batch.finished import FinishedResults, Settings
from omgsr_cli.batch.results import FileResult
from omgsr_cli.errors import OmgsrError
from omgsr_cli.files.addresses import Address
from omgsr_cli.files.jobs import Job
from omgsr_cli.imaging import Picture, read_picture
from omgsr_cli.models.base import Restorer, RestorerInfo


@dataclass
class Begun:
    """A job whose picture has been read."""

    job: Job
    checked: Checked
    picture: Picture
    record: str
    started: float
    waited_s: float = 0.0
    """Seconds since then that were spent on loading the model."""
    restorer: Restorer | None = None
    """The model that restores it."""


@dataclass(frozen=True)
class Ended:
    """A job that the model need not see."""

    job: Job
    result: FileResult


def begin_job(job: Job, settings: Settings, info: RestorerInfo, results: FinishedResults) -> Begun | Ended:
    """Look at what is to be done, and read it; what is wrong with its file is in the result.

    Args:
        job: to begin.
        settings: for all jobs.
        info: of the model, which need not be loaded.
        results: of earlier runs with the same settings and model.
    """
    started, held = time.monotonic(), ExitStack()
    with held:
        try:
            if isinstance(job.source, Address) and (known := results.fetched_before(job.source)) is not None:
                # It need not be fetched again.
                if job.searched and results.is_own_content(known):
                    return Ended(job, own_result(job))
                if results.are_known(outputs_of(job, settings), known):
                    return Ended(job, FileResult(job.source, job.destination, "skipped"))
            content = open_content(job, held, results)
            if is_own_result(job, content, results):
                return Ended(job, own_result(job))
            checked = check_job(job, content, settings, info, results)
            if checked.is_finished(job, settings):
                sizes = checked.input_px, checked.output_px, checked.working_px
                return Ended(job, FileResult(job.source, job.destination, "skipped", *sizes))
            # Before the work: an input that is edited meanwhile is another one.
            record = results.record(checked.content)
            picture = read_picture(checked.content, name_of(job))
        except OmgsrError as error:
            return Ended(job, failed(job, error, started))
    return Begun(job, checked, picture, record, started)
