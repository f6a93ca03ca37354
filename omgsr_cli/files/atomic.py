"""Write files and folders so that they are complete or absent, and remove leftovers of killed processes.

Files are written under a private name in the same folder, `.NAME.HOST-PID-STARTED-TOKEN.partial`, and then renamed. The
name identifies the process, which also holds a lock on the file. So a later run can distinguish the leftovers of a
killed process on this host from the work of a running one, here or on another host that shares the folder.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from omgsr_cli.errors import ExistsError, write_error

fcntl: Any
try:
    import fcntl
except ImportError:  # Windows, which refuses to remove a file that is open anyway.
    fcntl = None

#: Suffix of unfinished files and folders; their names also start with a dot, so they are hidden.
PARTIAL_SUFFIX = ".partial"

_PARTIAL = re.compile(
    r"\..*\.(?P<host>[0-9a-f]{8})-(?P<pid>[0-9]+)-(?P<started>[0-9]+)-[0-9a-f]{8}\.partial", re.DOTALL
)

# Reserved characters, a dot or space at the end, and device names, which are reserved with any suffix.
_WINDOWS_REFUSES = re.compile(
    r'[<>:"/\\|?*\x00-\x1f]|[. ]$|^(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\.|$)', re.IGNORECASE
)

#: Error numbers of os.link on file systems without hard links.
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EINVAL}

# Tolerance for the start time of a process, because clocks are corrected.
_CLOCK_S = 10

# The unfinished files of this process, and the folders that it has cleared.
_live: set[Path] = set()
_cleared: set[Path] = set()


def exists_error(path: object) -> ExistsError:
    """The error for a file that already exists."""
    return ExistsError(f"{path}: already exists", "use --overwrite to replace it")


def write_atomically(path: Path, parts: Iterable[bytes | memoryview], *, overwrite: bool = False) -> None:
    """Write a file under a private name, then rename it.

    Missing folders are created. On any failure, including an interruption, the private file is removed. Permissions
    follow the umask.

    Args:
        path: path of the file.
        parts: its content in order.
        overwrite: replace an existing file; otherwise it is never changed, even if it appears meanwhile.
    Raises:
        ExistsError: the file exists and must not be replaced.
        FileError: the file cannot be written.
    """
    if os.path.isdir(path):
        raise write_error(path, IsADirectoryError(errno.EISDIR, "Is a directory"))
    if not overwrite and os.path.lexists(path):
        raise exists_error(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial_file(path) as partial:
            with open(partial, "r+b") as file:
                for part in parts:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            _publish(partial, path, overwrite)
    except OSError as error:
        raise write_error(path, error) from error


@contextmanager
def partial_file(path: Path) -> Iterator[Path]:
    """Create an empty private file in the same folder, to be renamed to a path; it is removed unless it was renamed.

    Raises:
        OSError: the file cannot be created.
    """
    check_name(path)
    if path.parent not in _cleared:
        _cleared.add(path.parent)
        remove_abandoned(path.parent)
    partial = path.with_name(partial_name(path.name))
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    if fcntl is None:
        # Windows has no lock to hold, and cannot rename an open file.
        os.close(descriptor)
    with _owned(partial, None if fcntl is None else descriptor):
        yield partial


@contextmanager
def partial_folder(path: Path) -> Iterator[Path]:
    """Create an empty private folder beside a path, to be filled and renamed; it is removed unless it was renamed.

    Raises:
        OSError: the folder cannot be created.
    """
    # Folders are rare and large, so remove leftovers each time.
    check_name(path)
    remove_abandoned(path.parent)
    partial = path.with_name(partial_name(path.name))
    partial.mkdir()
    with _owned(partial, None if fcntl is None else os.open(partial, os.O_RDONLY)):
        yield partial


def link_or_copy(source: Path, target: Path) -> None:
    """Create a symbolic link, or a copy if the system refuses links, which need a privilege on Windows.

    Raises:
        OSError: neither can be created.
    """
    try:
        target.symlink_to(source)
    except OSError:
        with partial_file(target) as partial:
            shutil.copyfile(source, partial)
            os.replace(partial, target)


def scratch_folder() -> AbstractContextManager[Path]:
    """Create a temporary folder, which is removed at the end or by a later run."""
    return partial_folder(Path(tempfile.gettempdir(), "omgsr"))


def check_name(path: Path) -> None:
    """Refuse names that Windows would treat as a device or as a stream of another file, or would shorten.

    Such names come from buckets, archives and folders of other systems; results with these names would be lost.

    Raises:
        OSError: this is Windows, and the name is one of these.
    """
    if sys.platform == "win32" and _WINDOWS_REFUSES.search(path.name):
        raise OSError(errno.EINVAL, "Windows does not allow this name")


def partial_name(name: str) -> str:
    """A private name that identifies its process."""
    # A name can have 255 bytes, and a character four; 40 characters are enough to recognise it.
    # After a fork the process has another number.
    owner = f"{_host()}-{os.getpid()}-{_started(os.getpid())}"
    return f".{name[:40]}.{owner}-{secrets.token_hex(4)}{PARTIAL_SUFFIX}"


def is_abandoned(name: str) -> bool:
    """Whether a private name belongs to a process of this host that has ended."""
    match = _PARTIAL.fullmatch(name)
    if match is None or match["host"] != _host():
        return False
    started = _started(int(match["pid"]))
    # Another process may have the number by now.
    return started is None or abs(started - int(match["started"])) > _CLOCK_S


def remove_abandoned(folder: Path) -> int:
    """Remove the leftovers of killed processes of this host from a folder; returns their number."""
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if entry.name.endswith(PARTIAL_SUFFIX)]
    except OSError:
        return 0
    abandoned = [folder / name for name in names if is_abandoned(name) and not _is_locked(folder / name)]
    for path in abandoned:
        _remove(path)
    return sum(not os.path.lexists(path) for path in abandoned)


def give_up_partials() -> None:
    """Remove all unfinished files of this process, before it is killed."""
    while _live:
        _remove(_live.pop())


@contextmanager
def _owned(partial: Path, descriptor: int | None) -> Iterator[None]:
    """Hold the lock that shows that this process is running; it ends with the process in any case."""
    _live.add(partial)
    try:
        if fcntl is not None and descriptor is not None:
            # Some network file systems have no locks; there, the number of the process has to suffice.
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)
        _remove(partial)
        _live.discard(partial)


def _is_locked(path: Path) -> bool:
    """Whether a process holds the lock that is not visible here, such as one in a container with the same host name."""
    if fcntl is None:
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink(missing_ok=True)


@cache
def _host() -> str:
    return hashlib.blake2b(os.fsencode(socket.gethostname()), digest_size=4).hexdigest()


def is_alive(pid: int) -> bool:
    """Whether a process of this machine is running; zombies are not."""
    return _started(pid) is not None


def _started(pid: int) -> int | None:
    """When a process began, in seconds since 1970; None if it has ended."""
    import psutil

    try:
        process = psutil.Process(pid)
        # A zombie has ended and was not waited for. Windows does not show the state of every process.
        with suppress(psutil.AccessDenied):
            if process.status() == psutil.STATUS_ZOMBIE:
                return None
        return int(process.create_time())
    except psutil.NoSuchProcess:
        return None


def _publish(partial: Path, path: Path, overwrite: bool) -> None:
    """Give the finished file its name; without `overwrite`, the system refuses if the name exists."""
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
    """Reserve the name with an empty file, which only one process can create, then replace it."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError as error:
        raise exists_error(path) from error
    try:
        os.replace(partial, path)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
