"""The result of one file, and the report of a run: one JSON object per line and file, read while the run continues."""

from __future__ import annotations

import errno
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from omgsr_cli.errors import OmgsrError, UsageError, reason_of, write_reason
from omgsr_cli.files.addresses import Location, json_text, name_hash, shown

if TYPE_CHECKING:
    from omgsr_cli.geometry import Size
    from omgsr_cli.planning import TilePlan

Status = Literal["done", "skipped", "planned", "failed"]


@dataclass(frozen=True)
class FileResult:
    """The result of one file.

    Attributes:
        source: the input, a path or an address; None is standard input.
        destination: the output; None is standard output, or an input that was never planned.
        status: "done", "skipped" (finished before, with the same settings), "planned" (dry run) or "failed".
        input_px: height and width of the upright input; None if it could not be read.
        output_px: height and width of the result.
        working_px: height and width at which it is restored.
        seconds: from opening the input to the finished output, without the loading of the model.
        notes: notes for the user, one line each.
        error: the reason of a failure.
        plan: the tiles, in a dry run.
        is_own: the input is a result of an earlier run that a folder or glob contained.
    """

    source: Location | None
    destination: Location | None
    status: Status
    input_px: Size | None = None
    output_px: Size | None = None
    working_px: Size | None = None
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    error: OmgsrError | None = None
    plan: TilePlan | None = None
    is_own: bool = False


def result_record(result: FileResult) -> dict[str, object]:
    """The JSON object of one file; sizes are [width, height]."""
    sizes = {"input_size": result.input_px, "output_size": result.output_px, "restored_size": result.working_px}
    record: dict[str, object] = {
        "input": None if result.source is None else str(result.source),
        "output": None if result.destination is None else str(result.destination),
        "status": result.status,
        **{name: size and [size.width, size.height] for name, size in sizes.items()},
        "seconds": round(result.seconds, 3),
        "notes": [*result.notes, *(["the input is a result of an earlier run"] if result.is_own else [])],
        "error": result.error and result.error.message,
        "hint": result.error and result.error.hint,
    }
    if result.plan:
        record |= {
            "tiles": result.plan.tiles,
            "tile_px": result.plan.step.side_px,
            "overlap_px": result.plan.step.margin_px,
            "memory_mib": result.plan.memory_bytes >> 20,
            "in_strips": result.plan.in_strips,
        }
    return record


# --- reports ---

_LONGEST_LINE = 1 << 20


class RunReport:
    """Appends records to a report, which can cover several runs.

    Each line is written by a single append, so several processes can share a report if their file system makes appends
    atomic. Network file systems do not; give each process its own report there.

    Args:
        path: path of the report, which is created if it is missing.
        on_note: called once if the disk is full; the run continues, and later lines are still attempted.

    Attributes:
        missing: number of lines that could not be written.

    Raises:
        UsageError: the file cannot be written, or is not a report.
    """

    def __init__(self, path: Path, on_note: Callable[[str], None] = lambda _: None) -> None:
        self._path, self._on_note = path, on_note
        self.missing = 0
        self._is_torn = False
        if path.is_file() and not _could_be_report(path):
            raise UsageError(f"--report {shown(path)} exists and is not a report", "use another file")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
            end = os.lseek(self._file, 0, os.SEEK_END)
            if end and (os.lseek(self._file, end - 1, os.SEEK_SET), os.read(self._file, 1))[1] != b"\n":
                # The last line is incomplete, for example after a power failure.
                os.write(self._file, b"\n")
        except OSError as error:
            raise UsageError(
                f"--report {shown(path)} cannot be written: {write_reason(error)}", "use another file"
            ) from error

    def begin(self, files: int | None, part: str | None, *, retry: bool = False, watch: bool = False) -> None:
        """Record the start of a run.

        Args:
            files: number of files; None if it is not known before the end.
            part: the part of a sharded run, such as "3/8"; None for all files.
            retry: the run processes only the failed files of a previous run.
            watch: the run waits for files, so its speed is that of their arrival.
        """
        run = {"files": files, "part": part, "retry": retry, "watch": watch}
        self._write({"run": run, "time": time.time()})

    def counted(self, files: int) -> None:
        """Record the number of files, if it was not known at the start."""
        self._write({"files": files, "time": time.time()})

    def add(self, record: Mapping[str, object]) -> None:
        """Add the record of a file."""
        self._write({**record, "time": time.time()})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        os.close(self._file)

    def _write(self, record: Mapping[str, object]) -> None:
        line = json_text(record).encode() + b"\n"
        # The previous line was written in part only, so begin a new line.
        line = b"\n" + line if self._is_torn else line
        try:
            written = os.write(self._file, line)
            self._is_torn = written < len(line) if written else self._is_torn
            if written < len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError as error:
            self.missing += 1
            if self.missing == 1:
                self._on_note(
                    f"--report {shown(self._path)} cannot be written: {write_reason(error)}; the run continues"
                )


@dataclass(frozen=True)
class RunState:
    """The state of a run according to its reports.

    Attributes:
        files: number of files in all parts; None if it is unknown.
        finished: number of inputs with a finished result.
        reasons: reasons of failures and their counts, the most frequent first. Files that were finished later do not
            count; errors of the latest runs about inputs that are not images count, such as missing files in a list.
        done: number of files that the latest run of each part has processed.
        seconds: duration of these runs.
        ended: time of the last result, in seconds since 1970.
        is_watching: whether one of these runs waits for files, so the number of files and the speed have no meaning.
        failures: reason of the failure of each file, by the hash of its name; None for finished files.
    """

    files: int | None
    finished: int
    reasons: Mapping[str, int]
    done: int
    seconds: float
    ended: float
    is_watching: bool
    failures: Mapping[int, str | None] = field(repr=False, compare=False)

    @property
    def failed(self) -> int:
        """The number of inputs that failed."""
        return sum(self.reasons.values())

    @property
    def left(self) -> int | None:
        """The number of files that are neither finished nor failed."""
        return None if self.files is None else self.files - self.finished - self.failed

    @property
    def rate(self) -> float | None:
        """Files per second; None before the first file, for a run that waits for files, or for implausible times."""
        has_rate = self.done and 0 < self.seconds < math.inf and not self.is_watching
        return self.done / self.seconds if has_rate else None

    @property
    def seconds_left(self) -> float | None:
        """The estimated remaining time at this rate; None if it is unknown."""
        return None if self.left is None or not self.rate else self.left / self.rate

    def has_failed(self, name: str) -> bool:
        """Whether a file has failed and was not finished later."""
        return self.failures.get(name_hash(name)) is not None


def _could_be_report(path: Path) -> bool:
    """Whether a file is empty or begins like a report, so nothing is appended to an image that was given by mistake."""
    try:
        with open(path, "rb") as file:
            first = file.readline(_LONGEST_LINE)
        return not first or (first.startswith(b"{") and (not first.endswith(b"\n") or "time" in json.loads(first)))
    except OSError:
        # The reason is reported when the file is opened.
        return True
    except ValueError:
        return False


@dataclass
class _Run:
    files: int | None
    began: float
    ended: float
    done: int = 0
    retry: bool = False
    watch: bool = False
    problems: Counter[str] = field(default_factory=Counter)


def read_reports(paths: Sequence[Path]) -> RunState:
    """Combine the reports of all parts and runs; a million files need about 100 MB of memory.

    The last record of each file counts.

    Raises:
        UsageError: a file cannot be read, or is not a report.
    """
    failures, runs = dict[int, str | None](), list[_Run]()
    for path in paths:
        latest: dict[str | None, _Run] = {}
        part: str | None = None
        for line in _lines(path):
            if isinstance(line.get("run"), dict):
                part = line["run"].get("part")
                latest[part] = _begun(line, latest, part)
            elif _is_count(line.get("files")) and part in latest:
                if not latest[part].retry:
                    latest[part].files = line["files"]
            elif "status" in line:
                run = latest.setdefault(part, _Run(None, line["time"], line["time"]))
                _add(failures, run, line)
                run.done += line["status"] != "skipped"
                run.ended = max(run.ended, line["time"])
        if not latest:
            raise UsageError(f"{shown(path)} is not a report", "use the file that was given to --report")
        runs += latest.values()
    return _sum_up(failures, runs)


def _sum_up(failures: Mapping[int, str | None], runs: Sequence[_Run]) -> RunState:
    problems, reasons = Counter[str](), Counter(reason for reason in failures.values() if reason is not None)
    finished = len(failures) - reasons.total()
    for run in runs:
        problems += run.problems
    reasons += problems
    counts = [run.files for run in runs]
    files = None
    if None not in counts:
        # A report may contain files of an earlier run.
        counted = sum(count for count in counts if count is not None) + problems.total()
        files = max(counted, finished + reasons.total())
    return RunState(
        files=files,
        finished=finished,
        reasons=dict(reasons.most_common()),
        done=sum(run.done for run in runs),
        seconds=max((run.ended for run in runs), default=0.0) - min((run.began for run in runs), default=0.0),
        ended=max((run.ended for run in runs), default=0.0),
        is_watching=any(run.watch for run in runs),
        failures=failures,
    )


def _begun(line: Mapping[str, Any], latest: Mapping[str | None, _Run], part: str | None) -> _Run:
    run, before = _Run(line["run"].get("files"), line["time"], line["time"]), latest.get(part)
    run.watch = line["run"].get("watch") is True
    if line["run"].get("retry") and latest:
        # A retry processes files that are counted already.
        run.retry, run.files = True, 0 if before is None else before.files
    return run


def _add(failures: dict[int, str | None], run: _Run, line: Mapping[str, Any]) -> None:
    if line["status"] == "failed" and line.get("input") is None:
        run.problems[str(line.get("error")).rpartition(": ")[2]] += 1
        return
    name = str(line.get("input"))
    reason = sys.intern(str(line.get("error")).removeprefix(f"{name}: ")) if line["status"] == "failed" else None
    failures[name_hash(name)] = reason


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    try:
        with open(path, "rb") as file:
            for text in file:
                try:
                    line = json.loads(text)
                except ValueError:
                    # The line is incomplete: it is being written, or the machine crashed. Ignore its file.
                    continue
                if isinstance(line, dict) and _is_sound(line):
                    yield line
    except OSError as error:
        raise UsageError(f"{shown(path)} cannot be read: {reason_of(error)}") from error


def _is_sound(line: Mapping[str, Any]) -> bool:
    """Whether a line has the form of `RunReport`'s; others, such as damaged ones, are ignored."""
    if not _is_time(line.get("time")):
        return False
    if "run" in line:
        run = line["run"]
        files, part = (run.get("files"), run.get("part")) if isinstance(run, dict) else (-1, None)
        return (files is None or _is_count(files)) and isinstance(part, str | None)
    if "status" in line:
        return line["status"] in _STATES and all(isinstance(line.get(name), str | None) for name in ("input", "error"))
    return _is_count(line.get("files"))


_STATES = ["done", "skipped", "failed"]


def _is_time(value: object) -> bool:
    """Whether a value is a plausible number of seconds since 1970."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e15


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
