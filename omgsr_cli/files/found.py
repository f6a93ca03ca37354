"""What is found as inputs are searched: pictures, what is wrong with others, and notes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from omgsr_cli.errors import FileError
from omgsr_cli.files.addresses import Location, shown
from omgsr_cli.files.folders import told_unread
from omgsr_cli.files.records import read_record
from omgsr_cli.files.remembered import Remembered

NO_PICTURES = "no pictures in this folder"


@dataclass(frozen=True)
class FoundInput:
    """One picture file that was asked for.

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
class FoundPicture:
    """As `FoundInput`, where only files of this machine will do."""

    path: Path
    below: Path
    folder: Path | None = None


@dataclass(frozen=True)
class Note:
    """What a person should be told of what was found: pictures that cannot be read here, folders that are left out."""

    text: str


@dataclass(frozen=True)
class FoundResult:
    """A result of an earlier run that was found in a folder or by a glob, and is not processed again."""

    path: Path


#: What is found, one after the other: an image, a result of an earlier run, what is wrong with something, or a note.
Found = FoundInput | FoundResult | FileError | Note


class SkippedResults:
    """Counts the results of earlier runs that a search meets.

    Args:
        remembered: knows the results that hold no record; None where only records count.
    """

    def __init__(self, remembered: Remembered | None) -> None:
        self._remembered = remembered
        self._count, self._first = 0, ""

    def holds(self, path: Path) -> bool:
        """Whether a regular file is one; its header alone is read."""
        is_result = read_record(path) is not None
        if not is_result and self._remembered is not None:
            is_result = self._remembered.is_any_result(path)
        return is_result

    def add(self, path: Path) -> None:
        """Count one that is skipped."""
        self._first = self._first or shown(path)
        self._count += 1

    def tell(self, *, found_others: bool) -> Iterable[Note | FileError]:
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
    """Counts the sub-folders that are left out, as nobody asked for them."""

    def __init__(self) -> None:
        self._count, self._first, self._is_all = 0, "", True

    def add(self, folder: Location) -> None:
        """Count one."""
        self._first = self._first or shown(folder)
        self._count += 1

    def stop(self) -> None:
        """There may be more, which nobody counted."""
        self._is_all = False

    def note(self) -> Iterable[Note]:
        """What to tell of them all, where there are some."""
        count = f"{'' if self._is_all else 'at least '}{self._count} sub-folder"
        if self._count == 1:
            yield Note(f"{count} is left out, {self._first}: add --recursive to search it too")
        elif self._count:
            yield Note(f"{count}s are left out, the first is {self._first}: add --recursive to search them too")


def problem(name: str, reason: str, hint: str | None = None) -> FileError:
    """What is wrong with something that was named."""
    return FileError(f"{name}: {reason}", hint)


def unread_note(folder: Location, unread: Counter[str]) -> Iterable[Note]:
    """What to tell of a folder beside the pictures that were found, by how many files have which suffix."""
    told = told_unread(unread)
    if told is not None:
        hint = f": {told[1]}" if told[1] else ""
        yield Note(f"{shown(folder)}: pictures that cannot be read here are left out, {told[0]}{hint}")
