"""Fetching a model from the hub: only the files that are used, and only safetensors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from omgsr_cli.errors import ModelError
from omgsr_cli.models.families import FAMILIES
from omgsr_cli.models.record import RECORD_NAME

_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

_PAGES = "https://huggingface.co"

_SMALL_FILES = (RECORD_NAME, *dict.fromkeys(pattern for family in FAMILIES.values() for pattern in family.small_files))
_WEIGHT_STEMS = {part: stem for family in FAMILIES.values() for part, stem in family.weight_stems.items()}
# Until a repository's small files are here nobody knows its family: what any family needs is asked for.
ALL_PARTS = tuple(_WEIGHT_STEMS)


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
    folder = download_files(repository, revision, list(_SMALL_FILES))
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
    stem = f"{part}/{_WEIGHT_STEMS[part]}"
    return [
        f"{stem}{variant}.safetensors",
        f"{stem}{variant}-*.safetensors",
        f"{stem}.safetensors.index{variant}.json",
    ]


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
    from huggingface_hub import errors, snapshot_download

    # The HTTP library under huggingface_hub changes with its version; every failure of it has this base.
    http_errors: tuple[type[Exception], ...] = tuple(
        base for base in errors.HfHubHTTPError.__mro__ if base.__name__ == "HTTPError" and issubclass(base, Exception)
    )
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    # From the special to the general.
    except errors.GatedRepoError as error:
        raise ModelError(
            f"the hub repository {repository} asks for consent to its licence",
            hint=f"agree on its page {_PAGES}/{repository}, then type `hf auth login`; or give a local folder",
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        where = repository if revision is None else f"{repository} at revision {revision}"
        raise ModelError(
            f"the hub has no repository {where}, or it is private",
            hint="check its name; type `hf auth login` if it is private; or give a local folder",
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise _unreachable(repository) from error
    except (errors.HfHubHTTPError, errors.HFValidationError, errors.XetDownloadError) as error:
        raise _unfetched(repository, error) from error
    except http_errors as error:
        raise _unreachable(repository) from error
    except OSError as error:
        raise _unfetched(repository, error) from error


def _unreachable(repository: str) -> ModelError:
    return ModelError(
        f"{repository} is not in the hub's cache and the hub cannot be reached",
        hint="connect to the network and unset HF_HUB_OFFLINE, or give a local folder",
    )


def _unfetched(repository: str, error: Exception) -> ModelError:
    reason = str(error).strip().partition("\n")[0]
    return ModelError(f"{repository} cannot be fetched from the hub: {reason}")
