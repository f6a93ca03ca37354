"""Differences between kinds of devices, simulated by patched functions and fake tensors."""

from __future__ import annotations

import gc
import json
import shutil
import weakref
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from command_line import Command, draw
from torch import Tensor, nn

import omgsr_cli
from omgsr_cli import planning, transfer
from omgsr_cli.batch.finished import FinishedResults, Settings
from omgsr_cli.batch.reports import FileResult
from omgsr_cli.batch.upscaler import Upscaler, UpscaleWork
from omgsr_cli.benchmark.models import time_call
from omgsr_cli.engines.ray_actors import plan_actors
from omgsr_cli.engines.work import Place, say_nothing
from omgsr_cli.errors import DeviceError
from omgsr_cli.fidelity import psnr, ssim
from omgsr_cli.files.remembered import Remembered
from omgsr_cli.geometry import Size
from omgsr_cli.models import devices, loading
from omgsr_cli.models.autoencoders import KlCodec
from omgsr_cli.models.base import Workspace
from omgsr_cli.models.loading import describe_model, load_restorer, save_merged
from omgsr_cli.models.sd import SdRestorer, vae_precision
from omgsr_cli.models.sources import find_model
from omgsr_cli.models.tiny import TinyRestorer
from omgsr_cli.options import ModelOptions, RestoreOptions, WriteOptions
from omgsr_cli.planning import Execution, plan_restoration
from omgsr_cli.training import distributed
from omgsr_cli.training.checkpoints import _load, _save, load_optimizer, optimizer_tensors
from omgsr_cli.training.distributed import build_accelerator, share
from omgsr_cli.upscaling import upscale_image

GIB = 1 << 30


def test_float64_is_not_used_where_unsupported(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[torch.dtype] = []
    convert = Tensor.to

    def to(self: Tensor, *arguments: Any, **options: Any) -> Tensor:
        asked.extend(each for each in (*arguments, *options.values()) if isinstance(each, torch.dtype))
        # Tensors of the meta device stand for those of the accelerator.
        return convert(self, *arguments, **options)

    monkeypatch.setattr(Tensor, "to", to)
    image = torch.rand(1, 3, 16, 16, device="meta")
    for measure in (psnr, ssim):
        assert measure(image, image).dtype == torch.float32
    assert torch.float64 not in asked


def test_losses_are_shared_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.dtype | None] = []
    as_tensor = torch.as_tensor

    def watched(value: Any, **options: Any) -> Tensor:
        made.append(options.get("dtype"))
        return as_tensor(value, **options)

    monkeypatch.setattr(torch, "as_tensor", watched)
    means, signal = share(Accelerator(cpu=True), {"a": torch.tensor(1.5, requires_grad=True), "b": 0.25}, 15)
    assert (means, signal) == ({"a": 1.5, "b": 0.25}, 15)
    assert set(made) == {torch.float32}


def test_an_xpu_without_free_memory_information(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(device: object) -> tuple[int, int]:
        raise RuntimeError("The device doesn't support querying the available free memory")

    monkeypatch.setattr(torch.xpu, "memory_reserved", lambda device: 3 * GIB)
    monkeypatch.setattr(torch.xpu, "memory_allocated", lambda device: GIB)
    monkeypatch.setattr(torch.xpu, "mem_get_info", refuse)
    monkeypatch.setattr(torch.xpu, "get_device_properties", lambda device: SimpleNamespace(total_memory=16 * GIB))
    assert devices.free_memory_bytes(torch.device("xpu")) == 15 * GIB
    monkeypatch.setattr(torch.xpu, "mem_get_info", lambda device: (5 * GIB, 16 * GIB))
    assert devices.free_memory_bytes(torch.device("xpu")) == 7 * GIB


def test_memory_cached_by_the_mps_allocator_counts_as_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 10 * GIB)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 6 * GIB)
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: GIB)
    assert devices.free_memory_bytes(torch.device("mps")) == 9 * GIB


def test_out_of_memory_is_recognised_for_every_library() -> None:
    for reason in (
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "HIPBLAS_STATUS_ALLOC_FAILED",
        "Invalid buffer size: 17.25 GiB",
        "Native API failed. Native API returns: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
        "level_zero backend failed with error: 38 (UR_RESULT_ERROR_OUT_OF_HOST_MEMORY)",
        "MPS backend out of memory (MPS allocated: 9.00 GB)",
        "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory: you tried to allocate 4 bytes",
        "[enforce fail] DefaultCPUAllocator: can't allocate memory: 9 bytes",
    ):
        assert devices.is_out_of_memory(RuntimeError(reason)), reason
        assert not devices.is_out_of_memory(ValueError(reason)), reason
    assert devices.is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"))
    assert devices.is_out_of_memory(MemoryError())
    assert not devices.is_out_of_memory(RuntimeError("shapes (3,) and (4,) differ"))


def test_out_of_memory_outside_tiles_is_one_line(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    restorer = load_restorer(model, device="cpu")

    def refuse(*arguments: Any, **options: Any) -> Tensor:
        raise RuntimeError("CUBLAS_STATUS_ALLOC_FAILED")

    monkeypatch.setattr(Tensor, "new_empty", refuse)
    with pytest.raises(DeviceError, match="ran out of memory"):
        upscale_image(restorer, torch.rand(3, 40, 40), Size(160, 160), RestoreOptions(tile=64))


def test_a_model_that_does_not_fit_is_one_line(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(nn.Module, "to", refuse)
    with pytest.raises(DeviceError, match="fit in the memory of cpu"):
        load_restorer(model, device="cpu")


def test_failed_images_hold_no_tensors(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        draw(tmp_path / "in" / f"{number}.png")
    held: list[weakref.ref[Tensor]] = []

    def fail(self: TinyRestorer, latent: Tensor) -> Tensor:
        held.append(weakref.ref(latent))
        try:
            raise ValueError("deep inside")
        except ValueError as error:
            raise torch.OutOfMemoryError("CUDA out of memory") from error

    monkeypatch.setattr(TinyRestorer, "decode", fail)
    results: list[FileResult] = omgsr_cli.upscale_folder(
        omgsr_cli.load(model, device="cpu"), tmp_path / "in", tmp_path / "out", tile=64
    )
    gc.collect()
    assert [result.status for result in results] == ["failed"] * 3
    assert len(held) >= 3
    assert not any(reference() is not None for reference in held)


class FakeEightBit(torch.optim.Optimizer):
    """Keeps its state as bitsandbytes does: an int, 8-bit averages, and tables that all weights share."""

    def __init__(self, weights: list[nn.Parameter]) -> None:
        super().__init__(weights, {})
        self.table = torch.linspace(-1, 1, 256)

    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # no loss
        for weight in self.param_groups[0]["params"]:
            state = self.state[weight]
            state["step"] = state.get("step", 0) + 1
            state["qmap1"] = self.table
            state["state1"] = torch.full(weight.shape, state["step"], dtype=torch.uint8)


def test_an_8_bit_optimiser_is_saved_and_loaded(tmp_path: Path) -> None:
    weights = [nn.Parameter(torch.rand(3, 5)), nn.Parameter(torch.rand(7))]
    first, second = FakeEightBit(weights), FakeEightBit([nn.Parameter(weight.detach().clone()) for weight in weights])
    for _ in range(3):
        first.step()
    file = tmp_path / "optimizer.safetensors"
    _save(optimizer_tensors(first), file)
    assert file.stat().st_size < 2 * 256 * 4
    load_optimizer(second, _load(file))
    for states in zip(first.state.values(), second.state.values(), strict=True):
        assert [type(state["step"]) for state in states] == [int, int]
        assert states[0]["step"] == states[1]["step"] == 3
        for name in ("qmap1", "state1"):
            assert torch.equal(states[0][name].float(), states[1][name].float())
    second.step()


def test_a_gpu_is_synchronised_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[object] = []
    for name in ("reset_peak_memory_stats", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda device: 0)
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "card")
    model: Any = lambda image, output: image  # noqa: E731 - has attributes
    model.device, model.precision = torch.device("cuda:1"), "fp32"
    time_call(model, torch.zeros(3, 1, 1), Size(1, 1), 0.0)
    assert set(waited) == {torch.device("cuda:1")}


def test_cpu_0_is_the_cpu(model: Path, capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path) -> None:
    source = draw(tmp_path / "a.png")
    said = Command(capfdbinary)(source, "-o", tmp_path / "b.png", "--model", model, "--device", "cpu:0")
    assert said.code == 0, said.err
    with pytest.raises(DeviceError):
        devices.choose_device("cpu:1")


@pytest.mark.parametrize(
    ("area_px", "kind", "whole"), [(1 << 20, "mps", True), (1 << 21, "mps", False), (1 << 21, "cuda", True)]
)
def test_mps_uses_strips_for_large_images(
    sd_model: Path, monkeypatch: pytest.MonkeyPatch, area_px: int, kind: str, whole: bool
) -> None:
    restorer = load_restorer(sd_model, device="cpu", precision="fp32")
    assert isinstance(restorer, SdRestorer)
    codec = KlCodec(restorer.vae)
    monkeypatch.setattr(codec, "vae", SimpleNamespace(device=torch.device(kind), dtype=torch.float32))
    ran = codec._whole(area_px, Workspace(1 << 50, torch.device("cpu")), lambda: torch.zeros(1))
    assert (ran is not None) == whole


@pytest.mark.parametrize(("said", "upcast"), [(None, False), (True, True)])
def test_a_vae_is_upcast_if_its_configuration_asks(
    sd_model: Path, tmp_path: Path, said: bool | None, upcast: bool
) -> None:
    folder = Path(shutil.copytree(sd_model, tmp_path / "sd"))
    path = folder / "vae" / "config.json"
    config = json.loads(path.read_text())
    config.pop("force_upcast", None)
    path.write_text(json.dumps(config if said is None else config | {"force_upcast": said}))
    restorer = load_restorer(folder, device="cpu", precision="fp32")
    assert isinstance(restorer, SdRestorer)
    assert restorer.vae.config["force_upcast"] is upcast
    # What is merged says the same, and not the default of the library that writes it.
    save_merged(restorer.source, tmp_path / "merged")
    assert json.loads((tmp_path / "merged" / "vae" / "config.json").read_text())["force_upcast"] is upcast
    assert vae_precision("fp16", upcast, torch.device("mps")) == ("fp32" if upcast else "fp16")


@pytest.mark.parametrize(
    ("architecture", "precision"),
    [("gfx1030", "fp16"), ("gfx906:sramecc+", "fp16"), ("gfx90a", "bf16"), ("gfx942", "bf16"), ("gfx1100", "bf16")],
)
def test_auto_on_rocm_follows_the_architecture(
    monkeypatch: pytest.MonkeyPatch, architecture: str, precision: str
) -> None:
    monkeypatch.setattr(torch.version, "hip", "6.2")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(gcnArchName=architecture))
    assert devices.choose_precision("auto", torch.device("cuda")) == precision


def test_a_gpu_without_kernels_is_skipped_with_a_note(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    devices.why_unusable.cache_clear()
    monkeypatch.setattr(
        devices, "_IS_PRESENT", {"cuda": lambda: True, "mps": lambda: False, "xpu": lambda: False, "cpu": lambda: True}
    )
    ones = torch.ones

    def no_kernel(*size: int, **options: Any) -> Tensor:
        if options.get("device") == "cuda":
            raise RuntimeError("CUDA error: no kernel image is available for execution on the device")
        return ones(*size, **options)

    monkeypatch.setattr(torch, "ones", no_kernel)
    try:
        restorer = load_restorer(model)
        assert restorer.device.type == "cpu"
        assert any("no kernel image" in note for note in restorer.notes)
        assert load_restorer(model, device="cpu").notes == ()
    finally:
        devices.why_unusable.cache_clear()


def test_processes_on_one_gpu_count_each_others_weights(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from omgsr_cli.batch import upscaler

    source = find_model(ModelOptions(model=str(model)))
    info = describe_model(source)
    monkeypatch.setattr(upscaler, "usable_memory", lambda device: 1 << 30)
    settings = Settings(ModelOptions(model=str(model), precision="fp32"), RestoreOptions(), WriteOptions())
    opened = UpscaleWork(settings, source, info).open(Place("cpu", 4), say_nothing)
    assert opened._settings.restore.memory == ((1 << 28) - info.parameters * 4) >> 20


def test_shared_memory_is_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(is_integrated=1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    monkeypatch.setattr(torch.xpu, "get_device_properties", lambda device: SimpleNamespace())
    shared = {kind: devices.shares_host_memory(torch.device(kind)) for kind in ("cpu", "mps", "cuda", "xpu")}
    assert shared == {"cpu": True, "mps": True, "cuda": True, "xpu": False}
    properties.is_integrated = 0
    assert not devices.shares_host_memory(torch.device("cuda"))


def test_a_seed_draws_on_the_cpu(sd_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[torch.device] = []
    restorer = load_restorer(sd_model, device="cpu", precision="fp32")
    encode = restorer.encode

    def watched(image: Tensor, generator: Any = None) -> Tensor:
        drawn.append(generator.device)
        return encode(image, generator)

    monkeypatch.setattr(restorer, "encode", watched)
    monkeypatch.setattr(
        restorer, "encode_within", lambda image, workspace, generator: watched(image.read(0, 32), generator)
    )
    made: list[Any] = []
    generator = torch.Generator
    monkeypatch.setattr(torch, "Generator", lambda *arguments: made.append(arguments) or generator())
    upscale_image(restorer, torch.rand(3, 8, 8), Size(32, 32), RestoreOptions(seed=3))
    assert (made, drawn) == ([()], [torch.device("cpu")])


def test_a_card_gets_larger_tiles_and_several_together(model: Path, sd_model: Path) -> None:
    tiny, sd = (describe_model(find_model(ModelOptions(model=str(folder)))) for folder in (model, sd_model))
    large, options = Size(4096, 4096), RestoreOptions(process_scale=1)
    tiles = {
        kind: plan_restoration(tiny, large, large, options, 64 * GIB, Execution(kind)).codec.side_px
        for kind in ("cpu", "cuda")
    }
    assert tiles["cpu"] < 2048 <= tiles["cuda"]

    def batch(execution: Execution, free_bytes: int, **changes: int) -> int:
        changed = options.model_copy(update=changes)
        return plan_restoration(sd, Size(256, 256), Size(256, 256), changed, free_bytes, execution).batch

    assert batch(Execution(), 64 * GIB) == 1
    together = [batch(Execution("cuda"), 1 << bits) for bits in range(12, 37)]
    assert together == sorted(together)
    assert set(together) == {1, 2, 4, 8}
    assert batch(Execution("cuda"), 64 * GIB, batch=3) == 3


@pytest.mark.parametrize(
    ("device", "precision", "share"), [("cpu", "bf16", 1.0), ("cuda", "fp32", 1.0), ("cuda", "bf16", 0.6)]
)
def test_16_bits_take_less_memory_on_a_card(sd_model: Path, device: str, precision: str, share: float) -> None:
    info = describe_model(find_model(ModelOptions(model=str(sd_model))))
    needed = Execution(device, precision).needs(info.codec).bytes_per_px
    assert needed == pytest.approx(info.codec.bytes_per_px * share, abs=1)


def test_a_card_s_own_memory_is_used_further(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "free_memory_bytes", lambda device: 10 * GIB)
    monkeypatch.setattr(devices, "shares_host_memory", lambda device: device.type != "cuda")
    assert planning.usable_memory(torch.device("cpu")) == 5 * GIB
    assert planning.usable_memory(torch.device("cuda")) == 8 * GIB


@pytest.mark.parametrize(("kind", "asynchronous"), [("cuda", True), ("mps", False)])
def test_only_pinned_memory_is_copied_without_waiting(
    monkeypatch: pytest.MonkeyPatch, kind: str, asynchronous: bool
) -> None:
    asked: list[tuple[bool, bool]] = []
    pinned = torch.zeros(2)
    monkeypatch.setattr(transfer, "pinned", lambda tensor: pinned)

    def to(self: Tensor, *arguments: Any, non_blocking: bool = False, **options: Any) -> Tensor:
        asked.append((self is pinned, non_blocking))
        return self

    monkeypatch.setattr(Tensor, "to", to)
    transfer.upload(torch.ones(2), torch.device(kind))
    assert asked == [(asynchronous, asynchronous)]


@pytest.mark.parametrize(
    ("device", "workers", "gpus", "planned"),
    [
        (None, None, 2, (Place("cuda"), 2, True)),
        (None, None, 0, (Place("cpu"), 8, False)),
        ("xpu", None, 3, (Place("xpu"), 3, True)),
        # A cluster that does not count them, and Apple's: one actor, or all of them share one device.
        ("xpu", None, 0, (Place("xpu", 1), 1, False)),
        ("mps", None, 0, (Place("mps", 1), 1, False)),
        ("mps", 2, 2, (Place("mps", 2), 2, False)),
        ("cpu", None, 2, (Place("cpu"), 8, False)),
    ],
)
def test_actors_get_a_gpu_each_or_share_one(
    device: str | None, workers: int | None, gpus: int, planned: tuple[Place, int, bool]
) -> None:
    assert plan_actors(device, workers, {"GPU": gpus, "CPU": 8}.__getitem__) == planned


@pytest.mark.parametrize(("device", "precision", "allowed"), [("cuda", "fp32", False), ("cuda", "bf16", True)])
def test_fp32_is_not_tf32(
    model: Path, monkeypatch: pytest.MonkeyPatch, device: str, precision: str, allowed: bool
) -> None:
    there = load_restorer(model, device="cpu", precision="fp32")
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(loading, "choose_device", lambda name: torch.device(device))
    family = SimpleNamespace(choose_precision=lambda asked, device: asked, load=lambda *arguments: there)
    monkeypatch.setattr(loading, "family_of", lambda *arguments: family)
    load_restorer(model, device=device, precision=precision)
    assert torch.backends.cudnn.allow_tf32 is allowed


def test_processes_wait_for_a_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def accelerator(**options: Any) -> SimpleNamespace:
        asked.update(options)
        return SimpleNamespace(distributed_type=DistributedType.NO, num_processes=1)

    monkeypatch.setattr(distributed, "Accelerator", accelerator)
    build_accelerator(tmp_path)
    limits = [each.timeout for each in asked["kwargs_handlers"] if hasattr(each, "timeout")]
    assert min(limits) > timedelta(hours=1)


@pytest.mark.parametrize(("compiled", "side", "noted"), [(True, 1024, True), (True, 64, False), (False, 1024, False)])
def test_a_note_reports_that_strips_are_not_compiled(
    sd_model: Path, tmp_path: Path, compiled: bool, side: int, noted: bool
) -> None:
    info = describe_model(find_model(ModelOptions(model=str(sd_model))))
    chosen = ModelOptions(model=str(sd_model), compile=compiled)
    settings = Settings(chosen, RestoreOptions(memory=32), WriteOptions())
    one = Upscaler(settings, info, FinishedResults(settings, info, Remembered(tmp_path)), lambda: pytest.fail("unused"))
    opened: Any = SimpleNamespace(
        restorer=SimpleNamespace(device=torch.device("cpu"), precision="fp32"),
        checked=SimpleNamespace(held_bytes=0, input_px=Size(side, side), output_px=Size(side, side)),
    )
    notes: list[str] = []
    one._note_strips(opened, notes)
    assert [("strips" in note) for note in notes] == [True] * noted
