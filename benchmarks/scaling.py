"""Measure the speed-up of two single-thread processes over one, and the time of a small image outside the network.

    python benchmarks/scaling.py [--images 60] [--height 64] [--width 90]

Images are counted from the first results to the last, so the start of the processes and the loading of the model are
excluded. Run this on an idle machine; the load of other programs is printed.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import stages
from PIL import Image
from torch import Tensor

from omgsr_cli.batch.finished import FinishedResults, Settings
from omgsr_cli.batch.upscaler import Upscaler, UpscaleWork
from omgsr_cli.engines.local import Processes
from omgsr_cli.engines.work import Place
from omgsr_cli.files.jobs import Job
from omgsr_cli.files.remembered import Remembered
from omgsr_cli.models.loading import describe_model, load_found
from omgsr_cli.models.sources import find_model
from omgsr_cli.options import ModelOptions, RestoreOptions, WriteOptions


def write_images(folder: Path, count: int, height: int, width: int) -> list[Path]:
    """Write smooth images with some noise, all different."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[0:height, 0:width]
    paths = []
    for number in range(count):
        waves = [128 + 90 * np.sin(rows / (5 + number % 7) + columns / (9 - channel)) for channel in range(3)]
        pixels = np.stack(waves, 2) + random.normal(0, 6, (height, width, 3))
        paths.append(folder / f"{number:04}.png")
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(paths[-1])
    return paths


def images_per_second(work: UpscaleWork, jobs: list[Job], processes: int, device: str) -> float:
    """Return the speed between the first result of every process and the last result of all."""
    places = [Place(device, processes)] * processes
    results = Processes(places).run(work, jobs, on_start=lambda job: None, say=lambda text, *, detail=False: None)
    began, counted = 0.0, 0
    for number, result in enumerate(results):
        assert result.status == "done", result
        if number < 2 * processes:
            began = time.monotonic()
        else:
            counted += 1
    return counted / (time.monotonic() - began)


def overhead(work: UpscaleWork, jobs: list[Job]) -> tuple[float, float]:
    """Return processor seconds of an image, in total and outside the network; other programs do not count."""
    inside = [0.0]
    model = load_found(work.model, device=str(stages.device), precision="fp32")

    def timed(stage: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def run(*values: object) -> Tensor:
            began = time.process_time()
            try:
                result = stage(*values)
                stages.synchronise()
                return result
            finally:
                inside[0] += time.process_time() - began

        return run

    # Wrap the stages from outside, so that the program itself stays unchanged.
    for name in ("encode", "restore", "decode"):
        setattr(model, name, timed(getattr(model, name)))
    do = Upscaler(work.settings, work.info, FinishedResults(work.settings, work.info, Remembered()), lambda: model)
    do(jobs[0])
    inside[0], began = 0.0, time.process_time()
    for job in jobs[1:]:
        do(job)
    whole = time.process_time() - began
    return whole / (len(jobs) - 1), (whole - inside[0]) / (len(jobs) - 1)


def main() -> None:
    """Measure and print both figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=60)
    parser.add_argument("--height", type=int, default=64)
    parser.add_argument("--width", type=int, default=90)
    stages.add_device(parser)
    options = parser.parse_args()
    stages.use_device(options.device)
    os.environ["OMP_NUM_THREADS"] = "1"
    source = find_model(ModelOptions(model="omgsr-tiny"))
    settings = Settings(ModelOptions(precision="fp32"), RestoreOptions(), WriteOptions())
    work = UpscaleWork(settings, source, describe_model(source))
    with tempfile.TemporaryDirectory() as folder:
        images = write_images(Path(folder), options.images, options.height, options.width)
        speeds = []
        for processes in (1, 2):
            jobs = [Job(path, Path(folder, f"out{processes}", path.name)) for path in images]
            speeds.append(images_per_second(work, jobs, processes, options.device))
            print(f"{processes} process{'es' * (processes > 1)}: {speeds[-1]:.2f} images a second")
        each, beside = overhead(work, [Job(path, Path(folder, "beside", path.name)) for path in images])
    load = os.getloadavg()[0]
    print(f"ratio: {speeds[1] / speeds[0]:.2f} ({os.cpu_count()} cores, load of the last minute {load:.1f})")
    print(f"one image: {1000 * each:.0f} ms of processor time, of which {1000 * beside:.0f} ms beside the network")


if __name__ == "__main__":
    main()
