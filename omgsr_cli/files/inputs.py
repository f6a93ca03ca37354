"""Which files are meant by what was typed: files, folders, globs and lists, here or on a storage of the network."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from omgsr_cli.errors import FileError, UsageError, read_reason
from omgsr_cli.files.addresses import Address, Location, is_url, parse_address, shown
from omgsr_cli.files.folders import EntryKeys, is_picture
from omgsr_cli.files.found import Found, FoundInput, FoundPicture, FoundResult, Note, SkippedResults, problem
from omgsr_cli.files.lists import read_lines
from omgsr_cli.files.local_inputs import LocalSearch, path_below
from omgsr_cli.files.remote_inputs import RemoteSearch
from omgsr_cli.files.seen import SeenNames
from omgsr_cli.files.storage import check_address, local_copy


def find_inputs(
    inputs: Sequence[str], *, recursive: bool, output_folder: Path | None = None
) -> tuple[tuple[FoundPicture, ...], tuple[FileError, ...], tuple[str, ...]]:
    """Find the pictures that are meant, all at once, on this machine only; as `search_inputs`.

    Returns:
        The pictures, each once; what is wrong with the others; and notes.
    Raises:
        UsageError: an input is empty or an address on the network.
    """
    for text in inputs:
        if is_url(text) and not os.path.lexists(text):
            raise UsageError(
                f"{shown(parse_address(text))}: pictures are not read from the network here", _url_hint(text)
            )
    found, problems, notes = list[FoundPicture](), list[FileError](), list[str]()
    for one in search_inputs(inputs, recursive=recursive, output_folder=output_folder):
        if isinstance(one, FileError):
            problems.append(one)
        elif isinstance(one, Note):
            notes.append(one.text)
        elif isinstance(one, FoundInput) and isinstance(one.path, Path) and not isinstance(one.folder, Address):
            found.append(FoundPicture(one.path, one.below, one.folder))
        elif isinstance(one, FoundInput):
            problems.append(FileError(f"{shown(one.path)}: pictures are not read from the network here", _DOWNLOAD))
    return tuple(found), tuple(problems), tuple(notes)


def search_inputs(
    inputs: Sequence[str],
    *,
    recursive: bool,
    output_folder: Location | None = None,
    results: SkippedResults | None = None,
) -> Iterator[Found]:
    """Find the pictures that are meant, one by one as folders are read; nothing is opened but lists.

    - A file is taken whatever its name; a folder gives the files with a picture's suffix, not the hidden ones.
    - A glob (`*`, `?`, `[...]`, `**`) is a pattern only where there is no file of that name. It gives picture files,
      which keep their tree below the pattern's fixed part, and folders, which are as those named one by one; on a
      storage of the network only files.
    - A `.txt` file is a list of one path or address a line, relative to the list's own folder: of files, which keep
      their tree below it, and of folders. Blank lines and those that begin with `#` are skipped: `./#1.jpg` is such
      a name.

    Args:
        inputs: as typed, without "-": paths, and addresses as s3://bucket/folder.
        recursive: whether sub-folders are searched too; linked ones are followed, each real folder once.
        output_folder: where results go; it is not searched if it is met below a folder or a glob.
        results: takes the results of earlier runs on this machine's disks, of which a note is given, unless they are
            named themselves; None searches for these too.
    Yields:
        The pictures, each once, in the order named and in natural order within a folder or glob (a very large folder in
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
    """Finds pictures and problems, one argument after the other."""

    def __init__(self, recursive: bool, output_folder: Location | None, results: SkippedResults | None) -> None:
        self._results = results
        self._local = LocalSearch(recursive, output_folder if isinstance(output_folder, Path) else None, results)
        self._remote = RemoteSearch(recursive, output_folder if isinstance(output_folder, Address) else None)
        self._key = EntryKeys()
        self._seen = SeenNames()

    def all_of(self, inputs: Sequence[str]) -> Iterator[Found]:
        # The files of a single folder are different ones as they come.
        alone = len(inputs) == 1 and (is_url(inputs[0]) or os.path.isdir(inputs[0]))
        found_others, results = False, dict[str, FoundResult]()
        for found in (one for text in inputs for one in self._argument(text)):
            if isinstance(found, FoundResult) and not alone:
                # Another argument may name it, and is then processed.
                results[self._key(found.path)] = found
                continue
            if isinstance(found, FoundInput) and not alone:
                key = self._key(found.path)
                if self._seen.find(key) is not None:
                    continue
                self._seen.add_all([(key, "")])
            if isinstance(found, FoundResult) and self._results is not None:
                self._results.add(found.path)
            found_others = found_others or isinstance(found, FoundInput | FileError)
            yield found
        for key, result in results.items():
            if self._seen.find(key) is None and self._results is not None:
                self._results.add(result.path)
                yield result
        yield from self._local.left_out().note()
        if self._results is not None:
            yield from self._results.tell(found_others=found_others)

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
            yield problem(shown(listing), "the list names no pictures")

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
        if is_picture(below):
            # Whether it is there is known when it is read: a list of millions is not asked for one by one.
            yield FoundInput(address, below)
        else:
            yield from self._remote.find(address, below, where + shown(address))
