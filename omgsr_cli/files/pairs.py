"""Which two files show the same picture: pairing by the stem of their names."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from omgsr_cli.errors import FileError, UsageError
from omgsr_cli.files.inputs import find_inputs, shown

_NAMED = 5


@dataclass(frozen=True)
class Pair:
    """Two files of one picture.

    Attributes:
        stem: the name that they share, without its ending.
        first: a file of the first list.
        second: its partner in the second.
    """

    stem: str
    first: Path
    second: Path


def pair_by_stem(
    first: Sequence[Path], second: Sequence[Path], *, names: tuple[str, str] = ("the first", "the second")
) -> tuple[Pair, ...]:
    """Pair the files of two lists by their stems: a/0001.png goes with b/0001.jpg.

    Args:
        first: files, one per picture; the pairs come in their order.
        second: their partners, in any order.
        names: what to call the two lists in messages.
    Raises:
        UsageError: a file has no partner, or a stem is twice in one list; the message lists them.
    """
    partners = _by_stem(second, names[1])
    own = _by_stem(first, names[0])
    for stems, others, name in ((own, partners, names[1]), (partners, own, names[0])):
        missing = [path for stem, path in stems.items() if stem not in others]
        if missing:
            raise UsageError(
                f"{len(missing)} of {len(stems)} pictures have no partner in {name}: {_listed(missing)}",
                "partners have the same name, up to its ending",
            )
    return tuple(Pair(stem, path, partners[stem]) for stem, path in own.items())


def _by_stem(paths: Sequence[Path], name: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    twice: list[Path] = []
    for path in paths:
        if found.setdefault(path.stem, path) is not path:
            twice += [found[path.stem], path]
    if twice:
        raise UsageError(f"{name} has pictures of the same stem: {_listed(twice)}", "leave one of each out")
    return found


def _listed(paths: Iterable[Path]) -> str:
    texts = [shown(path) for path in paths]
    return ", ".join(texts[:_NAMED]) + (f" and {len(texts) - _NAMED} more" if len(texts) > _NAMED else "")


@dataclass(frozen=True)
class FoundPictures:
    """What was named.

    Attributes:
        pictures: the sharp ones.
        partners: the low-quality partner of each, or None where they are to be degraded.
        problems: what was named and is none.
    """

    pictures: tuple[Path, ...]
    partners: tuple[Path, ...] | None
    problems: tuple[FileError, ...]


def find_pictures(data: Sequence[str], lq: Sequence[str] | None) -> FoundPictures:
    """Find the pictures, and the partner of each where there are real ones.

    Raises:
        UsageError: there are none, or their stems do not go together.
    """
    found, problems = find_inputs(data, recursive=True)
    pictures = tuple(item.path for item in found)
    partners = None
    if lq:
        others, more = find_inputs(lq, recursive=True)
        problems += more
        if pictures and others:
            pairs = pair_by_stem(pictures, [item.path for item in others], names=("--data", "--lq"))
            partners = tuple(pair.second for pair in pairs)
    if not pictures or (lq and partners is None):
        reason = f": {problems[0].message}" if problems else ""
        raise UsageError(f"no pictures were found{reason}", "give folders, files or .txt lists")
    return FoundPictures(pictures, partners, problems)
