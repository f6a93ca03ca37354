"""What was typed wrong ends with 2 in every command: a line that names it, a line what to type, and nothing done."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import draw, files_below

from omgsr_cli.cli.app import run


@pytest.mark.parametrize("option", ["--device", "--model", "--base", "--adapter"])
@pytest.mark.parametrize("command", ["upscale", "bench", "timestep"])
def test_a_name_that_nothing_has(
    command: str, option: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if (command, option) == ("timestep", "--adapter"):
        option = "--vae"
    draw(tmp_path / "in" / "a.png")
    monkeypatch.chdir(tmp_path)
    pictures = {"upscale": ["in/a.png"], "bench": [], "timestep": ["--data", "in"]}[command]
    _is_refused([command, *pictures, option, "quantum"], "quantum", capfd)
    assert files_below(tmp_path) == ["in/a.png"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["upscale", "in/a.png", "-o", "x.xyz"], "x.xyz: .xyz is not written"),
        (["bench", "--precision", "int8"], "int8"),
        (["timestep", "--data", "in", "--degradation", "quantum"], "quantum"),
        (["timestep", "--data", "in", "--csv", "in/a.png"], "in/a.png"),
        (["timestep", "--data", "in", "--plot", "x.xyz"], "x.xyz"),
        (["timestep", "--data", "nowhere"], "nowhere"),
        (["models", "info", "quantum"], "quantum"),
        (["models", "path", "quantum"], "quantum"),
        (["models", "pull", "quantum"], "quantum"),
        (["models", "verify", "quantum"], "quantum"),
        (["models", "remove", "quantum"], "quantum"),
        (["models", "merge", "omgsr-tiny", "quantum", "out"], "quantum"),
        (["train"], "configuration"),
        (["models", "pull", "omgsr-f-1024"], "cannot be run by this version"),
        (["upscale", "in/a.png", "--model", "omgsr-f-1024"], "OMGSR-F on FLUX.1-dev"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_meant(
    arguments: list[str],
    named: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw(tmp_path / "in" / "a.png")
    monkeypatch.chdir(tmp_path)
    _is_refused(arguments, named, capfd)
    assert files_below(tmp_path) == ["in/a.png"]


def _is_refused(arguments: list[str], named: str, capfd: pytest.CaptureFixture[str]) -> None:
    code = run(arguments)
    out, err = capfd.readouterr()
    assert (code, out) == (2, ""), err
    error, hint = err.splitlines()
    assert error.startswith("error: ")
    assert named in error
    assert hint.startswith("hint: ")
