"""From a preset's name to a merged folder that is kept: each step checked before the next, and taken up again."""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from omgsr_cli import __version__
from omgsr_cli.errors import ModelError, reason_of
from omgsr_cli.files.manifest import FileEntry, find_damage, load_manifest
from omgsr_cli.installation.adapters import get_adapter, hash_adapter
from omgsr_cli.installation.fetching import fetch_file
from omgsr_cli.models.hub import SMALL_FILES, WEIGHT_STEMS, is_repository_name, list_repository
from omgsr_cli.models.sources import find_model
from omgsr_cli.presets import Preset
from omgsr_cli.store import licences
from omgsr_cli.store.listing import Listing, RemoteFile, choose_files, find_disagreement
from omgsr_cli.store.locations import models_folder
from omgsr_cli.store.provenance import Origin, Provenance

_SPARE_BYTES = 64 << 20


class PullTalk(Protocol):
    """What a person is told and asked while a model is fetched."""

    def note(self, text: str) -> None:
        """Something worth knowing."""
        ...

    def agree(self, question: str) -> None:
        """Ask; raise where the answer is no, or where nobody can be asked."""
        ...

    def download(self, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """Show the bytes that come, of so many; the function is told how many more have come."""
        ...


@dataclass(frozen=True)
class _Base:
    """Where the base model comes from.

    Attributes:
        place: folder or repository, as it goes into the record.
        listing: None for a folder, or a repository in the hub's cache, that the user named.
        files: of the listing that are fetched.
    """

    place: str
    listing: Listing | None
    files: tuple[RemoteFile, ...] = ()

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


def pull_model(
    preset: Preset, talk: PullTalk, *, base: str | None = None, adapter: Path | None = None, full: bool = False
) -> Path:
    """Make a preset ready: fetch its base and its adapter, merge them once, and keep the merged folder.

    Args:
        preset: of the SD family, or an embedded one, for which nothing is done.
        talk: is told and asked.
        base: folder or repository in the place of the preset's sources.
        adapter: folder or ZIP archive in the place of Google Drive.
        full: fetch and keep full precision where the sources have fp16 too.
    Returns:
        The folder of the model.
    Raises:
        ModelError: something cannot be had, or is not what it should be. What came so far is kept for the next call.
    """
    if preset.folder is not None:
        talk.note(f"{preset.name} lies in the package: nothing to fetch")
        return preset.folder
    store = models_folder()
    target = store / preset.name
    try:
        store.mkdir(parents=True, exist_ok=True)
        with _only_one(store / f".{preset.name}.lock", talk):
            if _is_whole(target, talk):
                talk.note(f"{preset.name} is here already")
                return target
            scratch = store / f".fetch-{preset.name}"
            scratch.mkdir(mode=0o700, exist_ok=True)
            _pull(preset, talk, scratch, target, base, adapter, full)
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise ModelError(f"{store} cannot be used: {reason_of(error)}", hint=_elsewhere(store)) from error
    return target


def _pull(
    preset: Preset, talk: PullTalk, scratch: Path, target: Path, base: str | None, adapter: Path | None, full: bool
) -> None:
    with tempfile.TemporaryDirectory(dir=scratch, prefix="adapter-") as unpacked:
        # Its name goes into the model's record.
        place = Path(unpacked) / (f"{preset.name}-adapter" if adapter is None else adapter.stem)
        place.mkdir()
        adapter_folder = get_adapter(preset, adapter, place)
        chosen = _choose_base(preset, base, talk, full)
        _show_licences(preset, chosen, target.parent, talk)
        _check_room(chosen, target.parent)
        base_folder = _fetch(chosen, scratch, talk)
        talk.note("merging the adapter into the base, once")
        # torch takes its time: what is here already, refused or interrupted has not waited for it.
        from omgsr_cli.installation.merging import write_merged

        source = find_model(preset.name, base=base_folder, adapter=adapter_folder)
        record = source.record.model_copy(update={"licence": _licence(preset, chosen)})
        source = dataclasses.replace(source, name=chosen.place, record=record)
        half = any(file.path.endswith(".fp16.safetensors") for file in chosen.files)
        origins = (_origin_of_base(preset, chosen), _origin_of_adapter(preset, adapter, adapter_folder))
        if target.exists():
            # Damaged, or it would have been kept; what replaces it is ready to be written.
            shutil.rmtree(target)
        write_merged(source, target, half=half, provenance=Provenance(omgsr=__version__, origins=origins))


def _is_whole(folder: Path, talk: PullTalk) -> bool:
    """Whether the model is here and every byte of it right."""
    if not folder.is_dir():
        return False
    try:
        damage = find_damage(folder, load_manifest(folder))
    except ModelError as error:
        damage = (error.message,)
    for line in damage:
        talk.note(f"note: {line}; it is made anew")
    return not damage


@contextmanager
def _only_one(lock: Path, talk: PullTalk) -> Iterator[None]:
    """Let one process at a time work on a model; another waits, and finds it done."""
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # documented, though not in its __all__

    try:
        held = WeakFileLock(lock, timeout=0.1)
        held.__enter__()
    except TimeoutError:
        talk.note("another omgsr is fetching this model: waiting for it")
        held = WeakFileLock(lock)
        held.__enter__()
    try:
        yield
    finally:
        held.__exit__(None, None, None)


def _choose_base(preset: Preset, base: str | None, talk: PullTalk, full: bool) -> _Base:
    """The folder that was named, or the first source that answers, compared with the others that do."""
    if base is not None and (Path(base).is_dir() or not is_repository_name(base)):
        return _Base(base, None)
    sources = (base,) if base is not None else preset.base_sources
    listings: list[Listing] = []
    reasons: list[ModelError] = []
    for repository in sources:
        try:
            listings.append(list_repository(repository, preset.revision))
        except ModelError as error:
            reasons.append(error)
            talk.note(f"note: {error.message}")
    if not listings:
        raise ModelError(
            f"no source gives the base of {preset.name}: {reasons[0].message}",
            hint="; or ".join(filter(None, (reasons[0].hint, "give its folder with --base"))),
        )
    first, *others = listings
    files = choose_files(first, SMALL_FILES, WEIGHT_STEMS, full=full)
    for other in others:
        differs = find_disagreement(files, other)
        if differs is not None:
            raise ModelError(
                f"{first.repository} and {other.repository} do not agree on {differs}: one of them was changed",
                hint=f"decide which one you trust, then: omgsr models pull {preset.name} --base OWNER/NAME",
            )
    if first.repository in preset.personal_sources and base is None:
        talk.agree(f"{first.repository} is a private person's copy, and no other source answers; use it?")
    return _Base(first.repository, first, files)


def _show_licences(preset: Preset, base: _Base, store: Path, talk: PullTalk) -> None:
    licence = _licence(preset, base)
    if base.listing is not None and not licences.was_shown(store, base.place, licence):
        talk.note(f"{base.place} is under the licence {licence}; read it on its page before you use the pictures")
        licences.remember_shown(store, base.place, licence)


def _licence(preset: Preset, base: _Base) -> str:
    return (base.listing.licence if base.listing is not None else None) or preset.licence


def _check_room(base: _Base, store: Path) -> None:
    """Refuse before the first byte what will not fit: what is fetched, and the merged folder beside it."""
    have = sum(path.stat().st_size for path in store.glob(".fetch-*/base/**/*") if path.is_file())
    needed = max(2 * base.bytes - have, 0) + _SPARE_BYTES if base.files else _SPARE_BYTES
    free = shutil.disk_usage(store).free
    if free < needed:
        raise ModelError(
            f"{store} has {free >> 20} MiB free, and {needed >> 20} MiB are needed", hint=_elsewhere(store)
        )


def _fetch(base: _Base, scratch: Path, talk: PullTalk) -> str:
    """Fetch the base's files; the folder, or the repository that the user named, as `find_model` takes it."""
    if base.listing is None:
        return base.place
    # What another source or commit left is of no use to this one.
    folder = scratch / "base" / base.listing.revision
    for stale in (scratch / "base").glob("*"):
        if stale != folder:
            shutil.rmtree(stale, ignore_errors=True)
    with talk.download(base.bytes) as on_bytes:
        for file in base.files:
            fetch_file(base.listing, file, folder, on_bytes)
    return str(folder)


def _origin_of_base(preset: Preset, base: _Base) -> Origin:
    return Origin(
        what="base",
        place=base.place,
        revision=base.listing.revision if base.listing is not None else None,
        licence=_licence(preset, base),
        files={file.path: FileEntry(bytes=file.bytes, sha256=file.sha256) for file in base.files if file.sha256},
    )


def _origin_of_adapter(preset: Preset, given: Path | None, folder: Path) -> Origin:
    place = f"Google Drive folder {preset.adapter_drive}" if given is None else str(given)
    return Origin(what="adapter", place=place, files=hash_adapter(folder, preset))


def _elsewhere(store: Path) -> str:
    return f"make room, or keep models elsewhere: export OMGSR_HOME=/another/folder (now {store.parent})"
