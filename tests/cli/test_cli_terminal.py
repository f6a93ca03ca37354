"""Output on a terminal: one progress display, and complete lines above it."""

from __future__ import annotations

import io
import time
from pathlib import Path

import numpy as np
import pyte
from documented import on_terminal
from PIL import Image
from rich.console import Console

from omgsr_cli.cli.progress import show_steps
from omgsr_cli.cli.train import _step_line
from omgsr_cli.training.loop import StepDone


def test_a_folder_leaves_complete_lines_and_no_progress_bars(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    names = ["a.png", "b.png", "a photograph with a long name from the summer of 1987, second film, number 12.png"]
    for name in names:
        Image.fromarray(np.random.default_rng(1).integers(0, 255, (12, 16, 3), np.uint8)).save(photos / name)
    screens: list[list[str]] = []
    code, lines = on_terminal(80, "upscale", photos, "-o", tmp_path / "out", seen=screens)
    assert code == 0
    assert 1 <= max(sum("━" in line for line in screen) for screen in screens) <= 2
    assert not [line for line in lines if "━" in line]
    # A long path continues at the start of the next line; each result starts its own line.
    text = "".join(line.ljust(80) for line in lines)
    starts = [text.find(str(tmp_path / "out" / name)) for name in sorted(names)]
    assert min(starts) >= 0
    assert starts == sorted(starts)
    assert [start % 80 for start in starts] == [0, 0, 0]


def test_loading_is_shown_on_a_terminal_and_leaves_nothing(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    for quiet in ((), ("--quiet",)):
        seen: list[list[str]] = []
        _, lines = on_terminal(80, "upscale", tmp_path / "a.png", "-o", tmp_path / "b.png", *quiet, seen=seen)
        assert any("Loading" in line for screen in seen for line in screen) != bool(quiet)
        assert not [line for line in lines if "Loading" in line]
        (tmp_path / "b.png").unlink()


def test_notes_and_plans_wrap_at_words(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    _, lines = on_terminal(50, "upscale", tmp_path / "a.png", "-o", tmp_path / "b.png", "--dry-run")
    text = " ".join(line.strip() for line in lines)
    # Each of these has a space, and is far from a path.
    assert "megapixels" in text
    assert "MiB of memory" in text
    assert max(map(len, lines)) <= 50


def test_the_training_line_is_complete_at_80_columns() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=80)
    event = StepDone(
        step=1234,
        steps=6000,
        losses={"total": 1.234, "lrr": 0.1234, "dv3cd": 0.4321, "l1": 0.0567, "gan": 0.6931, "discriminator": 0.3456},
        images_per_s=1.23,
        seconds_left=7800.0,
        memory_mib=12345,
        learning_rate=5e-5,
        gradient_norm=0.5,
        skipped=False,
    )
    with show_steps(console, print, 6000) as show:
        show(event.step, _step_line(event))
        time.sleep(0.3)
        screen = pyte.Screen(80, 10)
        pyte.Stream(screen).feed(file.getvalue().replace("\n", "\r\n"))
    text = " ".join(line.strip() for line in screen.display)
    for part in ("1234/6000", "dv3cd 0.4321", "discriminator 0.3456", "1.23 images/s", "2 h 10 min left", "12345 MiB"):
        assert part in text, text
