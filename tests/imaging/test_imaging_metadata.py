"""Metadata is rotated, scaled and moved to the format of the result, or dropped with a note."""

from __future__ import annotations

import io
import json
import shutil
import struct
import subprocess
import zlib
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, TiffImagePlugin
from PIL.TiffImagePlugin import IFDRational
from test_imaging_color import chunk, png
from test_imaging_profiles import ADOBE

from omgsr_cli.imaging import ImageMetadata, SourceImage, read_image, write_image
from omgsr_cli.imaging.image import TURNS
from omgsr_cli.imaging.metadata import (
    Placement,
    XmpError,
    iptc_resources,
    parse_xmp,
    placed_exif,
    placed_xmp,
    raw_profile_chunk,
)

RGB = np.random.default_rng(4).integers(0, 256, (48, 64, 3)).astype(np.uint8)
FORMATS = ["png", "jpg", "webp", "tiff", "avif"]
#: 64x48 stored, turned to the right by orientation 6, upscaled by four.
TURNED = Placement(6, (48, 64), (256, 192))
ENLARGED = Placement(1, (48, 64), (192, 256))


def jpeg(*segments: bytes, **options: object) -> bytes:
    """A JPEG with segments after its first."""
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "JPEG", **options)
    data = buffer.getvalue()
    return data[:20] + b"".join(segments) + data[20:]


def segment(marker: int, content: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content


def upscaled(data: bytes, format_name: str = "same") -> tuple[bytes, tuple[str, ...]]:
    """What the command does to a file, without a model: four times the size, and all notes."""
    photo = read_image(data)
    rgb = photo.rgb.repeat_interleave(4, 1).repeat_interleave(4, 2)
    buffer = io.BytesIO()
    notes = write_image(photo.restored(rgb), buffer, format=format_name)
    return buffer.getvalue(), photo.notes + notes


def kept(data: bytes, format_name: str = "same") -> ImageMetadata:
    return read_image(upscaled(data, format_name)[0]).metadata


def tags_of(data: bytes | None) -> Image.Exif:
    exif = Image.Exif()
    exif.load(data or b"")
    return exif


# --- places -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("orientation", range(1, 9))
def test_positions_are_rotated_like_pixels(orientation: int) -> None:
    stored = np.zeros((6, 10, 1), np.uint8)
    stored[1, 7] = 1
    upright = TURNS[orientation](stored)
    place = Placement(orientation, (6, 10), (upright.shape[0] * 3, upright.shape[1] * 3))
    x, y = place.point(7.5, 1.5)
    row, column, _ = np.argwhere(upright)[0]
    assert (x, y) == pytest.approx(((column + 0.5) * 3, (row + 0.5) * 3))
    assert place.extent(10, 6) == pytest.approx((upright.shape[1] * 3, upright.shape[0] * 3))


# --- EXIF ---------------------------------------------------------------------------------------------------------


def exif_about_pixels(subject: tuple[int, ...], orientation: int = 6) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x8769] = {
        0x9214: subject,
        0x9102: 4.5,
        0xA002: 64,
        0xA003: 48,
        0xA005: {1: "R98", 0x1001: 64, 0x1002: 48},
        0xA20E: IFDRational(1000),
        0xA20F: IFDRational(500),
        0xA210: 2,
        0xA214: (32, 24),
        0xA434: "a lens",
    }
    return exif.tobytes()[6:]


@pytest.mark.parametrize(
    ("subject", "expected"),
    [((10, 20), (112, 40)), ((10, 20, 6), (112, 40, 24)), ((32, 24, 10, 8), (96, 128, 32, 40))],
)
def test_exif_positions_are_rotated_and_scaled(subject: tuple[int, ...], expected: tuple[int, ...]) -> None:
    inner = tags_of(placed_exif(exif_about_pixels(subject), TURNED)).get_ifd(0x8769)
    assert tuple(inner[0x9214]) == expected
    assert tuple(inner[0xA214]) == (96, 128)
    assert (inner[0xA002], inner[0xA003]) == (192, 256)
    assert inner[0xA434] == "a lens"
    assert 0x9102 not in inner
    # The sensor's pixels cannot be turned with the image.
    assert 0xA20E not in inner
    related = tags_of(placed_exif(exif_about_pixels(subject), TURNED)).get_ifd(0xA005)
    assert (related[0x1001], related[0x1002]) == (192, 256)
    upright = tags_of(placed_exif(exif_about_pixels(subject), ENLARGED)).get_ifd(0x8769)
    assert (float(upright[0xA20E]), float(upright[0xA20F])) == (4000, 2000)
    assert (upright[0xA002], upright[0xA003]) == (256, 192)


def test_exif_sides_beyond_16_bits() -> None:
    exif = placed_exif(exif_about_pixels((60, 40)), Placement(1, (48, 64), (48 * 2000, 64 * 2000)))
    inner = tags_of(exif).get_ifd(0x8769)
    assert (inner[0xA002], inner[0xA003]) == (128000, 96000)
    # A subject has 16 bits only.
    assert 0x9214 not in inner


@pytest.mark.parametrize("format_name", FORMATS)
def test_subject_areas_survive_a_file(format_name: str) -> None:
    metadata = kept(jpeg(exif=b"Exif\0\0" + exif_about_pixels((32, 24, 10, 8))), format_name)
    assert tuple(tags_of(metadata.exif).get_ifd(0x8769)[0x9214]) == (96, 128, 32, 40)


def test_the_orientation_of_a_tiff_is_applied_to_its_metadata() -> None:
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "TIFF", tiffinfo={274: 6, 700: region("0.25", "0.25", "0.2", "0.1")})
    data, _ = upscaled(buffer.getvalue())
    assert numbers_of(read_image(data).metadata.xmp, "x", "y", "w", "h") == ["0.75", "0.25", "0.1", "0.2"]


def exif_with_maker_note(note: bytes) -> bytes:
    """EXIF of two directories, with a note that counts its offsets from the start of it all."""
    inner_at = 8 + 2 + 12 + 4
    note_at = inner_at + 2 + 2 * 12 + 4
    outer = struct.pack("<HHHIII", 1, 0x8769, 4, 1, inner_at, 0)
    date = struct.pack("<HHI4s", 0x9000, 7, 4, b"0232")
    inner = struct.pack("<H", 2) + date + struct.pack("<HHII", 0x927C, 7, len(note), note_at) + bytes(4)
    return b"II*\0\x08\0\0\0" + outer + inner + note


def test_a_maker_note_keeps_its_offset_or_is_dropped_with_a_note() -> None:
    fixed = exif_with_maker_note(struct.pack("<HHHII", 1, 6, 2, 10, 70) + bytes(4) + b"IMG:own\0\0\0")
    for format_name in FORMATS:
        data, notes = upscaled(jpeg(exif=b"Exif\0\0" + fixed), format_name)
        found = read_image(data).metadata.exif or b""
        inner = tags_of(found).get_ifd(0x8769)
        assert inner[0x9000] == b"0232"
        if format_name == "tiff":
            assert 0x927C not in inner
            assert len(notes) == 1
        else:
            assert found.index(b"IMG:own") == fixed.index(b"IMG:own")
            assert notes == ()
    movable = exif_with_maker_note(b"Apple iOS\0\0\x01MM\0\0")
    data, notes = upscaled(jpeg(exif=b"Exif\0\0" + movable), "tiff")
    assert tags_of(read_image(data).metadata.exif).get_ifd(0x8769)[0x927C].startswith(b"Apple iOS")
    assert notes == ()


# --- XMP ----------------------------------------------------------------------------------------------------------

NAMESPACES = {
    "rdf": "http://www.w3.org/1999/02/22-rdf-syntax-ns#",
    "tiff": "http://ns.adobe.com/tiff/1.0/",
    "exif": "http://ns.adobe.com/exif/1.0/",
    "xmp": "http://ns.adobe.com/xap/1.0/",
    "dc": "http://purl.org/dc/elements/1.1/",
    "crs": "http://ns.adobe.com/camera-raw-settings/1.0/",
    "GPano": "http://ns.google.com/photos/1.0/panorama/",
    "GCamera": "http://ns.google.com/photos/1.0/camera/",
    "Container": "http://ns.google.com/photos/1.0/container/",
    "Item": "http://ns.google.com/photos/1.0/container/item/",
    "hdrgm": "http://ns.adobe.com/hdr-gain-map/1.0/",
    "mwg-rs": "http://www.metadataworkinggroup.com/schemas/regions/",
    "stArea": "http://ns.adobe.com/xmp/sType/Area#",
    "stDim": "http://ns.adobe.com/xap/1.0/sType/Dimensions#",
    "MPReg": "http://ns.microsoft.com/photo/1.2/t/Region#",
    "MP": "http://ns.microsoft.com/photo/1.2/",
    "Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/",
    "xmpNote": "http://ns.adobe.com/xmp/note/",
    "my": "urn:my",
}


def packet(properties: str = "", attributes: str = "") -> bytes:
    names = " ".join(f'xmlns:{name}="{address}"' for name, address in NAMESPACES.items())
    return (
        f'<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF {names}>'
        f'<rdf:Description rdf:about="" {attributes}>{properties}</rdf:Description></rdf:RDF></x:xmpmeta>'
        f'<?xpacket end="w"?>'
    ).encode()


def region(x: str, y: str, w: str, h: str, unit: str = "normalized", *, elements: bool = False) -> bytes:
    """A face as Lightroom and Picasa (attributes) or exiftool (elements) write it."""
    fields = {"x": x, "y": y, "w": w, "h": h, "unit": unit}
    area = (
        '<mwg-rs:Area rdf:parseType="Resource">'
        + "".join(f"<stArea:{name}>{value}</stArea:{name}>" for name, value in fields.items())
        + "</mwg-rs:Area>"
        if elements
        else "<mwg-rs:Area " + " ".join(f'stArea:{name}="{value}"' for name, value in fields.items()) + "/>"
    )
    return packet(
        '<mwg-rs:Regions rdf:parseType="Resource"><mwg-rs:AppliedToDimensions stDim:w="64" stDim:h="48" '
        f'stDim:unit="pixel"/><mwg-rs:RegionList><rdf:Bag><rdf:li rdf:parseType="Resource">{area}'
        "<mwg-rs:Name>A</mwg-rs:Name></rdf:li></rdf:Bag></mwg-rs:RegionList></mwg-rs:Regions>"
    )


def numbers_of(xmp: bytes | None, *names: str, space: str = "stArea") -> list[str]:
    """Fields of the first structure that has them."""
    document = parse_xmp(xmp or b"")
    found = []
    for name in names:
        elements = document.getElementsByTagNameNS(NAMESPACES[space], name)
        values = [element.firstChild.data for element in elements if element.firstChild]  # type: ignore[union-attr]
        values += [
            element.getAttributeNS(NAMESPACES[space], name)
            for element in document.getElementsByTagName("*")
            if element.hasAttributeNS(NAMESPACES[space], name)
        ]
        found.append(values[0] if values else "")
    return found


@pytest.mark.parametrize("elements", [False, True])
def test_faces_are_turned(elements: bool) -> None:
    xmp, notes = placed_xmp(region("0.3", "0.25", "0.2", "0.1", elements=elements), TURNED)
    assert numbers_of(xmp, "x", "y", "w", "h") == ["0.75", "0.3", "0.1", "0.2"]
    assert numbers_of(xmp, "w", "h", space="stDim") == ["192", "256"]
    assert notes == ()
    scaled, _ = placed_xmp(region("32", "12", "10", "8", "pixel", elements=elements), ENLARGED)
    assert numbers_of(scaled, "x", "y", "w", "h") == ["128", "48", "40", "32"]


def test_microsofts_faces_are_turned() -> None:
    xmp, _ = placed_xmp(packet('<my:a MPReg:Rectangle="0.1, 0.2, 0.3, 0.4"/>'), TURNED)
    assert numbers_of(xmp, "Rectangle", space="MPReg") == ["0.4, 0.1, 0.4, 0.3"]


def test_iptc_regions_are_turned() -> None:
    boundary = (
        '<Iptc4xmpExt:RegionBoundary rdf:parseType="Resource"><Iptc4xmpExt:rbUnit>{}</Iptc4xmpExt:rbUnit>'
        "<Iptc4xmpExt:rbX>{}</Iptc4xmpExt:rbX><Iptc4xmpExt:rbY>{}</Iptc4xmpExt:rbY>"
        "<Iptc4xmpExt:rbW>{}</Iptc4xmpExt:rbW><Iptc4xmpExt:rbH>{}</Iptc4xmpExt:rbH></Iptc4xmpExt:RegionBoundary>"
    )
    names = ("rbX", "rbY", "rbW", "rbH")
    xmp, _ = placed_xmp(packet(boundary.format("relative", 0.1, 0.2, 0.3, 0.4)), TURNED)
    assert numbers_of(xmp, *names, space="Iptc4xmpExt") == ["0.4", "0.1", "0.4", "0.3"]
    xmp, _ = placed_xmp(packet(boundary.format("pixel", 8, 6, 16, 12)), ENLARGED)
    assert numbers_of(xmp, *names, space="Iptc4xmpExt") == ["32", "24", "64", "48"]


def test_pixel_sizes_in_xmp() -> None:
    attributes = (
        'tiff:ImageWidth="64" tiff:ImageLength="48" exif:PixelXDimension="64" tiff:Orientation="6" dc:format="image/x" '
        'GPano:FullPanoWidthPixels="128" GPano:CroppedAreaImageHeightPixels="48" GPano:CroppedAreaTopPixels="7" '
        'tiff:BitsPerSample="8" crs:CropLeft="0.1"'
    )
    elements = (
        "<exif:PixelYDimension>48</exif:PixelYDimension><exif:SubjectArea><rdf:Seq><rdf:li>32</rdf:li><rdf:li>24"
        "</rdf:li><rdf:li>10</rdf:li><rdf:li>8</rdf:li></rdf:Seq></exif:SubjectArea><dc:title>kept</dc:title>"
        "<xmp:Thumbnails><rdf:Alt><rdf:li>stale</rdf:li></rdf:Alt></xmp:Thumbnails>"
    )
    xmp, notes = placed_xmp(packet(elements, attributes), ENLARGED, "image/png")
    assert notes == ()
    assert numbers_of(xmp, "ImageWidth", "ImageLength", "Orientation", space="tiff") == ["256", "192", "1"]
    assert numbers_of(xmp, "PixelXDimension", "PixelYDimension", space="exif") == ["256", "192"]
    pano = ("FullPanoWidthPixels", "CroppedAreaImageHeightPixels", "CroppedAreaTopPixels")
    assert numbers_of(xmp, *pano, space="GPano") == ["512", "192", "28"]
    assert [li.firstChild.data for li in parse_xmp(xmp).getElementsByTagName("rdf:li")] == ["128", "96", "40", "32"]  # type: ignore[union-attr]
    assert numbers_of(xmp, "format", "title", space="dc") == ["image/png", "kept"]
    assert numbers_of(xmp, "CropLeft", space="crs") == ["0.1"]
    assert b"stale" not in xmp
    assert b"BitsPerSample" not in xmp
    turned, notes = placed_xmp(packet(elements, attributes), TURNED)
    assert len(notes) == 1
    assert b"CropLeft=" not in turned
    assert b"Pixels=" not in turned
    assert [li.firstChild.data for li in parse_xmp(turned).getElementsByTagName("rdf:li")] == ["96", "128", "32", "40"]  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("properties", "attributes"),
    [
        ("", 'GCamera:MotionPhoto="1" GCamera:MicroVideoOffset="2024"'),
        ("<GCamera:MotionPhoto>1</GCamera:MotionPhoto>", ""),
        ("<Container:Directory><rdf:Seq><rdf:li/></rdf:Seq></Container:Directory>", 'hdrgm:Version="1.0"'),
        ("<hdrgm:GainMapMax><rdf:Seq><rdf:li>2</rdf:li></rdf:Seq></hdrgm:GainMapMax>", ""),
        ("", 'xmlns:later="http://ns.adobe.com/hdr-gain-map/2.0/" later:Version="2.0"'),
    ],
)
def test_xmp_about_dropped_data_is_removed_with_a_note(properties: str, attributes: str) -> None:
    data, notes = upscaled(jpeg(xmp=packet(properties + "<dc:title>kept</dc:title>", attributes)))
    xmp = read_image(data).metadata.xmp or b""
    assert len(notes) == 1
    assert b">kept<" in xmp
    for gone in (b"<Container:", b"<GCamera:", b"<hdrgm:", b" GCamera:", b" hdrgm:"):
        assert gone not in xmp


def test_xmp_without_pixel_counts_is_not_rewritten() -> None:
    xmp = packet("<dc:title>a  title</dc:title>", "my:odd='one &amp; two'") + b"   "
    assert placed_xmp(xmp, TURNED)[0] is xmp


def test_unreadable_xmp_is_dropped_with_a_note() -> None:
    bomb = b'<!DOCTYPE x [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><x>&b;</x>'
    deep = b"<a>" * 50_000 + b"</a>" * 50_000
    for xmp in (bomb, b"<x", b"\xff\xfe\0", deep):
        with pytest.raises(XmpError):
            placed_xmp(xmp, TURNED)
    data, notes = upscaled(jpeg(xmp=bomb))
    assert len(notes) == 1
    assert read_image(data).metadata.xmp is None


def test_invalid_numbers_are_removed() -> None:
    xmp, _ = placed_xmp(
        packet('<my:a MPReg:Rectangle="left"/>', 'GPano:CroppedAreaTopPixels="?" my:b="kept"'), ENLARGED
    )
    assert b"left" not in xmp
    assert b'"?"' not in xmp
    assert b'"kept"' in xmp


def test_a_value_with_qualifiers_is_replaced() -> None:
    value = "<rdf:Description><rdf:value>6</rdf:value><tiff:Compression>1</tiff:Compression></rdf:Description>"
    xmp, _ = placed_xmp(packet(f"<tiff:Orientation>{value}</tiff:Orientation><dc:title>kept</dc:title>"), TURNED)
    assert b">1</tiff:Orientation>" in xmp
    assert b"Compression" not in xmp
    assert b">kept<" in xmp


def test_extended_xmp_is_joined_and_split_again() -> None:
    long = packet("<my:long>" + "word " * 30_000 + "</my:long><dc:title>a title</dc:title>")
    photo = SourceImage(torch.rand(3, 16, 16), format="jpg", metadata=ImageMetadata(xmp=long))
    buffer = io.BytesIO()
    assert write_image(photo, buffer) == ()
    data = buffer.getvalue()
    with Image.open(io.BytesIO(data)) as image:
        main = image.info["xmp"]
        assert b"a title" in main
        assert b"HasExtendedXMP" in main
        assert b"word" not in main
    for format_name in FORMATS:
        again = kept(data, format_name)
        assert (again.xmp or b"").count(b"word ") == 30_000
        assert b"HasExtendedXMP=" not in (again.xmp or b"")
        assert numbers_of(again.xmp, "title", space="dc") == ["a title"]
    # One of its segments is lost.
    start = data.index(b"http://ns.adobe.com/xmp/extension/") - 4
    length = struct.unpack_from(">H", data, start + 2)[0]
    damaged = read_image(data[:start] + data[start + 2 + length :])
    assert len(damaged.notes) == 1
    assert b"a title" in (damaged.metadata.xmp or b"")


def test_metadata_that_no_jpeg_can_hold() -> None:
    metadata = ImageMetadata(xmp=b"<a>" + b"x" * 70_000 + b"</a>")
    photo = SourceImage(torch.rand(3, 8, 8), metadata=metadata)
    assert len(write_image(photo, io.BytesIO(), format="jpg")) == 1
    assert write_image(photo, io.BytesIO(), format="png") == ()


# --- IPTC, comments, texts ----------------------------------------------------------------------------------------


def iim(*sets: tuple[int, bytes]) -> bytes:
    return b"".join(b"\x1c\x02" + struct.pack(">BH", number, len(content)) + content for number, content in sets)


IPTC = iim((5, b"Title"), (25, b"sea"), (25, b"harbour"), (120, "Zażółć".encode()))
WITH_PREVIEW = IPTC + iim((200, b"\0\1"), (202, b"a preview"))


@pytest.mark.parametrize(
    ("source", "format_name"),
    [("jpg", name) for name in FORMATS]
    + [(source, "jpg") for source in ("tiff", "tiff of longs", "tiff of swapped longs", "png", "png of 8bim")],
)
def test_iptc_is_kept_or_noted(source: str, format_name: str) -> None:
    if source == "jpg":
        block = iptc_resources(WITH_PREVIEW)
        # In two segments, as a long block is.
        data = jpeg(*(segment(0xED, b"Photoshop 3.0\0" + part) for part in (block[:30], block[30:])))
    elif source.startswith("tiff"):
        buffer = io.BytesIO()
        padded = WITH_PREVIEW + bytes(-len(WITH_PREVIEW) % 4)
        if "swapped" in source:
            padded = b"".join(padded[start : start + 4][::-1] for start in range(0, len(padded), 4))
        directory = TiffImagePlugin.ImageFileDirectory_v2()
        directory.tagtype[33723] = 7
        directory[33723] = WITH_PREVIEW if source == "tiff" else padded
        Image.fromarray(RGB).save(buffer, "TIFF", tiffinfo=directory)
        data = buffer.getvalue()
        if source != "tiff":
            numbers = struct.pack("<HHI", 33723, 4, len(padded) // 4)
            data = data.replace(struct.pack("<HHI", 33723, 7, len(padded)), numbers)
    else:
        content = WITH_PREVIEW if source == "png" else iptc_resources(WITH_PREVIEW)
        data = png(RGB, chunk(b"zTXt", raw_profile_chunk("iptc", content)))
    assert read_image(data).metadata.iptc == IPTC
    result, notes = upscaled(data, format_name)
    if format_name in ("webp", "avif"):
        assert len(notes) == 1
        assert "IPTC" in notes[0]
    else:
        assert notes == ()
        assert read_image(result).metadata.iptc == IPTC


def test_a_long_iptc_block() -> None:
    long = iim(*[(25, bytes([65 + i % 26]) * 2000) for i in range(80)])
    photo = SourceImage(torch.rand(3, 8, 8), metadata=ImageMetadata(iptc=long))
    for format_name in ("jpg", "png", "tiff"):
        buffer = io.BytesIO()
        assert write_image(photo, buffer, format=format_name) == ()
        assert read_image(buffer.getvalue()).metadata.iptc == long


def test_all_comments_of_a_jpeg_are_kept() -> None:
    data = jpeg(segment(0xFE, b"first"), segment(0xFE, "zwölf".encode()))
    expected = (("Comment", "first"), ("Comment", "zwölf"))
    assert kept(data, "jpg").text == expected
    assert kept(data, "png").text[:1] == expected[-1:]
    for format_name in ("webp", "tiff", "avif"):
        assert len(upscaled(data, format_name)[1]) == 1


def test_texts_that_a_format_cannot_hold_are_noted() -> None:
    data = png(RGB, chunk(b"tEXt", b"Title\0a title"), chunk(b"tEXt", b"Comment\0a comment"))
    _, notes = upscaled(data, "jpg")
    assert len(notes) == 1
    assert "Title" in notes[0]
    assert upscaled(data, "png")[1] == ()


def test_raw_profiles_of_a_png() -> None:
    exif, xmp = exif_about_pixels((1, 2), 1), packet("<dc:title>a title</dc:title>")
    chunks = [
        chunk(b"zTXt", raw_profile_chunk(kind, content))
        for kind, content in (("APP1", b"Exif\0\0" + exif), ("xmp", xmp), ("icc", ADOBE))
    ]
    photo = read_image(png(RGB, *chunks))
    assert tags_of(photo.metadata.exif).get_ifd(0x8769)[0xA434] == "a lens"
    assert photo.metadata.xmp == xmp
    assert photo.metadata.icc == ADOBE
    assert photo.metadata.text == ()
    unknown = chunk(b"zTXt", b"Raw profile type odd\0\0" + zlib.compress(b"\nodd\n 1\n00\n"))
    corrupt = chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(b"\nexif\n 1\nno hex\n"))
    assert len(read_image(png(RGB, unknown, corrupt)).notes) == 2


def test_dropped_photoshop_paths_are_noted() -> None:
    block = b"8BIM" + struct.pack(">HHI", 2000, 0, 2) + b"xx"
    assert len(upscaled(jpeg(segment(0xED, b"Photoshop 3.0\0" + block)))[1]) == 1


# --- by an independent reader -------------------------------------------------------------------------------------


def camera_jpeg() -> bytes:
    """A JPEG as a camera and an editor leave it."""
    exif = Image.Exif()
    exif[0x010F], exif[0x0110], exif[0x0112] = "Maker", "Model 5", 1
    exif[0x011A], exif[0x011B], exif[0x0128] = 300.0, 300.0, 2
    exif[0x8298] = "(c) A. Person"
    exif[0x8769] = {
        0x829A: 0.004,
        0x829D: 5.6,
        0x8827: 400,
        0x9000: b"0232",
        0x9003: "2020:01:02 03:04:05",
        0x920A: 85.0,
        0xA001: 65535,
        0xA434: "EF85mm f/1.8",
        0xA431: "0123456789",
    }
    exif[0x8825] = {
        0: b"\2\3\0\0",
        1: "N",
        2: (52.0, 30.0, 15.5),
        3: "W",
        4: (13.0, 24.0, 0.25),
        5: b"\0",
        6: 34.5,
        29: "2020:01:02",
    }
    xmp = packet(
        "<dc:subject><rdf:Bag><rdf:li>sea</rdf:li><rdf:li>harbour</rdf:li></rdf:Bag></dc:subject>"
        '<dc:title><rdf:Alt><rdf:li xml:lang="x-default">Zażółć</rdf:li></rdf:Alt></dc:title>',
        'xmp:Rating="4" xmp:Label="Red" crs:Exposure2012="+0.50"',
    )
    block = segment(0xED, b"Photoshop 3.0\0" + iptc_resources(IPTC))
    return jpeg(block, segment(0xFE, b"a comment"), exif=exif, xmp=xmp, icc_profile=ADOBE, dpi=(300, 300))


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="needs exiftool (Debian: libimage-exiftool-perl)")
def test_exiftool_reads_a_round_trip(tmp_path: Path) -> None:
    source, results = tmp_path / "a.jpg", [tmp_path / f"b.{format_name}" for format_name in FORMATS]
    source.write_bytes(camera_jpeg())
    for result, format_name in zip(results, FORMATS, strict=True):
        result.write_bytes(upscaled(source.read_bytes(), format_name)[0])
        assert read_image(result.read_bytes()).metadata.icc == ADOBE
    command = ["exiftool", "-json", "-G1", "-n", "-charset", "iptc=UTF8", str(source), *map(str, results)]
    report = subprocess.run(command, capture_output=True, check=True, timeout=60)
    before, *found = json.loads(report.stdout)
    for format_name, after in zip(FORMATS, found, strict=True):
        groups = ["IFD0", "ExifIFD", "GPS", "XMP-dc", "XMP-xmp", "XMP-crs", "ICC_Profile", "ICC-header", "ICC-view"]
        if format_name not in ("webp", "avif"):
            groups.append("IPTC")
        expected = {name: value for name, value in before.items() if name.split(":")[0] in groups}
        # These three EXIF keeps in every file; a TIFF's directory and a PNG's EXIF hold no more than is listed here.
        assert len(expected) > 35
        # Pillow leaves out the orientation of an AVIF: its pixels are upright.
        left_out = {"IFD0:Orientation"} if format_name in ("avif", "tiff") else set()
        lost = {name: value for name, value in expected.items() if name not in left_out and after.get(name) != value}
        assert (format_name, lost) == (format_name, {})
        assert "ExifTool:Warning" not in after


# --- resolution ---------------------------------------------------------------------------------------------------


def resolutions(data: bytes) -> list[tuple[float, float]]:
    """Each that a file gives: in its own header, in EXIF and in XMP."""
    metadata = read_image(data).metadata
    found = [metadata.dpi] if metadata.dpi else []
    exif = tags_of(metadata.exif)
    if 0x011A in exif:
        found.append((float(exif[0x011A]), float(exif[0x011B])))
    if metadata.xmp:
        across, down = numbers_of(metadata.xmp, "XResolution", "YResolution", space="tiff")
        found.append((float(Fraction(across)), float(Fraction(down))))
    return found


@pytest.mark.parametrize(
    ("format_name", "dpi", "expected"),
    [
        *((name, "scale", (1200, 800)) for name in FORMATS),
        ("jpg", "keep", (300, 200)),
        ("png", 333.5, (333.5, 333.5)),
        ("tiff", "keep", (300, 200)),
        ("webp", 240, (240, 240)),
    ],
)
def test_the_resolution_is_equal_in_all_fields(
    dpi: str | float, expected: tuple[float, float], format_name: str
) -> None:
    exif = Image.Exif()
    exif[0x010F], exif[0x011A], exif[0x011B], exif[0x0128] = "Maker", 300.0, 200.0, 2
    xmp = packet("", 'tiff:XResolution="300/1" tiff:YResolution="200/1" tiff:ResolutionUnit="2"')
    photo = read_image(jpeg(exif=exif, xmp=xmp, dpi=(300, 200)))
    rgb = photo.rgb.repeat_interleave(4, 1).repeat_interleave(4, 2)
    buffer = io.BytesIO()
    assert write_image(photo.restored(rgb), buffer, format=format_name, dpi=dpi) == ()  # type: ignore[arg-type]
    found = resolutions(buffer.getvalue())
    assert len(found) >= 2
    for resolution in found:
        # JFIF has whole numbers.
        assert resolution == pytest.approx(expected, abs=0.6 if format_name == "jpg" else 0.02)


@pytest.mark.parametrize("format_name", FORMATS)
def test_no_resolution_is_invented(format_name: str) -> None:
    photo = SourceImage(torch.rand(3, 8, 8))
    for metadata in ("keep", "none"):
        buffer = io.BytesIO()
        write_image(photo, buffer, format=format_name, metadata=metadata, dpi=300)  # type: ignore[arg-type]
        assert read_image(buffer.getvalue()).metadata.dpi == pytest.approx((300, 300), abs=0.02)
    assert len(write_image(photo, io.BytesIO(), format=format_name, dpi="scale")) == 1
    buffer = io.BytesIO()
    write_image(photo, buffer, format=format_name)
    assert read_image(buffer.getvalue()).metadata.dpi is None


def test_a_turned_image_turns_its_resolution() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert read_image(jpeg(exif=exif, dpi=(300, 150))).metadata.dpi == (150, 300)


@pytest.mark.parametrize("mark", [b"MotionPhoto_Data", b"\0\0\0\x18ftypmp42"])
def test_a_video_behind_a_jpeg_is_noted_without_xmp_too(mark: bytes) -> None:
    photo = read_image(jpeg() + bytes(40) + mark + bytes(400))
    assert len(photo.notes) == 1
    assert "motion photo" in photo.notes[0]
    assert not any("motion" in note for note in read_image(jpeg()).notes)
