"""Check that a tag matches the version and the changelog: `python check_release.py v0.2.0 --notes notes.md`.

With --notes, the version's section of CHANGELOG.md is written to that file. Without a tag, the checks apply to a
version in preparation.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from set_owner import ROOT, find_placeholders

VERSION = re.compile(r'^__version__ = "(?P<version>[^"]+)"$', re.M)
HEADING = re.compile(r"^## \[(?P<version>[^\]]+)\](?: - (?P<date>\d{4}-\d\d-\d\d))?$", re.M)


def read_version() -> str:
    """Return the version of the package."""
    found = VERSION.search((ROOT / "omgsr_cli" / "__init__.py").read_text("utf-8"))
    assert found, "omgsr_cli/__init__.py has no __version__"
    return found["version"]


def read_notes(changelog: str, version: str) -> str | None:
    """Return the section of a version without its heading; None if no section with a date exists."""
    headings = list(HEADING.finditer(changelog))
    for heading, following in zip(headings, [*headings[1:], None], strict=True):
        if heading["version"] == version and heading["date"]:
            return changelog[heading.end() : following.start() if following else None].strip()
    return None


def main() -> str | None:
    """Return an error message, or None."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tag", nargs="?", help="such as v0.2.0")
    parser.add_argument("--notes", type=Path, help="where to write the version's notes")
    asked = parser.parse_args()
    version = read_version()
    placeholders = [str(path.relative_to(ROOT)) for path in find_placeholders(ROOT)]
    if placeholders and (asked.tag or int(version.partition(".")[0]) >= 1):
        return f"these files still name OWNER: {', '.join(placeholders)}; fill it in with .ci/set_owner.py"
    if asked.tag is None:
        return None
    if asked.tag != f"v{version}":
        return f"the tag {asked.tag} is not v{version}, the version of omgsr_cli/__init__.py"
    notes = read_notes((ROOT / "CHANGELOG.md").read_text("utf-8"), version)
    if not notes:
        return f"CHANGELOG.md has no section '## [{version}] - YYYY-MM-DD' with text"
    if asked.notes:
        asked.notes.write_text(notes + "\n", encoding="utf-8")
    print(f"{asked.tag}: {len(notes.splitlines())} lines of notes")
    return None


if __name__ == "__main__":
    sys.exit(main())
