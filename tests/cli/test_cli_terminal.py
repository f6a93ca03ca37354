"""What a terminal shows while a folder is processed: one progress display, and complete lines above it."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import numpy as np
import pyte
import pytest
from PIL import Image
from rich.console import Console

from omgsr_cli.cli.progress import show_steps
from omgsr_cli.cli.train import _step_line
from omgsr_cli.training.events import StepDone

ROWS = 30


def run_on_terminal(columns: int, *arguments: str | Path, seen: list[str] | None = None) -> tuple[list[str], int]:
    """Run a command on a terminal; `seen` gets every line that it ever showed.

    Returns:
        The lines that are left on the screen, and the largest number of lines with bars that it ever showed.
    """
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, columns, 0, 0))
    environment = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES", "NO_COLOR", "CI")}
    process = subprocess.Popen(
        [sys.executable, "-m", "omgsr_cli", *map(str, arguments)],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment | {"TERM": "xterm-256color"},
    )
    os.close(theirs)
    screen = pyte.Screen(columns, ROWS)
    stream = pyte.ByteStream(screen)
    most_bars = 0
    while True:
        try:
            data = os.read(ours, 1 << 16)
        except OSError:  # the other side has closed
            break
        if not data:
            break
        stream.feed(data)
        if seen is not None:
            seen += screen.display
        most_bars = max(most_bars, sum("━" in line for line in screen.display))
    os.close(ours)
    assert process.wait() == 0, "\n".join(screen.display)
    return [line.rstrip() for line in screen.display if line.strip()], most_bars


@pytest.mark.parametrize("columns", [80, 120])
def test_a_folder_leaves_complete_lines_and_no_bars(tmp_path: Path, columns: int) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    names = ["a.png", "b.png", "a photograph with a long name from the summer of 1987, second film, number 12.png"]
    for name in names:
        Image.fromarray(np.random.default_rng(1).integers(0, 255, (12, 16, 3), np.uint8)).save(photos / name)
    lines, most_bars = run_on_terminal(columns, "upscale", photos, "-o", tmp_path / "out")
    assert 1 <= most_bars <= 2
    assert not [line for line in lines if "━" in line]
    # A long path continues at the start of the next line; each result starts its own line.
    text = "".join(line.ljust(columns) for line in lines)
    starts = [text.find(str(tmp_path / "out" / name)) for name in sorted(names)]
    assert min(starts) >= 0
    assert starts == sorted(starts)
    assert [start % columns for start in starts] == [0, 0, 0]


def test_loading_is_shown_on_a_terminal_and_leaves_nothing(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    seen: list[str] = []
    lines, _ = run_on_terminal(80, "upscale", tmp_path / "a.png", "-o", tmp_path / "b.png", seen=seen)
    assert any("Loading" in line for line in seen)
    assert not [line for line in lines if "Loading" in line]
    quiet: list[str] = []
    run_on_terminal(80, "upscale", tmp_path / "a.png", "-o", tmp_path / "b.png", "--quiet", seen=quiet)
    assert not any("Loading" in line for line in quiet)


def test_notes_and_plans_wrap_at_words(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    lines, _ = run_on_terminal(50, "upscale", tmp_path / "a.png", "-o", tmp_path / "b.png", "--dry-run")
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
