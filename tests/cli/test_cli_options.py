"""Every option of `omgsr upscale` makes a difference to the same call."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from command_line import Command, Said, draw

from omgsr_cli.cli.app import program
from omgsr_cli.models.tiny import TinyRestorer

_PLAN = ("in/a.png", "--dry-run", "--json")
_TILES = (*_PLAN, "--tile", "64")

#: When one of the inputs was changed.
_OLD = 1_000_000_000.0

#: Option to what is typed with and without it, and what it adds.
_EFFECTS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "--output": (("in/a.png",), ("elsewhere/r.png",)),
    "--scale": (("in/a.png",), ("2",)),
    "--size": (("in/a.png",), ("33x20",)),
    "--long-side": (("in/a.png",), ("30",)),
    "--short-side": (("in/a.png",), ("30",)),
    "--print": (("in/a.png",), ("5x5mm",)),
    "--process-scale": (("in/a.png", "--scale", "1"), ("2",)),
    "--process-size": (("in/a.png", "--scale", "1"), ("64",)),
    "--model": (("in/a.png", "--verbose"), ("other",)),
    "--base": (("in/a.png",), ("nowhere",)),
    "--adapter": (("in/a.png",), ("nowhere",)),
    "--mid-timestep": (("in/a.png",), ("100",)),
    "--prompt": (("in/a.png",), ("a cat",)),
    "--vae": (("in/a.png",), ("tiny",)),
    "--seed": (("in/a.png",), ("7",)),
    "--device": (("in/a.png",), ("quantum",)),
    "--precision": (("in/a.png", "--device", "cpu", "--verbose"), ("bf16",)),
    "--quantize": (("in/a.png",), ("int3",)),
    "--offload": (("in/a.png",), ("nowhere",)),
    "--compile": (("in/a.png",), ()),
    "--color-fix": (("in/a.png", "--color-fix", "adain"), ("none",)),
    "--strength": (("in/a.png",), ("0.5",)),
    "--tile": (_PLAN, ("64",)),
    "--overlap": (_TILES, ("32",)),
    "--batch": (_TILES, ("3",)),
    "--memory": ((*_PLAN, "--long-side", "2000"), ("16M",)),
    "--recursive": (("in",), ()),
    "--suffix": (("in/a.png",), ("_large",)),
    "--format": (("in/a.png",), ("webp",)),
    "--list": (("in",), ("names.txt",)),
    "--watch": (("in/a.png",), ()),
    "--quality": (("in/a.png", "--format", "jpg"), ("50",)),
    "--metadata": (("in/a.png",), ("none",)),
    "--dpi": (("in/a.png",), ("240",)),
    "--keep-times": (("in/a.png",), ()),
    "--overwrite": (("in/a.png", "-o", "in/b.png"), ()),
    "--compare": (("in/a.png",), ()),
    "--workers": (("in/a.png",), ("0",)),
    "--engine": (("in/a.png",), ("cloud",)),
    "--address": (("in/a.png",), ("auto",)),
    "--shard": (("in/a.png",), ("1/8",)),
    "--report": (("in/a.png",), ("run.jsonl",)),
    "--retry-failed": (("in/a.png",), ()),
    "--gallery": (("in/a.png",), ("page.html",)),
    "--beside": (("in/a.png",), ("in",)),
    "--dry-run": (("in/a.png",), ()),
    "--json": (("in/a.png",), ()),
    "--quiet": (("in/a.png",), ()),
    "--verbose": (("in/a.png",), ()),
}


def test_every_option_has_a_test_case() -> None:
    command = program().commands["upscale"]  # type: ignore[attr-defined]
    names = {
        next(name for name in param.opts if name.startswith("--"))
        for param in command.params
        if any(name.startswith("--") for name in param.opts)
    }
    assert names - {"--help", "--help-all"} == set(_EFFECTS)


@pytest.mark.parametrize("option", _EFFECTS)
def test_each_option_makes_a_difference(
    option: str,
    model: Path,
    tmp_path: Path,
    capfdbinary: pytest.CaptureFixture[bytes],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMGSR_MODEL", str(model))
    monkeypatch.setattr(TinyRestorer, "compile", lambda self: sys.stderr.write("compiled"))
    shared, added = _EFFECTS[option]
    upscale = Command(capfdbinary)
    if shared not in _OUTCOMES:
        _OUTCOMES[shared] = _outcome(upscale, tmp_path / "without", model, shared)
        assert _outcome(upscale, tmp_path / "again", model, shared) == _OUTCOMES[shared]
    assert _outcome(upscale, tmp_path / "with", model, (*shared, option, *added)) != _OUTCOMES[shared]


#: What calls without the option leave, by their arguments.
_OUTCOMES: dict[tuple[str, ...], object] = {}


def _outcome(upscale: Command, folder: Path, model: Path, arguments: tuple[str, ...]) -> object:
    """All that a call leaves in a fresh folder, and says; times left out."""
    os.utime(draw(folder / "in" / "a.png"), (_OLD, _OLD))
    draw(folder / "in" / "deeper" / "c.png")
    draw(folder / "in" / "b.png", 5, 5)
    shutil.copytree(model, folder / "other")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        said = upscale(*arguments)
    files = [path for path in folder.rglob("*") if path.is_file()]
    written = {path.relative_to(folder): (path.read_bytes(), path.stat().st_mtime == _OLD) for path in files}
    return said.code, _timeless(said), written


def _timeless(said: Said) -> str:
    return re.sub(r"[0-9.]+ s\b|\"seconds\": [0-9.]+", "", said.out.decode() + said.err)
