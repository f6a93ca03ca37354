"""The errors that a user can cause: one line that says what, and one that says what to do next."""

from __future__ import annotations

import errno
import re


class OmgsrError(Exception):
    """A failure that its message explains completely.

    Args:
        message: what is wrong, with the offending value; one line, no full stop.
        hint: what to type or change next; one line, or None where the message says it.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(OmgsrError):
    """Options or arguments that do not go together; found before any work, exit code 2."""


class FileError(OmgsrError):
    """One file that cannot be read, restored or written; the batch goes on without it."""


class ExistsError(FileError):
    """A name that is taken, perhaps since a moment ago; nothing was written."""


class ModelError(OmgsrError):
    """A model, adapter or its folder that cannot be loaded or does not fit."""


class UnknownModelError(ModelError, UsageError):
    """A name that no model, base or adapter has: told like a wrong option, exit code 2."""


class DeviceError(OmgsrError):
    """A device or precision that this machine does not have."""


class ShapeError(OmgsrError, ValueError):
    """A tensor whose shape is not what the function documents."""


class NotFiniteError(OmgsrError):
    """A network gave NaN or infinity; nothing of that image is kept."""


class UnknownDeviceError(DeviceError, UsageError):
    """A name that no device has anywhere: told like a wrong option, exit code 2."""


_NO_FILE, _NOT_READABLE = "there is no such file", "not allowed to read it"
_READ_REASONS = {
    errno.ENOENT: _NO_FILE,
    errno.ENOTDIR: _NO_FILE,
    errno.EACCES: _NOT_READABLE,
    errno.EPERM: _NOT_READABLE,
    errno.EISDIR: "it is a folder, not a file",
    errno.EBADF: "it is closed",
    errno.ELOOP: "its links lead in a circle",
    errno.ENAMETOOLONG: "the name is too long for a file",
}

_ELSEWHERE, _FREE_SPACE = "write to a folder where you may", "free some space, or write to another disk"
_WRITE_REASONS: dict[int, tuple[str, str | None]] = {
    errno.ENOSPC: ("the disk is full", _FREE_SPACE),
    errno.EDQUOT: ("your disk quota is used up", _FREE_SPACE),
    errno.EACCES: ("not allowed to write there", _ELSEWHERE),
    errno.EPERM: ("not allowed to write there", _ELSEWHERE),
    errno.EROFS: ("the disk is read-only", _ELSEWHERE),
    errno.EFBIG: ("the file system takes no file that large", "write to another disk"),
    errno.ENAMETOOLONG: ("the name is too long", "give a shorter name"),
    errno.ENOTDIR: ("a part of its path is a file, not a folder", "write to another folder"),
    errno.EEXIST: ("a part of its path is a file, not a folder", "write to another folder"),
    errno.EISDIR: ("it is a folder", "give the name of a file"),
    errno.EBADF: ("it is closed", None),
}

# Libraries in Rust, such as safetensors, give the system's number in their text alone.
_OS_NUMBER = re.compile(r"\(os error ([0-9]+)\)")


def reason_of(error: BaseException) -> str:
    """Why something of the system's or of a library's went wrong, in one line.

    What the system says, without its number and path; or a library's first line; or the kind of error where it says
    nothing.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def read_reason(error: Exception) -> str:
    """Why a file cannot be read; a ValueError is one that no path can have."""
    if isinstance(error, ValueError):
        return _NO_FILE
    return _READ_REASONS.get(_number_of(error), reason_of(error))


def write_reason(error: Exception) -> str:
    """Why a file cannot be written."""
    return _WRITE_REASONS.get(_number_of(error), (reason_of(error), None))[0]


def write_error(name: object, error: Exception) -> FileError:
    """Say in one line why a file cannot be written, and what helps."""
    reason, hint = _WRITE_REASONS.get(_number_of(error), (reason_of(error), None))
    return FileError(f"{name}: cannot be written: {reason}", hint)


def _number_of(error: Exception) -> int:
    if isinstance(error, OSError):
        return error.errno or 0
    told = _OS_NUMBER.search(str(error))
    return int(told[1]) if told else 0
