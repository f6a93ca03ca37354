"""Choose device and precision, and measure free memory."""

from __future__ import annotations

import ctypes
import itertools
import math
import re
import sys
import time
from collections.abc import Callable
from functools import cache
from typing import Literal

import psutil
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention

from omgsr_cli.errors import DeviceError, UnknownDeviceError, reason_of
from omgsr_cli.files.remembered import Remembered

PRECISIONS: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_CPU_BF16_CAPABILITIES = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""Names in `torch.cpu.get_capabilities()` of instructions that multiply in bf16, on x86 and ARM."""

_HIP_BF16 = ("gfx908", "gfx90a", "gfx94", "gfx95", "gfx11", "gfx12")
"""AMD's architectures that multiply matrices in bf16: CDNA, and RDNA from the third generation."""

_OUT_OF_MEMORY = re.compile(
    "out[ _]of[ _](host_|device_)?memory|out_of_(host|device)_memory|can't allocate memory|not enough memory"
    "|alloc_failed|invalid buffer size|failed to allocate",
    re.IGNORECASE,
)

_LEAST_GAIN = 1.1
"""bf16 must be this many times as fast as fp32 on a CPU, because it is less accurate."""

_ROUNDS, _ROUND_S = 4, 0.1
"""Number and length of the turns of each format; together they take a little less than a second."""

# The size of a UNet level: large enough to keep all cores busy, small enough to run many times.
_CHANNELS, _HEADS, _SIDE = 320, 5, 32
_CHAIN_CHANNELS, _CHAIN_SIDE = 64, 128

Layers = Literal["unet", "chain"]
"""What most of a model's time goes into: a UNet's layers, or a chain of narrow convolutions."""

_NARROW_SHARE = 0.6
"""Of the working memory in float32, that in 16 bits: activations halve, statistics of norms do not."""

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_MALLOPT, _TRIM = (getattr(_LIBC, name, None) for name in ("mallopt", "malloc_trim"))
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _KEPT_BYTES = -1, -3, 1 << 30
_resident_when_loaded_bytes = 0

_IS_PRESENT: dict[str, Callable[[], bool]] = {
    "cuda": lambda: torch.cuda.is_available(),
    "mps": lambda: torch.backends.mps.is_available(),
    "xpu": lambda: torch.xpu.is_available(),
    "cpu": lambda: True,
}
"""Every kind of device, the preferred one first."""


def present_devices() -> list[str]:
    """The kinds of device that this machine has, the preferred one first."""
    return [kind for kind, is_present in _IS_PRESENT.items() if is_present()]


def choose_device(name: str | None = None) -> torch.device:
    """The requested device, or the first of cuda, mps, xpu and cpu that exists and works.

    Args:
        name: "cuda", "cuda:1", "mps", "xpu", "cpu"; None or "auto" chooses.
    Raises:
        DeviceError: this machine does not have the device; the hint lists those it has.
    """
    present = present_devices()
    if name is None or name == "auto":
        return torch.device(next(kind for kind in present if why_unusable(kind) is None))
    hint = f"devices of this machine: {', '.join(present)}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UnknownDeviceError(f"{name!r} is not a device", hint=hint) from error
    if device.type not in present:
        raise DeviceError(f"device {name!r} is not present", hint=hint)
    if ":" in name and device.index >= _device_count(device.type):
        raise DeviceError(f"device {name!r} is not present", hint=f"{hint}; {_device_count(device.type)} of that kind")
    # Some libraries do not accept "cpu:0".
    return torch.device("cpu") if device.type == "cpu" else device


@cache
def why_unusable(kind: str) -> str | None:
    """Why an existing kind of device cannot compute, such as an old card without kernels in this build of torch.

    This tries one tiny operation, once.
    """
    if kind == "cpu":
        return None
    try:
        (torch.ones(2, device=kind) * 2).sum().item()
    except (RuntimeError, AssertionError) as error:
        return f"{kind} cannot compute: {reason_of(error)}"
    return None


def skipped_devices(name: str | None) -> tuple[str, ...]:
    """Why preferred devices were skipped, one line each; empty if the user named a device."""
    if name is not None and name != "auto":
        return ()
    chosen = choose_device(name).type
    before = itertools.takewhile(lambda kind: kind != chosen, present_devices())
    return tuple(f"{reason}; using {chosen}" for kind in before if (reason := why_unusable(kind)))


def shares_host_memory(device: torch.device) -> bool:
    """Whether a device shares the host's memory, which must not be counted twice: MPS and integrated GPUs."""
    if device.type in ("cuda", "xpu"):
        module = torch.cuda if device.type == "cuda" else torch.xpu
        return bool(getattr(module.get_device_properties(device), "is_integrated", False))
    return True


def working_bytes(bytes_per_px: int, kind: str, precision: str) -> int:
    """Working memory of a network for one pixel, from that of float32.

    On a CPU it is not counted lower in a narrower format: some kernels compute in float32 there.
    """
    return bytes_per_px if kind == "cpu" or precision == "fp32" else math.ceil(bytes_per_px * _NARROW_SHARE)


def named_devices(text: str | None) -> tuple[str | None, ...]:
    """The devices in the value of `--device`: one, several such as "cuda:0,cuda:1", or "all" of the preferred kind.

    Raises:
        DeviceError: this machine does not have one of them.
    """
    if text == "all":
        kind = present_devices()[0]
        return (kind,) if _device_count(kind) == 1 else tuple(name for name in all_devices() if name.startswith(kind))
    if text is None or "," not in text:
        return (text,)
    names = [name.strip() for name in text.split(",")]
    for name in names:
        choose_device(name)
    return tuple(names)


def all_devices() -> list[str]:
    """The names of all devices, the preferred kind first; those of GPUs have an index."""
    return [
        f"{kind}:{index}" if kind in ("cuda", "xpu") else kind
        for kind in present_devices()
        for index in range(_device_count(kind))
    ]


def _device_count(kind: str) -> int:
    """The number of devices of an existing kind."""
    return {"cuda": torch.cuda.device_count, "xpu": torch.xpu.device_count}.get(kind, lambda: 1)()


def multiplies_in_bf16(device: torch.device) -> bool:
    """Whether the hardware multiplies matrices in bf16 instead of converting to fp32 and back.

    True for CUDA from compute capability 8.0, ROCm from CDNA and RDNA 3, XPU, and CPUs with AVX512_BF16, AMX-BF16 or
    ARM's BF16 instructions. This is read from the hardware's capabilities, not measured. False for MPS, where it
    depends on the generation.
    """
    if device.type == "cuda":
        # ROCm builds use the name "cuda" too, but their capability numbers have another meaning.
        if torch.version.hip is not None:
            return torch.cuda.get_device_properties(device).gcnArchName.startswith(_HIP_BF16)
        return torch.cuda.get_device_capability(device)[0] >= 8
    if device.type == "cpu":
        capabilities = torch.cpu.get_capabilities()
        return any(bool(capabilities.get(name)) for name in _CPU_BF16_CAPABILITIES)
    return device.type == "xpu"


def choose_precision(precision: str, device: torch.device, layers: Layers | None = "unet") -> str:
    """The number format for a device; "auto" chooses a fast one.

    "auto" is bf16 if the hardware multiplies in it. Some of these CPUs were twice as fast in bf16 and some slower, so
    CPUs use it only if a measurement of about a second was faster. GPUs without bf16 and MPS use fp16.

    Args:
        precision: "auto", "fp32", "bf16" or "fp16".
        device: device of the model.
        layers: what the measurement on a CPU runs; None means float32 there.
    Returns:
        "fp32", "bf16" or "fp16".
    Raises:
        DeviceError: the precision does not exist, or it is fp16 and the device is a CPU.
    """
    if precision == "auto":
        if multiplies_in_bf16(device) and (device.type != "cpu" or _is_faster_in_bf16(layers)):
            return "bf16"
        return "fp16" if device.type in ("cuda", "mps") else "fp32"
    if precision not in PRECISIONS:
        raise DeviceError(f"{precision!r} is not a precision", hint=f"one of auto, {', '.join(PRECISIONS)}")
    if precision == "fp16" and device.type == "cpu":
        raise DeviceError("precision 'fp16' does not work on the device 'cpu'", hint="use --precision auto or fp32")
    return precision


def _is_faster_in_bf16(layers: Layers | None) -> bool:
    return layers is not None and bf16_gain_on_cpu(layers) >= _LEAST_GAIN


@cache
def bf16_gain_on_cpu(layers: Layers = "unet") -> float:
    """Speed of a model's layers in bf16 divided by that in fp32; below 1, bf16 is slower.

    Some processors have bf16 instructions and are slower with them nevertheless, because inputs must be rearranged and
    clocks drop. So this is measured, once for each processor, version of torch and number of threads.
    """
    capabilities = sorted((name, str(value)) for name, value in torch.cpu.get_capabilities().items())
    key = f"bf16 {layers} {torch.__version__} {torch.get_num_threads()} {capabilities}"
    remembered = Remembered()
    found: float | None = remembered.find("gain", key)
    if found is None:
        found = _measure(_WORK[layers])
        remembered.keep("gain", key, found)
    return found


@torch.inference_mode()
def _measure(build: Callable[[torch.dtype], Callable[[], object]]) -> float:
    work = {dtype: build(dtype) for dtype in (torch.float32, torch.bfloat16)}
    best = dict.fromkeys(work, float("inf"))
    for do in work.values():
        do()
    for _ in range(_ROUNDS):
        # The formats take turns, so other work on the machine slows both; the best time of each is the least disturbed.
        for dtype, do in work.items():
            end = time.perf_counter() + _ROUND_S
            while (start := time.perf_counter()) < end:
                do()
                best[dtype] = min(best[dtype], time.perf_counter() - start)
    return best[torch.float32] / best[torch.bfloat16]


def _unet_work(dtype: torch.dtype) -> Callable[[], object]:
    """A convolution, a linear layer and attention of the sizes in a UNet."""
    image = torch.rand(1, _CHANNELS, _SIDE, _SIDE).to(dtype)
    kernel = torch.rand(_CHANNELS, _CHANNELS, 3, 3).to(dtype)
    matrix = torch.rand(4 * _CHANNELS, _CHANNELS).to(dtype)

    def do() -> object:
        tokens = F.conv2d(image, kernel, padding=1).flatten(2).transpose(1, 2).contiguous()
        heads = tokens.view(1, _SIDE * _SIDE, _HEADS, -1).transpose(1, 2)
        attended = F.scaled_dot_product_attention(heads, heads, heads)
        return F.linear(attended.transpose(1, 2).flatten(2), matrix)

    return do


def _chain_work(dtype: torch.dtype) -> Callable[[], object]:
    """Two layers of a chain of narrow convolutions, channels last, as omgsr-tiny has them."""
    layout = torch.channels_last
    image = torch.rand(1, _CHAIN_CHANNELS, _CHAIN_SIDE, _CHAIN_SIDE).to(dtype, memory_format=layout)
    kernel = torch.rand(_CHAIN_CHANNELS, _CHAIN_CHANNELS, 3, 3).to(dtype, memory_format=layout)
    slopes = torch.rand(_CHAIN_CHANNELS).to(dtype)

    def do() -> object:
        x = image
        for _ in range(2):
            x = F.prelu(F.conv2d(x, kernel, padding=1), slopes)
        return x

    return do


_WORK = {"unet": _unet_work, "chain": _chain_work}


def free_memory_bytes(device: torch.device) -> int:
    """Bytes that new tensors on the device can use.

    For a CPU, this is the memory that the system can provide without swapping, or the limit of a control group.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # Memory that the allocator has reserved but not used is available too.
        return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    if device.type == "xpu":
        reserved = torch.xpu.memory_reserved(device)
        try:
            free, _ = torch.xpu.mem_get_info(device)
        except RuntimeError:
            # Arc's integrated GPUs do not report it.
            free = torch.xpu.get_device_properties(device).total_memory - reserved
        return max(int(free + reserved - torch.xpu.memory_allocated(device)), 0)
    if device.type == "mps":
        # The driver's memory beyond the tensors is the allocator's cache, which new tensors use.
        return max(int(torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()), 0)
    return _free_system_memory_bytes()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that any device ran out of memory.

    CUDA and XPU raise a special class. MPS ("MPS backend out of memory ...", "Invalid buffer size"), the CPU's
    allocator ("DefaultCPUAllocator: can't allocate memory ...") and libraries of GPUs ("CUBLAS_STATUS_ALLOC_FAILED",
    "UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY") raise a plain RuntimeError.
    """
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)) is not None


def keep_freed_memory() -> None:
    """Have the C library (glibc) keep what one layer frees for the next one; called when a model has been loaded.

    It returns such large pieces at once, and the system clears every page before it gives it out again: an eighth of
    the time of omgsr-tiny. `release_memory` returns what is too much.
    """
    global _resident_when_loaded_bytes
    if _MALLOPT is not None and _MALLOPT(_MMAP_THRESHOLD, _KEPT_BYTES):
        _MALLOPT(_TRIM_THRESHOLD, _KEPT_BYTES)
    _resident_when_loaded_bytes = _resident_bytes()


def release_memory(kept_bytes: int = 0) -> None:
    """Give memory that is free in this process back to the system, where the C library keeps it (glibc).

    After tiles of different sizes the process would hold several times what it uses.

    Args:
        kept_bytes: nothing is done while the process holds no more than this beside the models it has loaded.
    """
    if _TRIM is not None and (not kept_bytes or _resident_bytes() - _resident_when_loaded_bytes > kept_bytes):
        _TRIM(0)


def _resident_bytes() -> int:
    """Memory of this process that is no file's, in bytes; 0 on other systems than Linux."""
    return read_kib("/proc/self/status", "RssAnon:") or 0


def _free_system_memory_bytes() -> int:
    """What the system can give without swapping; at most the control group's rest."""
    available: int = psutil.virtual_memory().available
    limit, used = _read_integer("/sys/fs/cgroup/memory.max"), _read_integer("/sys/fs/cgroup/memory.current")
    if limit is None or used is None:
        return available
    return min(available, max(limit - used, 0))


def read_kib(path: str, name: str) -> int | None:
    """A value in KiB of one of Linux's tables, in bytes; None where it is missing."""
    try:
        with open(path, encoding="ascii") as lines:
            for line in lines:
                if line.startswith(name):
                    return int(line.split()[1]) * 1024
    except OSError:
        return None
    return None


def _read_integer(path: str) -> int | None:
    """The integer in a small file, or None if the file is missing or contains "max"."""
    try:
        with open(path, encoding="ascii") as file:
            text = file.read().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None
