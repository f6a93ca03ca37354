"""Usage errors of every command: exit code 2, one error, one hint, and no file."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import draw, files_below

from omgsr_cli.cli.app import run


@pytest.mark.parametrize("option", ["--device", "--model", "--base", "--adapter"])
@pytest.mark.parametrize("command", ["upscale", "bench", "timestep"])
def test_an_unknown_name_suggests_the_nearest(
    command: str, option: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if (command, option) == ("timestep", "--adapter"):
        option = "--vae"
    draw(tmp_path / "in" / "a.png")
    monkeypatch.chdir(tmp_path)
    images = {"upscale": ["in/a.png"], "bench": [], "timestep": ["--data", "in"]}[command]
    _is_refused([command, *images, option, "quantum"], "quantum", capfd)
    assert files_below(tmp_path) == ["in/a.png"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["upscale", "in/a.png", "-o", "x.xyz"], "x.xyz: .xyz is not an output format"),
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
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_contradictory_arguments_are_usage_errors(
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


@pytest.mark.parametrize(
    ("typed", "command"),
    [(["a.png"], "upscale"), (["in"], "upscale"), (["missing.JPG", "--scale", "2"], "upscale"),
     (["a name.tif"], "upscale"), (["s3://b/c/"], "upscale"), (["my.toml"], "train")],
)  # fmt: skip
def test_arguments_without_a_command_suggest_the_command(
    typed: list[str], command: str, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "in").mkdir()
    monkeypatch.chdir(tmp_path)
    assert run(typed) == 2
    [hint] = [line for line in capfd.readouterr().err.splitlines() if line.startswith("hint: ")]
    assert hint == f"hint: omgsr {command} {shlex.join(typed)}"


def test_what_needs_no_model_is_answered_before_torch_is_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(tmp_path / "a.png")
    draw(tmp_path / "other.png")
    monkeypatch.setenv("OMGSR_HOME", str(tmp_path / "home"))
    # Plain upscaling loads no weights; its result is finished then.
    monkeypatch.setattr("omgsr_cli.batch.upscaler.load_found", None)
    assert run(["upscale", str(tmp_path / "a.png"), "--strength", "0"]) == 0
    assert (tmp_path / "a_x4.png").is_file()
    calls = [
        ["upscale", "a.png", "-o", "other.png"],
        ["upscale", "missing.png"],
        ["upscale", "missing.png", "--json", "-r"],
        ["upscale", "a.png", "--model", "quantum"],
        ["upscale", "a.png", "--format", "xyz"],
        ["upscale", "a.png", "--color-fix", "red"],
        ["upscale", "a.png", "-o", "x.xyz"],
        ["upscale", "a.png", "--scale", "99"],
        ["bench", "--csv", "a.png"],
        ["bench", "--color-space", "red"],
        ["timestep", "--data", "missing"],
        ["timestep", "--data", "a.png", "--csv", "a.png"],
        ["train", "missing.toml"],
    ]
    code = (
        "import json, sys; from omgsr_cli.cli.app import run\n"
        "for command in ('list', 'path omgsr-tiny', 'info omgsr-s-512'):\n"
        "    assert run(['models', *command.split()]) == 0, command\n"
        "for call in json.loads(sys.argv[1]):\n"
        "    assert run(call) in (1, 2), call\n"
        "    assert 'torch' not in sys.modules, call\n"
        "assert run(['upscale', 'a.png', '--strength', '0']) == 0\n"
        "assert 'torch' not in sys.modules\n"
    )
    command = [sys.executable, "-c", code, json.dumps(calls)]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("error: ") == len(calls)


@pytest.mark.parametrize("typed", ["upscale a.png --scale", "upscale --bogus", "models pull --base", "models bogus"])
def test_the_hint_names_the_help_of_the_typed_command(typed: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(typed.split()) == 2
    command = [word for word in typed.split() if word in ("upscale", "models", "pull")]
    assert f"omgsr {' '.join(command)} --help" in capfd.readouterr().err


def _is_refused(arguments: list[str], named: str, capfd: pytest.CaptureFixture[str]) -> None:
    code = run(arguments)
    out, err = capfd.readouterr()
    assert (code, out) == (2, ""), err
    error, hint = err.splitlines()
    assert error.startswith("error: ")
    assert named in error
    assert hint.startswith("hint: ")
