"""The documentation names existing commands, options and pages only."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import documented
import pytest
import torch
from places import ROOT

from omgsr_cli.cli.app import program

PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def names(paths: list[Path]) -> list[str]:
    return [str(path.relative_to(ROOT)) for path in paths]


def commands(text: str) -> Iterator[list[str]]:
    """What is typed after `omgsr` in a page's blocks of code, pipes and launchers left aside."""
    blocks = "\n".join(re.findall(r"```(?:sh|console|yaml)\n(.*?)```", text, re.S))
    # A table with a command per line counts too.
    blocks += "\n" + "\n".join(re.findall(r"\| `(omgsr [^`]+)`", text))
    for line in re.sub(r"\\\n\s*", "", blocks).splitlines():
        for typed in re.findall(r"(?:^|[\s;|&'])omgsr ([^|#>;&]*)", line):
            yield shlex.split(typed.replace("'", "").replace('"', ""))


def find_command(words: list[str]) -> Any:
    found: Any = program()
    for word in words:
        if word not in getattr(found, "commands", {}):
            break
        found = found.commands[word]
    return found


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_every_option_belongs_to_its_command(page: Path) -> None:
    for words in commands(page.read_text("utf-8")):
        command = find_command(words)
        assert not getattr(command, "commands", None), f"there is no omgsr {' '.join(words)}"
        known = {option for param in command.params for option in param.opts} | {"--help", "-h"}
        asked = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert asked <= known, f"omgsr {' '.join(words)}"


def test_the_commands_are_found() -> None:
    assert len(list(commands((ROOT / "README.md").read_text("utf-8")))) >= 5
    assert list(commands("```sh\ncat a | omgsr upscale - --tile 64 > b  # omgsr\n```")) == [
        ["upscale", "-", "--tile", "64"]
    ]


def test_links_lead_to_files() -> None:
    for page in PAGES:
        targets = re.findall(r"\]\(([^)#\s]+)", page.read_text("utf-8"))
        assert not [one for one in targets if "://" not in one and not (page.parent / one).exists()], page


def test_every_page_is_reached_from_the_first_and_in_the_table_of_contents() -> None:
    first = (ROOT / "docs" / "index.md").read_text("utf-8")
    contents = (ROOT / "mkdocs.yml").read_text("utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert f": {page.name}\n" in contents
        assert page.name == "index.md" or f"]({page.name})" in first


def test_the_documented_mid_timestep_of_omgsr_tiny_is_that_of_its_record() -> None:
    from omgsr_cli.presets import PRESETS

    found = re.search(
        r"## The mid-timestep of omgsr-tiny\n\n\*\*Use (\d+)\*\*", (ROOT / "docs" / "timestep.md").read_text("utf-8")
    )
    assert found
    assert int(found[1]) == PRESETS["omgsr-tiny"].mid_timestep


def test_the_reference_is_that_of_the_commands() -> None:
    assert (ROOT / "docs" / "cli.md").read_text("utf-8") == documented.reference(), "run python tests/documented.py"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the screens show a machine without a GPU")
def test_the_screens_are_those_of_the_commands(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "screens.md").read_text("utf-8")
    shown = dict(re.findall(r"## ([^\n]+)\n\n```text\n(.*?)\n```", page, re.S))
    assert set(shown) == set(documented.SCREENS)
    for title, screen in documented.screens(tmp_path, 80):
        assert max(map(len, screen.splitlines())) <= 80
        # A machine has its own devices, versions and extras.
        masked = headings if title == "The machine" else without_figures
        assert masked(screen) == masked(shown[title]), "run python tests/documented.py"


def without_figures(screen: str) -> str:
    """The words of a screen; numbers, plots, line breaks and the faster precision depend on the machine."""
    screen = re.sub(r"[\u2500-\u259f]+", " ", screen)
    screen = re.sub(r"\b(fp32|bf16|fp16)\b", "#", screen)
    return " ".join(re.sub(r"[0-9][0-9.,]*", "#", screen).replace("# *", "#").split())  # "*": a clear difference


def headings(screen: str) -> list[str]:
    return [line.split()[0] for line in screen.splitlines()[5:] if not line.startswith(" ")]
