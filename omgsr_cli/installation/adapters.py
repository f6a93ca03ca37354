"""The published adapter of a preset: from Google Drive or as the user downloaded it, checked before anything large."""

from __future__ import annotations

import os
import stat
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from omgsr_cli.errors import ModelError, reason_of
from omgsr_cli.models.adapter_files import CONFIG_NAME, WEIGHTS_NAME, check_adapter_folder, load_lora_config
from omgsr_cli.models.families import family_of
from omgsr_cli.presets import Preset
from omgsr_cli.store.headers import read_header
from omgsr_cli.store.manifest import FileEntry, read_entry, stays_inside

_DRIVE = "https://drive.google.com/drive/folders/"
_MAX_DEPTH = 4
_MAX_FILES = 1000
_MAX_BYTES = 16 * 2**30
"""More than any adapter has; an archive that unpacks to more is a bomb."""


def get_adapter(preset: Preset, given: Path | None, scratch: Path) -> Path:
    """Find a preset's adapter and check that it is the right one.

    Args:
        preset: that has an adapter.
        given: folder or ZIP archive that a person downloaded; None fetches it from Google Drive.
        scratch: an empty folder for what is fetched or unpacked.
    Returns:
        The folder with the parts of the adapter.
    Raises:
        ModelError: it cannot be had, or is another one.
    """
    place = scratch
    if given is None:
        _fetch_from_drive(preset, scratch)
    elif given.is_dir():
        place = given
    elif given.is_file():
        _unpack_zip(given, scratch)
    else:
        raise ModelError(f"there is no folder or archive {given}", hint="--from takes a folder or a .zip file")
    parts = family_of(preset, preset.name).adapter_parts
    folder = _find_parts(place, parts, str(given or f"Google Drive's folder {preset.adapter_drive}"))
    _check_adapter(folder, parts, preset)
    return folder


def hash_adapter(folder: Path, preset: Preset) -> dict[str, FileEntry]:
    """Sizes and hashes of the files that are used.

    Raises:
        OSError: one cannot be read.
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
            "the published adapter lies on Google Drive, and gdown, which fetches it, is not installed",
            hint=f"pip install 'omgsr-cli[gdrive]', or {by_hand}",
        ) from error
    try:
        fetched = gdown.download_folder(id=preset.adapter_drive, output=f"{folder}{os.sep}", quiet=True)
    # requests' errors are OSErrors; gdown's own are its exceptions' base or RuntimeErrors.
    except (OSError, RuntimeError, ValueError, gdown.exceptions.DownloadError) as error:
        reason = reason_of(error)
        raise ModelError(f"Google Drive does not give the adapter: {reason}", hint=by_hand) from error
    if not fetched:
        raise ModelError("Google Drive does not give the adapter", hint=by_hand)
    if any(path.is_symlink() for path in folder.rglob("*")):
        raise ModelError("Google Drive's folder came with links, which an adapter does not have", hint=by_hand)


def _find_parts(folder: Path, parts: Sequence[str], told: str) -> Path:
    """The one folder, not far below, that holds the parts."""
    found = [place for place in _folders_below(folder, _MAX_DEPTH) if all((place / part).is_dir() for part in parts)]
    if not found:
        raise ModelError(f"{told} holds no adapter", hint=f"a published adapter has the folders {', '.join(parts)}")
    if len(found) > 1:
        names = ", ".join(str(place) for place in found[:3])
        raise ModelError(f"{told} holds {len(found)} adapters: {names}", hint="give the folder of one of them")
    return found[0]


def _folders_below(folder: Path, depth: int) -> Iterator[Path]:
    """The folder and those below it; links are not followed, so that there is no loop."""
    yield folder
    if depth:
        for path in sorted(folder.iterdir()):
            if path.is_dir() and not path.is_symlink():
                yield from _folders_below(path, depth - 1)


def _check_adapter(folder: Path, parts: Sequence[str], preset: Preset) -> None:
    """Check that both parts are plain LoRAs of the preset's ranks, with whole weights."""
    check_adapter_folder(folder, parts)
    for part, rank in zip(parts, (preset.vae_rank, preset.backbone_rank), strict=True):
        found = load_lora_config(folder / part).r
        if found != rank:
            raise ModelError(
                f"{folder / part} has rank {found}, the adapter of {preset.name} has {rank}",
                hint="an adapter of your own is used with --base and --adapter, or made a folder by omgsr models merge",
            )
        read_header(folder / part / WEIGHTS_NAME)


def _unpack_zip(archive: Path, folder: Path) -> None:
    """Unpack a ZIP archive into an empty folder.

    Every member is checked before the first is written. Python reads no more of one than its size in the archive.

    Raises:
        ModelError: not a ZIP archive, damaged or encrypted; a member is a link or leads out of the folder; or the
            content is larger than an adapter can be.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            if len(members) > _MAX_FILES:
                raise ModelError(f"{archive} has {len(members)} files, an adapter has a handful")
            if sum(member.file_size for member in members) > _MAX_BYTES:
                raise ModelError(
                    f"{archive} unpacks to more than {_MAX_BYTES >> 30} GiB", hint="give an adapter's archive"
                )
            for member in members:
                _check_member(archive, member)
            opened.extractall(folder, members)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise ModelError(f"{archive} is not a readable ZIP archive: {error}", hint="give a .zip file") from error
    except OSError as error:
        raise ModelError(f"{archive} cannot be unpacked: {reason_of(error)}") from error


def _check_member(archive: Path, member: zipfile.ZipInfo) -> None:
    if not stays_inside(member.filename):
        raise ModelError(f"{archive} has a file outside of its own folder: {member.filename!r}")
    # The upper half holds the mode where the archive was made on Unix.
    if stat.S_ISLNK(member.external_attr >> 16):
        raise ModelError(f"{archive} has a link: {member.filename!r}")
