"""Which file becomes which: planned and checked before a model is loaded."""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from omgsr_cli.errors import FileError, UsageError
from omgsr_cli.files.addresses import Address, Location, is_url, parse_address, shown
from omgsr_cli.files.folders import FORMAT_OF_SUFFIX, EntryKeys, natural_key
from omgsr_cli.files.found import Found, FoundInput, Note
from omgsr_cli.files.inputs import search_inputs
from omgsr_cli.files.naming import STREAM, Naming, Output, check_suffix, parse_output, scale_label
from omgsr_cli.files.seen import SeenNames

if TYPE_CHECKING:
    from omgsr_cli.options import OutputFormat

__all__ = ["STREAM", "Job", "JobPlan", "comparison_path", "natural_key", "plan_in_parts", "plan_jobs", "scale_label"]


@dataclass(frozen=True)
class Job:
    """One picture to restore.

    Attributes:
        source: the file to read; None is standard input.
        destination: the file to write, its suffix being that of the format; None is standard output.
        below: the path that the source has below the folder that was named, with slashes; a file's own is its name.
    """

    source: Location | None
    destination: Location | None
    below: str = field(default="", compare=False)


@dataclass(frozen=True)
class JobPlan:
    """Everything that one command does.

    Attributes:
        jobs: in the order to do them; no two of them write the same file, none writes what it or another reads.
        problems: inputs that cannot be used, or whose results would have one name; the others are done.
        earlier_results: inputs left out because another job's result has their name, as `a_x4.jpg` beside
            `a.jpg` when `*.jpg` is done again; before/after pictures likewise.
        notes: what else a person should be told: pictures in folders that cannot be read here.
        is_last: whether no other part of the plan comes after this one.
    """

    jobs: tuple[Job, ...]
    problems: tuple[FileError, ...]
    earlier_results: tuple[Location, ...] = ()
    notes: tuple[str, ...] = ()
    is_last: bool = True


# So many pictures are known before the first is worked at: a plan of no more has one part.
_PART = 10_000


def plan_jobs(
    inputs: Sequence[str],
    output: str | None,
    *,
    recursive: bool,
    suffix: str | None,
    scale_label: str,
    output_format: OutputFormat,
) -> JobPlan:
    """Decide which file becomes which; reads folders and lists, writes nothing.

    Without `output` a result lies beside its input as NAME_x4.EXT, or for a folder's pictures under their own names
    in FOLDER_x4/ beside it. An output that exists as a folder, ends with a slash or has no file's suffix is a folder:
    folders keep their tree directly below it, globs theirs below the pattern's fixed part, lists theirs below the
    list's folder, and files their names. Any other is a file, for one picture only, and `suffix` is not used.
    What counts as an input is told at `omgsr_cli.files.inputs.find_inputs`.

    Args:
        inputs: files, folders, globs and .txt lists as typed, or only "-" for standard input.
        output: of -o, "-" being standard output; None where it is not given.
        recursive: whether sub-folders are searched.
        suffix: put behind each name; None means the scale beside an input and nothing in a folder of results.
        scale_label: "4" or "2.5", shown as _x4; or anything else, as "1920x1080", shown as _1920x1080.
        output_format: of the files; "same" keeps an input's suffix where it can be written, else takes .png.
    Raises:
        UsageError: there are no inputs, an input is its own output, or arguments do not go together.
    """
    parts = list(
        plan_in_parts(
            inputs, output, recursive=recursive, suffix=suffix, scale_label=scale_label, output_format=output_format
        )
    )
    return JobPlan(
        tuple(chain.from_iterable(part.jobs for part in parts)),
        tuple(chain.from_iterable(part.problems for part in parts)),
        tuple(chain.from_iterable(part.earlier_results for part in parts)),
        tuple(chain.from_iterable(part.notes for part in parts)),
    )


def plan_in_parts(
    inputs: Sequence[str],
    output: str | None,
    *,
    recursive: bool,
    suffix: str | None,
    scale_label: str,
    output_format: OutputFormat,
) -> Iterator[JobPlan]:
    """As `plan_jobs`, part by part while folders are read, so that millions of files take little memory.

    What must be known of all files together (names that clash, results among the inputs) is known within a part and
    from those before: of two files in different parts whose results would have one name, the first is done. Where
    results are written among the inputs, there is one part only.

    Yields:
        One plan at least.
    Raises:
        UsageError: as `plan_jobs`, before the first part is there.
    """
    if not inputs:
        raise UsageError("no input given", "name a picture, a folder, a list.txt, or - for standard input")
    check_suffix(suffix)
    target = parse_output(output, output_format)
    if STREAM in inputs:
        return iter((JobPlan((_stream_job(inputs, target),), ()),))
    folder = target.path if target.kind == "folder" else None
    found = search_inputs(inputs, recursive=recursive, output_folder=folder)
    naming = Naming(target, suffix, scale_label, output_format)
    parts = _Parts(found, naming, None if _writes_among(inputs, target) else _PART).plans()
    # The first is made now, so that what is wrong is told before anything else happens.
    return chain((next(parts),), parts)


def _writes_among(inputs: Sequence[str], target: Output) -> bool:
    """Whether results may lie in folders that are searched for inputs."""
    folders = [parse_address(text) if is_url(text) else Path(text) for text in inputs]
    if target.kind == "beside":
        return len(inputs) > 1 or not _names_folder(folders[0])
    return any(_names_folder(folder) and _is_below(folder, target.path) for folder in folders)


def _names_folder(place: Location) -> bool:
    if isinstance(place, Path):
        return os.path.isdir(place)
    # Without asking the storage: a pattern or a picture's name is none.
    return not glob.has_magic(place.place) and place.suffix.lower() not in FORMAT_OF_SUFFIX


def _is_below(place: Location, folder: Location) -> bool:
    if isinstance(place, Address):
        return isinstance(folder, Address) and place.is_relative_to(folder)
    return isinstance(folder, Path) and Path(os.path.realpath(place)).is_relative_to(os.path.realpath(folder))


class _Parts:
    """Makes the parts of a plan.

    Args:
        found: what was found, a stream.
        naming: of results.
        size: pictures of a part; None makes one part of all.
    """

    def __init__(self, found: Iterator[Found], naming: Naming, size: int | None) -> None:
        self._found, self._naming, self._size = found, naming, size
        self._key = EntryKeys()
        self._results = SeenNames()
        self._first = True

    def plans(self) -> Iterator[JobPlan]:
        while True:
            part = list(islice(self._found, self._size))
            after = next(self._found, None)
            yield self._plan(part, is_last=after is None)
            if after is None:
                return
            self._found = chain((after,), self._found)
            self._first = False

    def _plan(self, part: Sequence[Found], *, is_last: bool) -> JobPlan:
        target = self._naming.output
        found = [one for one in part if isinstance(one, FoundInput)]
        problems = [one for one in part if isinstance(one, FileError)]
        notes = tuple(one.text for one in part if isinstance(one, Note))
        if target.kind in ("file", "stream"):
            _check_single(found, problems, target)
        if target.kind == "stream":
            return JobPlan(tuple(Job(one.path, None) for one in found), tuple(problems))
        named = [self._named(one) for one in found]
        hint = "give another name to -o" if target.kind == "file" else "give --suffix _x4, or -o FOLDER"
        named, own = _without_own_source(named, hint, refuse=self._first)
        named, earlier = self._without_earlier_results(named)
        kept, clashes = self._without_clashes(named)
        if not is_last:
            self._results.add_all((key, shown(one.source)) for one in kept for key in one.result_keys)
        jobs = tuple(Job(one.source, one.place, one.below) for one in kept)
        return JobPlan(jobs, (*problems, *own, *clashes), earlier, notes, is_last)

    def _named(self, found: FoundInput) -> _Named:
        place = self._naming.destination(found)
        return _Named(found.path, place, found.below.as_posix(), self._key(found.path), self._key(place))

    def _without_earlier_results(self, named: Sequence[_Named]) -> tuple[list[_Named], tuple[Location, ...]]:
        results = {key for one in named for key in one.result_keys}
        earlier = {one.source_key for one in named if one.source_key in results}
        if not self._first:
            earlier |= {one.source_key for one in named if self._results.find(one.source_key) is not None}
        kept = [one for one in named if one.source_key not in earlier]
        return kept, tuple(one.source for one in named if one.source_key in earlier)

    def _without_clashes(self, named: Sequence[_Named]) -> tuple[list[_Named], list[FileError]]:
        counts = Counter(one.place_key for one in named)
        # One that came in an earlier part is being done: this one is not.
        before = {} if self._first else {key: name for key in counts if (name := self._results.find(key)) is not None}
        writers: dict[str, list[str]] = {}
        for one in named:
            if counts[one.place_key] > 1 or one.place_key in before:
                sources = writers.setdefault(one.place_key, [before[one.place_key]] if one.place_key in before else [])
                sources.append(shown(one.source))
        clashes = {one.place_key: one.place for one in named if one.place_key in writers}
        told = [_clash(writers[key], place) for key, place in clashes.items()]
        return [one for one in named if one.place_key not in writers], told


class _Named(NamedTuple):
    """An input and where its result goes; keys tell files apart, however they are named."""

    source: Location
    place: Location
    below: str
    source_key: str
    place_key: str

    @property
    def result_keys(self) -> tuple[str, str]:
        """Of the result, and of the comparison beside it."""
        return self.place_key, _comparison_name(self.place_key)


def comparison_path(destination: Location) -> Location:
    """Where the before/after picture of a result lies: beside it."""
    return destination.with_name(_comparison_name(destination.name))


def _comparison_name(name: str) -> str:
    return f"{os.path.splitext(name)[0]}_compare.png"


def _stream_job(inputs: Sequence[str], target: Output) -> Job:
    if any(text != STREAM for text in inputs):
        raise UsageError("- (standard input) goes with no other input", "run twice, or name files only")
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
        raise UsageError(f"{name} takes one picture, but {shown(folder)} is a folder", hint)
    count = len(found) + len(problems)
    if count > 1:
        raise UsageError(f"{name} takes one picture, but there are {count} inputs", hint)


def _without_own_source(named: Sequence[_Named], hint: str, *, refuse: bool) -> tuple[list[_Named], list[FileError]]:
    """Leave out, or refuse, what would be overwritten by its own result."""
    kept, own = list[_Named](), list[FileError]()
    for one in named:
        if not _is_same_file(one):
            kept.append(one)
            continue
        also = "" if one.source == one.place else f" is the same file as {shown(one.place)} and"
        message = f"{shown(one.source)}{also} would be overwritten by its own result"
        if refuse:
            raise UsageError(message, hint)
        own.append(FileError(message, hint))
    return kept, own


def _is_same_file(one: _Named) -> bool:
    if isinstance(one.source, Path) and isinstance(one.place, Path):
        try:
            return os.path.samefile(one.source, one.place)
        except OSError:
            # The destination is not there yet; or the source has gone meanwhile, which is told when it is read.
            pass
    return one.source_key == one.place_key


def _clash(sources: Sequence[str], destination: Location) -> FileError:
    *others, last = sources
    hint = "do them in separate runs, each with its own -o"
    if len({source.rpartition("/")[2] for source in sources}) > 1:
        hint = f"rename one of them, or {hint}"
    both = "both" if len(sources) == 2 else "all"
    return FileError(f"{', '.join(others)} and {last} would {both} become {shown(destination)}", hint)
