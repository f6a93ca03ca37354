"""Find the images of inputs: files, folders, globs and lists, on this machine or on network storage."""

from __future__ import annotations

import codecs
import errno
import glob
import io
import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from omgsr_cli.errors import FileError, UsageError, read_reason
from omgsr_cli.files.addresses import (
    Address,
    Location,
    check_address,
    find_matches,
    is_url,
    list_files,
    local_copy,
    look_at,
    name_hash,
    parse_address,
    shown,
)
from omgsr_cli.files.containers import read_record
from omgsr_cli.files.folders import (
    EntryKeys,
    FolderSearch,
    describe_unread,
    is_image_name,
    natural_key,
    unread_suffix,
)
from omgsr_cli.files.remembered import Remembered

NO_IMAGES = "no images in this folder"
NOT_A_LIST, EMPTY_LIST = "not a list of paths: it is not plain text", "the list contains no images"


@dataclass(frozen=True)
class FoundInput:
    """One input image.

    Attributes:
        path: path as the user gave it, or as found in a folder.
        below: path of the result below an `-o FOLDER`.
        folder: the input folder that contained it; None for a single file, a glob or a list.
        searched: found in a folder or by a glob, not given by name.
    """

    path: Location
    below: Path
    folder: Location | None = None
    searched: bool = False


@dataclass(frozen=True)
class FoundImage:
    """A file of this machine, and its path below the folder or list that it was found in."""

    path: Path
    below: Path


@dataclass(frozen=True)
class Note:
    """A note for the user, for example about images that cannot be read here or skipped subfolders."""

    text: str


@dataclass(frozen=True)
class FoundResult:
    """A result of an earlier run that was found in a folder or by a glob, and is not processed again."""

    path: Location


#: A finding of a search: an image, a result of an earlier run, an error, or a note.
Found = FoundInput | FoundResult | FileError | Note


def find_inputs(
    inputs: Sequence[str], *, recursive: bool
) -> tuple[tuple[FoundImage, ...], tuple[FileError, ...], tuple[str, ...]]:
    """Find all images of the inputs on this machine; see `search_inputs`.

    Returns:
        The images, each once; errors of the other inputs; and notes.
    Raises:
        UsageError: an input is empty or an address on the network.
    """
    for text in inputs:
        if is_url(text) and not os.path.lexists(text):
            raise UsageError(
                f"{shown(parse_address(text))}: images are not read from the network here", _url_hint(text)
            )
    found, problems, notes = list[FoundImage](), list[FileError](), list[str]()
    for one in search_inputs(inputs, recursive=recursive):
        if isinstance(one, FileError):
            problems.append(one)
        elif isinstance(one, Note):
            notes.append(one.text)
        elif isinstance(one, FoundInput) and isinstance(one.path, Path):
            found.append(FoundImage(one.path, one.below))
        elif isinstance(one, FoundInput):
            problems.append(FileError(f"{shown(one.path)}: images are not read from the network here", _DOWNLOAD))
    return tuple(found), tuple(problems), tuple(notes)


def search_inputs(
    inputs: Sequence[str],
    *,
    recursive: bool,
    output_folder: Location | None = None,
    skips_results: bool = False,
    remembered: Remembered | None = None,
) -> Iterator[Found]:
    """Find the images of the inputs, one by one as folders are read; only lists are opened.

    - A file with any name is an input. Of a folder, the files with an image suffix are, except hidden ones.
    - A glob (`*`, `?`, `[...]`, `**`) is a pattern only if no file has this name. It matches image files, which keep
      their tree below the fixed part of the pattern, and folders, which are treated like folders given by name; on
      network storage, it matches files only.
    - A `.txt` file is a list with one path or address per line, relative to the folder of the list. Files keep their
      tree below this folder. Blank lines and lines that begin with `#` are skipped; write `./#1.jpg` for such a name.

    Args:
        inputs: as typed, without "-": paths, and addresses as s3://bucket/folder.
        recursive: whether subfolders are searched too; linked ones are followed, each real folder once.
        output_folder: where results go; it is not searched if it is met below a folder or a glob.
        skips_results: skip results of earlier runs on this machine's disks with a note, unless they are named
            themselves.
        remembered: knows the results that hold no record; None where only records count.
    Yields:
        The images, each once, in the order of the inputs and in natural order within a folder or glob (very large
        folders in the order of their listing); errors of the other inputs; and notes.
    Raises:
        UsageError: an input is empty, or an address of an unsupported kind; raised before the first is yielded.
    """
    for text in inputs:
        if not text:
            raise UsageError("an input is empty", "check that variables in the command are set")
        if is_url(text) and not os.path.lexists(text):
            check_address(parse_address(text))
    return _Search(recursive, output_folder, skips_results, remembered).all_of(inputs)


_DOWNLOAD = "download it first"


def _url_hint(text: str) -> str:
    return "use the path without file://" if text.lower().startswith("file://") else _DOWNLOAD


@dataclass
class _Tally:
    """Counts places that are skipped, and keeps the first."""

    count: int = 0
    first: str = ""

    def add(self, place: Location) -> None:
        self.first = self.first or shown(place)
        self.count += 1


class _Search:
    """Finds images and problems, one argument after the other."""

    def __init__(
        self, recursive: bool, output_folder: Location | None, skips_results: bool, remembered: Remembered | None
    ) -> None:
        self._recursive, self._skips_results = recursive, skips_results
        self._remembered = remembered if remembered is not None and remembered.has("result") else None
        self._output = output_folder
        if isinstance(output_folder, Path):
            self._output = Path(os.path.realpath(output_folder))
        self._searched, self._unsearched = set[str](), list[Location | None]()
        self._key = EntryKeys()

    def all_of(self, inputs: Sequence[str]) -> Iterator[Found]:
        # The files of a single folder are all different.
        alone = len(inputs) == 1 and (is_url(inputs[0]) or os.path.isdir(inputs[0]))
        found_others, results, skipped, seen = False, dict[int, FoundResult](), _Tally(), set[int]()
        for found in (one for text in inputs for one in self._argument(text)):
            if isinstance(found, FoundInput | FoundResult) and not alone:
                key = name_hash(self._key(found.path))
                if isinstance(found, FoundResult):
                    # It is processed if another argument gives it by name.
                    results[key] = found
                    continue
                if key in seen:
                    continue
                seen.add(key)
            if isinstance(found, FoundResult):
                skipped.add(found.path)
            found_others = found_others or isinstance(found, FoundInput | FileError)
            yield found
        for key, result in results.items():
            if key not in seen:
                skipped.add(result.path)
                yield result
        yield from self._note_on_subfolders()
        if skipped.count and found_others:
            yield Note(skipped_results(skipped.count, skipped.first))
        elif skipped.count:
            yield FileError(f"nothing to do: {skipped_results(skipped.count, skipped.first)}", NAME_RESULT)

    def _argument(self, text: str) -> Iterator[Found]:
        path = Path(text)
        exists = os.path.lexists(path)
        if not exists and is_url(text):
            address = parse_address(text)
            is_list = address.suffix.lower() == ".txt"
            return self._list(address) if is_list else self._find(address, Path(address.name), shown(address))
        if not exists and glob.has_magic(text):
            return self._matches(path)
        if path.suffix.lower() == ".txt" and os.path.isfile(path):
            return self._list(path)
        return self._find(path, Path(path.name), shown(path))

    def _list(self, listing: Location) -> Iterator[Found]:
        """What a list names."""
        count = 0
        try:
            with local_copy(listing) as copy:
                if (names := read_names(copy.path)) is None:
                    yield problem(shown(listing), NOT_A_LIST)
                    return
                for number, line in names:
                    count += 1
                    yield from self._line(listing, line, f"{shown(listing)}, line {number}: ")
        except FileError as error:
            yield error
        except OSError as error:
            yield problem(shown(listing), read_reason(error))
        else:
            if not count:
                yield problem(shown(listing), EMPTY_LIST)

    def _line(self, listing: Location, line: str, where: str) -> Iterator[Found]:
        folder = listing.parent
        is_here = isinstance(folder, Path) and os.path.lexists(folder / line)
        place = parse_address(line) if is_url(line) and not is_here else folder / line
        name = where + shown(line if isinstance(place, Path) else place)
        if isinstance(place, Path):
            assert isinstance(folder, Path)
            if place.suffix.lower() == ".txt" and os.path.isfile(place):
                yield problem(name, "a list in a list is not read", "give it on the command line, too")
                return
            hint = "paths in a list are relative to the list's own folder"
            yield from self._find(place, path_below(place, folder), name, missing_hint=hint)
            return
        try:
            check_address(place)
        except UsageError as error:
            yield FileError(where + error.message, error.hint)
            return
        below = path_below(place, folder)
        if is_image_name(below):
            # Its existence is checked when it is read, because a list of millions would need as many requests.
            yield FoundInput(place, below)
        else:
            yield from self._find(place, below, name)

    def _find(
        self,
        place: Location,
        below: Path,
        name: str,
        *,
        folder: Location | None = None,
        missing_hint: str | None = None,
    ) -> Iterator[Found]:
        """Find the file at a place, or the images of a folder there.

        Args:
            place: that was named, or found in a folder or by a glob; at an address it may be a pattern.
            below: the path that a file keeps below an `-o FOLDER`.
            name: what to call it in messages.
            folder: that it was found in.
            missing_hint: what to do if nothing exists there.
        """
        if isinstance(place, Address) and glob.has_magic(place.place):
            yield from self._matches(place)
            return
        try:
            mode = _mode_of(place)
        except FileError as error:
            yield error
        except (OSError, ValueError) as error:
            missing = isinstance(error, FileNotFoundError)
            if missing and isinstance(place, Path) and os.path.islink(place):
                yield problem(name, "a link to a file that does not exist")
            else:
                yield problem(name, read_reason(error), missing_hint if missing else None)
        else:
            if stat.S_ISDIR(mode):
                yield from self._folder(place, name)
            elif stat.S_ISREG(mode):
                yield FoundInput(place, below, folder)
            else:
                yield problem(name, "a device or pipe, not a file", "use - as the only input to read a stream")

    def _searched_file(self, place: Location, below: Path, folder: Location | None = None) -> Iterator[Found]:
        """A file that was found in a folder or by a glob, not named itself."""
        if isinstance(place, Address):
            yield FoundInput(place, below, folder, searched=True)
            return
        for found in self._find(place, below, shown(place), folder=folder):
            if not isinstance(found, FoundInput):
                yield found
            elif self._skips_results and is_result(place, self._remembered):
                yield FoundResult(place)
            else:
                yield replace(found, searched=True)

    def _matches(self, pattern: Location) -> Iterator[Found]:
        """The images, and those of the folders, that a pattern matches."""
        root, problems, count = pattern, list[FileError](), 0
        while glob.has_magic(root.place if isinstance(root, Address) else str(root)):
            root = root.parent
        matches: list[tuple[bool, Location]] = []
        if isinstance(pattern, Address):
            try:
                matches = [(False, one) for one in find_matches(pattern)]
            except FileError as error:
                problems.append(error)
        else:
            assert isinstance(root, Path)
            parts = pattern.parts[len(root.parts) :]
            matches = [(os.path.isdir(path), path) for path in self._search(root, problems).expand(parts)]
        yield from problems
        # Files come first: with **/*, they match themselves, and not as images of a folder that matches too.
        for is_folder, place in sorted(matches, key=lambda match: (match[0], natural_key(_as_path(match[1])))):
            found: Iterator[Found] = iter(())
            if is_folder:
                found = self._folder(place)
            elif is_image_name(Path(place.name)):
                found = self._searched_file(place, path_below(place, root))
            for one in found:
                count += 1
                yield one
        if count == 0 and not problems:
            yield problem(shown(pattern), "no image matches")

    def _folder(self, folder: Location, name: str | None = None) -> Iterator[Found]:
        """A folder's images and errors; if it has a name, having no images is an error."""
        problems, unread, deeper, count = list[FileError](), Counter[str](), list[Location | None](), 0
        for place, below in self._files_of(folder, problems, deeper):
            while problems:
                count += 1
                yield problems.pop(0)
            if is_image_name(below):
                count += 1
                yield from self._searched_file(place, below, folder)
            elif suffix := unread_suffix(below):
                unread[suffix] += 1
        yield from problems
        unreadable = describe_unread(unread)
        if count:
            self._unsearched += deeper
            if unreadable is not None:
                hint = f": {unreadable[1]}" if unreadable[1] else ""
                yield Note(f"{shown(folder)}: images that cannot be read here are skipped, {unreadable[0]}{hint}")
        elif name is not None and not problems:
            if unreadable is not None:
                yield problem(name, f"{NO_IMAGES} that can be read, but {unreadable[0]}", unreadable[1])
            else:
                # Only more requests would show whether those at an address contain images.
                what = "its subfolders contain some" if isinstance(folder, Path) else "it has subfolders"
                yield problem(name, NO_IMAGES, f"{what}: use --recursive" if deeper else None)

    def _files_of(
        self, folder: Location, problems: list[FileError], deeper: list[Location | None]
    ) -> Iterator[tuple[Location, Path]]:
        """The files of a folder with their paths below it.

        Adds what cannot be read to `problems`, and subfolders that are skipped to `deeper`, None for further ones.
        """
        if isinstance(folder, Address):
            output = self._output if isinstance(self._output, Address) else None
            skipped = None if output is None or folder.is_relative_to(output) else output
            try:
                for address in list_files(folder, recursive=self._recursive, skipped=skipped, on_folder=deeper.append):
                    yield address, Path(address.relative_to(folder))
            except FileError as error:
                problems.append(error)
            return
        search = self._search(folder, problems)
        self._searched.add(os.path.realpath(folder))
        for files in search.walk(recursive=self._recursive):
            yield from ((path, path.relative_to(folder)) for path in files)
        deeper += search.left_out()

    def _search(self, root: Path, problems: list[FileError]) -> FolderSearch:
        """A search in a folder that adds unreadable folders to the problems."""
        output = self._output if isinstance(self._output, Path) else None
        return FolderSearch(root, output, lambda path, error: problems.append(problem(shown(path), read_reason(error))))

    def _note_on_subfolders(self) -> Iterator[Note]:
        """A note on the subfolders of all folders that were skipped without --recursive, if there are any."""
        left_out = _Tally()
        for folder in self._unsearched:
            if isinstance(folder, Address) or (folder and os.path.realpath(folder) not in self._searched):
                left_out.add(folder)
        # None stands for those that were not looked at.
        count = f"{'at least ' if None in self._unsearched else ''}{left_out.count} subfolder"
        if left_out.count == 1:
            yield Note(f"{count} is skipped, {left_out.first}: use --recursive to search it too")
        elif left_out.count:
            yield Note(f"{count}s are skipped, the first is {left_out.first}: use --recursive to search them too")


def is_result(path: Path, remembered: Remembered | None) -> bool:
    """Whether a regular file is a result of an earlier run; its header alone is read."""
    return read_record(path) is not None or (remembered is not None and remembered.result(path) is not None)


def _mode_of(place: Location) -> int:
    """The type of what exists at a place, as `stat` has it.

    Raises:
        OSError, ValueError: nothing does, or it cannot be read.
        FileError: a storage does not answer.
    """
    if isinstance(place, Path):
        return place.stat().st_mode
    if (entry := look_at(place)) is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
    return stat.S_IFDIR if entry.is_folder else stat.S_IFREG


def _as_path(place: Location) -> Path:
    return place if isinstance(place, Path) else Path(place.place)


def path_below(place: Location, base: Location) -> Path:
    """The path below an output folder: relative to `base`, or only the name if it is outside `base`."""
    if isinstance(place, Address) and isinstance(base, Address) and place.is_relative_to(base):
        return Path(place.relative_to(base))
    if isinstance(place, Address) or isinstance(base, Address):
        return Path(place.name)
    start = os.path.abspath(base)
    path = Path(os.path.abspath(place))
    return path.relative_to(start) if path.is_relative_to(start) else Path(path.name)


NAME_RESULT = "give the file by name to process it again"


def skipped_results(count: int, first: str) -> str:
    """A text about results of earlier runs among the inputs."""
    if count == 1:
        return f"skipped {first}, a result of an earlier run"
    return f"skipped {count} results of earlier runs, the first is {first}"


def problem(name: str, reason: str, hint: str | None = None) -> FileError:
    """The error of an input."""
    return FileError(f"{name}: {reason}", hint)


# Number of bytes that are read to decide whether a file is a list.
_LOOKED_AT = 1 << 16


def read_names(source: Path | bytes) -> Iterator[tuple[int, str]] | None:
    """The lines of a list that name a file, each with its number; blank lines and `#` comments are skipped.

    A list is text in UTF-8, or in UTF-16 with a byte order mark, as PowerShell writes it; for others, this is None.
    Lines are read on demand.

    Args:
        source: a path, or the content of a list.
    Raises:
        OSError: the file cannot be opened.
    """
    with _opened(source) as file:
        start = file.read(_LOOKED_AT)
    is_utf_16 = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    # File names may be invalid UTF-8.
    encoding, errors = ("utf-16", "strict") if is_utf_16 else ("utf-8-sig", "surrogateescape")
    try:
        text = codecs.getincrementaldecoder(encoding)(errors).decode(start, len(start) < _LOOKED_AT)
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else _names(source, encoding)


def _names(source: Path | bytes, encoding: str) -> Iterator[tuple[int, str]]:
    errors = "replace" if encoding == "utf-16" else "surrogateescape"
    with io.TextIOWrapper(_opened(source), encoding, errors, newline="\n") as file:
        for number, line in enumerate(file, 1):
            name = line.strip(" \t\r\n")
            if name and not name.startswith("#"):
                yield number, name


def _opened(source: Path | bytes) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb")
