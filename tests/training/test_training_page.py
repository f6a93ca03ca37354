"""`omgsr train --report`: a run on one self-contained page."""

from __future__ import annotations

import base64
import io
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from command_line import Command
from page_elements import Elements
from PIL import Image

from omgsr_cli.errors import FileError, UsageError
from omgsr_cli.training.logs import (
    Curve,
    choose_grids,
    mean_of_ends,
    plot_curves,
    read_curves,
    running_mean,
    write_run_page,
)

NASTY = '</dd><script>alert(1)</script>"&'


def write_run(folder: Path, rows: int = 200, grids: int = 9, width: int = 1300) -> Path:
    """A run of two losses, one of which comes later, with validations and a checkpoint's configuration."""
    folder.mkdir(parents=True)
    lines = [f"{10 * n},{1 / n:.6g},{'' if n < 50 else 0.5},{'nan' if n == 3 else 2}" for n in range(1, rows + 1)]
    # The last row is still being written.
    (folder / "log.csv").write_text("\n".join([f"step,l1,<gan>,norm{NASTY}", *lines, "2010,0.0"]))
    scores = [f"{500 * n},{20 + n}" for n in range(1, grids + 1)]
    (folder / "validation.csv").write_text("\n".join(["step,psnr_y", *scores, ""]))
    (folder / "validation").mkdir()
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (width // 2, width, 3)).astype(np.uint8))
    noise.save(folder / "grid.png", compress_level=0)
    for n in range(1, grids + 1):
        shutil.copyfile(folder / "grid.png", folder / "validation" / f"step-{500 * n:08d}.png")
    (folder / "validation" / "other.png").write_bytes(b"")
    (folder / "step-00000500").mkdir()
    (folder / "step-00000500" / "config.toml").write_text(f"[train]\nsteps = 4500\n[save]\nout = '{NASTY}'\n")
    return folder


def test_the_page_embeds_curves_and_grids(train: Command, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    said = train("--report", run)
    assert (said.code, said.lines) == (0, [str(run / "report.html")])
    text = (run / "report.html").read_text("utf-8")
    assert "{{" not in text
    assert not re.search(r"https?://|<link|@import|url\(", text)
    parsed = Elements(text)
    images = [attrs for tag, attrs in parsed.elements if tag == "img"]
    plots, grids = images[:2], images[2:]
    assert [str(attrs["alt"]) for attrs in plots] == [f"l1, <gan>, norm{NASTY} over steps", "psnr_y over steps"]
    for attrs, rows in zip(plots, (2, 1), strict=True):
        with Image.open(io.BytesIO(base64.b64decode(str(attrs["src"]).removeprefix("data:image/png;base64,")))) as plot:
            assert plot.height == pytest.approx(rows * 2.6 * 110, abs=2)
            assert len(plot.convert("RGB").getcolors(2**24) or ()) > 10
    assert len([tag for tag, _ in parsed.elements if tag == "script"]) == 1
    steps = [heading for heading in parsed.texts["summary"] if heading.startswith("step ")]
    assert steps == ["step 4500", "step 3500", "step 3000", "step 2000", "step 1500", "step 500"]
    assert len(grids) == 6
    for attrs in grids:
        source = str(attrs["src"])
        with Image.open(io.BytesIO(base64.b64decode(source.removeprefix("data:image/jpeg;base64,")))) as shown:
            assert shown.size == (1200, 600) == (int(str(attrs["width"])), int(str(attrs["height"])))
    assert "4500 of 4500 steps" in text
    # Even if every image is noise.
    assert len(text) < 9_000_000


def test_foreign_files_are_kept(train: Command, tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", grids=1, width=30)
    for _ in range(2):
        assert train("--report", run).code == 0, "it can be written again during the run"
    (run / "report.html").write_text("<p>my notes</p>")
    said = train("--report", run)
    assert said.code == 1
    assert "is not a page that omgsr train wrote" in said.err
    assert (run / "report.html").read_text() == "<p>my notes</p>"
    said = train("--report", tmp_path)
    assert said.code == 2
    assert "is not the folder of a run: it has no log.csv" in said.err
    assert train("--report", run, "--check").code == 2


def test_a_run_that_has_just_begun_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("step,l1\n")
    text = write_run_page(tmp_path).read_text("utf-8")
    assert "No row has been written yet." in text
    assert "omgsr train, 0 steps" in text


def test_only_whole_numbers_become_points(tmp_path: Path) -> None:
    l1, gan, norm = read_curves(write_run(tmp_path / "run", grids=1, width=30) / "log.csv")
    assert (l1.steps[:3], l1.values[:2]) == ((10, 20, 30), (1.0, 0.5))
    assert (gan.steps[0], len(gan.values)) == (500, 151)
    assert 30 not in norm.steps
    (tmp_path / "run" / "log.csv").write_bytes(b"step,l1\n1,\xff\n")
    with pytest.raises(FileError, match=r"log\.csv cannot be read"):
        write_run_page(tmp_path / "run")
    with pytest.raises(UsageError):
        write_run_page(tmp_path)


def test_without_matplotlib_the_page_has_tables_and_a_note(
    train: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "run", grids=1, width=30)
    monkeypatch.setattr("omgsr_cli.training.logs.find_spec", lambda _: None)
    said = train("--report", run)
    assert said.code == 0
    assert "omgsr-cli[plot]" in said.err
    parsed = Elements((run / "report.html").read_text("utf-8"))
    assert [attrs["src"][:15] for tag, attrs in parsed.elements if tag == "img"] == ["data:image/jpeg"]
    assert len([tag for tag, _ in parsed.elements if tag == "table"]) == 2


def test_means_and_ends() -> None:
    assert running_mean(np.array([1.0, 2.0, 3.0, 6.0]), 2) == [1, 1.5, 2.5, 4.5]
    assert mean_of_ends([8, 1]) == (8, 1)
    assert mean_of_ends([2, 4, *[0] * 16, 6, 8]) == (3, 7)


@pytest.mark.parametrize(
    ("steps", "values"), [((7,), (0.0,)), ((1, 2), (3.0, 3.0)), ((1, 2), (1.0, 1000.0)), (range(5000), [1.0] * 5000)]
)
def test_any_curve_can_be_plotted(steps: tuple[int, ...], values: tuple[float, ...]) -> None:
    with Image.open(io.BytesIO(plot_curves([Curve("$\\frac{\u5b57", tuple(steps), tuple(values))]))) as plot:
        assert plot.size == (1210, 286)


def test_the_newest_and_the_oldest_grids_are_taken() -> None:
    grids = [Path(str(step)) for step in range(100)]
    assert [int(path.name) for path in choose_grids(grids)] == [99, 79, 59, 40, 20, 0]
    assert [int(path.name) for path in choose_grids(grids[:3])] == [2, 1, 0]
    assert choose_grids([]) == []
