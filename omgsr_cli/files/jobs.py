"""Plan the output of every input, and check the plan before a model is loaded."""

from __future__ import annotations

import ast
import glob
import os
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from omgsr_cli.errors import FileError, UsageError, read_reason
from omgsr_cli.files.addresses import Address, Location, is_url, name_hash, parse_address, shown
from omgsr_cli.files.atomic import remove_abandoned
from omgsr_cli.files.folders import FORMAT_OF_SUFFIX, EntryKeys
from omgsr_cli.files.inputs import (
    EMPTY_LIST,
    NOT_A_LIST,
    Found,
    FoundInput,
    FoundResult,
    Note,
    read_names,
    search_inputs,
)
from omgsr_cli.files.naming import STREAM, Naming, Output, check_suffix, comparison_name, parse_output
from omgsr_cli.files.remembered import Remembered

if TYPE_CHECKING:
    from omgsr_cli.options import OutputFormat


@dataclass(frozen=True)
class Job:
    """One image to restore.

    Attributes:
        source: the file to read; None is standard input.
        destination: the file to write, whose suffix determines the format; None is standard output.
        below: path of the source below the input folder, with slashes; the name of a single file.
        searched: found in a folder or by a glob, not given by name.
        replaces: the result of an earlier version of the same input may be replaced.
    """

    source: Location | None
    destination: Location | None
    below: str = field(default="", compare=False)
    searched: bool = field(default=False, compare=False)
    replaces: bool = field(default=False, compare=False)


class ClashError(FileError):
    """Inputs whose results would have the same name.

    Attributes:
        inputs: those that are not processed.
    """

    def __init__(self, inputs: Sequence[FoundInput], others: Sequence[str], destination: Location) -> None:
        self.inputs = inputs
        *names, last = [*(shown(one.path) for one in inputs), *others]
        hint = "process them in separate runs, each with its own -o"
        if len({name.rpartition("/")[2] for name in (*names, last)}) > 1:
            hint = f"rename one of them, or {hint}"
        both = "both" if len(names) == 1 else "all"
        super().__init__(f"{', '.join(names)} and {last} would {both} become {shown(destination)}", hint)


#: A finding of the search for jobs: a job, an unusable input, a skipped input, or a note. Skipped inputs are results of
#: earlier runs in folders or globs, including comparisons, and inputs with the name of another input's result, such as
#: `a_x4.jpg` in addition to `a.jpg`.
Planned = Job | FileError | FoundResult | Note


@dataclass(frozen=True)
class JobPlan:
    """All jobs of a command.

    Attributes:
        jobs: the jobs in order; no two of them write the same file, and none writes a file that is an input.
        problems: unusable inputs, and inputs whose results would have the same name; the others are processed.
        earlier_results: skipped inputs, see `Planned`.
        notes: notes for the user, for example about images that cannot be read here.
    """

    jobs: tuple[Job, ...]
    problems: tuple[FileError, ...]
    earlier_results: tuple[Location, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class JobStream:
    """Jobs in the order in which they are found, so millions of files need little memory and the first starts early.

    Attributes:
        first: the findings before any work; problems and notes come before the jobs.
        rest: the findings while jobs are processed, which are None as long as nothing is found yet; None if the first
            were all.
    """

    first: tuple[Planned, ...]
    rest: Iterator[Planned | None] | None = None

    def __iter__(self) -> Iterator[Planned | None]:
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
        """The same stream without unwanted jobs."""
        rest = None if self.rest is None else (one for one in self.rest if one is None or is_wanted(one))
        return JobStream(tuple(filter(is_wanted, self.first)), rest)


@dataclass(frozen=True)
class JobOptions:
    """Options for searching inputs and naming results.

    Attributes:
        recursive: search subfolders.
        suffix: appended to each name; None appends the size beside an input, and nothing in an output folder.
        size_suffix: the size in a name, such as "_x4" or "_1920x1080".
        output_format: format of the files; "same" keeps an input's suffix if its format can be written, or else is
            .png.
    """

    recursive: bool
    suffix: str | None
    size_suffix: str
    output_format: OutputFormat


def clear_leftovers(jobs: Iterable[Job]) -> int:
    """Remove leftovers of killed runs in the folders of the outputs; returns the number of files."""
    folders = {job.destination.parent for job in jobs if isinstance(job.destination, Path)}
    return sum(map(remove_abandoned, folders))


# This many inputs are searched before the first job starts; for up to this number, the total and all conflicts are
# known.
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
    """Find the output of every input; this reads folders and lists, and writes nothing.

    Without `output`, a result is written beside its input as NAME_x4.EXT, and the results of a folder under their own
    names in FOLDER_x4/ beside it. An output that is an existing folder, ends with a slash or has no file suffix is a
    folder: in it, folders keep their tree, globs their tree below the fixed part of the pattern, lists their tree below
    the list's folder, and files their names. Any other output is a file, for one image only, and `suffix` is not used.
    `omgsr_cli.files.inputs.search_inputs` describes what an input can be.

    Among the first 10,000 inputs, all inputs whose results would have the same name are problems; among later ones, the
    first is processed and the others are problems. If results are written into input folders, all inputs are found
    first.

    Args:
        inputs: files, folders, globs and .txt lists, or only "-" for standard input.
        output: value of -o, where "-" is standard output; None if it is not given.
        options: options for searching and naming.
        remembered: results of earlier runs without a record.
    Raises:
        UsageError: there are no inputs, one of the first is its own output, or arguments exclude each other.
    """
    if not inputs:
        raise UsageError("no input given", "give an image, a folder, a list.txt, - for standard input, or --list FILE")
    check_suffix(options.suffix)
    target = parse_output(output, options.output_format)
    if STREAM in inputs:
        return JobStream((_stream_job(inputs, target),))
    folder = target.path if target.kind == "folder" else None
    found = search_inputs(
        inputs, recursive=options.recursive, output_folder=folder, skips_results=True, remembered=remembered
    )
    planner = Planner(Naming(target, options.suffix, options.size_suffix, options.output_format))
    first = list(islice(found, None if _writes_among(inputs, target) else _FIRST_INPUTS))
    after = next(found, None)
    planned = planner.plan_together(first)
    if after is None:
        return JobStream((*planner.note(), *planned))
    return JobStream(planned, planner.plan_each(chain((after,), found)))


class NameList:
    """The files of `--list`: they restrict the jobs of other inputs, or are the inputs themselves.

    Each line names a file as on the command line: an address, or a path from the current folder. A name that does not
    exist there can also be the path of a file below an input folder. `listed_name` quotes names that are not plain
    text.

    Args:
        source: path of the list, or "-" for standard input.
    Raises:
        UsageError: the list cannot be read, or is empty.
    """

    def __init__(self, source: str) -> None:
        self._name = f"--list {shown(source)}"
        try:
            # `read_names` opens a file twice, which a pipe does not allow.
            path = Path(source)
            content = sys.stdin.buffer.read() if source == STREAM else path if path.is_file() else path.read_bytes()
            names = read_names(content)
        except (OSError, ValueError) as error:
            raise UsageError(f"{self._name}: {read_reason(error)}", "give a text file, or - for stdin") from error
        if names is None:
            raise UsageError(f"{self._name}: {NOT_A_LIST}", "write one path per line")
        self._lines = {number: _named_file(line) for number, line in names}
        if not self._lines:
            raise UsageError(f"{self._name}: {EMPTY_LIST}", "write one path per line")

    @property
    def inputs(self) -> list[str]:
        """The names as inputs on the command line."""
        return [os.path.join(os.curdir, name) if name == STREAM else name for name in self._lines.values()]

    def select(self, jobs: JobStream) -> JobStream:
        """The jobs whose inputs are listed; each other name becomes an error, which follows jobs that are found later.

        Raises:
            UsageError: no name is among the inputs, and all inputs are known.
        """
        key, wanted = EntryKeys(), dict[str, list[int]]()
        for number, name in self._lines.items():
            exists = is_url(name) or os.path.lexists(name)
            wanted.setdefault(_job_key(key, name) if exists else _below_key(name), []).append(number)
        missing = set(self._lines)

        def is_listed(one: Planned) -> bool:
            inputs: list[tuple[str, Location | None]]
            if isinstance(one, ClashError):
                inputs = [(each.below.as_posix(), each.path) for each in one.inputs]
            elif isinstance(one, FileError | Note):
                return True
            else:
                inputs = [(one.below, one.source) if isinstance(one, Job) else ("", one.path)]
            keys = {_below_key(below) for below, _ in inputs}
            keys |= {_job_key(key, text) for _, source in inputs for text in _texts_of(source)}
            found = [number for each in keys for number in wanted.get(each, ())]
            missing.difference_update(found)
            return bool(found)

        def unmatched() -> Iterator[FileError]:
            for number in sorted(missing):
                name = self._lines[number]
                yield FileError(f"{self._name}, line {number}: {shown(name)} is not among the inputs", _LIST_HINT)

        selected = jobs.select(is_listed)
        if jobs.rest is not None:
            # A generator, because the names that are missing are known at the end.
            return JobStream(selected.first, chain(selected.rest or (), unmatched()))
        if len(missing) == len(self._lines):
            raise UsageError(f"{self._name}: none of its {len(self._lines)} names is among the inputs", _LIST_HINT)
        return JobStream((*unmatched(), *selected.first))


_LIST_HINT = "names are paths from the current folder, or from an input folder"


def listed_name(source: Location) -> str:
    """The line of a list that names a file: its path, or a Python literal of a path that a line cannot contain."""
    text = str(source)
    is_plain = text.isprintable() and text == text.strip(" \t") and not text.startswith(("#", "'", '"'))
    return text if is_plain else repr(text)


def _named_file(line: str) -> str:
    """The name in a line, see `listed_name`."""
    if line[0] in "'\"" and not os.path.lexists(line):
        with suppress(ValueError, SyntaxError):
            if isinstance(name := ast.literal_eval(line), str) and name:
                return name
    return line


def _job_key(key: EntryKeys, name: str) -> str:
    return parse_address(name).url if is_url(name) else f"file {key(Path(name))}"


def _below_key(below: str) -> str:
    return f"below {Path(below).as_posix()}"


def _texts_of(source: Location | None) -> tuple[str, ...]:
    # A page shows the addresses of web servers without their secrets.
    return (source.url, str(source)) if isinstance(source, Address) else (str(source),)


class Planner:
    """Names results, and finds those that would overwrite an input or each other.

    It stores 8 bytes for the name of each result.
    """

    def __init__(self, naming: Naming) -> None:
        self._naming = naming
        self._hint = "use another name for -o" if naming.output.kind == "file" else "use --suffix _x4, or -o FOLDER"
        self._key = EntryKeys()
        self._results = set[int]()
        self._earlier, self._first_earlier = 0, ""

    def plan_together(self, found: Sequence[Found]) -> tuple[Planned, ...]:
        """Plan inputs, comparing each with all others.

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
            *(ClashError([one.found for one in each], (), each[0].place) for each in clashing.values()),
            *(one.job for one in named if counts[one.place_key] == 1),
        )

    def plan_each(self, found: Iterable[Found]) -> Iterator[Planned]:
        """Plan inputs one by one, comparing each with the previous ones."""
        for one in found:
            yield self._plan(self._named(one)) if isinstance(one, FoundInput) else one
        yield from self.note()

    def plan_again(self, found: FoundInput, earlier: Collection[int] = ()) -> tuple[Planned, Collection[int]]:
        """Plan an input that may have been planned before, comparing it with the others.

        Args:
            found: the input.
            earlier: the keys of its earlier results, as returned here.
        Returns:
            What is planned, and the keys of its results.
        """
        self._results.difference_update(earlier)
        named = self._named(found)
        planned = self._plan(named)
        return planned, named.result_keys if isinstance(planned, Job) else ()

    def forget(self, results: Collection[int]) -> None:
        """Let other inputs have results with these keys."""
        self._results.difference_update(results)

    def _plan(self, named: _Named) -> Planned:
        if named.is_same_file:
            return FileError(named.own_source_message, self._hint)
        if named.source_key in self._results:
            return self._skip(named)
        if named.place_key in self._results:
            return ClashError([named.found], ["a previous input"], named.place)
        self._results.update(named.result_keys)
        return named.job

    def note(self) -> Iterator[Note]:
        """A note about inputs that are skipped because of their names, if there are any."""
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
    """An input and the path of its result; keys identify files independent of their spelling."""

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
        """The keys of the result and of its comparison."""
        return self.place_key, self.comparison_key

    @property
    def is_same_file(self) -> bool:
        """Whether the result would replace its own source."""
        if isinstance(self.found.path, Path) and isinstance(self.place, Path):
            try:
                return os.path.samefile(self.found.path, self.place)
            except OSError:
                # The destination does not exist yet, or the source has disappeared, which is reported when it is read.
                pass
        return self.source_key == self.place_key

    @property
    def own_source_message(self) -> str:
        """Why such a job is refused."""
        source = self.found.path
        also = "" if source == self.place else f" is the same file as {shown(self.place)} and"
        return f"{shown(source)}{also} would be overwritten by its own result"


def _writes_among(inputs: Sequence[str], target: Output) -> bool:
    """Whether results can be written into folders that are searched for inputs."""
    folders = [parse_address(text) if is_url(text) else Path(text) for text in inputs]
    if target.kind == "beside":
        return len(inputs) > 1 or not _names_folder(folders[0])
    return any(_names_folder(folder) and _is_below(folder, target.path) for folder in folders)


def _names_folder(place: Location) -> bool:
    if isinstance(place, Path):
        return os.path.isdir(place)
    # Patterns and image names are not folders; checking this needs no request.
    return not glob.has_magic(place.place) and place.suffix.lower() not in FORMAT_OF_SUFFIX


def _is_below(place: Location, folder: Location) -> bool:
    if isinstance(place, Address):
        return isinstance(folder, Address) and place.is_relative_to(folder)
    return isinstance(folder, Path) and Path(os.path.realpath(place)).is_relative_to(os.path.realpath(folder))


def _stream_job(inputs: Sequence[str], target: Output) -> Job:
    if any(text != STREAM for text in inputs):
        raise UsageError("- (standard input) must be the only input", "run the command twice, or give files only")
    if target.kind == "folder":
        raise UsageError(
            f"-o {shown(target.path)} is a folder, but standard input has no name", "add a name, such as result.png"
        )
    return Job(None, target.path if target.kind == "file" else None)


def _check_single(found: Sequence[FoundInput], problems: Sequence[FileError], target: Output) -> None:
    name = f"-o {shown(target.path)}" if target.kind == "file" else "-o - (standard output)"
    hint = f"for a folder of that name use -o {shown(target.path)}/" if target.kind == "file" else "use -o FOLDER"
    folder = next((one.folder for one in found if one.folder is not None), None)
    if folder is not None:
        raise UsageError(f"{name} is for one image, but {shown(folder)} is a folder", hint)
    count = len(found) + len(problems)
    if count > 1:
        raise UsageError(f"{name} is for one image, but there are {count} inputs", hint)
