"""Malicious input ends in one line and touches nothing outside."""

from __future__ import annotations

import io
import json
import shutil
import struct
from itertools import islice
from pathlib import Path

import fuzz_images
import numpy as np
import pytest
from command_line import Command, draw, files_below
from PIL import Image

from omgsr_cli.errors import FileError
from omgsr_cli.imaging import read_image

# Images


def test_damaged_images_give_an_image_or_one_line() -> None:
    """A few of what `tests/fuzz_images.py` runs for a minute in CI, and for longer by its `--seconds`."""
    tried = list(islice(fuzz_images.damaged_files(seed=3), 360))
    faults = [f"{name}: {fault}" for name, data in tried if (fault := fuzz_images.find_fault(name, data))]
    assert not faults, faults
    assert len({data for _, data in tried}) > 350


def test_the_fuzz_finds_a_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(data: bytes, name: str) -> None:
        raise ZeroDivisionError("in the reader")

    monkeypatch.setattr(fuzz_images, "read_image", fail)
    data = fuzz_images.make_samples()["png"]
    assert fuzz_images.find_fault("x", data) == "fail: ZeroDivisionError: in the reader"


def tiff_with_width(width: int) -> bytes:
    """A whole small TIFF whose header states another width: tag 256, as a 4-byte number."""
    held = io.BytesIO()
    Image.fromarray(np.zeros((23, 31, 3), np.uint8)).save(held, "TIFF")
    content = bytearray(held.getvalue())
    place = next(place for kind in (3, 4) if (place := content.find(bytes([0, 1, kind, 0, 1, 0, 0, 0]))) >= 0)
    content[place : place + 12] = bytes([0, 1, 4, 0, 1, 0, 0, 0]) + width.to_bytes(4, "little")
    return bytes(content)


@pytest.mark.parametrize(
    ("width", "message"),
    [
        (32, "the file is truncated"),
        (1 << 24, r"16777216x23 pixels, more than \d+ bytes can hold"),
        (1 << 31, "more than 1000 megapixels"),
    ],
)
def test_a_header_that_asks_for_more_than_the_file_holds_is_refused(width: int, message: str) -> None:
    assert read_image(tiff_with_width(31), "x.tif").size_px == (23, 31)
    with pytest.raises(FileError, match=message):
        read_image(tiff_with_width(width), "x.tif")


def test_channels_of_different_depths_and_a_missing_palette() -> None:
    held = io.BytesIO()
    Image.fromarray(np.zeros((23, 31, 3), np.uint8)).save(held, "TIFF")
    content = held.getvalue()
    depths = content.index(struct.pack("<HHH", 8, 8, 8))
    mixed = content[:depths] + struct.pack("<HHH", 8, 8, 16) + content[depths + 6 :]
    assert fuzz_images.find_fault("x.tif", mixed) is None
    with pytest.raises(FileError):
        read_image(mixed, "x.tif")
    held = io.BytesIO()
    Image.fromarray(np.zeros((23, 31), np.uint8)).quantize(7).save(held, "PNG")
    content = held.getvalue()
    palette = content.index(b"PLTE") - 4
    length = 12 + struct.unpack(">I", content[palette : palette + 4])[0]
    assert fuzz_images.find_fault("x.png", content[:palette] + content[palette + length :]) is None


def test_a_large_flat_image_is_not_a_bomb() -> None:
    held = io.BytesIO()
    Image.new("1", (6000, 4000)).save(held, "PNG")
    assert len(held.getvalue()) < 12_000
    assert read_image(held.getvalue(), "x.png").size_px == (4000, 6000)


# Names


NASTY = [
    "line\nbreak.png",
    "\x1b[31mred\x1b[0m.png",
    "back\x08space.png",
    "over\u202egnp.exe.png",
    "bell\x07.png",
    "[bold]x[].png",
]


@pytest.mark.parametrize("name", NASTY)
def test_names_are_restored_and_shown_escaped(omgsr: Command, tmp_path: Path, name: str) -> None:
    draw(tmp_path / "in" / name)
    (tmp_path / "in" / f"bad {name}").write_text("no image")
    said = omgsr(tmp_path / "in", "-o", tmp_path / "out", "--verbose")
    assert said.code == 1
    assert files_below(tmp_path / "out") == [name]
    # Programs that read the results get the exact name.
    assert said.out.decode() == f"{tmp_path / 'out' / name}\n"
    assert len(said.errors) == 1
    lines = said.err.split("\n")[:-1]
    assert all(line.isprintable() for line in lines), said.err


@pytest.mark.parametrize("stem", ["n" * 251, "\U0001f600" * 62])
def test_names_of_255_bytes(omgsr: Command, tmp_path: Path, stem: str) -> None:
    path = draw(tmp_path / "in" / f"{stem}.png", 8, 6)
    assert omgsr(path, "-o", tmp_path / "out").code == 0
    assert files_below(tmp_path / "out") == [f"{stem}.png"]
    beside = omgsr(path)
    assert beside.code == (1 if len(f"{stem}_x4.png".encode()) > 255 else 0)
    assert len(beside.errors) == beside.code
    assert len(files_below(tmp_path / "in")) == 2 - beside.code


# Configurations and models


def test_deeply_nested_toml_is_one_line(
    omgsr: Command, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    draw(tmp_path / "in" / "a.png")
    deep = tmp_path / "deep.toml"
    deep.write_text("x = " + "[" * 100_000)
    said = Command(capfdbinary, "timestep")("--data", tmp_path / "in", "--degradation", deep)
    assert (said.code, len(said.errors)) == (2, 1)
    assert "deep.toml" in said.err
    said = Command(capfdbinary, "train")(deep)
    assert said.code != 0
    assert len(said.errors) == 1
    assert "Traceback" not in said.err


@pytest.mark.parametrize("name", ["omgsr.json", "config.json"])
def test_deeply_nested_json_is_one_line(omgsr: Command, model: Path, tmp_path: Path, name: str) -> None:
    own = shutil.copytree(model, tmp_path / "model")
    (own / name).write_text("[" * 100_000)
    draw(tmp_path / "a.png")
    said = omgsr(tmp_path / "a.png", "--model", own)
    assert (said.code, len(said.errors)) == (1, 1)
    assert name in said.errors[0]


def test_a_false_header_is_one_line(omgsr: Command, model: Path, tmp_path: Path) -> None:
    own = shutil.copytree(model, tmp_path / "model")
    weights = own / "model.safetensors"
    content = weights.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    name = next(key for key in header if key != "__metadata__")
    header[name]["data_offsets"] = [0, 1 << 50]
    text = json.dumps(header).encode()
    weights.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])
    draw(tmp_path / "a.png")
    said = omgsr(tmp_path / "a.png", "--model", own)
    assert (said.code, len(said.errors)) == (1, 1)
    assert "invalid shape, data type, or offset" in said.errors[0]


def test_a_pickle_is_never_opened(omgsr: Command, tmp_path: Path) -> None:
    payload = b"cos\nsystem\n(S'touch " + str(tmp_path / "ran").encode() + b"'\ntR."
    draw(tmp_path / "a.png")
    for name in ("weights.bin", "weights.pt", "weights.ckpt", "weights.pkl"):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / name).write_bytes(payload)
        # Networks in a single file are read by spandrel, which makes tensors only.
        assert omgsr(tmp_path / "a.png", "--model", folder / name).code == 1
        said = omgsr(tmp_path / "a.png", "--model", folder)
        assert said.code == 1
        assert "is a pickle, which can run code when it is read" in said.err
    assert not (tmp_path / "ran").exists()


def test_an_unwritable_home_is_no_obstacle(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("OMGSR_HOME", str(tmp_path / "file"))
    models = Command(capfdbinary, "models")
    said = models("pull", "omgsr-s-512")
    assert (said.code, len(said.errors)) == (1, 1)
    assert "Not a directory" in said.errors[0]
    assert "OMGSR_HOME" in said.err
    assert models("list").code == 0
