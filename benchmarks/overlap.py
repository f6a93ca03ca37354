"""Measure how busy the model is while it restores a folder: a trace of each thread, with and without overlap.

    python benchmarks/overlap.py [--images 8] [--size 256] [--threads 1]

omgsr-tiny upscales a folder of images, in the same way as `omgsr upscale`, first one by one and then as a stream. Each
line of the trace is one thread: r is reading, # is the model, w is writing. The share is the model's part of the time
between its first and last work.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from stages import add_device, synchronise, use_device
from tiny import write_image_file

from omgsr_cli.batch import upscaler as batch
from omgsr_cli.batch.finished import FinishedResults, Settings
from omgsr_cli.batch.upscaler import Upscaler
from omgsr_cli.files.jobs import Job
from omgsr_cli.files.remembered import Remembered
from omgsr_cli.models.base import Restorer
from omgsr_cli.models.loading import load_restorer
from omgsr_cli.options import ModelOptions, RestoreOptions, WriteOptions

_COLUMNS = 100
Span = tuple[float, float]


class Trace:
    """Spans of time of operations, by letter and thread."""

    def __init__(self) -> None:
        self.spans: list[tuple[str, str, Span]] = []
        self.model_s: list[Span] = []
        """Spans of the model's calls in their thread's processor time, which excludes other programs."""

    def timed(self, letter: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function so that its calls are recorded."""

        def call(*arguments: Any, **options: Any) -> Any:
            start, own = time.perf_counter(), time.thread_time()
            try:
                result = function(*arguments, **options)
                if letter == "#":
                    synchronise()
                return result
            finally:
                self.spans.append((letter, threading.current_thread().name, (start, time.perf_counter())))
                if letter == "#":
                    self.model_s.append((own, time.thread_time()))

        return call

    def shares(self) -> tuple[float, float]:
        """Return the model's share of the time between its first and last work: wall time and thread time."""
        model = [span for letter, _, span in self.spans if letter == "#"]
        return _share(model), _share(self.model_s)

    def lines(self) -> Iterator[str]:
        """Yield one line for each thread."""
        first = min(start for _, _, (start, _) in self.spans)
        scale = _COLUMNS / (max(stop for _, _, (_, stop) in self.spans) - first)
        for thread in dict.fromkeys(name for _, name, _ in self.spans):
            row = [" "] * (_COLUMNS + 1)
            # A span of writing includes its wait for the model, so draw inner operations last.
            for letter in "wr#":
                for found, name, (start, stop) in self.spans:
                    if (found, name) == (letter, thread):
                        left, right = int((start - first) * scale), int((stop - first) * scale)
                        row[left : right + 1] = letter * (right + 1 - left)
            yield f"{thread[:24]:24} {''.join(row)}"


def _share(spans: list[Span]) -> float:
    begin, end = min(start for start, _ in spans), max(stop for _, stop in spans)
    return sum(stop - start for start, stop in spans) / (end - begin)


def measure(way: str, folder: Path, images: int, restorer: Restorer) -> tuple[float, Trace]:
    """Upscale all images of a folder; return seconds and the trace."""
    trace = Trace()
    settings = Settings(ModelOptions(), RestoreOptions(), WriteOptions(overwrite=True))
    finished = FinishedResults(settings, restorer.info, Remembered(folder / way / "cache"))
    upscaler = Upscaler(settings, restorer.info, finished, lambda: restorer)
    jobs = [Job(folder / f"{number}.png", folder / way / f"{number}.png") for number in range(images)]
    kept = {name: getattr(restorer, name) for name in ("encode", "restore", "decode")}
    read, write = batch.read_image, batch.write_image
    for name, function in kept.items():
        setattr(restorer, name, trace.timed("#", function))
    batch.read_image, batch.write_image = trace.timed("r", read), trace.timed("w", write)
    start = time.perf_counter()
    try:
        done = upscaler.stream(jobs, lambda job: None) if way == "stream" else map(upscaler, jobs)
        assert [result.status for result in done] == ["done"] * images
    finally:
        batch.read_image, batch.write_image = read, write
        for name, function in kept.items():
            setattr(restorer, name, function)
    return time.perf_counter() - start, trace


def main() -> None:
    """Measure both variants in one run and print them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--size", type=int, default=256, help="side of the images in px")
    parser.add_argument("--threads", type=int, default=1, help="that the model computes with")
    add_device(parser)
    options = parser.parse_args()
    use_device(options.device)
    torch.set_num_threads(options.threads)
    restorer = load_restorer("omgsr-tiny", device=options.device)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for number in range(options.images):
            write_image_file(folder / f"{number}.png", options.size)
        measure("warm", folder, 1, restorer)
        found = {way: measure(way, folder, options.images, restorer) for way in ("one by one", "stream")}
        same = all(
            (folder / "one by one" / f"{number}.png").read_bytes() == (folder / "stream" / f"{number}.png").read_bytes()
            for number in range(options.images)
        )
    for way, (seconds, trace) in found.items():
        by_clock, own = trace.shares()
        print(f"{way}: {seconds:.1f} s, the model worked {by_clock:.1%} of the time, {own:.1%} of its thread's own")
        print("\n".join(trace.lines()) + "\n")
    before, after = (found[way][0] for way in ("one by one", "stream"))
    print(f"one by one / stream: {before / after:.2f}; the files are {'the same' if same else 'NOT the same'}")


if __name__ == "__main__":
    main()
