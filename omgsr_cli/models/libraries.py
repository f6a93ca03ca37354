"""Importing the large libraries, with their talk silenced and their known failure explained."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from omgsr_cli.errors import OmgsrError
from omgsr_cli.packages import torchvision_error


@contextmanager
def explained_imports() -> Iterator[None]:
    """Turn the failure that a broken torchvision causes inside other libraries into one that says so.

    diffusers, transformers and peft import torchvision where it is installed. One that was built for another torch
    raises from the middle of their imports.

    Raises:
        OmgsrError: torchvision is behind the ImportError or RuntimeError; other errors pass unchanged.
    """
    try:
        yield
    except (ImportError, RuntimeError) as error:
        explanation = explain_broken_torchvision(error)
        if explanation is None:
            raise
        raise explanation from error


def explain_broken_torchvision(error: BaseException) -> OmgsrError | None:
    """Name the two versions that do not work together, if the error comes from torchvision.

    Args:
        error: from importing a library that uses torchvision.
    Returns:
        The error to show, with the command that fixes it; None if torchvision did not cause it.
    """
    return torchvision_error() if any(_is_from_torchvision(link) for link in _chain(error)) else None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error, what caused it, and what was being handled when it was raised; each once."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        link = waiting.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        yield link
        waiting += [link.__cause__, link.__context__]


def _is_from_torchvision(error: BaseException) -> bool:
    """Whether the message names torchvision or one of its files raised it."""
    if "torchvision" in str(error):
        return True
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_globals.get("__name__", "").partition(".")[0] == "torchvision":
            return True
        trace = trace.tb_next
    return False


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep diffusers and transformers from printing progress bars and advice while a model loads, then restore them.

    Raises:
        OmgsrError: as `explained_imports`, for imports inside of it too.
    """
    with explained_imports():
        from diffusers.utils import logging as diffusers_logging
        from transformers.utils import logging as transformers_logging

        modules = (diffusers_logging, transformers_logging)
        before = [(module.get_verbosity(), module.is_progress_bar_enabled()) for module in modules]
        for module in modules:
            module.set_verbosity(logging.CRITICAL)
            module.disable_progress_bar()
        try:
            yield
        finally:
            for module, (verbosity, bars) in zip(modules, before, strict=True):
                module.set_verbosity(verbosity)
                if bars:
                    module.enable_progress_bar()
