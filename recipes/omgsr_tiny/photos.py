"""The training photographs, decoded once into a memory map, and random crops of them.

    python recipes/omgsr_tiny/photos.py PHOTOS_FOLDER photos.u8

writes photos.u8 (pixels) and photos.json (sizes and offsets). Pictures of at least twice the crop's need are kept
a second time at half size: sharper per pixel, and another scale of the same scene.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

HALVE_FROM_PX = 1000


def prepare(folder: Path, target: Path) -> None:
    """Decode every picture of `folder` into `target`, with an index beside it."""
    index, offset = [], 0
    with target.open("wb") as pixels:
        for path in sorted(p for p in folder.iterdir() if p.suffix in {".webp", ".png", ".jpg"}):
            picture = Image.open(path).convert("RGB")
            versions = [picture]
            if min(picture.size) >= HALVE_FROM_PX:
                versions.append(picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX))
            for version in versions:
                pixels.write(np.asarray(version).tobytes())
                index.append({"file": path.name, "height": version.height, "width": version.width, "offset": offset})
                offset += version.height * version.width * 3
    target.with_suffix(".json").write_text(json.dumps(index))


class Photos:
    """Random crops; the draw depends only on (seed, index), so that a resumed training sees the same ones."""

    def __init__(self, path: Path) -> None:
        self.index = json.loads(path.with_suffix(".json").read_text())
        self.pixels = np.memmap(path, dtype=np.uint8, mode="r")
        area = np.array([entry["height"] * entry["width"] for entry in self.index], dtype=np.float64)
        # Between "every picture alike" and "every pixel alike": large pictures hold more, but not 60 times more.
        self.weight = area**0.5 / (area**0.5).sum()

    def crop(self, rng: np.random.Generator, size_px: int) -> Tensor:
        """One crop, flipped and turned at random: (3, size, size) uint8."""
        entry = self.index[rng.choice(len(self.index), p=self.weight)]
        height, width = entry["height"], entry["width"]
        picture = self.pixels[entry["offset"] : entry["offset"] + height * width * 3].reshape(height, width, 3)
        # Of three places the one with the most detail: skies teach little.
        places = [(rng.integers(height - size_px + 1), rng.integers(width - size_px + 1)) for _ in range(3)]
        crops = [picture[y : y + size_px, x : x + size_px] for y, x in places]
        pick = max(crops, key=lambda c: float(c[::4, ::4, 1].std())) if rng.random() < 0.7 else crops[0]
        pick = np.rot90(pick, int(rng.integers(4)))
        if rng.random() < 0.5:
            pick = pick[:, ::-1]
        return torch.from_numpy(np.ascontiguousarray(pick.transpose(2, 0, 1)))


def batches(photos: Photos, batch: int, size_px: int, seed: int, start: int) -> Iterator[Tensor]:
    """Endless batches of crops, (B, 3, size, size) float32 in [0, 1], from batch number `start` on."""
    step = start
    while True:
        rng = np.random.default_rng([seed, step])
        yield torch.stack([photos.crop(rng, size_px) for _ in range(batch)]).float() / 255
        step += 1


if __name__ == "__main__":
    prepare(Path(sys.argv[1]), Path(sys.argv[2]))
