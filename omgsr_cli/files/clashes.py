"""Which results may be written: none over what it is made of, over another's, or over what is still to be read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from omgsr_cli.errors import FileError, UsageError
from omgsr_cli.files.addresses import Location, shown
from omgsr_cli.files.folders import EntryKeys
from omgsr_cli.files.found import FoundInput
from omgsr_cli.files.seen import SeenNames


def comparison_path(destination: Location) -> Location:
    """Where the before/after picture of a result lies: beside it."""
    return destination.with_name(_comparison_name(destination.name))


def _comparison_name(name: str) -> str:
    return f"{os.path.splitext(name)[0]}_compare.png"


@dataclass(frozen=True)
class Checked:
    """What became of some inputs and the places of their results.

    Attributes:
        kept: those that can be done.
        problems: results that would overwrite their own source, or each other; these are not done.
        earlier_results: inputs left out because another's result has their name.
    """

    kept: tuple[tuple[FoundInput, Location], ...]
    problems: tuple[FileError, ...]
    earlier_results: tuple[Location, ...]


class Clashes:
    """Finds clashes among results, also with those of earlier calls.

    Args:
        hint: what to do where a result would overwrite its own source.
    """

    def __init__(self, hint: str) -> None:
        self._hint = hint
        self._key = EntryKeys()
        self._results = SeenNames()
        self._first = True

    def check(self, results: Iterable[tuple[FoundInput, Location]], *, is_last: bool) -> Checked:
        """Tell which inputs can be done.

        Args:
            results: each input and where its result goes.
            is_last: whether there are no others after these.
        Raises:
            UsageError: one would overwrite its own source; only of the first call, later ones tell it as a problem.
        """
        named = [_Named(found, place, self._key(found.path), self._key(place)) for found, place in results]
        named, own = self._without_own_source(named)
        named, earlier = self._without_earlier_results(named)
        kept, clashes = self._without_clashes(named)
        if not is_last:
            self._results.add_all((key, shown(one.found.path)) for one in kept for key in one.result_keys)
        self._first = False
        return Checked(tuple((one.found, one.place) for one in kept), (*own, *clashes), earlier)

    def _without_own_source(self, named: Sequence[_Named]) -> tuple[list[_Named], list[FileError]]:
        """Leave out, or refuse, what would be overwritten by its own result."""
        kept, own = list[_Named](), list[FileError]()
        for one in named:
            if not one.is_same_file:
                kept.append(one)
                continue
            source = one.found.path
            also = "" if source == one.place else f" is the same file as {shown(one.place)} and"
            message = f"{shown(source)}{also} would be overwritten by its own result"
            if self._first:
                raise UsageError(message, self._hint)
            own.append(FileError(message, self._hint))
        return kept, own

    def _without_earlier_results(self, named: Sequence[_Named]) -> tuple[list[_Named], tuple[Location, ...]]:
        results = {key for one in named for key in one.result_keys}
        earlier = {one.source_key for one in named if one.source_key in results}
        if not self._first:
            earlier |= {one.source_key for one in named if self._results.find(one.source_key) is not None}
        kept = [one for one in named if one.source_key not in earlier]
        return kept, tuple(one.found.path for one in named if one.source_key in earlier)

    def _without_clashes(self, named: Sequence[_Named]) -> tuple[list[_Named], list[FileError]]:
        counts = Counter(one.place_key for one in named)
        # One that came in an earlier call is being done: this one is not.
        before = {} if self._first else {key: name for key in counts if (name := self._results.find(key)) is not None}
        writers: dict[str, list[str]] = {}
        for one in named:
            if counts[one.place_key] > 1 or one.place_key in before:
                sources = writers.setdefault(one.place_key, [before[one.place_key]] if one.place_key in before else [])
                sources.append(shown(one.found.path))
        clashes = {one.place_key: one.place for one in named if one.place_key in writers}
        told = [_clash(writers[key], place) for key, place in clashes.items()]
        return [one for one in named if one.place_key not in writers], told


class _Named(NamedTuple):
    """An input and where its result goes; keys tell files apart, however they are named."""

    found: FoundInput
    place: Location
    source_key: str
    place_key: str

    @property
    def result_keys(self) -> tuple[str, str]:
        """Of the result, and of the comparison beside it."""
        return self.place_key, _comparison_name(self.place_key)

    @property
    def is_same_file(self) -> bool:
        """Whether the result would take the place of its own source."""
        if isinstance(self.found.path, Path) and isinstance(self.place, Path):
            try:
                return os.path.samefile(self.found.path, self.place)
            except OSError:
                # The destination is not there yet; or the source has gone meanwhile, which is told when it is read.
                pass
        return self.source_key == self.place_key


def _clash(sources: Sequence[str], destination: Location) -> FileError:
    *others, last = sources
    hint = "do them in separate runs, each with its own -o"
    if len({source.rpartition("/")[2] for source in sources}) > 1:
        hint = f"rename one of them, or {hint}"
    both = "both" if len(sources) == 2 else "all"
    return FileError(f"{', '.join(others)} and {last} would {both} become {shown(destination)}", hint)
