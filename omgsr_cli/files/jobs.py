"""Which file becomes which: planned and checked before a model is loaded."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from omgsr_cli.errors import FileError, UsageError
from omgsr_cli.files.addresses import Address, Location, is_url, parse_address, shown
from omgsr_cli.files.atomic import remove_abandoned
from omgsr_cli.files.clashes import Clashes
from omgsr_cli.files.folders import FORMAT_OF_SUFFIX
from omgsr_cli.files.found import Found, FoundInput, FoundResult, Note, SkippedResults
from omgsr_cli.files.inputs import search_inputs
from omgsr_cli.files.naming import STREAM, Naming, Output, check_suffix, parse_output
from omgsr_cli.files.remembered import Remembered

if TYPE_CHECKING:
    from omgsr_cli.options import OutputFormat


@dataclass(frozen=True)
class Job:
    """One picture to restore.

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


@dataclass(frozen=True)
class JobPlan:
    """Everything that one command does.

    Attributes:
        jobs: in the order to do them; no two of them write the same file, none writes what it or another reads.
        problems: inputs that cannot be used, or whose results would have one name; the others are done.
        earlier_results: results of earlier runs, comparisons included, that were found in a folder or by a glob; and
            inputs left out because another job's result has their name, as `a_x4.jpg` named beside `a.jpg`.
        notes: what else a person should be told: pictures in folders that cannot be read here.
        is_last: whether no other part of the plan comes after this one.
    """

    jobs: tuple[Job, ...]
    problems: tuple[FileError, ...]
    earlier_results: tuple[Location, ...] = ()
    notes: tuple[str, ...] = ()
    is_last: bool = True


@dataclass(frozen=True)
class JobOptions:
    """How inputs are searched and results called.

    Attributes:
        recursive: whether sub-folders are searched.
        suffix: put behind each name; None means the scale beside an input and nothing in a folder of results.
        scale_label: "4" or "2.5", shown as _x4; or anything else, as "1920x1080", shown as _1920x1080.
        output_format: of the files; "same" keeps an input's suffix where it can be written, else takes .png.
    """

    recursive: bool
    suffix: str | None
    scale_label: str
    output_format: OutputFormat


def clear_leftovers(jobs: Iterable[Job]) -> int:
    """Remove what runs that were killed left where jobs write; returns how many files."""
    folders = {job.destination.parent for job in jobs if isinstance(job.destination, Path)}
    return sum(map(remove_abandoned, folders))


# So many pictures are known before the first is worked at: a plan of no more has one part.
_PART = 10_000


def plan_jobs(
    inputs: Sequence[str], output: str | None, options: JobOptions, remembered: Remembered | None = None
) -> JobPlan:
    """Decide which file becomes which; reads folders and lists, writes nothing.

    Without `output` a result lies beside its input as NAME_x4.EXT, or for a folder's pictures under their own names
    in FOLDER_x4/ beside it. An output that exists as a folder, ends with a slash or has no file's suffix is a folder:
    folders keep their tree directly below it, globs theirs below the pattern's fixed part, lists theirs below the
    list's folder, and files their names. Any other is a file, for one picture only, and `suffix` is not used.
    What counts as an input is told at `omgsr_cli.files.inputs.search_inputs`.

    Args:
        inputs: files, folders, globs and .txt lists as typed, or only "-" for standard input.
        output: of -o, "-" being standard output; None where it is not given.
        options: of searching and naming.
        remembered: knows the results of earlier runs that hold no record.
    Raises:
        UsageError: there are no inputs, an input is its own output, or arguments do not go together.
    """
    parts = list(plan_in_parts(inputs, output, options, remembered))
    return JobPlan(
        tuple(chain.from_iterable(part.jobs for part in parts)),
        tuple(chain.from_iterable(part.problems for part in parts)),
        tuple(chain.from_iterable(part.earlier_results for part in parts)),
        tuple(chain.from_iterable(part.notes for part in parts)),
    )


def plan_in_parts(
    inputs: Sequence[str], output: str | None, options: JobOptions, remembered: Remembered | None = None
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
    check_suffix(options.suffix)
    target = parse_output(output, options.output_format)
    if STREAM in inputs:
        return iter((JobPlan((_stream_job(inputs, target),), ()),))
    folder = target.path if target.kind == "folder" else None
    results = SkippedResults(remembered)
    found = search_inputs(inputs, recursive=options.recursive, output_folder=folder, results=results)
    naming = Naming(target, options.suffix, options.scale_label, options.output_format)
    parts = _plan_parts(found, naming, None if _writes_among(inputs, target) else _PART)
    # The first is made now, so that what is wrong is told before anything else happens.
    return chain((next(parts),), parts)


def _plan_parts(found: Iterator[Found], naming: Naming, size: int | None) -> Iterator[JobPlan]:
    """Plans of so many files each; None makes one of all."""
    hint = "give another name to -o" if naming.output.kind == "file" else "give --suffix _x4, or -o FOLDER"
    clashes = Clashes(hint)
    while True:
        part = list(islice(found, size))
        after = next(found, None)
        yield _plan_part(part, naming, clashes, is_last=after is None)
        if after is None:
            return
        found = chain((after,), found)


def _plan_part(part: Sequence[Found], naming: Naming, clashes: Clashes, *, is_last: bool) -> JobPlan:
    target = naming.output
    found = [one for one in part if isinstance(one, FoundInput)]
    problems = tuple(one for one in part if isinstance(one, FileError))
    notes = tuple(one.text for one in part if isinstance(one, Note))
    if target.kind in ("file", "stream"):
        _check_single(found, problems, target)
    if target.kind == "stream":
        return JobPlan(tuple(Job(one.path, None) for one in found), problems, notes=notes)
    results = tuple(one.path for one in part if isinstance(one, FoundResult))
    checked = clashes.check(((one, naming.destination(one)) for one in found), is_last=is_last)
    jobs = tuple(Job(one.path, place, one.below.as_posix(), one.searched) for one, place in checked.kept)
    if earlier := checked.earlier_results:
        notes += (
            f"left out {len(earlier)} inputs with the names of other inputs' results, the first is {shown(earlier[0])}",
        )
    return JobPlan(jobs, (*problems, *checked.problems), (*results, *earlier), notes, is_last)


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
