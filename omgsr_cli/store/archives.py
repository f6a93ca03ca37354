"""Unpacking an archive that somebody downloaded: plain files below one folder, and nothing else."""

from __future__ import annotations

import shutil
import stat
import zipfile
from pathlib import Path, PurePosixPath
from typing import IO

from omgsr_cli.errors import ModelError, reason_of

_MAX_FILES = 1000
_MAX_BYTES = 16 * 2**30
"""More than any adapter has: an archive that unpacks to more is a bomb."""


def unpack_zip(archive: Path, folder: Path) -> None:
    """Unpack a ZIP archive into an empty folder.

    Every member is checked before the first is written. What is counted is what comes out, not what the archive
    says.

    Raises:
        ModelError: it is no ZIP archive, is damaged or encrypted, a member is a link or would lie outside of the
            folder, or it unpacks to more than an adapter can be.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            if len(members) > _MAX_FILES:
                raise ModelError(f"{archive} has {len(members)} files, an adapter has a handful")
            for member in members:
                _check_member(archive, member)
            left = _MAX_BYTES
            for member in members:
                left -= _write_member(opened, member, folder, left)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise ModelError(f"{archive} is no archive that can be unpacked: {error}", hint="give a .zip file") from error
    except OSError as error:
        raise ModelError(f"{archive} cannot be unpacked: {reason_of(error)}") from error


def _check_member(archive: Path, member: zipfile.ZipInfo) -> None:
    name = PurePosixPath(member.filename)
    if name.is_absolute() or ".." in name.parts or set(member.filename) & {"\\", ":", "\0"}:
        raise ModelError(f"{archive} has a file outside of its own folder: {member.filename!r}")
    # The upper half holds the mode where the archive was made on Unix.
    if stat.S_ISLNK(member.external_attr >> 16):
        raise ModelError(f"{archive} has a link: {member.filename!r}")


def _write_member(opened: zipfile.ZipFile, member: zipfile.ZipInfo, folder: Path, left: int) -> int:
    """Write one file of at most `left` bytes; how many it had."""
    target = folder.joinpath(*PurePosixPath(member.filename).parts)
    target.parent.mkdir(parents=True, exist_ok=True)
    with opened.open(member) as packed, open(target, "xb") as file:
        shutil.copyfileobj(_Limited(packed, left, member.filename), file, 1 << 20)
        return file.tell()


class _Limited:
    """A readable that refuses to give more than it may."""

    def __init__(self, file: IO[bytes], left: int, name: str) -> None:
        self._file = file
        self._left = left
        self._name = name

    def read(self, count: int = -1, /) -> bytes:
        data = self._file.read(count)
        self._left -= len(data)
        if self._left < 0:
            raise ValueError(f"{self._name!r} unpacks to more than {_MAX_BYTES >> 30} GiB")
        return data
