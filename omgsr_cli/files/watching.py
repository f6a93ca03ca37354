"""Watch folders: plan the images that they contain, and then new and replaced ones as they arrive."""

from __future__ import annotations

import os
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, Protocol

from omgsr_cli.errors import FileError, UsageError, read_reason, reason_of
from omgsr_cli.files.addresses import is_url, name_hash, shown
from omgsr_cli.files.folders import (
    EntryKeys,
    FolderSearch,
    describe_unread,
    file_stamp,
    is_image_name,
    unread_suffix,
)
from omgsr_cli.files.inputs import FoundInput, FoundResult, Note, is_result, problem
from omgsr_cli.files.jobs import Job, JobOptions, Planned, Planner
from omgsr_cli.files.naming import STREAM, Naming, check_suffix, parse_output
from omgsr_cli.files.remembered import Remembered

SETTLE_S = 2.0
"""A file is read when it was unchanged for this long: the coarsest timestamps of file systems are 2 s apart."""

GIVE_UP_S = 60.0
"""A file that cannot be read is reported when it was unchanged for this long: an upload may have stalled before."""

# Events are lost on network drives and if the system's queue overflows, so folders are also searched this often, and
# for at most a hundredth of the time.
_SEARCH_EVERY_S, _SEARCH_SHARE = 60.0, 100
_POLL_EVERY_S = 0.1

Stamp = tuple[int, int, int]


class Changes(Protocol):
    """Changed paths in folders."""

    def take(self) -> set[str]:
        """The real paths that changed since the last call; returns at once.

        Raises:
            FileError: no more changes are reported; later calls return nothing.
        """
        ...

    def close(self) -> None:
        """Stop watching."""
        ...


class SystemChanges:
    """Changes that the system reports; where it does not, WATCHFILES_FORCE_POLLING=1 compares listings instead.

    Args:
        folders: real paths.
        recursive: watch subfolders too.
    Raises:
        UsageError: watchfiles is not installed, or the system does not watch so many folders.
    """

    def __init__(self, folders: Sequence[str], recursive: bool) -> None:
        if find_spec("watchfiles") is None:
            from omgsr_cli.packages import install_command

            raise UsageError("--watch needs watchfiles, which is not installed", install_command("watch"))
        from watchfiles import watch

        # Changes are collected in the background, so each call only takes them.
        self._watch = watch(
            *folders,
            watch_filter=None,
            debounce=50,
            step=1,
            rust_timeout=1,
            yield_on_timeout=True,
            recursive=recursive,
            ignore_permission_denied=True,
        )
        try:
            self.take()
        except FileError as error:
            raise UsageError(f"--watch: {', '.join(map(shown, folders))}: {error.message}", error.hint) from error

    def take(self) -> set[str]:
        """As `Changes.take`."""
        try:
            return {path for _, path in next(self._watch, ())}
        except (OSError, RuntimeError) as error:
            hint = "set WATCHFILES_FORCE_POLLING=1, or on Linux raise fs.inotify.max_user_watches with sysctl"
            raise FileError(reason_of(error), hint) from error

    def close(self) -> None:
        """As `Changes.close`."""
        self._watch.close()


class _Planned(NamedTuple):
    """A file that was planned: its stamp, the keys of its results, and whether they were written."""

    stamp: Stamp
    results: Collection[int] = ()
    is_made: bool = False


@dataclass
class _Arrival:
    """A file that arrived or changed.

    Attributes:
        path: its path, and `folder` the watched folder that contains it.
        stamp: its stamp when it was last seen.
        since: when this stamp was first seen.
        due: when it is looked at again, and planned if its stamp is still the same.
    """

    path: Path
    folder: Path
    stamp: Stamp
    since: float
    due: float

    def is_old(self, now: float) -> bool:
        """Whether the file has been unchanged for so long that nobody is writing it."""
        return now - self.since >= GIVE_UP_S or time.time() - self.stamp[1] / 1e9 >= GIVE_UP_S


class FolderWatch:
    """Plans the images in folders: first those that exist, then new and replaced ones, each when it is complete.

    A file that cannot be read is tried again when it changes. The memory that is used grows with the number of files in
    the folders, not with the number of files that were processed.

    Args:
        inputs: the folders.
        output: value of -o.
        options: options for searching and naming.
        remembered: results of earlier runs without a record.
        start: returns the changes in these real paths, recursively or not.
        clock: returns seconds.
    Raises:
        UsageError: an input is not a folder, or results cannot be written to the output.
    """

    def __init__(
        self,
        inputs: Sequence[str],
        output: str | None,
        options: JobOptions,
        remembered: Remembered,
        start: Callable[[Sequence[str], bool], Changes] = SystemChanges,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not inputs:
            raise UsageError("no input given", "give a folder")
        check_suffix(options.suffix)
        for text in inputs:
            if not (text == STREAM or is_url(text) or os.path.lexists(text)):
                raise UsageError(f"--watch: {shown(text)}: no such folder", "create it first, or check its name")
            if not os.path.isdir(text):
                kind = "standard input" if text == STREAM else shown(text)
                raise UsageError(f"--watch needs folders: {kind} is not a folder on this machine", "give a folder")
        target = parse_output(output, options.output_format)
        if target.kind in ("file", "stream"):
            name = "- (standard output)" if target.kind == "stream" else shown(target.path)
            raise UsageError(f"--watch: -o {name} is for one image", "use -o FOLDER")
        naming = Naming(target, options.suffix, options.size_suffix, options.output_format)
        self.folders = tuple(Path(text) for text in inputs)
        self._roots = [(Path(os.path.realpath(folder)), folder) for folder in self.folders]
        self._key = EntryKeys()
        for folder in self.folders:
            tests = [FoundInput(folder / name, Path(name), folder) for name in ("x.png", "x.jpg")]
            if all(self._key(one.path) == self._key(naming.destination(one)) for one in tests):
                raise UsageError(
                    f"{shown(folder)}: its images would be overwritten by their own results",
                    "use --suffix _x4, or -o FOLDER",
                )
        self._planner = Planner(naming)
        self._recursive, self._remembered, self._clock = options.recursive, remembered, clock
        self._output = Path(os.path.realpath(target.path)) if isinstance(target.path, Path) and output else None
        self._changes = start([str(real) for real, _ in self._roots], options.recursive)
        self._identities = self._identify()
        # Files by the hash of their key. An arrival is first waited for, then ready, then running.
        self._arrivals: dict[int, _Arrival] = {}
        self._ready: OrderedDict[int, _Arrival] = OrderedDict()
        self._running: dict[int, _Arrival] = {}
        self._planned: dict[int, _Planned] = {}
        self._new_folders: dict[Path, tuple[Path, float]] = {}
        self._findings: deque[Note | FileError] = deque()
        self._reported: set[str] = set()
        self._search_at = self._poll_at = -float("inf")

    @property
    def is_idle(self) -> bool:
        """Whether the results of all jobs have arrived."""
        return not self._running

    @property
    def unfinished(self) -> list[Path]:
        """The files without a result: they are waiting, incomplete, or being processed."""
        return [one.path for stage in (self._running, self._ready, self._arrivals) for one in stage.values()]

    def close(self) -> None:
        """Stop watching."""
        self._changes.close()

    def planned(self) -> Iterator[Planned | None]:
        """Yield what is planned, or None if nothing is at the moment; ends with an error if a folder is removed."""
        while True:
            now = self._clock()
            if not self._ready or now >= self._poll_at:
                if self._identities != self._identify():
                    yield from self._findings
                    gone = next((folder for folder in self.folders if not os.path.isdir(folder)), self.folders[0])
                    yield FileError(
                        f"{shown(gone)}: the folder was removed or replaced, so it is no longer watched",
                        "re-run the command when it is there",
                    )
                    return
                self._poll(now)
                self._poll_at = now + _POLL_EVERY_S
            while self._findings:
                yield self._findings.popleft()
            if not self._ready:
                yield None
                continue
            key, arrival = self._ready.popitem(last=False)
            if file_stamp(arrival.path) == arrival.stamp:
                yield self._plan(key, arrival)
            else:
                self._notice(arrival.path, arrival.folder)

    def finish(self, path: Path, *, is_made: bool, is_unread: bool) -> bool:
        """Receive the result of a job, and return whether it is final.

        Args:
            path: the job's source.
            is_made: its result exists.
            is_unread: it failed because the file cannot be read.
        """
        key, stamp = name_hash(self._key(path)), file_stamp(path)
        if (arrival := self._running.pop(key, None)) is None:
            # An interruption came while the result was shown, so it is shown again.
            return True
        if is_made and key in self._planned:
            self._planned[key] = self._planned[key]._replace(is_made=True)
        if stamp is None:
            self._forget(key)
            if is_unread:
                self._findings.append(Note(f"{shown(path)}: it was removed before it could be read"))
            return not is_unread
        if stamp != arrival.stamp:
            self._notice(path, arrival.folder)
            return not is_unread
        if not is_unread or arrival.is_old(self._clock()):
            return True
        arrival.due = arrival.since + GIVE_UP_S
        self._arrivals[key] = arrival
        return False

    def _poll(self, now: float) -> None:
        """Notice changes, and move complete files to the ready ones."""
        if now >= self._search_at:
            self._search_all(now)
        try:
            changed = self._changes.take()
        except FileError as error:
            changed = set()
            slower = f"changes are no longer reported, so folders are searched every {_SEARCH_EVERY_S:.0f} s"
            self._findings.append(Note(f"{slower}: {error.message}; {error.hint}"))
        for real in changed:
            self._look_at(Path(real), now)
        for place, (folder, due) in list(self._new_folders.items()):
            if now >= due:
                del self._new_folders[place]
                self._search(place, folder)
        for key, arrival in [(key, arrival) for key, arrival in self._arrivals.items() if now >= arrival.due]:
            del self._arrivals[key]
            if file_stamp(arrival.path) == arrival.stamp:
                self._ready[key] = arrival
            else:
                self._notice(arrival.path, arrival.folder)

    def _search_all(self, now: float) -> None:
        """Notice all files, and forget removed ones."""
        keys, is_complete = set[int](), True
        for _, folder in self._roots:
            is_complete &= self._search(folder, folder, keys)
        if is_complete:
            for key in self._planned.keys() - keys:
                self._forget(key)
        self._search_at = now + max(_SEARCH_EVERY_S, _SEARCH_SHARE * (self._clock() - now))

    def _search(self, place: Path, folder: Path, keys: set[int] | None = None) -> bool:
        """Notice the files of a folder, add their keys, and return whether all of it could be read."""
        unread: list[Path] = []

        def report(path: Path, error: OSError) -> None:
            unread.append(path)
            self._report(str(path), problem(shown(path), read_reason(error)))

        search = FolderSearch(place, self._output, report)
        for files in search.walk(recursive=self._recursive):
            for path in files:
                key = self._notice(path, folder)
                if keys is not None and key is not None:
                    keys.add(key)
        if self._search_at < 0 and (skipped := next(search.left_out(), None)) is not None:
            self._skip_subfolder(skipped)
        return not unread

    def _skip_subfolder(self, path: Path) -> None:
        note = f"subfolders such as {shown(path)} are skipped: use --recursive to watch them too"
        self._report("subfolders", Note(note))

    def _look_at(self, real: Path, now: float) -> None:
        """Notice a changed file, or the files of a new subfolder."""
        for root, folder in self._roots:
            if not real.is_relative_to(root):
                continue
            below = real.relative_to(root)
            is_output = self._output is not None and not root.is_relative_to(self._output)
            if is_output and real.is_relative_to(str(self._output)):
                continue
            if any(part.startswith(".") for part in below.parts) or (len(below.parts) > 1 and not self._recursive):
                continue
            path = folder / below
            if path == folder:
                return
            if not os.path.isdir(path):
                self._notice(path, folder)
            elif not self._recursive:
                self._skip_subfolder(path)
            else:
                # Until a new folder is watched itself, events of its files are lost.
                self._search(path, folder)
                self._new_folders[path] = folder, now + SETTLE_S
            return

    def _notice(self, path: Path, folder: Path) -> int | None:
        """Wait for a file if it is new or has changed; return its key, or None if it is not an image."""
        if not is_image_name(path):
            suffix = unread_suffix(path)
            if suffix is not None and (unread := describe_unread({suffix: 1})):
                hint = f": {unread[1]}" if unread[1] else ""
                self._report(suffix, Note(f"{shown(path)} is skipped, as are all {suffix} files{hint}"))
            return None
        key, stamp, now = name_hash(self._key(path)), file_stamp(path), self._clock()
        if stamp is None:
            self._arrivals.pop(key, None)
            if key not in self._running:
                self._forget(key)
            return None
        known = self._arrivals.get(key) or self._ready.get(key) or self._planned.get(key)
        if key in self._running or (known is not None and known.stamp == stamp):
            return key
        self._ready.pop(key, None)
        age_s = time.time() - stamp[1] / 1e9
        if stamp[0] == 0 and age_s < GIVE_UP_S:
            wait_s = GIVE_UP_S  # browsers and uploaders create empty placeholders
        else:
            is_first = self._search_at < 0
            wait_s = 0 if is_first and age_s >= SETTLE_S else SETTLE_S
        self._arrivals[key] = _Arrival(path, folder, stamp, now, now + wait_s)
        return key

    def _plan(self, key: int, arrival: _Arrival) -> Planned:
        path = arrival.path
        earlier = self._planned.get(key, _Planned(arrival.stamp))
        if is_result(path, self._remembered):
            self._forget(key)
            self._planned[key] = _Planned(arrival.stamp)
            return FoundResult(path)
        found = FoundInput(path, path.relative_to(arrival.folder), arrival.folder, searched=True)
        planned, results = self._planner.plan_again(found, earlier.results)
        self._planned[key] = _Planned(arrival.stamp, results, earlier.is_made and results == earlier.results)
        if not isinstance(planned, Job):
            return planned
        self._running[key] = arrival
        return replace(planned, replaces=self._planned[key].is_made)

    def _forget(self, key: int) -> None:
        """Forget a removed file: another file may have its name or its result's name later."""
        planned = self._planned.pop(key, None)
        if planned is not None:
            self._planner.forget(planned.results)

    def _report(self, key: str, finding: Note | FileError) -> None:
        """Report something once."""
        if key not in self._reported:
            self._reported.add(key)
            self._findings.append(finding)

    def _identify(self) -> list[tuple[int, int] | None]:
        """What the watched folders are; None for one that does not exist."""
        identities: list[tuple[int, int] | None] = []
        for real, _ in self._roots:
            try:
                state = os.stat(real)
            except OSError:
                identities.append(None)
            else:
                identities.append((state.st_dev, state.st_ino))
        return identities
