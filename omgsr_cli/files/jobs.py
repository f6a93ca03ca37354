"""Which file becomes which: planned and checked before a model is loaded."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from omgsr_cli.errors import FileError, UsageError
from omgsr_cli.files.folders import FORMAT_OF_SUFFIX, EntryKeys, natural_key
from omgsr_cli.files.inputs import FoundInput, find_inputs, is_url, shown

if TYPE_CHECKING:
    from omgsr_cli.options import OutputFormat, SizeOptions

__all__ = ["Job", "JobPlan", "comparison_path", "natural_key", "plan_jobs"]

STREAM = "-"

#: The usual suffix of each format that results are written in.
_SUFFIX_OF_FORMAT = {"png": ".png", "jpg": ".jpg", "webp": ".webp", "tiff": ".tif", "avif": ".avif"}

# Of one format, but they promise more than the one frame that is written.
_PLAIN_SUFFIX = {".apng": ".png", ".mpo": ".jpg"}

# A result that is to be called so is meant as a file, of whatever kind; ".05" or a long word ends a folder's name.
_LIKE_A_FILES = re.compile(r"\.[a-z][a-z0-9]{1,4}")


@dataclass(frozen=True)
class Job:
    """One picture to restore.

    Attributes:
        source: the file to read; None is standard input.
        destination: the file to write, its suffix being that of the format; None is standard output.
        below: the path that the source has below the folder that was named, with slashes; a file's own is its name.
    """

    source: Path | None
    destination: Path | None
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
    """

    jobs: tuple[Job, ...]
    problems: tuple[FileError, ...]
    earlier_results: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Output:
    """What -o means: a file, a folder, standard output, or a place beside each input."""

    kind: Literal["file", "folder", "stream", "beside"]
    path: Path = Path()


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
    if not inputs:
        raise UsageError("no input given", "name a picture, a folder, a list.txt, or - for standard input")
    _check_suffix(suffix)
    target = _parse_output(output, output_format)
    if STREAM in inputs:
        return JobPlan((_stream_job(inputs, target),), ())
    folder = target.path if target.kind == "folder" else None
    found, problems, notes = find_inputs(inputs, recursive=recursive, output_folder=folder)
    if target.kind in ("file", "stream"):
        _check_single(found, problems, target)
    naming = _Naming(target, suffix, scale_label, output_format)
    pairs = [(one.path, naming.destination(one)) for one in found]
    if target.kind == "stream":
        return JobPlan(tuple(Job(source, None) for source, _ in pairs), problems)
    _check_not_own_source(
        pairs, "give another name to -o" if target.kind == "file" else "give --suffix _x4, or -o FOLDER"
    )
    plan = _without_earlier_results(pairs, problems)
    below = {one.path: one.below.as_posix() for one in found}
    jobs = tuple(replace(job, below=below[job.source]) for job in plan.jobs if job.source is not None)
    return replace(plan, jobs=jobs, notes=notes)


def comparison_path(destination: Path) -> Path:
    """Where the before/after picture of a result lies: beside it."""
    return destination.with_name(f"{destination.stem}_compare.png")


def _check_suffix(suffix: str | None) -> None:
    if suffix and any(mark in suffix for mark in ("/", "\\", "\0")):
        raise UsageError(f"--suffix {shown(suffix)} is not a part of a file's name", "leave out its slashes")


def _parse_output(output: str | None, output_format: OutputFormat) -> _Output:
    if output is None:
        return _Output("beside")
    if output == STREAM:
        return _Output("stream")
    if not output:
        raise UsageError("-o is empty", "is a variable in the command not set?")
    if is_url(output):
        raise UsageError(f"-o {shown(output)}: results are not written to the network", "give a folder or file")
    path = Path(output)
    ends_as_folder = output.endswith(("/", os.sep)) or path.name in ("", "..")
    suffix = path.suffix.lower()
    if os.path.isdir(path) or ends_as_folder or not (suffix in FORMAT_OF_SUFFIX or _LIKE_A_FILES.fullmatch(suffix)):
        if os.path.lexists(path) and not os.path.isdir(path):
            raise UsageError(f"-o {shown(output)} is there and not a folder", "give a folder, or a picture's name")
        return _Output("folder", path)
    written = FORMAT_OF_SUFFIX.get(suffix)
    if written not in _SUFFIX_OF_FORMAT:
        names = ", ".join(_SUFFIX_OF_FORMAT.values())
        raise UsageError(
            f"-o {shown(output)}: {shown(suffix)} is not written",
            f"use one of {names}; a folder of that name ends with a slash",
        )
    if output_format not in ("same", written):
        right = path.with_suffix(_SUFFIX_OF_FORMAT[output_format]).name
        raise UsageError(f"-o {shown(output)} and --format {output_format} disagree", f"name it {shown(right)}")
    return _Output("file", path)


def _stream_job(inputs: Sequence[str], target: _Output) -> Job:
    if any(text != STREAM for text in inputs):
        raise UsageError("- (standard input) goes with no other input", "run twice, or name files only")
    if target.kind == "folder":
        raise UsageError(
            f"-o {shown(target.path)} is a folder, and standard input has no name", "add one, as result.png"
        )
    return Job(None, target.path if target.kind == "file" else None)


def _check_single(found: Sequence[FoundInput], problems: Sequence[FileError], target: _Output) -> None:
    name = f"-o {shown(target.path)}" if target.kind == "file" else "-o - (standard output)"
    hint = f"for a folder of that name use -o {shown(target.path)}/" if target.kind == "file" else "use -o FOLDER"
    folder = next((one.folder for one in found if one.folder is not None), None)
    if folder is not None:
        raise UsageError(f"{name} takes one picture, but {shown(folder)} is a folder", hint)
    count = len(found) + len(problems)
    if count > 1:
        raise UsageError(f"{name} takes one picture, but there are {count} inputs", hint)


@dataclass(frozen=True)
class _Naming:
    """Names results."""

    output: _Output
    suffix: str | None
    scale_label: str
    format: OutputFormat

    def destination(self, found: FoundInput) -> Path:
        if self.output.kind == "file":
            return self.output.path
        if self.output.kind == "folder":
            return self.output.path / found.below.parent / self._name(found.below, "")
        if found.folder is not None:
            return self._beside_folder(found.folder) / found.below.parent / self._name(found.below, "")
        return found.path.parent / self._name(found.path, self._scale_suffix)

    @property
    def _scale_suffix(self) -> str:
        is_factor = re.fullmatch(r"[0-9]+(\.[0-9]+)?", self.scale_label)
        return f"_x{self.scale_label}" if is_factor else f"_{self.scale_label}"

    def _beside_folder(self, folder: Path) -> Path:
        # "." and "x/.." have no name of their own to put the scale behind.
        named = folder if folder.name not in ("", "..") else Path(os.path.realpath(folder))
        if not named.name:
            raise UsageError(f"there is no place beside {shown(folder)} for the results", "say where with -o FOLDER")
        return named.parent / (named.name + self._scale_suffix)

    def _name(self, source: Path, default: str) -> str:
        middle = default if self.suffix is None else self.suffix
        # Only a picture's suffix is cut off: the last part of IMG.0001 and IMG.0002 tells them apart.
        stem = source.stem if source.suffix.lower() in FORMAT_OF_SUFFIX else source.name
        return stem + middle + self._extension(source)

    def _extension(self, source: Path) -> str:
        suffix = source.suffix.lower()
        source_format = FORMAT_OF_SUFFIX.get(suffix, "")
        wanted = source_format if self.format == "same" else self.format
        if wanted not in _SUFFIX_OF_FORMAT:
            return ".png"
        if wanted != source_format:
            return _SUFFIX_OF_FORMAT[wanted]
        return _PLAIN_SUFFIX.get(suffix, source.suffix)


def _check_not_own_source(pairs: Iterable[tuple[Path, Path]], hint: str) -> None:
    for source, destination in pairs:
        if _is_same_file(source, destination):
            also = "" if source == destination else f" is the same file as {shown(destination)} and"
            raise UsageError(f"{shown(source)}{also} would be overwritten by its own result", hint)


def _is_same_file(source: Path, destination: Path) -> bool:
    try:
        return os.path.samefile(source, destination)
    except OSError:
        # The destination is not there yet; or the source has gone meanwhile, which is told when it is read.
        return os.path.realpath(source) == os.path.realpath(destination)


def _without_earlier_results(pairs: Sequence[tuple[Path, Path]], problems: tuple[FileError, ...]) -> JobPlan:
    key = EntryKeys()
    results = {key(path) for _, destination in pairs for path in (destination, comparison_path(destination))}
    earlier = tuple(source for source, _ in pairs if key(source) in results)
    kept = [(source, destination) for source, destination in pairs if key(source) not in results]
    writers: dict[str, list[Path]] = {}
    for source, destination in kept:
        writers.setdefault(key(destination), []).append(source)
    clear = tuple(Job(*pair) for pair in kept if len(writers[key(pair[1])]) == 1)
    clashes = {key(place): _clash(writers[key(place)], place) for _, place in kept if len(writers[key(place)]) > 1}
    return JobPlan(clear, (*problems, *clashes.values()), earlier)


def _clash(sources: Sequence[Path], destination: Path) -> FileError:
    *others, last = (shown(source) for source in sources)
    hint = "do them in separate runs, each with its own -o"
    if len({source.name for source in sources}) > 1:
        hint = f"rename one of them, or {hint}"
    both = "both" if len(sources) == 2 else "all"
    return FileError(f"{', '.join(others)} and {last} would {both} become {shown(destination)}", hint)


def scale_label(sizes: SizeOptions, model_scale: float) -> str:
    """How a result's name tells its size: "4" for a factor, "1920x1080", or "2000px" for a side."""
    if sizes.size is not None:
        return f"{sizes.size[1]}x{sizes.size[0]}"
    side = sizes.long_side or sizes.short_side
    return f"{side}px" if side else f"{sizes.scale or model_scale:g}"
