"""Fetching a model from the hub: only the files that are used, and only safetensors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from omgsr_cli.models.families import FAMILIES
from omgsr_cli.models.hub_errors import explained_failures
from omgsr_cli.models.record import RECORD_NAME
from omgsr_cli.store.listing import Listing, RemoteFile

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

SMALL_FILES = (RECORD_NAME, *dict.fromkeys(pattern for family in FAMILIES.values() for pattern in family.small_files))
WEIGHT_STEMS = {part: stem for family in FAMILIES.values() for part, stem in family.weight_stems.items()}
# Until a repository's small files are here nobody knows its family: what any family needs is asked for.
ALL_PARTS = tuple(WEIGHT_STEMS)


def is_repository_name(source: str) -> bool:
    """Whether the text has the shape OWNER/NAME of a hub repository."""
    return _REPOSITORY.fullmatch(source) is not None and ".." not in source


def download_model(repository: str, revision: str | None = None, parts: Sequence[str] = ALL_PARTS) -> Path:
    """Fetch a diffusers model from the hub, or find it in the hub's cache.

    A repository without full-precision weights gives its fp16 ones.

    Args:
        repository: OWNER/NAME.
        revision: branch, tag or commit; None takes the newest.
        parts: whose weights are fetched, of those that the model has.
    Returns:
        The folder in the hub's cache.
    Raises:
        ModelError: not reachable, not found, gated or not cached while offline.
    """
    folder = download_files(repository, revision, list(SMALL_FILES))
    wanted = [part for part in parts if _needs_weights(folder, part)]
    folder = download_files(repository, revision, [pattern for part in wanted for pattern in _weight_files(part, "")])
    missing = [part for part in wanted if not any((folder / part).glob("*.safetensors"))]
    if missing:
        folder = download_files(
            repository, revision, [pattern for part in missing for pattern in _weight_files(part, ".fp16")]
        )
    return folder


def _needs_weights(folder: Path, part: str) -> bool:
    """The text encoder is not needed where the prompt's embedding lies beside the model."""
    if part == "text_encoder" and (folder / "prompt_embeds.safetensors").is_file():
        return False
    return (folder / part / "config.json").is_file()


def _weight_files(part: str, variant: str) -> list[str]:
    stem = f"{part}/{WEIGHT_STEMS[part]}"
    return [
        f"{stem}{variant}.safetensors",
        f"{stem}{variant}-*.safetensors",
        f"{stem}.safetensors.index{variant}.json",
    ]


def list_repository(repository: str, revision: str | None = None) -> Listing:
    """Ask the hub which files a repository has, with their sizes and hashes.

    Args:
        repository: OWNER/NAME.
        revision: branch, tag or commit; None takes the newest.
    Raises:
        ModelError: not reachable, not found or gated.
    """
    with explained_failures(repository, revision):
        from huggingface_hub import HfApi

        info = HfApi().model_info(repository, revision=revision, files_metadata=True)
    card = info.card_data
    named = (
        None if card is None else card.get("license_name") if card.get("license") == "other" else card.get("license")
    )
    files = tuple(
        RemoteFile(
            path=found.rfilename,
            bytes=found.size or 0,
            sha256=found.lfs.sha256 if found.lfs else None,
            git_sha1=None if found.lfs else found.blob_id,
        )
        for found in info.siblings or ()
    )
    return Listing(repository, info.sha or revision or "main", str(named) if named else None, files)


def download_files(repository: str, revision: str | None, patterns: list[str]) -> Path:
    """Fetch those files of a hub repository that match a pattern, or find them in the hub's cache.

    Args:
        repository: OWNER/NAME.
        revision: branch, tag or commit; None takes the newest.
        patterns: as in a shell, of paths in the repository.
    Returns:
        The folder in the hub's cache.
    Raises:
        ModelError: not reachable, not found, gated or not cached while offline.
    """
    with explained_failures(repository, revision):
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
