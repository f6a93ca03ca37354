"""`omgsr upscale`: result files, their contents, and files that fail."""

from __future__ import annotations

import errno
import io
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from command_line import Command, draw, files_below, interrupt_restoring, pixels, size_of, write_tiny_model
from PIL import Image, ImageCms
from torch import Tensor

from omgsr_cli.batch import upscaler
from omgsr_cli.cli import upscale
from omgsr_cli.files import jobs
from omgsr_cli.files.containers import read_record
from omgsr_cli.files.jobs import listed_name
from omgsr_cli.models.tiny import TinyRestorer


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with two images and, deeper, a third."""
    for name in ("a.png", "b.jpg", "deep/c.webp"):
        draw(tmp_path / "in" / name, 8, 6)
    return tmp_path / "in"


# Names


def test_a_result_is_written_beside_its_input(omgsr: Command, tree: Path) -> None:
    said = omgsr(tree / "a.png", tree / "b.jpg")
    assert said.lines == [str(tree / "a_x4.png"), str(tree / "b_x4.jpg")]
    assert size_of(tree / "b_x4.jpg") == (32, 24)


def test_a_folder_of_results_is_written_beside_its_folder(omgsr: Command, tree: Path, tmp_path: Path) -> None:
    assert omgsr(tree).code == 0
    assert files_below(tmp_path / "in_x4") == ["a.png", "b.jpg"]
    assert omgsr(tree, "--recursive", "--scale", "2").code == 0
    assert files_below(tmp_path / "in_x2") == ["a.png", "b.jpg", "deep/c.webp"]


@pytest.mark.parametrize(
    ("options", "names"),
    [
        (("-o", "out"), ["a.png", "b.jpg"]),
        (("--output", "out/", "-r"), ["a.png", "b.jpg", "deep/c.webp"]),
        (("-o", "out", "--suffix", "_big", "--recursive"), ["a_big.png", "b_big.jpg", "deep/c_big.webp"]),
        (("-o", "out", "-r", "--format", "tiff"), ["a.tif", "b.tif", "deep/c.tif"]),
    ],
)
def test_an_output_folder_keeps_names_and_tree(
    omgsr: Command, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...],
    names: list[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert omgsr("in", *options, "--scale", "1").code == 0
    assert files_below(tmp_path / "out") == names


def test_globs_and_lists_name_inputs(omgsr: Command, tree: Path, tmp_path: Path) -> None:
    (tmp_path / "some.txt").write_text("# two of them\nin/a.png\nin/deep/c.webp\n")
    assert omgsr(tmp_path / "some.txt", "-o", tmp_path / "list", "--scale", "1").code == 0
    assert files_below(tmp_path / "list") == ["in/a.png", "in/deep/c.webp"]
    assert omgsr(f"{tree}/*.*", "-o", tmp_path / "glob", "--scale", "1").code == 0
    assert files_below(tmp_path / "glob") == ["a.png", "b.jpg"]


def test_a_list_restricts_the_inputs(
    omgsr: Command, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    odd = ["deep/ c.png", "deep/new\nline.png", "deep/\udcff.png", "deep/#1.png"]
    for name in odd:
        draw(tree / name, 8, 6)
    lines = [listed_name(Path("in", name)) for name in ("a.png", *odd[:3])]
    # A path from the current folder, an absolute one, or one below the input folder; `a.png` counts once.
    (tmp_path / "redo.txt").write_text("\n".join([*lines, str(tree / "deep" / "c.webp"), "deep/#1.png", "./in/a.png"]))
    common = ("in", "-r", "-o", "out", "--scale", "1")
    said = omgsr(*common, "--list", "redo.txt")
    assert (said.code, said.errors) == (0, [])
    assert files_below(tmp_path / "out") == sorted(["a.png", "deep/c.webp", *odd])
    (tmp_path / "redo.txt").write_text("in/b.jpg\nin/typo.jpg\n")
    said = omgsr(*common, "--list", "redo.txt")
    assert (said.code, said.lines, len(said.errors)) == (1, ["out/b.jpg"], 1)
    assert "redo.txt, line 2" in said.errors[0]
    # Names that clash matter if one of them is listed.
    draw(tree / "clash.png", 8, 6), draw(tree / "clash.bmp", 8, 6)
    for text, lines, clashes in (("in/b.jpg", ["png/b.png"], 0), ("in/clash.bmp", [], 1)):
        (tmp_path / "redo.txt").write_text(text)
        said = omgsr(*common, "--format", "png", "-o", "png", "--list", "redo.txt")
        assert (said.code, said.lines, len(said.errors)) == (clashes, lines, clashes)
    (tmp_path / "redo.txt").write_text("in/b.jpg\nin/typo.jpg\n")
    # What is found while others are processed is restricted too.
    monkeypatch.setattr(jobs, "_FIRST_INPUTS", 2)
    said = omgsr(*common, "--strength", "0", "--overwrite", "--list", "redo.txt")
    assert (said.code, said.lines, len(said.errors)) == (1, ["out/b.jpg"], 1)


def test_a_list_without_inputs_names_the_inputs(
    omgsr: Command, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tree)
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"a.png\r\n\n# no\ndeep/c.webp\nlost.png\n")))
    said = omgsr("--list", "-", "--scale", "1")
    assert (said.code, said.lines) == (1, ["a_x1.png", "deep/c_x1.webp"])
    assert "lost.png" in said.errors[0]


@pytest.mark.parametrize(
    ("content", "arguments"),
    [
        (b"lost.png\nb/a.png\n", ("in", "--list", "it")),
        (b"\0\1\2", ("in", "--list", "it")),
        (b"# nothing\n", ("--list", "it")),
        (b"in/a.png", ("in", "--list", "missing")),
        (b"in/a.png", ("-", "--list", "it")),
    ],
)
def test_a_list_that_names_nothing_is_refused(
    omgsr: Command, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, arguments: tuple[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "it").write_bytes(content)
    said = omgsr(*arguments, "-o", "out/")
    assert (said.code, len(said.errors)) == (2, 1)
    assert "hint: " in said.err
    assert not (tmp_path / "out").exists()


def test_an_input_is_never_its_own_output(omgsr: Command, tree: Path) -> None:
    before = (tree / "a.png").read_bytes()
    for options in (("-o", tree / "a.png"), ("--suffix", ""), ("-o", tree, "--overwrite")):
        said = omgsr(tree / "a.png", *options)
        assert said.code == 2
        assert "a.png" in said.errors[0]
    assert (tree / "a.png").read_bytes() == before


# Formats


@pytest.mark.parametrize(
    ("name", "kind", "suffix"),
    [("png", "PNG", "png"), ("jpeg", "JPEG", "jpg"), ("JPG", "JPEG", "jpg"), ("webp", "WEBP", "webp"),
     ("tif", "TIFF", "tif"), ("TIFF", "TIFF", "tif"), ("avif", "AVIF", "avif"), ("same", "PNG", "png")],
)  # fmt: skip
def test_output_formats(omgsr: Command, tree: Path, name: str, kind: str, suffix: str) -> None:
    assert omgsr(tree / "a.png", "--format", name).lines == [str(tree / f"a_x4.{suffix}")]
    with Image.open(tree / f"a_x4.{suffix}") as image:
        assert (image.format, image.size) == (kind, (32, 24))


def test_the_name_sets_the_format_and_must_agree_with_the_option(omgsr: Command, tree: Path, tmp_path: Path) -> None:
    assert omgsr(tree / "a.png", "-o", tmp_path / "r.webp").code == 0
    with Image.open(tmp_path / "r.webp") as image:
        assert image.format == "WEBP"
    assert omgsr(tree / "a.png", "-o", tmp_path / "r.jpg", "--format", "png").code == 2


def test_metadata_is_kept_or_removed(omgsr: Command, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0110], exif[0x0112] = "a camera", 6
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    source = draw(tmp_path / "a.jpg", 12, 8, exif=exif, icc_profile=profile, dpi=(300, 300), quality=95)
    assert omgsr(source).code == 0
    with Image.open(tmp_path / "a_x4.jpg") as image:
        # Orientation 6: shown upright, the image is 8 wide.
        assert image.size == (32, 48)
        assert image.getexif()[0x0110] == "a camera"
        assert image.getexif().get(0x0112, 1) == 1
        assert image.info["icc_profile"] == profile
        assert image.info["dpi"] == (300, 300)
    assert omgsr(source, "--metadata", "none", "-o", tmp_path / "bare.jpg").code == 0
    with Image.open(tmp_path / "bare.jpg") as image:
        assert image.size == (32, 48)
        assert not dict(image.getexif())
        assert image.info["icc_profile"] == profile


# Pixels as people have them


def test_16_bits_stay_16_bits(omgsr: Command, tmp_path: Path) -> None:
    rows, columns = np.mgrid[0:20, 0:20]
    Image.fromarray((20000 + 37 * rows + 11 * columns).astype(np.uint16)).save(tmp_path / "a.png")
    assert omgsr(tmp_path / "a.png", "--color-fix", "wavelet").code == 0
    with Image.open(tmp_path / "a_x4.png") as image:
        assert image.mode == "I;16"
    levels = pixels(tmp_path / "a_x4.png")
    # Of 8 bits there would be no more than four levels in this range.
    assert len(np.unique(levels)) > 100
    assert abs(levels.mean() - pixels(tmp_path / "a.png").mean()) < 300


def test_transparency_is_kept_without_a_dark_fringe(omgsr: Command, tmp_path: Path) -> None:
    rows, columns = np.mgrid[0:24, 0:24]
    alpha = np.where((rows - 12) ** 2 + (columns - 12) ** 2 < 60, 255, 0).astype(np.uint8)
    for name, below in (("black", 0), ("white", 255)):
        color = np.where(alpha[..., None] > 0, [[[255, 255, 255]]], below).astype(np.uint8)
        Image.fromarray(np.dstack([color, alpha])).save(tmp_path / f"{name}.png")
        assert omgsr(tmp_path / f"{name}.png").code == 0
    black, white = (pixels(tmp_path / f"{name}_x4.png") for name in ("black", "white"))
    assert black.shape == (96, 96, 4)
    assert (black[..., 3] == white[..., 3]).all()
    assert {0, 255} < set(np.unique(black[..., 3]).tolist())
    visible = black[..., 3] > 8
    assert np.abs(black - white)[visible].max() <= 2


def test_an_animation_gives_its_first_frame_with_a_note(omgsr: Command, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 6), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "a.tiff", save_all=True, append_images=frames[1:])
    said = omgsr(tmp_path / "a.tiff")
    assert (said.code, said.lines) == (0, [str(tmp_path / "a_x4.tiff")])
    [note] = [line for line in said.err.splitlines() if " frames" in line or "first frame" in line]
    assert note.startswith("note: ")
    assert "a.tiff" in note


# Once more


@pytest.mark.parametrize(("options", "code"), [((), 0), (("--scale", "2"), 1)])
def test_a_result_that_appears_meanwhile_is_recognised_or_refused(
    omgsr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...], code: int
) -> None:
    """Of two processes the other is faster: with the same settings all is well, with others its file stays."""
    source, real = draw(tmp_path / "a.png", 8, 6), upscaler.restore_image

    def restore_after_the_other(*arguments: object, **named: object) -> object:
        monkeypatch.setattr(upscaler, "restore_image", real)
        assert omgsr(source, "-o", tmp_path / "r.png", *options).code == 0
        return real(*arguments, **named)  # type: ignore[arg-type] # as they came

    monkeypatch.setattr(upscaler, "restore_image", restore_after_the_other)
    said = omgsr(source, "-o", tmp_path / "r.png")
    assert said.code == code
    assert ("already finished" in said.err) == (code == 0)
    assert ("made from another input or model, or with other settings" in said.err) == (code == 1)
    assert size_of(tmp_path / "r.png") == ((32, 24) if code == 0 else (16, 12))
    assert files_below(tmp_path) == ["a.png", "r.png"]


def test_finished_images_are_skipped_and_no_model_is_loaded(
    omgsr: Command, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert omgsr(tree, "-r").code == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "in_x4").rglob("*")}

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a model is loaded though nothing is left to do")

    monkeypatch.setattr(upscaler, "load_found", refuse)
    said = omgsr(tree, "-r")
    assert (said.code, said.out) == (0, b"")
    assert "3 skipped" in said.err
    records = omgsr(tree, "-r", "--json").records
    assert [record["status"] for record in records] == ["skipped"] * 3
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "in_x4").rglob("*")} == before


@pytest.mark.parametrize(
    "options", [("--mid-timestep", "9"), ("--quality", "50"), ("--color-fix", "adain"), ("--size", "32x24")]
)
def test_other_settings_replace_nothing_without_overwrite(
    omgsr: Command, tree: Path, tmp_path: Path, options: tuple[str, str]
) -> None:
    result = tmp_path / "r.jpg"
    assert omgsr(tree / "b.jpg", "-o", result).code == 0
    before = result.read_bytes()
    said = omgsr(tree / "b.jpg", "-o", result, *options)
    assert (said.code, said.out) == (1, b"")
    assert str(result) in said.errors[0]
    assert "--overwrite" in said.err
    assert result.read_bytes() == before
    assert omgsr(tree / "b.jpg", "-o", result, *options, "--overwrite").lines == [str(result)]
    assert result.read_bytes() != before


def test_a_result_of_another_input_is_not_finished(omgsr: Command, tree: Path) -> None:
    assert omgsr(tree / "a.png").code == 0
    draw(tree / "a.png", 9, 6)
    assert omgsr(tree / "a.png").code == 1
    assert omgsr(tree / "a.png", "--overwrite").code == 0
    assert size_of(tree / "a_x4.png") == (36, 24)


def keeping_its_time(path: Path, change: Callable[[Path], None]) -> None:
    """Change a file as some programs do: with its modification time put back."""
    state = path.stat()
    change(path)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def test_an_input_edited_in_its_middle_is_processed_again(omgsr: Command, tmp_path: Path) -> None:
    source = tmp_path / "scan.tif"
    Image.fromarray(np.zeros((250, 250, 3), np.uint8)).save(source)
    arguments = (source, "--scale", "0.5", "-o", tmp_path / "r.png")
    assert omgsr(*arguments).code == 0

    def retouch(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] = 99
        path.write_bytes(data)

    keeping_its_time(source, retouch)
    said = omgsr(*arguments)
    assert (said.code, said.out) == (1, b"")
    assert "made from another input or model, or with other settings" in said.errors[0]


def test_edited_weights_are_another_model(omgsr: Command, tree: Path, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    arguments = (tree / "a.png", "--model", model, "-o", tmp_path / "r.png")
    assert omgsr(*arguments).code == 0
    moved = model.rename(tmp_path / "moved")
    assert "already finished" in omgsr(tree / "a.png", "--model", moved, "-o", tmp_path / "r.png").err

    def edit(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[-40] ^= 1
        path.write_bytes(data)

    keeping_its_time(moved / "model.safetensors", edit)
    assert omgsr(tree / "a.png", "--model", moved, "-o", tmp_path / "r.png").code == 1


def test_a_batch_without_metadata_resumes(omgsr: Command, tree: Path, tmp_path: Path) -> None:
    arguments = (tree / "a.png", "--metadata", "none", "-o", tmp_path / "r.png")
    assert omgsr(*arguments).code == 0
    assert read_record(tmp_path / "r.png") is None
    assert "already finished" in omgsr(*arguments).err
    draw(tmp_path / "r.png", 9, 9)
    assert omgsr(*arguments).code == 1


def test_tiles_and_devices_keep_a_result_finished(omgsr: Command, tree: Path) -> None:
    assert omgsr(tree / "a.png").code == 0
    assert omgsr(tree / "a.png", "--tile", "64", "--batch", "2", "--device", "cpu").out == b""


def test_earlier_results_are_not_inputs(omgsr: Command, tree: Path) -> None:
    for _ in range(2):
        assert omgsr(f"{tree}/*.*").code == 0
        assert files_below(tree) == ["a.png", "a_x4.png", "b.jpg", "b_x4.jpg", "deep/c.webp"]
    assert "a_x4.png" in omgsr(f"{tree}/*.*", "--verbose").err


# Before and after


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_compare_writes_both_side_by_side(omgsr: Command, tmp_path: Path, mode: str) -> None:
    source = draw(tmp_path / "a.png", 10, 6, mode)
    assert omgsr(source, "--compare").lines == [str(tmp_path / "a_x4.png")]
    both = pixels(tmp_path / "a_x4_compare.png")
    assert both.shape[:2] == (24, 40 + 4 + 40)
    assert (both[:, 40:44] == 255).all()
    with Image.open(source) as image:
        enlarged = np.asarray(image.convert("RGB").resize((40, 24), Image.Resampling.BICUBIC)).astype(int)
        if mode == "L":
            enlarged = enlarged[..., 0]
    assert np.abs(both[:, :40] - enlarged).max() <= 1
    result = pixels(tmp_path / "a_x4.png")
    assert np.abs(both[:, 44:] - (result[..., :3] if mode == "RGBA" else result)).max() <= 1


def test_a_comparison_of_a_grey_image_with_a_grey_profile(omgsr: Command, tmp_path: Path, shared: Path) -> None:
    assert omgsr(shared / "lq" / "wolf_gray.jpg", "--scale", "0.5", "-o", tmp_path / "a.jpg", "--compare").code == 0
    assert files_below(tmp_path) == ["a.jpg", "a_compare.png"]


def test_a_missing_comparison_is_written_on_the_next_run(omgsr: Command, tmp_path: Path) -> None:
    source = draw(tmp_path / "a.png", 10, 6)
    assert omgsr(source).code == 0
    result = (tmp_path / "a_x4.png").read_bytes()
    assert omgsr(source, "--compare").lines == [str(tmp_path / "a_x4.png")]
    assert (tmp_path / "a_x4_compare.png").is_file()
    assert (tmp_path / "a_x4.png").read_bytes() == result
    assert omgsr(source, "--compare").lines == []
    (tmp_path / "a_x4_compare.png").write_bytes(b"somebody's own")
    said = omgsr(source, "--compare")
    assert said.code == 1
    assert "a_x4_compare.png" in said.errors[0]


# What cannot be done


def test_bad_inputs_are_reported_and_the_others_finish(omgsr: Command, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    draw(folder / "good.png", 8, 6)
    draw(folder / "zz.png", 8, 6)
    (folder / "text.png").write_text("not an image")
    (folder / "empty.jpg").touch()
    (folder / "cut.jpg").write_bytes(draw(tmp_path / "whole.jpg", 64, 64).read_bytes()[:900])
    (tmp_path / "bare").mkdir()
    bad = ["text.png", "empty.jpg", "cut.jpg", "missing.png", "bare"]
    said = omgsr(folder, tmp_path / "missing.png", tmp_path / "bare", "-o", tmp_path / "out")
    assert said.code == 1
    assert files_below(tmp_path / "out") == ["good.png", "zz.png"]
    assert len(said.lines) == 2
    for name in bad:
        assert len([line for line in said.errors if name in line]) == 1, name
    assert len(said.errors) == len(bad)
    assert "Traceback" not in said.err
    done, failed = said.err.splitlines()[-2:]
    assert done.startswith("2 finished, 5 failed: ")
    assert failed.startswith("failed: ")
    assert all(name in failed for name in bad)


def test_many_failures_are_reported_briefly(omgsr: Command, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(50):
        (tmp_path / "in" / f"{number:02}.png").write_text("not an image")
    said = omgsr(tmp_path / "in", "-o", tmp_path / "out")
    assert (said.code, len(said.errors), said.err.count("hint: ")) == (1, 50, 1)
    assert said.err.splitlines()[-1].count(".png") < 30


def test_a_size_beyond_any_memory_is_reported(omgsr: Command, tree: Path) -> None:
    said = omgsr(tree / "a.png", "--size", "9999999x9999999")
    assert said.code == 1
    assert "100000 gigapixels" in said.errors[0]
    assert "Traceback" not in said.err


def test_an_output_that_cannot_be_written(omgsr: Command, tree: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = omgsr(tree / "a.png", tree / "b.jpg", "-o", tmp_path / "file" / "out")
    assert said.code == 1
    assert len(said.errors) == 2
    assert "a.png" in said.errors[0]
    (tmp_path / "folder.png").mkdir()
    assert omgsr(tree / "a.png", "-o", tmp_path / "folder.png", "--suffix", "_1").code == 0
    assert files_below(tmp_path / "folder.png") == ["a_1.png"]


def test_a_full_disk_fails_only_images_that_do_not_fit(
    omgsr: Command, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), None])

    def fsync(number: int) -> None:
        if answer := next(answers):
            raise answer

    monkeypatch.setattr(os, "fsync", fsync)
    said = omgsr(tree / "a.png", tree / "b.jpg", "-o", tmp_path / "out")
    assert said.code == 1
    assert "a.png" in said.errors[0]
    assert "disk is full" in said.errors[0]
    assert files_below(tmp_path / "out") == ["b.jpg"]


def test_an_interruption_loses_only_the_image_in_work(
    omgsr: Command, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw(tree / "c.png", 8, 6)
    with monkeypatch.context() as patch:
        interrupt_restoring(patch, 2)
        said = omgsr(tree, "-o", tmp_path / "out")
    assert said.code == 130
    assert said.lines == [str(tmp_path / "out" / "a.png")]
    assert "interrupted" in said.err
    assert "Traceback" not in said.err
    assert files_below(tmp_path / "out") == ["a.png"]
    assert len(omgsr(tree, "-o", tmp_path / "out").lines) == 2
    assert files_below(tmp_path / "out") == ["a.png", "b.jpg", "c.png"]


@pytest.mark.parametrize("place", ["a file's end", "the printing of a result"])
def test_whatever_is_written_after_an_interruption_is_reported(
    omgsr: Command, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Ctrl-C reaches the first thread while another is writing, wherever the first one is."""
    draw(tree / "c.png", 8, 6)
    target, name = (os, "fsync") if place == "a file's end" else (upscale._Run, "_show")
    calls, call = [], getattr(target, name)

    def interrupt_at_the_second(*arguments: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
            # The next image has time to be restored.
            time.sleep(0.3)
        return call(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(target, name, interrupt_at_the_second)
        said = omgsr(tree, "-o", tmp_path / "out")
    written = files_below(tmp_path / "out")
    assert said.code == 130
    assert "Traceback" not in said.err
    assert sorted({Path(line).name for line in said.lines}) == written
    assert len(omgsr(tree, "-o", tmp_path / "out").lines) == 3 - len(written)


def test_running_out_of_memory_names_the_file(omgsr: Command, tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: TinyRestorer, lq_latent: Tensor) -> Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(TinyRestorer, "restore", fail)
    said = omgsr(tree / "a.png", "--tile", "64")
    assert said.code == 1
    assert "a.png" in said.errors[0]
    assert "--tile" in said.err


def test_every_real_image_is_upscaled_once(omgsr: Command, shared: Path, tmp_path: Path) -> None:
    arguments = (shared / "lq", "-o", tmp_path / "out", "--recursive", "--scale", "0.5", "--process-scale", "1")
    said = omgsr(*arguments)
    names = sorted(path.name for path in (shared / "lq").iterdir())
    assert (said.code, said.errors) == (0, [])
    assert files_below(tmp_path / "out") == names
    again = omgsr(*arguments)
    assert (again.code, again.out) == (0, b"")
    assert f"{len(names)} skipped" in again.err


# Names with a wrong suffix


@pytest.mark.parametrize(
    ("pillow_format", "name", "result", "written"),
    [
        ("WEBP", "a.jpg", "a_x1.webp", "WEBP"),
        ("PNG", "a.jpg", "a_x1.png", "PNG"),
        ("PNG", "a.jp2", "a_x1.png", "PNG"),
        ("TIFF", "a.png", "a_x1.tif", "TIFF"),
        ("AVIF", "a.png", "a_x1.avif", "AVIF"),
        ("JPEG", "a.PNG", "a_x1.jpg", "JPEG"),
        ("GIF", "a.jpg", "a_x1.png", "PNG"),
        ("JPEG", "IMG.0001", "IMG.0001_x1.jpg", "JPEG"),
        ("JPEG", "a.JPEG", "a_x1.JPEG", "JPEG"),
    ],
)
def test_a_result_is_of_the_kind_that_its_input_is(
    omgsr: Command, tmp_path: Path, pillow_format: str, name: str, result: str, written: str
) -> None:
    mode = "RGB" if pillow_format == "JPEG" else "P" if pillow_format == "GIF" else "RGBA"
    Image.new("RGBA", (20, 14), (200, 100, 50, 128)).convert(mode).save(tmp_path / name, pillow_format)
    said = omgsr(tmp_path / name, "--scale", "1")
    assert (said.code, said.lines) == (0, [str(tmp_path / result)])
    with Image.open(tmp_path / result) as image:
        assert image.format == written
    # In a folder too, and what is finished is known by its name again.
    (tmp_path / "in").mkdir()
    (tmp_path / name).rename(tmp_path / "in" / name)
    if "0001" not in name:
        for status in ("done", "skipped"):
            [record] = omgsr(tmp_path / "in", "-o", tmp_path / "out", "--scale", "1", "--json").records
            assert record["status"] == status
            assert record["output"] == str(tmp_path / "out" / result.replace("_x1", ""))


# Memory of inputs


def test_an_image_that_exceeds_the_memory_fails_alone_before_it_is_decoded(
    omgsr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few kilobytes of a flat image stand for gigabytes of memory."""
    for name in ("a.png", "c.png"):
        draw(tmp_path / "in" / name, 20, 14)
    Image.new("L", (9000, 6000)).save(tmp_path / "in" / "b.png")
    assert (tmp_path / "in" / "b.png").stat().st_size < 100_000
    read = Image.Image.load

    def load(image: Image.Image) -> object:
        assert image.size != (9000, 6000), "it must not be decoded"
        return read(image)

    monkeypatch.setattr(Image.Image, "load", load)
    said = omgsr(tmp_path / "in", "-o", tmp_path / "out", "--memory", "64M", "--scale", "1")
    assert said.code == 1
    [error] = [line for line in said.errors if "b.png" in line]
    assert "9000x6000" in error
    assert "64" in error
    figure = int(re.search(r"takes (\d+) MiB", error)[1])  # type: ignore[index] # it is there, or the test fails
    # At the least its samples, and floats of them.
    assert figure >= 9000 * 6000 * 5 >> 20
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "c.png"]
    # The memory of the machine is a limit too.
    monkeypatch.setattr("omgsr_cli.batch.checks.free_memory_bytes", lambda device: 200 << 20)
    said = omgsr(tmp_path / "in" / "b.png", "-o", tmp_path / "d.png", "--scale", "1")
    assert said.code == 1
    assert "200 are free" in said.errors[0]


def test_the_plan_counts_the_memory_of_the_input(omgsr: Command, tmp_path: Path) -> None:
    draw(tmp_path / "small.png", 100, 100)
    Image.new("RGB", (4000, 3000)).save(tmp_path / "large.png")
    figures = []
    for name in ("small.png", "large.png"):
        said = omgsr(tmp_path / name, "--dry-run", "--scale", "0.5", "--process-scale", "1", "--memory", "256M")
        assert said.code == 0
        figures += [int(found) for found in re.findall(r"(\d+) MiB", (said.out.decode() + said.err).splitlines()[0])]
    assert figures[1] >= 4000 * 3000 * 15 >> 20
    assert figures[0] < figures[1]
