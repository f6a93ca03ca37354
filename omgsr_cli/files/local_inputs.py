"""Which files on this machine are meant: files, folders and globs."""

from __future__ import annotations

import glob
import os
import stat
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from omgsr_cli.errors import FileError, read_reason
from omgsr_cli.files.addresses import shown
from omgsr_cli.files.folders import FolderSearch, is_picture, natural_key, told_unread, unread_suffix
from omgsr_cli.files.found import (
    NO_PICTURES,
    Found,
    FoundInput,
    FoundResult,
    LeftOut,
    SkippedResults,
    problem,
    unread_note,
)


class LocalSearch:
    """Finds pictures at paths.

    Args:
        recursive: whether sub-folders of a folder are searched too.
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
        """What lies at a path: a file, or the pictures of a folder.

        Args:
            path: that was named.
            below: the path that a file keeps below an `-o FOLDER`.
            name: what to call it in messages.
            folder: that it was found in.
            searched: found in a folder or by a glob, not named itself.
            missing_hint: what to do where nothing is there.
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
        """The pictures, and those of the folders, that a pattern matches."""
        fixed = next(index for index, part in enumerate(pattern.parts) if glob.has_magic(part))
        root = Path(*pattern.parts[:fixed])
        problems = list[FileError]()
        search, count = self._search(root, problems), 0
        # Files come first: with **/* they match by themselves, and not as pictures of a folder that matches too.
        matches = [(os.path.isdir(path), path) for path in search.expand(pattern.parts[fixed:])]
        yield from problems
        for is_folder, path in sorted(matches, key=lambda match: (match[0], natural_key(match[1]))):
            if is_folder:
                for found in self._folder(path):
                    count += 1
                    yield found
            elif is_picture(path):
                count += 1
                yield from self.find(path, path_below(path, root), shown(path), searched=True)
        if count == 0 and not problems:
            yield problem(shown(pattern), "no picture matches")

    def left_out(self) -> LeftOut:
        """The sub-folders with pictures of all folders so far that were not searched by themselves."""
        left_out = LeftOut()
        for folder in self._unsearched:
            if folder is None:
                left_out.stop()
            elif os.path.realpath(folder) not in self._searched:
                left_out.add(folder)
        return left_out

    def _folder(self, folder: Path, name: str | None = None) -> Iterator[Found]:
        """A folder's pictures, and what is wrong with it; if it has a name, also where it has none."""
        problems, unread, count = list[FileError](), Counter[str](), 0
        search = self._search(folder, problems)
        self._searched.add(os.path.realpath(folder))
        for path in (path for files in search.walk(recursive=self._recursive) for path in files):
            while problems:
                count += 1
                yield problems.pop(0)
            if is_picture(path):
                count += 1
                yield from self.find(path, path.relative_to(folder), shown(path), folder=folder, searched=True)
            elif suffix := unread_suffix(path):
                unread[suffix] += 1
        yield from problems
        if count:
            yield from unread_note(folder, unread)
            self._unsearched += search.left_out()
        elif name is not None and not problems:
            yield self._without_pictures(search, name, unread)

    def _without_pictures(self, search: FolderSearch, name: str, unread: Counter[str]) -> FileError:
        told = told_unread(unread)
        if told is not None:
            return problem(name, f"{NO_PICTURES} that can be read, but {told[0]}", told[1])
        has_deeper = any(search.left_out())
        return problem(name, NO_PICTURES, "its sub-folders hold some: use --recursive" if has_deeper else None)

    def _search(self, root: Path, problems: list[FileError]) -> FolderSearch:
        """Searches below a folder; what cannot be read goes to the problems."""
        return FolderSearch(
            root, self._output, lambda path, error: problems.append(problem(shown(path), read_reason(error)))
        )


def path_below(path: Path, base: Path) -> Path:
    """The path that is kept below an output folder: from `base` on, or only the name of what lies elsewhere."""
    place = Path(os.path.abspath(path))
    start = os.path.abspath(base)
    return place.relative_to(start) if place.is_relative_to(start) else Path(place.name)
