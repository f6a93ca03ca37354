"""Check what a wheel carries: `python check_wheel.py WHEEL`."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

NEEDED = ["omgsr_cli/py.typed", "omgsr_cli/cli/app.py", "omgsr_cli/weights/omgsr-tiny/"]
MAX_BYTES = 8_000_000  # the bundled model has 3.6 MiB


def main(wheel: Path) -> str | None:
    """Return what is wrong, or None."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    foreign = [name for name in names if not name.startswith("omgsr_cli") or "__pycache__" in name]
    if foreign:
        return f"{wheel.name} carries what is not the package: {foreign[:5]}"
    missing = [need for need in NEEDED if not any(name.startswith(need) for name in names)]
    if not any(name.endswith(".safetensors") for name in names):
        missing.append("*.safetensors")
    if missing:
        return f"{wheel.name} lacks {missing}"
    if wheel.stat().st_size > MAX_BYTES:
        return f"{wheel.name} has {wheel.stat().st_size / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:.0f}"
    print(f"{wheel.name}: {len(names)} files, {wheel.stat().st_size / 1e6:.1f} MB")
    return None


sys.exit(main(Path(sys.argv[1])))
