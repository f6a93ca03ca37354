"""`--push-to-hub`: a hub repository with a model, its card and its manifest, and nothing of the person's machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from hashlib import sha256
from pathlib import Path
from typing import Any

from omgsr_cli.errors import ModelError, OmgsrError, UsageError, reason_of
from omgsr_cli.files.addresses import without_secrets
from omgsr_cli.models.adapter_files import CONFIG_NAME
from omgsr_cli.models.record import RECORD_NAME, load_record, read_json
from omgsr_cli.models.weight_files import check_file_finite
from omgsr_cli.store.hub import http_errors, is_repository_name
from omgsr_cli.store.manifest import MANIFEST_NAME, FileEntry, Manifest, read_entry, to_json
from omgsr_cli.training.checkpoints import verify_checkpoint
from omgsr_cli.training.model_card import CARD_NAME, build_card, hide_path

_PARTS = ("unet", "vae", "scheduler", "text_encoder", "tokenizer", "*_adapter")
_KINDS = (".safetensors", ".json", ".txt")
_FILES = (RECORD_NAME, CARD_NAME, "config.json", "model.safetensors", "prompt_embeds.safetensors")
"""What of a checkpoint or model folder is published: not the optimisers, nor the configuration with its paths."""

_PATH_KEYS = ("_name_or_path", "base_model_name_or_path", "base", "made_from")
_WITH_PATHS = (RECORD_NAME, "config.json", CONFIG_NAME)


def prepare_repository(repository: str, *, private: bool = False) -> str:
    """Make a hub repository if it is not there yet; before a training, so that a missing token is told then.

    Args:
        repository: OWNER/NAME.
        private: only its owner sees it.
    Returns:
        The address of its page.
    Raises:
        UsageError: the name is none of a repository.
        OmgsrError: the hub refuses, cannot be reached, or the repository is there and public.
    """
    if not is_repository_name(repository):
        raise UsageError(f"{repository!r} is not the name of a hub repository", "give OWNER/NAME")
    from huggingface_hub import HfApi

    api = HfApi()
    with _told(repository):
        url = api.create_repo(repository, private=private, exist_ok=True)
        public = private and not api.model_info(repository).private
    if public:
        raise OmgsrError(
            f"the hub repository {repository} is there and is public, but a private one was asked for",
            "give another name, or make it private in its settings",
        )
    return str(url)


def push_to_hub(
    folder: Path,
    repository: str,
    *,
    private: bool = False,
    message: str | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> str:
    """Publish a checkpoint's model or a merged folder in one commit: weights, record, card, manifest.

    Args:
        folder: a checkpoint, a merged model or an adapter.
        repository: OWNER/NAME; it is made if it is not there yet.
        private: only its owner sees it.
        message: of the commit.
        note: told how much is uploaded, before it is.
    Returns:
        The address of the commit.
    Raises:
        ModelError: the folder is not whole or is not a model.
        UsageError: the name is none of a repository.
        OmgsrError: the hub refuses or cannot be reached.
    """
    if (folder / MANIFEST_NAME).is_file():
        verify_checkpoint(folder)
    contents = collect_files(folder)
    prepare_repository(repository, private=private)
    from huggingface_hub import CommitOperationAdd, HfApi

    operations = [
        CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
        for name, content in contents.items()
    ]
    size_bytes = sum(len(each) if isinstance(each, bytes) else each.stat().st_size for each in contents.values())
    note(f"uploading {len(contents)} files, {size_bytes / 2**20:.1f} MiB, to {repository}")
    with _told(repository), _without_bars():
        done = HfApi().create_commit(
            repository, operations, commit_message=message or f"Upload {folder.resolve().name} with omgsr"
        )
    return str(done.commit_url)


def collect_files(folder: Path) -> dict[str, Path | bytes]:
    """List what is published of a folder: name in the repository to the file, or to its content where that is changed.

    Raises:
        ModelError: the folder has no `omgsr.json`, none of its files are weights, or a weight is not finite.
    """
    record = load_record(folder)
    if record is None:
        raise ModelError(f"{folder} has no {RECORD_NAME}", "give a checkpoint, or what `--export merged` wrote")
    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    contents: dict[str, Path | bytes] = {name: _content(folder, name) for name in names if _is_published(name)}
    if not any(name.endswith(".safetensors") and name != "prompt_embeds.safetensors" for name in contents):
        raise ModelError(f"{folder} has no weights to publish")
    for path in contents.values():
        if isinstance(path, Path) and path.suffix == ".safetensors":
            check_file_finite(path)
    contents.setdefault(CARD_NAME, build_card(record).encode())
    entries = {name: _entry(content) for name, content in contents.items()}
    contents[MANIFEST_NAME] = to_json(Manifest(files=entries)).encode()
    return contents


def _is_published(name: str) -> bool:
    part, _, rest = name.partition("/")
    if not rest:
        return name in _FILES
    return any(fnmatch(part, pattern) for pattern in _PARTS) and Path(name).suffix in _KINDS


def _content(folder: Path, name: str) -> Path | bytes:
    path = folder / name
    if path.name not in _WITH_PATHS:
        return path
    options = read_json(path)
    shown = options | {key: _without_place(key, options[key]) for key in _PATH_KEYS if key in options}
    return path if shown == options else (json.dumps(shown, indent=2, ensure_ascii=False) + "\n").encode()


def _without_place(key: str, value: Any) -> Any:
    """Give a value without this machine's folders in it."""
    if isinstance(value, list):
        return [_without_place(key, item) for item in value]
    if not isinstance(value, str) or hide_path(value) == value:
        return value
    # A base in a folder here is none for others, who are asked for theirs.
    return None if key == "base" else hide_path(value)


def _entry(content: Path | bytes) -> FileEntry:
    if isinstance(content, Path):
        return read_entry(content)
    return FileEntry(bytes=len(content), sha256=sha256(content).hexdigest())


@contextmanager
def _told(repository: str) -> Iterator[None]:
    """Tell the hub's errors in one line, from the special to the general."""
    from huggingface_hub import errors

    try:
        yield
    except (errors.OfflineModeIsEnabled, errors.LocalTokenNotFoundError) as error:
        raise _refusal(repository, error) from error
    except errors.HfHubHTTPError as error:
        raise _refusal(repository, error) from error
    except http_errors() as error:
        raise OmgsrError(
            f"the hub cannot be reached for {repository}: {_reason(error)}", "connect to the network and push again"
        ) from error
    # What uploads of single files fail with.
    except (RuntimeError, ValueError, OSError) as error:
        cause = error.__cause__ or error
        raise OmgsrError(f"{repository} cannot be written on the hub: {_reason(cause)}", _AGAIN) from error


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep the hub's library from drawing on the terminal: a bar that an error breaks off would run into its line."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    were_off = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not were_off:
            enable_progress_bars()


_AGAIN = "nothing was committed: push again"
_LOGIN = "type `hf auth login` with a token that may write"


def _refusal(repository: str, error: Exception) -> OmgsrError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status == 401:
        return OmgsrError(f"the hub does not know who you are, and {repository} cannot be written", _LOGIN)
    if status == 403:
        return OmgsrError(f"your token may not write the hub repository {repository}", _LOGIN)
    if status is None:
        return OmgsrError(f"{repository} cannot be pushed: {_reason(error)}", "unset HF_HUB_OFFLINE, or push later")
    return OmgsrError(f"the hub refuses {repository}: {_reason(error)}", _AGAIN)


def _reason(error: BaseException) -> str:
    # Addresses of the hub's stores are signed.
    return without_secrets(reason_of(error))
