"""What lies below a folder on a storage of the network, listed page by page."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from omgsr_cli.files.addresses import Address, parse_address
from omgsr_cli.files.storage import open_storage, protocol
from omgsr_cli.files.storage_errors import told


def list_files(
    folder: Address,
    *,
    recursive: bool,
    skipped: Address | None = None,
    on_folder: Callable[[Address], None] = lambda _: None,
) -> Iterator[Address]:
    """The files of a folder as the storage lists them, hidden ones left out; long listings come page by page.

    Args:
        folder: whose files are meant.
        recursive: whether those below its folders are, too.
        skipped: a folder that is left out if it is met.
        on_folder: told of each folder in it whose files are not meant.
    Raises:
        FileError: the storage does not answer, or refuses.
    """
    with told(folder, "listed"):
        system, path = open_storage(folder)
    start = folder.url.rstrip("/") + "/"
    for below in _told_each(folder, _names(system, path, recursive)):
        address = Address(start + below)
        hidden = below.startswith(".") or "/." in below
        if hidden or (skipped is not None and address.is_relative_to(skipped)):
            continue
        if not below.endswith("/"):
            yield address
        elif not recursive:
            on_folder(parse_address(address.url))


def expand(pattern: Address) -> list[Address]:
    """The files that a pattern with `*`, `?` or `[...]` matches.

    Raises:
        FileError: the storage does not answer, or refuses.
    """
    with told(pattern, "listed"):
        system, path = open_storage(pattern)
        found: dict[str, dict[str, Any]] = system.glob(path, detail=True)
    start = pattern.url[: pattern.url.index("://") + 3]
    names = (name for name, entry in found.items() if entry["type"] != "directory")
    return [Address(start + name.lstrip("/")) for name in names]


def _names(system: Any, path: str, recursive: bool) -> Iterator[str]:
    """Names below a folder, those of folders with a slash.

    fsspec would hold a bucket's whole listing; where there is a way to page, it is taken.
    """
    pages = {"s3": _s3_pages, "gs": _gs_pages}.get(protocol(system))
    if pages is not None:
        bucket, key = system.split_path(path)[:2]
        prefix = f"{key.rstrip('/')}/" if key else ""
        for page in pages(system, bucket, prefix, recursive):
            # The folder itself may be an object too.
            yield from (name.removeprefix(prefix) for name in page if name != prefix)
        return
    folders = [path]
    while folders:
        entries = sorted(system.ls(folders.pop(), detail=True), key=lambda entry: str(entry["name"]))
        if recursive:
            # As a stack: what is below a folder comes before its neighbours.
            folders += [entry["name"] for entry in reversed(entries) if entry["type"] == "directory"]
        for entry in entries:
            # Some list the folder itself too.
            if name := _relative(entry["name"], path):
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


def _relative(name: str, folder: str) -> str:
    return name.strip("/").removeprefix(folder.strip("/")).lstrip("/")


def _told_each(folder: Address, names: Iterator[str]) -> Iterator[str]:
    while True:
        with told(folder, "listed"):
            name = next(names, None)
        if name is None:
            return
        yield name
