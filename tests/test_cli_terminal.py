"""What a terminal shows while a folder is processed: one progress display, and complete lines above it."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path

import numpy as np
import pyte
import pytest
from PIL import Image

ROWS = 30


def run_on_terminal(columns: int, *arguments: str | Path) -> tuple[list[str], int]:
    """Run a command on a terminal.

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
    # Long paths continue on the next line; a short one starts its own.
    text = "".join(line.ljust(columns) if len(line) > columns - 3 else line + "\n" for line in lines)
    results = [str(tmp_path / "out" / name) for name in sorted(names)]
    shown = [line.strip() for line in text.splitlines()]
    assert [line for line in shown if line.startswith(str(tmp_path))] == results
