"""Which files are meant by what was typed: files, folders, globs and lists, here or on a storage of the network."""

from __future__ import annotations

import codecs
import glob
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from omgsr_cli.errors import FileError, UsageError, read_reason
from omgsr_cli.files.addresses import Address, Location, is_url, name_hash, parse_address, shown
from omgsr_cli.files.folders import (
    EntryKeys,
    FolderSearch,
    describe_unread,
    is_image_name,
    natural_key,
    unread_suffix,
)
from omgsr_cli.files.records import read_record
from omgsr_cli.files.remembered import Remembered
from omgsr_cli.files.storage import check_address, find_matches, list_files, local_copy, look_at

NO_IMAGES = "no images in this folder"


@dataclass(frozen=True)
class FoundInput:
    """One image file that was asked for.

    Attributes:
        path: as it was named, or found in a folder.
        below: the path that it keeps below an `-o FOLDER`.
        folder: the input folder that it was found in; None for a file named alone, by a glob or in a list.
        searched: found in a folder or by a glob, not named itself.
    """

    path: Location
    below: Path
    folder: Location | None = None
    searched: bool = False


@dataclass(frozen=True)
class FoundImage:
    """As `FoundInput`, where only files of this machine will do."""

    path: Path
    below: Path
    folder: Path | None = None


@dataclass(frozen=True)
class Note:
    """A note for the user on what was found, such as images that cannot be read here or subfolders that are skipped."""

    text: str


@dataclass(frozen=True)
class FoundResult:
    """A result of an earlier run that was found in a folder or by a glob, and is not processed again."""

    path: Location


#: What is found, one after the other: an image, a result of an earlier run, what is wrong with something, or a note.
Found = FoundInput | FoundResult | FileError | Note


def find_inputs(
    inputs: Sequence[str], *, recursive: bool, output_folder: Path | None = None
) -> tuple[tuple[FoundImage, ...], tuple[FileError, ...], tuple[str, ...]]:
    """Find all images that are meant, on this machine only; see `search_inputs`.

    Returns:
        The images, each once; errors for the others; and notes.
    Raises:
        UsageError: an input is empty or an address on the network.
    """
    for text in inputs:
        if is_url(text) and not os.path.lexists(text):
            raise UsageError(
                f"{shown(parse_address(text))}: images are not read from the network here", _url_hint(text)
            )
    found, problems, notes = list[FoundImage](), list[FileError](), list[str]()
    for one in search_inputs(inputs, recursive=recursive, output_folder=output_folder):
        if isinstance(one, FileError):
            problems.append(one)
        elif isinstance(one, Note):
            notes.append(one.text)
        elif isinstance(one, FoundInput) and isinstance(one.path, Path) and not isinstance(one.folder, Address):
            found.append(FoundImage(one.path, one.below, one.folder))
        elif isinstance(one, FoundInput):
            problems.append(FileError(f"{shown(one.path)}: images are not read from the network here", _DOWNLOAD))
    return tuple(found), tuple(problems), tuple(notes)


def search_inputs(
    inputs: Sequence[str],
    *,
    recursive: bool,
    output_folder: Location | None = None,
    results: SkippedResults | None = None,
) -> Iterator[Found]:
    """Find the images that are meant, one by one as folders are read; nothing is opened but lists.

    - A file is taken whatever its name; a folder gives the files with an image's suffix, not the hidden ones.
    - A glob (`*`, `?`, `[...]`, `**`) is a pattern only if no file has that name. It gives image files,
      which keep their tree below the pattern's fixed part, and folders, which are as those named one by one; on a
      storage of the network only files.
    - A `.txt` file is a list of one path or address a line, relative to the list's own folder: of files, which keep
      their tree below it, and of folders. Blank lines and those that begin with `#` are skipped: `./#1.jpg` is such
      a name.

    Args:
        inputs: as typed, without "-": paths, and addresses as s3://bucket/folder.
        recursive: whether subfolders are searched too; linked ones are followed, each real folder once.
        output_folder: where results go; it is not searched if it is met below a folder or a glob.
        results: takes the results of earlier runs on this machine's disks, of which a note is given, unless they are
            named themselves; None searches for these too.
    Yields:
        The images, each once, in the order named and in natural order within a folder or glob (a very large folder in
        the order in which it is listed); what is wrong with the others; and notes.
    Raises:
        UsageError: an input is empty, or an address that nothing here can reach; before the first is yielded.
    """
    for text in inputs:
        if not text:
            raise UsageError("an input is empty", "is a variable in the command not set?")
        if is_url(text) and not os.path.lexists(text):
            check_address(parse_address(text))
    return _Search(recursive, output_folder, results).all_of(inputs)


_DOWNLOAD = "download it first"


def _url_hint(text: str) -> str:
    return "give the path without file://" if text.lower().startswith("file://") else _DOWNLOAD


class _Search:
    """Finds images and problems, one argument after the other."""

    def __init__(self, recursive: bool, output_folder: Location | None, results: SkippedResults | None) -> None:
        self._results = results
        self._local = LocalSearch(recursive, output_folder if isinstance(output_folder, Path) else None, results)
        self._remote = RemoteSearch(recursive, output_folder if isinstance(output_folder, Address) else None)
        self._key = EntryKeys()
        self._seen = set[int]()

    def all_of(self, inputs: Sequence[str]) -> Iterator[Found]:
        # The files of a single folder are different ones as they come.
        alone = len(inputs) == 1 and (is_url(inputs[0]) or os.path.isdir(inputs[0]))
        found_others, results = False, dict[int, FoundResult]()
        for found in (one for text in inputs for one in self._argument(text)):
            if isinstance(found, FoundResult) and not alone:
                # Another argument may name it, and is then processed.
                results[name_hash(self._key(found.path))] = found
                continue
            if isinstance(found, FoundInput) and not alone:
                key = name_hash(self._key(found.path))
                if key in self._seen:
                    continue
                self._seen.add(key)
            if isinstance(found, FoundResult) and self._results is not None:
                self._results.add(found.path)
            found_others = found_others or isinstance(found, FoundInput | FileError)
            yield found
        for key, result in results.items():
            if key not in self._seen and self._results is not None:
                self._results.add(result.path)
                yield result
        yield from self._local.left_out().note()
        if self._results is not None:
            yield from self._results.report(found_others=found_others)

    def _argument(self, text: str) -> Iterator[Found]:
        path = Path(text)
        exists = os.path.lexists(path)
        if not exists and is_url(text):
            address = parse_address(text)
            if address.suffix.lower() == ".txt":
                return self._list_at(address)
            return self._remote.find(address, Path(address.name), shown(address))
        if not exists and glob.has_magic(text):
            return self._local.matches(path)
        if path.suffix.lower() == ".txt" and os.path.isfile(path):
            return self._list(path, path)
        return self._local.find(path, Path(path.name), shown(path))

    def _list(self, listing: Location, copy: Path) -> Iterator[Found]:
        """What a list names, of which there is a copy on this machine."""
        try:
            lines = read_lines(copy)
        except OSError as error:
            yield problem(shown(listing), read_reason(error))
            return
        if lines is None:
            yield problem(shown(listing), "not a list of paths, which is plain text")
            return
        count = 0
        for number, line in enumerate(lines, 1):
            if line and not line.startswith("#"):
                count += 1
                yield from self._line(listing, line, f"{shown(listing)}, line {number}: ")
        if not count:
            yield problem(shown(listing), "the list names no images")

    def _list_at(self, listing: Address) -> Iterator[Found]:
        try:
            with local_copy(listing) as copy:
                yield from self._list(listing, copy.path)
        except FileError as error:
            yield error

    def _line(self, listing: Location, line: str, where: str) -> Iterator[Found]:
        if isinstance(listing, Address) or (is_url(line) and not os.path.lexists(listing.parent / line)):
            yield from self._listed_address(listing, line, where)
            return
        path, name = listing.parent / line, where + shown(line)
        if path.suffix.lower() == ".txt" and os.path.isfile(path):
            yield problem(name, "a list in a list is not followed", "name it on the command line as well")
        else:
            hint = "paths in a list are relative to the list's own folder"
            yield from self._local.find(path, path_below(path, listing.parent), name, missing_hint=hint)

    def _listed_address(self, listing: Location, line: str, where: str) -> Iterator[Found]:
        if is_url(line):
            address = parse_address(line)
        else:
            assert isinstance(listing, Address)
            address = listing.parent / line
        below = Path(address.name)
        if isinstance(listing, Address) and address.is_relative_to(listing.parent):
            below = Path(address.relative_to(listing.parent))
        try:
            check_address(address)
        except UsageError as error:
            yield FileError(where + error.message, error.hint)
            return
        if is_image_name(below):
            # Whether it exists is known when it is read: a list of millions needs no request for each.
            yield FoundInput(address, below)
        else:
            yield from self._remote.find(address, below, where + shown(address))


class LocalSearch:
    """Finds images at paths.

    Args:
        recursive: whether subfolders of a folder are searched too.
        output_folder: where results go; it is not searched if it is met below a folder or a glob.
        results: takes the results of earlier runs that are met below a folder or a glob; None searches for these too.
    """

    def __init__(self, recursive: bool, output_folder: Path | None, results: SkippedResults | None = None) -> None:
        self._recursive, self._results = recursive, results
        self._output = None if output_folder is None else Path(os.path.realpath(output_folder))
        self._searched, self._unsearched = set[str](), list[Path | None]()

    def find(
        self,
        path: Path,
        below: Path,
        name: str,
        *,
        folder: Path | None = None,
        searched: bool = False,
        missing_hint: str | None = None,
    ) -> Iterator[Found]:
        """Find the file at a path, or the images of a folder there.

        Args:
            path: that was named.
            below: the path that a file keeps below an `-o FOLDER`.
            name: what to call it in messages.
            folder: that it was found in.
            searched: found in a folder or by a glob, not named itself.
            missing_hint: what to do if nothing exists there.
        """
        try:
            mode = path.stat().st_mode
        except (OSError, ValueError) as error:
            missing = isinstance(error, FileNotFoundError)
            if missing and os.path.islink(path):
                yield problem(name, "a link to a file that is not there")
            else:
                yield problem(name, read_reason(error), missing_hint if missing else None)
            return
        if stat.S_ISDIR(mode):
            yield from self._folder(path, name)
        elif stat.S_ISREG(mode):
            is_result = searched and self._results is not None and self._results.holds(path)
            yield FoundResult(path) if is_result else FoundInput(path, below, folder, searched)
        else:
            yield problem(name, "a device or pipe, not a file", "a stream is read with - as the only input")

    def matches(self, pattern: Path) -> Iterator[Found]:
        """The images, and those of the folders, that a pattern matches."""
        fixed = next(index for index, part in enumerate(pattern.parts) if glob.has_magic(part))
        root = Path(*pattern.parts[:fixed])
        problems = list[FileError]()
        search, count = self._search(root, problems), 0
        # Files come first: with **/* they match by themselves, and not as images of a folder that matches too.
        matches = [(os.path.isdir(path), path) for path in search.expand(pattern.parts[fixed:])]
        yield from problems
        for is_folder, path in sorted(matches, key=lambda match: (match[0], natural_key(match[1]))):
            if is_folder:
                for found in self._folder(path):
                    count += 1
                    yield found
            elif is_image_name(path):
                count += 1
                yield from self.find(path, path_below(path, root), shown(path), searched=True)
        if count == 0 and not problems:
            yield problem(shown(pattern), "no image matches")

    def left_out(self) -> LeftOut:
        """The subfolders with images of all folders so far that were not searched by themselves."""
        left_out = LeftOut()
        for folder in self._unsearched:
            if folder is None:
                left_out.stop()
            elif os.path.realpath(folder) not in self._searched:
                left_out.add(folder)
        return left_out

    def _folder(self, folder: Path, name: str | None = None) -> Iterator[Found]:
        """A folder's images, and what is wrong with it; if it has a name, also where it has none."""
        problems, unread, count = list[FileError](), Counter[str](), 0
        search = self._search(folder, problems)
        self._searched.add(os.path.realpath(folder))
        for path in (path for files in search.walk(recursive=self._recursive) for path in files):
            while problems:
                count += 1
                yield problems.pop(0)
            if is_image_name(path):
                count += 1
                yield from self.find(path, path.relative_to(folder), shown(path), folder=folder, searched=True)
            elif suffix := unread_suffix(path):
                unread[suffix] += 1
        yield from problems
        if count:
            yield from unread_note(folder, unread)
            self._unsearched += search.left_out()
        elif name is not None and not problems:
            yield self._without_images(search, name, unread)

    def _without_images(self, search: FolderSearch, name: str, unread: Counter[str]) -> FileError:
        unreadable = describe_unread(unread)
        if unreadable is not None:
            return problem(name, f"{NO_IMAGES} that can be read, but {unreadable[0]}", unreadable[1])
        has_deeper = any(search.left_out())
        return problem(name, NO_IMAGES, "its subfolders contain some: use --recursive" if has_deeper else None)

    def _search(self, root: Path, problems: list[FileError]) -> FolderSearch:
        """Searches below a folder; what cannot be read goes to the problems."""
        return FolderSearch(
            root, self._output, lambda path, error: problems.append(problem(shown(path), read_reason(error)))
        )


def path_below(path: Path, base: Path) -> Path:
    """The path that is kept below an output folder: from `base` on, or only the name of what is elsewhere."""
    place = Path(os.path.abspath(path))
    start = os.path.abspath(base)
    return place.relative_to(start) if place.is_relative_to(start) else Path(place.name)


@dataclass(frozen=True)
class RemoteSearch:
    """Finds images at addresses.

    Attributes:
        recursive: whether folders below a folder are searched too.
        output_folder: where results go; it is not searched if it is met below a folder.
    """

    recursive: bool
    output_folder: Address | None = None

    def find(self, address: Address, below: Path, name: str) -> Iterator[Found]:
        """Find the file at an address, the images of a folder, or all that a pattern matches.

        Args:
            address: that was named.
            below: the path that a file keeps below an `-o FOLDER`.
            name: what to call it in messages.
        """
        try:
            if glob.has_magic(address.place):
                yield from self._matches(address)
            elif (entry := look_at(address)) is None:
                yield problem(name, "no such file")
            elif entry.is_folder:
                yield from self._folder(address, name)
            else:
                yield FoundInput(address, below)
        except FileError as error:
            yield error

    def _folder(self, folder: Address, name: str) -> Iterator[Found]:
        unread, count = Counter[str](), 0
        asked_for = self.output_folder is not None and folder.is_relative_to(self.output_folder)
        skipped = None if asked_for else self.output_folder
        below = LeftOut()
        for address in list_files(folder, recursive=self.recursive, skipped=skipped, on_folder=below.add):
            path = Path(address.relative_to(folder))
            if is_image_name(path):
                count += 1
                yield FoundInput(address, path, folder, searched=True)
            elif suffix := unread_suffix(path):
                unread[suffix] += 1
        if count:
            yield from unread_note(folder, unread)
            # Only more requests would show whether these contain images.
            yield from below.note()
        elif (unreadable := describe_unread(unread)) is not None:
            yield problem(name, f"{NO_IMAGES} that can be read, but {unreadable[0]}", unreadable[1])
        else:
            hint = None if self.recursive else "subfolders are searched with --recursive"
            yield problem(name, NO_IMAGES, hint)

    def _matches(self, pattern: Address) -> Iterator[Found]:
        root = pattern
        while glob.has_magic(root.place):
            root = root.parent
        images = [one for one in find_matches(pattern) if is_image_name(Path(one.name))]
        for address in sorted(images, key=lambda one: natural_key(Path(one.place))):
            yield FoundInput(address, Path(address.relative_to(root)), searched=True)
        if not images:
            yield problem(shown(pattern), "no image matches")


class SkippedResults:
    """Counts the results of earlier runs that a search meets.

    Args:
        remembered: knows the results that hold no record; None where only records count.
    """

    def __init__(self, remembered: Remembered | None) -> None:
        self._remembered = remembered if remembered is not None and remembered.has("result") else None
        self._count, self._first = 0, ""

    def holds(self, path: Path) -> bool:
        """Whether a regular file is one; its header alone is read."""
        if read_record(path) is not None:
            return True
        return self._remembered is not None and self._remembered.result(path) is not None

    def add(self, path: Location) -> None:
        """Count one that is skipped."""
        self._first = self._first or shown(path)
        self._count += 1

    def report(self, *, found_others: bool) -> Iterable[Note | FileError]:
        """A note on them all, or an error if nothing else was found."""
        if self._count and found_others:
            yield Note(skipped_results(self._count, self._first))
        elif self._count:
            yield FileError(f"nothing to do: {skipped_results(self._count, self._first)}", NAME_RESULT)


NAME_RESULT = "name the file itself to process it again"


def skipped_results(count: int, first: str) -> str:
    """What a person should know of results of earlier runs among the inputs."""
    if count == 1:
        return f"skipped {first}, a result of an earlier run"
    return f"skipped {count} results of earlier runs, the first is {first}"


class LeftOut:
    """Counts the subfolders that are skipped without --recursive."""

    def __init__(self) -> None:
        self._count, self._first, self._is_all = 0, "", True

    def add(self, folder: Location) -> None:
        """Count one."""
        self._first = self._first or shown(folder)
        self._count += 1

    def stop(self) -> None:
        """Note that there may be more."""
        self._is_all = False

    def note(self) -> Iterable[Note]:
        """A note on all of them, if there are any."""
        count = f"{'' if self._is_all else 'at least '}{self._count} subfolder"
        if self._count == 1:
            yield Note(f"{count} is skipped, {self._first}: add --recursive to search it too")
        elif self._count:
            yield Note(f"{count}s are skipped, the first is {self._first}: add --recursive to search them too")


def problem(name: str, reason: str, hint: str | None = None) -> FileError:
    """What is wrong with something that was named."""
    return FileError(f"{name}: {reason}", hint)


def unread_note(folder: Location, unread: Counter[str]) -> Iterable[Note]:
    """A note on the images of a folder that cannot be read, from the number of files with each suffix."""
    unreadable = describe_unread(unread)
    if unreadable is not None:
        hint = f": {unreadable[1]}" if unreadable[1] else ""
        yield Note(f"{shown(folder)}: images that cannot be read here are skipped, {unreadable[0]}{hint}")


# Read from a file to decide whether it is a list.
_LOOKED_AT = 1 << 16


def read_lines(path: Path) -> Iterator[str] | None:
    """The lines of a text file in UTF-8 or, with its mark, UTF-16 as PowerShell writes it; None for other files.

    They are read as they are asked for.

    Raises:
        OSError: it cannot be opened.
    """
    with open(path, "rb") as file:
        start = file.read(_LOOKED_AT)
    is_utf_16 = start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    # Names of files need not be valid UTF-8.
    encoding, errors = ("utf-16", "strict") if is_utf_16 else ("utf-8-sig", "surrogateescape")
    try:
        text = codecs.getincrementaldecoder(encoding)(errors).decode(start, len(start) < _LOOKED_AT)
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else _lines(path, encoding)


def _lines(path: Path, encoding: str) -> Iterator[str]:
    errors = "replace" if encoding == "utf-16" else "surrogateescape"
    with open(path, encoding=encoding, errors=errors, newline="\n") as file:
        for line in file:
            yield line.strip(" \t\r\n")
