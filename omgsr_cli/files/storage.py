"""Files on storages of the network, through fsspec: looked at, listed page by page, fetched and put."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, BinaryIO

from omgsr_cli.errors import ExistsError, FileError, UsageError
from omgsr_cli.files.addresses import Address, Location, without_secrets

# A record lies at the head or the end of a file, and is short.
_BLOCK_BYTES = 1 << 16

# There what is put is there whole or not at all; elsewhere it is put under another name first.
_WHOLE_PUTS = frozenset(("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "hf", "memory"))

# What the libraries behind fsspec raise beside OSError; a library that is not loaded has raised nothing.
_FOREIGN_ERRORS = (
    ("botocore.exceptions", "BotoCoreError"),
    ("botocore.exceptions", "ClientError"),
    ("aiohttp", "ClientError"),
    ("google.auth.exceptions", "GoogleAuthError"),
    ("gcsfs.retry", "HttpError"),
    ("azure.core.exceptions", "AzureError"),
    ("httpx2", "HTTPError"),
    ("httpx", "HTTPError"),
    ("requests", "RequestException"),
)

_TOLD_OF_CONTENT = (
    *("size", "ETag", "etag", "generation", "version_id", "blob_id"),
    *("LastModified", "last_modified", "mtime", "updated", "created"),
)


@dataclass(frozen=True)
class Entry:
    """What a storage says of an address.

    Attributes:
        is_folder: whether something lies below it.
        stamp: changes when the file does: its ETag, version or time, and size.
    """

    is_folder: bool
    stamp: str


def check_address(address: Address) -> None:
    """Look whether this program can reach such a storage; nothing is connected.

    Raises:
        UsageError: nobody knows the scheme, or a library for it is not installed.
    """
    if address.scheme == "file":
        raise UsageError(f"{address} is a path", "give the path without file://")
    _open(address)


def look_at(address: Address) -> Entry | None:
    """What lies at an address; None if nothing does.

    Raises:
        FileError: the storage does not answer, or refuses.
    """
    with _told(address, "read"):
        system, path = _open(address)
        try:
            found = system.info(path)
        except FileNotFoundError:
            return None
    return Entry(found["type"] == "directory", _stamp(found))


@contextmanager
def reading(address: Address) -> Iterator[BinaryIO]:
    """Open a file where it lies; what is read in it is fetched in small parts.

    Raises:
        FileError: it is not there, or cannot be read.
    """
    with _told(address, "read"):
        system, path = _open(address)
        with system.open(path, "rb", block_size=_BLOCK_BYTES) as file:
            yield file


@dataclass(frozen=True)
class LocalCopy:
    """What was fetched of a file.

    Attributes:
        path: where it lies.
        stamp: as of `Entry`, from before it was fetched; empty for a file of this machine.
    """

    path: Path
    stamp: str = ""


@contextmanager
def local_copy(source: Location) -> Iterator[LocalCopy]:
    """A file on this machine: the source itself, or a copy of what lies at an address, gone afterwards.

    Raises:
        FileError: it cannot be fetched.
    """
    if isinstance(source, Path):
        yield LocalCopy(source)
        return
    if (entry := look_at(source)) is None:
        raise FileError(f"{source}: there is no such file")
    with TemporaryDirectory(prefix="omgsr-") as folder:
        copy = Path(folder, f"copy{source.suffix}")
        with _told(source, "read"):
            system, path = _open(source)
            system.get_file(path, str(copy))
        yield LocalCopy(copy, entry.stamp)


@contextmanager
def put_when_whole(destination: Location, *, overwrite: bool) -> Iterator[Path]:
    """Where to write a file: at its destination, or for an address on this machine, from where it is put in the end.

    Raises:
        ExistsError: it is there meanwhile and may not be replaced.
        FileError: it cannot be put.
    """
    if isinstance(destination, Path):
        yield destination
        return
    with TemporaryDirectory(prefix="omgsr-") as folder:
        local = Path(folder, f"result{destination.suffix}")
        try:
            yield local
        except FileError as error:
            raise FileError(error.message.replace(str(local), str(destination)), error.hint) from error
        with _told(destination, "written"):
            _put(local, destination, overwrite)


def list_files(folder: Address, *, recursive: bool, skipped: Address | None = None) -> Iterator[Address]:
    """The files of a folder as the storage lists them, hidden ones left out; long listings come page by page.

    Args:
        folder: whose files are meant.
        recursive: whether those below its folders are, too.
        skipped: a folder that is left out if it is met.
    Raises:
        FileError: the storage does not answer, or refuses.
    """
    with _told(folder, "listed"):
        system, path = _open(folder)
    start = folder.url.rstrip("/") + "/"
    for below in _told_each(folder, _names(system, path, recursive)):
        address = Address(start + below)
        hidden = below.startswith(".") or "/." in below
        if not (hidden or (skipped is not None and address.is_relative_to(skipped))):
            yield address


def expand(pattern: Address) -> list[Address]:
    """The files that a pattern with `*`, `?` or `[...]` matches.

    Raises:
        FileError: the storage does not answer, or refuses.
    """
    with _told(pattern, "listed"):
        system, path = _open(pattern)
        found: dict[str, dict[str, Any]] = system.glob(path, detail=True)
    start = pattern.url[: pattern.url.index("://") + 3]
    names = (name for name, entry in found.items() if entry["type"] != "directory")
    return [Address(start + name.lstrip("/")) for name in names]


def _names(system: Any, path: str, recursive: bool) -> Iterator[str]:
    """Names below a folder. fsspec would hold a bucket's whole listing; where there is a way to page, it is taken."""
    pages = {"s3": _s3_pages, "gs": _gs_pages}.get(_protocol(system))
    if pages is not None:
        bucket, key = system.split_path(path)[:2]
        prefix = f"{key.rstrip('/')}/" if key else ""
        for page in pages(system, bucket, prefix, recursive):
            # An object that ends with a slash stands for a folder.
            yield from (name.removeprefix(prefix) for name in page if not name.endswith("/"))
        return
    folders = [path]
    while folders:
        entries = sorted(system.ls(folders.pop(), detail=True), key=lambda entry: str(entry["name"]))
        if recursive:
            # As a stack: what is below a folder comes before its neighbours.
            folders += [entry["name"] for entry in reversed(entries) if entry["type"] == "directory"]
        yield from (_relative(entry["name"], path) for entry in entries if entry["type"] != "directory")


def _s3_pages(system: Any, bucket: str, prefix: str, recursive: bool) -> Iterator[list[str]]:
    more: dict[str, str] = {} if recursive else {"Delimiter": "/"}
    while True:
        page = system.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **more)
        yield [entry["Key"] for entry in page.get("Contents", ())]
        if not page.get("IsTruncated"):
            return
        more["ContinuationToken"] = page["NextContinuationToken"]


def _gs_pages(system: Any, bucket: str, prefix: str, recursive: bool) -> Iterator[list[str]]:
    more: dict[str, str] = {} if recursive else {"delimiter": "/"}
    while True:
        page = system.call("GET", "b/{}/o", bucket, json_out=True, prefix=prefix, maxResults=1000, **more)
        yield [entry["name"] for entry in page.get("items", ())]
        if not page.get("nextPageToken"):
            return
        more["pageToken"] = page["nextPageToken"]


def _open(address: Address) -> tuple[Any, str]:
    try:
        import fsspec
    except ImportError as error:
        raise UsageError(f"{address}: fsspec is not installed", "pip install 'omgsr-cli[remote]'") from error
    try:
        # A listing that is kept would grow with the storage.
        system, path = fsspec.url_to_fs(address.url, use_listings_cache=False)
    except ImportError as error:
        hint = "pip install 'omgsr-cli[remote]' for s3 and gs"
        raise UsageError(f"{address}: a library for {address.scheme}:// is not installed: {error}", hint) from error
    except ValueError as error:
        if "not known" not in str(error).lower() and "unknown" not in str(error).lower():
            raise UsageError(f"{address}: {_reason(error)}") from error
        raise UsageError(
            f"{address}: there is no kind of storage called {address.scheme}", "s3://, gs://, hf:// are such"
        ) from error
    return system, str(path)


def _put(local: Path, destination: Address, overwrite: bool) -> None:
    system, path = _open(destination)
    if not overwrite and system.exists(path):
        raise _exists(destination)
    if destination.scheme in _WHOLE_PUTS:
        # Who else writes this very file writes the same; S3 refuses the second one itself.
        mode = {"mode": "create"} if _protocol(system) == "s3" and not overwrite else {}
        try:
            system.put_file(str(local), path, **mode)
        except FileExistsError as error:
            raise _exists(destination) from error
        return
    folder, _, name = path.rpartition("/")
    partial = f"{folder}/.{name[:40]}.{os.getpid()}.partial"
    system.makedirs(folder, exist_ok=True)
    try:
        system.put_file(str(local), partial)
        system.mv(partial, path)
    except BaseException:
        if system.exists(partial):
            system.rm_file(partial)
        raise


def _exists(destination: Address) -> ExistsError:
    return ExistsError(f"{destination}: exists already", "use --overwrite to replace it")


def _stamp(found: dict[str, Any]) -> str:
    told = [found.get(name) for name in ("size", "ETag", "etag", "generation", "version_id", "blob_id")]
    times = [
        found.get(name) for name in ("LastModified", "last_modified", "mtime", "updated", "created", "last_commit")
    ]
    return "-".join(str(value) for value in (*told, *times) if value is not None)


def _protocol(system: Any) -> str:
    names: str | tuple[str, ...] = system.protocol
    return names if isinstance(names, str) else names[0]


def _relative(name: str, folder: str) -> str:
    return name.strip("/").removeprefix(folder.strip("/")).lstrip("/")


@contextmanager
def _told(address: Address, what: str) -> Iterator[None]:
    """Turn what a storage raises into a `FileError` of one line, without what is secret in it."""
    try:
        yield
    except FileError:
        raise
    except _errors() as error:
        raise FileError(f"{address}: cannot be {what}: {_reason(error)}") from error


def _told_each(folder: Address, names: Iterator[str]) -> Iterator[str]:
    while True:
        with _told(folder, "listed"):
            name = next(names, None)
        if name is None:
            return
        yield name


def _errors() -> tuple[type[BaseException], ...]:
    # asyncio's are here as fsspec runs its requests there.
    found: list[type[BaseException]] = [OSError, TimeoutError]
    for module, name in _FOREIGN_ERRORS:
        kind = getattr(sys.modules.get(module), name, None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            found.append(kind)
    return tuple(found)


def _reason(error: BaseException) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, PermissionError):
        return "not allowed"
    lines = str(error).strip().splitlines()
    return without_secrets(lines[0]) if lines else type(error).__name__
