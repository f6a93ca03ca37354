"""Write docs/licences.md from the metadata of installed packages: `python .ci/licences.py`.

With --check, exit 1 if the page lacks a package that `pip install omgsr-cli` installs, or names another licence. The
page covers the core and every extra for users; rows of packages that are not installed stay unchanged.
"""

from __future__ import annotations

import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "licences.md"
DEVELOPERS = ("dev", "docs")
# Only CUDA builds of torch install these packages; NVIDIA's own licence applies to them.
FOREIGN = ("cuda-", "nvidia-", "triton")
CORE, EXTRAS = "## Installed with `pip install omgsr-cli`", "## Installed with extras"

HEAD = """# Licences of other projects

omgsr is published under the [Apache License 2.0](https://github.com/OWNER/omgsr-cli/blob/main/LICENSE).
The bundled model omgsr-tiny was initialised with layers of realesr-general-x4v3 (BSD-3-Clause); its notice is beside
the weights, and the model card lists the photographs that it was trained with.

Installing omgsr installs the packages below, each under its own licence. The tables come from the packages' metadata;
`python .ci/licences.py` writes this page. Three things need attention if you redistribute omgsr together with these
packages, or use it commercially. All three are extras, which are installed only when you ask for them:

- **pyiqa** (`metrics`) may be used for non-commercial purposes only. No other part of omgsr uses it.
- **pillow-jxl-plugin** (`jxl`) is under the GPL-3.0-or-later.
- The wheels of **pillow-heif** (`heif`) are under the GPL-2.0 because of the libraries that they contain; its own
  code is under the BSD-3-Clause licence.

CUDA builds of torch bring libraries of NVIDIA under NVIDIA's licence. Models that `omgsr models pull` downloads have
licences of their own, which it shows before the download.
"""


def licence_of(name: str) -> str:
    """Return the licence in a package's metadata, as an SPDX expression if it has one."""
    found = metadata.metadata(name)
    if expression := found.get("License-Expression"):
        return str(expression)
    classes = [line.rpartition(" :: ")[2] for line in found.get_all("Classifier", []) if line.startswith("License ::")]
    classes = [text for text in classes if text != "OSI Approved"]
    if classes:
        return ", ".join(classes)
    text = str(found.get("License") or "").strip()
    return re.sub(r"\s+", " ", text) if text and len(text) < 60 else "see its page"


def is_installed(name: str) -> bool:
    """Whether a distribution with this name is installed."""
    return next(iter(metadata.distributions(name=name)), None) is not None


def page_of(name: str) -> str:
    """Return the URL of a package's page on the index."""
    return f"https://pypi.org/project/{name}/"


def closure(requirements: list[Requirement]) -> dict[str, str]:
    """Return every installed package that the requirements and their extras depend on, with its licence."""
    found: dict[str, str] = {}
    waiting = [(requirement, "") for requirement in requirements]
    while waiting:
        requirement, extra = waiting.pop()
        name = canonicalize_name(requirement.name)
        if (requirement.marker and not requirement.marker.evaluate({"extra": extra})) or name.startswith(FOREIGN):
            continue
        try:
            licence = licence_of(name)
        except metadata.PackageNotFoundError:
            continue
        is_new, found[name] = name not in found, licence
        if is_new or requirement.extras:
            needs = [Requirement(text) for text in metadata.requires(name) or []]
            waiting += [(need, each) for need in needs for each in ("", *requirement.extras)]
    return found


def read_rows(page: str) -> dict[str, tuple[str, str]]:
    """Return the rows of the page: name to licence and last column."""
    rows = re.findall(r"^\| \[([^\]]+)\]\([^)]+\) \| ([^|]*) \|(?: ([^|]*) \|)?$", page, re.M)
    return {name: (licence, extras) for name, licence, extras in rows}


def main(is_check: bool) -> str | None:
    """Return an error message, or None."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    core = closure([Requirement(text) for text in project["dependencies"]])
    before = read_rows(PAGE.read_text("utf-8")) if PAGE.is_file() else {}
    if is_check:
        wrong = [f"{name} ({licence})" for name, licence in core.items() if before.get(name, ("", ""))[0] != licence]
        return f"docs/licences.md lacks {', '.join(sorted(wrong))}: run python .ci/licences.py" if wrong else None
    extras = {name: list(map(Requirement, needs)) for name, needs in project["optional-dependencies"].items()}
    of_extras: dict[str, tuple[str, set[str]]] = {}
    for extra, needs in extras.items():
        if extra in DEVELOPERS:
            continue
        found = closure(needs)
        if not all(is_installed(need.name) for need in needs):
            # Keep rows of packages that are not installed.
            kept = {name: licence for name, (licence, listed) in before.items() if extra in listed.split(", ")}
            direct = {canonicalize_name(need.name): before.get(need.name, ("see its page",))[0] for need in needs}
            found = direct | kept | found
        for name, licence in found.items():
            if name not in core:
                of_extras[name] = (licence, of_extras.get(name, ("", set()))[1] | {extra})
    lines = [HEAD, CORE, "", "| package | licence |", "|---|---|"]
    lines += [f"| [{name}]({page_of(name)}) | {licence} |" for name, licence in sorted(core.items())]
    lines += ["", EXTRAS, "", "| package | licence | extras |", "|---|---|---|"]
    lines += [
        f"| [{name}]({page_of(name)}) | {licence} | {', '.join(sorted(listed))} |"
        for name, (licence, listed) in sorted(of_extras.items())
    ]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return None


if __name__ == "__main__":
    sys.exit(main("--check" in sys.argv[1:]))
