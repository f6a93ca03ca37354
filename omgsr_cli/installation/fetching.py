"""One file of a repository: fetched, taken up after an interruption, and kept only if it is what was promised."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from omgsr_cli.errors import ModelError
from omgsr_cli.models.hub_errors import explained_failures, http_errors
from omgsr_cli.store.listing import Listing, RemoteFile

_ATTEMPTS = 5
"""How often nothing may come before a download is given up."""
_PAUSE_S = 1.0
_TIMEOUT_S = 30.0


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
    came = partial.stat().st_size if partial.is_file() else 0
    on_bytes(came)
    fruitless = 0
    while True:
        before = came
        try:
            came = _fetch_rest(listing, file, partial, on_bytes)
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
