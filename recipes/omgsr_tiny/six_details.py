"""Draw README's image: six details of photographs not used for training, upscaled bicubically and restored.

python recipes/omgsr_tiny/six_details.py --photos PHOTOS --out docs/images/before_after.png
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from degrade_photos import SCALE, SIDE_PX, degrade
from PIL import Image, ImageDraw

from omgsr_cli import load, upscale_image

SHOWN_PX, GAP_PX, LABEL_PX = 200, 8, 22


@dataclass(frozen=True)
class Detail:
    """The position of a detail, and the degradation of its photograph."""

    name: str
    file: str
    center: tuple[int, int]
    kind: str


DETAILS = (
    Detail("noise", "cid22-157.webp", (213, 185), "noise-30"),
    Detail("a face, old", "cid22-062.webp", (310, 195), "old"),
    Detail("text, JPEG", "cid22-062.webp", (345, 430), "jpeg-30"),
    Detail("foliage", "elementary-366.webp", (1060, 350), "noise-5"),
    Detail("a building, blurred", "cid22-100.webp", (240, 170), "blur"),
    Detail("a drawing, JPEG", "cid22-195.webp", (370, 256), "jpeg-30"),
)


def before_and_after(image: Image.Image, detail: Detail) -> tuple[Image.Image, Image.Image]:
    """Degrade the surroundings of a detail, upscale them in both ways, and crop the detail."""
    left, top = (
        min(max(at - SIDE_PX // 2, 0), side - SIDE_PX) for at, side in zip(detail.center, image.size, strict=True)
    )
    lq = degrade(image.crop((left, top, left + SIDE_PX, top + SIDE_PX)), detail.kind, seed=1)
    x, y = (
        min(max(at - start - SHOWN_PX // 2, 0), SIDE_PX - SHOWN_PX)
        for at, start in zip(detail.center, (left, top), strict=True)
    )
    box = (x, y, x + SHOWN_PX, y + SHOWN_PX)
    bicubic = lq.resize((SIDE_PX, SIDE_PX), Image.Resampling.BICUBIC)
    restored = upscale_image(load(device="cpu"), lq, scale=SCALE)
    assert isinstance(restored, Image.Image)
    return bicubic.crop(box), restored.crop(box)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.manual_seed(0)
    width, height = 2 * SHOWN_PX + 2, SHOWN_PX + LABEL_PX
    sheet = Image.new("RGB", (3 * width + 2 * GAP_PX, 2 * height + GAP_PX), "white")
    draw = ImageDraw.Draw(sheet)
    for index, detail in enumerate(DETAILS):
        image = Image.open(options.photos / detail.file).convert("RGB")
        row, column = divmod(index, 3)
        at = np.array((column * (width + GAP_PX), row * (height + GAP_PX)))
        draw.text((int(at[0]) + 2, int(at[1]) + 3), detail.name, fill="black", font_size=14)
        for place, shown in enumerate(before_and_after(image, detail)):
            sheet.paste(shown, (int(at[0]) + place * (SHOWN_PX + 2), int(at[1]) + LABEL_PX))
    sheet.save(options.out, optimize=True)


if __name__ == "__main__":
    main()
