"""Draw training images of text and lines: letters, signs and drawings are rare in photographs, but matter most.

    python recipes/omgsr_tiny/draw_text.py --photos PHOTOS --out text --count 60 [--fonts FOLDER]

Half of the images show text on paper through which a photograph is faintly visible, the others on the photograph.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIDE_PX, OVERSAMPLING = 640, 2
WORDS = (
    *(
        "the",
        "of",
        "and",
        "photograph",
        "station",
        "street",
        "market",
        "1954",
        "1987",
        "Grand",
        "Hotel",
        "open",
        "daily",
    ),
    *("bread", "museum", "ticket", "no", "42", "price", "3.50", "exit", "River", "North", "Avenue", "summer", "family"),
    *(
        "Anna",
        "Peter",
        "winter",
        "garden",
        "letter",
        "Dear",
        "music",
        "cinema",
        "bus",
        "A1",
        "Dr.",
        "&",
        "Sons",
        "0123",
    ),
)


def draw_page(background: Image.Image, fonts: list[Path], rng: np.random.Generator) -> Image.Image:
    """Draw text or lines onto a background with sides of SIDE_PX."""
    side = SIDE_PX * OVERSAMPLING
    if rng.random() < 0.5:
        tone = int(rng.integers(150, 256) if rng.random() < 0.75 else rng.integers(0, 90))
        color = np.clip(tone + rng.integers(-20, 20, 3), 0, 255)
        paper = Image.new("RGB", background.size, tuple(int(value) for value in color))
        background = Image.blend(paper, background, float(rng.uniform(0, 0.15)))
    is_light = float(np.asarray(background).mean()) > 120
    page = background.resize((side, side), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(page)
    (draw_lines_of_text if rng.random() < 0.7 else draw_figures)(draw, side, fonts, rng, is_light)
    return page.resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX)


def pick_ink(rng: np.random.Generator, is_light: bool) -> tuple[int, int, int]:
    color = rng.integers(0, 80, 3) if is_light else rng.integers(170, 256, 3)
    if rng.random() < 0.6:
        color[:] = color[0]
    return int(color[0]), int(color[1]), int(color[2])


def draw_lines_of_text(
    draw: ImageDraw.ImageDraw, side: int, fonts: list[Path], rng: np.random.Generator, is_light: bool
) -> None:
    y = 0
    while y < side:
        px = int(rng.integers(14, 60) * OVERSAMPLING)
        # Without fonts, use Pillow's bundled font.
        path = fonts[int(rng.integers(len(fonts)))] if fonts else None
        font = ImageFont.truetype(path, px) if path else ImageFont.load_default(px)
        color = pick_ink(rng, is_light)
        for _ in range(int(rng.integers(1, 6))):
            line = " ".join(rng.choice(WORDS) for _ in range(24))
            draw.text((int(rng.integers(-px * 3, px)), y), line.upper() if rng.random() < 0.25 else line, color, font)
            y += int(px * rng.uniform(1.1, 1.6))


def draw_figures(
    draw: ImageDraw.ImageDraw, side: int, fonts: list[Path], rng: np.random.Generator, is_light: bool
) -> None:
    for _ in range(int(rng.integers(20, 70))):
        color, width = pick_ink(rng, is_light), int(rng.integers(1, 7) * OVERSAMPLING)
        center = rng.integers(0, side, 2)
        points = center + rng.integers(-side // 4, side // 4, (int(rng.integers(2, 5)), 2))
        (left, right), (top, bottom) = (sorted(int(value) for value in points[:2, axis]) for axis in (0, 1))
        kind = rng.random()
        if kind < 0.5:
            draw.line([(int(x), int(y)) for x, y in points], color, width, joint="curve")
        elif kind < 0.75:
            draw.ellipse((left, top, right + 1, bottom + 1), outline=color, width=width)
        else:
            start, end = (int(value) for value in rng.integers(0, 360, 2))
            draw.arc((left, top, right + 1, bottom + 1), start, end, color, width)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True, help="folder of photographs to write on")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--fonts", type=Path, help="folder of .ttf files; without it, Pillow's own font")
    options = parser.parse_args()
    photos = sorted(path for path in options.photos.rglob("*") if path.suffix.lower() in {".webp", ".png", ".jpg"})
    fonts = sorted(options.fonts.rglob("*.ttf")) if options.fonts else []
    options.out.mkdir(parents=True)
    for index in range(options.count):
        rng = np.random.default_rng([7, index])
        with Image.open(photos[int(rng.integers(len(photos)))]) as image:
            side = min(image.size)
            x, y = (int(rng.integers(length - side + 1)) for length in image.size)
            background = image.convert("RGB").resize((SIDE_PX, SIDE_PX), box=(x, y, x + side, y + side))
        draw_page(background, fonts, rng).save(options.out / f"{index:04d}.png")


if __name__ == "__main__":
    main()
