"""Check distributions before they are published: `python check_dist.py FOLDER`, with one wheel and one sdist."""

from __future__ import annotations

import re
import sys
import tarfile
import zipfile
from email import message_from_bytes
from pathlib import Path

IN_WHEEL = [
    *("omgsr_cli/py.typed", "omgsr_cli/cli/app.py", "omgsr_cli/weights/omgsr-tiny/model.safetensors"),
    *("dist-info/METADATA", "dist-info/licenses/LICENSE"),
]
IN_SDIST = [
    *("CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "LICENSE", "README.md", "SECURITY.md", "constraints.txt"),
    *("docs/index.md", "pyproject.toml", "tests/conftest.py", "omgsr_cli/py.typed"),
]
MAX_WHEEL_BYTES = 8_000_000  # includes the bundled model of 3.8 MB


def check_wheel(wheel: Path) -> str | None:
    """Return an error message, or None."""
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = message_from_bytes(archive.read(next(name for name in names if name.endswith("/METADATA"))))
    foreign = [name for name in names if not name.startswith("omgsr_cli") or "__pycache__" in name]
    if foreign:
        return f"{wheel.name} carries what is not the package: {foreign[:5]}"
    if missing := [need for need in IN_WHEEL if not any(name.endswith(need) for name in names)]:
        return f"{wheel.name} lacks {missing}"
    if wheel.stat().st_size > MAX_WHEEL_BYTES:
        return f"{wheel.name} has {wheel.stat().st_size / 1e6:.1f} MB, more than {MAX_WHEEL_BYTES / 1e6:.0f}"
    # The package index shows the README without the repository's other files, so relative links break.
    if relative := find_relative_links(str(metadata.get_payload())):
        return f"README.md has relative links: {relative[:5]}"
    print(f"{wheel.name}: {len(names)} files, {wheel.stat().st_size / 1e6:.1f} MB")
    return None


def find_relative_links(markdown: str) -> list[str]:
    """Return targets of links and images that are neither full URLs nor headings of the same page."""
    without_code = re.sub(r"```.*?```|`[^`\n]*`", "", markdown, flags=re.S)
    targets = re.findall(r"\]\(([^)\s]+)|^\[[^\]]+\]:\s*(\S+)|(?:src|href)=[\"']([^\"']+)", without_code, flags=re.M)
    return [target for pair in targets if (target := "".join(pair)) and not re.match(r"https?://|#|mailto:", target)]


def check_sdist(sdist: Path) -> str | None:
    """Return an error message, or None."""
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    if missing := [need for need in IN_SDIST if need not in names]:
        return f"{sdist.name} lacks {missing}"
    if private := [name for name in names if name.startswith((".git/", ".venv/")) or "__pycache__" in name]:
        return f"{sdist.name} carries {private[:5]}"
    print(f"{sdist.name}: {len(names)} files, {sdist.stat().st_size / 1e6:.1f} MB")
    return None


def main(folder: Path) -> str | None:
    """Return an error message, or None."""
    wheels, sdists = list(folder.glob("*.whl")), list(folder.glob("*.tar.gz"))
    if (len(wheels), len(sdists)) != (1, 1):
        return f"{folder} has {len(wheels)} wheels and {len(sdists)} source distributions instead of one of each"
    return check_wheel(wheels[0]) or check_sdist(sdists[0])


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
