"""List, read, fetch and write files on network storage, with fsspec."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from omgsr_cli.errors import FileError, UsageError, reason_of
from omgsr_cli.files.addresses import Address, Location, parse_address, redact
from omgsr_cli.files.atomic import exists_error, is_abandoned, partial_name, scratch_folder

# Records are short and at the start or the end of a file.
_BLOCK_BYTES = 1 << 16

# Kinds of storage where a file appears complete or not at all; elsewhere it is written under another name first.
_WHOLE_PUTS = frozenset(("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oss", "hf", "memory"))

# Properties of a file that change with its content, for various kinds of storage.
_CHANGE_WITH_CONTENT = (
    *("size", "ETag", "etag", "generation", "version_id", "blob_id"),
    *("LastModified", "last_modified", "mtime", "updated", "created", "last_commit"),
)


@dataclass(frozen=True)
class Entry:
    """The information of a storage about an address.

    Attributes:
        is_folder: whether it is a folder.
        stamp: a text that changes with the file: its ETag, version or time, and size.
    """

    is_folder: bool
    stamp: str


def check_address(address: Address) -> None:
    """Check that a kind of storage is supported.

    Raises:
        UsageError: the scheme is unknown, or a library for it is not installed.
        FileError: as for `open_storage`.
    """
    if address.scheme == "file":
        raise UsageError(f"{address} is a path", "use the path without file://")
    open_storage(address)


def open_storage(address: Address) -> tuple[Any, str]:
    """The file system of fsspec for an address, and the path in it.

    Raises:
        UsageError: the scheme is unknown, or a library for it is not installed.
        FileError: the storage does not respond.
    """
    try:
        import fsspec
    except ImportError as error:
        raise UsageError(f"{address}: fsspec is not installed", "pip install 'omgsr-cli[remote]'") from error
    try:
        # Cached listings would grow with the storage. This connects to ftp:// and sftp:// immediately.
        with storage_errors(address, "reached"):
            system, path = fsspec.url_to_fs(address.url, use_listings_cache=False)
    except ImportError as error:
        hint = "pip install 'omgsr-cli[remote]' for s3 and gs"
        raise UsageError(f"{address}: a library for {address.scheme}:// is not installed: {error}", hint) from error
    except ValueError as error:
        if "not known" not in str(error).lower() and "unknown" not in str(error).lower():
            raise UsageError(f"{address}: {_reason(error)}") from error
        raise UsageError(
            f"{address}: the kind of storage {address.scheme} is unknown", "use for example s3://, gs:// or hf://"
        ) from error
    return system, str(path)


def protocol(system: Any) -> str:
    """The name of a kind of storage in fsspec: "s3", "gs", ..."""
    names: str | tuple[str, ...] = system.protocol
    return names if isinstance(names, str) else names[0]


def look_at(address: Address) -> Entry | None:
    """The information about an address; None if nothing exists there.

    Raises:
        FileError: the storage does not respond, or refuses access.
    """
    with storage_errors(address, "read"):
        system, path = open_storage(address)
        try:
            found = system.info(path)
        except FileNotFoundError as error:
            # fsspec also raises this for a web server that cannot be reached.
            if isinstance(error.__cause__, OSError) and not isinstance(error.__cause__, FileNotFoundError):
                raise error.__cause__ from error
            return None
    return Entry(found["type"] == "directory", _stamp(found))


@contextmanager
def reading(address: Address) -> Iterator[BinaryIO]:
    """Open a remote file, which is fetched in small parts as it is read.

    Raises:
        FileError: the file does not exist or cannot be read.
    """
    with storage_errors(address, "read"):
        system, path = open_storage(address)
        with system.open(path, "rb", block_size=_BLOCK_BYTES) as file:
            yield file


@dataclass(frozen=True)
class LocalCopy:
    """A local copy of a file.

    Attributes:
        path: path of the copy.
        stamp: stamp as in `Entry`, from before the file was fetched; empty for a file on this machine.
    """

    path: Path
    stamp: str = ""


@contextmanager
def local_copy(source: Location) -> Iterator[LocalCopy]:
    """A file on this machine: the source itself, or a temporary copy of the file at an address.

    Raises:
        FileError: the file cannot be fetched.
    """
    if isinstance(source, Path):
        yield LocalCopy(source)
        return
    if (entry := look_at(source)) is None:
        raise FileError(f"{source}: no such file")
    with scratch_folder() as folder:
        copy = Path(folder, f"copy{source.suffix}")
        with storage_errors(source, "read"):
            system, path = open_storage(source)
            system.get_file(path, str(copy))
        yield LocalCopy(copy, entry.stamp)


@contextmanager
def put_when_whole(destination: Location, *, overwrite: bool) -> Iterator[Path]:
    """The path to write a file to: its destination, or for an address a local file, which is uploaded at the end.

    Raises:
        ExistsError: the destination exists by now and must not be replaced.
        FileError: the file cannot be uploaded.
    """
    if isinstance(destination, Path):
        yield destination
        return
    with scratch_folder() as folder:
        local = Path(folder, f"result{destination.suffix}")
        try:
            yield local
        except FileError as error:
            raise FileError(error.message.replace(str(local), str(destination)), error.hint) from error
        with storage_errors(destination, "written"):
            _put(local, destination, overwrite)


def _put(local: Path, destination: Address, overwrite: bool) -> None:
    system, path = open_storage(destination)
    if not overwrite and system.exists(path):
        raise exists_error(destination)
    if destination.scheme in _WHOLE_PUTS:
        # Another process that writes this file writes the same content; S3 itself refuses the second one.
        mode = {"mode": "create"} if protocol(system) == "s3" and not overwrite else {}
        try:
            system.put_file(str(local), path, **mode)
        except FileExistsError as error:
            raise exists_error(destination) from error
        return
    folder, _, name = path.rpartition("/")
    system.makedirs(folder, exist_ok=True)
    _remove_abandoned(system, folder)
    partial = f"{folder}/{partial_name(name)}"
    try:
        system.put_file(str(local), partial)
        system.mv(partial, path)
    except BaseException:
        if system.exists(partial):
            system.rm_file(partial)
        raise


@cache
def _remove_abandoned(system: Any, folder: str) -> None:
    """Remove the leftovers of killed processes of this host from a remote folder, once per run."""
    for name in system.ls(folder, detail=False):
        if is_abandoned(str(name).rpartition("/")[2]):
            system.rm_file(name)


def _stamp(found: dict[str, Any]) -> str:
    return "-".join(str(found[name]) for name in _CHANGE_WITH_CONTENT if found.get(name) is not None)


def list_files(
    folder: Address,
    *,
    recursive: bool,
    skipped: Address | None = None,
    on_folder: Callable[[Address], None] = lambda _: None,
) -> Iterator[Address]:
    """The files of a folder in the order of the storage, without hidden ones; long listings are read page by page.

    Args:
        folder: the folder.
        recursive: list subfolders too.
        skipped: a folder that is skipped.
        on_folder: called with each subfolder that is not listed.
    Raises:
        FileError: the storage does not respond, or refuses access.
    """
    start = folder.url.rstrip("/") + "/"
    with storage_errors(folder, "listed"):
        system, path = open_storage(folder)
        for below in _names(system, path, recursive):
            address = Address(start + below)
            hidden = below.startswith(".") or "/." in below
            if hidden or (skipped is not None and address.is_relative_to(skipped)):
                continue
            if not below.endswith("/"):
                yield address
            elif not recursive:
                on_folder(parse_address(address.url))


def find_matches(pattern: Address) -> list[Address]:
    """The files that match a pattern with `*`, `?` or `[...]`.

    Raises:
        FileError: the storage does not respond, or refuses access.
    """
    with storage_errors(pattern, "listed"):
        system, path = open_storage(pattern)
        found: dict[str, dict[str, Any]] = system.glob(path, detail=True)
    start = pattern.url[: pattern.url.index("://") + 3]
    names = (name for name, entry in found.items() if entry["type"] != "directory")
    return [Address(start + name.lstrip("/")) for name in names]


def _names(system: Any, path: str, recursive: bool) -> Iterator[str]:
    """The names in a folder; those of folders end with a slash.

    fsspec would keep the listing of a whole bucket in memory, so listings are read in pages if the storage supports it.
    """
    pages = {"s3": _s3_pages, "gs": _gs_pages}.get(protocol(system))
    if pages is not None:
        bucket, key = system.split_path(path)[:2]
        prefix = f"{key.rstrip('/')}/" if key else ""
        for page in pages(system, bucket, prefix, recursive):
            # The folder itself can be an object, too.
            yield from (name.removeprefix(prefix) for name in page if name != prefix)
        return
    folders = [path]
    while folders:
        entries = sorted(system.ls(folders.pop(), detail=True), key=lambda entry: str(entry["name"]))
        if recursive:
            # As a stack: what is below a folder comes before its neighbours.
            folders += [entry["name"] for entry in reversed(entries) if entry["type"] == "directory"]
        for entry in entries:
            # Some kinds of storage list the folder itself, too.
            if name := entry["name"].strip("/").removeprefix(path.strip("/")).lstrip("/"):
                yield f"{name}/" if entry["type"] == "directory" else name


def _s3_pages(system: Any, bucket: str, prefix: str, recursive: bool) -> Iterator[list[str]]:
    more: dict[str, str] = {} if recursive else {"Delimiter": "/"}
    while True:
        page = system.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, **more)
        yield [entry["Key"] for entry in page.get("Contents", ())]
        yield [entry["Prefix"] for entry in page.get("CommonPrefixes", ())]
        if not page.get("IsTruncated"):
            return
        more["ContinuationToken"] = page["NextContinuationToken"]


def _gs_pages(system: Any, bucket: str, prefix: str, recursive: bool) -> Iterator[list[str]]:
    more: dict[str, str] = {} if recursive else {"delimiter": "/"}
    while True:
        page = system.call("GET", "b/{}/o", bucket, json_out=True, prefix=prefix, maxResults=1000, **more)
        yield [entry["name"] for entry in page.get("items", ())]
        yield page.get("prefixes", [])
        if not page.get("nextPageToken"):
            return
        more["pageToken"] = page["nextPageToken"]


# Exceptions of the libraries behind fsspec other than OSError; libraries that are not loaded cannot raise any.
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
    ("paramiko.ssh_exception", "SSHException"),
)


@contextmanager
def storage_errors(address: Address, what: str) -> Iterator[None]:
    """Turn the exceptions of a storage into a `FileError`.

    Args:
        address: the address.
        what: "read", "written" or "listed".
    Raises:
        FileError: the storage raised an exception.
    """
    try:
        yield
    except FileError:
        raise
    except _errors() as error:
        raise FileError(f"{address}: cannot be {what}: {_reason(error)}") from error


def _errors() -> tuple[type[BaseException], ...]:
    # Those of asyncio are included because fsspec runs its requests there.
    found: list[type[BaseException]] = [OSError, TimeoutError]
    for module, name in _FOREIGN_ERRORS:
        kind = getattr(sys.modules.get(module), name, None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            found.append(kind)
    return tuple(found)


def _reason(error: BaseException) -> str:
    """The reason in a few words."""
    if isinstance(error, FileNotFoundError):
        return "no such file"
    if isinstance(error, PermissionError):
        return "access denied"
    return redact(reason_of(error))
