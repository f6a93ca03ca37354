"""TIFF of scanners and editors: every layout, the right page, and names for unsupported ones."""

from __future__ import annotations

import contextlib
import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image, TiffImagePlugin

from omgsr_cli.errors import FileError
from omgsr_cli.files import folders
from omgsr_cli.imaging import SourceImage, probe_image, read_image, to_samples
from omgsr_cli.imaging.profiles import lab_to_srgb

needs_codecs = pytest.mark.skipif(not folders.has_reader("codecs"), reason="the extra codecs is not installed")
RNG = np.random.default_rng(11)
SIZE = (37, 45)


def noise(channels: int, dtype: Any = np.uint16) -> NDArray[Any]:
    shape = SIZE if channels == 1 else (*SIZE, channels)
    return RNG.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def tiff(samples: NDArray[Any], **options: Any) -> bytes:
    held = io.BytesIO()
    options.setdefault("photometric", "rgb" if samples.ndim == 3 and samples.shape[-1] >= 3 else "minisblack")
    tifffile.imwrite(held, samples, metadata=None, **options)
    return held.getvalue()


def planes_of(image: SourceImage) -> NDArray[Any]:
    """(H, W, C): grey as one channel, then alpha, in the file's depth."""
    color = image.rgb[:1] if image.is_grey else image.rgb
    planes = color if image.alpha is None else torch.cat([color, image.alpha])
    return to_samples(planes, image.bit_depth)


def check(data: bytes, expected: NDArray[Any], notes: tuple[str, ...] = ()) -> None:
    """Header and pixels say the same, and the pixels are these to the last bit."""
    header, image = probe_image(data), read_image(data)
    found = planes_of(image)
    wanted = expected[..., None] if expected.ndim == 2 else expected
    assert header.size_px == image.size_px == wanted.shape[:2]
    assert header.bit_depth == image.bit_depth == wanted.dtype.itemsize * 8
    assert found.shape == wanted.shape
    np.testing.assert_array_equal(found, wanted)
    assert len(image.notes) == len(notes)
    for note, word in zip(image.notes, notes, strict=True):
        assert word in note


def scaled(values: NDArray[Any], largest: float) -> NDArray[np.uint16]:
    return np.rint(values.astype(np.float64) * (65535 / largest)).astype(np.uint16)


LAYOUTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "big-endian": {"byteorder": ">"},
    "BigTIFF": {"bigtiff": True},
    "big-endian BigTIFF": {"bigtiff": True, "byteorder": ">"},
    "strips": {"rowsperstrip": 5},
    "tiles": {"tile": (16, 16)},
    "deflate": {"compression": "zlib", "rowsperstrip": 8},
    "deflate, predictor": {"compression": "zlib", "predictor": True, "rowsperstrip": 8},
    "big-endian predictor": {"compression": "zlib", "predictor": True, "byteorder": ">"},
    "deflated tiles": {"compression": "zlib", "predictor": True, "tile": (16, 32)},
}
CODEC_LAYOUTS: dict[str, dict[str, Any]] = {
    "LZW": {"compression": "lzw", "rowsperstrip": 8},
    "LZW, predictor": {"compression": "lzw", "predictor": True},
    "ZSTD": {"compression": "zstd"},
    "LZMA": {"compression": "lzma"},
}
KINDS = ((1, np.uint8), (3, np.uint8), (1, np.uint16), (3, np.uint16), (4, np.uint16))


@pytest.mark.parametrize("layout", [*LAYOUTS, *(pytest.param(name, marks=needs_codecs) for name in CODEC_LAYOUTS)])
def test_every_layout_to_the_last_sample(layout: str) -> None:
    for channels, dtype in KINDS:
        samples = noise(channels, dtype)
        extra = {"extrasamples": ["unassalpha"]} if channels == 4 else {}
        check(tiff(samples, **(LAYOUTS | CODEC_LAYOUTS)[layout], **extra), samples)


@pytest.mark.parametrize(
    ("dtype", "channels", "options"),
    [
        (np.uint8, 3, {}),
        (np.uint16, 4, {"compression": "zlib"}),
        (np.float32, 3, {"tile": (16, 16)}),
        (np.float32, 4, {}),
        (np.uint8, 4, {"tile": (16, 16)}),
        (np.uint16, 3, {"compression": "zlib"}),
    ],
)
def test_planar_layouts_are_read(dtype: type, channels: int, options: dict[str, Any]) -> None:
    samples = noise(channels, np.uint16 if dtype is np.float32 else dtype)
    stored = (samples / 65535).astype(np.float32) if dtype is np.float32 else samples
    extra = {"extrasamples": ["unassalpha"]} if channels == 4 else {}
    data = tiff(np.moveaxis(stored, 2, 0), planarconfig="separate", photometric="rgb", **options, **extra)
    check(data, samples)


@pytest.mark.parametrize(
    ("dtype", "channels", "order"),
    [(np.float16, 1, "<"), (np.float16, 3, ">"), (np.float32, 3, "<"), (np.float64, 1, ">")],
)
def test_floats(dtype: type, channels: int, order: str) -> None:
    samples = RNG.random(SIZE if channels == 1 else (*SIZE, channels)).astype(dtype)
    check(tiff(samples, byteorder=order), scaled(samples, 1))


@needs_codecs
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_floats_with_their_own_predictor(dtype: type) -> None:
    samples = RNG.random((*SIZE, 3)).astype(dtype)
    check(tiff(samples, compression="lzw", predictor=3), scaled(samples, 1))


def test_wide_integers_are_scaled_by_their_range() -> None:
    for dtype in (np.uint32, np.uint64):
        for channels in (1, 3):
            samples = noise(channels, dtype)
            check(tiff(samples), scaled(samples, float(np.iinfo(dtype).max)))


def test_signed_integers_are_noted() -> None:
    samples = noise(3, np.int16) & 0x7FFF
    check(tiff(samples), scaled(samples, 32767), ("0 to 32767",))
    # 16 bits, as numpy and Pillow hold them.
    whole = noise(1, np.uint16)
    check(tiff(whole.astype(np.int32)), whole, ("0 to 65535",))
    with pytest.raises(FileError, match="16-bit signed grey from -5"):
        read_image(tiff(np.where(samples[..., 0] == 0, 1, -5).astype(np.int16)))


@needs_codecs
@pytest.mark.parametrize("bits", [10, 12, 14])
def test_depths_between_8_and_16_reach_white(bits: int) -> None:
    samples = (noise(3) >> (16 - bits)).astype(np.uint16)
    samples[0, 0] = (1 << bits) - 1
    check(tiff(samples, bitspersample=bits), scaled(samples, (1 << bits) - 1))


@pytest.mark.parametrize(
    ("dtype", "kind"), [(np.uint8, "assocalpha"), (np.uint16, "unassalpha"), (np.uint16, "assocalpha")]
)
def test_grey_with_alpha(dtype: type, kind: str) -> None:
    samples = noise(2, dtype)
    largest = np.iinfo(dtype).max
    samples[..., 1] |= largest // 2 + 1
    stored = samples.copy()
    if kind == "assocalpha":
        stored[..., 0] = np.rint(samples[..., 0].astype(np.float64) * samples[..., 1] / largest)
    image = read_image(tiff(stored, extrasamples=[kind], photometric="minisblack", planarconfig="contig"))
    assert (image.is_grey, image.bit_depth) == (True, largest.bit_length())
    assert np.abs(planes_of(image).astype(int) - samples).max() <= (0 if kind == "unassalpha" else 2)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_extra_channels_are_dropped_with_a_note(dtype: type) -> None:
    samples = noise(6, dtype)
    check(tiff(samples, extrasamples=[0, 0, 0]), samples[..., :3], ("3 extra",))
    check(tiff(samples, extrasamples=[0, 2, 0]), samples[..., [0, 1, 2, 4]], ("2 extra",))
    check(tiff(samples[..., :4], extrasamples=[0]), samples[..., :3], ("1 extra",))
    spectral = tiff(samples[..., :5], photometric="minisblack", planarconfig="contig", extrasamples=[0] * 4)
    check(spectral, samples[..., 0], ("4 extra",))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_white_is_zero(dtype: type) -> None:
    samples = noise(1, dtype)
    check(tiff(samples, photometric="miniswhite"), np.iinfo(dtype).max - samples)
    check(tiff(samples, photometric="miniswhite", tile=(16, 16)), np.iinfo(dtype).max - samples)


def test_white_is_zero_in_floats() -> None:
    samples = RNG.random(SIZE).astype(np.float32)
    check(tiff(samples, photometric="miniswhite"), 65535 - scaled(samples, 1))


@pytest.mark.parametrize(
    ("dtype", "extra"), [(np.uint8, []), (np.uint16, ["unassalpha"]), (np.uint8, [0]), (np.uint16, [])]
)
def test_cmyk_with_and_without_alpha(dtype: type, extra: list[Any]) -> None:
    inks = noise(4 + len(extra), np.uint8)
    stored = inks if dtype is np.uint8 else inks.astype(np.uint16) * 257
    image = read_image(tiff(stored, photometric="separated", extrasamples=extra))
    expected = np.asarray(Image.fromarray(np.ascontiguousarray(inks[..., :4]), "CMYK").convert("RGB"))
    found = planes_of(image)
    np.testing.assert_array_equal(found[..., :3], expected)
    assert (image.alpha is not None) == (extra == ["unassalpha"])
    if image.alpha is not None:
        np.testing.assert_array_equal(found[..., 3], inks[..., 4])
    assert any("CMYK" in note for note in image.notes)
    assert any("16 bits" in note for note in image.notes) == (dtype is np.uint16)
    assert any("extra" in note for note in image.notes) == (extra == [0])


def lab_of(levels: NDArray[Any], photometric: int, bits: int) -> NDArray[Any]:
    """Lab in floats from what a file stores, written down once more from the specification."""
    step, largest = 1 << (bits - 8), (1 << bits) - 1
    if photometric == 8:
        signed = levels[..., 1:].astype(np.int64)
        signed = np.where(signed > largest // 2, signed - largest - 1, signed)
        return np.concatenate([levels[..., :1] * (100 / largest), signed / step], axis=2)
    white = 255 if bits == 8 else 0xFF00
    return np.concatenate([levels[..., :1] * (100 / white), levels[..., 1:] / step - 128], axis=2)


@pytest.mark.parametrize(("photometric", "dtype"), [("cielab", np.uint16), ("icclab", np.uint8), ("icclab", np.uint16)])
def test_lab_of_16_bits_keeps_them(photometric: str, dtype: type) -> None:
    bits = np.dtype(dtype).itemsize * 8
    samples = noise(3, dtype)
    # Near grey, where sRGB shows the colours.
    middle = 0 if photometric == "cielab" else 1 << (bits - 1)
    samples[..., 1:] = middle + samples[..., 1:] % (8 << (bits - 8))
    image = read_image(tiff(samples, photometric=photometric))
    lab = lab_of(samples, 8 if photometric == "cielab" else 9, bits)
    expected = lab_to_srgb(torch.from_numpy(lab.astype(np.float32)).permute(2, 0, 1)).clamp(0, 1)
    assert image.bit_depth == 16
    assert float((image.rgb - expected).abs().max()) < 1e-4
    assert any("Lab" in note for note in image.notes)


def test_lab_is_converted_to_srgb() -> None:
    """White, black and middle grey, and the sRGB red by its published Lab under D50."""
    lab = torch.tensor([[100.0, 0, 0], [0, 0, 0], [53.389, 0, 0], [54.29, 80.81, 69.89]]).T[:, :, None]
    expected = torch.tensor([[1.0, 1, 1], [0, 0, 0], [0.5, 0.5, 0.5], [1, 0, 0]]).T[:, :, None]
    assert float((lab_to_srgb(lab) - expected).abs().max()) < 3e-3


@needs_codecs
@pytest.mark.parametrize("compression", ["ccitt_t6", "ccitt_t4"])
def test_fax_codes_are_read(compression: str, tmp_path: Path) -> None:
    image = Image.fromarray((noise(1, np.uint8) > 100).astype(np.uint8) * 255).convert("1")
    name = {"ccitt_t6": "group4", "ccitt_t4": "group3"}[compression]
    image.save(tmp_path / "a.tif", compression=name)
    check((tmp_path / "a.tif").read_bytes(), np.asarray(image.convert("L")))


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_inside_a_tiff_is_read(mode: str) -> None:
    held, smooth = io.BytesIO(), np.mgrid[0:64, 0:64].sum(0).astype(np.uint8)
    Image.fromarray(smooth).convert(mode).save(held, "TIFF", compression="jpeg", quality=95)
    with Image.open(io.BytesIO(held.getvalue())) as image:
        check(held.getvalue(), np.asarray(image.convert(mode)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_tag_is_applied(orientation: int) -> None:
    dtype = (np.uint8, np.uint16, np.float32)[orientation % 3]
    levels = noise(3, np.uint16 if dtype is np.float32 else dtype)
    stored = (levels / 65535).astype(np.float32) if dtype is np.float32 else levels
    turned = {
        1: levels, 2: levels[:, ::-1], 3: levels[::-1, ::-1], 4: levels[::-1],
        5: levels.swapaxes(0, 1), 6: np.rot90(levels, -1), 7: np.rot90(levels.swapaxes(0, 1), 2), 8: np.rot90(levels),
    }[orientation]  # fmt: skip
    check(tiff(stored, extratags=[(274, 3, 1, orientation, True)]), turned)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_palettes(bits: int, tmp_path: Path) -> None:
    image = Image.fromarray(noise(3, np.uint8)).quantize(1 << bits)
    with Image.open(io.BytesIO(tiff_of_palette(image, bits))) as read:
        expected = np.asarray(read.convert("RGB"))
    check(tiff_of_palette(image, bits), expected)


def tiff_of_palette(image: Image.Image, bits: int) -> bytes:
    """A palette written with so many bits for each index."""
    palette = np.array(image.getpalette(), np.uint16).reshape(-1, 3)[: 1 << bits].T * 257
    padded = np.zeros((3, 256), np.uint16)
    padded[:, : palette.shape[1]] = palette
    if bits == 8:
        return tiff(np.asarray(image), photometric="palette", colormap=padded)
    indexes = np.asarray(image)
    fields = np.zeros((indexes.shape[0], -(-indexes.shape[1] * bits // 8)), np.uint8)
    for column in range(indexes.shape[1]):
        at = column * bits
        fields[:, at // 8] |= indexes[:, column] << (8 - bits - at % 8)
    ifd = TiffImagePlugin.ImageFileDirectory_v2(prefix=b"II")
    height, width = indexes.shape
    ifd.update({256: width, 257: height, 258: bits, 259: 1, 262: 3, 277: 1, 278: height, 279: fields.size})
    ifd[320] = tuple(int(value) for value in palette.ravel())
    # Counted from the directory's end: Pillow adds that.
    ifd[273] = 0
    return b"II*\0\x08\0\0\0" + ifd.tobytes(8) + fields.tobytes()


# --- ranges of floats ---------------------------------------------------------------------------------------------


def test_values_outside_0_to_1_are_counted_in_one_note() -> None:
    samples = RNG.random((*SIZE, 3)).astype(np.float32)
    samples[0, :3] = 1.0
    check(tiff(samples), scaled(samples, 1))
    samples[1, 1] = (1.5, 2.0, 40.0)
    samples[2, 2] = (-0.25, 1.0 + 1e-7, -1e-7)
    [note] = read_image(tiff(samples)).notes
    assert "3 above 1" in note
    assert "40" in note
    assert "1 below 0" in note
    samples[3, 3] = (np.nan, np.inf, np.nan)
    clipped, no_numbers = read_image(tiff(samples)).notes
    assert "4 above 1" in clipped
    assert "2 NaN" in no_numbers


@pytest.mark.parametrize(
    ("largest", "kind"), [(255, "whole"), (65535, "smooth"), (255, "dark"), (65535, "dark"), (255, "mostly black")]
)
def test_floats_of_another_range_are_refused(largest: int, kind: str) -> None:
    samples = RNG.random((*SIZE, 3))
    if kind == "dark":
        samples = samples**4 * 0.3
    elif kind == "mostly black":
        samples[4:] = 0
    samples = samples * largest
    if kind == "whole":
        samples = np.rint(samples)
    with pytest.raises(FileError, match=r"x\.tif: its 32-bit float RGB samples look like") as caught:
        read_image(tiff(samples.astype(np.float32)), "x.tif")
    assert caught.value.hint


def test_floats_with_nan_are_refused() -> None:
    with pytest.raises(FileError, match="finite"):
        read_image(tiff(np.full(SIZE, np.nan, np.float32)))


# --- pages --------------------------------------------------------------------------------------------------------


def pages(*written: tuple[NDArray[Any], dict[str, Any]]) -> bytes:
    held = io.BytesIO()
    with tifffile.TiffWriter(held) as writer:
        for samples, options in written:
            photometric = "rgb" if samples.ndim == 3 else "minisblack"
            writer.write(samples, metadata=None, **({"photometric": photometric} | options))
    return held.getvalue()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_the_first_page_of_full_resolution_is_the_image(dtype: type) -> None:
    whole = RNG.random((*SIZE, 3)).astype(dtype) if dtype is np.float32 else noise(3, dtype)
    expected = scaled(whole, 1) if dtype is np.float32 else whole
    thumbnail, mask = (whole[::4, ::4], {"subfiletype": 1}), (whole[..., 0] > 0.5, {"subfiletype": 4})
    check(pages(thumbnail, (whole, {})), expected)
    check(pages(thumbnail, thumbnail, (whole, {}), thumbnail), expected)
    check(pages((whole, {}), thumbnail), expected)
    check(pages(mask, (whole, {})), expected, ("mask",))
    check(pages(thumbnail, (whole, {}), (whole[::-1], {})), expected, ("2 frames",))


def test_the_older_tag_of_a_thumbnail() -> None:
    whole = noise(3, np.uint8)
    old = {"extratags": [(255, 3, 1, 2, True)]}
    check(pages((whole[::4, ::4], old), (whole, {"extratags": [(255, 3, 1, 1, True)]})), whole)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_an_image_below_its_thumbnail(dtype: type) -> None:
    whole = noise(3, dtype)
    data = pages((whole[::4, ::4], {"subfiletype": 1, "subifds": 1}), (whole, {"subfiletype": 0}))
    check(data, whole)


def test_a_lone_thumbnail_is_an_image() -> None:
    whole = noise(3, np.uint8)
    check(pages((whole, {"subfiletype": 1})), whole)


# --- what is kept, and what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"bigtiff": True, "byteorder": ">"}], ids=["plain", "big-endian BigTIFF"])
def test_profile_resolution_and_tags_come_from_the_page_that_is_read(options: dict[str, Any]) -> None:
    icc = bytes(128)
    samples = RNG.random((*SIZE, 3)).astype(np.float32)
    told = {"resolution": (300, 300), "resolutionunit": 2, "iccprofile": icc, "software": "Scanner 3"}
    image = read_image(tiff(samples, **told, **options))
    assert image.metadata.dpi == (300, 300)
    assert b"Scanner 3" in (image.metadata.exif or b"")
    # It was found, and is no profile.
    assert any("ICC" in note for note in image.notes)


@pytest.mark.parametrize(
    ("samples", "photometric", "what"),
    [
        (np.zeros((8, 8, 3), np.float32), "cielab", "32-bit float Lab"),
        (np.zeros((8, 8), np.uint16), "cfa", "16-bit camera raw"),
        (np.zeros((8, 8), np.complex64), "minisblack", "complex float grey"),
    ],
)
def test_unsupported_layouts_are_named(samples: NDArray[Any], photometric: str, what: str) -> None:
    extra = [(33421, 3, 2, (2, 2), True), (33422, 1, 4, bytes((0, 1, 1, 2)), True)] if photometric == "cfa" else []
    with pytest.raises(FileError, match=what) as caught:
        read_image(tiff(samples, photometric=photometric, extratags=extra), "x.tif")
    assert "truncated" not in caught.value.message
    assert "damaged" not in caught.value.message


def test_other_inks_are_not_read_as_cmyk() -> None:
    data = tiff(noise(4, np.uint16), photometric="separated", extratags=[(332, 3, 1, 2, True)])
    with pytest.raises(FileError, match="inks"):
        read_image(data)


@pytest.mark.parametrize(
    ("dtype", "options"),
    [(np.uint16, {}), (np.float32, {"compression": "zlib", "rowsperstrip": 4}), (np.uint16, {"tile": (16, 16)})],
)
def test_missing_pixels_are_an_error(dtype: type, options: dict[str, Any]) -> None:
    data = tiff(RNG.random((*SIZE, 3)).astype(dtype), **options)
    for end in (len(data) - 1, len(data) - 200, len(data) // 2):
        with pytest.raises(FileError):
            read_image(data[:end])
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        lengths = file.pages.first.tags[325 if "tile" in options else 279]
    hole = bytearray(data)
    # A strip of no bytes: GDAL's way to leave one out.
    size = 2 if lengths.dtype == 3 else 4
    hole[lengths.valueoffset : lengths.valueoffset + size] = bytes(size)
    with pytest.raises(FileError, match=r"missing|truncated|damaged"):
        read_image(bytes(hole))


def test_without_the_extra_its_codecs_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """16-bit RGB in LZW, which scanners and Photoshop write, is read all the same; float RGB in LZW is not."""
    if not folders.has_reader("codecs"):
        pytest.skip("the extra codecs is not installed, so that nothing can be written with LZW")
    samples, floats = noise(3), RNG.random((*SIZE, 3)).astype(np.float32)
    deep, other = tiff(samples, compression="lzw", predictor=True), tiff(floats, compression="lzw")
    for module in ("omgsr_cli.imaging.read", "omgsr_cli.imaging.tiff"):
        monkeypatch.setattr(f"{module}.has_reader", lambda kind: kind != "codecs")
    check(deep, samples)
    with pytest.raises(FileError, match="LZW compression of 32-bit float RGB") as caught:
        read_image(other, "x.tif")
    assert "omgsr-cli[codecs]" in str(caught.value.hint)


def test_tifffile_logs_nothing(capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(tiff(noise(3)))
    data[10:14] = b"\xff\xff\xff\xff"
    with pytest.raises(FileError):
        read_image(bytes(data))
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("tag", [258, 262, 277])
def test_a_tag_with_too_many_values(tag: int) -> None:
    data = tiff(noise(3))
    changed, directory = bytearray(data), struct.unpack_from("<I", data, 4)[0]
    places = range(directory + 2, directory + 2 + 12 * struct.unpack_from("<H", data, directory)[0], 12)
    place = next(place for place in places if struct.unpack_from("<H", data, place)[0] == tag)
    # Three values do not fit into the entry: they are read from some place in the file.
    changed[place + 2 : place + 12] = struct.pack("<HII", 3, 3, 16)
    for read in (probe_image, read_image):
        with contextlib.suppress(FileError):
            read(bytes(changed))


@pytest.mark.parametrize("target", [0, 1])
def test_pages_that_lead_in_a_circle_end(target: int) -> None:
    """A second page whose successor is the first one, or itself."""
    buffer = io.BytesIO()
    pages = [Image.fromarray(np.full((9, 8), value, np.uint8)) for value in (40, 120)]
    pages[0].save(buffer, "TIFF", save_all=True, append_images=pages[1:])
    data = bytearray(buffer.getvalue())
    starts = [struct.unpack_from("<I", data, 4)[0]]
    for _ in range(2):
        link = starts[-1] + 2 + 12 * struct.unpack_from("<H", data, starts[-1])[0]
        starts.append(struct.unpack_from("<I", data, link)[0])
    struct.pack_into("<I", data, link, starts[target])
    try:
        assert probe_image(bytes(data)).size_px == read_image(bytes(data)).size_px == (9, 8)
    except FileError as error:
        assert "\n" not in error.message
