"""Colour profiles against LittleCMS and computed ones, and the appearance after a round trip."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms

from omgsr_cli.imaging import ImageMetadata, SourceImage, read_image, to_samples, write_image
from omgsr_cli.imaging.profiles import (
    Curve,
    ProfileError,
    TableProfile,
    light_to_srgb,
    load_profile,
    parse_curve,
    srgb_to_light,
)

RNG = np.random.default_rng(5)
D50 = np.array([0.9642, 1.0, 0.8249])

#: x, y of red, green, blue; white is D65 except for ProPhoto, whose white is D50.
PRIMARIES = {
    "srgb": ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06)),
    "adobe": ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06)),
    "p3": ((0.68, 0.32), (0.265, 0.69), (0.15, 0.06)),
    "prophoto": ((0.7347, 0.2653), (0.1596, 0.8404), (0.0366, 0.0001)),
}


def s15(*numbers: float) -> bytes:
    return struct.pack(f">{len(numbers)}i", *(round(number * 65536) for number in numbers))


def curve(kind: int | str, *numbers: float) -> bytes:
    if kind == "gamma":
        return b"curv" + bytes(4) + struct.pack(">IH", 1, round(numbers[0] * 256))
    if kind == "table":
        samples = np.linspace(0, 1, 1024) ** numbers[0]
        return b"curv" + bytes(4) + struct.pack(">I", 1024) + np.rint(samples * 65535).astype(">u2").tobytes()
    return b"para" + bytes(4) + struct.pack(">HH", int(kind), 0) + s15(*numbers)


SRGB_CURVE = curve(3, 2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)


def profile(space: bytes, tags: dict[bytes, bytes], pcs: bytes = b"XYZ ", kind: bytes = b"mntr") -> bytes:
    text = "test".encode("utf-16-be")
    words = b"mluc" + bytes(4) + struct.pack(">II2s2sII", 1, 12, b"en", b"US", len(text), 28) + text
    tags = {b"desc": words, b"cprt": words, b"wtpt": b"XYZ " + bytes(4) + s15(*D50)} | tags
    table, body, at = b"", b"", 132 + 12 * len(tags)
    for name, content in tags.items():
        table += name + struct.pack(">II", at + len(body), len(content))
        body += content + bytes(-len(content) % 4)
    size = at + len(body)
    head = struct.pack(">I4s4s4s4s4s12s4s", size, b"none", b"\x04\x30\0\0", kind, space, pcs, bytes(12), b"acsp")
    head = head.ljust(68, b"\0") + s15(*D50)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table + body


def xyz_matrix(name: str) -> NDArray[np.float64]:
    """Linear RGB to XYZ under D50, from the chromaticities, with Bradford adaptation."""
    primaries = np.array([[x / y, 1, (1 - x - y) / y] for x, y in PRIMARIES[name]]).T
    white = D50 if name == "prophoto" else np.array([0.95047, 1.0, 1.08883])
    matrix = primaries * np.linalg.solve(primaries, white)
    bradford = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
    scale = np.diag((bradford @ D50) / (bradford @ white))
    return np.linalg.solve(bradford, scale @ bradford) @ matrix


def matrix_profile(name: str, tone: bytes) -> bytes:
    matrix = xyz_matrix(name)
    tags = {letter + b"TRC": tone for letter in (b"r", b"g", b"b")}
    tags |= {letter + b"XYZ": b"XYZ " + bytes(4) + s15(*matrix[:, i]) for i, letter in enumerate((b"r", b"g", b"b"))}
    return profile(b"RGB ", tags)


ADOBE = matrix_profile("adobe", curve("gamma", 563 / 256))
P3 = matrix_profile("p3", SRGB_CURVE)
PROPHOTO = matrix_profile("prophoto", curve("gamma", 1.8))
GREY_22 = profile(b"GRAY", {b"kTRC": curve("gamma", 2.2)})
GREY_15 = profile(b"GRAY", {b"kTRC": curve("table", 1.75)}, kind=b"prtr")
WIDE = {"adobe": ADOBE, "p3": P3, "prophoto": PROPHOTO}


def with_profile(samples: NDArray[np.generic], icc: bytes, pillow_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(samples).save(buffer, pillow_format, icc_profile=icc)
    return buffer.getvalue()


def written(photo: SourceImage, **options: object) -> bytes:
    buffer = io.BytesIO()
    write_image(photo, buffer, **options)  # type: ignore[arg-type]
    return buffer.getvalue()


def by_littlecms(samples: NDArray[np.generic], icc: bytes, mode: str = "RGB") -> NDArray[np.generic]:
    own = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    intent = ImageCms.Intent.RELATIVE_COLORIMETRIC
    image = Image.fromarray(samples, mode)
    converted = ImageCms.profileToProfile(image, own, ImageCms.createProfile("sRGB"), intent, "RGB")
    assert converted is not None
    return np.asarray(converted)


# --- curves -------------------------------------------------------------------------------------------------------


def test_the_curve_of_srgb() -> None:
    known = torch.tensor([0.0, 0.04045, 0.5, 1.0])
    torch.testing.assert_close(srgb_to_light(known), torch.tensor([0.0, 0.0031308, 0.2140411, 1.0]), atol=1e-6, rtol=0)
    wide = torch.linspace(-1.5, 2.5, 4001)
    torch.testing.assert_close(light_to_srgb(srgb_to_light(wide)), wide, atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("tag", "exact"),
    [
        (curve("gamma", 2.2), lambda x: x ** (563 / 256)),
        (curve("table", 1.8), lambda x: x**1.8),
        (b"curv" + bytes(8), lambda x: x),
        (curve(0, 2.4), lambda x: x**2.4),
        (curve(1, 2.0, 1.25, -0.25), lambda x: np.maximum(1.25 * x - 0.25, 0) ** 2),
        (curve(2, 2.0, 1.0, -0.25, 0.2), lambda x: np.maximum(x - 0.25, 0) ** 2 + 0.2),
        (curve(3, 2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045), None),
        (curve(4, 2.0, 0.9, 0.1, 0.18, 0.1, 0.0, 0.0), None),
    ],
)
def test_curves_and_their_inverses(tag: bytes, exact: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> None:
    tone, encoded = Curve(parse_curve(tag)), np.linspace(0, 1, 777)
    light = tone.to_light(torch.from_numpy(encoded).float())
    if exact is not None:
        np.testing.assert_allclose(light.numpy(), exact(encoded), atol=4e-5)
    again = tone.to_light(tone.to_encoded(light))
    torch.testing.assert_close(again, light, atol=2e-5, rtol=0)


@pytest.mark.parametrize(
    "tag",
    [b"", b"curv", b"para" + bytes(4) + b"\0\x09\0\0", b"text" + bytes(20), curve("table", 1)[:50], curve(1, 1, 0, 0)],
)
def test_broken_curves_are_refused(tag: bytes) -> None:
    with pytest.raises(ProfileError):
        Curve(parse_curve(tag))


# --- RGB ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WIDE)
def test_wide_gamuts_are_converted_like_littlecms(name: str) -> None:
    samples = RNG.integers(0, 256, (64, 64, 3)).astype(np.uint8)
    photo = read_image(with_profile(samples, WIDE[name]))
    expected = by_littlecms(samples, WIDE[name]).astype(int)
    found = to_samples(photo.rgb, 8).astype(int)
    # LittleCMS works in steps of its own on 8 bits: single values differ by 1, in steep shadows by 2.
    assert (np.abs(found - expected) <= 1).mean() > 0.995
    assert np.abs(found - expected).max() <= 3


@pytest.mark.parametrize(("name", "bits"), [("adobe", 8), ("p3", 16), ("prophoto", 8), ("prophoto", 16)])
def test_the_appearance_is_kept_to_the_last_bit(name: str, bits: int) -> None:
    """Colours outside sRGB's gamut too."""
    samples = RNG.integers(0, 2**bits, (50, 60, 3)).astype(np.uint8 if bits == 8 else np.uint16)
    metadata = ImageMetadata(icc=WIDE[name])
    # A 16-bit file with a profile, through an image that is written without any conversion.
    plain = SourceImage(torch.from_numpy(samples.astype(np.float32) / (2**bits - 1)).permute(2, 0, 1), bit_depth=bits)
    data = b"".join((written(plain)[:33], _iccp(WIDE[name]), written(plain)[33:]))
    photo = read_image(data)
    assert photo.metadata == metadata
    assert photo.gamut is not None
    assert float(photo.rgb.min()) >= 0
    assert float(photo.rgb.max()) <= 1
    again = written(photo)
    found = np.abs(_pixels(again).astype(int) - samples)
    if bits == 8:
        assert found.max() == 0
    else:
        # Near black a pure gamma curve is so steep that float32 is worth a few steps of 65535.
        assert np.percentile(found, 99) <= 2
        assert found.max() <= 64
    assert read_image(again).metadata.icc == WIDE[name]


def _iccp(icc: bytes) -> bytes:
    from omgsr_cli.imaging.write import _metadata_chunks

    return _metadata_chunks(ImageMetadata(icc=icc))


def _pixels(data: bytes) -> NDArray[np.generic]:
    """The samples stored in a PNG: read without its profile."""
    start = data.index(b"iCCP") - 4
    length = struct.unpack(">I", data[start : start + 4])[0]
    photo = read_image(data[:start] + data[start + 12 + length :])
    return to_samples(photo.rgb, photo.bit_depth)


@pytest.mark.parametrize("format_name", ["png", "jpg", "webp", "tiff", "avif"])
def test_an_upscaled_image_keeps_its_profile_and_appearance(format_name: str) -> None:
    # A saturated P3 red and green, outside sRGB, beside a grey.
    patches = np.array([[[250, 20, 10], [20, 250, 30], [120, 120, 120]]], np.uint8)
    samples = patches.repeat(16, axis=0).repeat(16, axis=1)
    photo = read_image(with_profile(samples, P3))
    larger = photo.restored(photo.rgb.repeat_interleave(4, 1).repeat_interleave(4, 2))
    data = written(larger, format=format_name)
    with Image.open(io.BytesIO(data)) as image:
        assert image.info["icc_profile"] == P3
        found = np.asarray(image.convert("RGB"))[32, [20, 96, 170]].astype(int)
    assert np.abs(found - patches[0]).max() <= 4


def test_metadata_none_keeps_the_profile() -> None:
    photo = read_image(with_profile(RNG.integers(0, 256, (9, 9, 3)).astype(np.uint8), ADOBE))
    with Image.open(io.BytesIO(written(photo, metadata="none"))) as image:
        assert image.info["icc_profile"] == ADOBE


def test_neutral_pixels_stay_neutral() -> None:
    greys = np.arange(256, dtype=np.uint8).repeat(3).reshape(16, 16, 3)
    for icc in WIDE.values():
        photo = read_image(with_profile(greys, icc))
        assert photo.is_neutral
        assert photo.gamut is None
        spread = photo.rgb.max(dim=0).values - photo.rgb.min(dim=0).values
        assert float(spread.max()) < 1e-4
        assert float(photo.rgb[:, -1, -1].min()) > 0.9999
        assert (_pixels(written(photo)) == greys).all()


@pytest.mark.parametrize(
    "icc", [ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(), matrix_profile("srgb", SRGB_CURVE)]
)
def test_an_srgb_profile_changes_nothing_and_is_kept(icc: bytes) -> None:
    samples = RNG.integers(0, 256, (20, 20, 3)).astype(np.uint8)
    assert load_profile(icc) is None
    photo = read_image(with_profile(samples, icc))
    np.testing.assert_array_equal(to_samples(photo.rgb, 8), samples)
    assert photo.metadata.icc == icc


def lab_of(light: NDArray[np.float64]) -> NDArray[np.float64]:
    """Linear sRGB to CIE L*a*b* under D50, last axis."""
    ratio = (light @ xyz_matrix("srgb").T) / D50
    root = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio * (29 / 6) ** 2 / 3 + 4 / 29)
    return np.stack(
        [116 * root[..., 1] - 16, 500 * (root[..., 0] - root[..., 1]), 200 * (root[..., 1] - root[..., 2])], axis=-1
    )


def table_tag(inputs: int, grid: int, nodes: NDArray[np.float64]) -> bytes:
    """A `mft2` table with straight curves; nodes are (grid ** inputs, 3) in [0, 1]."""
    head = b"mft2" + bytes(4) + bytes([inputs, 3, grid, 0]) + s15(1, 0, 0, 0, 1, 0, 0, 0, 1) + struct.pack(">HH", 2, 2)
    line = struct.pack(">HH", 0, 65535)
    return head + line * inputs + np.rint(nodes.clip(0, 1) * 65535).astype(">u2").tobytes() + line * 3


def encoded_lab(lab: NDArray[np.float64]) -> NDArray[np.float64]:
    """To the 16-bit encoding of `mft2`: 100 is 0xFF00, a* and b* of 0 are 0x8000."""
    return np.stack([lab[..., 0] / 100 * 0xFF00, (lab[..., 1] + 128) * 256, (lab[..., 2] + 128) * 256], axis=-1) / 65535


def table_profile(space: bytes, inputs: int, light: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> bytes:
    grid = 17 if inputs == 3 else 9
    steps = np.meshgrid(*[np.linspace(0, 1, grid)] * inputs, indexing="ij")
    nodes = encoded_lab(lab_of(light(np.stack(steps, axis=-1).reshape(-1, inputs))))
    tables = {b"A2B0": table_tag(inputs, grid, nodes)}
    back = np.stack(np.meshgrid(*[np.linspace(0, 1, 9)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    tables[b"B2A0"] = table_tag(3, 9, back) if inputs == 3 else table_tag(3, 9, back)[:-1]
    return profile(space, tables, pcs=b"Lab ", kind=b"prtr")


def test_a_table_profile_is_read_like_littlecms() -> None:
    icc = table_profile(b"RGB ", 3, lambda rgb: rgb**1.8)
    assert isinstance(load_profile(icc), TableProfile)
    samples = RNG.integers(30, 226, (20, 20, 3)).astype(np.uint8)
    photo = read_image(with_profile(samples, icc))
    exact = light_to_srgb(torch.from_numpy((samples / 255) ** 1.8)).permute(2, 0, 1).float()
    assert float((photo.rgb - exact).abs().mean()) < 0.01
    np.testing.assert_allclose(to_samples(photo.rgb, 8).astype(int), by_littlecms(samples, icc).astype(int), atol=1)
    assert photo.metadata.icc == icc


def element_tag(kind: bytes, nodes: NDArray[np.float64], grid: int) -> bytes:
    """A `mAB ` or `mBA ` of curves, a grid of 16 bits and, for the PCS, straight curves."""
    power = curve("gamma", 1.5) + bytes(2)
    straight = b"curv" + bytes(8)
    clut = bytes([grid] * 3 + [0] * 13 + [2, 0, 0, 0]) + np.rint(nodes.clip(0, 1) * 65535).astype(">u2").tobytes()
    clut += bytes(-len(clut) % 4)
    at = 32
    first, second = at + 3 * len(straight), at + 3 * len(straight) + len(clut)
    head = kind + bytes(4) + bytes([3, 3, 0, 0]) + struct.pack(">5I", at, 0, 0, first, second)
    return head + 3 * straight + clut + 3 * power


def tables_of(kind: str, gamma: float) -> bytes:
    """A profile of tables there and back, whose grids are too coarse to be inverses."""
    steps = np.stack(np.meshgrid(*[np.linspace(0, 1, 13)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    there = lab_of(steps**gamma)
    lab = steps * [100, 255, 255] - [0, 128, 128]
    root = np.stack(
        [(lab[:, 0] + 16) / 116 + lab[:, 1] / 500, (lab[:, 0] + 16) / 116, (lab[:, 0] + 16) / 116 - lab[:, 2] / 200]
    )
    ratio = np.where(root > 6 / 29, root**3, (root - 4 / 29) * 3 * (6 / 29) ** 2).T
    back = np.linalg.solve(xyz_matrix("srgb"), (ratio * D50).T).T.clip(0, 1) ** (1 / gamma)
    if kind == "mft2":
        tags = {b"A2B0": table_tag(3, 13, encoded_lab(there)), b"B2A0": table_tag(3, 13, back)}
    else:
        # Curves of 1.5 before the grid are undone by nodes that follow the rest of the power.
        there = lab_of(steps ** (gamma / 1.5))
        encoded = (there + np.array([0, 128, 128])) / [100, 255, 255]
        tags = {b"A2B0": element_tag(b"mAB ", encoded, 13), b"B2A0": element_tag(b"mBA ", back ** (1 / 1.5), 13)}
    return profile(b"RGB ", tags, pcs=b"Lab ", kind=b"prtr")


@pytest.mark.parametrize("kind", ["mft2", "mAB"])
def test_table_profiles_keep_all_16_bit_levels(kind: str) -> None:
    icc = tables_of(kind, 1.8)
    ramp = np.linspace(12000, 60000, 1024).round().astype(np.uint16).reshape(32, 32)
    samples = np.stack([ramp, ramp[::-1], np.full_like(ramp, 30000)], axis=-1)
    plain = written(SourceImage(torch.from_numpy(samples / np.float32(65535)).permute(2, 0, 1), bit_depth=16))
    data = plain[:33] + _iccp(icc) + plain[33:]
    photo = read_image(data)
    assert photo.notes == ()
    assert photo.metadata.icc == icc
    assert len(np.unique(to_samples(photo.rgb, 16)[..., 0])) > 900
    shown = by_littlecms((samples // 257).astype(np.uint8), icc).astype(int)
    assert np.abs(to_samples(photo.rgb, 8).astype(int) - shown).max() <= 2
    again = read_image(written(photo))
    assert again.metadata.icc == icc
    # Grids of 13 nodes are no exact inverses of each other.
    assert float((again.rgb - photo.rgb).abs().mean()) < 0.5 / 255
    assert float((again.rgb - photo.rgb).abs().quantile(0.9)) < 1 / 255


def test_a_one_way_profile_gives_srgb_with_a_note() -> None:
    whole = tables_of("mft2", 1.8)
    icc = whole.replace(b"B2A0", b"xxxx")
    samples = RNG.integers(40, 200, (9, 9, 3)).astype(np.uint8)
    photo = read_image(with_profile(samples, icc))
    assert len(photo.notes) == 1
    assert photo.metadata.icc is None
    torch.testing.assert_close(photo.rgb, read_image(with_profile(samples, whole)).rgb)


# --- grey, CMYK, Lab ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("icc", [GREY_22, GREY_15])
def test_grey_profiles(icc: bytes) -> None:
    samples = np.arange(256, dtype=np.uint8).reshape(16, 16)
    data = with_profile(samples, icc)
    photo = read_image(data)
    gamma = 563 / 256 if icc is GREY_22 else 1.75
    exact = light_to_srgb(torch.from_numpy(samples / 255.0) ** gamma).float()
    torch.testing.assert_close(photo.rgb[1], exact, atol=2e-3, rtol=0)
    again = written(photo)
    with Image.open(io.BytesIO(again)) as image:
        assert image.mode == "L"
        assert image.info["icc_profile"] == icc
        np.testing.assert_array_equal(np.asarray(image), samples)
    # WebP has no grey: the image is written as what it looks like.
    with Image.open(io.BytesIO(written(photo, format="webp"))) as image:
        assert "icc_profile" not in image.info
        assert np.abs(np.asarray(image)[..., 1] - to_samples(photo.rgb, 8)[..., 1].astype(int)).max() <= 4


def test_a_grey_profile_in_a_format_without_grey() -> None:
    greys = np.arange(256, dtype=np.uint8).reshape(16, 16)
    buffer = io.BytesIO()
    Image.fromarray(greys).save(buffer, "WEBP", lossless=True, icc_profile=GREY_15)
    photo = read_image(buffer.getvalue())
    assert photo.is_grey
    assert photo.notes == ()
    torch.testing.assert_close(photo.rgb, read_image(with_profile(greys, GREY_15)).rgb)


def test_cmyk_without_a_profile_is_converted_like_pillow() -> None:
    image = Image.fromarray(RNG.integers(0, 256, (16, 16, 4)).astype(np.uint8), "CMYK")
    buffer = io.BytesIO()
    image.save(buffer, "TIFF")
    photo = read_image(buffer.getvalue())
    np.testing.assert_array_equal(to_samples(photo.rgb, 8), np.asarray(image.convert("RGB")))
    assert photo.notes == ("CMYK was converted to sRGB",)
    assert photo.alpha is None
    with Image.open(io.BytesIO(written(photo))) as again:
        assert again.mode == "RGB"


def test_cmyk_is_converted_by_its_profile_which_is_then_dropped() -> None:
    icc = table_profile(b"CMYK", 4, lambda cmyk: ((1 - cmyk[..., :3]) * (1 - cmyk[..., 3:])) ** 1.3)
    samples = RNG.integers(0, 256, (16, 16, 4)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(samples, "CMYK").save(buffer, "JPEG", quality=100, subsampling=0, icc_profile=icc)
    with Image.open(buffer) as image:
        decoded = np.asarray(image)
    photo = read_image(buffer.getvalue())
    assert photo.metadata.icc is None
    assert photo.notes == ("CMYK was converted to sRGB",)
    expected = by_littlecms(decoded, icc, "CMYK").astype(int)
    # Black point compensation moves the darkest colours only.
    assert np.abs(to_samples(photo.rgb, 8) - expected).mean() < 4
    without = np.asarray(Image.fromarray(decoded, "CMYK").convert("RGB")).astype(int)
    assert np.abs(to_samples(photo.rgb, 8) - without).mean() > 8


def test_lab_is_converted() -> None:
    # L* of 100, 0 and 53.6; a* and b* are signed.
    lab = np.array([[[255, 0, 0], [0, 0, 0], [137, 0, 0]]], np.uint8)
    image = Image.fromarray(lab, "LAB")
    buffer = io.BytesIO()
    image.save(buffer, "TIFF")
    photo = read_image(buffer.getvalue())
    assert np.abs(to_samples(photo.rgb, 8)[0, :, 1].astype(int) - [255, 0, 128]).max() <= 2
    assert photo.notes == ("LAB was converted to sRGB",)


@pytest.mark.parametrize(
    "icc",
    [
        b"not a profile",
        ADOBE[:200],
        ADOBE[:132],
        GREY_22,
        profile(b"RGB ", {}),
        profile(b"RGB ", {b"A2B0": b"nonsense" * 4}),
        matrix_profile("adobe", curve("table", 2)[:60]),
        profile(b"CMYK", {}),
    ],
)
def test_a_broken_or_foreign_profile_is_ignored_with_a_note(icc: bytes) -> None:
    samples = RNG.integers(0, 256, (9, 9, 3)).astype(np.uint8)
    photo = read_image(with_profile(samples, icc, "WEBP" if len(icc) < 132 else "PNG"))
    assert photo.metadata.icc is None
    assert len(photo.notes) == 1
    assert photo.notes[0].startswith("the ICC profile was ignored: ")
    assert "\n" not in photo.notes[0]


def test_a_broken_cmyk_profile_is_ignored_with_a_note() -> None:
    image = Image.fromarray(RNG.integers(0, 256, (16, 16, 4)).astype(np.uint8), "CMYK")
    for icc in (b"broken", ADOBE, profile(b"CMYK", {})):
        buffer = io.BytesIO()
        image.save(buffer, "TIFF", icc_profile=icc)
        photo = read_image(buffer.getvalue())
        assert len(photo.notes) == 2
        np.testing.assert_array_equal(to_samples(photo.rgb, 8), np.asarray(image.convert("RGB")))


def test_an_rgb_profile_on_a_grey_image_is_ignored_with_a_note() -> None:
    photo = read_image(with_profile(RNG.integers(0, 256, (9, 9)).astype(np.uint8), ADOBE, "TIFF"))
    assert photo.is_grey
    assert photo.metadata.icc is None
    assert "RGB" in photo.notes[0]
    assert replace(photo, notes=()).notes == ()
