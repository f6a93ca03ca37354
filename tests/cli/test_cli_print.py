"""`omgsr upscale` for prints: --print, --dpi and --keep-times."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from command_line import Command, draw, size_of
from PIL import Image

from omgsr_cli.geometry import Size, plan_output_size
from omgsr_cli.options import SizeOptions


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ((20, 30), (200, 300)),
        ((30, 20), (300, 200)),
        ((20, 20), (200, 200)),
        ((10, 40), (75, 300)),
        ((7, 9), (200, 257)),
    ],
)
def test_the_largest_size_that_fits_a_sheet(source: tuple[int, int], expected: tuple[int, int]) -> None:
    assert plan_output_size(Size(*source), SizeOptions(print=(300, 200)), 4) == expected


@pytest.mark.parametrize(
    ("arguments", "size", "dpi"),
    [
        (("--print", "2x1cm", "--dpi", "127"), (71, 50), 127),
        (("--print", "10x20mm", "--dpi", "127"), (71, 50), 127),
        (("--print", "0.4x0.2in"), (86, 60), 300),
        (("--scale", "2", "--dpi", "scale"), (40, 28), 144),
        (("--scale", "2", "--dpi", "keep"), (40, 28), 72),
        (("--scale", "2"), (40, 28), 72),
        (("--scale", "2", "--dpi", "600"), (40, 28), 600),
    ],
)
def test_size_and_resolution_of_a_print(
    arguments: tuple[str, ...], size: tuple[int, int], dpi: int, omgsr: Command, tmp_path: Path
) -> None:
    source, result = draw(tmp_path / "a.png", dpi=(72, 72)), tmp_path / "b.png"
    assert omgsr(str(source), "-o", str(result), *arguments).code == 0
    assert size_of(result) == size
    with Image.open(result) as image:
        assert image.info["dpi"] == pytest.approx((dpi, dpi), abs=0.02)
    # Another resolution is another result.
    assert omgsr(str(source), "-o", str(result), *arguments).code == 0
    assert omgsr(str(source), "-o", str(result), *arguments[:2], "--dpi", "99").code == 1


def test_impossible_prints_are_refused(omgsr: Command, tmp_path: Path) -> None:
    source = draw(tmp_path / "a.png")
    for arguments in (
        ("--print", "20cm"),
        ("--print", "20x30"),
        ("--print", "0x30cm"),
        ("--print", "2.2.2x3cm"),
        ("--print", "2x3cm", "--dpi", "scale"),
        ("--print", "2x3cm", "--scale", "2"),
        ("--dpi", "many"),
        ("--dpi", "0"),
        ("--dpi", "nan"),
        ("--dpi", "100000"),
    ):
        said = omgsr(source, *arguments)
        assert said.code == 2, arguments
        assert arguments[1] in said.err or arguments[0] in said.err
        assert "hint:" in said.err
        assert "Traceback" not in said.err


def test_file_times_are_kept_on_request(omgsr: Command, tmp_path: Path) -> None:
    source = draw(tmp_path / "a.png")
    os.utime(source, (1_000_000_000, 1_100_000_000))
    results = [tmp_path / "b.png", tmp_path / "b_compare.png"]
    assert omgsr(str(source), "-o", str(results[0]), "--keep-times", "--compare").code == 0
    assert {int(path.stat().st_mtime) for path in tmp_path.glob("b*.png")} == {1_100_000_000}
    assert len(list(tmp_path.glob("b*.png"))) == len(results)
    # It is known as finished nevertheless.
    before = results[0].stat()
    assert omgsr(str(source), "-o", str(results[0]), "--keep-times", "--compare").code == 0
    assert results[0].stat().st_ctime_ns == before.st_ctime_ns
    assert omgsr(str(source), "-o", str(tmp_path / "c.png")).code == 0
    assert (tmp_path / "c.png").stat().st_mtime > 1_500_000_000
    assert omgsr(str(source), "-o", "-", "--keep-times").code == 2
