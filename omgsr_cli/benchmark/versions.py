"""The versions of everything that moves a number."""

from __future__ import annotations

import platform
from importlib import metadata

from omgsr_cli import __version__

_LIBRARIES = (
    *("torch", "numpy", "pillow", "diffusers", "transformers"),
    *("pyiqa", "torchvision", "timm", "scipy", "opencv-python-headless", "spandrel"),
)


def collect_versions() -> dict[str, str]:
    """Name to version of this program, its libraries that are installed, Python and the system."""
    found = {"omgsr": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        version = version_of(name)
        if version is not None:
            found[name] = version
    return {**found, "system": f"{platform.system()} {platform.machine()}"}


def version_of(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
