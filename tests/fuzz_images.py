"""Read damaged images; each must give an image or a one-line error.

    python tests/fuzz_images.py --seconds 60 --seed 1

Files with any other outcome are written to a folder and named. The same seed gives the same images.
"""

from __future__ import annotations

import argparse
import io
import random
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image, PngImagePlugin

from omgsr_cli.errors import FileError
from omgsr_cli.imaging import probe_image, read_image

_LIMIT_S = 30.0
_EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


def make_samples() -> dict[str, bytes]:
    """Return small intact images of all formats, with the parts that a reader parses."""
    rows, columns = np.mgrid[0:23, 0:31]
    rgb = Image.fromarray(np.stack([rows * 9, columns * 7, rows * columns], 2).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010F], exif[0x9286] = 6, "maker", "a comment"
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "words " * 20, zip=True)
    text.add_itxt("XML:com.adobe.xmp", "<x:xmpmeta xmlns:x='adobe:ns:meta/'/>")
    wide = Image.fromarray((rows * columns * 90).astype(np.uint16))
    kinds: list[tuple[str, Image.Image, str, dict[str, object]]] = [
        ("png", rgb, "PNG", {"exif": exif, "pnginfo": text, "dpi": (300, 300)}),
        ("png palette", rgb.quantize(7), "PNG", {"transparency": 3}),
        ("png alpha", rgb.convert("LA"), "PNG", {}),
        ("png 16 bits", wide, "PNG", {}),
        ("jpeg", rgb, "JPEG", {"exif": exif, "comment": b"words", "quality": 80}),
        ("jpeg progressive", rgb.convert("CMYK"), "JPEG", {"progressive": True}),
        ("webp", rgb, "WEBP", {"exif": exif, "quality": 70}),
        ("webp lossless", rgb.convert("RGBA"), "WEBP", {"lossless": True}),
        ("tiff", rgb, "TIFF", {"exif": exif}),
        ("tiff deflate", rgb, "TIFF", {"compression": "tiff_adobe_deflate"}),
        ("tiff lzw", rgb.convert("RGBA"), "TIFF", {"compression": "tiff_lzw"}),
        ("tiff 16 bits", wide, "TIFF", {}),
        ("tiff float", Image.fromarray((rows * columns / 660).astype(np.float32)), "TIFF", {}),
        ("jpeg 2000", rgb, "JPEG2000", {}),
        ("avif", rgb, "AVIF", {"exif": exif}),
    ]
    samples = {}
    for name, image, format_name, options in kinds:
        held = io.BytesIO()
        image.save(held, format_name, **options)
        samples[name] = held.getvalue()
    return samples


def damaged(data: bytes, source: random.Random) -> bytes:
    """Damage a file in one to four places, more often in its header than in its body."""
    content = bytearray(data)
    for _ in range(source.randint(1, 4)):
        end = len(content) if source.random() < 0.3 else min(len(content), 160)
        place = source.randrange(max(end, 1))
        kind = source.randrange(6)
        if kind == 0:
            content[place : place + 1] = bytes([source.randrange(256)])
        elif kind == 1:
            order = source.choice("<>")
            width = source.choice("BHI")
            value = source.choice(_EXTREMES) & {"B": 0xFF, "H": 0xFFFF, "I": 0xFFFFFFFF}[width]
            number = struct.pack(order + width, value)
            content[place : place + len(number)] = number
        elif kind == 2:
            del content[place:]
        elif kind == 3:
            del content[place : place + source.randint(1, 30)]
        elif kind == 4:
            content[place:place] = source.randbytes(source.randint(1, 30))
        else:
            content[place:place] = content[place : place + source.randint(1, 90)]
    if source.random() < 0.5:
        content = bytearray(with_right_sums(bytes(content)))
    return bytes(content)


def with_right_sums(data: bytes) -> bytes:
    """Correct the checksums of a PNG's chunks, so that a reader parses their damaged contents."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    parts, place = [data[:8]], 8
    while place + 12 <= len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        if place + 12 + length > len(data):
            break
        body = data[place + 4 : place + 8 + length]
        parts.append(data[place : place + 4] + body + struct.pack(">I", zlib.crc32(body)))
        place += 12 + length
    return b"".join(parts) + data[place:]


def damaged_files(seed: int) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents of damaged files without end; the same seed gives the same files."""
    source = random.Random(seed)
    samples = make_samples()
    number = 0
    while True:
        for name, data in samples.items():
            yield f"{name}, {number}", damaged(data, source)
        number += 1


def find_fault(name: str, data: bytes) -> str | None:
    """Return the fault of the reader with a file; None if it gave an image or a one-line error."""
    started = time.monotonic()
    for read in (probe_image, read_image):
        try:
            read(data, name)
        except FileError as error:
            if "\n" in error.message:
                return f"a message of several lines: {error.message!r}"
        except Exception as error:  # noqa: BLE001 - any other exception is a fault
            return f"{read.__name__}: {type(error).__name__}: {error}"
    took = time.monotonic() - started
    return f"took {took:.0f} s" if took > _LIMIT_S else None


def main() -> int:
    """Run for the given time; return 1 if a fault was found."""
    parser = argparse.ArgumentParser(description="Feed damaged images to the reader.")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    ends = time.monotonic() + options.seconds
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    faults = count = 0
    for name, data in damaged_files(options.seed):
        if time.monotonic() > ends:
            break
        count += 1
        fault = find_fault(name, data)
        if fault is not None:
            faults += 1
            path = folder / name.replace(" ", "_").replace(",", "")
            path.write_bytes(data)
            print(f"{path}: {fault}", file=sys.stderr)
    print(f"{count} damaged images, {faults} faults, seed {options.seed}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
