"""`omgsr upscale --gallery`: which files the page shows and how, its other results, and the page in a browser."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

import fsspec
import numpy as np
import pytest
import torch
from chromium import TOO_WIDE, Chromium, needs_browser
from command_line import Command, draw, interrupt_restoring, size_of
from numpy.typing import NDArray
from page_elements import Elements
from PIL import Image, ImageCms

from omgsr_cli.batch import gallery, previews
from omgsr_cli.errors import FileError
from omgsr_cli.files.jobs import NameList
from omgsr_cli.imaging import read_image, write_image

PLAIN = ("--strength", "0", "--scale", "2")
NAMES = ["a b#1?.png", "ü%20&\"'<.png", "new\nline.png", "deep/plain.jpg", "deep/x:y.webp", "\udcff.png"]


def adobe_exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x8769] = {0xA001: 2}
    return exif


def turned_exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def write_kinds(folder: Path) -> dict[str, bool]:
    """Write an image of each kind that pages could show wrongly; returns whether browsers show the file itself."""
    linear = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    shown: dict[str, tuple[bool, str, dict[str, Any]]] = {
        "alpha.png": (True, "RGBA", {}),
        "cmyk.jpg": (False, "CMYK", {"quality": 95}),
        "dcf.jpg": (False, "RGB", {"quality": 95, "exif": adobe_exif()}),
        "grey.png": (True, "L", {}),
        "palette.gif": (True, "P", {}),
        "photo.avif": (True, "RGB", {"quality": 95}),
        "profile.png": (True, "RGB", {"icc_profile": linear}),
        "scan.tif": (False, "RGB", {}),
        "turned.jpg": (True, "RGB", {"quality": 95, "exif": turned_exif(6)}),
        "turned.png": (False, "RGB", {"exif": turned_exif(8)}),
        "turned.webp": (False, "RGB", {"quality": 95, "exif": turned_exif(3)}),
        "two.gif": (False, "P", {"save_all": True, "append_images": [Image.new("P", (60, 40), 5)]}),
    }
    for name, (_, mode, options) in shown.items():
        draw(folder / name, 60, 40, mode, **options)
    with Image.open(folder / "alpha.png") as image:
        image.putalpha(Image.linear_gradient("L").resize(image.size))
        image.save(folder / "alpha.png")
    deep = np.linspace(0, 65535, 60 * 40).reshape(40, 60).astype(np.uint16)
    Image.fromarray(deep).save(folder / "deep.png")
    return {name: is_shown for name, (is_shown, _, _) in shown.items()} | {"deep.png": True}


def data_of(page: Path) -> list[dict[str, Any]]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text("utf-8"), re.S)
    assert found
    entries: list[dict[str, Any] | None] = json.loads(found[1])
    assert entries.pop() is None
    return [entry for entry in entries if entry]


def file_of(page: Path, url: str) -> Path:
    """The file that a browser opens for a relative URL."""
    assert re.fullmatch(r"[A-Za-z0-9/._~%-]+", url), url
    return Path(os.path.abspath(page.parent / os.fsdecode(unquote_to_bytes(url))))


def test_the_page_shows_every_input(omgsr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        draw(tmp_path / "in" / name, 12, 8)
    omgsr("in", "-o", "out", *PLAIN)
    (tmp_path / "in" / "broken.jpg").write_bytes(b"no image")
    said = omgsr("in", "-r", "-o", "out", *PLAIN, "--gallery", "pages/page.html")
    page = tmp_path / "pages" / "page.html"
    assert (said.code, "page.html" in said.err) == (1, True)
    parsed = Elements(page.read_text("utf-8"))
    assert len([tag for tag, _ in parsed.elements if tag == "script"]) == 3
    assert not re.search(r"https?://|<link|@import|url\(", page.read_text("utf-8"))
    entries = {entry["title"].rpartition("/")[2]: entry for entry in data_of(page)}
    assert len(entries) == len(NAMES) + 1
    failed = entries.pop("broken.jpg")
    assert (failed["status"], failed["views"], failed["thumb"]) == ("failed", [None, None], None)
    assert "broken.jpg" in failed["error"]
    assert sorted(entry["status"] for entry in entries.values()) == ["done"] * 2 + ["skipped"] * 4
    for entry in entries.values():
        source, result = (file_of(page, url) for url in entry["views"])
        assert (list(size_of(source)), list(size_of(result))) == (entry["from"], entry["to"])
        assert source.relative_to(tmp_path / "in") == result.relative_to(tmp_path / "out")
        assert entry["thumb"].startswith("data:image/webp;base64,")
    # The names are lines of a list, whatever they contain.
    (tmp_path / "all.txt").write_text("\n".join(entry["name"] for entry in entries.values()), "utf-8")
    assert sorted(NameList("all.txt").inputs) == sorted(f"in/{name}" for name in NAMES)
    pipe, end = os.pipe()
    os.write(end, b"a.png\n")
    os.close(end)
    assert NameList(f"/dev/fd/{pipe}").inputs == ["a.png"]
    os.close(pipe)
    again = omgsr("in", "-r", "-o", "out", *PLAIN, "--list", "all.txt", "--gallery", "pages/page.html")
    assert (again.code, len(data_of(page))) == (0, len(NAMES) + 1)


def test_a_list_updates_its_images_on_the_page(omgsr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gallery, "_MOST_EMBEDDED", 0)
    for name in ("a.tif", "b.tif", "c.png"):
        draw(tmp_path / "in" / name, 12, 8)
    page, run = tmp_path / "page.html", ("in", "-o", "out", "--scale", "2", "--gallery", "page.html")
    assert omgsr(*run, "--strength", "0").code == 0
    before = {entry["title"]: entry for entry in data_of(page)}
    (tmp_path / "redo.txt").write_text("b.tif\n")
    assert omgsr(*run, "--list", "redo.txt", "--overwrite").code == 0
    after = {entry["title"]: entry for entry in data_of(page)}
    redone, earlier = after.pop("b.tif"), before.pop("b.tif")
    assert (after, "strength 1" in redone["made"]) == (before, True)
    assert redone["views"][1] != earlier["views"][1]
    files = {entry["thumb"] for entry in (redone, *after.values())}
    files |= {view for entry in (redone, *after.values()) for view in entry["views"] if view.startswith("page_files/")}
    assert {f"page_files/{path.name}" for path in (tmp_path / "page_files").glob("*.webp")} == files
    # The whole folder again: the result with other settings is an error, and is shown.
    assert omgsr(*run, "--strength", "0").code == 1
    kept = {entry["title"]: entry for entry in data_of(page)}
    assert (kept["b.tif"]["status"], kept["b.tif"]["views"]) == ("failed", redone["views"])
    # Without images, the page stays as it is.
    content = page.read_bytes()
    assert omgsr("missing.png", *run[1:]).code == 1
    assert page.read_bytes() == content


def test_files_that_browsers_show_wrongly_get_previews(
    omgsr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gallery, "_MOST_EMBEDDED", 0)
    shown = write_kinds(tmp_path / "in")
    page = tmp_path / "page.html"
    common = (tmp_path / "in", *PLAIN, "--suffix", "_r", "--gallery", page)
    said = omgsr(*common, "-o", tmp_path / "out")
    assert said.code == 0, said.err
    entries = {entry["title"]: entry for entry in data_of(page)}
    direct = {name: entry["views"][0] == f"in/{name}" for name, entry in entries.items()}
    assert direct == shown
    for name, entry in entries.items():
        before, after, thumbnail = (picture(file_of(page, url)) for url in (*entry["views"], entry["thumb"]))
        if name != "turned.jpg":
            # Previews are upright, as results are; browsers turn this JPEG themselves.
            assert (before.width * 2, before.height * 2) == after.size
            assert np.abs(levels(before, (12, 8)) - levels(thumbnail, (12, 8))).mean() < 5, name
        assert (thumbnail.width > thumbnail.height) == (after.width > after.height)
    assert omgsr(tmp_path, "-r", "-o", tmp_path / "all", *PLAIN).code == 0
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == ["in"]
    kept = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "page_files").iterdir()}
    (tmp_path / "page_files" / "0123456789abcdef.webp").write_bytes(b"")
    (tmp_path / "page_files" / "mine.webp").write_bytes(b"")
    assert omgsr(*common, "-o", tmp_path / "out").code == 0
    found = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "page_files").iterdir()}
    assert found.pop("mine.webp")
    assert found == kept


def levels(image: Image.Image, size: tuple[int, int] | None = None) -> NDArray[np.float64]:
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    image = image.convert("RGB")
    return np.asarray(image.resize(size) if size else image).astype(float)


def picture(path: Path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
    return image


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L"])
def test_a_preview_has_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str) -> None:
    path, large = draw(tmp_path / "a.png", 450, 300, mode), tmp_path / "a.tif"
    image = read_image(path)
    alpha = torch.linspace(0, 1, 450).expand(1, 300, 450) if mode == "RGBA" else None
    write_image(image.restored(image.rgb, alpha), large, format="tiff")
    monkeypatch.setattr(previews, "_PREVIEW_PIXELS", 600)
    small = previews.encode_preview(large, "a.tif")
    monkeypatch.setattr(previews, "_MOST_BYTES", 100)
    # Larger files are reduced strip by strip.
    strips = previews.encode_preview(large, "a.tif")
    first, second = (Image.open(io.BytesIO(content)) for content in (small, strips))
    assert (first.size, first.mode) == (second.size, second.mode) == ((30, 20), "RGBA" if mode == "RGBA" else "RGB")
    assert np.abs(levels(first) - levels(second)).max() <= 2
    with pytest.raises(FileError, match="too large"):
        previews.encode_preview(path, "a.png")


def test_a_preview_in_strips_ignores_an_unusable_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (90, 60), (10, 20, 30)).save(tmp_path / "a.tif", icc_profile=b"no profile" * 20)
    monkeypatch.setattr(previews, "_MOST_BYTES", 100)
    with Image.open(io.BytesIO(previews.encode_preview(tmp_path / "a.tif", "a.tif"))) as preview:
        assert preview.size == (90, 60)


@pytest.mark.parametrize(
    "arguments",
    [
        ("in", "-o", "out", "--gallery", "notes.html"),
        ("in", "-o", "out", "--gallery", "page.txt"),
        ("in", "-o", "out", "--gallery", "in"),
        ("in", "-o", "out", "--gallery", "s3://bucket/page.html"),
        ("in", "-o", "out", "--gallery", "in/a.png/page.html"),
        ("in", "-o", "out", "--gallery", "page.html", "--dry-run"),
        ("in/a.png", "-o", "-", "--gallery", "page.html"),
        ("-", "-o", "out.png", "--gallery", "page.html"),
        ("in", "-o", "out", "--beside", "in"),
        ("in", "-o", "out", "--gallery", "page.html", "--beside", "missing"),
    ],
)
def test_impossible_galleries_are_refused(
    omgsr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "in" / "a.png", 12, 8)
    (tmp_path / "notes.html").write_text("<p>mine")
    said = omgsr(*arguments, *PLAIN)
    assert (said.code, len(said.errors), said.out) == (2, 1, b"")
    assert "hint: " in said.err
    assert (tmp_path / "notes.html").read_text() == "<p>mine"
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "page.html").exists()


def test_another_file_is_replaced_if_asked(omgsr: Command, tmp_path: Path) -> None:
    draw(tmp_path / "in" / "a.png", 12, 8)
    page = tmp_path / "notes.html"
    page.write_text("<p>mine")
    assert omgsr(tmp_path / "in", "-o", tmp_path / "out", *PLAIN, "--gallery", page, "--overwrite").code == 0
    assert len(data_of(page)) == 1


def test_an_interrupted_run_shows_what_is_finished(
    omgsr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in "abc":
        draw(tmp_path / "in" / f"{name}.png", 12, 8)
    interrupt_restoring(monkeypatch, 2)
    page = tmp_path / "page.html"
    assert omgsr(tmp_path / "in", "-o", tmp_path / "out", "--gallery", page).code == 130
    assert [entry["title"] for entry in data_of(page)] == ["a.png"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "page.html"]


def test_a_full_disk_loses_the_page_only(omgsr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(12):
        draw(tmp_path / "in" / f"{number}.png", 12, 8)
    # Every write to this device fails as on a full disk.
    full = open("/dev/full", "r+b", buffering=0)  # noqa: SIM115 - closed with the gallery
    monkeypatch.setattr("tempfile.TemporaryFile", lambda **options: full)
    page = tmp_path / "page.html"
    said = omgsr(tmp_path / "in", "-o", tmp_path / "out", *PLAIN, "--gallery", page)
    assert (said.code, len(said.lines), len(said.errors)) == (1, 12, 1)
    assert "page.html" in said.errors[0]
    assert "gallery: " not in said.err
    assert not page.exists()


def test_results_of_other_folders_are_found_by_name(
    omgsr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "a.b.png", "deep/c.jpg", "deep/d.png"):
        draw(tmp_path / "in" / name, 12, 8)
    for name in ("a.webp", "a.jpg", "a.b.jpg", "deep/c_r.png"):
        draw(tmp_path / "other" / name, 36, 24)
    said = omgsr("in", "-r", "-o", "out", "--suffix", "_r", *PLAIN, "--gallery", "page.html", "--beside", "other")
    page = tmp_path / "page.html"
    found = {entry["title"]: entry["views"][2] for entry in data_of(page)}
    assert found == {
        "a.png": "other/a.jpg",
        "a.b.png": "other/a.b.jpg",
        "deep/c.jpg": "other/deep/c_r.png",
        "deep/d.png": None,
    }
    assert said.code == 0
    assert "1 of 4" in said.err
    assert "deep/d.png" in said.err


def test_images_on_network_storage_are_copied_once(
    omgsr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = fsspec.filesystem("memory")
    storage.store.clear()
    for name in ("a.png", "b.tif"):
        storage.pipe_file(f"/d/in/{name}", draw(tmp_path / name, 12, 8).read_bytes())
    page = tmp_path / "page.html"
    arguments = ("memory://d/in", "-o", "memory://d/out", "--scale", "1", "--strength", "0", "--gallery", page)
    assert omgsr(*arguments).code == 0
    entries = {entry["name"]: entry for entry in data_of(page)}
    assert list(entries) == ["memory://d/in/a.png", "memory://d/in/b.tif"]
    files = [file_of(page, url) for entry in entries.values() for url in entry["views"]]
    assert [file.suffix for file in files] == [".png", ".png", ".webp", ".webp"]
    assert {(file.parent.name, size_of(file)) for file in files} == {("page_files", (12, 8))}
    fetched: list[str] = []
    original = type(storage).get_file
    monkeypatch.setattr(
        type(storage), "get_file", lambda self, *a, **k: (fetched.append(a[0]), original(self, *a, **k))
    )
    assert omgsr(*arguments).code == 0
    assert (fetched, [entry["status"] for entry in data_of(page)]) == ([], ["skipped"] * 2)
    storage.store.clear()


@needs_browser
def test_the_page_works_in_chromium(omgsr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images, slider, keys, zoom, marks and lists, with 60 images in a tree."""
    monkeypatch.chdir(tmp_path)
    write_kinds(tmp_path / "in" / "kinds")
    for name in NAMES:
        draw(tmp_path / "in" / name, 12, 8)
    (tmp_path / "in" / "zz broken.png").write_bytes(b"none")
    for number in range(40):
        draw(tmp_path / "in" / "many" / f"{number}.jpg", 12, 8)
    assert omgsr("in/kinds", "-o", "other/kinds", "--strength", "0", "--long-side", "30").code == 0
    page = ("--gallery", "page.html", "--beside", "other")
    assert omgsr("in", "-r", "-o", "out", "--suffix", "_r", *PLAIN, *page).code == 1
    with Chromium(tmp_path) as tab:
        tab.show(1280, 800)
        tab.open(tmp_path / "page.html")
        check_thumbnails(tab)
        tab.show(800, 400)
        check_images(tab, tmp_path)
        tab.show(1280, 800)
        check_view(tab)
        check_marks(tab, tmp_path)
        check_layouts(tab, tmp_path)
        check_touch(tab)
        check_without_storage(tab, tmp_path)
        assert tab.messages == []
        assert {url.partition(":")[0] for url in tab.requests} <= {"file", "data", "blob"}
        (tmp_path / "moved").mkdir()
        (tmp_path / "page.html").rename(tmp_path / "moved" / "page.html")
        tab.open(tmp_path / "moved" / "page.html")
        lacks = tab.ask("[...document.querySelectorAll('.lack')].map((each) => each.textContent)")
        assert [("before" in each, "out" in each) for each in lacks] == [(True, True)]


def text(tab: Chromium, id: str) -> str:
    return str(tab.ask(f"document.getElementById('{id}').textContent"))


def search(tab: Chromium, words: str) -> None:
    tab.ask(
        f"(e => {{ e.value = '{words}'; e.dispatchEvent(new Event('input')); }})(document.getElementById('search'))"
    )
    tab.settle()


def choose(tab: Chromium, which: str) -> None:
    tab.ask(f"(e => {{ e.value = '{which}'; e.onchange(); }})(document.getElementById('filter'))")
    tab.settle()


def check_thumbnails(tab: Chromium) -> None:
    count = "document.querySelectorAll('#rows button').length"
    assert text(tab, "counts").startswith("60 images, 1 failed")
    assert 15 < tab.ask(count) < 50
    tab.ask("document.getElementById('list').scrollTo(0, 1500)")
    tab.settle()
    assert 15 < tab.ask(count) < 50
    assert tab.ask("[...document.querySelectorAll('#rows img')].every((e) => e.alt && e.naturalWidth > 0)")


def check_images(tab: Chromium, folder: Path) -> None:
    """Before and after are upright and in the same colours: these results are plain upscalings."""
    search(tab, "kinds/")
    for number in range(13):
        tab.press("End")
        before = sheet(tab, folder)
        tab.press("Home")
        assert np.abs(before - sheet(tab, folder)).mean() < 8, text(tab, "name")
        assert tab.ask("document.querySelectorAll('.sheet img').length") == 2
        tab.press("n" if number < 12 else "p")
    search(tab, "")


def sheet(tab: Chromium, folder: Path) -> NDArray[np.float64]:
    """The pixels of the image without its frame and labels."""
    x, y, width, height = box_of(tab)
    with Image.open(tab.screenshot(folder / "screen.png")) as screen:
        return levels(screen.crop((int(x) + 9, int(y) + 9, int(x + width) - 9, int(y + height) - 60)), (15, 10))


def box_of(tab: Chromium, which: int = 0) -> list[float]:
    """The left and upper edge, width and height of an image on the screen."""
    script = (
        f"(b => [b.x, b.y, b.width, b.height])(document.querySelectorAll('.sheet')[{which}].getBoundingClientRect())"
    )
    found: list[float] = tab.ask(script)
    return found


def check_view(tab: Chromium) -> None:
    """The slider, zoom and position, by keys and by mouse."""
    stage = "document.getElementById('stage')"
    search(tab, "plain")
    x, y, width, height = box_of(tab)
    tab.drag((x + width / 2, y + height / 2), (x + width / 4, y + height / 2))
    assert tab.ask(f"{stage}.getAttribute('aria-valuenow')") == "25"
    tab.press("ArrowRight")
    assert tab.ask(f"[{stage}.getAttribute('role'), {stage}.getAttribute('aria-valuenow')]") == ["slider", "27"]
    tab.press(" ")
    assert tab.ask(f"{stage}.getAttribute('aria-valuenow')") == "100"
    # The other folder has no result of this image.
    tab.press("m")
    assert "other: no result" in tab.ask(f"{stage}.textContent")
    tab.press("m")
    # 24 by 16 pixels: 1:1, then 16 times as large, until it is larger than the stage.
    tab.press("z")
    assert (text(tab, "zoom"), box_of(tab)[2:]) == ("1×", [24, 16])
    tab.press("+", "+", "+", "+", "+")
    assert (text(tab, "zoom"), box_of(tab)[2:]) == ("16×", [384, 256])
    tab.press("0")
    assert text(tab, "zoom").startswith("fit")
    search(tab, "kinds/scan")
    tab.press("z", "+", "+", "+", "+")
    x, y, width, height = box_of(tab)
    assert (width, height) == (1920, 1280)
    tab.press("ArrowLeft", "ArrowUp", shift=True)
    assert box_of(tab)[:2] == [x + 80, y + 80]
    tab.drag((700, 300), (650, 280))
    assert box_of(tab)[:2] == [x + 30, y + 60]
    # Side by side, all move together.
    tab.press("m")
    assert tab.ask("document.querySelectorAll('.pane').length") == 3
    assert tab.ask("[...document.querySelectorAll('.tag')].map(e => e.textContent)") == ["before", "out", "other"]
    boxes = [box_of(tab, which) for which in range(3)]
    tab.drag((700, 300), (690, 310))
    moved = [box_of(tab, which) for which in range(3)]
    away = {(round(b[0] - a[0]), round(b[1] - a[1]), b[2] - a[2]) for a, b in zip(boxes, moved, strict=True)}
    assert away == {(-10, 10, 0)}
    tab.press("m", "0", "3")
    assert tab.ask("document.getElementById('left').value") == "2"
    tab.press("s")
    assert tab.ask("['left', 'right'].map(i => document.getElementById(i).value)") == ["1", "2"]
    tab.press("1")
    tab.press("2", shift=True)
    search(tab, "broken")
    assert "zz broken.png" in tab.ask(f"{stage}.textContent + document.getElementById('facts').textContent")
    search(tab, "")


def check_marks(tab: Chromium, folder: Path) -> None:
    """Marks survive a reload, select images, and become a list that the program reads."""
    search(tab, "many/")
    tab.press("k", "n", "r", "n", "r", "n", "r", "r")
    choose(tab, "unmarked")
    tab.press("p", "p", "p", "k")
    assert text(tab, "name") == "many/4.jpg"
    choose(tab, "all")
    # In the thumbnails, arrows choose.
    tab.ask("document.getElementById('list').focus()")
    tab.press("Home")
    assert text(tab, "name") == "many/0.jpg"
    tab.press("ArrowDown", "ArrowUp", "ArrowRight")
    assert text(tab, "name") == "many/1.jpg"
    tab.open(folder / "page.html")
    assert text(tab, "name") == "many/1.jpg"
    assert tab.ask("document.getElementById('redo').getAttribute('aria-pressed')") == "true"
    choose(tab, "redo")
    assert text(tab, "counts").startswith("2 of 60 images")
    tab.press("l")
    lines = tab.ask("document.getElementById('lines').value")
    assert lines == "in/many/1.jpg\nin/many/2.jpg\n"
    command = tab.ask("document.getElementById('command').value")
    page = "--gallery page.html --beside other --list redo.txt --overwrite"
    assert command.startswith(f"omgsr upscale in -o out -r --suffix _r --scale 2 {page}"), command
    tab.ask("navigator.clipboard.writeText = () => Promise.reject(new Error('refused'))")
    tab.ask("document.getElementById('copy').click()")
    tab.settle()
    assert text(tab, "copied")
    assert tab.ask("String(getSelection())") in (lines, lines.strip(), "")
    tab.press("Escape")
    tab.press("?")
    assert tab.ask("document.getElementById('helpDialog').open")
    tab.press("Escape")
    assert not tab.ask("document.getElementById('helpDialog').open")
    choose(tab, "all")


def check_without_storage(tab: Chromium, folder: Path) -> None:
    assert tab.ask("JSON.parse(localStorage[`omgsr ${location.pathname}`]).marks['in/many/1.jpg']") == "redo"
    blocked = "Object.defineProperty(window, 'localStorage', { get() { throw new Error('blocked'); } })"
    tab.call("Page.addScriptToEvaluateOnNewDocument", source=blocked)
    tab.open(folder / "page.html")
    tab.press("k")
    assert tab.ask("document.getElementById('keep').getAttribute('aria-pressed')") == "true"
    assert "marks are lost" in text(tab, "facts")


def check_touch(tab: Chromium) -> None:
    """One finger moves the enlarged image, two zoom."""
    search(tab, "kinds/scan")
    tab.press("0", "z", "+", "+", "+", "+")
    x, y, width, _ = box_of(tab)
    touch(tab, [[(100, 300)], [(70, 320)]])
    assert box_of(tab)[:2] == [x - 30, y + 20]
    touch(tab, [[(180, 300), (220, 300)], [(190, 300), (210, 300)]])
    assert box_of(tab)[2] == pytest.approx(width / 2, rel=0.1)
    search(tab, "")


def touch(tab: Chromium, moves: list[list[tuple[int, int]]]) -> None:
    """Put fingers on points, move them, and lift them."""
    for kind, points in zip(("touchStart", *["touchMove"] * (len(moves) - 1), "touchEnd"), (*moves, []), strict=True):
        found = [{"x": x, "y": y, "id": number} for number, (x, y) in enumerate(points)]
        tab.call("Input.dispatchTouchEvent", type=kind, touchPoints=found)
    tab.settle()


def check_layouts(tab: Chromium, folder: Path) -> None:
    unnamed = (
        "[...document.querySelectorAll('button, select, input, textarea, img')]"
        ".filter((e) => !(e.alt || e.ariaLabel || e.textContent.trim() || e.labels?.length)).map((e) => e.outerHTML)"
    )
    for width, height in ((1280, 800), (400, 800)):
        levels_of = {}
        for theme in ("light", "dark"):
            tab.show(width, height, theme)
            assert tab.ask(TOO_WIDE) == []
            assert tab.ask(unnamed) == []
            with Image.open(tab.screenshot(folder / "screen.png")) as screen:
                levels_of[theme] = levels(screen).mean()
            x, y, wide, high = tab.ask(
                "(b => [b.x, b.y, b.width, b.height])(document.getElementById('stage').getBoundingClientRect())"
            )
            assert wide * high > 0.35 * width * height
            assert x + wide <= width
            assert y + high <= height
        assert levels_of["light"] > levels_of["dark"] + 40
