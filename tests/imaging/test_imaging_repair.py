"""Damage outside the pixels is noted; missing pixels are an error."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from omgsr_cli.errors import FileError
from omgsr_cli.files.containers import png_chunk
from omgsr_cli.imaging import opening, probe_image, read_image, write_image

SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def drawn(width: int = 45, height: int = 37) -> Image.Image:
    rows, columns = np.mgrid[0:height, 0:width]
    noise = np.random.default_rng(5).integers(0, 40, (height, width, 3))
    return Image.fromarray((np.stack([rows * 5, columns * 4, rows + columns], 2) % 216 + noise).astype(np.uint8))


def encoded(image: Image.Image, format_name: str, **options: Any) -> bytes:
    held = io.BytesIO()
    image.save(held, format_name, **options)
    return held.getvalue()


def png_with(*chunks: bytes, behind: bytes = b"") -> bytes:
    """A PNG with chunks of ours after its header, and others after its pixels."""
    plain = encoded(drawn(), "PNG")
    return plain[:33] + b"".join(chunks) + plain[33:-12] + behind + plain[-12:]


def with_wrong_sum(chunk: bytes) -> bytes:
    return chunk[:-1] + bytes([chunk[-1] ^ 1])


def check(data: bytes, *words: str) -> None:
    """The pixels are those of the whole image, and each word is in a note."""
    header, image = probe_image(data), read_image(data)
    np.testing.assert_array_equal(image.rgb.numpy(), read_image(encoded(drawn(), "PNG")).rgb.numpy())
    assert header.size_px == image.size_px
    for word in words:
        assert any(word in note for note in image.notes), (word, image.notes)
    assert len(image.notes) == len(words)


# --- PNG ----------------------------------------------------------------------------------------------------------

ANCILLARY = {
    "tEXt": b"Comment\0words",
    "zTXt": b"Comment\0\0" + zlib.compress(b"words"),
    "iTXt": b"Comment\0\0\0\0\0words",
    "iCCP": b"x\0\0" + zlib.compress(SRGB),
    "pHYs": struct.pack(">IIB", 3000, 3000, 1),
    "tIME": struct.pack(">HBBBBB", 2020, 1, 2, 3, 4, 5),
    "gAMA": struct.pack(">I", 45455),
    "eXIf": Image.Exif().tobytes(),
    "prVt": b"some program's own",
}


@pytest.mark.parametrize("kind", ANCILLARY)
def test_a_wrong_checksum_drops_only_its_chunk(kind: str) -> None:
    chunk = png_chunk(kind.encode(), ANCILLARY[kind])
    word = "ICC profile" if kind == "iCCP" else kind
    check(png_with(with_wrong_sum(chunk)), word)
    check(png_with(with_wrong_sum(chunk), with_wrong_sum(chunk)), word)
    if kind in ("tEXt", "zTXt", "iTXt", "tIME"):
        check(png_with(behind=with_wrong_sum(chunk)), word)


@pytest.mark.parametrize(
    ("kind", "content", "word"),
    [
        ("pHYs", b"\0" * 8, "pHYs"),
        ("tIME", b"", "tIME"),
        ("zTXt", b"Comment\0\0no deflate", "zTXt"),
        ("iTXt", b"Comment\0\1\0\0\0no deflate", "iTXt"),
        ("iCCP", b"x\0\0no deflate", "ICC"),
        ("iCCP", b"x\0\0" + zlib.compress(SRGB)[:-40], "ICC"),
    ],
    ids=["pHYs", "tIME", "zTXt", "iTXt", "no profile", "part of a profile"],
)
def test_invalid_content_drops_only_its_chunk(kind: str, content: bytes, word: str) -> None:
    check(png_with(png_chunk(kind.encode(), content)), word)


def test_a_wrong_checksum_of_the_pixels_is_an_error() -> None:
    plain = bytearray(encoded(drawn(), "PNG"))
    place = plain.index(b"IDAT") + 4 + struct.unpack(">I", plain[plain.index(b"IDAT") - 4 : plain.index(b"IDAT")])[0]
    plain[place] ^= 1
    with pytest.raises(FileError):
        read_image(bytes(plain))


@pytest.mark.parametrize("make", ["tEXt", "zTXt", "iTXt"])
def test_long_texts_are_kept(make: str) -> None:
    text = "".join(f"node {number}; " for number in range(300_000))
    info = PngImagePlugin.PngInfo()
    (info.add_itxt if make == "iTXt" else info.add_text)("workflow", text, zip=make == "zTXt")
    data = encoded(drawn(), "PNG", pnginfo=info)
    image = read_image(data)
    assert image.notes == ()
    assert dict(image.metadata.text) == {"workflow": text}
    held = io.BytesIO()
    write_image(image, held)
    assert dict(read_image(held.getvalue()).metadata.text) == {"workflow": text}


def test_a_long_profile_is_kept() -> None:
    # Bytes that no tag points to, and that do not deflate to nothing.
    icc = SRGB + np.random.default_rng(0).integers(0, 256, 1_600_000).astype(np.uint8).tobytes()
    icc = struct.pack(">I", len(icc)) + icc[4:]
    image = read_image(encoded(drawn(), "PNG", icc_profile=icc))
    assert image.notes == ()
    assert image.metadata.icc == icc


def test_enormous_texts_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "MAX_PNG_TEXT", 1000)
    monkeypatch.setattr(opening, "MAX_PNG_TEXTS", 1500)
    long, short = b"Comment\0" + b"x" * 1200, b"Comment\0" + b"x" * 700
    check(png_with(png_chunk(b"tEXt", long)), "tEXt")
    check(png_with(png_chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * 1200))), "zTXt")
    check(png_with(*[png_chunk(b"tEXt", short)] * 3), "tEXt")


def test_a_png_without_its_end_is_read() -> None:
    data = png_with()
    check(data[:-12], "end marker")
    check(data[:-5], "end marker")
    with pytest.raises(FileError, match="truncated"):
        read_image(data[:-100])


# --- JPEG ---------------------------------------------------------------------------------------------------------

JPEGS: dict[str, dict[str, Any]] = {
    "4:2:0": {"subsampling": 2},
    "4:4:4": {"subsampling": 0},
    "4:2:2": {"subsampling": 1},
    "optimized": {"optimize": True},
    "quality 20": {"quality": 20},
    "quality 100": {"quality": 100, "subsampling": 0},
    "progressive": {"progressive": True},
    "progressive 4:4:4": {"progressive": True, "subsampling": 0, "quality": 98},
    "progressive quality 20": {"progressive": True, "quality": 20},
    "restarts": {"restart_marker_blocks": 3},
    "restarts by rows": {"restart_marker_rows": 1, "progressive": True},
}


def jpeg(options: dict[str, Any], mode: str = "RGB", size: tuple[int, int] = (45, 37)) -> bytes:
    return encoded(drawn(*size).convert(mode), "JPEG", **options)


@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_without_its_end_marker_is_read(name: str) -> None:
    for mode in ("RGB", "L", "CMYK"):
        data = jpeg(JPEGS[name], mode)
        whole = read_image(data)
        for short in (data[:-2], data[:-1]):
            image = read_image(short)
            np.testing.assert_array_equal(image.rgb.numpy(), whole.rgb.numpy())
            assert [note for note in image.notes if note not in whole.notes] == [opening._NO_END]
            assert probe_image(short).size_px == whole.size_px


@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_that_lacks_one_byte_more_is_refused_if_a_pixel_depends_on_it(name: str) -> None:
    for size in ((45, 37), (16, 16), (1, 1), (200, 8)):
        data = jpeg(JPEGS[name], size=size)
        whole, start, read = read_image(data).rgb, data.index(b"\xff\xda"), 0
        for cut in {3, 4, 5, 9, 14, 20, 50, (len(data) - start) // 3}:
            if cut < len(data) - start - 14:
                try:
                    assert read_image(data[:-cut], "x.jpg").rgb.equal(whole)
                    read += 1
                except FileError:
                    pass
        # Of one pixel, or beside the edge, the last code may be of no importance.
        assert read <= 1


def test_a_progressive_jpeg_that_lacks_a_whole_scan_stays_refused() -> None:
    data = jpeg(JPEGS["progressive"])
    last = data.rindex(b"\xff\xda")
    assert data.count(b"\xff\xda") > 5
    # Each scan comes with its own table.
    cut = data.rindex(b"\xff\xc4", 0, last)
    with pytest.raises(FileError, match="truncated"):
        read_image(data[:cut])


def test_a_whole_jpeg_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    opened, real_open = [], Image.open
    files = [jpeg(options) for options in JPEGS.values()]
    monkeypatch.setattr(Image, "open", lambda *args, **options: opened.append(args) or real_open(*args, **options))
    for data in files:
        assert read_image(data).notes == ()
    assert len(opened) == len(files)


@pytest.mark.parametrize("format_name", ["JPEG", "WEBP", "PNG", "AVIF"])
def test_a_damaged_exif_block_is_left_out_with_a_note(format_name: str) -> None:
    image = read_image(encoded(drawn(), format_name, exif=b"Exif\0\0II*\0\xff\xff\xff\x7f"))
    assert image.size_px == (37, 45)
    assert image.metadata.exif is None
    assert any("EXIF" in note for note in image.notes)


@pytest.mark.parametrize("format_name", ["JPEG", "WEBP", "PNG", "TIFF"])
def test_a_damaged_profile_is_left_out_with_a_note(format_name: str) -> None:
    for icc in (SRGB[:100], b"no profile at all" * 20, SRGB[:36] + b"xxxx" + SRGB[40:]):
        image = read_image(encoded(drawn(), format_name, icc_profile=icc))
        assert image.size_px == (37, 45)
        assert any("ICC" in note for note in image.notes)


def test_a_profile_with_a_missing_segment_is_dropped_with_a_note() -> None:
    icc = SRGB + bytes(100_000)
    data = encoded(drawn(), "JPEG", icc_profile=icc)
    second = data.index(b"ICC_PROFILE\0\x02") - 4
    length = struct.unpack(">H", data[second + 2 : second + 4])[0]
    image = read_image(data[:second] + data[second + 2 + length :])
    assert any("ICC" in note for note in image.notes)
    assert image.metadata.icc is None


@pytest.mark.parametrize(
    ("format_name", "options"),
    [("JPEG2000", {}), ("WEBP", {"lossless": True}), ("AVIF", {}), ("TIFF", {}), ("BMP", {}), ("GIF", {}), ("PPM", {})],
)
def test_missing_pixels_are_reported_for_the_file(format_name: str, options: dict[str, Any]) -> None:
    data = encoded(drawn(), format_name, **options)
    for cut in (20, len(data) // 3):
        with pytest.raises(FileError, match=r"x\.img: .*(truncated|damaged)") as caught:
            read_image(data[:-cut], "x.img")
        assert not any(word in caught.value.message for word in ("lib", "decoder", "object", "Plugin", "debug"))


@pytest.mark.parametrize("module", ["pillow_jxl", "pillow_heif"])
def test_errors_of_plugins_are_reported_for_the_file(module: str) -> None:
    plugin = pytest.importorskip(module)
    if module == "pillow_heif":
        plugin.register_heif_opener()
    data = encoded(drawn(), "JXL" if module == "pillow_jxl" else "HEIF")
    for broken in (data[:-20], data[: len(data) // 2], data[:60] + bytes(40) + data[100:]):
        with pytest.raises(FileError, match=r"x\.img: .*(truncated|damaged|broken)") as caught:
            read_image(broken, "x.img")
        assert not any(word in caught.value.message for word in ("lib", "debug", "Error", "build"))


@pytest.mark.parametrize("extra", [b"", png_chunk(b"tRNS", b"\0\x40")], ids=["opaque", "transparent"])
def test_a_palette_png_without_its_palette_is_refused(extra: bytes) -> None:
    plain = encoded(drawn().quantize(2), "PNG")
    start = plain.index(b"PLTE") - 4
    end = start + 12 + struct.unpack(">I", plain[start : start + 4])[0]
    for read in (probe_image, read_image):
        with pytest.raises(FileError, match=r"x\.png: .*palette"):
            read(plain[:start] + extra + plain[end:], "x.png")


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "jpeg"])
def test_damaged_tiffs_are_refused_without_decoder_messages(
    compression: str, capfd: pytest.CaptureFixture[str]
) -> None:
    data = encoded(drawn(200, 150), "TIFF", compression=compression)
    source, refused = np.random.default_rng(3), 0
    for _ in range(10):
        damaged = bytearray(data)
        place = int(source.integers(len(data) // 4, len(data) * 3 // 4))
        damaged[place : place + 40] = source.bytes(40)
        try:
            read_image(bytes(damaged), "x.tif")
        except FileError as error:
            refused += 1
            assert "x.tif" in error.message
            assert "lib" not in error.message
    # JPEG has no checksum, and some pixels are others then.
    assert refused >= (1 if compression == "jpeg" else 10)
    assert capfd.readouterr().err == ""
