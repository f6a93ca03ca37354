"""Choosing a device and a precision on simulated machines."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch

from omgsr_cli.errors import DeviceError
from omgsr_cli.models import devices

AVX512_ONLY = {"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}


def set_present(monkeypatch: pytest.MonkeyPatch, *kinds: str) -> None:
    monkeypatch.setattr(
        devices, "_IS_PRESENT", {k: (lambda k=k: k in kinds or k == "cpu") for k in ("cuda", "mps", "xpu", "cpu")}
    )
    monkeypatch.setattr(devices, "why_unusable", lambda kind: None)


@pytest.mark.parametrize(
    ("present", "chosen"),
    [((), "cpu"), (("xpu",), "xpu"), (("xpu", "mps"), "mps"), (("cuda", "mps", "xpu"), "cuda")],
)
def test_the_preferred_device_is_used(monkeypatch: pytest.MonkeyPatch, present: tuple[str, ...], chosen: str) -> None:
    set_present(monkeypatch, *present)
    assert devices.choose_device(None) == devices.choose_device("auto") == torch.device(chosen)


def test_the_named_device_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    set_present(monkeypatch, "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.choose_device("cpu") == torch.device("cpu")
    assert devices.choose_device("cuda:1") == torch.device("cuda:1")


@pytest.mark.parametrize("name", ["mps", "cuda:2", "gpu", "cuda:x", "meta"])
def test_a_missing_device_lists_the_existing_ones(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    set_present(monkeypatch, "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(DeviceError, match=name) as caught:
        devices.choose_device(name)
    assert caught.value.hint is not None
    assert "cuda, cpu" in caught.value.hint


@pytest.mark.parametrize(
    ("capability", "precision"), [((6, 1), "fp16"), ((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")]
)
def test_auto_on_cuda_follows_the_capability(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], precision: str
) -> None:
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert devices.choose_precision("auto", torch.device("cuda")) == precision


@pytest.mark.parametrize(
    ("capabilities", "precision"),
    [
        ({}, "fp32"),
        (AVX512_ONLY, "fp32"),
        (AVX512_ONLY | {"avx512_bf16": True}, "bf16"),
        ({"amx_bf16": True}, "bf16"),
        ({"architecture": "aarch64", "neon": True, "bf16": True}, "bf16"),
        ({"architecture": "aarch64", "neon": True, "bf16": False}, "fp32"),
    ],
)
def test_auto_on_a_cpu_follows_its_instructions(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, object], precision: str
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(devices, "bf16_gain_on_cpu", lambda layers: 1.5)
    assert devices.choose_precision("auto", torch.device("cpu")) == precision
    # What has the instructions, but was measured not to be faster.
    monkeypatch.setattr(devices, "bf16_gain_on_cpu", lambda layers: 1.05)
    assert devices.choose_precision("auto", torch.device("cpu")) == "fp32"


def test_measurements_of_a_machine_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter((0.6, 0.65, 0.7, 0.8))
    monkeypatch.setenv("OMGSR_CACHE", str(tmp_path))
    monkeypatch.setattr(devices, "_measure", lambda build: next(answers))
    gain = devices.bf16_gain_on_cpu.__wrapped__
    assert gain("unet") == 0.6
    assert gain("unet") == 0.6
    assert gain("chain") == 0.65
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"cpu_name": "another"})
    assert gain("unet") == 0.7
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1000)
    assert gain("unet") == 0.8


def test_the_measurement_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    """One format that always takes three times as long as the other, by a clock of its own."""
    clock, taken = [0.0], {torch.float32: 0.03, torch.bfloat16: 0.01}

    def work(dtype: torch.dtype) -> Callable[[], None]:
        def do() -> None:
            clock[0] += taken[dtype]

        return do

    monkeypatch.setattr(devices.time, "perf_counter", lambda: clock[0])
    assert devices._measure(work) == pytest.approx(3)


def test_the_work_is_the_same_in_both_formats() -> None:
    for build in devices._WORK.values():
        results = [build(dtype)() for dtype in (torch.float32, torch.bfloat16)]
        assert [result.dtype for result in results] == [torch.float32, torch.bfloat16]
        assert results[0].shape == results[1].shape


def test_auto_agrees_with_the_list_of_instructions_of_this_cpu() -> None:
    """The names that torch gives to instructions are checked against the kernel's, where it lists them."""
    try:
        with open("/proc/cpuinfo", encoding="ascii") as lines:
            flags = next((line.split() for line in lines if line.startswith(("flags", "Features"))), [])
    except OSError:
        pytest.skip("this system does not list its instructions")
    expected = bool({"avx512_bf16", "amx_bf16", "bf16", "svebf16"} & set(flags))
    assert devices.multiplies_in_bf16(torch.device("cpu")) == expected


def test_other_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    assert devices.choose_precision("auto", torch.device("mps")) == "fp16"
    assert devices.choose_precision("auto", torch.device("xpu")) == "bf16"


def test_fp16_on_a_cpu_is_refused_with_a_hint() -> None:
    with pytest.raises(DeviceError, match="'fp16' does not work on the device 'cpu'") as caught:
        devices.choose_precision("fp16", torch.device("cpu"))
    assert caught.value.hint == "use --precision auto or fp32"


def test_an_unknown_precision_lists_the_known_ones() -> None:
    with pytest.raises(DeviceError, match="'int8' is not a precision") as caught:
        devices.choose_precision("int8", torch.device("cpu"))
    assert caught.value.hint == "one of auto, fp32, bf16, fp16"


def test_free_memory_of_the_cpu_is_no_more_than_is_installed() -> None:
    free = devices.free_memory_bytes(torch.device("cpu"))
    assert 2**20 < free <= psutil.virtual_memory().total


def test_a_control_group_limits_free_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=100))
    monkeypatch.setattr(devices, "_read_integer", lambda path: 90 if path.endswith("max") else 40)
    assert devices.free_memory_bytes(torch.device("cpu")) == 50
    monkeypatch.setattr(devices, "_read_integer", lambda path: None)
    assert devices.free_memory_bytes(torch.device("cpu")) == 100
