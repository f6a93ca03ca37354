"""The parts of `gpu.sh`: describe the machine, compare results with the CPU's, and train with kill and resume.

python benchmarks/gpu.py machine --device cuda
python benchmarks/gpu.py agree --device cuda
python benchmarks/gpu.py train --device cuda
"""

from __future__ import annotations

import argparse
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from sd_size import make
from stages import add_device, peak_memory_gib, timed, use_device
from train_step import write_photos

from omgsr_cli.geometry import Size
from omgsr_cli.models.devices import choose_precision, shares_host_memory
from omgsr_cli.models.loading import load_restorer
from omgsr_cli.options import RestoreOptions
from omgsr_cli.upscaling import upscale_image

SHARED = Path(os.environ.get("OMGSR_SHARED", Path(__file__).resolve().parents[2] / "shared"))
_MOST_MEAN_LEVELS = 0.1
"""The allowed mean difference of an fp32 result from the CPU's, in 8-bit levels."""
_PATIENCE_S = 240
_CONFIG = """
[model]
start_from = "omgsr-tiny"
[data]
train = ["{photos}"]
resolution = 64
batch_size = 2
workers = 0
[loss]
lrr = 1.0
l1 = 1.0
dv3cd = 0.0
gan = 0.0
[train]
steps = 8
precision = "fp32"
[save]
out = "{out}"
every = 2
keep = 4
[log]
every = 1
"""


def describe(device: torch.device) -> None:
    """Print the hardware and software of the measurements."""
    rows = {"system": platform.platform(), "torch": torch.__version__, "device": str(device)}
    if device.type in ("cuda", "xpu"):
        properties: Any = torch.get_device_module(device).get_device_properties(device)
        rows["device"] += f", {properties.name}"
        rows["memory, GiB"] = f"{properties.total_memory / 2**30:.1f}"
        rows["CUDA / ROCm"] = f"{torch.version.cuda or torch.version.hip}"
    rows["precision auto"] = choose_precision("auto", device)
    rows["memory shared with the processor"] = "yes" if shares_host_memory(device) else "no"
    print("| | |\n|---|---|")
    for name, value in rows.items():
        print(f"| {name} | {value} |")


def agree(device: torch.device, folder: Path) -> bool:
    """Print the differences of results from the CPU's; return False if those of fp32 are too large."""
    golden = SHARED / "golden" / "sd"
    models: dict[str, dict[str, Any]] = {"omgsr-tiny": {"model": "omgsr-tiny"}}
    if golden.is_dir():
        models["golden/sd"] = {"base": golden / "base", "adapter": golden / "adapter"}
    else:
        make(folder / "toy", "toy", "fp32")
        models["a random model"] = {"model": folder / "toy"}
    image = torch.rand(3, 96, 80, generator=torch.Generator().manual_seed(0))
    cases = {"whole": None, "strips": 1 << 20}
    print("| model | case | precision | largest difference, levels | mean difference | seconds | peak, GiB |")
    print("|---|---|---|---:|---:|---:|---:|")
    fits = True
    for name, source in models.items():
        on_cpu = load_restorer(**source, device="cpu", precision="fp32")
        for precision in dict.fromkeys(("fp32", choose_precision("auto", device))):
            there = load_restorer(**source, device=str(device), precision=precision)
            for case, free_bytes in cases.items():
                given = image, Size(384, 320), RestoreOptions()
                expected = upscale_image(on_cpu, *given, free_bytes=free_bytes)
                upscale_image(there, *given, free_bytes=free_bytes)
                seconds, found = timed(lambda there=there, given=given, free=free_bytes: _run(there, given, free))
                distance = (found - expected).abs() * 255
                fits = fits and (precision != "fp32" or bool(distance.mean() <= _MOST_MEAN_LEVELS))
                cells = f"{distance.max():.2f} | {distance.mean():.4f} | {seconds:.3f} | {peak_memory_gib():.2f}"
                print(f"| {name} | {case} | {precision} | {cells} |", flush=True)
    return fits


def _run(restorer: Any, given: Any, free_bytes: int | None) -> torch.Tensor:
    return upscale_image(restorer, *given, free_bytes=free_bytes)


def train(device: torch.device, folder: Path) -> bool:
    """Train eight steps, once without interruption and once killed and resumed; print the difference of weights."""
    photos = write_photos(folder / "photos", 96)
    # accelerate uses an existing GPU by default.
    environment = os.environ | {"ACCELERATE_USE_CPU": str(device.type == "cpu").lower()}
    runs = {name: folder / name for name in ("whole", "resumed")}
    commands = {}
    for name, out in runs.items():
        config = folder / f"{name}.toml"
        config.write_text(_CONFIG.format(photos=photos.as_posix(), out=out.as_posix()), encoding="utf-8")
        commands[name] = [sys.executable, "-m", "omgsr_cli", "train", str(config), "--quiet"]
    began = time.perf_counter()
    subprocess.run(commands["whole"], env=environment, check=True, stdout=subprocess.DEVNULL)
    whole_s = time.perf_counter() - began
    process = subprocess.Popen(commands["resumed"], env=environment, stdout=subprocess.DEVNULL)
    while not (runs["resumed"] / "step-00000004").is_dir() and process.poll() is None:
        if time.perf_counter() - began > _PATIENCE_S:
            process.kill()
            raise SystemExit("the training run does not reach its fourth step")
        time.sleep(0.02)
    was_killed = process.poll() is None
    process.send_signal(signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
    process.wait()
    subprocess.run(commands["resumed"], env=environment, check=True, stdout=subprocess.DEVNULL)
    first, second = (load_file(run / "step-00000008" / "model.safetensors") for run in runs.values())
    distance = max(float((first[name].double() - second[name].double()).abs().max()) for name in first)
    finite = all(bool(value.isfinite().all()) for value in (*first.values(), *second.values()))
    print("| eight steps, start included, s | killed half way | largest difference of a weight after resuming |")
    print("|---:|---|---:|")
    print(f"| {whole_s:.1f} | {'yes' if was_killed else 'no, it was faster'} | {distance:.1e} |")
    return finite and distance < 1e-3


def time_model(device: torch.device, model: str) -> bool:
    """Time an installed model at its own size and twice that; return False if a result is not finite."""
    load_s, restorer = timed(lambda: load_restorer(model, device=str(device)))
    print(f"{restorer.precision}, loaded in {load_s:.1f} s\n\n| output | first, s | second, s | peak, GiB |")
    print("|---|---:|---:|---:|")
    fits = True
    for side in (restorer.info.native_tile_px, 2 * restorer.info.native_tile_px):
        image = torch.rand(3, side // 4, side // 4, generator=torch.Generator().manual_seed(0))
        given = image, Size(side, side), RestoreOptions()
        seconds = []
        for _ in range(2):
            took, found = timed(lambda given=given: _run(restorer, given, None))
            seconds.append(took)
        fits = fits and bool(found.isfinite().all())
        print(f"| {side}x{side} | {seconds[0]:.2f} | {seconds[1]:.2f} | {peak_memory_gib():.2f} |", flush=True)
    return fits


def main() -> int:
    """Run one part; return 1 if it finds a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("machine", "agree", "train", "model"))
    parser.add_argument("--model", default="omgsr-tiny", help="of model")
    add_device(parser)
    options = parser.parse_args()
    device = use_device(options.device)
    if options.part == "machine":
        describe(device)
        return 0
    with tempfile.TemporaryDirectory() as name:
        parts = {
            "agree": lambda: agree(device, Path(name)),
            "train": lambda: train(device, Path(name)),
            "model": lambda: time_model(device, options.model),
        }
        is_right = parts[options.part]()
    if not is_right:
        print(f"\n**{options.part}: the results are wrong**")
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
