"""Import large libraries without their console output, and explain the errors of a wrong torchvision."""

from __future__ import annotations

import logging
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from omgsr_cli.errors import OmgsrError
from omgsr_cli.packages import torchvision_error


@contextmanager
def explained_imports() -> Iterator[None]:
    """Replace errors that a wrong torchvision causes in other libraries by one that explains them.

    diffusers, transformers and peft import torchvision if it is installed. A torchvision that was built for another
    torch makes these imports fail.

    Raises:
        OmgsrError: torchvision caused an ImportError or RuntimeError; other errors are not changed.
    """
    try:
        yield
    except (ImportError, RuntimeError) as error:
        explanation = explain_broken_torchvision(error)
        if explanation is None:
            raise
        raise explanation from error


def explain_broken_torchvision(error: BaseException) -> OmgsrError | None:
    """The error for two versions that do not work together, if torchvision caused an exception.

    Args:
        error: raised by the import of a library that uses torchvision.
    Returns:
        The error to show, with the command that fixes it; None if torchvision is not the cause.
    """
    # The text also has the exception's causes and contexts: each with its message, and the files that raised it.
    text = "".join(traceback.format_exception(error))
    return torchvision_error() if re.search(r"^\S.*torchvision|[\\/]torchvision[\\/]", text, re.MULTILINE) else None


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep diffusers and transformers from printing progress bars and advice while a model loads, then restore them.

    Raises:
        OmgsrError: as for `explained_imports`, for imports in the block.
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
