"""Write pairs of degraded and sharp images from photographs that omgsr-tiny was not trained on, each in eight ways.

    python recipes/omgsr_tiny/degrade_photos.py --photos PHOTOS --out pairs
    omgsr bench --data pairs/noise-15/lr --hr pairs/noise-15/hr --metrics psnr,ssim

Each degradation has a folder with `lr/` and `hr/`: `clean`, `noise-5`, `noise-15`, `noise-30` (white, with this many
grey levels), `jpeg-30`, `jpeg-60`, `blur` (Gaussian of 3 px before the reduction) and `old` (that blur, noise of 12,
JPEG 50).
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

SIDE_PX, SCALE = 384, 4
KINDS: dict[str, tuple[float, float, int | None]] = {
    "clean": (0, 0, None),
    "noise-5": (0, 5, None),
    "noise-15": (0, 15, None),
    "noise-30": (0, 30, None),
    "jpeg-30": (0, 0, 30),
    "jpeg-60": (0, 0, 60),
    "blur": (3, 0, None),
    "old": (3, 12, 50),
}
"""Blur before the reduction in px, noise in grey levels, and JPEG's quality."""


def held_out(files: Sequence[Path]) -> list[Path]:
    """Return every 19th photograph by name; these were not used for training."""
    return [path for index, path in enumerate(sorted(files)) if index % 19 == 7][:20]


def sharp_crop(path: Path) -> Image.Image:
    """Return a photograph's central 384x384 px after reduction by an integer to a short side of at least 600 px."""
    image = Image.open(path).convert("RGB")
    factor = max(1, min(image.size) // 600)
    image = image.reduce(factor) if factor > 1 else image
    left, top = (image.width - SIDE_PX) // 2, (image.height - SIDE_PX) // 2
    return image.crop((left, top, left + SIDE_PX, top + SIDE_PX))


def degrade(image: Image.Image, kind: str, seed: int) -> Image.Image:
    """Reduce an image four times, with blur before the reduction and noise and JPEG after it."""
    blur_px, sigma, quality = KINDS[kind]
    if blur_px:
        image = image.filter(ImageFilter.GaussianBlur(blur_px))
    small = image.resize((SIDE_PX // SCALE, SIDE_PX // SCALE), Image.Resampling.BICUBIC)
    if sigma:
        noise = np.random.default_rng(seed).normal(0, sigma, (small.height, small.width, 3))
        small = Image.fromarray((np.asarray(small) + noise).round().clip(0, 255).astype(np.uint8))
    if quality is not None:
        buffer = io.BytesIO()
        small.save(buffer, "JPEG", quality=quality)
        small = Image.open(buffer).convert("RGB")
    return small


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    photos = held_out([path for path in options.photos.iterdir() if path.suffix in {".webp", ".png", ".jpg"}])
    for kind in KINDS:
        for name in ("lr", "hr"):
            (options.out / kind / name).mkdir(parents=True)
        for seed, path in enumerate(photos):
            sharp = sharp_crop(path)
            sharp.save(options.out / kind / "hr" / f"{path.stem}.png")
            degrade(sharp, kind, seed).save(options.out / kind / "lr" / f"{path.stem}.png")
    print(f"{len(photos)} photographs, {len(KINDS)} degradations in {options.out}")


if __name__ == "__main__":
    main()
