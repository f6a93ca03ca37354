"""`omgsr doctor` on this machine, and on simulated broken ones."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Command
from places import ROOT
from safetensors.torch import save_file

from omgsr_cli import diagnosis
from omgsr_cli.errors import ModelError
from omgsr_cli.models import devices
from omgsr_cli.models.weight_files import read_header
from omgsr_cli.presets import NETWORKS, PRESETS


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("OMGSR_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def doctor(capfdbinary: pytest.CaptureFixture[bytes]) -> Command:
    return Command(capfdbinary, "doctor")


@pytest.fixture
def without_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start no process for what needs torch."""
    findings = {"devices": [], "torchvision": None, "plans": []}
    monkeypatch.setattr(diagnosis, "_run_probe", lambda models: (findings, None))


def run_beside(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the program in a process of its own, with a folder of packages before all others."""
    path = os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH"))))
    return subprocess.run(
        [sys.executable, "-m", "omgsr_cli", "doctor"],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path} | environment,
        cwd=ROOT,
    )


def write_package(folder: Path, name: str, code: str, version: str = "0.0.1", requires: str = "") -> None:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(code)
    information = folder / f"{name}-{version}.dist-info"
    information.mkdir()
    need = f"Requires-Dist: {requires}\n" if requires else ""
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{need}")


def test_the_screen_and_the_json_agree(doctor: Command, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = diagnosis._run_probe
    run_once = cache(lambda *models: real(list(models)))
    monkeypatch.setattr(diagnosis, "_run_probe", lambda models: run_once(*models))
    screen = doctor()
    assert (screen.code, screen.err) == (0, "")
    assert len(screen.lines) <= 30
    (record,) = doctor("--json").records
    assert record["versions"]["torch"] == torch.__version__
    assert record["versions"]["torchvision"] is None or isinstance(record["versions"]["torchvision"], str)
    assert [device["name"] for device in record["devices"]][-1] == "cpu"
    assert record["store"]["folder"] == str(home / "models")
    assert record["problems"] == []
    assert {"networks", "metrics", "plot"} <= set(record["extras"])
    assert "dev" not in record["extras"]
    assert record["extras"]["plot"] == []
    # Every extra with missing packages has a command that names it, and the screen shows the same command.
    assert set(record["install"]) == {name for name, missing in record["extras"].items() if missing}
    for name, command in record["install"].items():
        assert f"[{name}]" in command
        assert command in screen.out.decode()
    (tiny, *_), (plan, *_) = record["models"], record["plans"]
    assert (tiny["name"], tiny["damage"], plan["model"]) == ("omgsr-tiny", [], "omgsr-tiny")
    assert plan["output_size"] == [16000, 12000]
    assert f"{plan['tiles']} tiles of {plan['tile_px']} px" in screen.out.decode()
    assert all(reason in screen.out.decode() for reason in plan["why"] if "GiB" not in reason)


@pytest.mark.parametrize(
    ("gain", "has_bf16", "chosen"),
    [(0.95, True, "fp32"), (1.05, True, "fp32"), (1.5, True, "bf16"), (0, False, "fp32")],
)
def test_the_lines_on_precision_agree(
    monkeypatch: pytest.MonkeyPatch, gain: float, has_bf16: bool, chosen: str
) -> None:
    monkeypatch.setattr(devices, "_IS_PRESENT", {"cpu": lambda: True})
    monkeypatch.setattr(devices, "multiplies_in_bf16", lambda device: has_bf16)
    monkeypatch.setattr(devices, "bf16_gain_on_cpu", lambda layers="unet": gain)
    device = diagnosis._describe_device("cpu")
    assert "auto" not in device  # it depends on the model: the plans have it
    plan = diagnosis._plan("omgsr-tiny")
    assert plan["precision"] == chosen
    (reason,) = (line for line in plan["why"] if line.startswith(f"{chosen}: "))
    assert (f"{gain:.2f}" in reason) == has_bf16


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise ImportError('libcudart.so.99: cannot open shared object file')", "libcudart.so.99"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "SIGILL"),
    ],
)
def test_a_broken_torch_is_reported_with_everything_else(tmp_path: Path, code: str, reason: str) -> None:
    write_package(tmp_path / "packages", "torch", code)
    finished = run_beside(tmp_path / "packages")
    assert finished.returncode == 1
    assert "torch 0.0.1" in finished.stdout
    assert "omgsr-tiny: intact" in finished.stdout
    assert "Traceback" not in finished.stderr
    errors = [line for line in finished.stderr.splitlines() if line.startswith("error: ")]
    assert len([line for line in errors if "torch" in line and reason in line]) == 1
    assert re.search(r"^hint: .*install.* torch\b", finished.stderr, re.MULTILINE)


@pytest.mark.parametrize(
    ("code", "requires"),
    [
        ("", "torch==2.5.0"),
        ("raise RuntimeError('operator torchvision::nms does not exist')", ""),
    ],
)
@pytest.mark.skipif(find_spec("torchvision") is not None, reason="a real torchvision is installed")
def test_a_torchvision_for_another_torch_is_one_problem_with_its_command(
    doctor: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, requires: str
) -> None:
    write_package(tmp_path / "packages", "torchvision", code, "0.20.0", requires)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.setattr(diagnosis, "_run_probe", lambda models: (diagnosis.probe([]), None))
    try:
        said = doctor()
    finally:
        sys.modules.pop("torchvision", None)
    assert said.code == 1
    (error,), (hint,) = said.errors, [line for line in said.err.splitlines() if line.startswith("hint:")]
    assert "0.20.0" in error
    assert torch.__version__ in error
    assert ("2.5.0" in error) == bool(requires)
    # One way out: not an uninstallation after which another message asks for an installation.
    assert "uninstall" not in hint
    assert f"torchvision==0.{int(torch.__version__.split('.')[1]) + 15}." in hint


def write_installed(home: Path) -> Path:
    folder = home / "models" / "omgsr-s-512"
    (folder / "unet").mkdir(parents=True)
    (folder / "omgsr.json").write_text('{"family": "sd", "mid_timestep": 273, "native_tile_px": 512}')
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(7)}, folder / "unet" / "weights.safetensors")
    return folder / "unet" / "weights.safetensors"


@pytest.mark.usefixtures("without_probe")
def test_corrupt_weights_are_found_with_the_command_that_repairs_them(doctor: Command, home: Path) -> None:
    path = write_installed(home)
    path.write_bytes(path.read_bytes()[:-1])
    said = doctor()
    assert said.code == 1
    assert "omgsr-s-512: CORRUPT" in said.out.decode()
    assert re.search(r"error: omgsr-s-512: .*weights\.safetensors: ", said.err)
    assert "hint: omgsr models pull omgsr-s-512" in said.err


@pytest.mark.usefixtures("without_probe")
def test_a_folder_that_is_not_writable_is_shown(doctor: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "NOT WRITABLE" in doctor().out.decode()


def test_without_a_home_folder_the_reason_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("OMGSR_HOME", "XDG_DATA_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    store = diagnosis._describe_store()
    assert store["folder"] is None
    assert "no home folder" in store["reason"]
    assert [health.name for health in diagnosis.check_models()] == [*PRESETS, *NETWORKS]


def test_gpus_are_listed_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_IS_PRESENT", {"cuda": lambda: True, "cpu": lambda: True})
    monkeypatch.setattr(devices, "why_unusable", lambda kind: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"Card {device.index}")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (7 << 30, 8 << 30))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    found = [diagnosis._describe_device(name) for name in devices.all_devices()]
    assert [(device["name"], device["title"]) for device in found[:2]] == [("cuda:0", "Card 0"), ("cuda:1", "Card 1")]
    assert found[0]["free_mib"] == 7 << 10
    assert found[0]["precisions"] == ["fp32", "bf16", "fp16"]
    assert "fp16" not in found[2]["precisions"]


# The header of a safetensors file


def write_file(path: Path, header: Any, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(begin: object, end: object, shape: object = (1,), dtype: object = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": list(shape) if isinstance(shape, tuple) else shape, "data_offsets": [begin, end]}


def test_a_header_describes_what_torch_would_read(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(3, 5), "b": torch.zeros(2, dtype=torch.bfloat16)}, tmp_path / "x", metadata={"k": "v"})
    header = read_header(tmp_path / "x")
    assert {name: (found.dtype, found.shape, found.elements) for name, found in header.items()} == {
        "a": ("F32", (3, 5), 15),
        "b": ("BF16", (2,), 2),
    }


CORRUPT_HEADERS: list[tuple[Any, bytes]] = [
    (b"{}" + b" " * 30, b"x"),
    (b"[" * 100_000, b""),
    (b"[]", b""),
    (b"{nonsense", b""),
    ({"a": 1}, b""),
    ({"a": entry(0, 8)}, bytes(8)),
    ({"a": entry(0, 4)}, bytes(3)),
    ({"a": entry(4, 8)}, bytes(8)),
    ({"a": entry(0, 4), "b": entry(0, 4)}, bytes(4)),
    ({"a": entry(0, 4), "b": entry(2, 6)}, bytes(6)),
    ({"a": entry(0, 4, (-1, -1))}, bytes(4)),
    ({"a": entry(0, 4, (1.0,))}, bytes(4)),
    ({"a": entry(False, 4)}, bytes(4)),
    ({"a": entry(0, 4, (2**62, 2**62))}, bytes(4)),
    ({"a": entry(0, 4, dtype="F128")}, bytes(4)),
    ({"a": entry(0, 4, dtype=["F32"])}, bytes(4)),
    ({"a": entry(0, 4, shape=1)}, bytes(4)),
]


def test_a_corrupt_header_is_refused(tmp_path: Path) -> None:
    for header, data in CORRUPT_HEADERS:
        with pytest.raises(ModelError, match=r"header|no safetensors file"):
            read_header(write_file(tmp_path / "x", header, data))


@pytest.mark.parametrize("content", [b"", b"1234567", b"\xff" * 8, (2**40).to_bytes(8, "little") + b"{}"])
def test_a_truncated_file_is_refused_without_reading_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(ModelError, match=r"cut short|truncated"):
        read_header(tmp_path / "x")
