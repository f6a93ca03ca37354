"""Install a model: fetch base and adapter, check them, and merge them once. Every step can be resumed."""

from __future__ import annotations

import dataclasses
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path

from omgsr_cli import __version__
from omgsr_cli.errors import ModelError, UsageError, reason_of
from omgsr_cli.files.atomic import partial_folder
from omgsr_cli.installation.adapters import get_adapter, hash_adapter
from omgsr_cli.models.families import REPOSITORY_FILES, recognise_model
from omgsr_cli.models.family import ModelSource
from omgsr_cli.models.record import write_record
from omgsr_cli.models.sources import find_model
from omgsr_cli.options import ModelOptions
from omgsr_cli.presets import FeatureNetwork, NetworkFile, Preset
from omgsr_cli.store.hub import (
    Listing,
    RemoteFile,
    choose_files,
    download_files,
    fetch_file,
    fetch_url,
    find_disagreement,
    is_repository_name,
    list_repository,
)
from omgsr_cli.store.installed import Origin, Provenance, first_sight_of, models_folder, write_provenance
from omgsr_cli.store.manifest import FileEntry, find_damage, load_manifest, write_manifest

_SPARE_BYTES = 64 << 20


@dataclass(frozen=True)
class PullTalk:
    """Messages and questions while a model is fetched.

    Attributes:
        note: shows a note.
        agree: asks, and raises if the answer is no or nobody can be asked.
        download: shows the progress of a number of bytes; its function receives the bytes fetched since its last call.
    """

    note: Callable[[str], None]
    agree: Callable[[str], None]
    download: Callable[[int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class _Base:
    """Where the base model comes from.

    Attributes:
        place: folder or repository, as recorded.
        licence: the licence on its card, or that of the preset.
        listing: None for a folder that the user named.
        files: the files of the listing to fetch.
    """

    place: str
    licence: str
    listing: Listing | None = None
    files: tuple[RemoteFile, ...] = ()

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)


def pull_model(
    preset: Preset, talk: PullTalk, *, base: str | None = None, adapter: Path | None = None, full: bool = False
) -> Path:
    """Install a preset: fetch its base and its adapter, merge them once, and keep the merged folder.

    Args:
        preset: of the SD family, or the bundled one, which needs nothing.
        talk: shows messages and asks questions.
        base: folder or repository to use instead of the preset's sources.
        adapter: folder or ZIP archive to use instead of Google Drive.
        full: fetch and keep full precision although the sources have fp16 too.
    Returns:
        The folder of the model.
    Raises:
        ModelError: something cannot be fetched or is wrong. What was fetched so far is kept for the next call.
    """
    if preset.folder is not None:
        talk.note(f"{preset.name} is bundled; there is nothing to fetch")
        return preset.folder

    def fetch(scratch: Path, target: Path) -> None:
        _pull(preset, talk, scratch, target, base, adapter, full)

    return _install(preset.name, talk, fetch)


def pull_network(network: NetworkFile, talk: PullTalk) -> Path:
    """Install a restoration network of another project from its own release, and return its folder.

    Raises:
        ModelError: it cannot be fetched, or its size or hash is wrong. What was fetched is kept for the next call.
    """
    file = RemoteFile(f"{network.name}{Path(network.url).suffix}", network.bytes, network.sha256, None)

    def fetch(scratch: Path, target: Path) -> None:
        talk.note(f"{network.name} is under the licence {network.licence}")
        with talk.download(file.bytes) as on_bytes:
            path = fetch_url(network.url, file, scratch, on_bytes)
        entry = FileEntry(bytes=file.bytes, sha256=network.sha256)
        origin = Origin(what="weights", place=network.url, licence=network.licence, files={path.name: entry})
        with partial_folder(target) as beside:
            family = recognise_model(path)
            assert family is not None
            record = family.assume_record(path, None).model_copy(update={"licence": network.licence})
            os.replace(path, beside / path.name)
            write_record(record, beside)
            write_provenance(Provenance(omgsr=__version__, origins=(origin,)), beside)
            write_manifest(beside)
            if target.exists():
                # It is damaged, and its replacement is complete.
                shutil.rmtree(target)
            os.rename(beside, target)

    return _install(network.name, talk, fetch)


def _install(name: str, talk: PullTalk, fetch: Callable[[Path, Path], None]) -> Path:
    """Fill a model's folder, unless it is whole, while no other process does.

    Args:
        name: of the model and its folder.
        talk: shows messages.
        fetch: given a folder that keeps what was fetched until it succeeds, and the folder to write.
    """
    store = models_folder()
    target, scratch = store / name, store / f".fetch-{name}"
    try:
        store.mkdir(parents=True, exist_ok=True)
        with _only_one(store / f".{name}.lock", talk):
            if _is_whole(target, talk):
                talk.note(f"{name} is already installed")
                return target
            scratch.mkdir(mode=0o700, exist_ok=True)
            fetch(scratch, target)
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise ModelError(f"{store} cannot be used: {reason_of(error)}", hint=_elsewhere(store)) from error
    return target


def pull_features(network: FeatureNetwork, talk: PullTalk) -> Path:
    """Fetch a feature network of training into the hub's cache, where training finds it by its name.

    Raises:
        ModelError: it cannot be fetched; for a gated repository the hint names the page and the login.
    """
    listing = list_repository(network.repository)
    if listing.licence is not None:
        talk.note(f"{network.repository} is under the licence {listing.licence}; read it on its page")
    return download_files(network.repository, None, list(network.files))


def _pull(
    preset: Preset, talk: PullTalk, scratch: Path, target: Path, base: str | None, adapter: Path | None, full: bool
) -> None:
    with tempfile.TemporaryDirectory(dir=scratch, prefix="adapter-") as unpacked:
        # The record of the model contains this name.
        place = Path(unpacked) / (f"{preset.name}-adapter" if adapter is None else adapter.stem)
        place.mkdir()
        adapter_folder = get_adapter(preset, adapter, place)
        chosen = _choose_base(preset, base, talk, full)
        if chosen.listing is not None and first_sight_of(target.parent, chosen.place, chosen.licence):
            terms = f"{chosen.place} is under the licence {chosen.licence}"
            talk.note(f"{terms}; read it on its page before you use the results")
        _check_room(chosen, target.parent)
        base_folder = _fetch(chosen, scratch, talk)
        talk.note("merging the adapter into the base")
        source = find_model(ModelOptions(model=preset.name, base=str(base_folder), adapter=adapter_folder))
        record = source.record.model_copy(update={"licence": chosen.licence})
        source = dataclasses.replace(source, name=chosen.place, record=record)
        half = any(file.path.endswith(".fp16.safetensors") for file in chosen.files)
        of_base = Origin(
            what="base",
            place=chosen.place,
            revision=None if chosen.listing is None else chosen.listing.revision,
            licence=chosen.licence,
            files={file.path: FileEntry(bytes=file.bytes, sha256=file.sha256) for file in chosen.files if file.sha256},
        )
        drive = f"Google Drive folder {preset.adapter_drive}"
        files = hash_adapter(adapter_folder, preset)
        of_adapter = Origin(what="adapter", place=drive if adapter is None else str(adapter), files=files)
        provenance = Provenance(omgsr=__version__, origins=(of_base, of_adapter))
        if target.exists():
            # It is damaged, and its replacement is ready to be written.
            shutil.rmtree(target)
        write_merged(source, target, half=half, provenance=provenance)


def write_merged(
    source: ModelSource,
    folder: Path,
    *,
    half: bool = False,
    text_encoder: bool = False,
    provenance: Provenance | None = None,
) -> None:
    """Merge a model with its adapter and write a self-contained folder.

    The sums are computed in float32 and rounded once if `half` is set. The folder is written under another name, the
    manifest last, and renamed, so it is complete or absent.

    Args:
        source: from `find_model`, with or without an adapter.
        folder: must not exist yet.
        half: write float16, half the size.
        text_encoder: copy the text encoder too, so the folder supports any prompt.
        provenance: written to the folder as `sources.json`.
    Raises:
        UsageError: the folder exists.
        ModelError: the parts do not match, or the folder cannot be written.
    """
    if os.path.lexists(folder):
        raise UsageError(f"{folder} already exists", "choose another name, or remove it first")
    # Importing torch is slow; everything else here works without it.
    from omgsr_cli.models.loading import save_merged

    def finish(model: Path) -> None:
        if provenance is not None:
            write_provenance(provenance, model)
        write_manifest(model)

    save_merged(source, folder, half=half, text_encoder=text_encoder, finish=finish)


def _is_whole(folder: Path, talk: PullTalk) -> bool:
    """Whether the model is installed and undamaged."""
    if not folder.is_dir():
        return False
    try:
        damage = find_damage(folder, load_manifest(folder))
    except ModelError as error:
        damage = (error.message,)
    for line in damage:
        talk.note(f"note: {line}; installing it again")
    return not damage


@contextmanager
def _only_one(lock: Path, talk: PullTalk) -> Iterator[None]:
    """Let one process at a time install a model; another waits and finds it installed."""
    from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]  # documented, though not in its __all__

    try:
        held = WeakFileLock(lock, timeout=0.1)
        held.__enter__()
    except TimeoutError:
        talk.note("waiting for another omgsr process that is fetching this model")
        held = WeakFileLock(lock)
        held.__enter__()
    try:
        yield
    finally:
        held.__exit__(None, None, None)


def _choose_base(preset: Preset, base: str | None, talk: PullTalk, full: bool) -> _Base:
    """The named folder, or the first source that answers, compared with the others that answer."""
    if base is not None and (Path(base).is_dir() or not is_repository_name(base)):
        return _Base(base, preset.licence)
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
            f"no source provides the base of {preset.name}: {reasons[0].message}",
            hint="; or ".join(filter(None, (reasons[0].hint, "give its folder with --base"))),
        )
    first, *others = listings
    files = choose_files(first, REPOSITORY_FILES, full=full)
    for other in others:
        differs = find_disagreement(files, other)
        if differs is not None:
            raise ModelError(
                f"{first.repository} and {other.repository} do not agree on {differs}; one of them was changed",
                hint=f"choose the one you trust: omgsr models pull {preset.name} --base OWNER/NAME",
            )
    if first.repository in preset.personal_sources and base is None:
        talk.agree(f"{first.repository} is a private copy, and no other source answers; use it?")
    return _Base(first.repository, first.licence or preset.licence, first, files)


def _check_room(base: _Base, store: Path) -> None:
    """Check before fetching that the download and the merged folder beside it fit on the disk."""
    have = sum(path.stat().st_size for path in store.glob(".fetch-*/base/**/*") if path.is_file())
    needed = max(2 * base.bytes - have, 0) + _SPARE_BYTES
    free = shutil.disk_usage(store).free
    if free < needed:
        raise ModelError(f"{store} has {free >> 20} MiB free; {needed >> 20} MiB are needed", hint=_elsewhere(store))


def _fetch(base: _Base, scratch: Path, talk: PullTalk) -> str:
    """Fetch the base's files and return their folder, or the place the user named, for `find_model`."""
    if base.listing is None:
        return base.place
    # Downloads of another source or commit are useless for this one.
    folder = scratch / "base" / base.listing.revision
    for stale in (scratch / "base").glob("*"):
        if stale != folder:
            shutil.rmtree(stale, ignore_errors=True)
    with talk.download(base.bytes) as on_bytes:
        for file in base.files:
            fetch_file(base.listing, file, folder, on_bytes)
    return str(folder)


def _elsewhere(store: Path) -> str:
    return f"free some space, or store models elsewhere: export OMGSR_HOME=/another/folder (now {store.parent})"
