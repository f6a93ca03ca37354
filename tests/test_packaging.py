"""Versions, dependencies and links of the package."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version
from places import ROOT

import omgsr_cli

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
README = (ROOT / "README.md").read_text("utf-8")
EXTRAS = PROJECT["project"]["optional-dependencies"]
DEPENDENCIES = [Requirement(text) for text in PROJECT["project"]["dependencies"]]
REQUIREMENTS = [*DEPENDENCIES, *(Requirement(text) for texts in EXTRAS.values() for text in texts)]


def constraints() -> dict[str, Version]:
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    versions: dict[str, Version] = {}
    for pin in pins:
        (specifier,) = pin.specifier
        assert specifier.operator == "==", f"{pin} is no exact version"
        assert canonicalize_name(pin.name) not in versions, f"{pin.name} is pinned twice"
        versions[canonicalize_name(pin.name)] = Version(specifier.version)
    return versions


def test_the_installed_metadata_is_of_this_checkout() -> None:
    try:
        installed = metadata.metadata("omgsr-cli")
    except metadata.PackageNotFoundError:
        pytest.skip("the package is not installed here, only on the path")
    assert installed["Version"] == omgsr_cli.__version__
    assert installed["License-Expression"] == "Apache-2.0"
    assert Requirement(f"python{installed['Requires-Python']}").specifier.contains("3.11")
    (script,) = metadata.distribution("omgsr-cli").entry_points
    assert (script.name, script.value, script.group) == ("omgsr", "omgsr_cli.cli.app:main", "console_scripts")


def test_every_link_of_the_readme_is_absolute_and_leads_to_a_file() -> None:
    """A package index shows the README without the files beside it."""
    targets = re.findall(r"\]\(([^)]+)\)|^\[[^\]]+\]: (\S+)|(?:src|href)=\"([^\"]+)\"", README, re.M)
    links = {next(filter(None, found)) for found in targets}
    assert not [link for link in links if not link.startswith("https://")]
    names = set(re.findall(r"\]\[([^\]]+)\]", README))
    assert names <= set(re.findall(r"^\[([^\]]+)\]: ", README, re.M))
    repository = PROJECT["project"]["urls"]["Repository"]
    raw = repository.replace("github.com", "raw.githubusercontent.com")
    own = [link for link in links if link.startswith((repository, raw))]
    assert len(own) >= 10
    for link in own:
        assert (ROOT / link.removeprefix(f"{repository}/blob/main/").removeprefix(f"{raw}/main/")).is_file(), link


def test_every_requirement_has_a_bound_and_a_tested_version() -> None:
    pins = constraints()
    for requirement in REQUIREMENTS:
        assert [specifier.operator for specifier in requirement.specifier] == [">="], requirement
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_transitive_dependencies_are_pinned() -> None:
    """Installing with the constraints gives one set of versions, not today's newest of what is further down."""
    pinned = constraints()
    needs = [Requirement(text) for one in DEPENDENCIES for text in metadata.requires(one.name) or []]
    named = {canonicalize_name(need.name) for need in needs if not need.marker or need.marker.evaluate({"extra": ""})}
    # A build of torch for GPUs pins the libraries of its own.
    loose = {need for need in named - set(pinned) if not need.startswith(("nvidia-", "cuda-", "triton"))}
    assert not loose


def test_no_dependency_needs_torchvision() -> None:
    names = {canonicalize_name(requirement.name) for requirement in REQUIREMENTS} | set(constraints())
    assert "torchvision" not in names


def test_each_public_name_is_marked_stable_or_provisional() -> None:
    page = (ROOT / "docs" / "library.md").read_text("utf-8").partition("## Stable and provisional")[2]
    rows = re.findall(r"^\| (.+?) \| (stable|provisional)\b.*\|$", page, re.M)
    marked = {name for names, _ in rows for name in re.findall(r"`omgsr_cli\.(\w+)`", names)}
    assert set(omgsr_cli.__all__) <= marked


def test_the_conda_recipe_has_the_version_and_the_dependencies() -> None:
    recipe = yaml.safe_load((ROOT / "conda" / "recipe.yaml").read_text("utf-8"))
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text("utf-8"))
    assert recipe["context"]["version"] == citation["version"] == omgsr_cli.__version__
    names = {"pytorch": "torch", "huggingface_hub": "huggingface-hub"}
    found = {re.sub(r"^\S+", lambda name: names.get(name[0], name[0]), need) for need in recipe["requirements"]["run"]}
    assert found - {"python >=${{ python_min }}"} == {f"{need.name} {need.specifier}" for need in DEPENDENCIES}


def test_a_release_needs_an_owner_and_a_tag_that_is_the_version_and_in_the_changelog(tmp_path: Path) -> None:
    (tmp_path / "omgsr_cli").mkdir()
    sections = ("[Unreleased]", "", "[0.2.0] - 2026-12-01", "Sharper.", "[0.1.0] - 2026-11-01", "New.")
    (tmp_path / "CHANGELOG.md").write_text(
        "".join(f"{'## ' if part[:1] == '[' else ''}{part}\n\n" for part in sections)
    )
    # Not written out, as the placeholder is filled in here too.
    text = "https://github.com/{0}/omgsr-cli, https://{0}.github.io/, not OWNER\n    - {0}\n"
    (tmp_path / "page.md").write_text(text.format("OWNER"))
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    for command in (["init", "-q"], ["add", "page.md"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)

    def run(*words: str) -> int:
        return subprocess.run([sys.executable, *words], cwd=tmp_path, capture_output=True, check=False).returncode

    check = ".ci/check_release.py"
    version = tmp_path / "omgsr_cli" / "__init__.py"
    version.write_text('__version__ = "1.0.0"\n')
    assert run(check) == 1
    version.write_text('__version__ = "0.2.0"\n')
    assert run(check) == 0
    assert run(check, "v0.2.0") == 1
    assert run(".ci/set_owner.py", "no/name") == 1
    assert run(".ci/set_owner.py", "alice") == 0
    assert (tmp_path / "page.md").read_text() == text.format("alice")
    assert run(check, "v0.2.0", "--notes", "notes.md") == 0
    assert (tmp_path / "notes.md").read_text() == "Sharper.\n"
    assert run(check, "v0.1.0") == run(check, "0.2.0") == 1


def test_workflows_have_no_rights_but_those_of_their_jobs_and_only_one_publishes() -> None:
    paths = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    workflows = {path.stem: yaml.safe_load(path.read_text("utf-8")) for path in paths}
    for workflow in workflows.values():
        assert workflow["permissions"] == {}
        uses = [step["uses"] for job in workflow["jobs"].values() for step in job["steps"] if "uses" in step]
        assert all(re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", action) for action in uses)
    publish = workflows["release"]["jobs"]["publish"]
    assert publish["permissions"] == {"id-token": "write"}
    assert publish["environment"]["name"] == "pypi"
    steps = [step for job in workflows["release"]["jobs"].values() for step in job["steps"]]
    assert not [step for step in steps if "cache" in step.get("with", {})]
    writers = [name for name, job in workflows["release"]["jobs"].items() if "write" in job["permissions"].values()]
    assert writers == ["publish", "announce"]
