"""What goes wrong with the hub and on the way to it, told in one line with a hint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from omgsr_cli.errors import ModelError, reason_of
from omgsr_cli.files.addresses import without_secrets

_PAGES = "https://huggingface.co"


@contextmanager
def explained_failures(repository: str, revision: str | None = None) -> Iterator[None]:
    """Turn every failure of the hub, of the way to it and of the disk into one line with a hint.

    Raises:
        ModelError: in the place of what was raised.
    """
    from huggingface_hub import errors

    try:
        yield
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
    except http_errors() as error:
        raise _unreachable(repository) from error
    except OSError as error:
        raise _unfetched(repository, error) from error


def _unreachable(repository: str) -> ModelError:
    return ModelError(
        f"{repository} is not in the hub's cache and the hub cannot be reached",
        hint="connect to the network and unset HF_HUB_OFFLINE, or give a local folder",
    )


def _unfetched(repository: str, error: Exception) -> ModelError:
    # An address may carry a password, or a signature that stands for a token.
    reason = without_secrets(reason_of(error))
    return ModelError(f"{repository} cannot be fetched from the hub: {reason}")


def http_errors() -> tuple[type[Exception], ...]:
    """The base of every failure of the HTTP library under huggingface_hub, which changes with its version."""
    from huggingface_hub import errors

    return tuple(
        base for base in errors.HfHubHTTPError.__mro__ if base.__name__ == "HTTPError" and issubclass(base, Exception)
    )
