"""How a command's help looks: typer's, without Python's types, and with paragraphs that fill the terminal's width."""

from __future__ import annotations

import shutil
from functools import partial
from typing import Any

from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

from omgsr_cli.cli.completion import offer_words

# Below this typer's boxes cut the names of options off.
_NARROW_COLUMNS = 60


class Command(TyperCommand):
    """A command whose help is for people."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **_filled(options))

    def get_params(self, ctx: Any) -> list[Any]:
        """The command's options and arguments, with types left out that say nothing to a person."""
        params = [_without_type(param) for param in super().get_params(ctx)]
        for param in params:
            offer_words(param)
        return params

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """The usage line's parts: `INPUT...`, not `{INPUT}...`."""
        return [piece.replace("{", "").replace("}", "") for piece in super().collect_usage_pieces(ctx)]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """In boxes, or as plain text where the terminal is narrow."""
        if _is_narrow():
            self.rich_markup_mode = None
            _narrow(formatter)
            params: list[Any] = self.params
            for param in params:
                param.help = (param.help or "").replace("\\[", "[")
        super().format_help(ctx, formatter)


class Group(TyperGroup):
    """A group of commands, likewise."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **_filled(options))

    def get_params(self, ctx: Any) -> list[Any]:
        """As of a command."""
        return [_without_type(param) for param in super().get_params(ctx)]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """As of a command."""
        if _is_narrow():
            self.rich_markup_mode = None
            _narrow(formatter)
        super().format_help(ctx, formatter)


def _filled(options: dict[str, Any]) -> dict[str, Any]:
    """Take the line breaks of the source out of the help's paragraphs."""
    paragraphs = str(options.get("help") or "").split("\n\n")
    filled = [" ".join(paragraph.split()) for paragraph in paragraphs]
    # Of a text that is named short help nothing is cut off in a list of commands.
    return options | {"help": "\n\n".join(filled), "short_help": filled[0]}


def _is_narrow() -> bool:
    return _columns() < _NARROW_COLUMNS


def _narrow(formatter: Any) -> None:
    """Let plain text use the terminal's columns, what an option is below its name."""
    formatter.width = _columns()
    formatter.write_dl = partial(formatter.write_dl, col_max=8)


def _columns() -> int:
    return shutil.get_terminal_size().columns


def _without_type(param: Any) -> Any:
    if isinstance(param, TyperOption) and param.is_flag and param.metavar is None:
        param.metavar = ""
    if isinstance(param, TyperArgument):
        # Its name says what it is; typer has no other way to leave `<list[str]>` out.
        vars(param)["display_type_rich"] = lambda ctx: None
    return param
