"""Options of work on many pictures: who does it, which part, and what is kept of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from omgsr_cli.batch.reports import RunReport, read_reports
from omgsr_cli.files.jobs import Job, JobPlan
from omgsr_cli.files.shards import Shard

if TYPE_CHECKING:
    from collections.abc import Mapping

    from omgsr_cli.engines.work import Engine
    from omgsr_cli.options import EngineOptions


class Report(Protocol):
    """Is told of a run and its files.

    Attributes:
        missing: how many lines could not be written.
    """

    missing: int

    def begin(self, files: int | None, part: str | None, *, retry: bool = False) -> None:
        """A run begins."""
        ...

    def counted(self, files: int) -> None:
        """How many files there are shows only now."""
        ...

    def add(self, record: Mapping[str, object]) -> None:
        """A file has ended."""
        ...


class _NoReport:
    missing = 0

    def begin(self, files: int | None, part: str | None, *, retry: bool = False) -> None:
        pass

    def counted(self, files: int) -> None:
        pass

    def add(self, record: Mapping[str, object]) -> None:
        pass


def open_report(path: Path | None, on_note: Callable[[str], None]) -> AbstractContextManager[Report]:
    """The report that was asked for, or one that forgets.

    Raises:
        UsageError: it cannot be written.
    """
    return nullcontext(_NoReport()) if path is None else RunReport(path, on_note)


class PartsOfPlan:
    """The parts of a plan as they come: each is told, and its jobs are counted.

    Args:
        parts: from `plan_in_parts`; the first is taken at once.
        shard: the only jobs that are wanted, if not all.
        failed: tells whether an input is wanted by its name, if not all are.
    """

    def __init__(self, parts: Iterator[JobPlan], shard: Shard | None, failed: Callable[[str], bool] | None) -> None:
        self._parts, self._shard, self._failed = parts, shard, failed
        self.first = self._wanted(next(parts))
        self.count = len(self.first.jobs)
        self.problems = 0

    @property
    def total(self) -> int | None:
        """How many jobs there are in all, where there is one part only."""
        return self.count if self.first.is_last else None

    def jobs(self, tell: Callable[[JobPlan], None]) -> Iterator[Job]:
        """All jobs; `tell` is called with each part as its first job is asked for."""
        for part in chain((self.first,), map(self._wanted, self._parts)):
            if part is not self.first:
                self.count += len(part.jobs)
            self.problems += len(part.problems)
            tell(part)
            yield from part.jobs

    def _wanted(self, part: JobPlan) -> JobPlan:
        part = self._shard.of(part) if self._shard else part
        if self._failed is None:
            return part
        return replace(part, jobs=tuple(job for job in part.jobs if self._failed(str(job.source))))


def failed_inputs(report: Path) -> Callable[[str], bool]:
    """Tells of an input's name whether it has failed, by an earlier run's report.

    Raises:
        UsageError: it cannot be read.
    """
    return read_reports([report]).has_failed


def first_device(text: str | None) -> str | None:
    """The one of several devices that is asked what a model can do there; None where all or any will do."""
    return None if text in (None, "all") else text.partition(",")[0]


def choose_engine(options: EngineOptions, jobs: int | None) -> Engine:
    """Who does so many jobs, or millions; a single one, as of standard input, is always done by this process.

    Raises:
        DeviceError: a device is not here.
    """
    are_many = jobs is None or jobs > 1
    if options.engine == "ray" and are_many:
        from omgsr_cli.engines.ray_actors import RayActors

        return RayActors(options.device, options.workers, options.address)
    from omgsr_cli.engines.local import choose_local, plan_places
    from omgsr_cli.models.devices import named_devices

    return choose_local(plan_places(named_devices(options.device), options.workers if are_many else 1))
