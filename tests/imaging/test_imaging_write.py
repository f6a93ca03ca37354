"""Writing images: round trips, limits of formats, and atomic files."""

from __future__ import annotations

import errno
import io
import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin

from omgsr_cli.errors import FileError, ShapeError, UsageError
from omgsr_cli.files.atomic import write_atomically
from omgsr_cli.files.containers import read_record
from omgsr_cli.imaging import (
    ImageMetadata,
    SourceImage,
    check_output,
    from_samples,
    luma,
    output_format,
    probe_image,
    read_image,
    to_samples,
    write_image,
)

RNG = np.random.default_rng(3)
FORMATS = ["png", "jpg", "webp", "tiff", "avif"]
RECORD = '{"scale":4,"model":"omgsr-tiny","text":"Zażółć"}'


def build_exif(padding: int = 0) -> bytes:
    exif = Image.Exif()
    exif[0x010F] = "Maker" + "!" * padding
    exif[0x8769] = {0x9003: "2020:01:02 03:04:05", 0xA002: 999, 0xA003: 888, 0x9286: b"ASCII\0\0\0a note"}
    exif[0x8825] = {1: "N", 2: (52.0, 30.0, 0.0)}
    return exif.tobytes()[6:]


METADATA = ImageMetadata(
    exif=build_exif(),
    xmp=b'<x:xmpmeta xmlns:x="adobe:ns:meta/">caf\xc3\xa9</x:xmpmeta>',
    dpi=(300.0, 300.0),
    text=(("Comment", "a day out"),),
)


def image_of(
    channels: int, bits: int = 8, size: tuple[int, int] = (13, 17), metadata: ImageMetadata = METADATA
) -> SourceImage:
    dtype = np.uint8 if bits == 8 else np.uint16
    planes = from_samples(RNG.integers(0, 2**bits, (*size, channels)).astype(dtype))
    colors = 1 if channels < 3 else 3
    return SourceImage(
        rgb=planes[:colors].expand(3, -1, -1).contiguous(),
        alpha=planes[colors:] if channels in (2, 4) else None,
        bit_depth=bits,
        is_grey=colors == 1,
        is_neutral=colors == 1,
        metadata=metadata,
    )


def written(photo: SourceImage, **options: object) -> bytes:
    stream = io.BytesIO()
    write_image(photo, stream, **options)  # type: ignore[arg-type]
    return stream.getvalue()


# --- pixels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_name", ["png", "tiff"])
@pytest.mark.parametrize("bits", [8, 16])
def test_lossless_formats_keep_every_bit(bits: int, format_name: str) -> None:
    for size, channels in product([(1, 1), (1, 30), (13, 17)], [1, 2, 3, 4]):
        photo = image_of(channels, bits, size)
        again = read_image(written(photo, format=format_name))
        assert torch.equal(again.rgb, photo.rgb), (size, channels)
        assert again.bit_depth == bits
        # Grey with alpha and 16 bits has no reader as TIFF: it is written as RGBA.
        assert again.is_grey == (channels < 3 and not (format_name == "tiff" and channels == 2))
        assert (again.alpha is None) == (photo.alpha is None)
        if again.alpha is not None and photo.alpha is not None:
            assert torch.equal(again.alpha, photo.alpha), (size, channels)


@pytest.mark.parametrize("channels", [1, 3])
def test_pillow_reads_our_8_bit_files_equally(channels: int) -> None:
    photo = image_of(channels)
    expected = to_samples(photo.rgb[:channels], 8).squeeze()
    for format_name in ("png", "tiff"):
        with Image.open(io.BytesIO(written(photo, format=format_name))) as image:
            np.testing.assert_array_equal(np.asarray(image), expected)


def test_a_16_bit_png_of_many_bands() -> None:
    # Wider than what is filtered at once, so that filters reach over a band's border.
    smooth = np.add.outer(np.arange(40) * 900, np.arange(30_000))[..., None] % 65536
    photo = SourceImage(from_samples(smooth.astype(np.uint16)).expand(3, -1, -1).contiguous(), bit_depth=16)
    data = written(photo)
    assert torch.equal(read_image(data).rgb, photo.rgb)
    assert len(data) < 40 * 30_000 * 6 / 10


@pytest.mark.parametrize(
    ("channels", "format_name"), [(1, "jpg"), (3, "jpg"), (3, "webp"), (4, "webp"), (1, "avif"), (4, "avif")]
)
def test_lossy_formats_come_close(channels: int, format_name: str) -> None:
    ramp = torch.linspace(0, 1, 64).expand(64, 64)
    rgb = torch.stack([ramp, ramp.T, 1 - ramp]) if channels > 1 else ramp.expand(3, -1, -1)
    alpha = (0.5 + ramp.T[None] / 2).contiguous() if channels == 4 else None
    photo = SourceImage(rgb, alpha, bit_depth=16, is_grey=channels == 1, is_neutral=channels == 1)
    again = read_image(written(photo, format=format_name))
    assert float((again.rgb - rgb).abs().mean()) < 0.02
    assert (again.alpha is None) == (alpha is None)
    assert again.bit_depth == 8


def test_quality_changes_the_size() -> None:
    photo = image_of(3, size=(64, 64))
    for format_name in ("jpg", "webp", "avif"):
        low, default = written(photo, format=format_name, quality=20), written(photo, format=format_name)
        assert len(low) < len(default) / 2
    for quality in (0, 101):
        with pytest.raises(UsageError, match=f"{quality}"):
            written(photo, format="jpg", quality=quality)


def test_jpeg_keeps_the_colors_full_resolution() -> None:
    with Image.open(io.BytesIO(written(image_of(3), format="jpg"))) as image:
        assert [layer[1:3] for layer in image.layer] == [(1, 1)] * 3  # type: ignore[attr-defined]


def test_rounding_is_half_to_even_and_clips() -> None:
    values = torch.tensor([-1.0, 0.5 / 255, 1.5 / 255, 2.5 / 255, 254.5 / 255, 3.0, float("inf")])
    exact = torch.tensor([0, 0, 2, 2, 254, 255, 255], dtype=torch.uint8)
    assert to_samples(values.double().expand(1, 1, -1), 8).ravel().tolist() == exact.tolist()
    every = np.arange(65536, dtype=np.uint16).reshape(1, -1, 1)
    np.testing.assert_array_equal(to_samples(from_samples(every), 16), every)


def test_a_neutral_images_result_loses_a_tint() -> None:
    tinted = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(1))
    grey = replace(image_of(1), metadata=ImageMetadata()).restored(tinted)
    expected = np.asarray(Image.fromarray(to_samples(tinted, 8)).convert("L")).astype(int)
    again = read_image(written(grey))
    assert again.is_grey
    assert np.abs(to_samples(again.rgb[:1], 8)[..., 0].astype(int) - expected).max() <= 1
    neutral = read_image(written(replace(grey, is_grey=False)))
    assert (neutral.is_grey, neutral.is_neutral) == (False, True)
    assert torch.equal(neutral.rgb, again.rgb)


def test_luma_keeps_neutral_values_exactly() -> None:
    ramp = torch.linspace(0, 1, 1001).reshape(1, 7, 143)
    assert torch.equal(luma(ramp.expand(3, -1, -1)), ramp)


# --- metadata -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("format_name", FORMATS)
def test_metadata_is_kept(format_name: str) -> None:
    photo = image_of(3)
    restored = photo.restored(torch.rand(3, 26, 34))
    again = read_image(written(restored, format=format_name))
    exif = Image.Exif()
    exif.load(again.metadata.exif or b"")
    assert exif[0x010F] == "Maker"
    inner = exif.get_ifd(0x8769)
    assert inner[0x9003] == "2020:01:02 03:04:05"
    assert inner[0x9286] == b"ASCII\0\0\0a note"
    assert (inner[0xA002], inner[0xA003]) == (34, 26)
    assert exif.get_ifd(0x8825)[2] == (52.0, 30.0, 0.0)
    assert again.metadata.xmp == METADATA.xmp
    if format_name in ("png", "jpg", "tiff"):
        assert again.metadata.dpi == pytest.approx((300, 300), abs=0.02)
    if format_name in ("png", "jpg"):
        assert again.metadata.text == METADATA.text


@pytest.mark.parametrize("format_name", ["webp", "avif"])
def test_resolution_is_stored_in_exif_if_the_format_has_no_field(format_name: str) -> None:
    data = written(image_of(3, metadata=ImageMetadata(dpi=(300.0, 150.0))), format=format_name)
    exif = Image.Exif()
    exif.load(read_image(data).metadata.exif or b"")
    assert (exif[0x011A], exif[0x011B], exif[0x0128]) == (300, 150, 2)


@pytest.mark.parametrize("format_name", FORMATS)
def test_metadata_none_leaves_the_profile_alone(format_name: str) -> None:
    data = written(image_of(3), format=format_name, metadata="none", record=RECORD)
    assert read_image(data).metadata == ImageMetadata()
    assert read_record(data) is None
    assert b"Maker" not in data


def test_metadata_too_long_for_a_jpeg_is_dropped_with_a_note() -> None:
    metadata = replace(METADATA, exif=build_exif(70_000), xmp=b"<x>" + b"x" * 70_000 + b"</x>")
    notes = write_image(image_of(3, metadata=metadata), io.BytesIO(), format="jpg")
    assert len(notes) == 2
    assert all("too long" in note for note in notes)
    assert write_image(image_of(3, metadata=metadata), io.BytesIO(), format="png") == ()


@pytest.mark.filterwarnings("error")
@settings(max_examples=30, deadline=None)
@given(changes=st.lists(st.tuples(st.integers(8, 200), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_exif_never_loses_the_image(changes: list[tuple[int, int]]) -> None:
    damaged = bytearray(build_exif())
    for place, value in changes:
        damaged[place % len(damaged)] = value
    photo = image_of(3, metadata=ImageMetadata(exif=bytes(damaged)))
    for format_name in FORMATS:
        assert read_image(written(photo, format=format_name)).size_px == (13, 17)


# --- the record ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "format_name"), [*((3, name) for name in FORMATS), (1, "jpg"), (1, "png"), (4, "webp"), (4, "tiff")]
)
def test_the_record_is_read_back_and_changes_no_pixel(channels: int, format_name: str, tmp_path: Path) -> None:
    path = tmp_path / "image"
    for metadata, record in ((METADATA, RECORD), (ImageMetadata(), "{}"), (ImageMetadata(), "x" * 60_000)):
        photo = image_of(channels, metadata=metadata)
        plain, marked = written(photo, format=format_name), written(photo, format=format_name, record=record)
        path.write_bytes(marked)
        assert read_record(plain) is None
        assert read_record(marked) == read_record(path) == record
        first, second = read_image(plain), read_image(marked)
        assert torch.equal(first.rgb, second.rgb)
        assert first.metadata == second.metadata


def test_a_lossless_webp_and_one_with_an_odd_length_take_a_record() -> None:
    from omgsr_cli.files.containers import with_record

    image = Image.fromarray(RNG.integers(0, 256, (5, 300, 4)).astype(np.uint8))
    for options in ({"lossless": True, "exact": True}, {"quality": 30}):
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", **options)
        marked = b"".join(with_record("webp", [buffer.getvalue()], "odd"))
        assert read_record(marked) == "odd"
        with Image.open(io.BytesIO(marked)) as again, Image.open(buffer) as before:
            assert again.mode == before.mode
            np.testing.assert_array_equal(np.asarray(again), np.asarray(before))


@pytest.mark.parametrize("format_name", FORMATS)
def test_other_programs_ignore_the_record(format_name: str) -> None:
    """No comment, text or unknown tag: Pillow reports the same for both files."""
    photo = image_of(3, metadata=METADATA)
    told = []
    for record in (None, RECORD):
        data = written(photo, format=format_name, record=record)
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            tags = dict(getattr(image, "tag_v2", {}))
            told.append((repr(sorted(image.info.items(), key=str)), sorted(tags), getattr(image, "text", None)))
    assert told[0] == told[1]


def test_files_without_a_record_have_none(tmp_path: Path) -> None:
    assert read_record(tmp_path / "missing.png") is None
    assert read_record(tmp_path) is None
    for data in (b"", b"text", b"\xff\xd8", b"RIFF\0\0\0\0WEBP", b"II*\0\xff\xff\xff\xff", b"\0\0\0\0ftyp" + bytes(9)):
        assert read_record(data) is None


def test_a_foreign_comment_is_no_record_and_ours_no_comment() -> None:
    image = Image.new("RGB", (8, 8))
    buffer = io.BytesIO()
    text = PngImagePlugin.PngInfo()
    text.add_itxt("omgsr-like", "not ours")
    image.save(buffer, "PNG", pnginfo=text)
    assert read_record(buffer.getvalue()) is None
    data = written(image_of(3, metadata=ImageMetadata(text=(("Comment", "mine"),))), format="jpg", record=RECORD)
    assert read_image(data).metadata.text == (("Comment", "mine"),)


# --- formats ------------------------------------------------------------------------------------------------------


def test_names_of_formats() -> None:
    assert [output_format("same", name) for name in ("jpg", "bmp", "gif", "jp2")] == ["jpg", "png", "png", "png"]
    assert output_format("webp", "jpg") == "webp"
    with pytest.raises(UsageError, match="bmp"):
        output_format("bmp", "png")


@pytest.mark.parametrize(
    ("format_name", "size"),
    [("webp", (16384, 8)), ("webp", (8, 16384)), ("jpg", (65501, 8)), ("avif", (40000, 8)), ("avif", (20000, 20000))],
)
def test_sizes_beyond_the_format_are_refused_first(format_name: str, size: tuple[int, int]) -> None:
    with pytest.raises(FileError, match=f"{size[1]}x{size[0]} is too large for {format_name}"):
        check_output("a", format_name, size, False)


@pytest.mark.parametrize("format_name", ["webp", "jpg"])
def test_the_largest_side_can_be_written(format_name: str) -> None:
    side = 16383 if format_name == "webp" else 65500
    photo = SourceImage(torch.zeros(3, 1, side))
    assert probe_image(written(photo, format=format_name)).size_px == (1, side)


def test_a_jpeg_takes_no_transparency_but_an_opaque_alpha() -> None:
    photo = image_of(4)
    with pytest.raises(FileError, match="no transparency") as caught:
        written(photo, format="jpg")
    assert "png" in (caught.value.hint or "")
    opaque = photo.restored(photo.rgb, torch.ones_like(photo.alpha))  # type: ignore[arg-type]
    assert read_image(written(opaque, format="jpg")).alpha is None


def test_a_format_that_this_pillow_cannot_write(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.features.check", lambda name: False)
    with pytest.raises(FileError, match="cannot write avif"):
        written(image_of(3), format="avif")


def test_pixels_of_a_wrong_shape_are_refused() -> None:
    photo = image_of(3)
    for rgb, alpha in (
        (torch.rand(4, 4), None),
        (torch.rand(1, 4, 4), None),
        (torch.rand(3, 4, 4), torch.rand(1, 4, 5)),
    ):
        with pytest.raises(ShapeError):
            photo.restored(rgb, alpha)


# --- whole or absent ----------------------------------------------------------------------------------------------


def test_a_file_appears_whole_with_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "new" / "deeper" / "a.png"
    before = os.umask(0o027)
    try:
        write_image(image_of(3), path)
    finally:
        os.umask(before)
    assert read_image(path).size_px == (13, 17)
    assert [entry.name for entry in path.parent.iterdir()] == ["a.png"]
    assert path.stat().st_mode & 0o777 == 0o640


def test_nothing_is_overwritten_without_the_option(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"precious")
    with pytest.raises(FileError, match="already exists") as caught:
        write_image(image_of(3), path)
    assert "--overwrite" in (caught.value.hint or "")
    assert path.read_bytes() == b"precious"
    write_image(image_of(3), path, overwrite=True)
    assert read_image(path).size_px == (13, 17)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("links", [True, False])
def test_a_file_that_appears_meanwhile_is_not_overwritten(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not links:
        forbid_links(monkeypatch)
    path = tmp_path / "a.png"

    def parts() -> Iterator[bytes]:
        yield b"mine"
        path.write_bytes(b"theirs")

    with pytest.raises(FileError, match="already exists"):
        write_atomically(path, parts())
    assert path.read_bytes() == b"theirs"
    assert len(list(tmp_path.iterdir())) == 1


def forbid_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)


def test_file_systems_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_links(monkeypatch)
    write_atomically(tmp_path / "a", [b"one", b"two"])
    assert (tmp_path / "a").read_bytes() == b"onetwo"
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(FileError, match="Input/output error"):
        write_atomically(tmp_path / "b", [b"one"])
    assert [entry.name for entry in tmp_path.iterdir()] == ["a"]


def test_one_of_many_writers_wins(tmp_path: Path) -> None:
    path, outcomes = tmp_path / "a", []

    def write(number: int) -> None:
        try:
            write_atomically(path, [bytes([number]) * 1000])
            outcomes.append(number)
        except FileError:
            outcomes.append(None)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [outcome for outcome in outcomes if outcome is not None]
    assert len(winners) == 1
    assert path.read_bytes() == bytes(winners) * 1000
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    ("failure", "overwrite"), [(KeyboardInterrupt(), False), (OSError(errno.ENOSPC, "No space left on device"), True)]
)
def test_a_failure_leaves_nothing_behind(failure: BaseException, overwrite: bool, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    if overwrite:
        path.write_bytes(b"before")

    def parts() -> Iterator[bytes]:
        yield b"half"
        raise failure

    with pytest.raises(KeyboardInterrupt if isinstance(failure, KeyboardInterrupt) else FileError):
        write_atomically(path, parts(), overwrite=overwrite)
    assert [entry.read_bytes() for entry in tmp_path.iterdir()] == ([b"before"] if overwrite else [])


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "the disk is full"), (errno.EACCES, "no permission to write"), (errno.EROFS, "read-only")],
)
def test_system_errors_are_words(number: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: int) -> None:
        raise OSError(number, "no")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(FileError, match=words) as caught:
        write_image(image_of(3), tmp_path / "a.png")
    assert str(tmp_path / "a.png") in caught.value.message
    # Not every command that writes has -o.
    assert caught.value.hint
    assert "-o" not in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_impossible_places_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FileError, match="a file, not a folder"):
        write_image(image_of(3), tmp_path / "file" / "a.png")
    with pytest.raises(FileError, match="a file, not a folder"):
        write_image(image_of(3), tmp_path / "file" / "deeper" / "a.png")
    with pytest.raises(FileError, match="it is a folder"):
        write_image(image_of(3), tmp_path, overwrite=True)
    with pytest.raises(FileError, match="too long"):
        write_image(image_of(3), tmp_path / ("a" * 300 + ".png"))
    long_name = tmp_path / ("a" * 250 + ".png")
    write_image(image_of(3), long_name)
    assert long_name.exists()


def test_a_stream_that_breaks() -> None:
    class Full(io.BytesIO):
        def write(self, _: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    class Closed(io.BytesIO):
        def write(self, _: object) -> int:
            raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    with pytest.raises(FileError, match="disk is full"):
        write_image(image_of(3), Full())
    with pytest.raises(BrokenPipeError):
        write_image(image_of(3), Closed())
