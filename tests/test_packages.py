"""Commands that add packages, for each way of installing omgsr."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from omgsr_cli import __version__, packages
from omgsr_cli.packages import Installation


@pytest.fixture(autouse=True)
def _posix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "os", type("os", (), {"name": "posix"}))


def use_versions(monkeypatch: pytest.MonkeyPatch, **versions: str) -> None:
    monkeypatch.setattr(packages, "version_of", versions.get)


def use_extras(monkeypatch: pytest.MonkeyPatch, *, listed: bool = True, **missing: list[str]) -> None:
    found = {name: list(map(Requirement, needs)) for name, needs in missing.items()}
    monkeypatch.setattr(packages, "missing_by_extra", lambda: found)
    monkeypatch.setattr(packages, "_listed_extras", lambda: set(found) if listed else set())


def installed_by(manager: str, **other: object) -> Installation:
    return Installation(manager, Path("/venv/bin/python"), **other)  # type: ignore[arg-type]


def words(command: str) -> list[str]:
    return shlex.split(command)


def test_pip_in_an_environment_that_is_not_on_the_path_is_called_by_its_python(monkeypatch: pytest.MonkeyPatch) -> None:
    use_extras(monkeypatch, heif=["pillow-heif>=1.0"])
    monkeypatch.setattr(packages.shutil, "which", lambda name: f"/usr/bin/{name}")
    command = installed_by("pip").install_extras(["heif"])
    assert words(command) == ["/venv/bin/python", "-m", "pip", "install", "omgsr-cli[heif]"]
    monkeypatch.setattr(packages.shutil, "which", lambda name: f"/venv/bin/{name}")
    assert installed_by("pip").install_extras(["heif"]) == "pip install 'omgsr-cli[heif]'"


def test_an_environment_without_pip_uses_uv(monkeypatch: pytest.MonkeyPatch) -> None:
    use_extras(monkeypatch, raw=["rawpy"], heif=["pillow-heif"])
    command = installed_by("uv").install_extras(["raw", "heif"])
    assert words(command) == ["uv", "pip", "install", "--python", "/venv/bin/python", "omgsr-cli[heif,raw]"]


def test_a_tool_of_uv_keeps_the_extras_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    use_extras(monkeypatch, raw=["rawpy"], heif=[], jxl=["pillow-jxl-plugin"])
    use_versions(monkeypatch, torch="2.9.1+cpu")
    command = installed_by("uv tool").install_extras(["raw"])
    assert words(command) == ["uv", "tool", "install", "omgsr-cli[heif,raw]", "--torch-backend", "cpu"]
    from_git = installed_by("uv tool", url="git+https://example.org/x@abc").install_extras(["raw"])
    assert "omgsr-cli[heif,raw] @ git+https://example.org/x@abc" in words(from_git)


def test_pipx_injects_the_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    use_extras(monkeypatch, raw=["rawpy>=0.24"], remote=["gcsfs>=2025.3", "s3fs>=2025.3"])
    command = installed_by("pipx").install_extras(["remote"])
    assert words(command) == ["pipx", "inject", "omgsr-cli", "gcsfs>=2025.3", "s3fs>=2025.3"]


def test_a_checkout_whose_metadata_lack_the_extra_is_installed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    use_extras(monkeypatch, listed=False, raw=["rawpy"])
    command = installed_by("pip", checkout=Path("/src/my omgsr")).install_extras(["raw"])
    assert words(command)[-2:] == ["-e", "/src/my omgsr[raw]"]


@pytest.mark.parametrize(
    ("manager", "torch", "requirement"),
    [
        ("pip", "2.9.1+cpu", "torchvision==0.24.1+cpu"),
        ("uv", "2.9.1+cpu", "torchvision==0.24.1+cpu"),
        ("uv tool", "2.6.0+cu126", "torchvision==0.21.0+cu126"),
        ("pipx", "2.6.0+cu126", "torchvision==0.21.0+cu126"),
        ("pip", "2.13.0", "torchvision==0.28.0"),
    ],
)
def test_extras_that_need_torchvision_get_the_one_for_this_torch(
    monkeypatch: pytest.MonkeyPatch, manager: str, torch: str, requirement: str
) -> None:
    use_extras(monkeypatch, metrics=["pyiqa"], plot=["matplotlib"])
    use_versions(monkeypatch, torch=torch)
    build = torch.partition("+")[2]
    for command in (
        installed_by(manager).install_extras(["metrics"]),
        installed_by(manager).reinstall(requirement, packages.torch_build()),
        str(packages.torchvision_error().hint),
    ):
        assert requirement in words(command)
        # The package index has only one build of each.
        assert ("download.pytorch.org" in command or "--torch-backend" in command) == bool(build)
    assert "torchvision" not in installed_by(manager).install_extras(["plot"])
    use_versions(monkeypatch, torch=torch, torchvision="0.1")
    assert "torchvision" not in installed_by(manager).install_extras(["metrics"])


def test_a_torch_without_a_released_torchvision_has_it_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ("2.14.0.dev20270101+cpu", "2.6.0a0+ecf3bae40a.nv25.01", "2.9.0+mybuild"):
        use_versions(monkeypatch, torch=version, torchvision="0.20.0")
        assert "uninstall" in str(packages.torchvision_error().hint)


@pytest.mark.parametrize(
    ("file", "manager"), [("uv-receipt.toml", "uv tool"), ("pipx_metadata.json", "pipx"), (None, "pip"), (None, "uv")]
)
def test_the_manager_is_found_by_what_it_leaves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, file: str | None, manager: str
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    monkeypatch.setattr(packages, "find_spec", lambda name: None if manager == "uv" else object())
    if file is not None:
        (tmp_path / file).touch()
    assert packages.find_installation.__wrapped__().manager == manager


def write_distribution(folder: Path, name: str, version: str, *lines: str) -> None:
    information = folder / f"{name}-{version}.dist-info"
    information.mkdir()
    text = "\n".join(["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}", *lines, ""])
    (information / "METADATA").write_text(text)


def test_extras_of_an_installed_package_are_read_from_its_metadata(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    needs = (
        "Provides-Extra: one",
        "Provides-Extra: two",
        "Provides-Extra: dev",
        "Requires-Dist: always-missing>=1",
        "Requires-Dist: present>=2; extra == 'one'",
        "Requires-Dist: old>=2; extra == 'two'",
        "Requires-Dist: absent[x]>=1; extra == 'two'",
        "Requires-Dist: elsewhere; sys_platform == 'nowhere' and extra == 'two'",
        "Requires-Dist: absent; extra == 'dev'",
    )
    write_distribution(tmp_path, "omgsr_cli", "1.0", *needs)
    write_distribution(tmp_path, "present", "2.1")
    write_distribution(tmp_path, "old", "1.9")
    monkeypatch.setattr(packages, "_checkout", lambda: None)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    found = packages.missing_by_extra()
    assert found is not None
    assert {name: list(map(str, missing)) for name, missing in found.items()} == {
        "one": [],
        "two": ["old>=2", "absent[x]>=1"],
    }


COMMIT = "0c1ef1e5f0000000000000000000000000000000"


@pytest.mark.parametrize("kind", ["branch", "packed", "detached", "worktree", "none"])
def test_the_version_shows_the_commit_of_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    checkout = tmp_path / "checkout"
    git = tmp_path / "other" / ".git" if kind == "worktree" else checkout / ".git"
    files = {
        "branch": {"HEAD": "ref: refs/heads/main\n", "refs/heads/main": COMMIT + "\n"},
        "packed": {"HEAD": "ref: refs/heads/main\n", "packed-refs": f"# pack-refs\n{COMMIT} refs/heads/main\n"},
        "detached": {"HEAD": COMMIT + "\n"},
        "worktree": {
            "worktrees/here/HEAD": "ref: refs/heads/main\n",
            "worktrees/here/commondir": "../..\n",
            "refs/heads/main": COMMIT + "\n",
        },
        "none": {},
    }
    for name, text in files[kind].items():
        (git / name).parent.mkdir(parents=True, exist_ok=True)
        (git / name).write_text(text)
    checkout.mkdir(exist_ok=True)
    if kind == "worktree":
        (checkout / ".git").write_text(f"gitdir: {git / 'worktrees' / 'here'}\n")
    monkeypatch.setattr(packages, "_checkout", lambda: checkout)
    assert packages.version_text() == __version__ + (" (commit 0c1ef1e5f)" if kind != "none" else "")


def test_extras_of_a_checkout_are_those_of_its_source() -> None:
    found = packages.missing_by_extra()
    assert found is not None
    assert {"networks", "metrics", "plot", "codecs"} <= set(found)
    assert not {"dev", "docs"} & set(found)
