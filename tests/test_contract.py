"""Rules of the code, read from the source."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import pytest
from places import ROOT

PACKAGE = ROOT / "omgsr_cli"
MODULES = sorted(PACKAGE.rglob("*.py"))

# No torch here: what a command needs before it loads a model. The layers themselves are in pyproject.toml.
PLAIN = ["errors", "validation", "presets", "options", "geometry", "files", "store", "pages"]

# What --help and every check before a model is loaded must not wait for.
HEAVY = ["torch", "torchvision", "numpy", "scipy", "PIL", "pandas", "diffusers", "transformers", "peft", "accelerate"]


def part_of(path: Path) -> str:
    """The module or folder right under the package that a file belongs to; "" for the package itself."""
    first = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


def dotted(path: Path) -> str:
    """What to import below the package for a file: "files.jobs", or "files" for a folder's own."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


@cache
def nodes(path: Path) -> list[ast.AST]:
    """Every node of a module that the rules below ask about."""
    kinds = (ast.Import, ast.ImportFrom, ast.Call, ast.Attribute, ast.Constant)
    return [node for node in ast.walk(ast.parse(path.read_text("utf-8"), str(path))) if isinstance(node, kinds)]


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything a module imports, inside of functions too.

    `from a import b` gives "a.b": whether b is a module cannot be told from here, and need not be.
    """
    for node in nodes(path):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, f"{'.' * node.level}{node.module or ''}.{alias.name}") for alias in node.names)


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def test_imports_follow_the_layers_in_pyproject() -> None:
    lint = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", lint], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_plain_modules_import_the_standard_library_and_pydantic() -> None:
    allowed = sys.stdlib_module_names | {"pydantic", "omgsr_cli"}
    # Imported inside functions, when an address or a hub repository is given, a file is written, or a folder watched.
    late = {
        PACKAGE / "files" / "addresses.py": "fsspec",
        PACKAGE / "store" / "hub.py": "huggingface_hub",
        PACKAGE / "files" / "atomic.py": "psutil",
        PACKAGE / "files" / "watching.py": "watchfiles",
    }
    wrong = [
        f"{where(path, line)}: {name}"
        for path in MODULES
        if part_of(path) in {"", *PLAIN}
        for line, name in imports(path)
        if name.partition(".")[0] not in allowed and name.partition(".")[0] != late.get(path)
    ]
    assert not wrong, "\n".join(wrong)


# Beside the plain modules: those that report a wrong option or configuration.
LIGHT = ["cli.app", *(dotted(path) for path in MODULES if part_of(path) in PLAIN)]
LIGHT += ["models.families", "models.sources", "installation.pulling", "training.config"]


# One after the other in one process: the module that first loads what is heavy is named.
IMPORT_EACH = """
import importlib, json, sys
before = set(sys.modules)
for name in json.loads(sys.argv[1]):
    importlib.import_module(f"omgsr_cli.{name}")
    loaded, before = set(sys.modules) - before, set(sys.modules)
    print(json.dumps([name, sorted(loaded)]))
"""


def test_importing_light_modules_loads_nothing_heavy() -> None:
    command = [sys.executable, "-c", IMPORT_EACH, json.dumps(LIGHT)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    loaded = dict(map(json.loads, done.stdout.splitlines()))
    assert list(loaded) == LIGHT
    heavy = {name: found for name, modules in loaded.items() if (found := {*HEAVY, "fsspec"}.intersection(modules))}
    assert heavy == {}
    assert "pydantic" not in loaded["cli.app"], "--help waits for it"


SPOKEN = ("sys.stderr", "sys.stdout.write")


def test_only_the_command_line_speaks() -> None:
    wrong = []
    for path in MODULES:
        if part_of(path) == "cli":
            continue
        wrong += [
            where(path, line) for line, name in imports(path) if name.partition(".")[0] in ("rich", "typer", "click")
        ]
        for node in nodes(path):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "input"):
                wrong.append(where(path, node.lineno))
            if isinstance(node, ast.Attribute) and node.attr in ("stderr", "write") and ast.unparse(node) in SPOKEN:
                wrong.append(where(path, node.lineno))
    assert not wrong, wrong


# Who may know a family by its name beside the registry: the family's own file, and the presets that name it.
REGISTRY = "models/families.py"
FAMILY_FILES = {
    "sd": ["models/sd.py", "presets.py"],
    "flux": ["models/flux.py", "presets.py"],
    "tiny": ["models/tiny.py", "presets.py"],
    "network": ["models/network.py"],
}


def test_the_registry_has_the_families_of_this_test() -> None:
    from omgsr_cli.models.families import FAMILIES

    assert set(FAMILIES) == set(FAMILY_FILES)
    assert all((PACKAGE / file).is_file() for files in FAMILY_FILES.values() for file in files)


def test_only_the_registry_asks_for_the_family() -> None:
    wrong = [
        where(path, node.lineno)
        for path in MODULES
        # base.py defines the field and shows it in a model's repr.
        if path.relative_to(PACKAGE).as_posix() not in (REGISTRY, "models/base.py")
        for node in nodes(path)
        if isinstance(node, ast.Attribute) and node.attr == "family"
    ]
    assert not wrong, wrong


@pytest.mark.parametrize("family", FAMILY_FILES)
def test_only_its_own_files_know_a_family(family: str) -> None:
    own = {file.removesuffix(".py").replace("/", ".") for file in FAMILY_FILES[family] if file.startswith("models/")}
    for path in MODULES:
        place = path.relative_to(PACKAGE).as_posix()
        if place in (REGISTRY, *FAMILY_FILES[family]):
            continue
        named = [
            where(path, node.lineno) for node in nodes(path) if isinstance(node, ast.Constant) and node.value == family
        ]
        imported = [
            where(path, line)
            for line, name in imports(path)
            if any(f"{name}.".startswith(f"omgsr_cli.{module}.") for module in own)
        ]
        assert not named + imported, f"{family!r} is known in {named + imported}"


def test_every_field_of_a_preset_is_used() -> None:
    from dataclasses import fields

    from omgsr_cli.presets import Preset

    read = {
        node.attr
        for path in MODULES
        for node in nodes(path)
        if isinstance(node, ast.Attribute)
        and ast.unparse(node.value).partition("[")[0] in ("preset", "known", "PRESETS")
    }
    read |= {"family", "embedded"}  # by `family_of`, and by the preset itself
    assert {field.name for field in fields(Preset)} <= read


def test_every_key_of_a_training_configuration_is_used() -> None:
    from omgsr_cli.training.config import TrainConfig
    from omgsr_cli.training.losses import NAMES, TEACHER_NAMES

    read = {node.attr for path in MODULES for node in nodes(path) if isinstance(node, ast.Attribute)}
    # Weights of losses are read by these tables.
    read |= {*NAMES, *TEACHER_NAMES.values()}
    assert [name for name in key_names(TrainConfig) if name.rpartition(".")[2] not in read] == []


def key_names(section: Any) -> Iterator[str]:
    for name, field in section.model_fields.items():
        inner = [part for part in (field.annotation, *get_args(field.annotation)) if hasattr(part, "model_fields")]
        if not inner:
            yield f"{section.__name__}.{name}"
        for part in inner:
            yield from key_names(part)


def test_torchvision_is_never_imported() -> None:
    wrong = [where(p, line) for p in MODULES for line, name in imports(p) if name.partition(".")[0] == "torchvision"]
    assert not wrong, wrong


READERS = ("torch.load", "pickle.load", "pickle.loads")


def test_pickles_are_never_read() -> None:
    """But for feature networks, whose makers publish nothing else, by torch's reader that can only make tensors.

    Networks of other projects are read by spandrel, whose reader refuses the rest with pickle's own error.
    """
    by_spandrel = PACKAGE / "models" / "network.py"
    tensors_only = PACKAGE / "training" / "perceptual.py"
    wrong = []
    for path in MODULES:
        safe = [
            node.func
            for node in nodes(path)
            if isinstance(node, ast.Call)
            and path == tensors_only
            and "weights_only=True" in map(ast.unparse, node.keywords)
        ]
        for node in nodes(path):
            if isinstance(node, ast.Attribute) and node.attr in ("load", "loads") and ast.unparse(node) in READERS:
                wrong += [] if node in safe else [where(path, node.lineno)]
        allowed = {"pickle.UnpicklingError"} if path in (tensors_only, by_spandrel) else set()
        wrong += [
            where(path, line)
            for line, name in imports(path)
            if name.partition(".")[0] == "pickle" and name not in allowed
        ]
    assert not wrong, wrong


def test_no_text_names_a_folder_of_one_machine() -> None:
    """Nor, in the package, a server other than the ones whose pages it cites."""
    folder = re.compile(r"(?<![\w./:~-])/(?:home|root|opt|mnt|srv|Users|work(?:space)?)/\w")
    server = re.compile(
        r"https?://(?!(?:arxiv\.org|github\.com|huggingface\.co|drive\.google\.com|json-schema\.org"
        # Names of XMP schemas, which nothing is fetched from.
        # PyTorch's index, which install commands name.
        r"|download\.pytorch\.org|ns\.(?:adobe|google|apple|microsoft|acdsee|oplus)\.com|iptc\.org|purl\.org|www\.w3\.org)"
        r"[/\"')\s])"
    )
    files = [path for path in ROOT.glob("*.*") if path.suffix in (".md", ".toml", ".txt", ".yml", ".yaml")]
    files += [
        path
        for name in ("docs", "recipes", "benchmarks")
        for path in (ROOT / name).rglob("*")
        if path.suffix in (".md", ".py", ".sh")
    ]
    wrong = [str(path) for path in [*MODULES, *files] if folder.search(path.read_text("utf-8"))]
    wrong += [str(path) for path in MODULES if server.search(path.read_text("utf-8"))]
    assert not wrong, wrong
