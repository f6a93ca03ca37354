"""HEIC, JPEG XL and raw files are read with their extras, which are named where missing."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms

from omgsr_cli.errors import FileError
from omgsr_cli.files import folders
from omgsr_cli.files.jobs import JobOptions, plan_jobs
from omgsr_cli.imaging import probe_image, read_image, write_image

needs_heif = pytest.mark.skipif(not folders.has_reader("heic"), reason="the extra heif is not installed")
needs_jxl = pytest.mark.skipif(not folders.has_reader("jxl"), reason="the extra jxl is not installed")
needs_raw = pytest.mark.skipif(not folders.has_reader("raw"), reason="the extra raw is not installed")
HEIGHT, WIDTH = 40, 64
LOSSLESS: dict[str, Any] = {"quality": -1, "matrix_coefficients": 0, "chroma": 444}


def smooth(largest: int, dtype: type) -> NDArray[Any]:
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH].astype(float)
    planes = [0.5 + 0.5 * np.sin(rows / (7 + i) + columns / (9 - i)) for i in range(3)]
    return (np.stack(planes, 2) * largest).round().astype(dtype)


def exif_bytes() -> bytes:
    exif = Image.Exif()
    exif[0x010F], exif[0x0112] = "Maker", 6
    return exif.tobytes()


@needs_heif
def test_an_8_bit_heic_keeps_its_metadata(tmp_path: Path) -> None:
    import pillow_heif

    pixels = smooth(255, np.uint8)
    icc = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    image = pillow_heif.from_pillow(Image.fromarray(pixels))
    image.save(tmp_path / "a.heic", icc_profile=icc, exif=exif_bytes(), **LOSSLESS)
    header = probe_image(tmp_path / "a.heic")
    read = read_image(tmp_path / "a.heic")
    assert (header.format, header.bit_depth, header.size_px) == ("heic", 8, read.size_px)
    assert sorted(read.size_px) == [HEIGHT, WIDTH]
    upright = pixels if read.size_px == (HEIGHT, WIDTH) else np.rot90(pixels, -1)
    assert np.abs(read.rgb.permute(1, 2, 0).numpy() * 255 - upright).max() <= 1
    assert read.metadata.icc == icc
    assert b"Maker" in (read.metadata.exif or b"")
    write_image(read, tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as written:
        assert written.getexif()[0x010F] == "Maker"


@needs_heif
def test_a_10_bit_heic_keeps_its_depth(tmp_path: Path) -> None:
    import pillow_heif

    levels = smooth(1023, np.uint16)
    levels[0, 0], levels[0, 1] = 1023, 0
    deep = pillow_heif.from_bytes(mode="RGB;16", size=(WIDTH, HEIGHT), data=(levels << 6).tobytes())
    deep.save(tmp_path / "a.heic", **LOSSLESS)
    assert probe_image(tmp_path / "a.heic").bit_depth == 16
    read = read_image(tmp_path / "a.heic")
    assert read.bit_depth == 16
    assert np.abs(read.rgb.permute(1, 2, 0).numpy() * 1023 - levels).max() < 0.02
    write_image(read, tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").bit_depth == 16


@needs_jxl
def test_a_jpeg_xl_is_read_and_written(tmp_path: Path) -> None:
    import pillow_jxl  # noqa: F401 - registers itself

    pixels = smooth(255, np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.jxl", lossless=True)
    read = read_image(tmp_path / "a.jxl")
    assert read.format == probe_image(tmp_path / "a.jxl").format == "jxl"
    assert np.abs(read.rgb.permute(1, 2, 0).numpy() * 255 - pixels).max() < 0.01


def dng(mosaic: NDArray[np.uint16], orientation: int = 1) -> bytes:
    """The smallest DNG that LibRaw develops: one uncompressed mosaic of red, green, green and blue."""
    height, width = mosaic.shape
    identity = b"".join(struct.pack("<ii", int(i % 4 == 0), 1) for i in range(9))
    entries: list[tuple[int, int, int, bytes]] = [
        (254, 4, 1, struct.pack("<I", 0)),
        (256, 4, 1, struct.pack("<I", width)),
        (257, 4, 1, struct.pack("<I", height)),
        (258, 3, 1, struct.pack("<H", 16)),
        (259, 3, 1, struct.pack("<H", 1)),
        (262, 3, 1, struct.pack("<H", 32803)),
        (271, 2, 6, b"Maker\0"),
        (272, 2, 6, b"Model\0"),
        (273, 4, 1, b""),
        (274, 3, 1, struct.pack("<H", orientation)),
        (277, 3, 1, struct.pack("<H", 1)),
        (278, 4, 1, struct.pack("<I", height)),
        (279, 4, 1, struct.pack("<I", mosaic.nbytes)),
        (284, 3, 1, struct.pack("<H", 1)),
        (33421, 3, 2, struct.pack("<HH", 2, 2)),
        (33422, 1, 4, bytes((0, 1, 1, 2))),
        (50706, 1, 4, bytes((1, 4, 0, 0))),
        (50708, 2, 6, b"Model\0"),
        (50717, 4, 1, struct.pack("<I", 65535)),
        (50721, 10, 9, identity),
        (50728, 5, 3, struct.pack("<IIIIII", 1, 1, 1, 1, 1, 1)),
        (50778, 3, 1, struct.pack("<H", 21)),
    ]
    start = 8 + 2 + 12 * len(entries) + 4
    place = start + sum(len(content) + len(content) % 2 for *_, content in entries if len(content) > 4)
    packed, beyond = b"", b""
    for tag, kind, count, content in entries:
        value = struct.pack("<I", place) if tag == 273 else content
        if len(value) > 4:
            value, beyond = struct.pack("<I", start + len(beyond)), beyond + value + b"\0" * (len(value) % 2)
        packed += struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0")
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + packed + bytes(4) + beyond + mosaic.tobytes()


@needs_raw
@pytest.mark.parametrize(("orientation", "size"), [(1, (96, 128)), (6, (128, 96))])
def test_a_raw_file_is_developed_and_not_read_as_a_tiff(
    tmp_path: Path, orientation: int, size: tuple[int, int]
) -> None:
    path = tmp_path / "a.DNG"
    mosaic = np.full((96, 128), 20_000, np.uint16)
    mosaic[:48] = 5_000
    path.write_bytes(dng(mosaic, orientation))
    header = probe_image(path)
    assert (header.format, header.bit_depth, header.size_px) == ("raw", 16, size)
    read = read_image(path)
    assert (read.format, read.bit_depth, read.size_px) == ("raw", 16, size)
    assert b"Maker" in (read.metadata.exif or b"")
    dark, bright = (
        (read.rgb[:, 20, 40], read.rgb[:, 80, 40])
        if orientation == 1
        else (
            read.rgb[:, 40, 80],
            read.rgb[:, 40, 10],
        )
    )
    assert bool((bright > dark + 0.2).all())


@needs_raw
def test_a_broken_raw_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.nef"
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "TIFF")
    for content in (buffer.getvalue(), b"no raw file"):
        path.write_bytes(content)
        for read in (probe_image, read_image):
            with pytest.raises(FileError, match=r"a\.nef: the raw file cannot be read"):
                read(path)


HEIC_START = b"\0\0\0\x18ftypheic" + bytes(40)


@pytest.mark.parametrize(
    ("name", "content", "extra"),
    [("a.heic", HEIC_START, "heif"), ("a.jxl", b"\xff\x0a" + bytes(40), "jxl"), ("a.nef", b"II*\0" + bytes(40), "raw")],
)
def test_a_missing_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, extra: str
) -> None:
    for module in ("omgsr_cli.imaging.decoders", "omgsr_cli.imaging.opening"):
        monkeypatch.setattr(f"{module}.has_reader", lambda kind: False)
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(FileError, match="not installed") as caught:
        probe_image(path)
    assert f"omgsr-cli[{extra}]" in str(caught.value.hint)


def test_folders_report_unreadable_formats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "has_reader", lambda kind: kind not in folders.EXTRA_OF_FORMAT)
    options = JobOptions(recursive=True, suffix=None, size_suffix="_x4", output_format="same")
    for name in ("in/a.HEIC", "in/b.heic", "in/deep/c.nef", "in/d.psd", "in/e.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    plan = plan_jobs([str(tmp_path / "in")], None, options)
    [problem] = plan.problems
    assert "2 .heic, 1 .nef, 1 .psd" in problem.message
    assert "omgsr-cli[heif,raw]" in str(problem.hint)
    (tmp_path / "in" / "f.png").touch()
    plan = plan_jobs([str(tmp_path / "in")], None, options)
    assert [job.source for job in plan.jobs] == [tmp_path / "in" / "f.png"]
    assert not plan.problems
    [note] = plan.notes
    assert "2 .heic, 1 .nef, 1 .psd" in note
    assert "omgsr-cli[heif,raw]" in note
