"""Write a file so that it is whole or absent."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterable
from pathlib import Path

from omgsr_cli.errors import ExistsError, FileError, reason_of

#: Suffix of a file in work; such a name also starts with a dot, so folders of pictures do not show it.
PARTIAL_SUFFIX = ".partial"

_REASONS = {
    errno.ENOSPC: ("the disk is full", "free some space, or write to another disk"),
    errno.EDQUOT: ("your disk quota is used up", "free some space, or write to another disk"),
    errno.EACCES: ("not allowed to write there", "write to a folder where you may"),
    errno.EPERM: ("not allowed to write there", "write to a folder where you may"),
    errno.EROFS: ("the disk is read-only", "write to a folder where you may"),
    errno.ENAMETOOLONG: ("the name is too long", "give a shorter name"),
    errno.ENOTDIR: ("a part of its path is a file, not a folder", "write to another folder"),
    errno.EEXIST: ("a part of its path is a file, not a folder", "write to another folder"),
    errno.EISDIR: ("it is a folder", "give the name of a file"),
}

#: What a file system without hard links answers to os.link.
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EINVAL}


def write_error(name: object, error: OSError) -> FileError:
    """Say in one line why a file could not be written."""
    reason, hint = _REASONS.get(error.errno or 0, (reason_of(error), None))
    return FileError(f"{name}: cannot be written: {reason}", hint)


def exists_error(path: Path) -> ExistsError:
    """Say that a file is already there."""
    return ExistsError(f"{path}: exists already", "use --overwrite to replace it")


def write_atomically(path: Path, parts: Iterable[bytes | memoryview], *, overwrite: bool = False) -> None:
    """Write a file beside its place under a private name, then put it there in one step.

    The folder is made if it is missing. On any failure, an interruption included, the private file is removed.
    Permissions follow the umask, as those of any new file.

    Args:
        path: the file's place.
        parts: its content in order.
        overwrite: whether a file already there is replaced; False never touches it, even if it appears meanwhile.
    Raises:
        ExistsError: it exists and may not be replaced.
        FileError: it cannot be written.
    """
    if os.path.isdir(path):
        raise write_error(path, IsADirectoryError(errno.EISDIR, "Is a directory"))
    if not overwrite and os.path.lexists(path):
        raise exists_error(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = _partial_path(path)
        try:
            _write_and_sync(partial, parts)
            _publish(partial, path, overwrite)
        finally:
            partial.unlink(missing_ok=True)
    except OSError as error:
        raise write_error(path, error) from error


def _partial_path(path: Path) -> Path:
    # A name may have 255 bytes, and a character four; its first 40 characters are enough to know it by.
    return path.with_name(f".{path.name[:40]}.{os.getpid()}-{secrets.token_hex(4)}{PARTIAL_SUFFIX}")


def _write_and_sync(partial: Path, parts: Iterable[bytes | memoryview]) -> None:
    with open(partial, "xb") as file:
        for part in parts:
            file.write(part)
        file.flush()
        os.fsync(file.fileno())


def _publish(partial: Path, path: Path, overwrite: bool) -> None:
    """Give the finished file its name; without `overwrite`, the system refuses if the name is taken."""
    if overwrite:
        os.replace(partial, path)
        return
    try:
        os.link(partial, path)
    except FileExistsError as error:
        raise exists_error(path) from error
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        _publish_without_links(partial, path)


def _publish_without_links(partial: Path, path: Path) -> None:
    """Reserve the name with an empty file that only one process can make, then replace that."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError as error:
        raise exists_error(path) from error
    try:
        os.replace(partial, path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
