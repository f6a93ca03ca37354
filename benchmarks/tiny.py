"""Measure time and memory of omgsr-tiny: the complete command in a separate process, then the stages in this process.

    python benchmarks/tiny.py [--size 256] [--precision fp32]

    python benchmarks/tiny.py --ratios [--size 256] [--threads 2] [--rounds 5]

`--ratios` alternates within one run between fp32 and bf16, and between omgsr-tiny and the chain of realesr-general-x4v3
in torch's default layout and channels last. The chain has 34 convolutions of 64 channels with PReLU at the size of the
low-quality image; its weights are random, which does not change the time. `--ratios` also prints the share of
convolutions in the time of all operations. Use it on CPUs.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import stages
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from PIL import Image
from stages import Row, count_flops, peak_memory_gib, print_table, restoration_rows, timed
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from omgsr_cli.geometry import Size
from omgsr_cli.models.base import Restorer
from omgsr_cli.models.loading import load_restorer
from omgsr_cli.upscaling import upscale_image


def write_image_file(path: Path, size_px: int) -> None:
    """Write an image of smooth colours with some noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(1, 3, 8, 8, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, size=(size_px, size_px), mode="bicubic")[0]
    noisy = smooth + 0.03 * torch.randn(smooth.shape, generator=generator)
    pixels = noisy.clamp(0, 1).mul(255).byte().permute(1, 2, 0)
    Image.fromarray(pixels.contiguous().numpy()).save(path)


def command_row(size_px: int, precision: str, threads: int) -> Row:
    """Run `omgsr upscale` on one image, from the start of the process to the written file."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "in.png"), Path(folder, "out.png")
        write_image_file(source, size_px)
        command = [sys.executable, "-m", "omgsr_cli", "upscale", str(source), "-o", str(target), "--device"]
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        command += [str(stages.device), "--precision", precision, "--quiet"]
        seconds, _ = timed(lambda: subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True))
        with Image.open(target) as image:
            assert image.size == (4 * size_px, 4 * size_px)
    return Row("whole command", seconds, peak_memory_gib(resource.RUSAGE_CHILDREN))


class Chain(nn.Module):
    """A network of realesr-general-x4v3's shape with random weights."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1), nn.PReLU(64)]
        for _ in range(32):
            layers += [nn.Conv2d(64, 64, 3, padding=1), nn.PReLU(64)]
        self.body = nn.Sequential(*layers, nn.Conv2d(64, 48, 3, padding=1))

    def forward(self, image: Tensor) -> Tensor:
        return F.pixel_shuffle(self.body(image), 4) + F.interpolate(image, scale_factor=4.0, mode="nearest")


class _Timed(NamedTuple):
    """One side of a comparison."""

    name: str
    work: Callable[[], object]


def print_ratios(size_px: int, rounds: int) -> None:
    """Time omgsr-tiny and the chain alternately, each in fp32 and bf16."""
    torch.manual_seed(0)
    image, size = torch.rand(3, size_px, size_px), Size(4 * size_px, 4 * size_px)
    sides: list[_Timed] = []
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        restorer = load_restorer("omgsr-tiny", device="cpu", precision=precision)

        def restore(restorer: Restorer = restorer) -> object:
            return upscale_image(restorer, image, size)

        restore()
        print(f"omgsr-tiny in {precision}: convolutions take {convolution_share(restore):.0%} of all operations' time")
        sides.append(_Timed(f"omgsr-tiny {precision}", restore))
        for name, layout in (("as built", torch.contiguous_format), ("channels last", torch.channels_last)):
            chain = Chain().eval().to(dtype).to(memory_format=layout)  # type: ignore[call-overload]  # torch's omission
            given = image[None].to(dtype, memory_format=layout)
            sides.append(_Timed(f"chain {precision}, {name}", lambda chain=chain, given=given: chain(given)))
    taken: dict[str, list[float]] = {side.name: [] for side in sides}
    # With one thread, use its CPU time, which is less affected by other work on the machine.
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    with torch.inference_mode():
        for turn in range(rounds + 1):
            for side in sides:
                started = clock()
                side.work()
                if turn:
                    taken[side.name].append(clock() - started)
    first = statistics.median(taken[sides[0].name])
    for name, seconds in taken.items():
        middle = statistics.median(seconds)
        print(f"{name:28}{middle:7.2f} s ({min(seconds):.2f} to {max(seconds):.2f}), {first / middle:.2f}")
    print("The last column is omgsr-tiny's time in fp32, divided by each.")


def convolution_share(work: Callable[[], object]) -> float:
    """Return the share of convolutions in the time of all operations, measured by torch's profiler."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        work()
    own = {event.key: event.self_cpu_time_total for event in found.key_averages()}
    return sum(value for key, value in own.items() if "conv" in key) / sum(own.values())


def main() -> None:
    """Measure the command and the stages, and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=256, help="side of the image in px")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ratios", action="store_true", help="to a bare chain, on the CPU")
    parser.add_argument("--rounds", type=int, default=5, help="of --ratios")
    stages.add_device(parser)
    options = parser.parse_args()
    stages.use_device(options.device)
    torch.set_num_threads(options.threads)
    if options.ratios:
        print_ratios(options.size, options.rounds)
        return
    # Run the command first, while this process is small: its memory counts towards the peak of its child.
    command = command_row(options.size, options.precision, options.threads)
    load_s, restorer = timed(
        lambda: load_restorer("omgsr-tiny", device=str(stages.device), precision=options.precision)
    )
    loaded = Row("load", load_s, peak_memory_gib())
    rows = restoration_rows(restorer, options.size, count_flops(restorer, 4 * options.size))
    print(f"{restorer.info.parameters / 1e6:.1f} M parameters, {restorer.precision}, {options.threads} threads")
    print(f"{options.size}x{options.size} to {4 * options.size}x{4 * options.size}\n")
    print_table([command, loaded, *rows])


if __name__ == "__main__":
    main()
