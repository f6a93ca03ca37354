"""Errors that a user can cause: one line with the reason, and one with the next step."""

from __future__ import annotations

import errno
import re


class OmgsrError(Exception):
    """Base class of the errors that a user can cause; its message explains the failure completely.

    Args:
        message: what is wrong, with the offending value; one line without a full stop.
        hint: what to type or change next; one line, or None if there is no next step.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(OmgsrError):
    """Options or arguments are wrong or conflict; found before any work, exit code 2."""


class FileError(OmgsrError):
    """One file cannot be read, restored or written; the batch continues."""


class UnreadableError(FileError):
    """An input cannot be read, perhaps because it is incomplete or changing."""


class ExistsError(FileError):
    """The file already exists, possibly since a moment ago; nothing was written."""


class OtherSettingsError(FileError):
    """The file is a result of another input or model, or with other settings; nothing was written."""


class ModelError(OmgsrError):
    """A model or adapter cannot be loaded or does not match."""


class UnknownModelError(ModelError, UsageError):
    """No model, base model or adapter has this name; exit code 2, like a wrong option."""


class DeviceError(OmgsrError):
    """This machine does not have the device or precision, or the device ran out of memory."""


class ShapeError(OmgsrError, ValueError):
    """A tensor does not have the documented shape, type or range."""


class NotFiniteError(OmgsrError):
    """A network returned NaN or infinity; the image fails and nothing is written for it."""


class UnknownDeviceError(DeviceError, UsageError):
    """No machine has a device of this name; exit code 2, like a wrong option."""


_NO_FILE, _NOT_READABLE = "no such file", "no permission to read it"
_READ_REASONS = {
    errno.ENOENT: _NO_FILE,
    errno.ENOTDIR: _NO_FILE,
    errno.EACCES: _NOT_READABLE,
    errno.EPERM: _NOT_READABLE,
    errno.EISDIR: "it is a folder, not a file",
    errno.EBADF: "it is closed",
    errno.ELOOP: "its symbolic links form a loop",
    errno.ENAMETOOLONG: "the name is too long",
}

_ELSEWHERE, _FREE_SPACE = "choose a folder that you can write to", "free some space, or write to another disk"
_WRITE_REASONS: dict[int, tuple[str, str | None]] = {
    errno.ENOSPC: ("the disk is full", _FREE_SPACE),
    errno.EDQUOT: ("your disk quota is used up", _FREE_SPACE),
    errno.EACCES: ("no permission to write there", _ELSEWHERE),
    errno.EPERM: ("no permission to write there", _ELSEWHERE),
    errno.EROFS: ("the disk is read-only", _ELSEWHERE),
    errno.EFBIG: ("the file is too large for the file system", "write to another disk"),
    errno.ENAMETOOLONG: ("the name is too long", "give a shorter name"),
    errno.ENOTDIR: ("a part of its path is a file, not a folder", "write to another folder"),
    errno.EEXIST: ("a part of its path is a file, not a folder", "write to another folder"),
    errno.EISDIR: ("it is a folder", "give the name of a file"),
    errno.EBADF: ("it is closed", None),
}

# Rust libraries such as safetensors put the system's error number into their message only.
_OS_NUMBER = re.compile(r"\(os error ([0-9]+)\)")


def reason_of(error: BaseException) -> str:
    """The reason of an error from the system or a library, in one line.

    This is the system's text without number and path, the first line of a library's message, or the type of an error
    without a message.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def read_reason(error: Exception) -> str:
    """Why a file cannot be read; a ValueError means that the path itself is impossible."""
    if isinstance(error, ValueError):
        return _NO_FILE
    return _READ_REASONS.get(_number_of(error), reason_of(error))


def write_reason(error: Exception) -> str:
    """Why a file cannot be written."""
    return _WRITE_REASONS.get(_number_of(error), (reason_of(error), None))[0]


def write_error(name: object, error: Exception) -> FileError:
    """The error for a file that cannot be written, with the reason and a hint."""
    reason, hint = _WRITE_REASONS.get(_number_of(error), (reason_of(error), None))
    return FileError(f"{name}: cannot be written: {reason}", hint)


def _number_of(error: Exception) -> int:
    if isinstance(error, OSError):
        return error.errno or 0
    found = _OS_NUMBER.search(str(error))
    return int(found[1]) if found else 0
