"""Pair the files of the same images by their names."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from omgsr_cli.errors import FileError, UsageError
from omgsr_cli.files.addresses import shown
from omgsr_cli.files.inputs import FoundImage, find_inputs

_NAMED = 5


# Marks that test sets add to the names of a pair: _HR, _LR4, _x4, x4 after a digit, ...
_MARK = re.compile(r"(?:[._-](?:hr|lr|gt|hq|lq|sr)(?:x?[0-9]+)?|[._-]x[0-9]+|(?<=[0-9])x[0-9]+)$", re.IGNORECASE)


@dataclass(frozen=True)
class Pair:
    """Two files of one image.

    Attributes:
        name: the first file's stem, or its path below its folder if stems are not unique.
        first: a file of the first list.
        second: its partner in the second.
    """

    name: str
    first: Path
    second: Path


def pair_by_name(
    first: Sequence[FoundImage],
    second: Sequence[FoundImage],
    *,
    names: tuple[str, str] = ("the first", "the second"),
) -> tuple[Pair, ...]:
    """Pair the files of two lists by their names: a/0001.png with b/0001.jpg.

    The first of these keys is used that is unique in both lists and gives each file a partner: the stem; the path below
    the input folder (Canon/001 and Nikon/001); and both without the marks of test sets (_HR, _LR4, _x4, x4).

    Args:
        first: files, one per image, which determine the order of the pairs.
        second: their partners, in any order.
        names: names of the two lists in messages.
    Raises:
        UsageError: a file has no partner, or a list contains a name twice; the message lists these files.
    """
    for key in _KEYS:
        own, partners = ({key(file): file.path for file in files} for files in (first, second))
        if own.keys() == partners.keys() and len(own) == len(first) and len(partners) == len(second):
            shown_name = next(key for key in _KEYS if len({key(file) for file in first}) == len(first))
            return tuple(Pair(shown_name(file), file.path, partners[key(file)]) for file in first)
    raise _no_pairs(first, second, names)


_KEYS: tuple[Callable[[FoundImage], str], ...] = (
    lambda file: file.path.stem,
    lambda file: file.below.with_suffix("").as_posix(),
    lambda file: _without_marks(file.path.stem),
    lambda file: file.below.with_name(_without_marks(file.path.stem)).as_posix(),
)


def _without_marks(stem: str) -> str:
    while (shorter := _MARK.sub("", stem)) not in (stem, ""):
        stem = shorter
    return stem


def _no_pairs(first: Sequence[FoundImage], second: Sequence[FoundImage], names: tuple[str, str]) -> UsageError:
    """The error for files that cannot be paired, by the key that pairs most of them."""

    def together(key: Callable[[FoundImage], str]) -> int:
        return len({key(file) for file in first} & {key(file) for file in second})

    key = max(_KEYS, key=together)
    for files, others, name in ((first, second, names[1]), (second, first, names[0])):
        known = {key(file) for file in others}
        missing = [file.path for file in files if key(file) not in known]
        if missing:
            return UsageError(
                f"{len(missing)} of {len(files)} images without a partner in {name}: {_listed(missing)}",
                "partners must have the same name, apart from the suffix and marks such as _HR, _LR4 or _x4",
            )
    for files, name in ((first, names[0]), (second, names[1])):
        twice = [file.path for file in files if sum(key(other) == key(file) for other in files) > 1]
        if twice:
            return UsageError(f"{name} has images of the same name: {_listed(twice)}", "remove one of each")
    return UsageError(f"{names[0]} and {names[1]} cannot be paired", "give partners the same name")


def _listed(paths: Iterable[Path]) -> str:
    texts = [shown(path) for path in paths]
    return ", ".join(texts[:_NAMED]) + (f" and {len(texts) - _NAMED} more" if len(texts) > _NAMED else "")


@dataclass(frozen=True)
class FoundImages:
    """The images of a dataset.

    Attributes:
        images: the sharp images.
        partners: the low-quality partner of each, or None if they are to be degraded.
        problems: unusable inputs.
        notes: notes for the user.
    """

    images: tuple[Path, ...]
    partners: tuple[Path, ...] | None
    problems: tuple[FileError, ...]
    notes: tuple[str, ...] = ()


def find_images(
    data: Sequence[str], lq: Sequence[str] | None, *, names: tuple[str, str] = ("--data", "--lq")
) -> FoundImages:
    """Find the images, and the partner of each if partners are given.

    Args:
        data: sharp images: folders with their subfolders, files, globs or .txt lists.
        lq: their partners, in the same form; None or empty if there are none.
        names: names of the two options in messages.
    Raises:
        UsageError: there are no images, or they cannot be paired.
    """
    found, problems, notes = find_inputs(data, recursive=True)
    images = tuple(item.path for item in found)
    partners = None
    if lq:
        others, more, more_notes = find_inputs(lq, recursive=True)
        problems, notes = problems + more, notes + more_notes
        if images and others:
            pairs = pair_by_name(found, others, names=names)
            partners = tuple(pair.second for pair in pairs)
    if not images or (lq and partners is None):
        reason = f": {problems[0].message}" if problems else ""
        raise UsageError(f"no images were found{reason}", "use folders, files or .txt lists")
    return FoundImages(images, partners, problems, notes)
