"""What the libraries of storages raise, told in one line without what is secret in it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from omgsr_cli.errors import FileError, reason_of
from omgsr_cli.files.addresses import Address, without_secrets

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
    ("paramiko.ssh_exception", "SSHException"),
)


@contextmanager
def told(address: Address, what: str) -> Iterator[None]:
    """Turn what a storage raises into a `FileError`.

    Args:
        address: of what is dealt with.
        what: "read", "written" or "listed".
    Raises:
        FileError: in the place of what was raised.
    """
    try:
        yield
    except FileError:
        raise
    except _errors() as error:
        raise FileError(f"{address}: cannot be {what}: {reason(error)}") from error


def _errors() -> tuple[type[BaseException], ...]:
    # asyncio's are here as fsspec runs its requests there.
    found: list[type[BaseException]] = [OSError, TimeoutError]
    for module, name in _FOREIGN_ERRORS:
        kind = getattr(sys.modules.get(module), name, None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            found.append(kind)
    return tuple(found)


def reason(error: BaseException) -> str:
    """Why, in a few words."""
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, PermissionError):
        return "not allowed"
    return without_secrets(reason_of(error))
