"""Compare the time of writing a PNG with the model's time, by the size of the result and the compression library.

    python benchmarks/writing.py [--sizes 1024,2048,4096] [--pillow]

Figures are CPU seconds per megapixel, from one run. The pixels are omgsr-tiny's result of the sample photograph,
repeated to the size. The share is the file's part of the time that one thread needs for the model and the file; both
overlap in a folder and within an image.
"""

from __future__ import annotations

import argparse
import io
import time
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from PIL import Image

from omgsr_cli.geometry import Size
from omgsr_cli.imaging import read_image, to_samples
from omgsr_cli.imaging import write as writing
from omgsr_cli.imaging.image import ImageMetadata, SampleLayout
from omgsr_cli.models.loading import load_restorer
from omgsr_cli.upscaling import upscale_image

SAMPLE = Path(__file__).resolve().parents[1] / "docs" / "images" / "sample.jpg"


def cpu_seconds(work: Callable[[], bytes | torch.Tensor]) -> tuple[float, float, bytes | torch.Tensor]:
    """Call a function; return the CPU seconds of all threads, the wall seconds, and the result."""
    started, began = time.process_time(), time.perf_counter()
    result = work()
    return time.process_time() - started, time.perf_counter() - began, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="1024,2048,4096", help="sides of the results in px")
    parser.add_argument("--pillow", action="store_true", help="compare with Pillow's encoder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    restorer = load_restorer("omgsr-tiny", device="cpu", precision="fp32")
    image = read_image(SAMPLE, "sample").rgb
    size = Size(4 * image.shape[1], 4 * image.shape[2])
    upscale_image(restorer, image, size)
    model_s, _, restored = cpu_seconds(lambda: upscale_image(restorer, image, size))
    assert isinstance(restored, torch.Tensor)
    model_s /= size.area / 1e6
    print(f"model: {model_s:.3f} s for a megapixel\n")
    libraries = {
        writing._deflate_library()[0].__name__: writing._deflate_library(),
        "zlib": (zlib, writing._ZLIB_LEVEL),
    }
    print(
        "| size | library | CPU s per MP | of model and file | by the clock, s | MB |\n|---:|---|---:|---:|---:|---:|"
    )
    for side in map(int, options.sizes.split(",")):
        pixels = restored.repeat(1, -(-side // size.height), -(-side // size.width))[:, :side, :side]
        layout = SampleLayout(side, side, 3, 8)

        def encode(pixels: torch.Tensor = pixels, layout: SampleLayout = layout) -> bytes:
            bands = (to_samples(band, 8) for band in pixels.split(256, dim=1))
            return b"".join(writing.encode_png(layout, bands, ImageMetadata()))

        def by_pillow(pixels: torch.Tensor = pixels) -> bytes:
            buffer = io.BytesIO()
            Image.fromarray(np.ascontiguousarray(to_samples(pixels, 8))).save(buffer, "PNG")
            return buffer.getvalue()

        rows: dict[str, Callable[[], bytes]] = {}
        for name, library in libraries.items():
            rows[name] = partial(_with, library, encode)
        if options.pillow:
            rows["Pillow"] = by_pillow
        for name, work in rows.items():
            seconds, clock_s, data = cpu_seconds(work)
            assert isinstance(data, bytes)
            per_mp = seconds / (side * side / 1e6)
            share = per_mp / (per_mp + model_s)
            print(f"| {side} | {name} | {per_mp:.3f} | {share:.1%} | {clock_s:.2f} | {len(data) / 1e6:.1f} |")


def _with(library: tuple[Any, int], work: Callable[[], bytes]) -> bytes:
    with mock.patch.object(writing, "_deflate_library", return_value=library):
        return work()


if __name__ == "__main__":
    main()
