"""Error messages for Python callers: they name arguments, where those of the command line name options."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from omgsr_cli.errors import OmgsrError

P = ParamSpec("P")
R = TypeVar("R")

_OPTION = re.compile(r"(?<![\w/-])--([a-z][a-z-]*)(?: ([^\s,;:)]+))?")
_OUTPUT = re.compile(r"(?<![\w/-])-o\b")
_FLAGS = ("compare", "compile", "keep_times", "overwrite", "recursive")


def names_arguments(function: Callable[P, R], name: str | None = None) -> Callable[P, R]:
    """Wrap a function so that the errors it raises name arguments: `tile=32`, not `--tile 32`.

    Args:
        function: a public function whose arguments have the names of the options.
        name: what to call the result; None keeps the function's name.
    """

    @functools.wraps(function)
    def wrapped(*arguments: P.args, **values: P.kwargs) -> R:
        try:
            return function(*arguments, **values)
        except OmgsrError as error:
            raise with_arguments(error)  # noqa: B904 - the same exception

    wrapped.__name__ = wrapped.__qualname__ = name or function.__name__
    wrapped.__module__ = "omgsr_cli"
    return wrapped


def with_arguments(error: OmgsrError) -> OmgsrError:
    """Replace options by arguments in an error's message and hint, in place, and return it."""
    error.message = _as_arguments(error.message)
    error.hint = error.hint and _as_arguments(error.hint)
    error.args = (error.message,)
    return error


def _as_arguments(text: str) -> str:
    return _OUTPUT.sub("output", _OPTION.sub(_argument, text))


def _argument(match: re.Match[str]) -> str:
    name, value = match[1].replace("-", "_"), match[2]
    if name == "help":
        name = "help(omgsr_cli)"
    elif name in _FLAGS:
        name += "=True"
    elif value and re.fullmatch(r"[\d.]+|[A-Z_/]+", value):  # a number, or a placeholder such as FOLDER
        return f"{name}={value}"
    elif value and not value.isalpha():  # a word would continue the sentence
        return f"{name}={value!r}"
    return f"{name} {value}" if value else name
