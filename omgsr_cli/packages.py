"""How omgsr is installed, and the commands that add packages to this installation."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from packaging.requirements import Requirement
from packaging.version import Version

from omgsr_cli import __version__
from omgsr_cli.errors import OmgsrError

DISTRIBUTION = "omgsr-cli"

# Not for users, or an earlier name.
_UNLISTED_EXTRAS = ("compare", "dev", "docs")
# These pull torchvision in, which must be built for the installed torch: the package index may have another build.
_TORCHVISION_EXTRAS = ("compare", "networks", "metrics")
_TORCH_BUILD = re.compile(r"cpu|xpu|cu\d+|rocm[\d.]+")
_WHEELS = "https://download.pytorch.org/whl/"
# torchvision 0.15 belongs to torch 2.0, 0.16 to 2.1, and so on.
_TORCHVISION_MINOR_OFFSET = 15


@dataclass(frozen=True)
class Installation:
    """Where this omgsr runs, and what manages its packages.

    Attributes:
        manager: "pip" or "uv" in an ordinary or virtual environment, "uv tool" or "pipx" in one of their own.
        python: the interpreter that runs omgsr.
        checkout: the folder whose source runs: of an editable installation, or only on the path; else None.
        url: for a package that came from a folder, an archive or a repository, not from an index; else None.
    """

    manager: Literal["pip", "uv", "uv tool", "pipx"]
    python: Path
    checkout: Path | None = None
    url: str | None = None

    def install_extras(self, extras: Iterable[str]) -> str:
        """The command that installs some extras and keeps those that are installed."""
        wanted, missing = sorted(set(extras)), missing_by_extra() or {}
        needs_torchvision = set(wanted) & set(_TORCHVISION_EXTRAS) and version_of("torchvision") is None
        matched = _matching_torchvision() if needs_torchvision else None
        added, build = [matched] if matched else [], torch_build() if matched else None
        if self.manager == "uv tool":
            # uv replaces the extras of a tool, and resolves torch again.
            kept = [name for name, needs in missing.items() if not needs]
            with_added = ["--with", *added] if added else []
            return _join(
                "uv", "tool", "install", *self._source([*wanted, *kept]), *with_added, *_backend(torch_build())
            )
        if self.manager == "pipx":
            needs = [str(need) for name in wanted for need in missing.get(name, [])]
            arguments = [f"--pip-args=--extra-index-url {_WHEELS}{build}"] if build else []
            return _join("pipx", "inject", DISTRIBUTION, *needs, *added, *arguments)
        if self.manager == "uv":
            return _join(*self._pip("install"), *self._source(wanted), *added, *_backend(build))
        index = ["--extra-index-url", _WHEELS + build] if build else []
        return _join(*self._pip("install"), *self._source(wanted), *added, *index)

    def reinstall(self, requirement: str, build: str | None) -> str:
        """The command that replaces one package and nothing else.

        Args:
            requirement: such as "torch" or "torchvision==0.21.0".
            build: of torch's wheels, as `torch_build` returns it.
        """
        if self.manager in ("uv", "uv tool"):
            return _join(*self._pip("install"), "--reinstall", "--no-deps", requirement, *_backend(build))
        index = ("--index-url", _WHEELS + build) if build else ()
        return _join(*self._pip("install"), "--force-reinstall", "--no-deps", requirement, *index)

    def uninstall(self, distribution: str) -> str:
        """The command that removes one package."""
        agree = [] if self.manager in ("uv", "uv tool") else ["-y"]
        return _join(*self._pip("uninstall"), *agree, distribution)

    def _pip(self, verb: str) -> list[str]:
        if self.manager == "pipx":
            return ["pipx", "runpip", DISTRIBUTION, verb]
        if self.manager in ("uv", "uv tool"):
            return ["uv", "pip", verb, "--python", str(self.python)]
        for command in (["pip"], ["python", "-m", "pip"]):
            found = shutil.which(command[0])
            if found is not None and Path(found).parent == self.python.parent:
                return [*command, verb]
        return [str(self.python), "-m", "pip", verb]

    def _source(self, extras: Iterable[str]) -> list[str]:
        wanted = set(extras)
        names = f"[{','.join(sorted(wanted))}]"
        # pip and uv keep an installed package, wherever it came from; a tool is installed again from its source.
        if self.manager != "uv tool" and wanted <= _listed_extras():
            return [f"{DISTRIBUTION}{names}"]
        if self.checkout is not None:
            return ["-e", f"{self.checkout}{names}"]
        return [f"{DISTRIBUTION}{names}" + (f" @ {self.url}" if self.url else "")]


@cache
def find_installation() -> Installation:
    """Find out how this omgsr was installed, from the files that pip, uv and pipx leave."""
    prefix = Path(sys.prefix)
    manager: Literal["pip", "uv", "uv tool", "pipx"] = "pip" if find_spec("pip") else "uv"
    if (prefix / "uv-receipt.toml").is_file():
        manager = "uv tool"
    elif (prefix / "pipx_metadata.json").is_file():
        manager = "pipx"
    checkout = _checkout()
    return Installation(manager, Path(sys.executable), checkout, None if checkout else _direct_url())


def install_command(*extras: str) -> str:
    """The command that adds extras to this installation, such as "pip install 'omgsr-cli[heif]'"."""
    return find_installation().install_extras(extras)


def version_of(distribution: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def missing_by_extra() -> dict[str, list[Requirement]] | None:
    """Requirements that are missing or too old, for each extra that a user may want; None if nothing lists them."""
    needs = _extra_requirements()
    if needs is None:
        return None
    return {name: [need for need in found if not _is_met(need)] for name, found in needs.items()}


def torch_build() -> str | None:
    """The build of the installed torch, such as "cpu" or "cu126"; None for that of the package index."""
    version = version_of("torch")
    local = Version(version).local if version else None
    return local if local and _TORCH_BUILD.fullmatch(local) else None


def torchvision_mismatch() -> str | None:
    """The version of torch that the installed torchvision was built for, if it is not the installed one."""
    torch = version_of("torch")
    try:
        needs = metadata.requires("torchvision") or []
    except metadata.PackageNotFoundError:
        return None
    for need in map(Requirement, needs if torch else []):
        if need.name == "torch" and not need.specifier.contains(Version(str(torch)).public, prereleases=True):
            return str(need.specifier).removeprefix("==")
    return None


def torchvision_error() -> OmgsrError:
    """The one error for a torchvision that does not work with the installed torch, with the command that fixes it."""
    built_for = torchvision_mismatch()
    reason = f": it was built for torch {built_for}" if built_for else ""
    installation, requirement = find_installation(), _matching_torchvision()
    fix = installation.reinstall(requirement, torch_build()) if requirement else installation.uninstall("torchvision")
    return OmgsrError(
        f"the installed torchvision {version_of('torchvision')} does not work with torch {version_of('torch')}{reason}",
        fix,
    )


def _matching_torchvision() -> str | None:
    """The requirement of the torchvision that was released with the installed torch; None if there is none."""
    version = Version(version_of("torch") or "0")
    if version.major != 2 or version.is_prerelease or (version.local and torch_build() is None):
        return None
    number = f"0.{version.minor + _TORCHVISION_MINOR_OFFSET}.{version.micro}"
    return f"torchvision=={number}" + (f"+{version.local}" if version.local else "")


def _is_met(need: Requirement) -> bool:
    version = version_of(need.name)
    return version is not None and need.specifier.contains(version, prereleases=True)


def _listed_extras() -> set[str]:
    """The extras in the installed metadata; those of a checkout may be older than its source."""
    try:
        return set(metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or [])
    except metadata.PackageNotFoundError:
        return set()


def _extra_requirements() -> dict[str, list[Requirement]] | None:
    """From the checkout, whose installed metadata may be out of date, or else from the metadata."""
    checkout = _checkout()
    if checkout is not None:
        project = tomllib.loads((checkout / "pyproject.toml").read_text("utf-8"))["project"]
        listed = {name: list(map(Requirement, needs)) for name, needs in project["optional-dependencies"].items()}
    else:
        try:
            found = metadata.distribution(DISTRIBUTION)
        except metadata.PackageNotFoundError:
            return None
        needs = [need for need in map(Requirement, found.requires or []) if need.marker]
        listed = {
            extra: [
                Requirement(str(need).partition(";")[0])  # without its marker
                for need in needs
                if need.marker and need.marker.evaluate({"extra": extra})
            ]
            for extra in found.metadata.get_all("Provides-Extra") or []
        }
    return {name: found for name, found in sorted(listed.items()) if name not in _UNLISTED_EXTRAS}


@cache
def _checkout() -> Path | None:
    """The folder with the source that runs, if it is a checkout."""
    root = Path(__file__).resolve().parents[1]
    try:
        text = (root / "pyproject.toml").read_text("utf-8")
    except OSError:
        return None
    return root if f'name = "{DISTRIBUTION}"' in text else None


def version_text() -> str:
    """The version of omgsr, with the commit of a checkout or repository: "0.2.0 (commit 0c1ef1e5f)"."""
    checkout = _checkout()
    commit = _direct_record().get("vcs_info", {}).get("commit_id") if checkout is None else _read_commit(checkout)
    return f"{__version__} (commit {commit[:9]})" if commit else __version__


def _read_commit(checkout: Path) -> str | None:
    """The commit of a checkout, from git's files: running git there could run what its configuration names."""
    try:
        git = checkout / ".git"
        if git.is_file():  # a worktree
            git = checkout / git.read_text("utf-8").removeprefix("gitdir:").strip()
        head = (git / "HEAD").read_text("utf-8").strip()
        name = head.removeprefix("ref: ")
        if name == head:
            return head
        common = git / "commondir"
        shared = git / common.read_text("utf-8").strip() if common.is_file() else git
        if (shared / name).is_file():
            return (shared / name).read_text("utf-8").strip()
        packed = (shared / "packed-refs").read_text("utf-8").splitlines()
    except OSError:
        return None
    return next((line.split()[0] for line in packed if line.endswith(f" {name}")), None)


def _direct_url() -> str | None:
    """Where pip or uv took the package from, if not from an index."""
    record = _direct_record()
    revision = record.get("vcs_info", {})
    if revision:
        return f"{revision['vcs']}+{record['url']}@{revision['commit_id']}"
    return str(record["url"]) if record else None


def _direct_record() -> dict[str, Any]:
    """Where pip or uv took the package from (PEP 610); empty for an index."""
    try:
        text = metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return {}
    return dict(json.loads(text)) if text else {}


def _backend(build: str | None) -> list[str]:
    return ["--torch-backend", build] if build else []


def _join(*arguments: str) -> str:
    """A command line for this system's shell."""
    if os.name != "nt":
        return shlex.join(arguments)
    return " ".join(f'"{word}"' if re.search(r"[^\w.=/\\:+-]", word) else word for word in arguments)
