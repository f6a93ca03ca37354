"""Which file becomes which: planned and checked before a model is loaded."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from omgsr_cli.errors import FileError, UsageError
from omgsr_cli.files.addresses import Address, Location, is_url, name_hash, parse_address, shown
from omgsr_cli.files.atomic import remove_abandoned
from omgsr_cli.files.folders import FORMAT_OF_SUFFIX, EntryKeys
from omgsr_cli.files.inputs import Found, FoundInput, FoundResult, Note, search_inputs
from omgsr_cli.files.naming import STREAM, Naming, Output, check_suffix, comparison_name, parse_output
from omgsr_cli.files.remembered import Remembered

if TYPE_CHECKING:
    from omgsr_cli.options import OutputFormat


@dataclass(frozen=True)
class Job:
    """One image to restore.

    Attributes:
        source: the file to read; None is standard input.
        destination: the file to write, its suffix being that of the format; None is standard output.
        below: the path that the source has below the folder that was named, with slashes; a file's own is its name.
        searched: found in a folder or by a glob, not named itself.
    """

    source: Location | None
    destination: Location | None
    below: str = field(default="", compare=False)
    searched: bool = field(default=False, compare=False)


#: What the search for jobs yields: a job, an input that cannot be used, an input that is skipped, or a note. Skipped
#: are results of earlier runs that were found in a folder or by a glob, comparisons included, and inputs that have the
#: name of another input's result, as `a_x4.jpg` named beside `a.jpg`.
Planned = Job | FileError | FoundResult | Note


@dataclass(frozen=True)
class JobPlan:
    """Everything that one command does.

    Attributes:
        jobs: in the order to do them; no two of them write the same file, none writes what it or another reads.
        problems: inputs that cannot be used, or whose results would have one name; the others are processed.
        earlier_results: inputs that are skipped, see `Planned`.
        notes: what else the user should know, such as images in folders that cannot be read here.
    """

    jobs: tuple[Job, ...]
    problems: tuple[FileError, ...]
    earlier_results: tuple[Location, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class JobStream:
    """Jobs as they are found, so that millions of files take little memory and the first starts early.

    Attributes:
        first: what was found before any work; problems and notes come before the jobs.
        rest: what is found while jobs are processed; None if the first were all.
    """

    first: tuple[Planned, ...]
    rest: Iterator[Planned] | None = None

    def __iter__(self) -> Iterator[Planned]:
        return chain(self.first, self.rest or ())

    @cached_property
    def first_jobs(self) -> tuple[Job, ...]:
        """The jobs that are known before any work."""
        return tuple(one for one in self.first if isinstance(one, Job))

    @property
    def total(self) -> int | None:
        """The number of jobs, if it is known before any work."""
        return len(self.first_jobs) if self.rest is None else None

    def select(self, is_wanted: Callable[[Planned], bool]) -> JobStream:
        """These jobs without those that are not wanted."""
        rest = None if self.rest is None else filter(is_wanted, self.rest)
        return JobStream(tuple(filter(is_wanted, self.first)), rest)


@dataclass(frozen=True)
class JobOptions:
    """How inputs are searched and results called.

    Attributes:
        recursive: whether subfolders are searched.
        suffix: put behind each name; None means the scale beside an input and nothing in a folder of results.
        scale_label: "4" or "2.5", shown as _x4; or anything else, as "1920x1080", shown as _1920x1080.
        output_format: of the files; "same" keeps an input's suffix where it can be written, else takes .png.
    """

    recursive: bool
    suffix: str | None
    scale_label: str
    output_format: OutputFormat


def clear_leftovers(jobs: Iterable[Job]) -> int:
    """Remove what killed runs left where jobs write; returns the number of files."""
    folders = {job.destination.parent for job in jobs if isinstance(job.destination, Path)}
    return sum(map(remove_abandoned, folders))


# So many inputs are searched before the first job starts: the total of no more is known, and their clashes are known
# together.
_FIRST_INPUTS = 10_000


def plan_jobs(
    inputs: Sequence[str], output: str | None, options: JobOptions, remembered: Remembered | None = None
) -> JobPlan:
    """Find all jobs of a command; see `find_jobs`."""
    planned = tuple(find_jobs(inputs, output, options, remembered))
    return JobPlan(
        tuple(one for one in planned if isinstance(one, Job)),
        tuple(one for one in planned if isinstance(one, FileError)),
        tuple(one.path for one in planned if isinstance(one, FoundResult)),
        tuple(one.text for one in planned if isinstance(one, Note)),
    )


def find_jobs(
    inputs: Sequence[str], output: str | None, options: JobOptions, remembered: Remembered | None = None
) -> JobStream:
    """Find which file becomes which; reads folders and lists, writes nothing.

    Without `output` a result is written beside its input as NAME_x4.EXT, or for a folder's images under their own names
    in FOLDER_x4/ beside it. An output that exists as a folder, ends with a slash or has no file's suffix is a folder:
    folders keep their tree directly below it, globs theirs below the pattern's fixed part, lists theirs below the
    list's folder, and files their names. Any other is a file, for one image only, and `suffix` is not used.
    What counts as an input is described at `omgsr_cli.files.inputs.search_inputs`.

    Among the first 10,000 inputs, all whose results would have one name are problems; of later ones, the first is
    processed and the others are problems. Where results are written among the inputs, all inputs are found first.

    Args:
        inputs: files, folders, globs and .txt lists as typed, or only "-" for standard input.
        output: of -o, "-" being standard output; None where it is not given.
        options: of searching and naming.
        remembered: knows the results of earlier runs that hold no record.
    Raises:
        UsageError: there are no inputs, one of the first is its own output, or arguments exclude each other.
    """
    if not inputs:
        raise UsageError("no input given", "name an image, a folder, a list.txt, or - for standard input")
    check_suffix(options.suffix)
    target = parse_output(output, options.output_format)
    if STREAM in inputs:
        return JobStream((_stream_job(inputs, target),))
    folder = target.path if target.kind == "folder" else None
    found = search_inputs(
        inputs, recursive=options.recursive, output_folder=folder, skips_results=True, remembered=remembered
    )
    planner = _Planner(Naming(target, options.suffix, options.scale_label, options.output_format))
    first = list(islice(found, None if _writes_among(inputs, target) else _FIRST_INPUTS))
    after = next(found, None)
    planned = planner.plan_together(first)
    if after is None:
        return JobStream((*planner.note(), *planned))
    return JobStream(planned, planner.plan_each(chain((after,), found)))


class _Planner:
    """Names results, and finds those that would overwrite an input or each other.

    It remembers the names of results, 8 bytes each.
    """

    def __init__(self, naming: Naming) -> None:
        self._naming = naming
        self._hint = "give another name to -o" if naming.output.kind == "file" else "give --suffix _x4, or -o FOLDER"
        self._key = EntryKeys()
        self._results = set[int]()
        self._earlier, self._first_earlier = 0, ""

    def plan_together(self, found: Sequence[Found]) -> tuple[Planned, ...]:
        """Plan inputs of which each is compared with all others.

        Raises:
            UsageError: one would be overwritten by its own result, or several inputs have one output.
        """
        inputs = [one for one in found if isinstance(one, FoundInput)]
        others = [one for one in found if not isinstance(one, FoundInput)]
        if self._naming.output.kind in ("file", "stream"):
            _check_single(inputs, [one for one in others if isinstance(one, FileError)], self._naming.output)
        if self._naming.output.kind == "stream":
            return (*others, *(Job(one.path, None) for one in inputs))
        named = [self._named(one) for one in inputs]
        for one in named:
            if one.is_same_file:
                raise UsageError(one.own_source_message, self._hint)
        self._results.update(key for one in named for key in one.result_keys)
        skipped = [one for one in named if one.source_key in self._results]
        named = [one for one in named if one.source_key not in self._results]
        counts = Counter(one.place_key for one in named)
        clashing: dict[int, list[_Named]] = {}
        for one in named:
            if counts[one.place_key] > 1:
                clashing.setdefault(one.place_key, []).append(one)
        return (
            *others,
            *(self._skip(one) for one in skipped),
            *(_clash([shown(one.found.path) for one in each], each[0].place) for each in clashing.values()),
            *(one.job for one in named if counts[one.place_key] == 1),
        )

    def plan_each(self, found: Iterable[Found]) -> Iterator[Planned]:
        """Plan inputs one by one, each compared with those before it."""
        for one in found:
            if not isinstance(one, FoundInput):
                yield one
                continue
            named = self._named(one)
            if named.is_same_file:
                yield FileError(named.own_source_message, self._hint)
            elif named.source_key in self._results:
                yield self._skip(named)
            elif named.place_key in self._results:
                yield _clash([shown(one.path), "an input before it"], named.place)
            else:
                self._results.update(named.result_keys)
                yield named.job
        yield from self.note()

    def note(self) -> Iterator[Note]:
        """A note on the inputs that are skipped for their names, if there are any."""
        if self._earlier:
            yield Note(
                f"skipped {self._earlier} inputs with the names of other inputs' results, the first is "
                f"{self._first_earlier}"
            )

    def _skip(self, named: _Named) -> FoundResult:
        self._earlier += 1
        self._first_earlier = self._first_earlier or shown(named.found.path)
        return FoundResult(named.found.path)

    def _named(self, found: FoundInput) -> _Named:
        place = self._naming.destination(found)
        key = self._key(place)
        return _Named(found, place, name_hash(self._key(found.path)), name_hash(key), name_hash(comparison_name(key)))


class _Named(NamedTuple):
    """An input and where its result is written; keys distinguish files, however they are spelled."""

    found: FoundInput
    place: Location
    source_key: int
    place_key: int
    comparison_key: int

    @property
    def job(self) -> Job:
        """The job that writes the result."""
        return Job(self.found.path, self.place, self.found.below.as_posix(), self.found.searched)

    @property
    def result_keys(self) -> tuple[int, int]:
        """Of the result, and of the comparison beside it."""
        return self.place_key, self.comparison_key

    @property
    def is_same_file(self) -> bool:
        """Whether the result would replace its own source."""
        if isinstance(self.found.path, Path) and isinstance(self.place, Path):
            try:
                return os.path.samefile(self.found.path, self.place)
            except OSError:
                # The destination does not exist yet; or the source is gone, which is reported when it is read.
                pass
        return self.source_key == self.place_key

    @property
    def own_source_message(self) -> str:
        """Why such a job is refused."""
        source = self.found.path
        also = "" if source == self.place else f" is the same file as {shown(self.place)} and"
        return f"{shown(source)}{also} would be overwritten by its own result"


def _clash(sources: Sequence[str], destination: Location) -> FileError:
    *others, last = sources
    hint = "process them in separate runs, each with its own -o"
    if len({source.rpartition("/")[2] for source in sources}) > 1:
        hint = f"rename one of them, or {hint}"
    both = "both" if len(sources) == 2 else "all"
    return FileError(f"{', '.join(others)} and {last} would {both} become {shown(destination)}", hint)


def _writes_among(inputs: Sequence[str], target: Output) -> bool:
    """Whether results may lie in folders that are searched for inputs."""
    folders = [parse_address(text) if is_url(text) else Path(text) for text in inputs]
    if target.kind == "beside":
        return len(inputs) > 1 or not _names_folder(folders[0])
    return any(_names_folder(folder) and _is_below(folder, target.path) for folder in folders)


def _names_folder(place: Location) -> bool:
    if isinstance(place, Path):
        return os.path.isdir(place)
    # Without a request: a pattern or an image's name is no folder.
    return not glob.has_magic(place.place) and place.suffix.lower() not in FORMAT_OF_SUFFIX


def _is_below(place: Location, folder: Location) -> bool:
    if isinstance(place, Address):
        return isinstance(folder, Address) and place.is_relative_to(folder)
    return isinstance(folder, Path) and Path(os.path.realpath(place)).is_relative_to(os.path.realpath(folder))


def _stream_job(inputs: Sequence[str], target: Output) -> Job:
    if any(text != STREAM for text in inputs):
        raise UsageError("- (standard input) must be the only input", "run twice, or name files only")
    if target.kind == "folder":
        raise UsageError(
            f"-o {shown(target.path)} is a folder, and standard input has no name", "add one, as result.png"
        )
    return Job(None, target.path if target.kind == "file" else None)


def _check_single(found: Sequence[FoundInput], problems: Sequence[FileError], target: Output) -> None:
    name = f"-o {shown(target.path)}" if target.kind == "file" else "-o - (standard output)"
    hint = f"for a folder of that name use -o {shown(target.path)}/" if target.kind == "file" else "use -o FOLDER"
    folder = next((one.folder for one in found if one.folder is not None), None)
    if folder is not None:
        raise UsageError(f"{name} takes one image, but {shown(folder)} is a folder", hint)
    count = len(found) + len(problems)
    if count > 1:
        raise UsageError(f"{name} takes one image, but there are {count} inputs", hint)
