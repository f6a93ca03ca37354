"""Simulate a device: CPU tensors that report to be on another device.

Mixing devices is an error, as on a GPU, and float64 is an error, as on Apple's GPU. Every point where the host would
wait for the device is counted: values that Python reads, copies to the host, and synchronous copies from the host.
"""

from __future__ import annotations

import contextlib
import sys
import types
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils import backend_registration
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

from omgsr_cli import transfer
from omgsr_cli.models import devices, tiny

NAME = "simulated"

_aten = torch.ops.aten
_COPIES = {_aten._to_copy.default, _aten.copy_.default}
_READS = {
    *(_aten._local_scalar_dense.default, _aten.nonzero.default, _aten.masked_select.default),
    *(_aten.equal.default, _aten.is_nonzero.default),
}
_MAY_MIX = {*_COPIES, _aten.index.Tensor, _aten.index_put_.default, _aten.set_.source_Tensor}
_COMPOSITE = torch._C.DispatchKey.CompositeImplicitAutograd


@dataclass
class Simulation:
    """The record of what happened on the device.

    Attributes:
        device: the device.
        waits: number of times the host waited for the device, by the package's line that caused it.
    """

    device: torch.device
    waits: Counter[str] = field(default_factory=Counter)

    def wait(self, why: str) -> None:
        """Count a wait."""
        frame, place = sys._getframe(1), "elsewhere"
        while frame is not None:
            if "omgsr_cli" in frame.f_code.co_filename:
                place = f"{frame.f_code.co_filename.rpartition('omgsr_cli')[2]}:{frame.f_lineno}"
                break
            frame = frame.f_back  # type: ignore[assignment]  # the loop ends at None
        self.waits[f"{why} {place}"] += 1


_now: Simulation | None = None


class OnDevice(Tensor):
    """A tensor on the device; `inner` contains its values."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor, requires_grad: bool = False) -> OnDevice:
        assert _now is not None
        if inner.dtype in (torch.float64, torch.complex128):
            raise TypeError("the simulated device has no float64")
        made: OnDevice = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]  # torch's own omission
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=_now.device,
            requires_grad=requires_grad,
        )
        made.inner = inner
        return made

    def __repr__(self) -> str:  # type: ignore[override]  # only the name is the same
        return f"OnDevice({tuple(self.shape)}, {self.dtype})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def _is_ours(device: object) -> bool:
    return device is not None and torch.device(device).type == NAME  # type: ignore[arg-type]  # any value that torch accepts


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, OnDevice) else value


def _outer(value: Any) -> Any:
    return OnDevice(value) if isinstance(value, Tensor) and not isinstance(value, OnDevice) else value


def _leaves(values: Iterable[Any]) -> Iterator[Any]:
    """The values of nested lists and tuples; torch's own trees take several times as long."""
    for value in values:
        if isinstance(value, (list, tuple)):
            yield from _leaves(value)
        else:
            yield value


def _mapped(change: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(change, each) for each in value)
    return change(value)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    assert _now is not None
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    if has(func.name(), _COMPOSITE) and not has(func.name(), "CPU"):
        with _Mode():
            return func.decompose(*args, **kwargs)
    flat = list(_leaves((*args, *kwargs.values())))
    ours = [value for value in flat if isinstance(value, OnDevice)]
    if ours and func not in _MAY_MIX:
        mixed = [
            value for value in flat if isinstance(value, Tensor) and not isinstance(value, OnDevice) and value.ndim
        ]
        if mixed:
            shapes = [tuple(value.shape) for value in mixed]
            raise RuntimeError(f"{func} got tensors of {NAME} and of the CPU {shapes}")
    if func in _READS and ours:
        _now.wait("read")
    if func is _aten._fused_sdp_choice.default:
        return 0
    if func is _aten.is_pinned.default:
        return False
    asked = kwargs.get("device")
    placed = _is_ours(asked) if asked is not None else bool(ours)
    kept = {name: _inner(value) for name, value in kwargs.items()}
    if func in _COPIES:
        source, target = (args[1], args[0]) if func is _aten.copy_.default else (args[0], None)
        to_us = isinstance(target, OnDevice) if target is not None else placed
        asynchronous = bool(kwargs.get("non_blocking", args[2] if len(args) > 2 else False))
        if isinstance(source, OnDevice) != to_us and not asynchronous:
            _now.wait("upload" if to_us else "download")
        if target is not None:
            func(_inner(target), _inner(source))
            return target
        kept = {name: value for name, value in kept.items() if name in ("dtype", "layout", "memory_format")}
        result = func(_inner(source), **kept)
        return OnDevice(result) if to_us else result
    if placed and "device" in kept:
        kept["device"] = torch.device("cpu")
    result = func(*_mapped(_inner, args), **kept)
    if not placed:
        return result
    wrapped = _mapped(_outer, result)
    return return_and_correct_aliasing(func, args, kwargs, wrapped) if ours else wrapped


def _register() -> None:
    """Register the device with torch, once per process; it is not visible outside a simulation."""
    if torch._C._get_privateuse1_backend_name() == NAME:
        return
    register = getattr(backend_registration, "_setup_privateuseone_for_python_backend", None)
    if register is None:
        pytest.skip("this torch has no devices in Python")

    def synchronize(device: object = None) -> None:
        if _now is not None:
            _now.wait("synchronise")

    module = types.ModuleType(f"torch.{NAME}")
    for name, answer in {
        "is_available": lambda: _now is not None,
        "device_count": lambda: int(_now is not None),
        "current_device": lambda: 0,
        "is_initialized": lambda: True,
        "_lazy_init": lambda: None,
        "_is_in_bad_fork": lambda: False,
        "get_amp_supported_dtype": lambda: [torch.bfloat16, torch.float16],
        "manual_seed_all": lambda seed: None,
        "synchronize": synchronize,
        "mem_get_info": lambda device=None: (8 << 30, 8 << 30),
        "device": lambda device=None: contextlib.nullcontext(),
    }.items():
        setattr(module, name, answer)
    register(rename=NAME, backend_module=module)


@contextlib.contextmanager
def simulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[Simulation]:
    """Provide the device within the context."""
    global _now
    _register()
    before: list[bool] = []

    def enter(self: object) -> None:
        before.append(torch.is_grad_enabled())
        torch._C._set_grad_enabled(False)

    def leave(self: object, *error: object) -> None:
        torch._C._set_grad_enabled(before.pop())

    with monkeypatch.context() as patch:
        # Tensors of a subclass have no version counter under inference mode.
        patch.setattr(torch.inference_mode, "__enter__", enter)
        patch.setattr(torch.inference_mode, "__exit__", leave)
        patch.setitem(devices._IS_PRESENT, NAME, lambda: True)
        patch.setattr(devices, "why_unusable", lambda kind: None)
        patch.setattr(transfer, "ASYNCHRONOUS", (NAME,))
        patch.setattr(transfer, "pinned", lambda tensor: tensor)
        # safetensors can only read to devices that torch was built with.
        patch.setattr(tiny, "load_file", lambda path, device="cpu": _moved(load_file(path), device))
        patch.setattr(torch.__future__, "get_overwrite_module_params_on_conversion", lambda: True)
        _now = Simulation(torch.device(NAME, 0))
        torch._C._set_only_lift_cpu_tensors(True)
        try:
            # The backward pass creates threads only for devices that exist when it first runs.
            with torch.autograd.set_multithreading_enabled(False), _Mode():
                yield _now
        finally:
            torch._C._set_only_lift_cpu_tensors(False)
            _now = None


def _moved(tensors: dict[str, Tensor], device: str) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in tensors.items()}


@dataclass
class Use:
    """A device in use.

    Attributes:
        name: name for `--device`.
        found: every wait so far, by its line.
    """

    name: str
    found: Callable[[], list[str]]

    def waits(self) -> int:
        """Return how often the host has waited for the device so far."""
        return len(self.found())

    def where(self) -> str:
        """Return the lines that waited, the most frequent first."""
        return "\n".join(f"{count} {place}" for place, count in Counter(self.found()).most_common(20))


class Card:
    """The device that a test uses.

    Args:
        name: a real device, or None for the simulated device.
        monkeypatch: the test's monkeypatch.
    Attributes:
        tolerance: largest difference of values in [0, 1] from the CPU's.
    """

    def __init__(self, name: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
        self._name, self._patch = name, monkeypatch
        self.tolerance = 2e-3 if name else 1e-4

    @contextlib.contextmanager
    def used(self) -> Iterator[Use]:
        """Count the waits for the device within the context."""
        if self._name is None:
            with simulated(self._patch) as simulation:
                yield Use(NAME, lambda: list(simulation.waits.elements()))
            return
        if not self._name.startswith("cuda"):
            yield Use(self._name, list)
            return
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield Use(
                    self._name, lambda: [str(each.message) for each in caught if "synchroniz" in str(each.message)]
                )
            finally:
                torch.cuda.set_sync_debug_mode("default")
