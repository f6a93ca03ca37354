"""Get the published adapter of a preset, from Google Drive or a local copy, and check it before large downloads."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Sequence
from pathlib import Path

from omgsr_cli.errors import ModelError, reason_of
from omgsr_cli.models.adapter_files import CONFIG_NAME, WEIGHTS_NAME, check_adapter_folder, load_lora_config
from omgsr_cli.models.families import family_of
from omgsr_cli.models.weight_files import read_header
from omgsr_cli.packages import install_command
from omgsr_cli.presets import Preset
from omgsr_cli.store.manifest import FileEntry, read_entry, stays_inside

_DRIVE = "https://drive.google.com/drive/folders/"
_MAX_FILES = 1000
_MAX_BYTES = 16 * 2**30
"""Larger than any adapter; an archive that unpacks to more is malicious."""


def get_adapter(preset: Preset, given: Path | None, scratch: Path) -> Path:
    """Find a preset's adapter and check it.

    Args:
        preset: a preset with an adapter.
        given: folder or ZIP archive that the user downloaded; None fetches the adapter from Google Drive.
        scratch: an empty folder for downloads and unpacked files.
    Returns:
        The folder with the parts of the adapter.
    Raises:
        ModelError: the adapter cannot be fetched, or is not that of the preset.
    """
    place = scratch
    if given is None:
        _fetch_from_drive(preset, scratch)
    elif given.is_dir():
        place = given
    elif given.is_file():
        _unpack_zip(given, scratch)
    else:
        raise ModelError(
            f"the folder or archive {given} does not exist", hint="use --from with a folder or a .zip file"
        )
    parts = family_of(preset, preset.name).adapter_parts
    folder = _find_parts(place, parts, str(given or f"Google Drive's folder {preset.adapter_drive}"))
    check_adapter_folder(folder, parts)
    for part, rank in zip(parts, (preset.vae_rank, preset.backbone_rank), strict=True):
        found = load_lora_config(folder / part).r
        if found != rank:
            raise ModelError(
                f"{folder / part} has rank {found}, but the adapter of {preset.name} has {rank}",
                hint="use your own adapter with --base and --adapter, or merge it with omgsr models merge",
            )
        read_header(folder / part / WEIGHTS_NAME)
    return folder


def hash_adapter(folder: Path, preset: Preset) -> dict[str, FileEntry]:
    """The sizes and hashes of the adapter's files.

    Raises:
        OSError: a file cannot be read.
    """
    parts = family_of(preset, preset.name).adapter_parts
    names = (f"{part}/{file}" for part in parts for file in (CONFIG_NAME, WEIGHTS_NAME))
    return {name: read_entry(folder / name) for name in names}


def _fetch_from_drive(preset: Preset, folder: Path) -> None:
    page = f"{_DRIVE}{preset.adapter_drive}"
    by_hand = f"download {page} by hand, then: omgsr models pull {preset.name} --from FOLDER_OR_ZIP"
    try:
        import gdown
    except ModuleNotFoundError as error:
        raise ModelError(
            "the published adapter is on Google Drive, and gdown, which fetches it, is not installed",
            hint=f"{install_command('gdrive')}, or {by_hand}",
        ) from error
    try:
        fetched = gdown.download_folder(id=preset.adapter_drive, output=f"{folder}{os.sep}", quiet=True)
    # Errors of requests are OSErrors; those of gdown have its own base class or are RuntimeErrors.
    except (OSError, RuntimeError, ValueError, gdown.exceptions.DownloadError) as error:
        reason = reason_of(error)
        raise ModelError(f"the adapter cannot be fetched from Google Drive: {reason}", hint=by_hand) from error
    if not fetched:
        raise ModelError("the adapter cannot be fetched from Google Drive", hint=by_hand)
    if any(path.is_symlink() for path in folder.rglob("*")):
        raise ModelError("the folder from Google Drive contains links, which an adapter does not have", hint=by_hand)


def _find_parts(folder: Path, parts: Sequence[str], name: str) -> Path:
    """The only folder with the parts; links are not followed, to avoid loops."""
    places = sorted(path.parent for path in folder.rglob(parts[0]))
    found = [place for place in places if all((place / part).is_dir() for part in parts)]
    if not found:
        raise ModelError(f"{name} contains no adapter", hint=f"a published adapter has the folders {', '.join(parts)}")
    if len(found) > 1:
        names = ", ".join(str(place) for place in found[:3])
        raise ModelError(f"{name} contains {len(found)} adapters: {names}", hint="use the folder of one of them")
    return found[0]


def _unpack_zip(archive: Path, folder: Path) -> None:
    """Unpack a ZIP archive into an empty folder.

    Every member is checked before the first is written. Python reads no more of one than its size in the archive.

    Raises:
        ModelError: the file is not a ZIP archive, is damaged or encrypted, a member is a link or outside the folder, or
            the content is larger than an adapter can be.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            if len(members) > _MAX_FILES:
                raise ModelError(f"{archive} has {len(members)} files, but an adapter has only a few")
            if sum(member.file_size for member in members) > _MAX_BYTES:
                raise ModelError(
                    f"{archive} unpacks to more than {_MAX_BYTES >> 30} GiB", hint="give an adapter's archive"
                )
            for member in members:
                if not stays_inside(member.filename):
                    raise ModelError(f"{archive} has a file outside of its own folder: {member.filename!r}")
                # The upper half is the file mode if the archive was made on Unix.
                if stat.S_ISLNK(member.external_attr >> 16):
                    raise ModelError(f"{archive} has a link: {member.filename!r}")
            opened.extractall(folder, members)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise ModelError(f"{archive} is not a readable ZIP archive: {error}", hint="use a .zip file") from error
    except OSError as error:
        raise ModelError(f"{archive} cannot be unpacked: {reason_of(error)}") from error
