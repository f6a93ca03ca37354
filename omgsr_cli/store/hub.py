"""List, choose and fetch the files of models on the Hugging Face hub.

In addition to huggingface_hub, this module chooses files, resumes downloads across processes, checks every size and
hash against the listing, and turns every failure into one line with a hint.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from urllib.parse import urlsplit

from omgsr_cli.errors import ModelError, reason_of
from omgsr_cli.files.addresses import redact
from omgsr_cli.files.atomic import link_or_copy
from omgsr_cli.store.manifest import stays_inside

_PAGES = "https://huggingface.co"
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
PREFERRED_VARIANTS = ("", "fp32", "fp16", "bf16")
"""Variants of weights, the most exact first: fp16 has three more mantissa bits than bf16."""

_EMBEDDING = "prompt_embeds.safetensors"
_TEXT_ENCODERS = ("text_encoder", "text_encoder_2")

_ATTEMPTS = 5
"""A download fails after this many consecutive attempts without new bytes."""
_PAUSE_S = 1.0
_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class RemoteFile:
    """One file of a repository.

    Attributes:
        path: relative to the repository's root, with forward slashes.
        bytes: its size.
        sha256: hash of a large file's content; None for files that only git hashes.
        git_sha1: git's hash of a small file; None for a large one.
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
        licence: the licence on its card; None if the card names none.
        files: all files.
    """

    repository: str
    revision: str
    licence: str | None
    files: tuple[RemoteFile, ...]


@dataclass(frozen=True)
class ModelFiles:
    """The files of a repository that a model can use.

    Attributes:
        small: patterns of configurations and other small files.
        weight_stems: maps a part, such as "unet", to the name of its weight file without the extension.
    """

    small: tuple[str, ...]
    weight_stems: Mapping[str, str]


def is_repository_name(source: str) -> bool:
    """Whether the text has the form OWNER/NAME of a hub repository."""
    return _REPOSITORY.fullmatch(source) is not None and ".." not in source


def list_repository(repository: str, revision: str | None = None) -> Listing:
    """List the files of a repository with their sizes and hashes.

    Args:
        repository: OWNER/NAME.
        revision: branch, tag or commit; None means the newest.
    Raises:
        ModelError: the repository is not reachable, not found or gated.
    """
    with explained_failures(repository, revision):
        from huggingface_hub import HfApi

        info = HfApi().model_info(repository, revision=revision, files_metadata=True)
    card = info.card_data
    named = (
        None if card is None else card.get("license_name") if card.get("license") == "other" else card.get("license")
    )
    files = tuple(
        RemoteFile(
            path=found.rfilename,
            bytes=found.size or 0,
            sha256=found.lfs.sha256 if found.lfs else None,
            git_sha1=None if found.lfs else found.blob_id,
        )
        for found in info.siblings or ()
    )
    return Listing(repository, info.sha or revision or "main", str(named) if named else None, files)


def choose_files(listing: Listing, files: ModelFiles, *, full: bool = False) -> tuple[RemoteFile, ...]:
    """Choose the files that a model needs: its configurations and one set of safetensors for each part.

    The fp16 files are preferred unless `full` is set; another variant is chosen if neither exists. The text encoder is
    omitted if the repository contains the prompt's embedding.

    Raises:
        ModelError: a part has no safetensors, or a file's path points outside the target folder.
    """
    by_path = {file.path: file for file in listing.files}
    chosen = [path for path in by_path if any(fnmatchcase(path, pattern) for pattern in files.small)]
    for part, stem in files.weight_stems.items():
        if not _needs_weights(part, by_path.__contains__):
            continue
        marks = ["", ".fp16"] if full else [".fp16", ""]
        others = find_variants((PurePosixPath(path).name for path in by_path if path.startswith(f"{part}/")), stem)
        marks += [f".{variant}" for variant in others if variant not in ("", "fp16")]
        weights = next(filter(None, (_weights_of(by_path, f"{part}/{stem}", mark) for mark in marks)), None)
        if weights is None:
            raise ModelError(f"{listing.repository} has no safetensors of its {part}")
        chosen += weights
    outside = [path for path in chosen if not stays_inside(path)]
    if outside:
        raise ModelError(f"{listing.repository} names a file outside of its folder: {outside[0]!r}")
    return tuple(by_path[path] for path in dict.fromkeys(chosen))


def find_variants(names: Iterable[str], stem: str) -> list[str]:
    """Return the variants of weights among file names, the preferred variant first; "" is the variant without a mark.

    The names follow diffusers: `stem.safetensors`, `stem.fp16.safetensors`, and for shards their index,
    `stem.safetensors.index.json` or `stem.safetensors.index.fp16.json`.
    """
    whole = re.compile(rf"{re.escape(stem)}(?:\.([^.]+))?\.safetensors")
    index = re.compile(rf"{re.escape(stem)}\.safetensors\.index(?:\.([^.]+))?\.json")
    found = {(match[1] or "") for name in names if (match := whole.fullmatch(name) or index.fullmatch(name))}
    # Drop the shards: their index already counts.
    variants = [name for name in found if not re.search(r"-\d+-of-\d+$", name)]
    return sorted(
        variants,
        key=lambda name: (
            PREFERRED_VARIANTS.index(name) if name in PREFERRED_VARIANTS else len(PREFERRED_VARIANTS),
            name,
        ),
    )


def find_disagreement(chosen: Iterable[RemoteFile], other: Listing) -> str | None:
    """Return the path of the first large file whose content differs in another copy of the repository, or None."""
    known = {file.path: file.sha256 for file in other.files if file.sha256 is not None}
    for file in chosen:
        if file.sha256 is not None and known.get(file.path, file.sha256) != file.sha256:
            return file.path
    return None


def fetch_file(listing: Listing, file: RemoteFile, folder: Path, on_bytes: Callable[[int], None]) -> Path:
    """Fetch one file of a repository, or link it from the hub's cache, and check its size and hash.

    An interrupted download stays as `.part`, and the next call resumes it, also in another process. huggingface_hub
    resumes only within one call, and a base model has gigabytes.

    Args:
        listing: listing of the repository; its commit is fetched.
        file: a file of the listing, which keeps its path below the folder.
        folder: target folder.
        on_bytes: receives the number of bytes fetched since the last call; the sum is the size of the file.
    Raises:
        ModelError: the file is not reachable, refused, or differs from the listing; such a file is deleted.
    """
    target = folder.joinpath(*file.path.split("/"))
    with explained_failures(listing.repository, listing.revision):
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.is_file():
            cached = _cached_file(listing, file)
            if cached is not None:
                link_or_copy(cached, target)
            else:
                from huggingface_hub import hf_hub_url
                from huggingface_hub.utils import (  # type: ignore[attr-defined]  # documented, but not in its __all__
                    build_hf_headers,
                )

                url = hf_hub_url(listing.repository, file.path, revision=listing.revision)
                _fetch_all(_Source(listing.repository, url, build_hf_headers()), file, target, on_bytes)
                return target
    on_bytes(file.bytes)
    return target


def fetch_url(url: str, file: RemoteFile, folder: Path, on_bytes: Callable[[int], None]) -> Path:
    """Fetch a file of known name, size and SHA-256 from any web server, as `fetch_file` does but without a hub token.

    Raises:
        ModelError: the file is not reachable, refused, or has another size or hash; such a file is deleted.
    """
    target = folder / file.path
    if target.is_file() and is_as_listed(target, file):
        on_bytes(file.bytes)
        return target
    host = urlsplit(url).netloc
    hint = "check the network, or download the file yourself and give it with --model FILE"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _fetch_all(_Source(host, url, {}), file, target, on_bytes)
    except (*http_errors(), OSError) as error:  # type: ignore[misc]  # all are exception classes
        raise ModelError(f"{file.path} cannot be fetched from {host}: {redact(reason_of(error))}", hint) from error
    return target


class _Source(NamedTuple):
    """The source of one file: its name in messages, its URL, and the headers of the request."""

    name: str
    url: str
    headers: Mapping[str, str]


def is_as_listed(path: Path, file: RemoteFile) -> bool:
    """Whether a file has the size and content of the listing.

    Raises:
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    if size != file.bytes:
        return False
    with open(path, "rb") as content:
        if file.sha256 is not None:
            return hashlib.file_digest(content, "sha256").hexdigest() == file.sha256
        # Git hashes a header with the length, followed by the content.
        digest = hashlib.sha1(b"blob %d\0" % size + content.read(), usedforsecurity=False)
        return file.git_sha1 is None or digest.hexdigest() == file.git_sha1


def _cached_file(listing: Listing, file: RemoteFile) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(listing.repository, file.path, revision=listing.revision)
    if not isinstance(found, str):
        return None
    path = Path(found).resolve()
    return path if is_as_listed(path, file) else None


def _fetch_all(source: _Source, file: RemoteFile, target: Path, on_bytes: Callable[[int], None]) -> None:
    """Fetch a file; resume after interruptions as long as attempts fetch new bytes."""
    partial = target.with_name(target.name + ".part")
    came = partial.stat().st_size if partial.is_file() else 0
    on_bytes(came)
    fruitless = 0
    while True:
        before = came
        try:
            came = _fetch_rest(source, file, partial, on_bytes)
        except http_errors() as error:
            if not _may_pass(error):
                raise
            came = partial.stat().st_size if partial.is_file() else 0
            fruitless = 0 if came > before else fruitless + 1
            if fruitless == _ATTEMPTS:
                raise
            time.sleep(min(2.0**fruitless, 10.0) * _PAUSE_S)
            continue
        if came >= file.bytes or came == before:
            break
    if not is_as_listed(partial, file):
        partial.unlink()
        raise ModelError(
            f"{source.name}: {file.path} has another size or SHA-256 than it should have and was deleted",
            hint="run the same command again; if it fails again, tell the file's owner",
        )
    os.replace(partial, target)


def _fetch_rest(source: _Source, file: RemoteFile, partial: Path, on_bytes: Callable[[int], None]) -> int:
    """Append the missing bytes of a file and return its size, which is never much above the listed size."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]  # documented, as above

    have = partial.stat().st_size if partial.is_file() else 0
    # A transfer with compression cannot be resumed.
    headers = {**source.headers} | {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with get_session().stream("GET", source.url, headers=headers, timeout=_TIMEOUT_S) as response:
        if response.status_code == 416:
            return have
        hf_raise_for_status(response)
        goes_on = response.status_code == 206
        if not goes_on:
            on_bytes(-have)
            have = 0
        with open(partial, "ab" if goes_on else "wb") as content:
            # Write pieces as they arrive, so that they stay on disk if the connection or the process ends.
            for piece in response.iter_bytes():
                content.write(piece)
                have += len(piece)
                on_bytes(len(piece))
                if have > file.bytes:
                    break
    return have


def _may_pass(error: Exception) -> bool:
    """Whether a retry can help: after a lost connection, or if the server is busy or failing."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status is None or status in (408, 429) or status >= 500


def download_model(
    repository: str,
    files: ModelFiles,
    revision: str | None = None,
    parts: Sequence[str] | None = None,
    check: Callable[[Path], None] | None = None,
) -> Path:
    """Fetch a Diffusers model into the hub's cache, or find it there.

    If a repository has no full-precision weights, its fp16 weights are fetched, or else its other variants.

    Args:
        repository: OWNER/NAME.
        files: the files that a model can use.
        revision: branch, tag or commit; None means the newest.
        parts: the parts whose weights are fetched if the model has them; None means all.
        check: called with the folder of the small files before weights are fetched; its exceptions end the call.
    Returns:
        The folder in the hub's cache.
    Raises:
        ModelError: not reachable, not found, gated, or not cached while offline.
    """
    folder = download_files(repository, revision, list(files.small))
    if check is not None:
        check(folder)
    wanted = [part for part in files.weight_stems if parts is None or part in parts]
    wanted = [part for part in wanted if _needs_weights(part, lambda path: (folder / path).is_file())]

    def patterns(part: str, variant: str) -> list[str]:
        stem = f"{part}/{files.weight_stems[part]}"
        index = f"{stem}.safetensors.index{variant}.json"
        return [f"{stem}{variant}.safetensors", f"{stem}{variant}-*.safetensors", index]

    folder = download_files(repository, revision, [pattern for part in wanted for pattern in patterns(part, "")])
    for variant in (".fp16", ".*"):
        missing = [part for part in wanted if not any((folder / part).glob("*.safetensors"))]
        if missing:
            others = [pattern for part in missing for pattern in patterns(part, variant)]
            folder = download_files(repository, revision, others)
    return folder


def download_files(repository: str, revision: str | None, patterns: list[str]) -> Path:
    """Fetch the files of a hub repository that match a pattern, or find them in the hub's cache.

    Args:
        repository: OWNER/NAME.
        revision: branch, tag or commit; None means the newest.
        patterns: shell patterns of paths in the repository.
    Returns:
        The folder in the hub's cache.
    Raises:
        ModelError: not reachable, not found, gated, or not cached while offline.
    """
    with explained_failures(repository, revision):
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))


@contextmanager
def explained_failures(repository: str, revision: str | None = None) -> Iterator[None]:
    """Turn every failure of the hub, the network or the disk into one line with a hint.

    Raises:
        ModelError: replaces the original error.
    """
    from huggingface_hub import errors

    try:
        yield
    # Catch specific errors before general ones.
    except errors.GatedRepoError as error:
        raise ModelError(
            f"the hub repository {repository} is gated",
            hint=f"accept its licence at {_PAGES}/{repository}, then run `hf auth login`; or give a local folder",
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        where = repository if revision is None else f"{repository} at revision {revision}"
        raise ModelError(
            f"the hub has no repository {where}, or it is private",
            hint="check its name; run `hf auth login` if it is private; or give a local folder",
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise _unreachable(repository) from error
    except (errors.HfHubHTTPError, errors.HFValidationError, errors.XetDownloadError) as error:
        raise _unfetched(repository, error) from error
    except http_errors() as error:
        raise _unreachable(repository) from error
    except OSError as error:
        raise _unfetched(repository, error) from error


def http_errors() -> tuple[type[Exception], ...]:
    """Return the base class of HTTP errors in huggingface_hub; its HTTP library differs between versions."""
    from huggingface_hub import errors

    return tuple(
        base for base in errors.HfHubHTTPError.__mro__ if base.__name__ == "HTTPError" and issubclass(base, Exception)
    )


def _unreachable(repository: str) -> ModelError:
    return ModelError(
        f"{repository} is not in the hub's cache and the hub cannot be reached",
        hint="connect to the network and unset HF_HUB_OFFLINE, or give a local folder",
    )


def _unfetched(repository: str, error: Exception) -> ModelError:
    # An address may contain a password, or a signature that replaces a token.
    reason = redact(reason_of(error))
    return ModelError(f"{repository} cannot be fetched from the hub: {reason}")


def _needs_weights(part: str, exists: Callable[[str], bool]) -> bool:
    """Whether a part's weights are needed; the prompt's embedding replaces the text encoder."""
    return exists(f"{part}/config.json") and not (part in _TEXT_ENCODERS and exists(_EMBEDDING))


def _weights_of(by_path: Mapping[str, RemoteFile], stem: str, mark: str) -> list[str] | None:
    """Return the file of a part's weights, or its shards and their index; None if neither exists."""
    if f"{stem}{mark}.safetensors" in by_path:
        return [f"{stem}{mark}.safetensors"]
    index = f"{stem}.safetensors.index{mark}.json"
    pieces = sorted(path for path in by_path if fnmatchcase(path, f"{stem}{mark}-*.safetensors"))
    return [index, *pieces] if index in by_path and pieces else None
