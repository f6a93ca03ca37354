"""Locations of files: a `Path` on this machine, or an `Address` on network storage, and what fsspec does there."""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, BinaryIO

from omgsr_cli.errors import FileError, UsageError, reason_of
from omgsr_cli.files.atomic import exists_error, is_abandoned, partial_name, scratch_folder

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+)://(.*)", re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")
_USER = re.compile(r"(?<=://)[^/@\s]*@")
_QUERY = re.compile(r"(?<=\?)[^\s\"'<>]+")

# Schemes in which a question mark ends the name; the rest often contains a signature.
_WITH_QUERY = ("http", "https")


@dataclass(frozen=True, repr=False)
class Address:
    """A file or folder on storage that fsspec supports, such as s3://bucket/a.png, with an interface like `Path`.

    Its text is for messages and reports and does not contain a password or signature of the URL.

    Attributes:
        url: the complete URL, with secrets; not for messages.
    """

    url: str

    def __str__(self) -> str:
        return redact(self.url)

    def __repr__(self) -> str:
        return f"Address({str(self)!r})"

    @property
    def scheme(self) -> str:
        """The kind of storage in lower case: s3, gs, hf, memory, ..."""
        return self.url.partition("://")[0].lower()

    @property
    def name(self) -> str:
        """The last part; empty for a whole bucket."""
        _, slash, name = self.place.rpartition("/")
        return name if slash else ""

    @property
    def suffix(self) -> str:
        """As of `Path`."""
        return PurePath(self.name).suffix

    @property
    def stem(self) -> str:
        """As of `Path`."""
        return PurePath(self.name).stem

    @property
    def parent(self) -> Address:
        """The folder that contains it; a bucket is its own parent."""
        folder, slash, _ = self.place.rpartition("/")
        return Address(f"{self._start}{folder}") if slash else self

    def __truediv__(self, below: str | PurePath) -> Address:
        text = below if isinstance(below, str) else below.as_posix()
        return self if text in ("", ".") else Address(f"{self._start}{self.place.rstrip('/')}/{text}")

    def with_name(self, name: str) -> Address:
        """As of `Path`."""
        return self.parent / name

    def is_relative_to(self, other: Address) -> bool:
        """Whether it is the other or below it."""
        return f"{self._start}{self.place}/".startswith(f"{other._start}{other.place.rstrip('/')}/")

    def relative_to(self, other: Address) -> PurePosixPath:
        """The path below a folder that contains it."""
        return PurePosixPath(self.place.removeprefix(f"{other.place.rstrip('/')}/"))

    @property
    def _start(self) -> str:
        return self.url[: self.url.index("://") + 3]

    @property
    def place(self) -> str:
        """Bucket and key, without the query of a web URL."""
        place = self.url[self.url.index("://") + 3 :]
        return place.partition("?")[0] if self.scheme in _WITH_QUERY else place


Location = Path | Address


def is_url(text: str) -> bool:
    """Whether a text is an address and not a path; drive names are shorter than schemes."""
    return _URL.match(text) is not None


def parse_address(text: str) -> Address:
    """Parse an address; a slash at its end is ignored."""
    start = text.index("://") + 3
    return Address(text[:start] + text[start:].rstrip("/"))


def redact(text: str) -> str:
    """A text without the secrets of its URLs: users and passwords, and the queries of web addresses."""
    text = _USER.sub("…@", text)
    return _QUERY.sub("…", text) if any(f"{scheme}://" in text.lower() for scheme in _WITH_QUERY) else text


def json_text(value: object) -> str:
    r"""JSON in valid UTF-8, for any names of files.

    A byte of a name that is not UTF-8 is written as the escape of Python's lone surrogate for it, such as "\udcff":
    `os.fsencode(json.loads(text))` returns the name. Numbers that are not finite become null.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        text = json.dumps(_finite(value), ensure_ascii=False)
    return _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _finite(value: object) -> object:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value


def name_hash(name: str) -> int:
    """A hash of a file name with 8 bytes: the chance that two of a million names collide is 1 in 37 million."""
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest(), "big")


def shown(path: object) -> str:
    """A path for a one-line message, with line breaks and other control characters escaped."""
    text = str(path)
    return text if text.isprintable() else repr(text)


# --- network storage ---

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
    # Imported late, because `--help` imports this module.
    from omgsr_cli.packages import install_command

    try:
        import fsspec
    except ImportError as error:
        raise UsageError(f"{address}: fsspec is not installed", install_command("remote")) from error
    try:
        # Cached listings would grow with the storage. This connects to ftp:// and sftp:// immediately.
        with storage_errors(address, "reached"):
            system, path = fsspec.url_to_fs(address.url, use_listings_cache=False)
    except ImportError as error:
        message = f"{address}: a library for {address.scheme}:// is not installed: {error}"
        raise UsageError(message, f"for s3 and gs: {install_command('remote')}") from error
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
