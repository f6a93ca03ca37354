"""Gathers what can be told of this machine; what needs torch is asked of another process."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from omgsr_cli import __version__
from omgsr_cli.diagnosis.weights import ModelHealth, check_models
from omgsr_cli.errors import ModelError
from omgsr_cli.store.installed import models_folder

LIBRARIES = ("torch", "diffusers", "transformers", "huggingface-hub", "safetensors", "numpy", "pillow")
"""Distributions whose versions decide what a picture looks like, or whether there is one."""

_DISTRIBUTION = "omgsr-cli"
_EXTRA = re.compile(r"([\w.-]+).*;.*\bextra\s*==\s*['\"]([\w-]+)['\"]")
_FOR_DEVELOPERS = ("dev", "docs")
_PROBE = "import json, sys; from omgsr_cli.diagnosis.probe import probe; print(json.dumps(probe(sys.argv[1:])))"
_PROBE_LIMIT_S = 300


@dataclass(frozen=True)
class Diagnosis:
    """All that `omgsr doctor` tells.

    Attributes:
        versions: of omgsr, Python, the system and `LIBRARIES`; None for a library that is not installed.
        devices: what torch can compute on, as `probe` gives them; empty where torch does not work.
        models: the known models and how they are.
        store: where fetched models are kept, whether it can be written, and how much room there is.
        extras: name to the distributions of it that are missing; None where the package's own metadata are absent.
        plans: what `auto` chooses for a large picture, as `probe` gives them.
        problems: what is wrong, each with what to type next, or None.
    """

    versions: dict[str, str | None]
    devices: tuple[dict[str, Any], ...]
    models: tuple[ModelHealth, ...]
    store: dict[str, Any]
    extras: dict[str, list[str]] | None
    plans: tuple[dict[str, Any], ...]
    problems: tuple[tuple[str, str | None], ...]


def diagnose() -> Diagnosis:
    """Look at everything; nothing is changed, and the network is not used."""
    models = check_models()
    answers, reason = _ask([health.name for health in models if health.is_here and not health.damage])
    problems: list[tuple[str, str | None]] = []
    if reason is not None:
        problems.append((f"torch does not work here: {reason}", "pip install --force-reinstall torch"))
    torchvision = _mismatched_torchvision() or answers["torchvision"]
    if torchvision is not None:
        problems.append((torchvision, "type `pip uninstall torchvision`: omgsr does not need it"))
    problems += [(f"{health.name}: {line}", health.hint) for health in models for line in health.damage]
    problems += [(f"{plan['model']}: {plan['error']}", None) for plan in answers["plans"] if "error" in plan]
    return Diagnosis(
        versions=_versions(),
        devices=tuple(answers["devices"]),
        models=models,
        store=_describe_store(),
        extras=_missing_by_extra(),
        plans=tuple(plan for plan in answers["plans"] if "error" not in plan),
        problems=tuple(problems),
    )


def _versions() -> dict[str, str | None]:
    own = {"omgsr": __version__, "python": platform.python_version(), "system": platform.platform(terse=True)}
    return own | {name: _version(name) for name in (*LIBRARIES, "torchvision")}


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _mismatched_torchvision() -> str | None:
    """Say that torchvision was built for another torch, by what its own metadata ask for."""
    torch, torchvision = _version("torch"), _version("torchvision")
    if torch is None or torchvision is None:
        return None
    wanted = [re.fullmatch(r"torch\s*\(?==\s*([\w.+]+)\)?", need) for need in metadata.requires("torchvision") or []]
    for match in wanted:
        if match is not None and match[1].partition("+")[0] != torch.partition("+")[0]:
            return f"the installed torchvision {torchvision} was built for torch {match[1]}, not for torch {torch}"
    return None


def _missing_by_extra() -> dict[str, list[str]] | None:
    """Distributions that are not installed, for each extra that a user may want."""
    try:
        needs = metadata.requires(_DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return None
    found: dict[str, list[str]] = {}
    for match in map(_EXTRA.match, needs):
        if match is not None and match[2] not in _FOR_DEVELOPERS:
            found.setdefault(match[2], []).extend([match[1]] if _version(match[1]) is None else [])
    return found


def _describe_store() -> dict[str, Any]:
    """Where models are kept: "folder", "writable", "free_mib"; the last from the nearest folder that exists."""
    try:
        folder = models_folder()
    except ModelError as error:
        return {"folder": None, "writable": False, "free_mib": 0, "reason": error.message}
    there = next(place for place in (folder, *folder.parents) if place.is_dir())
    free = shutil.disk_usage(there).free
    return {"folder": str(folder), "writable": os.access(there, os.W_OK | os.X_OK), "free_mib": free >> 20}


def _ask(models: list[str]) -> tuple[dict[str, Any], str | None]:
    """The answers of `probe`, or empty ones and the reason why there are none."""
    nothing: dict[str, Any] = {"devices": [], "torchvision": None, "plans": []}
    command = [sys.executable, "-c", _PROBE, *models]
    # The package is found there as it was found here, whatever the current folder holds.
    root = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PROBE_LIMIT_S,
            env=os.environ | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"},
        )
    except subprocess.TimeoutExpired:
        return nothing, f"it gave no answer in {_PROBE_LIMIT_S} s"
    if done.returncode == 0:
        answers: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return answers, None
    if done.returncode < 0:
        return nothing, f"importing it ended with {signal.Signals(-done.returncode).name}"
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    return nothing, lines[-1] if lines else f"exit code {done.returncode}"
