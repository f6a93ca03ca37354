"""The errors that a user can cause: one line that says what, and one that says what to do next."""

from __future__ import annotations


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


class UnknownDeviceError(DeviceError, UsageError):
    """A name that no device has anywhere: told like a wrong option, exit code 2."""


def reason_of(error: BaseException) -> str:
    """Why something of the system's or of a library's went wrong, in one line.

    What the system says, without its number and path; or a library's first line; or the kind of error where it says
    nothing.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
