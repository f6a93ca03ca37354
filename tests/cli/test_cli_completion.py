"""What a shell offers when a person presses Tab."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("omgsr up", ["upscale"]),
        ("omgsr upscale --color-f", ["--color-fix"]),
        ("omgsr upscale --color-fix ", ["adain", "wavelet", "none"]),
        ("omgsr upscale --color-fix w", ["wavelet"]),
        ("omgsr upscale --tile ", ["auto", "off"]),
        # Capitals stand for a value of any kind, here a file: the shell completes it.
        ("omgsr upscale --output ", []),
    ],
)
def test_options_complete_to_the_words_that_they_take(line: str, offered: list[str]) -> None:
    words = line.split(" ")
    asked = {"_OMGSR_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    program = [sys.executable, "-c", "from omgsr_cli.cli.app import main; main()"]
    done = subprocess.run(program, env=os.environ | asked, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == offered
