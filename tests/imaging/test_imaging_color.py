"""Colour described by other means than an ICC profile."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms
from test_imaging_profiles import (
    ADOBE,
    GREY_22,
    P3,
    SRGB_CURVE,
    by_littlecms,
    curve,
    encoded_lab,
    lab_of,
    profile,
    s15,
    with_profile,
)

from omgsr_cli.errors import FileError
from omgsr_cli.imaging import probe_image, read_image, to_samples, write_image
from omgsr_cli.imaging.profiles import light_to_srgb, load_profile

RNG = np.random.default_rng(11)
#: Smooth colours, so that lossy formats come close.
COLORS = np.stack(np.meshgrid(np.linspace(20, 235, 32), np.linspace(30, 225, 24)), axis=-1)
RGB = np.concatenate([COLORS, COLORS[..., :1][:, ::-1]], axis=-1).round().astype(np.uint8)
GREY = RGB[..., 0]


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(samples: NDArray[np.generic], *chunks: bytes) -> bytes:
    """A PNG with chunks after its header."""
    image = samples if isinstance(samples, Image.Image) else Image.fromarray(samples)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    data = buffer.getvalue()
    return data[:33] + b"".join(chunks) + data[33:]


def gama(value: float) -> bytes:
    return chunk(b"gAMA", struct.pack(">I", round(value * 100000)))


def cicp(primaries: int, transfer: int, full: int = 1) -> bytes:
    return chunk(b"cICP", bytes([primaries, transfer, 0, full]))


def chrm(*numbers: float) -> bytes:
    return chunk(b"cHRM", struct.pack(">8I", *(round(number * 100000) for number in numbers)))


ICCP_ADOBE = chunk(b"iCCP", b"x\0\0" + zlib.compress(ADOBE))
SRGB = chunk(b"sRGB", b"\0")
CHRM_ADOBE = chrm(0.3127, 0.329, 0.64, 0.33, 0.21, 0.71, 0.15, 0.06)
CHRM_SRGB = chrm(0.3127, 0.329, 0.64, 0.33, 0.30, 0.60, 0.15, 0.06)


def by_power(samples: NDArray[np.generic], gamma: float) -> NDArray[np.float64]:
    light = torch.from_numpy((samples / np.float64(np.iinfo(samples.dtype).max)) ** gamma)
    return light_to_srgb(light).numpy()


def pixels(data: bytes) -> NDArray[np.float64]:
    return read_image(data).rgb.permute(1, 2, 0).double().numpy()


def rewritten(data: bytes, **options: object) -> bytes:
    buffer = io.BytesIO()
    write_image(read_image(data), buffer, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def viewed(data: bytes) -> NDArray[np.generic]:
    """What a colour-managed viewer shows that knows ICC profiles only."""
    with Image.open(io.BytesIO(data)) as image:
        icc = image.info.get("icc_profile")
        samples = np.asarray(image)
    if icc is None:
        return samples
    return by_littlecms(samples, icc, "RGB" if samples.ndim == 3 else "L")


# --- PNG ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [1.0, 1.8, 2.6])
@pytest.mark.parametrize("samples", [RGB, GREY, GREY.astype(np.uint16) * 257])
def test_gamma_of_a_png(samples: NDArray[np.generic], gamma: float) -> None:
    data = png(samples, gama(1 / gamma))
    expected = by_power(samples, gamma)
    np.testing.assert_allclose(pixels(data)[..., 0], expected if expected.ndim == 2 else expected[..., 0], atol=1e-3)
    again = rewritten(data)
    np.testing.assert_allclose(pixels(again), pixels(data), atol=1e-4)
    assert read_image(again).metadata.icc is not None


def test_gamma_of_a_palette_and_of_transparency() -> None:
    palette = Image.fromarray(RGB).quantize(16)
    shown = np.asarray(palette.convert("RGB"))
    np.testing.assert_allclose(pixels(png(palette, gama(1.0))), by_power(shown, 1.0), atol=1e-3)
    rgba = np.dstack([RGB, GREY])
    photo = read_image(png(rgba, gama(1.0)))
    assert photo.alpha is not None
    np.testing.assert_array_equal(to_samples(photo.alpha, 8)[..., 0], GREY)
    np.testing.assert_allclose(photo.rgb.permute(1, 2, 0), by_power(RGB, 1.0), atol=1e-3)


def test_a_palette_of_greys_keeps_its_rgb_profile() -> None:
    palette = Image.fromarray(GREY).convert("P")
    photo = read_image(png(palette, ICCP_ADOBE))
    assert photo.metadata.icc == ADOBE
    assert photo.notes == ()


@pytest.mark.parametrize(
    ("chunks", "reference"),
    [
        ((gama(0.45455),), None),
        ((gama(0.45455), CHRM_SRGB), None),
        ((SRGB, gama(1.0)), None),
        ((CHRM_ADOBE, gama(256 / 563)), ADOBE),
        ((ICCP_ADOBE, gama(1.0)), ADOBE),
        ((cicp(12, 13), ICCP_ADOBE), P3),
        ((cicp(12, 13), SRGB, gama(1.0)), P3),
        ((cicp(1, 13), ICCP_ADOBE), None),
        ((cicp(1, 1),), None),
        ((cicp(2, 2), ICCP_ADOBE), ADOBE),
        ((chunk(b"iCCP", b"x\0\0" + zlib.compress(b"broken")), cicp(12, 13)), P3),
    ],
)
def test_the_precedence_of_png_colour_chunks(chunks: tuple[bytes, ...], reference: bytes | None) -> None:
    expected = png(RGB) if reference is None else with_profile(RGB, reference)
    data = png(RGB, *chunks)
    np.testing.assert_allclose(pixels(data), pixels(expected), atol=2e-3)
    np.testing.assert_allclose(viewed(rewritten(data)).astype(int), viewed(expected).astype(int), atol=1)


@pytest.mark.parametrize(
    ("format_name", "metadata"),
    [("png", "keep"), ("jpg", "none"), ("webp", "keep"), ("tiff", "none"), ("avif", "keep")],
)
def test_every_format_carries_the_colours_of_a_cicp(format_name: str, metadata: str) -> None:
    data = rewritten(png(RGB, cicp(9, 14)), format=format_name, metadata=metadata)
    with Image.open(io.BytesIO(data)) as image:
        assert np.abs(np.asarray(image).astype(int) - RGB).mean() <= 2
        assert load_profile(image.info["icc_profile"]) is not None
    assert np.abs(pixels(data) - pixels(png(RGB, cicp(9, 14)))).mean() <= 0.01


def test_bt2020_is_wider_than_srgb() -> None:
    """Against the conversion of BT.2087."""
    to_bt709 = np.array([[1.6605, -0.5876, -0.0728], [-0.1246, 1.1329, -0.0083], [-0.0182, -0.1006, 1.1187]])
    light = np.where(RGB / 255 > 0.04045, ((RGB / 255 + 0.055) / 1.055) ** 2.4, RGB / 255 / 12.92)
    expected = light_to_srgb(torch.from_numpy(light @ to_bt709.T)).clamp(0, 1)
    found = read_image(png(RGB, cicp(9, 13)))
    np.testing.assert_allclose(found.rgb.permute(1, 2, 0), expected, atol=3e-3)
    assert found.gamut is not None


def test_video_levels_of_a_cicp() -> None:
    video = np.array([[[16, 126, 235]]], np.uint8).repeat(8, 0).repeat(8, 1)
    photo = read_image(png(video, cicp(1, 13, full=0)))
    np.testing.assert_array_equal(to_samples(photo.rgb, 8)[0, 0], [0, 128, 255])


def test_an_invalid_colour_description_is_noted() -> None:
    for chunks in ((cicp(77, 13),), (cicp(1, 9),), (chrm(*[0.3] * 8), gama(1.0))):
        photo = read_image(png(RGB, *chunks))
        assert len(photo.notes) == 1
        assert photo.metadata.icc is None
        np.testing.assert_array_equal(to_samples(photo.rgb, 8), RGB)


# --- AVIF, HEIC, JPEG 2000 ----------------------------------------------------------------------------------------


def with_nclx(pillow_format: str, primaries: int, transfer: int, **options: object) -> bytes:
    if pillow_format == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener(thumbnails=False)
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, pillow_format, quality=95, **options)
    data = bytearray(buffer.getvalue())
    place = data.index(b"colrnclx") + 8
    data[place : place + 4] = struct.pack(">HH", primaries, transfer)
    return bytes(data)


@pytest.mark.parametrize("pillow_format", ["AVIF", "HEIF"])
def test_an_nclx_box_is_applied(pillow_format: str) -> None:
    plain = with_nclx(pillow_format, 1, 13)
    assert read_image(plain).metadata.icc is None
    data = with_nclx(pillow_format, 12, 13)
    expected = with_profile(to_samples(read_image(plain).rgb, 8), P3)
    np.testing.assert_allclose(pixels(data), pixels(expected), atol=2e-3)
    np.testing.assert_allclose(viewed(rewritten(data, format="png")).astype(int), viewed(expected).astype(int), atol=1)
    bt2020 = read_image(with_nclx(pillow_format, 9, 1))
    np.testing.assert_allclose(
        bt2020.rgb, read_image(png(to_samples(read_image(plain).rgb, 8), cicp(9, 13))).rgb, atol=1e-4
    )


def test_a_profile_counts_before_nclx() -> None:
    data = with_nclx("AVIF", 12, 13, icc_profile=ADOBE)
    assert read_image(data).metadata.icc == ADOBE


@pytest.mark.parametrize("transfer", [16, 18])
@pytest.mark.parametrize("make", [lambda t: png(RGB, cicp(9, t)), lambda t: with_nclx("AVIF", 9, t)])
def test_hdr_is_refused_by_its_header(make: Callable[[int], bytes], transfer: int) -> None:
    for read in (probe_image, read_image):
        with pytest.raises(FileError, match="HDR") as caught:
            read(make(transfer), "a.png")
        assert caught.value.hint


def test_an_hdr_profile_is_refused() -> None:
    tags = {letter + b"TRC": SRGB_CURVE for letter in (b"r", b"g", b"b")}
    hdr = profile(b"RGB ", tags | {b"cicp": b"cicp" + bytes(4) + bytes([9, 16, 0, 1])})
    with pytest.raises(FileError, match="HDR"):
        read_image(with_profile(RGB, hdr))


def test_the_profile_of_a_jpeg_2000() -> None:
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "JPEG2000")
    data = buffer.getvalue()
    start = data.index(b"colr") - 4
    length = struct.unpack_from(">I", data, start)[0]
    box = struct.pack(">I4s3B", 11 + len(ADOBE), b"colr", 2, 0, 0) + ADOBE
    outer = data.index(b"jp2h") - 4
    size = struct.unpack_from(">I", data, outer)[0] + len(box) - length
    changed = data[:outer] + struct.pack(">I", size) + data[outer + 4 : start] + box + data[start + length :]
    assert read_image(changed).metadata.icc == ADOBE
    np.testing.assert_allclose(pixels(changed), pixels(with_profile(RGB, ADOBE)), atol=1e-4)


def test_the_header_of_a_bmp() -> None:
    points = [p / 1.0 for p in (0.5767, 0.2973, 0.0270, 0.1856, 0.6274, 0.0707, 0.1882, 0.0753, 0.9911)]
    rows = RGB[::-1, :, ::-1]
    header = struct.pack("<IiiHHIIiiII", 108, 32, 24, 1, 24, 0, rows.size, 0, 0, 0, 0)
    header += bytes(16) + bytes(4) + struct.pack("<9i", *(round(p * 2**30) for p in points))
    header += struct.pack("<3I", *[round(563 / 256 * 65536)] * 3)
    assert len(header) == 108
    data = struct.pack("<2sIHHI", b"BM", 122 + rows.size, 0, 0, 122) + header + rows.tobytes()
    np.testing.assert_allclose(pixels(data), pixels(with_profile(RGB, ADOBE)), atol=3e-3)


# --- EXIF ---------------------------------------------------------------------------------------------------------


def jpeg(color_space: int | None, index: str | None, icc: bytes | None = None) -> bytes:
    exif = Image.Exif()
    inner: dict[int, object] = {} if color_space is None else {0xA001: color_space}
    if index:
        inner[0xA005] = {1: index, 2: b"0100"}
    exif[0x8769] = inner
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "JPEG", quality=100, subsampling=0, exif=exif, icc_profile=icc)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("color_space", "index", "adobe"),
    [
        (65535, "R03", True),
        (2, None, True),
        (1, "R98", False),
        (65535, "R98", False),
        (1, "R03", False),
        (None, None, False),
    ],
)
def test_adobe_rgb_by_dcf_is_recognised(color_space: int | None, index: str | None, adobe: bool) -> None:
    data = jpeg(color_space, index)
    plain = to_samples(read_image(jpeg(1, None)).rgb, 8)
    np.testing.assert_allclose(pixels(data), pixels(with_profile(plain, ADOBE) if adobe else png(plain)), atol=2e-3)
    photo = read_image(rewritten(data, format="png"))
    assert (photo.metadata.icc is not None) == adobe
    assert read_image(jpeg(color_space, index, P3)).metadata.icc == P3


# --- grey profiles ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("deep", [False, True])
def test_a_grey_profile_over_lab(deep: bool) -> None:
    icc = profile(b"GRAY", {b"kTRC": curve("gamma", 1.0)}, pcs=b"Lab ")
    samples = GREY.astype(np.uint16) * 257 if deep else GREY
    buffer = io.BytesIO()
    Image.fromarray(samples).save(buffer, "PNG", icc_profile=icc)
    data = buffer.getvalue()
    root = (GREY / 255 * 100 + 16) / 116
    light = np.where(root > 6 / 29, root**3, (root - 4 / 29) * 3 * (6 / 29) ** 2)
    np.testing.assert_allclose(pixels(data)[..., 0], light_to_srgb(torch.from_numpy(light)), atol=1e-3)
    np.testing.assert_array_equal(
        to_samples(torch.from_numpy(pixels(data)).permute(2, 0, 1), 8), by_littlecms(GREY, icc, "L")
    ) if not deep else None
    again = rewritten(data)
    with Image.open(io.BytesIO(again)) as image:
        np.testing.assert_array_equal(np.asarray(image), samples)


def test_a_grey_table_profile_keeps_16_bits() -> None:
    nodes = encoded_lab(lab_of(np.linspace(0, 1, 33)[:, None].repeat(3, 1) ** 1.7))
    line = struct.pack(">HH", 0, 65535)
    table = b"mft2" + bytes(4) + bytes([1, 3, 33, 0]) + s15(1, 0, 0, 0, 1, 0, 0, 0, 1) + struct.pack(">HH", 2, 2)
    table += line + np.rint(nodes.clip(0, 1) * 65535).astype(">u2").tobytes() + line * 3
    icc = profile(b"GRAY", {b"A2B0": table}, pcs=b"Lab ", kind=b"prtr")
    ramp = np.linspace(6000, 65535, 1024).round().astype(np.uint16).reshape(32, 32)
    buffer = io.BytesIO()
    Image.fromarray(ramp).save(buffer, "PNG", icc_profile=icc)
    photo = read_image(buffer.getvalue())
    assert photo.notes == ()
    assert len(np.unique(to_samples(photo.rgb, 16)[..., 0])) == 1024
    np.testing.assert_allclose(photo.rgb[0], by_power(ramp, 1.7), atol=0.01)
    with Image.open(io.BytesIO(rewritten(buffer.getvalue()))) as image:
        assert np.abs(np.asarray(image).astype(int) - ramp).max() <= 2


def test_littlecms_reads_generated_profiles_equally() -> None:
    for data in (png(RGB, cicp(12, 13)), png(RGB, CHRM_ADOBE, gama(0.5)), png(GREY, gama(0.6))):
        photo = read_image(data)
        icc = photo.metadata.icc
        assert icc is not None
        assert ImageCms.ImageCmsProfile(io.BytesIO(icc)).profile.version >= 4
        samples = GREY if photo.is_grey else RGB
        shown = by_littlecms(samples, icc, "L" if photo.is_grey else "RGB").astype(int)
        assert np.abs(to_samples(photo.rgb, 8) - shown).max() <= 2
    assert load_profile(GREY_22) is not None
