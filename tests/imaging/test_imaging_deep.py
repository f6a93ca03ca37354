"""10 to 16 bits are kept where a library can read them; otherwise a note reports the loss."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from omgsr_cli.errors import FileError
from omgsr_cli.files import folders
from omgsr_cli.files.inputs import FoundInput
from omgsr_cli.files.naming import Naming, Output
from omgsr_cli.imaging import probe_image, read_image, to_samples, write_image

needs_jxl = pytest.mark.skipif(not folders.has_reader("jxl"), reason="the extra jxl is not installed")


def ramp(bits: int, channels: int = 3) -> NDArray[np.uint16]:
    """Every level of so many bits, at most 4096 of them, black and white among them."""
    levels = np.rint(np.linspace(0, (1 << bits) - 1, min(1 << bits, 4096))).astype(np.uint16)
    plane = levels.reshape(32, -1)
    planes = np.stack([plane, plane[::-1], plane[:, ::-1]], 2)
    return planes if channels == 3 else plane


def spread(levels: NDArray[np.uint16], bits: int) -> NDArray[Any]:
    return np.rint(levels.astype(np.float64) * 65535 / ((1 << bits) - 1)).astype(np.uint16)


def written(kind: str, levels: NDArray[np.uint16], bits: int) -> bytes:
    codecs = pytest.importorskip("imagecodecs")
    if kind == "avif":
        return bytes(codecs.avif_encode(levels, level=100, bitspersample=bits, pixelformat="444"))
    if kind == "jxl":
        return bytes(codecs.jpegxl_encode(levels, lossless=True, bitspersample=bits))
    if kind == "jxl in boxes":
        return bytes(codecs.jpegxl_encode(levels, lossless=True, bitspersample=bits, usecontainer=True))
    codec = {"jp2": "jp2", "j2k": "j2k"}[kind]
    return bytes(codecs.jpeg2k_encode(levels, level=0, bitspersample=bits, codecformat=codec, reversible=True))


CASES = [("avif", 10), ("avif", 12), *((kind, bits) for kind in ("jp2", "j2k") for bits in (10, 12, 16))]
CASES += [(kind, bits) for kind in ("jxl", "jxl in boxes") for bits in (10, 12, 16)]


@needs_jxl
@pytest.mark.parametrize(("kind", "bits"), CASES)
def test_all_levels_survive(kind: str, bits: int) -> None:
    channels = 3 if bits == 12 else 1
    levels = ramp(bits, channels)
    data = written(kind, levels, bits)
    header, image = probe_image(data), read_image(data)
    assert header.bit_depth == image.bit_depth == 16
    assert not [note for note in image.notes if "bits" in note]
    assert image.size_px == header.size_px == levels.shape[:2]
    # Linear light, which imagecodecs writes into JPEG XL, is converted to sRGB; its levels stay apart.
    if "jxl" not in kind:
        expected = spread(levels, bits)
        found = to_samples(image.rgb, 16)
        expected = expected if channels == 3 else np.repeat(expected[..., None], 3, axis=2)
        # AVIF's colour is lossy even at its best quality.
        assert np.abs(found.astype(int) - expected).max() <= (600 if kind == "avif" else 16)
    assert len(np.unique(to_samples(image.rgb, 16)[..., 0])) > 0.9 * len(np.unique(levels))
    held = io.BytesIO()
    assert any("8 bits" in note for note in write_image(image, held)) == (kind == "avif")
    held = io.BytesIO()
    write_image(image, held, format="png")
    assert read_image(held.getvalue()).bit_depth == 16


@needs_jxl
@pytest.mark.parametrize("kind", ["avif", "jp2", "jxl"])
def test_without_the_library_a_note_reports_the_loss(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = written(kind, ramp(10), 10)
    for module in ("omgsr_cli.imaging.read", "omgsr_cli.imaging.decoders"):
        monkeypatch.setattr(f"{module}.has_reader", lambda kind: kind != "codecs")
    assert probe_image(data).bit_depth == 8
    image = read_image(data)
    assert image.bit_depth == 8
    [note] = [note for note in image.notes if "bits" in note]
    assert "10 bits" in note
    assert "omgsr-cli[codecs]" in note


@pytest.mark.parametrize("kind", ["AVIF", "JPEG2000", "PPM", "JXL"])
def test_eight_bits_stay_eight_without_a_note(kind: str) -> None:
    if kind == "JXL":
        pytest.importorskip("pillow_jxl")
    held = io.BytesIO()
    Image.fromarray(ramp(8).astype(np.uint8)).save(held, kind)
    image = read_image(held.getvalue())
    assert image.bit_depth == probe_image(held.getvalue()).bit_depth == 8
    assert image.notes == ()


@needs_jxl
@pytest.mark.parametrize("kind", ["avif", "jp2", "jxl"])
def test_missing_pixels_are_an_error(kind: str) -> None:
    data = written(kind, ramp(10), 10)
    for cut in (40, len(data) // 3):
        with pytest.raises(FileError):
            read_image(data[:-cut])


@pytest.mark.parametrize("largest", [1023, 4095, 65535])
def test_ppm_of_two_bytes(largest: int) -> None:
    levels = ramp(largest.bit_length())
    data = b"P6\n%d %d\n%d\n" % (levels.shape[1], levels.shape[0], largest) + levels.astype(">u2").tobytes()
    image = read_image(data)
    assert image.bit_depth == probe_image(data).bit_depth == 16
    np.testing.assert_array_equal(to_samples(image.rgb, 16), spread(levels, largest.bit_length()))
    with pytest.raises(FileError, match="truncated"):
        read_image(data[:-1])


def test_a_deep_avif_becomes_a_png_of_16_bits(tmp_path: Path) -> None:
    for bits, kind in ((8, "avif"), (10, "deep avif"), (12, "deep avif")):
        codecs = pytest.importorskip("imagecodecs")
        levels = ramp(bits).astype(np.uint8 if bits == 8 else np.uint16)
        (tmp_path / "a.avif").write_bytes(codecs.avif_encode(levels, bitspersample=bits))
        assert folders.format_of_content(tmp_path / "a.avif") == kind
        found = FoundInput(tmp_path / "a.avif", Path("a.avif"))
        name = Naming(Output("beside"), None, "_x4", "same").destination(found).name
        assert name == ("a_x4.avif" if bits == 8 else "a_x4.png")
