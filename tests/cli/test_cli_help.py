"""`--help`: content, width, and how little is imported for it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from rich.cells import cell_len

from omgsr_cli import __version__
from omgsr_cli.cli.app import program, run


def _commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield path, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from _commands(inner, (*path, name))


COMMANDS = dict(_commands(program()))


@pytest.mark.parametrize(
    ("path", "columns"), [*((path, 80) for path in COMMANDS), (("upscale",), 40), (("train",), 40)]
)
def test_help_is_complete_and_fits(
    path: tuple[str, ...], columns: int, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERMINAL_WIDTH", str(columns))
    for all_options in (False, True):
        command = COMMANDS[path]
        if all_options and getattr(command, "common", None) is None:
            continue
        assert run([*path, "--help-all" if all_options else "--help"]) == 0
        text = capfd.readouterr().out
        assert max(cell_len(line) for line in text.splitlines()) <= columns
        # Python types, truncated texts, markup that was not read as such.
        assert not [mark for mark in ("<", "…", "\\[", "[/", "{") if mark in text]
        text = _squeezed(text)
        for param in command.params:
            long = [name for name in param.opts if name.startswith("--")]
            if not all_options and not _is_common(command, param):
                assert not [name for name in long if f"{name}-" not in text and name in text]
                continue
            assert all(name in text for name in long), long
            assert _squeezed(param.help.rstrip(".")) in text
            default = param.default if getattr(param, "show_default", True) is True else param.show_default
            if long and default not in (None, False, ()):
                assert f"default:{_squeezed(str(default))}" in text, long
        for inner in getattr(command, "commands", {}).values():
            assert _squeezed(inner.help.partition("\n\n")[0].rstrip(".")) in text
        for example in getattr(command, "examples", ()):
            assert _squeezed(example) in text


def _is_common(command: Any, param: Any) -> bool:
    common = getattr(command, "common", None)
    return common is None or param.name in common or not param.opts[0].startswith("-")


def test_common_options_are_a_dozen_and_exist() -> None:
    short = {path: command for path, command in COMMANDS.items() if getattr(command, "common", None)}
    assert ("upscale",) in short
    for path, command in short.items():
        names = {param.name for param in command.params} | {"help"}
        assert set(command.common) <= names, path
        assert {"help", "help_all"} <= set(command.common)
        assert len(command.common) <= 18


def test_examples_in_help_are_valid_commands() -> None:
    for path, command in COMMANDS.items():
        known = {option for param in command.params for option in param.opts}
        for example in getattr(command, "examples", ()):
            words = example.split()
            assert words[: 1 + len(path)] == ["omgsr", *path]
            assert {word for word in words if word.startswith("-") and word != "-"} <= known


def test_help_of_a_command_is_shown_by_help(capfd: pytest.CaptureFixture[str]) -> None:
    assert run(["upscale", "--help"]) == 0
    expected = capfd.readouterr().out
    assert run(["help", "upscale"]) == 0
    assert capfd.readouterr().out == expected


def _squeezed(text: str) -> str:
    """Without the spaces and boxes between which a text is broken into lines."""
    return "".join(text.replace("│", "").split())


def test_every_option_has_a_description() -> None:
    silent = [(*path, param.name) for path, command in COMMANDS.items() for param in command.params if not param.help]
    assert not silent


@pytest.mark.parametrize("option", ["-V", "--version"])
def test_the_version_is_printed(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([option]) == 0
    assert capsys.readouterr().out.startswith(f"omgsr {__version__}")
