"""Which files are meant by what was typed: files, folders, globs and lists."""

from __future__ import annotations

import codecs
import errno
import glob
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from omgsr_cli.errors import FileError, UsageError
from omgsr_cli.files.folders import EntryKeys, FolderSearch, is_picture, natural_key, told_unread

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")

_REASONS = {
    errno.ENOENT: "there is no such file",
    errno.ENOTDIR: "there is no such file",
    errno.EACCES: "not allowed to read it",
    errno.EPERM: "not allowed to read it",
    errno.ELOOP: "its links lead in a circle",
    errno.ENAMETOOLONG: "the name is too long for a file",
}


@dataclass(frozen=True)
class FoundInput:
    """One picture file that was asked for.

    Attributes:
        path: as it was named, or found in a folder.
        below: the path that it keeps below an `-o FOLDER`.
        folder: the input folder that it was found in; None for a file named alone, by a glob or in a list.
    """

    path: Path
    below: Path
    folder: Path | None = None


def find_inputs(
    inputs: Sequence[str], *, recursive: bool, output_folder: Path | None = None
) -> tuple[tuple[FoundInput, ...], tuple[FileError, ...], tuple[str, ...]]:
    """Find the pictures that are meant; nothing is opened but lists.

    - A file is taken whatever its name; a folder gives the files with a picture's suffix, not the hidden ones.
    - A glob (`*`, `?`, `[...]`, `**`) is a pattern only where there is no file of that name. It gives picture files,
      which keep their tree below the pattern's fixed part, and folders, which are as those named one by one.
    - A `.txt` file is a list of one path a line, relative to the list's own folder: of files, which keep their tree
      below it, and of folders. Blank lines and those that begin with `#` are skipped: `./#1.jpg` is such a name.

    Args:
        inputs: as typed, without "-".
        recursive: whether sub-folders are searched too; linked ones are followed, each real folder once.
        output_folder: where results go; it is not searched if it is met below a folder or a glob.
    Returns:
        The pictures, each once, in the order named and in natural order within a folder or glob; what is wrong with
        the others; and notes on pictures in folders that cannot be read here.
    Raises:
        UsageError: an input is empty or an address on the network.
    """
    search = _Search(recursive, output_folder)
    for text in inputs:
        search.add_argument(text)
    return tuple(search.found.values()), tuple(search.problems), tuple(search.notes)


def shown(path: object) -> str:
    """A path for a one-line message: escaped where it holds a line break or another control character."""
    text = str(path)
    return text if text.isprintable() else repr(text)


def is_url(text: str) -> bool:
    """Whether a text is an address and not a path; no drive's name is as long as a scheme's."""
    return _URL.match(text) is not None


def _url_hint(text: str) -> str:
    return "give the path without file://" if text.lower().startswith("file://") else "download it first"


def _reason(error: OSError | ValueError) -> str:
    """Say in a few words why the system refused a path; a ValueError is one that no path can have."""
    if not isinstance(error, OSError):
        return _REASONS[errno.ENOENT]
    return _REASONS.get(error.errno or 0, error.strerror or str(error))


class _Search:
    """Collects pictures and problems, one argument after the other."""

    def __init__(self, recursive: bool, output_folder: Path | None) -> None:
        self.found: dict[str, FoundInput] = {}
        self.problems: list[FileError] = []
        self.notes: list[str] = []
        self._recursive = recursive
        self._output = None if output_folder is None else Path(os.path.realpath(output_folder))
        self._key = EntryKeys()

    def add_argument(self, text: str) -> None:
        if not text:
            raise UsageError("an input is empty", "is a variable in the command not set?")
        path = Path(text)
        exists = os.path.lexists(path)
        if not exists and is_url(text):
            raise UsageError(f"{shown(text)}: pictures are not read from the network", _url_hint(text))
        if not exists and glob.has_magic(text):
            self._add_glob(path)
        elif path.suffix.lower() == ".txt" and os.path.isfile(path):
            self._add_list(path)
        else:
            self._add_path(path, Path(path.name), shown(path))

    def _add_path(
        self, path: Path, below: Path, name: str, *, folder: Path | None = None, missing_hint: str | None = None
    ) -> None:
        """Add a file or folder; `name` is what to call it in messages."""
        try:
            mode = path.stat().st_mode
        except (OSError, ValueError) as error:
            missing = isinstance(error, FileNotFoundError)
            if missing and os.path.islink(path):
                self._problem(name, "a link to a file that is not there")
            else:
                self._problem(name, _reason(error), missing_hint if missing else None)
            return
        if stat.S_ISDIR(mode):
            self._add_folder(path, name)
        elif stat.S_ISREG(mode):
            self.found.setdefault(self._key(path), FoundInput(path, below, folder))
        else:
            self._problem(name, "a device or pipe, not a file", "a stream is read with - as the only input")

    def _add_folder(self, folder: Path, name: str) -> None:
        problems_before = len(self.problems)
        if self._add_pictures_of(folder) or len(self.problems) > problems_before:
            return
        deeper = FolderSearch(folder, self._output, lambda *_: None).walk()
        unread = told_unread(path for path in self._files_of(folder))
        if unread is not None:
            self._problem(name, f"no pictures in this folder that can be read, but {unread[0]}", unread[1])
            return
        has_deeper = not self._recursive and any(is_picture(path) for files in deeper for path in files)
        hint = "its sub-folders hold some: use --recursive" if has_deeper else None
        self._problem(name, "no pictures in this folder", hint)

    def _add_pictures_of(self, folder: Path) -> int:
        """Add a folder's pictures and say how many there are."""
        files = list(self._files_of(folder, self._folder_problem))
        pictures = sorted(filter(is_picture, files), key=natural_key)
        for path in pictures:
            self._add_path(path, path.relative_to(folder), shown(path), folder=folder)
        unread = told_unread(files)
        if pictures and unread is not None:
            hint = f": {unread[1]}" if unread[1] else ""
            self.notes.append(f"{shown(folder)}: pictures that cannot be read here are left out, {unread[0]}{hint}")
        return len(pictures)

    def _files_of(self, folder: Path, on_error: Callable[[Path, OSError], None] = lambda *_: None) -> Iterator[Path]:
        """The files of a folder, and below it where that was asked for."""
        walk = FolderSearch(folder, self._output, on_error).walk()
        return chain.from_iterable(islice(walk, None if self._recursive else 1))

    def _add_glob(self, pattern: Path) -> None:
        problems_before = len(self.problems)
        fixed = next(index for index, part in enumerate(pattern.parts) if glob.has_magic(part))
        root = Path(*pattern.parts[:fixed])
        search = FolderSearch(root, self._output, self._folder_problem)
        count = 0
        # Files come first: with **/* they match by themselves, and not as pictures of a folder that matches too.
        matches = [(os.path.isdir(path), path) for path in search.expand(pattern.parts[fixed:])]
        for is_folder, path in sorted(matches, key=lambda match: (match[0], natural_key(match[1]))):
            if is_folder:
                count += self._add_pictures_of(path)
            elif is_picture(path):
                count += 1
                self._add_path(path, _below(path, root), shown(path))
        if count == 0 and len(self.problems) == problems_before:
            self._problem(shown(pattern), "no picture matches")

    def _add_list(self, path: Path) -> None:
        try:
            lines = _read_lines(path)
        except OSError as error:
            self._problem(shown(path), _reason(error))
            return
        if lines is None:
            self._problem(shown(path), "not a list of paths, which is plain text")
            return
        entries = [(number, line) for number, line in enumerate(lines, 1) if line and not line.startswith("#")]
        if not entries:
            self._problem(shown(path), "the list names no pictures")
        for number, line in entries:
            self._add_line(path, line, f"{shown(path)}, line {number}: {shown(line)}")

    def _add_line(self, listing: Path, line: str, name: str) -> None:
        path = listing.parent / line
        if is_url(line) and not os.path.lexists(path):
            self._problem(name, "pictures are not read from the network", _url_hint(line))
        elif path.suffix.lower() == ".txt" and os.path.isfile(path):
            self._problem(name, "a list in a list is not followed", "name it on the command line as well")
        else:
            hint = "paths in a list are relative to the list's own folder"
            self._add_path(path, _below(path, listing.parent), name, missing_hint=hint)

    def _folder_problem(self, folder: Path, error: OSError) -> None:
        self._problem(shown(folder), _reason(error))

    def _problem(self, name: str, reason: str, hint: str | None = None) -> None:
        self.problems.append(FileError(f"{name}: {reason}", hint))


def _below(path: Path, base: Path) -> Path:
    """The path that is kept below an output folder: from `base` on, or only the name of what lies elsewhere."""
    place = Path(os.path.abspath(path))
    start = os.path.abspath(base)
    return place.relative_to(start) if place.is_relative_to(start) else Path(place.name)


def _read_lines(path: Path) -> list[str] | None:
    """The lines of a text file in UTF-8 or, with its mark, UTF-16 as PowerShell writes it; None for other files."""
    data = path.read_bytes()
    try:
        if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            text = data.decode("utf-16")
        else:
            # Names of files need not be valid UTF-8.
            text = data.decode("utf-8-sig", "surrogateescape")
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else [line.strip(" \t\r") for line in text.split("\n")]
