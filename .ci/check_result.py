"""Check a result and where the program is installed: `python check_result.py INPUT OUTPUT SCALE`."""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

from PIL import Image

import omgsr_cli


def main(source: str, result: str, scale: int) -> str | None:
    """Return an error message, or None."""
    installed = Path(sysconfig.get_path("purelib"))
    package = Path(omgsr_cli.__file__)
    if not package.is_relative_to(installed):
        return f"omgsr_cli was imported from {package}, not from {installed}"
    with Image.open(source) as before, Image.open(result) as after:
        after.load()
        if after.format != "PNG":
            return f"{result} is {after.format}, not PNG"
        if after.size != (before.width * scale, before.height * scale):
            return f"{result} has {after.size}, not {scale} times {before.size}"
        if not any(low != high for low, high in after.convert("RGB").getextrema()):
            return f"{result} is of one colour"
    print(f"{result}: {before.size} to {after.size}")
    return None


sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3])))
