"""The page of a benchmark: self-contained, escaped, and usable in a browser."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import TOO_WIDE, Chromium, needs_browser
from numpy.typing import NDArray
from page_elements import Elements
from PIL import Image

from omgsr_cli.benchmark.page import write_page
from omgsr_cli.benchmark.results import (
    Failure,
    ImageResult,
    MetricInfo,
    ModelInfo,
    PairedDifference,
    Quantiles,
    Report,
    Speed,
    Summary,
)
from omgsr_cli.errors import FileError

NASTY = '</script><script>alert(1)</script>\n"&\udcff'


def write_image_file(path: Path, seed: int, side: int = 24) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3)).astype(np.uint8)).save(path)
    return path


def build_report(folder: Path, names: list[str], models: tuple[str, ...] = ("ours", "bicubic")) -> Report:
    images = []
    for number, name in enumerate(names):
        restored = {model: write_image_file(folder / model / f"{number}.png", number) for model in models}
        scores = {model: {"psnr": 20.0 + number + i, "lpips": 0.5 - 0.01 * number} for i, model in enumerate(models)}
        images.append(
            ImageResult(
                name=name,
                input=write_image_file(folder / "input" / f"{number}.png", number, 6),
                reference=write_image_file(folder / "reference" / f"{number}.png", 100 + number),
                restored=restored,
                scores=scores,
                error={},
            )
        )
    return Report(
        title=f"test, {len(names)} images",
        created="2026-01-02T03:04:05Z",
        models=tuple(ModelInfo(model, "resampling", 4.0, detail="a & b") for model in models),
        metrics=(
            MetricInfo("psnr", "full-reference", False, "0, inf", "dB", "omgsr", "Y of YCbCr"),
            MetricInfo("lpips", "full-reference", True, "0, 1"),
        ),
        images=tuple(images),
        summaries=tuple(
            Summary(model, metric, len(names), mean, mean - 0.1, mean + 0.1)
            for i, model in enumerate(models)
            for metric, mean in (("psnr", 21.0 + i), ("lpips", 0.4))
        ),
        differences=(PairedDifference(models[0], models[1], "psnr", len(names), 1.0, 0.5, 1.5),),
        speeds=(Speed(models[0], "cpu", "fp32", 3, 0.5, Quantiles(1, 1, 1), Quantiles(2, 2, 2), 300.0),),
        failures=(Failure("musiq", "needs <weights>", "fetch them"),),
        versions={"omgsr": "0"},
        settings={"data": NASTY},
    )


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text("utf-8"), re.S)
    assert found
    data: dict[str, Any] = json.loads(found[1])
    return data


def test_the_page_is_self_contained(tmp_path: Path) -> None:
    report = build_report(tmp_path, ["a", "b"])
    page = tmp_path / "out" / "report.html"
    write_page(report, page)
    text = page.read_text("utf-8")
    assert "{{" not in text
    # Nothing is asked for from anywhere: no address, no link, no import.
    assert not re.search(r"https?://|<link|@import|url\(", text)
    parsed = Elements(text)
    assert all(not attrs.get("src") for _, attrs in parsed.elements)
    data = data_of(page)
    assert [image["name"] for image in data["images"]] == ["a", "b"]
    assert list(data["images"][0]["views"]) == ["input", "ours", "bicubic", "reference"]
    assert data["images"][1]["scores"]["bicubic"] == {"psnr": 22.0, "lpips": 0.49}
    address = data["images"][1]["views"]["ours"]
    assert address.startswith("data:image/webp;base64,")
    assert "WebP of quality 90" in text


def test_a_page_is_small_and_its_images_are_good(tmp_path: Path) -> None:
    """Slow changes and fine grain at 512 px, as photographs have."""
    report = build_report(tmp_path, ["0"], ("ours", "bicubic", "lanczos"))
    rows, columns = np.mgrid[0:512, 0:512] / 512
    for number, image in enumerate(report.images):
        assert image.reference is not None
        for place, path in enumerate((image.reference, *image.restored.values())):
            rng = np.random.default_rng(10 * number + place)
            smooth = np.stack([np.sin(9 * rows + number + i) + np.cos(7 * columns * rows + place) for i in range(3)], 2)
            levels = 128 + 50 * smooth + rng.normal(0, 5, smooth.shape)
            Image.fromarray(levels.clip(0, 255).astype(np.uint8)).save(path)
    page = tmp_path / "report.html"
    write_page(report, page)
    assert page.stat().st_size < len(report.images) * 500_000
    shown = tmp_path / "shown.webp"
    shown.write_bytes(base64.b64decode(data_of(page)["images"][0]["views"]["ours"].partition(",")[2]))
    with Image.open(shown) as seen, Image.open(report.images[0].restored["ours"]) as scored:
        away = np.asarray(seen).astype(float) - np.asarray(scored)
    assert np.sqrt((away**2).mean()) < 5


def test_tables_and_plots_show_the_figures(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    write_page(build_report(tmp_path, ["a", "b", "c"]), page)
    parsed = Elements(page.read_text("utf-8"))
    cells = parsed.texts["td"]
    assert any(cell.startswith("22.00") for cell in cells)
    best = [attrs for tag, attrs in parsed.elements if tag == "td" and "best" in (attrs.get("class") or "")]
    assert best
    dots = [attrs for tag, attrs in parsed.elements if tag == "circle"]
    assert len(dots) == 3 * 2 * 2
    assert len({attrs["cx"] for attrs in dots}) > 3
    assert "needs <weights>" in "".join(parsed.texts["li"])


def test_a_plot_has_room_for_its_intervals(tmp_path: Path) -> None:
    report = build_report(tmp_path, ["a", "b"])
    # Two scores of 20 and 21 dB: the interval of their mean is ten times as wide as they are apart.
    wide = tuple(replace(each, low=each.mean - 6, high=each.mean + 6) for each in report.summaries)  # type: ignore[operator] # each has a mean
    page = tmp_path / "report.html"
    write_page(replace(report, summaries=wide), page)
    elements = Elements(page.read_text("utf-8")).elements
    bars = [
        (float(a["x1"] or 0), float(a["x2"] or 0)) for tag, a in elements if tag == "line" and a["class"] == "interval"
    ]
    dots = [float(attrs["cx"] or 0) for tag, attrs in elements if tag == "circle"]
    rule = next(attrs for tag, attrs in elements if tag == "line" and attrs["class"] == "rule")
    assert len(bars) == 4
    psnr = bars[:2]
    # Both bars are 12 dB long and 1 dB apart, and end where the axis ends.
    assert psnr[0][1] - psnr[0][0] == pytest.approx(psnr[1][1] - psnr[1][0], abs=0.2)
    assert psnr[0][0] == pytest.approx(float(rule["x1"] or 0), abs=0.1)
    assert psnr[1][1] == pytest.approx(float(rule["x2"] or 0), abs=0.1)
    assert all(psnr[0][0] < dot < psnr[1][1] for dot in dots[:4])


def test_names_are_escaped(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    report = build_report(tmp_path, [NASTY], ("<img src=x onerror=alert(1)>".replace("/", ""), "b"))
    write_page(report, page)
    text = page.read_text("utf-8")
    parsed = Elements(text)
    assert len([tag for tag, _ in parsed.elements if tag == "script"]) == 2
    assert not [attrs for _, attrs in parsed.elements if "onerror" in attrs]
    assert data_of(page)["images"][0]["name"] == '</script><script>alert(1)</script>\\n"&\\udcff'


def test_images_beside_the_page(tmp_path: Path) -> None:
    page, folder = tmp_path / "out" / "report.html", tmp_path / "out" / "images of it"
    report = build_report(tmp_path, ["a", "b"])
    write_page(report, page, folder)
    assert page.stat().st_size < 60_000
    assert len(list(folder.iterdir())) == 8
    address = data_of(page)["images"][0]["views"]["bicubic"]
    assert address == "images%20of%20it/0000_2.png"
    with pytest.raises(FileError, match="already exists"):
        write_page(report, page, folder)
    write_page(report, page, folder, overwrite=True)
    elsewhere = tmp_path / "elsewhere"
    write_page(report, tmp_path / "out" / "second.html", elsewhere)
    assert data_of(tmp_path / "out" / "second.html")["images"][0]["views"]["ours"] == "../elsewhere/0000_1.png"


def test_only_the_part_that_is_compared_is_shown(tmp_path: Path) -> None:
    """A reference of 24x24 beside results of 20x22 is cropped, not stretched over them."""
    report = build_report(tmp_path, ["a"])
    image = replace(report.images[0], compared_px=(20, 22))
    page = tmp_path / "report.html"
    write_page(replace(report, images=(image,)), page, tmp_path / "images")
    views = data_of(page)["images"][0]["views"]
    assert image.reference is not None
    with Image.open(tmp_path / views["reference"]) as shown, Image.open(image.reference) as whole:
        assert np.array_equal(np.asarray(shown), np.asarray(whole)[:20, :22])
    with Image.open(tmp_path / views["input"]) as shown:
        assert shown.size == (6, 6)


def test_formats_unknown_to_browsers_are_converted(tmp_path: Path) -> None:
    report = build_report(tmp_path, ["a"])
    tiff = tmp_path / "deep.tiff"
    pixels = np.random.default_rng(0).integers(0, 65536, (9, 7)).astype(np.uint16)
    Image.fromarray(pixels).save(tiff)
    image = ImageResult("a", tiff, None, report.images[0].restored, report.images[0].scores, {"b": "it failed"})
    page = tmp_path / "report.html"
    write_page(Report(**{**vars(report), "images": (image,)}), page, tmp_path / "images")
    views = data_of(page)["images"][0]["views"]
    assert list(views) == ["input", "ours", "bicubic"]
    with Image.open(tmp_path / views["input"]) as reopened:
        assert np.array_equal(np.asarray(reopened).astype(np.int64), pixels)
    (tmp_path / "ours" / "0.png").unlink()
    with pytest.raises(FileError, match="cannot be read"):
        write_page(Report(**{**vars(report), "images": (image,)}), page, overwrite=True)


def test_infinite_and_missing_scores_are_shown(tmp_path: Path) -> None:
    report = build_report(tmp_path, ["a", "b"])
    first = report.images[0]
    scores = {"ours": {"psnr": float("inf"), "lpips": None}, "bicubic": {"psnr": 30.0, "lpips": 0.1}}
    images = (ImageResult(first.name, first.input, first.reference, first.restored, scores, {}), report.images[1])
    page = tmp_path / "report.html"
    write_page(Report(**{**vars(report), "images": images}), page)
    assert data_of(page)["images"][0]["scores"]["ours"] == {"psnr": "∞", "lpips": None}
    empty = tmp_path / "empty.html"
    write_page(Report(**{**vars(report), "images": ()}), empty)
    assert data_of(empty)["images"] == []


@needs_browser
def test_the_page_works_in_a_browser(tmp_path: Path) -> None:
    """In headless Chromium, with 120 images: answers to questions, and screenshots."""
    page = tmp_path / "report.html"
    write_page(build_report(tmp_path, [f"image {number}" for number in range(120)]), page, tmp_path / "images")
    with Chromium(tmp_path) as tab:
        tab.show(1200, 1800)
        tab.open(page)
        assert tab.ask("document.querySelectorAll('#strip img').length") == 120
        assert 0 < tab.ask("document.querySelectorAll('#strip img[src]').length") < 60, "not all images are decoded"
        half, x, y, width, height = shot(tab, tmp_path), *box_of(tab)
        tab.press("End")
        whole = shot(tab, tmp_path)
        left = (slice(y + 4, y + height - 60), slice(x + 4, x + width // 2 - 20))
        right = (slice(y + 4, y + height - 60), slice(x + width // 2 + 20, x + width - 20))
        # With the boundary at the right end, all is the left view; in the middle, only the left half.
        assert np.abs(half[left] - whole[left]).mean() < 1
        assert np.abs(half[right] - whole[right]).mean() > 10
        tab.press("Home", "n")
        assert tab.ask("document.getElementById('image').value") == "1"
        tab.press("3")
        assert tab.ask("document.getElementById('left').value") == "bicubic"
        tab.press("4", shift=True)
        assert tab.ask("document.getElementById('right').value") == "reference"
        tab.press("s")
        assert tab.ask("document.getElementById('left').value") == "reference"
        zooms = [(tab.press(key), tab.ask("document.getElementById('zoom').textContent"))[1] for key in "+0"]
        assert zooms[0] == "1×"
        assert re.fullmatch(r"fit, [0-9.]+×", zooms[1])
        tab.press("ArrowRight")
        assert tab.ask("document.getElementById('stage').getAttribute('aria-valuenow')") == "2"
        tab.show(500, 900)
        assert tab.ask(TOO_WIDE) == []
        light = shot(tab, tmp_path)
        tab.ask("document.getElementById('theme').click()")
        assert abs(light.mean() - shot(tab, tmp_path).mean()) > 60
        assert tab.messages == []
        assert {url.partition(":")[0] for url in tab.requests} == {"file"}


def shot(tab: Chromium, folder: Path) -> NDArray[np.int64]:
    with Image.open(tab.screenshot(folder / "screen.png")) as image:
        return np.asarray(image.convert("RGB")).astype(np.int64)


def box_of(tab: Chromium) -> list[int]:
    """The left and upper edge, width and height of the images."""
    box = tab.ask("(b => [b.x, b.y, b.width, b.height])(document.querySelector('.sheet').getBoundingClientRect())")
    return [int(value) for value in box]
