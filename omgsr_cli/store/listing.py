"""Which files of a repository are fetched, and whether two repositories hold the same ones. Nothing is read here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

from omgsr_cli.errors import ModelError

_EMBEDDING = "prompt_embeds.safetensors"
_TEXT_ENCODER = "text_encoder"


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository.

    Attributes:
        path: with forward slashes, from the repository's root.
        bytes: its size.
        sha256: of its content, for large files; None where only git knows it.
        git_sha1: the hash by which git knows a small file; None for a large one.
    """

    path: str
    bytes: int
    sha256: str | None
    git_sha1: str | None


@dataclass(frozen=True)
class Listing:
    """A repository at one commit.

    Attributes:
        repository: OWNER/NAME.
        revision: the commit, never a branch.
        licence: as its card names it; None where it names none.
        files: all of them.
    """

    repository: str
    revision: str
    licence: str | None
    files: tuple[RemoteFile, ...]


def choose_files(
    listing: Listing, small: Iterable[str], stems: Mapping[str, str], *, full: bool = False
) -> tuple[RemoteFile, ...]:
    """Choose what a model needs: its configurations, and one set of safetensors of each part.

    The fp16 files are taken where there are some, unless `full` asks for the others. The text encoder is left out
    where the prompt's embedding lies in the repository.

    Args:
        listing: of the repository.
        small: patterns of the small files.
        stems: part to the name of its weight file, without ending.
        full: prefer weights in full precision.
    Raises:
        ModelError: a part has no safetensors, or a name leads out of the folder that it will be written to.
    """
    by_path = {file.path: file for file in listing.files}
    chosen = [path for path in by_path if any(fnmatchcase(path, pattern) for pattern in small)]
    for part, stem in stems.items():
        if f"{part}/config.json" not in by_path or (part == _TEXT_ENCODER and _EMBEDDING in by_path):
            continue
        marks = ("", ".fp16") if full else (".fp16", "")
        weights = next(filter(None, (_weights_of(by_path, f"{part}/{stem}", mark) for mark in marks)), None)
        if weights is None:
            raise ModelError(f"{listing.repository} has no safetensors of its {part}")
        chosen += weights
    outside = [path for path in chosen if not _stays_inside(path)]
    if outside:
        raise ModelError(f"{listing.repository} names a file outside of its folder: {outside[0]!r}")
    return tuple(by_path[path] for path in dict.fromkeys(chosen))


def find_disagreement(chosen: Iterable[RemoteFile], other: Listing) -> str | None:
    """Name the first large file that another copy of the same repository has with another content; None if none."""
    known = {file.path: file.sha256 for file in other.files if file.sha256 is not None}
    for file in chosen:
        if file.sha256 is not None and known.get(file.path, file.sha256) != file.sha256:
            return file.path
    return None


def _weights_of(by_path: Mapping[str, RemoteFile], stem: str, mark: str) -> list[str] | None:
    """The one file or the pieces of a part's weights, the pieces with their index; None where there are none."""
    if f"{stem}{mark}.safetensors" in by_path:
        return [f"{stem}{mark}.safetensors"]
    index = f"{stem}.safetensors.index{mark}.json"
    pieces = sorted(path for path in by_path if fnmatchcase(path, f"{stem}{mark}-*.safetensors"))
    return [index, *pieces] if index in by_path and pieces else None


def _stays_inside(path: str) -> bool:
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts and not set(path) & {"\\", ":", "\0"}
