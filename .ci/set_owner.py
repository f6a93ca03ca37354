"""Replace the placeholder of the repository's owner in every file: `python .ci/set_owner.py NAME`.

Without a name, list the files that still contain the placeholder, and exit 1 if any exist.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# The placeholder of a GitHub account or organisation, in a URL of the repository or its pages, or as a list item.
PLACEHOLDER = re.compile(r"\bOWNER(?=/omgsr-cli\b|\.github\.io)|(?<=  - )OWNER$", re.MULTILINE)
ACCOUNT = re.compile(r"[A-Za-z0-9](?:-?[A-Za-z0-9]){0,38}")


def find_placeholders(root: Path) -> list[Path]:
    """Return the files of a checkout that contain the placeholder."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, check=True, capture_output=True, text=True)
    paths = [root / name for name in listed.stdout.split("\0") if name]
    return [path for path in paths if path.is_file() and PLACEHOLDER.search(path.read_text("utf-8", "ignore"))]


def main(arguments: list[str]) -> str | int:
    """Return an error message, or 0."""
    found = find_placeholders(ROOT)
    if not arguments:
        print("\n".join(str(path.relative_to(ROOT)) for path in found))
        return 1 if found else 0
    (owner,) = arguments
    if not ACCOUNT.fullmatch(owner):
        return f"{owner} is not the name of an account"
    for path in found:
        path.write_bytes(PLACEHOLDER.sub(owner, path.read_bytes().decode()).encode())
    print(f"{len(found)} files name {owner} now")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
