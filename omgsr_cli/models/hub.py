"""Fetching a model from the hub: only the files that are used, and only safetensors."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from omgsr_cli.errors import ModelError
from omgsr_cli.models.families import FAMILIES
from omgsr_cli.models.record import RECORD_NAME
from omgsr_cli.store.listing import Listing, RemoteFile

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

_PAGES = "https://huggingface.co"

SMALL_FILES = (RECORD_NAME, *dict.fromkeys(pattern for family in FAMILIES.values() for pattern in family.small_files))
WEIGHT_STEMS = {part: stem for family in FAMILIES.values() for part, stem in family.weight_stems.items()}
# Until a repository's small files are here nobody knows its family: what any family needs is asked for.
ALL_PARTS = tuple(WEIGHT_STEMS)

_ATTEMPTS = 5
"""How often nothing may come before a download is given up."""
_PAUSE_S = 1.0
_TIMEOUT_S = 30.0


def is_repository_name(source: str) -> bool:
    """Whether the text has the shape OWNER/NAME of a hub repository."""
    return _REPOSITORY.fullmatch(source) is not None and ".." not in source


def download_model(repository: str, revision: str | None = None, parts: Sequence[str] = ALL_PARTS) -> Path:
    """Fetch a diffusers model from the hub, or find it in the hub's cache.

    A repository without full-precision weights gives its fp16 ones.

    Args:
        repository: OWNER/NAME.
        revision: branch, tag or commit; None takes the newest.
        parts: whose weights are fetched, of those that the model has.
    Returns:
        The folder in the hub's cache.
    Raises:
        ModelError: not reachable, not found, gated or not cached while offline.
    """
    folder = download_files(repository, revision, list(SMALL_FILES))
    wanted = [part for part in parts if _needs_weights(folder, part)]
    folder = download_files(repository, revision, [pattern for part in wanted for pattern in _weight_files(part, "")])
    missing = [part for part in wanted if not any((folder / part).glob("*.safetensors"))]
    if missing:
        folder = download_files(
            repository, revision, [pattern for part in missing for pattern in _weight_files(part, ".fp16")]
        )
    return folder


def _needs_weights(folder: Path, part: str) -> bool:
    """The text encoder is not needed where the prompt's embedding lies beside the model."""
    if part == "text_encoder" and (folder / "prompt_embeds.safetensors").is_file():
        return False
    return (folder / part / "config.json").is_file()


def _weight_files(part: str, variant: str) -> list[str]:
    stem = f"{part}/{WEIGHT_STEMS[part]}"
    return [
        f"{stem}{variant}.safetensors",
        f"{stem}{variant}-*.safetensors",
        f"{stem}.safetensors.index{variant}.json",
    ]


def list_repository(repository: str, revision: str | None = None) -> Listing:
    """Ask the hub which files a repository has, with their sizes and hashes.

    Args:
        repository: OWNER/NAME.
        revision: branch, tag or commit; None takes the newest.
    Raises:
        ModelError: not reachable, not found or gated.
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


def fetch_file(listing: Listing, file: RemoteFile, folder: Path, on_bytes: Callable[[int], None]) -> Path:
    """Fetch one file of a repository, or find it in the hub's cache, and check its size and hash.

    What was fetched before an interruption stays beside as `.part`, and the next call goes on from there.

    Args:
        listing: of the repository; its commit is fetched.
        file: of the listing.
        folder: the file gets its own path below it.
        on_bytes: told how many bytes have come, as they come.
    Raises:
        ModelError: not reachable, refused, or not what the listing promised; such a file is not kept.
    """
    target = folder.joinpath(*file.path.split("/"))
    with explained_failures(listing.repository, listing.revision):
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.is_file():
            cached = _cached_file(listing, file)
            if cached is not None:
                target.symlink_to(cached)
            else:
                partial = target.with_name(target.name + ".part")
                _fetch_all(listing, file, partial, on_bytes)
                os.replace(partial, target)
                return target
    on_bytes(file.bytes)
    return target


def is_as_listed(path: Path, file: RemoteFile) -> bool:
    """Whether a file has the size and the content that the hub promised.

    Raises:
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    if size != file.bytes:
        return False
    with open(path, "rb") as content:
        if file.sha256 is not None:
            return hashlib.file_digest(content, "sha256").hexdigest() == file.sha256
        # How git names a file: by its length and content.
        digest = hashlib.sha1(b"blob %d\0" % size + content.read(), usedforsecurity=False)
        return file.git_sha1 is None or digest.hexdigest() == file.git_sha1


def _cached_file(listing: Listing, file: RemoteFile) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(listing.repository, file.path, revision=listing.revision)
    if not isinstance(found, str):
        return None
    path = Path(found).resolve()
    return path if is_as_listed(path, file) else None


def _fetch_all(listing: Listing, file: RemoteFile, partial: Path, on_bytes: Callable[[int], None]) -> None:
    """Fetch a file, going on after interruptions as long as each attempt brings something."""
    http_errors = _http_errors()
    came = partial.stat().st_size if partial.is_file() else 0
    on_bytes(came)
    fruitless = 0
    while True:
        before = came
        try:
            came = _fetch_rest(listing, file, partial, on_bytes)
        except http_errors as error:
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
            f"{listing.repository}: {file.path} is not what the hub promised (size or SHA-256), and was not kept",
            hint="type the same command again; if it comes back, tell the repository's owner",
        )


def _fetch_rest(listing: Listing, file: RemoteFile, partial: Path, on_bytes: Callable[[int], None]) -> int:
    """Append what is missing of a file; its size afterwards, never much above what it should be."""
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import (  # type: ignore[attr-defined]  # documented, though not in its __all__
        build_hf_headers,
        hf_raise_for_status,
    )

    url = hf_hub_url(listing.repository, file.path, revision=listing.revision)
    have = partial.stat().st_size if partial.is_file() else 0
    # Compressed in transit, a file cannot be taken up in its middle.
    headers = build_hf_headers() | {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with get_session().stream("GET", url, headers=headers, timeout=_TIMEOUT_S) as response:
        if response.status_code == 416:
            return have
        hf_raise_for_status(response)
        goes_on = response.status_code == 206
        if not goes_on:
            on_bytes(-have)
            have = 0
        with open(partial, "ab" if goes_on else "wb") as content:
            # As the pieces come: what a cut line or the end of this process leaves is on the disk.
            for piece in response.iter_bytes():
                content.write(piece)
                have += len(piece)
                on_bytes(len(piece))
                if have > file.bytes:
                    break
    return have


def _may_pass(error: Exception) -> bool:
    """Whether asking once more can help: a cut line, or a server that is busy or ill."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status is None or status in (408, 429) or status >= 500


def _http_errors() -> tuple[type[Exception], ...]:
    """The base of every failure of the HTTP library under huggingface_hub, which changes with its version."""
    from huggingface_hub import errors

    return tuple(
        base for base in errors.HfHubHTTPError.__mro__ if base.__name__ == "HTTPError" and issubclass(base, Exception)
    )


def download_files(repository: str, revision: str | None, patterns: list[str]) -> Path:
    """Fetch those files of a hub repository that match a pattern, or find them in the hub's cache.

    Args:
        repository: OWNER/NAME.
        revision: branch, tag or commit; None takes the newest.
        patterns: as in a shell, of paths in the repository.
    Returns:
        The folder in the hub's cache.
    Raises:
        ModelError: not reachable, not found, gated or not cached while offline.
    """
    with explained_failures(repository, revision):
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))


@contextmanager
def explained_failures(repository: str, revision: str | None = None) -> Iterator[None]:
    """Turn every failure of the hub, of the way to it and of the disk into one line with a hint.

    Raises:
        ModelError: in the place of what was raised.
    """
    from huggingface_hub import errors

    try:
        yield
    # From the special to the general.
    except errors.GatedRepoError as error:
        raise ModelError(
            f"the hub repository {repository} asks for consent to its licence",
            hint=f"agree on its page {_PAGES}/{repository}, then type `hf auth login`; or give a local folder",
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        where = repository if revision is None else f"{repository} at revision {revision}"
        raise ModelError(
            f"the hub has no repository {where}, or it is private",
            hint="check its name; type `hf auth login` if it is private; or give a local folder",
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise _unreachable(repository) from error
    except (errors.HfHubHTTPError, errors.HFValidationError, errors.XetDownloadError) as error:
        raise _unfetched(repository, error) from error
    except _http_errors() as error:
        raise _unreachable(repository) from error
    except OSError as error:
        raise _unfetched(repository, error) from error


def _unreachable(repository: str) -> ModelError:
    return ModelError(
        f"{repository} is not in the hub's cache and the hub cannot be reached",
        hint="connect to the network and unset HF_HUB_OFFLINE, or give a local folder",
    )


def _unfetched(repository: str, error: Exception) -> ModelError:
    # An address may carry a password, or a signature that stands for a token.
    reason = re.sub(r"(?<=://)[^/\s@]*@|\?\S*", "", str(error).strip().partition("\n")[0])
    return ModelError(f"{repository} cannot be fetched from the hub: {reason}")
