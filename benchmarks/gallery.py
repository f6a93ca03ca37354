"""Measure the page of `omgsr upscale --gallery` with many images: time, memory and sizes, and its speed in Chromium.

    python benchmarks/gallery.py [--images 10000] [--side 1024]

All images are links to one JPEG of noise, SIDE px wide, as input and as result. Memory is the growth of this process
from the first thousand images to the end; a second run reuses the thumbnails. With Chromium, the script also measures
the time from opening the page to its first paint and to its last thumbnail, and that of a jump to the last image.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from omgsr_cli.batch.gallery import Gallery, GalleryOptions
from omgsr_cli.batch.reports import FileResult
from omgsr_cli.geometry import Size

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from chromium import BROWSER, Chromium


def write(folder: Path, count: int, side: int) -> None:
    """Write the page, and print what that takes."""
    process, size = psutil.Process(), Size(side, side)
    began, before = time.monotonic(), 0
    page = GalleryOptions(folder / "page.html")
    with Gallery(
        page, title="photos", result="after", facts={"model": "omgsr-tiny"}, command="", total=None
    ) as gallery:
        for number in range(count):
            name = f"photos/subfolder {number // 1000}/IMG_{number:05}.jpg"
            source = folder / name
            gallery.add(FileResult(source, source, "done", size, size, size, 1.5), name)
            if number == min(1000, count // 2):
                before = process.memory_info().rss
    seconds, grown = time.monotonic() - began, (process.memory_info().rss - before) / 2**20
    thumbnails = sum(file.stat().st_size for file in (folder / "page_files").iterdir())
    print(f"{seconds:.1f} s, {1000 * seconds / count:.1f} ms per image; memory grows by {grown:.1f} MiB; page ", end="")
    print(f"{(folder / 'page.html').stat().st_size / 2**20:.2f} MiB, thumbnails {thumbnails / 2**20:.1f} MiB")


def browse(folder: Path) -> None:
    """Open the page in headless Chromium."""
    with Chromium(folder) as tab:
        tab.show(1280, 800)
        tab.open(folder / "page.html")
        paint = tab.ask(
            "new Promise((done) => new PerformanceObserver((all) => all.getEntries().forEach((one) =>"
            " one.name === 'first-contentful-paint' && done(one.startTime))).observe({type: 'paint', buffered: true}))"
        )
        loaded = tab.ask("performance.getEntriesByType('navigation')[0].loadEventEnd")
        tab.ask("document.getElementById('list').focus()")
        began = time.monotonic()
        tab.press("End")
        jump = time.monotonic() - began
        nodes = tab.ask("document.querySelectorAll('*').length")
        heap = tab.ask("performance.memory.usedJSHeapSize") / 2**20
        print(
            f"first paint {paint:.0f} ms, loaded {loaded:.0f} ms, jump to the last image {1000 * jump:.0f} ms; ", end=""
        )
        print(f"{nodes} elements, {heap:.0f} MiB of JavaScript; {tab.ask('document.title')}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--side", type=int, default=1024)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:
        folder = Path(place)
        rng = np.random.default_rng(0)
        noise = rng.integers(0, 256, (options.side // 8, options.side // 8, 3)).astype(np.uint8)
        image = folder / "image.jpg"
        Image.fromarray(noise).resize((options.side, options.side)).save(image, quality=90)
        for number in range(options.images):
            path = folder / f"photos/subfolder {number // 1000}/IMG_{number:05}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            os.link(image, path)
        for _ in range(2):
            write(folder, options.images, options.side)
        if BROWSER:
            browse(folder)


if __name__ == "__main__":
    main()
