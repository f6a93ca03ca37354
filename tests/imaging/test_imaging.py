"""Reading images: modes, orientation, depth, metadata and refusals."""

from __future__ import annotations

import io
import struct
import zlib
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin
from places import SHARED

from omgsr_cli.errors import FileError
from omgsr_cli.imaging import SourceImage, probe_image, read_image, to_samples

RNG = np.random.default_rng(7)
HEIGHT, WIDTH = 7, 11


def noise(channels: int, dtype: type = np.uint8, size: tuple[int, int] = (HEIGHT, WIDTH)) -> NDArray[np.generic]:
    return RNG.integers(0, np.iinfo(dtype).max + 1, (*size, channels)).astype(dtype).squeeze()


def encoded(image: Image.Image, pillow_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, pillow_format, **options)
    return buffer.getvalue()


def samples_of(photo: SourceImage, bit_depth: int = 8) -> NDArray[np.generic]:
    planes = photo.rgb if photo.alpha is None else torch.cat([photo.rgb, photo.alpha])
    return to_samples(planes, bit_depth)


# --- 8-bit modes, against Pillow's own conversion -----------------------------------------------------------------


def grey_palette() -> Image.Image:
    image = Image.fromarray(noise(1) % 4, "P")
    image.putpalette([value for grey in (0, 80, 160, 255) for value in (grey, grey, grey)])
    return image


def color_palette() -> Image.Image:
    return Image.fromarray(noise(3)).quantize(16)


MODES = {
    "1": (lambda: Image.fromarray(noise(1)).convert("1"), "L", {}),
    "L": (lambda: Image.fromarray(noise(1)), "L", {}),
    "LA": (lambda: Image.fromarray(noise(2), "LA"), "LA", {}),
    "P": (color_palette, "RGB", {}),
    "grey P": (grey_palette, "L", {}),
    "P with a key": (color_palette, "RGBA", {"transparency": 3}),
    "P with alpha": (color_palette, "RGBA", {"transparency": bytes(range(0, 160, 10))}),
    "L with a key": (lambda: Image.fromarray(noise(1) % 4), "LA", {"transparency": 2}),
    "RGB": (lambda: Image.fromarray(noise(3)), "RGB", {}),
    "RGB with a key": (lambda: Image.fromarray(noise(3) % 2), "RGBA", {"transparency": (0, 1, 0)}),
    "RGBA": (lambda: Image.fromarray(noise(4)), "RGBA", {}),
}


@pytest.mark.parametrize("name", MODES)
def test_every_png_mode_is_read(name: str) -> None:
    build, wanted, options = MODES[name]
    data = encoded(build(), **options)
    photo, header = read_image(data), probe_image(data)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image.convert("RGBA" if wanted.endswith("A") else "RGB"))
    np.testing.assert_array_equal(samples_of(photo), expected)
    assert photo.is_grey == wanted.startswith("L")
    assert photo.is_neutral == photo.is_grey
    assert (photo.alpha is not None) == wanted.endswith("A")
    assert photo.size_px == header.size_px == (HEIGHT, WIDTH)
    assert (photo.bit_depth, header.bit_depth) == (8, 8)
    assert photo.notes == ()


@pytest.mark.parametrize(
    ("pillow_format", "name"), [("BMP", "bmp"), ("GIF", "gif"), ("TIFF", "tiff"), ("PPM", "ppm"), ("JPEG2000", "jp2")]
)
def test_other_formats_are_read_as_pillow_reads_them(pillow_format: str, name: str) -> None:
    data = encoded(Image.fromarray(noise(3, size=(40, 33))), pillow_format)
    photo = read_image(data)
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(samples_of(photo), np.asarray(image.convert("RGB")))
    assert photo.format == name == probe_image(data).format


@pytest.mark.parametrize("mode", ["La", "RGBa", "PA", "RGBX", "YCbCr", "HSV"])
def test_unusual_modes_decode_like_pillow(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """No common encoder writes these: a BMP is opened and its mode changed as a decoder would set it."""
    source = Image.fromarray(noise(4)) if mode in ("RGBa", "PA") else Image.fromarray(noise(3))
    converted = source.convert("LA").convert("La") if mode == "La" else source.convert(mode)
    if mode == "PA":
        converted = color_palette()
        converted.putalpha(Image.fromarray(noise(1)))
    real_open = Image.open

    def opened(*args: object, **kwargs: object) -> Image.Image:
        image = real_open(*args, **kwargs)  # type: ignore[arg-type]
        image.im, image._mode, image.palette, image.tile = converted.im, converted.mode, converted.palette, []
        return image

    monkeypatch.setattr(Image, "open", opened)
    photo = read_image(encoded(source.convert("RGB"), "BMP"))
    wanted = converted.convert("LA" if mode == "La" else "RGBA" if mode in ("RGBa", "PA") else "RGB")
    expected = np.asarray(wanted.convert("RGBA") if mode == "La" else wanted)
    np.testing.assert_array_equal(samples_of(photo), expected)
    assert photo.is_grey == (mode == "La")


def test_a_neutral_rgb_image_is_neutral_but_not_grey() -> None:
    photo = read_image(encoded(Image.fromarray(np.repeat(noise(1)[..., None], 3, axis=2))))
    assert photo.is_neutral
    assert not photo.is_grey


# --- 16 bits ------------------------------------------------------------------------------------------------------


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def filtered_rows(samples: NDArray[np.generic]) -> bytes:
    """Rows of big-endian 16-bit samples, filtered by each of PNG's five filters in turn, byte by byte."""
    height, width, channels = samples.shape
    step, rows = channels * 2, samples.astype(">u2").tobytes()
    length, out, above = width * step, b"", bytes(width * step)
    for index in range(height):
        row, kind = rows[index * length : (index + 1) * length], index % 5
        out += bytes([kind])
        for position in range(length):
            left = row[position - step] if position >= step else 0
            up, corner = above[position], above[position - step] if position >= step else 0
            guess = left + up - corner
            paeth = min((left, up, corner), key=lambda near: abs(guess - near))
            out += bytes([(row[position] - (0, left, up, (left + up) // 2, paeth)[kind]) % 256])
        above = row
    return out


def deep_png(samples: NDArray[np.generic], interlaced: bool = False, extra: bytes = b"") -> bytes:
    """A 16-bit PNG written by the specification alone."""
    height, width, channels = samples.shape
    adam7 = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    passes = [samples[y::dy, x::dx] for y, x, dy, dx in adam7] if interlaced else [samples]
    pixels = b"".join(filtered_rows(part) for part in passes if part.size)
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, interlaced)
    body = png_chunk(b"IHDR", header) + extra + png_chunk(b"IDAT", zlib.compress(pixels)) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def as_rgb(samples: NDArray[np.generic]) -> NDArray[np.generic]:
    """One or two channels to three or four."""
    return samples if samples.shape[2] > 2 else samples[:, :, [0, 0, 0, *range(1, samples.shape[2])]]


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_deep_png_to_the_last_bit(channels: int) -> None:
    for size, interlaced in product([(1, 1), (5, 3), (13, 9)], [False, True]):
        samples = RNG.integers(0, 65536, (*size, channels)).astype(np.uint16)
        data = deep_png(samples, interlaced)
        photo = read_image(data)
        np.testing.assert_array_equal(samples_of(photo, 16), as_rgb(samples), f"{size}, {interlaced}")
        assert photo.bit_depth == 16 == probe_image(data).bit_depth
        assert photo.is_grey == (channels < 3)
        assert photo.notes == ()


@pytest.mark.parametrize("channels", [1, 3])
def test_deep_png_with_a_transparent_color(channels: int) -> None:
    samples = RNG.integers(0, 65536, (HEIGHT, WIDTH, channels)).astype(np.uint16)
    key = samples[2, 3]
    # Only the lower byte differs: 8-bit readers take this pixel for transparent too.
    samples[4, 5] = key ^ 1
    photo = read_image(deep_png(samples, extra=png_chunk(b"tRNS", key.astype(">u2").tobytes())))
    expected = np.full((HEIGHT, WIDTH), 1.0, np.float32)
    expected[2, 3] = 0.0
    assert photo.alpha is not None
    np.testing.assert_array_equal(photo.alpha[0].numpy(), expected)
    np.testing.assert_array_equal(to_samples(photo.rgb, 16), as_rgb(samples))


def deep_tiff(samples: NDArray[np.generic], order: str, planar: bool = False, extra: int | None = 2) -> bytes:
    """An uncompressed 16-bit TIFF written by the specification alone: one strip a row, or a plane."""
    height, width, channels = samples.shape
    packed = samples.astype(f"{order}u2")
    strips = (
        [packed[:, :, index].tobytes() for index in range(channels)] if planar else [row.tobytes() for row in packed]
    )
    count = len(strips)
    tags = [(256, 4, [width]), (257, 4, [height]), (258, 3, [16] * channels), (259, 3, [1])]
    tags += [(262, 3, [1 if channels == 1 else 2]), (273, 4, [0] * count), (277, 3, [channels])]
    tags += [(278, 4, [height if planar else 1]), (279, 4, [len(strips[0])] * count), (284, 3, [2 if planar else 1])]
    tags += [(338, 3, [extra])] if channels == 4 and extra is not None else []
    at = 8 + 2 + 12 * len(tags) + 4
    spare = {tag: len(values) * (2 if kind == 3 else 4) for tag, kind, values in tags}
    first = at + sum(size for size in spare.values() if size > 4)
    entries, tail = struct.pack(order + "H", len(tags)), b""
    for tag, kind, values in tags:
        if tag == 273:
            values = [first + sum(map(len, strips[:index])) for index in range(count)]
        content = struct.pack(f"{order}{len(values)}{'H' if kind == 3 else 'I'}", *values)
        place = content.ljust(4, b"\0") if len(content) <= 4 else struct.pack(order + "I", at + len(tail))
        tail += content if len(content) > 4 else b""
        entries += struct.pack(order + "HHI", tag, kind, len(values)) + place
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", 8)
    return header + entries + bytes(4) + tail + b"".join(strips)


@pytest.mark.parametrize(
    ("channels", "order", "planar"), [(1, "<", False), (3, ">", False), (3, "<", True), (4, "<", False), (4, ">", True)]
)
def test_deep_tiff_to_the_last_bit(channels: int, order: str, planar: bool) -> None:
    samples = RNG.integers(0, 65536, (HEIGHT, WIDTH, channels)).astype(np.uint16)
    data = deep_tiff(samples, order, planar)
    photo = read_image(data)
    np.testing.assert_array_equal(samples_of(photo, 16), as_rgb(samples))
    assert photo.bit_depth == 16 == probe_image(data).bit_depth
    assert photo.notes == ()


@pytest.mark.parametrize("order", ["<", ">"])
def test_deep_tiff_with_premultiplied_alpha(order: str) -> None:
    straight = RNG.integers(0, 65536, (HEIGHT, WIDTH, 4)).astype(np.uint16)
    straight[..., 3] |= 0x8000
    straight[0, 0] = 0
    premultiplied = straight.copy()
    premultiplied[..., :3] = np.rint(straight[..., :3].astype(np.float64) * straight[..., 3:] / 65535)
    photo = read_image(deep_tiff(premultiplied, order, extra=1))
    found = samples_of(photo, 16).astype(int)
    assert np.abs(found - straight).max() <= 2
    assert (found[0, 0] == 0).all()


def test_deep_grey_pillow_modes() -> None:
    values = noise(1, np.uint16)
    for data in (encoded(Image.fromarray(values)), encoded(Image.fromarray(values), "TIFF")):
        photo = read_image(data)
        assert photo.bit_depth == 16
        assert photo.is_grey
        np.testing.assert_array_equal(to_samples(photo.rgb[:1], 16)[..., 0], values)


def test_white_is_zero_tiff_of_16_bits_is_turned() -> None:
    values = noise(1, np.uint16)
    data = encoded(Image.fromarray(values), "TIFF", tiffinfo={262: 0})
    np.testing.assert_array_equal(to_samples(read_image(data).rgb[:1], 16)[..., 0], 65535 - values)


# --- orientation and metadata -------------------------------------------------------------------------------------


def exif_with(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "Maker"
    return exif


@pytest.mark.parametrize("pillow_format", ["PNG", "WEBP", "TIFF", "JPEG", "AVIF"])
def test_orientation_is_applied_and_reset(pillow_format: str) -> None:
    options = {"lossless": True} if pillow_format == "WEBP" else {}
    for orientation in range(1, 9):
        data = encoded(Image.fromarray(noise(3)), pillow_format, exif=exif_with(orientation), **options)
        with Image.open(io.BytesIO(data)) as image:
            image.load()  # a TIFF is turned while it is loaded
            expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))
        photo = read_image(data)
        np.testing.assert_array_equal(samples_of(photo), expected, f"orientation {orientation}")
        assert probe_image(data).size_px == photo.size_px == expected.shape[:2]
        assert photo.metadata.exif is not None
        kept = Image.Exif()
        kept.load(photo.metadata.exif)
        assert kept.get(0x0112, 1) == 1
        assert kept[0x010F] == "Maker"


def test_orientation_from_a_chunk_behind_the_pixels() -> None:
    data = encoded(Image.fromarray(noise(3)))
    # Some programs write the prefix of JPEG into PNG, too.
    for chunk in (exif_with(6).tobytes()[6:], exif_with(6).tobytes()):
        late = data[:-12] + png_chunk(b"eXIf", chunk) + data[-12:]
        assert probe_image(late).size_px == read_image(late).size_px == (WIDTH, HEIGHT)


def test_orientation_from_xmp_and_imagemagicks_text() -> None:
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="8"/></x:xmpmeta>'
    photo = read_image(encoded(Image.fromarray(noise(3)), "JPEG", xmp=xmp))
    assert photo.size_px == (WIDTH, HEIGHT)
    assert b'tiff:Orientation="1"' in (photo.metadata.xmp or b"")
    text = PngImagePlugin.PngInfo()
    text.add_text("Raw profile type exif", "\nexif\n     99\n" + exif_with(6).tobytes().hex())
    photo = read_image(encoded(Image.fromarray(noise(3)), pnginfo=text))
    assert photo.size_px == (WIDTH, HEIGHT)
    assert photo.metadata.exif is not None
    assert photo.metadata.text == ()


@pytest.mark.parametrize(("order", "gap"), [("<", b""), (">", b"padding behind the thumbnail")])
def test_exif_is_edited_in_place_and_its_thumbnail_removed(order: str, gap: bytes) -> None:
    def entry(tag: int, kind: int, value: int) -> bytes:
        number = struct.pack(order + "HH", value, 0) if kind == 3 else struct.pack(order + "I", value)
        return struct.pack(order + "HHI", tag, kind, 1) + number

    maker = entry(0x927C, 4, 0xDEADBEEF)
    inner = struct.pack(order + "H", 3) + entry(0xA002, 4, 999) + entry(0xA003, 3, 888) + maker + bytes(4)
    size = struct.calcsize(order + "H12s12sI")
    first, second = 8, 8 + size + len(inner)
    thumbnail = second + size
    link = struct.pack(order + "I", second)
    outer = struct.pack(order + "H", 2) + entry(0x0112, 3, 6) + entry(0x8769, 4, first + size) + link
    last = struct.pack(order + "H", 2) + entry(0x0201, 4, thumbnail) + entry(0x0202, 4, 9) + bytes(4)
    header = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "I", first)
    exif = header + outer + inner + last + b"THUMBNAIL" + gap
    photo = read_image(encoded(Image.fromarray(noise(3)), "JPEG", exif=b"Exif\0\0" + exif))
    kept = photo.metadata.exif
    assert photo.size_px == (WIDTH, HEIGHT)
    assert kept is not None
    expected_outer = outer.replace(entry(0x0112, 3, 6), entry(0x0112, 3, 1)).replace(link, bytes(4))
    expected_inner = struct.pack(order + "H", 3) + entry(0xA002, 4, HEIGHT) + entry(0xA003, 3, WIDTH) + maker + bytes(4)
    assert kept[: second + size] == header + expected_outer + expected_inner + last
    assert kept[second + size :] == (bytes(9) + gap if gap else b"")


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0II*\0\xff\xff\xff\x7f", b"Exif\0\0garbage", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_broken_exif_is_left_out_with_a_note(exif: bytes) -> None:
    photo = read_image(encoded(Image.fromarray(noise(3)), "WEBP", exif=exif))
    assert photo.metadata.exif is None
    assert len(photo.notes) == 1
    assert "EXIF" in photo.notes[0]


def test_text_and_resolution_are_kept() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Author", "Someone")
    text.add_itxt("Title", "Zażółć")
    photo = read_image(encoded(Image.fromarray(noise(3)), pnginfo=text, dpi=(300, 150)))
    assert photo.metadata.text == (("Author", "Someone"), ("Title", "Zażółć"))
    assert photo.metadata.dpi == pytest.approx((300, 150), abs=0.02)
    photo = read_image(encoded(Image.fromarray(noise(3)), "JPEG", comment=b"a day out"))
    assert photo.metadata.text == (("Comment", "a day out"),)
    assert photo.metadata.dpi is None


def test_a_tiff_without_resolution_has_none() -> None:
    assert read_image(deep_tiff(noise(3, np.uint16), "<")).metadata.dpi is None


@pytest.mark.parametrize("pillow_format", ["GIF", "TIFF", "WEBP", "PNG", "AVIF"])
def test_only_the_first_frame_is_used_with_a_note(pillow_format: str) -> None:
    frames = [Image.fromarray(np.full((9, 8, 3), value, np.uint8)) for value in (40, 120, 200)]
    data = encoded(frames[0], pillow_format, save_all=True, append_images=frames[1:])
    photo = read_image(data)
    assert photo.notes == ("3 frames: only the first is used",)
    assert abs(float(photo.rgb.mean()) * 255 - 40) < 3


# --- what is refused ----------------------------------------------------------------------------------------------


def message_of(source: Path | bytes, name: str | None = "holiday.png") -> str:
    with pytest.raises(FileError) as caught:
        read_image(source, name)
    assert "\n" not in caught.value.message
    return caught.value.message


def test_files_that_are_not_images_are_refused(tmp_path: Path) -> None:
    assert message_of(b"", "a.png") == "a.png: the file is empty (0 bytes)"
    assert "not an image" in message_of(b"hello, this is text and nothing else")
    assert "it is a folder" in message_of(tmp_path)
    missing = tmp_path / "missing.jpg"
    assert message_of(missing, None) == f"{missing}: no such file"
    assert "HEIC" in message_of(b"\0\0\0\x18ftypheic" + bytes(40))


def test_an_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(encoded(Image.fromarray(noise(3))))

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    assert message_of(path, None) == f"{path}: no permission to read it"


@pytest.mark.parametrize("pillow_format", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF"])
def test_a_truncated_file_is_never_filled_up(pillow_format: str, capfd: pytest.CaptureFixture[str]) -> None:
    data = encoded(Image.fromarray(noise(3, size=(64, 64))), pillow_format)
    for share in (0.02, 0.5, 0.9):
        assert message_of(data[: int(len(data) * share)]).startswith("holiday.png: ")
    assert capfd.readouterr().err == ""


def test_a_truncated_deep_image() -> None:
    data = deep_png(RNG.integers(0, 65536, (30, 30, 3)).astype(np.uint16))
    assert message_of(data[: len(data) // 2]) == "holiday.png: the file is truncated"
    data = deep_tiff(RNG.integers(0, 65536, (30, 30, 3)).astype(np.uint16), "<")
    assert message_of(data[: len(data) // 2]) == "holiday.png: the file is truncated"


def test_a_decompression_bomb_is_refused_by_its_header() -> None:
    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(bytes(1000)))
    assert "50000x50000" in message_of(bomb)
    with pytest.raises(FileError, match="50000x50000"):
        probe_image(bomb)


@pytest.mark.filterwarnings("error")
def test_large_images_below_our_limit_pass_without_a_warning() -> None:
    # 100 megapixels of one bit: Pillow warns of a bomb from 89 on.
    data = encoded(Image.new("1", (10_000, 10_000)))
    limit = Image.MAX_IMAGE_PIXELS
    assert probe_image(data).size_px == (10_000, 10_000)
    assert limit == Image.MAX_IMAGE_PIXELS


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    pillow_format=st.sampled_from(["PNG", "JPEG", "WEBP", "AVIF", "BMP", "GIF", "deep"]),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_damaged_files_are_read_or_refused_in_one_line(pillow_format: str, changes: list[tuple[float, int]]) -> None:
    samples = np.arange(HEIGHT * WIDTH * 3, dtype=np.uint16).reshape(HEIGHT, WIDTH, 3)
    image = Image.fromarray(samples.astype(np.uint8))
    data = deep_png(samples) if pillow_format == "deep" else encoded(image, pillow_format)
    damaged = bytearray(data)
    for place, value in changes:
        damaged[int(place * (len(data) - 1))] = value
    refused = ""
    try:
        header = probe_image(bytes(damaged))
        if header.size_px[0] * header.size_px[1] < 1 << 22:
            assert read_image(bytes(damaged)).rgb.isfinite().all()
    except FileError as error:
        refused = error.message
    assert "\n" not in refused


# --- real files ---------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not (SHARED / "lq").is_dir(), reason="the shared images are not here")
def test_every_shared_image_is_read() -> None:
    files = sorted((SHARED / "lq").iterdir())
    assert len(files) >= 17
    for path in files:
        photo, header = read_image(path), probe_image(path)
        assert photo.size_px == header.size_px
        assert photo.notes == ()
    grey = read_image(SHARED / "lq" / "00017_gray.png")
    assert grey.is_grey
    tree = read_image(SHARED / "lq" / "tree_alpha_16bit.png")
    assert tree.bit_depth == 16
    assert tree.alpha is not None
    assert len(torch.unique(tree.rgb)) > 256
