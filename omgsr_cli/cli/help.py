"""Format the help of commands, and offer words to the shell's completion of options."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Collection, Mapping
from copy import copy
from functools import partial
from typing import Any, ClassVar

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption

_SHOWS_ALL = "omgsr_cli.cli.help.show_all"

# Below this width, typer's boxes truncate the names of options.
_NARROW_COLUMNS = 60


class Command(TyperCommand):
    """A command whose help has no Python types and fills the terminal, and whose options support shell completion.

    Attributes:
        examples: command lines and their descriptions, shown below the description of the command.
        common: names of the parameters that `--help` lists; `--help-all` lists all. None lists all in both.
    """

    examples: ClassVar[Mapping[str, str]] = {}
    common: ClassVar[Collection[str] | None] = None

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **_filled(options))

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the command's options and arguments without Python types."""
        params = [_without_type(param) for param in super().get_params(ctx)]
        for param in params:
            _offer_words(param)
        # List the help option under the last heading.
        if panels := [panel for param in params if (panel := getattr(param, "rich_help_panel", None))]:
            params[-1].rich_help_panel = panels[-1]
        return params

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Return the parts of the usage line without braces: `INPUT...`, not `{INPUT}...`."""
        return [piece.replace("{", "").replace("}", "") for piece in super().collect_usage_pieces(ctx)]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Show the common options, or all options for `--help-all`; use plain text on a narrow terminal."""
        shown = copy(self)
        if self.common is not None and not ctx.meta.get(_SHOWS_ALL):
            shown.params = [copy(param) for param in self.params]
            for param in shown.params:
                if isinstance(param, TyperOption):
                    param.hidden = param.name not in self.common
        if self.examples:
            # In plain text, a paragraph that begins with \b keeps its lines.
            mark = "\b\n" if _is_narrow() else ""
            shown.help = f"{self.help}\n\n{mark}{_example_lines(self.examples)}"
        if _is_narrow():
            _use_plain_text(shown, formatter)
        super(Command, shown).format_help(ctx, formatter)


class Group(TyperGroup):
    """A group of commands whose help has the same style."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **_filled(options))

    def get_params(self, ctx: Any) -> list[Any]:
        """Return the group's options without Python types."""
        return [_without_type(param) for param in super().get_params(ctx)]

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Show the commands; use plain text on a narrow terminal."""
        shown = copy(self)
        if _is_narrow():
            _use_plain_text(shown, formatter)
        super(Group, shown).format_help(ctx, formatter)


def show_all(ctx: Any, wanted: bool) -> None:
    """Show the help with every option and exit; the callback of `--help-all`."""
    if wanted and not ctx.resilient_parsing:
        ctx.meta[_SHOWS_ALL] = True
        typer.echo(ctx.get_help(), color=ctx.color)
        raise typer.Exit


def _filled(options: dict[str, Any]) -> dict[str, Any]:
    """Remove the source's line breaks from the paragraphs of the help."""
    paragraphs = str(options.get("help") or "").split("\n\n")
    filled = [" ".join(paragraph.split()) for paragraph in paragraphs]
    # Set short_help, because typer truncates other texts in a list of commands.
    return options | {"help": "\n\n".join(filled), "short_help": filled[0]}


def _example_lines(examples: Mapping[str, str]) -> str:
    """Return the examples in two columns, or in one column if the terminal is too narrow."""
    columns = _columns() - 2
    width = max(map(len, examples)) + 4
    lines = ["Examples:"]
    for command, effect in examples.items():
        if width + max(map(len, examples.values())) <= columns:
            lines.append(f"  {command}".ljust(width) + effect)
        else:
            wrap = partial(textwrap.wrap, width=columns, break_on_hyphens=False)
            lines += wrap(effect, initial_indent="  ", subsequent_indent="  ")
            lines += wrap(command, initial_indent="    ", subsequent_indent="      ")
    return "\n".join(lines)


def _is_narrow() -> bool:
    return _columns() < _NARROW_COLUMNS


def _use_plain_text(command: TyperCommand | TyperGroup, formatter: Any) -> None:
    """Make plain text use all columns, with the description of an option below its name."""
    command.rich_markup_mode = None
    formatter.width = _columns()
    formatter.write_dl = partial(formatter.write_dl, col_max=8)


def _columns() -> int:
    return shutil.get_terminal_size().columns


def _without_type(param: Any) -> Any:
    if isinstance(param, TyperOption) and param.is_flag and param.metavar is None:
        param.metavar = ""
    if isinstance(param, TyperArgument):
        # Hide the type; typer has no other way to omit `<list[str]>`.
        vars(param)["display_type_rich"] = lambda ctx: None
    if isinstance(param.show_default, str):
        # Typer adds brackets to a default in words; show it like other defaults.
        vars(param)["_get_default_string"] = lambda **_: param.show_default
    return param


def _offer_words(param: Any) -> None:
    """Make shell completion offer the lower-case words of an option's metavar, such as `adain|wavelet|none`.

    If no word matches, the shell completes file names.
    """
    words = [word for word in (param.metavar or "").split("|") if word.islower()]
    if isinstance(param, TyperOption) and words and param._custom_shell_complete is None:
        param._custom_shell_complete = lambda ctx, param, incomplete: [w for w in words if w.startswith(incomplete)]
