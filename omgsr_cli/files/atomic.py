"""Write files and folders so that they are complete or absent, and remove what a killed process left.

Work happens under a private name, `.NAME.HOST-PID-STARTED-TOKEN.partial`, beside its place, and is then renamed. The
name states the owner, who also holds a lock on it, so that a later run can distinguish the leftovers of a process that
was killed on this host from the work of one that is alive, here or on another host that shares the folder.
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

#: Suffix of a file or folder in work; such a name also starts with a dot, so folders of images do not show it.
PARTIAL_SUFFIX = ".partial"

_PARTIAL = re.compile(
    r"\..*\.(?P<host>[0-9a-f]{8})-(?P<pid>[0-9]+)-(?P<started>[0-9]+)-[0-9a-f]{8}\.partial", re.DOTALL
)

# Reserved characters, a dot or space at the end, and devices, which are found under any suffix.
_WINDOWS_REFUSES = re.compile(
    r'[<>:"/\\|?*\x00-\x1f]|[. ]$|^(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\.|$)', re.IGNORECASE
)

#: What a file system without hard links answers to os.link.
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EINVAL}

# The time at which a process began is not known more exactly: clocks are corrected.
_CLOCK_S = 10

# What this process works on now, and the folders that it has cleared.
_live: set[Path] = set()
_cleared: set[Path] = set()


def exists_error(path: object) -> ExistsError:
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
    """Make an empty file beside a place, in which to write what is renamed to it; it is removed if it was not renamed.

    Raises:
        OSError: it cannot be made.
    """
    check_name(path)
    if path.parent not in _cleared:
        _cleared.add(path.parent)
        remove_abandoned(path.parent)
    partial = path.with_name(partial_name(path.name))
    descriptor = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
    if fcntl is None:
        # There is no lock to hold, and Windows does not rename a file that is open.
        os.close(descriptor)
    with _owned(partial, None if fcntl is None else descriptor):
        yield partial


@contextmanager
def partial_folder(path: Path) -> Iterator[Path]:
    """Make an empty folder beside a place, to fill and rename; it is removed if it was not renamed.

    Raises:
        OSError: it cannot be made.
    """
    # Rarely made, and large: what was left is removed each time.
    check_name(path)
    remove_abandoned(path.parent)
    partial = path.with_name(partial_name(path.name))
    partial.mkdir()
    with _owned(partial, None if fcntl is None else os.open(partial, os.O_RDONLY)):
        yield partial


def link_or_copy(source: Path, target: Path) -> None:
    """Make a symbolic link, or a complete copy where the system refuses links: on Windows they need a privilege.

    Raises:
        OSError: neither can be made.
    """
    try:
        target.symlink_to(source)
    except OSError:
        with partial_file(target) as partial:
            shutil.copyfile(source, partial)
            os.replace(partial, target)


def scratch_folder() -> AbstractContextManager[Path]:
    """Make a folder among the system's temporary files, which is removed at the end, or by a later run."""
    return partial_folder(Path(tempfile.gettempdir(), "omgsr"))


def check_name(path: Path) -> None:
    """Refuse a name that Windows takes for a device, a stream of another file, or without its last characters.

    Such names come from buckets, archives and folders of other systems; a result would be lost in them.

    Raises:
        OSError: this is Windows, and the name is one of these.
    """
    if sys.platform == "win32" and _WINDOWS_REFUSES.search(path.name):
        raise OSError(errno.EINVAL, "Windows allows no such name")


def partial_name(name: str) -> str:
    """A private name that states which process owns it."""
    # A name may have 255 bytes, and a character four; its first 40 characters are enough to know it by.
    # After a fork the process has another number.
    owner = f"{_host()}-{os.getpid()}-{_started(os.getpid())}"
    return f".{name[:40]}.{owner}-{secrets.token_hex(4)}{PARTIAL_SUFFIX}"


def is_abandoned(name: str) -> bool:
    """Whether a private name belongs to a process of this host that is no longer alive."""
    match = _PARTIAL.fullmatch(name)
    if match is None or match["host"] != _host():
        return False
    started = _started(int(match["pid"]))
    # Another process may have the number by now.
    return started is None or abs(started - int(match["started"])) > _CLOCK_S


def remove_abandoned(folder: Path) -> int:
    """Remove what processes of this host that were killed left in a folder; returns how much of it."""
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
    """Remove everything that this process works on: for one that is about to be killed."""
    while _live:
        _remove(_live.pop())


@contextmanager
def _owned(partial: Path, descriptor: int | None) -> Iterator[None]:
    """Hold the lock that shows that this process is alive: it ends with the process, however that ends."""
    _live.add(partial)
    try:
        if fcntl is not None and descriptor is not None:
            # Some network file systems have no locks: there the process's number must do.
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)
        _remove(partial)
        _live.discard(partial)


def _is_locked(path: Path) -> bool:
    """Whether a process holds it that this one does not see, as in a container that has the host's name."""
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
    """Whether a process of this machine runs; one that has ended and was not waited for does not."""
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
