"""Options of work on many pictures: who does it, which part, and what is kept of it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from omgsr_cli.files.jobs import JobPlan
from omgsr_cli.files.reports import RunReport, read_reports

if TYPE_CHECKING:
    from collections.abc import Mapping

    from omgsr_cli.engines.work import Engine
    from omgsr_cli.options import EngineOptions


class Report(Protocol):
    """Is told of a run and its files."""

    def begin(self, files: int | None, part: str | None) -> None:
        """A run begins."""
        ...

    def add(self, record: Mapping[str, object]) -> None:
        """A file has ended."""
        ...


class _NoReport:
    def begin(self, files: int | None, part: str | None) -> None:
        pass

    def add(self, record: Mapping[str, object]) -> None:
        pass


def open_report(path: Path | None) -> AbstractContextManager[Report]:
    """The report that was asked for, or one that forgets.

    Raises:
        UsageError: it cannot be written.
    """
    return nullcontext(_NoReport()) if path is None else RunReport(path)


def only_failed(plan: JobPlan, report: Path) -> JobPlan:
    """Those jobs whose files have failed, by an earlier run's report.

    Raises:
        UsageError: it cannot be read.
    """
    failed = read_reports([report]).failed
    return replace(plan, jobs=tuple(job for job in plan.jobs if str(job.source) in failed), problems=())


def first_device(text: str | None) -> str | None:
    """The one of several devices that is asked what a model can do there; None where all or any will do."""
    return None if text in (None, "all") else text.partition(",")[0]


def choose_engine(options: EngineOptions, jobs: int) -> Engine:
    """Who does so many jobs; a single one, as of standard input, is always done by this process.

    Raises:
        DeviceError: a device is not here.
    """
    if options.engine == "ray" and jobs > 1:
        from omgsr_cli.engines.ray_actors import RayActors

        return RayActors(options.device, options.workers, options.address)
    from omgsr_cli.engines.local import choose_local, plan_places
    from omgsr_cli.models.devices import named_devices

    return choose_local(plan_places(named_devices(options.device), options.workers if jobs > 1 else 1))
