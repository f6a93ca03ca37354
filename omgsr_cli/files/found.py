"""What is found as inputs are searched: pictures, what is wrong with others, and notes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from omgsr_cli.errors import FileError
from omgsr_cli.files.addresses import Location, shown
from omgsr_cli.files.folders import told_unread

NO_PICTURES = "no pictures in this folder"


@dataclass(frozen=True)
class FoundInput:
    """One picture file that was asked for.

    Attributes:
        path: as it was named, or found in a folder.
        below: the path that it keeps below an `-o FOLDER`.
        folder: the input folder that it was found in; None for a file named alone, by a glob or in a list.
    """

    path: Location
    below: Path
    folder: Location | None = None


@dataclass(frozen=True)
class FoundPicture:
    """As `FoundInput`, where only files of this machine will do."""

    path: Path
    below: Path
    folder: Path | None = None


@dataclass(frozen=True)
class Note:
    """What a person should be told of what was found: pictures that cannot be read here."""

    text: str


#: What is found, one after the other: a picture, what is wrong with something, or a note.
Found = FoundInput | FileError | Note


def problem(name: str, reason: str, hint: str | None = None) -> FileError:
    """What is wrong with something that was named."""
    return FileError(f"{name}: {reason}", hint)


def unread_note(folder: Location, unread: Counter[str]) -> Iterable[Note]:
    """What to tell of a folder beside the pictures that were found, by how many files have which suffix."""
    told = told_unread(unread)
    if told is not None:
        hint = f": {told[1]}" if told[1] else ""
        yield Note(f"{shown(folder)}: pictures that cannot be read here are left out, {told[0]}{hint}")
