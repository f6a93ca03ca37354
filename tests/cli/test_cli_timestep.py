"""`omgsr timestep` at the command line: golden data, files and errors."""

from __future__ import annotations

import csv
import json
import tomllib
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from command_line import Command, draw, files_below, write_tiny_model
from diffusers import DDPMScheduler
from PIL import Image
from places import GOLDEN
from spread_work import Pickled

from omgsr_cli.cli import progress
from omgsr_cli.cli.timestep import changed_text
from omgsr_cli.degradation import PRESETS as DEGRADATIONS
from omgsr_cli.errors import UsageError
from omgsr_cli.presets import default_degradation
from omgsr_cli.training.config import PRESET_CONFIGS, read_preset_config

GOLDEN_SD = GOLDEN / "sd"
PAIRS = (
    "--data",
    GOLDEN_SD / "pairs" / "hq",
    "--lq",
    GOLDEN_SD / "pairs" / "lq",
    "--base",
    GOLDEN_SD / "base",
    "--device",
    "cpu",
)


@pytest.fixture
def timestep(capfdbinary: pytest.CaptureFixture[bytes]) -> Command:
    return Command(capfdbinary, "timestep")


@pytest.fixture
def crops(tmp_path: Path) -> tuple[str | Path, ...]:
    """A call on crops of drawn images with a small random model."""
    for number in range(4):
        draw(tmp_path / "photos" / "deep" / f"{number}.png", width=50 + number, height=40)
    model = write_tiny_model(tmp_path / "model")
    return ("--data", tmp_path / "photos", "--model", model, "--device", "cpu", "--resolution", "32")


def test_an_end_of_the_schedule_is_no_match(timestep: Command, tmp_path: Path) -> None:
    for number in range(2):
        hq = draw(tmp_path / "hq" / f"{number}.png", 48, 48)
        with Image.open(hq) as image:
            red, green, blue = image.convert("RGB").getpixel((1, 1))
            image.putpixel((1, 1), (red ^ 1, green, blue))
            (tmp_path / "lq").mkdir(exist_ok=True)
            image.save(tmp_path / "lq" / f"{number}.png")
    said = timestep("--data", tmp_path / "hq", "--lq", tmp_path / "lq", "--json")
    assert said.records[0]["mid_timestep"] == 0
    assert "note: 0 is an end of the schedule" in said.err


def test_the_golden_command(timestep: Command) -> None:
    said = timestep(*PAIRS, "--json")
    assert said.code == 0
    (record,) = said.records
    expected = json.loads((GOLDEN_SD / "pairs" / "expected.json").read_text())
    assert record["mid_timestep"] == 24
    assert "an end of the schedule" not in said.err
    assert record["samples"] == 6
    assert record["curve"] == pytest.approx(expected["curve_ddpm"], rel=1e-4)
    assert record["loss"] == pytest.approx(expected["loss_ddpm"], rel=1e-4)
    diffusers_schedule = DDPMScheduler.from_pretrained(GOLDEN_SD / "base" / "scheduler")
    assert record["alpha_bar"] == pytest.approx(float(diffusers_schedule.alphas_cumprod[24]), rel=1e-5)
    # Six images are too few for an interval.
    assert (record["images"], record["interval"]) == (6, None)
    assert record["schedule"]["_class_name"] == "DDPMScheduler"
    assert record["settings"]["lq"] == [str(PAIRS[3])]


def test_the_default_degradation_is_that_of_the_training() -> None:
    names = {name: default_degradation(name) for name in ("omgsr-s-512", "omgsr-tiny", "somebody/else")}
    assert names == {"omgsr-s-512": "omgsr", "omgsr-tiny": "reference", "somebody/else": "omgsr"}
    assert set(names.values()) <= set(DEGRADATIONS)
    for preset in PRESET_CONFIGS:
        shares = tomllib.loads(read_preset_config(preset))["degradation"]["presets"]
        assert default_degradation(preset) == max(shares, key=lambda name: shares[name])


def test_a_person_gets_a_table_and_a_curve(timestep: Command) -> None:
    said = timestep(*PAIRS)
    assert said.lines[0].split() == ["mid-timestep", "24"]
    assert "none: 6 samples of 6 images" in said.lines[1]
    assert any("█" in line for line in said.lines)
    assert said.lines[-1].split() == ["^", "24"]
    assert not said.errors


def test_crops_of_a_folder_tree(timestep: Command, crops: tuple[str | Path, ...]) -> None:
    first, again = (timestep(*crops, "--json").records[0] for _ in range(2))
    assert first == again
    assert first["samples"] == 4
    assert first["settings"]["degradation"] == "omgsr"
    assert timestep(*crops, "--json", "--degradation", "omgsr").records[0]["curve"] == first["curve"]
    assert sum(group["samples"] for group in first["spread"]["first noise"].values()) == 4
    more = timestep(*crops, "--json", "--max-samples", "9", "--workers", "1").records[0]
    assert more["samples"] == 9
    other = timestep(*crops, "--json", "--seed", "1", "--degradation", "light").records[0]
    assert other["curve"] != first["curve"]


def test_requested_files_are_written(timestep: Command, crops: tuple[str | Path, ...], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    for plot in ("curve.png", "curve.svg"):
        said = timestep(*crops, "--csv", out / "rows.csv", "--plot", out / plot, "--overwrite", "--json")
        assert said.code == 0
    with Image.open(out / "curve.png") as image:
        assert image.size == (1200, 825)
        assert len(image.convert("RGB").getcolors(1_000_000) or []) > 50
    svg = (out / "curve.svg").read_text()
    assert svg.startswith("<?xml")
    assert "</svg>" in svg
    rows = list(csv.DictReader((out / "rows.csv").open(newline="")))
    assert {Path(row["image"]).name for row in rows} == {f"{number}.png" for number in range(4)}
    assert all(float(row["power"]) > 0 and float(row["snr_lq"]) > 0 for row in rows)
    assert all(0 <= int(row["mid_timestep"]) <= 999 for row in rows)
    assert files_below(out) == ["curve.png", "curve.svg", "rows.csv"]
    # Nothing is replaced without being asked to, and that is said before anything is computed.
    said = timestep(*crops, "--csv", out / "rows.csv")
    assert (said.code, len(said.errors)) == (2, 1)
    assert "exists" in said.errors[0]


def test_until_stable_stops_early(timestep: Command, crops: tuple[str | Path, ...]) -> None:
    said = timestep(*crops, "--until-stable", "1000", "--max-samples", "40", "--json")
    assert (said.records[0]["samples"], said.records[0]["images"]) == (40, 4)
    assert "note: --until-stable 1000: " in said.err
    for number in range(4, 8):
        draw(Path(crops[1]) / f"{number}.png", width=50 + number, height=40)
    said = timestep(*crops, "--until-stable", "1000", "--json")
    assert said.records[0]["samples"] == 32
    assert said.records[0]["images"] == 8
    said = timestep(*crops, "--until-stable", "1", "--max-samples", "40", "--json")
    assert said.records[0]["samples"] == 40
    assert "not narrower than 1" in said.err


def test_an_interruption_reports_the_estimate_so_far(
    timestep: Command, crops: tuple[str | Path, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = import_module("omgsr_cli.timesteps.measure")

    real = package.measure

    def interrupted(source: Any, encoder: Any, items: tuple[int, ...], **kwargs: Any) -> Iterator[Any]:
        if items == (3,):
            raise KeyboardInterrupt
        yield from real(source, encoder, items, **kwargs)

    monkeypatch.setenv("OMGSR_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(package, "measure", interrupted)
    command = (*crops, "--json", "--batch", "1", "--csv", tmp_path / "rows.csv")
    said = timestep(*command)
    assert said.code == 130
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 1 + 3
    assert said.records[0]["samples"] == 3
    assert "interrupted after 3 of 4 samples" in said.err
    # The same command resumes and replaces the files written so far.
    measured: list[int] = []
    monkeypatch.setattr(package, "measure", lambda s, e, items, **k: measured.extend(items) or real(s, e, items, **k))
    said = timestep(*command)
    assert (said.code, measured) == (0, [3]), said.err
    assert "reused 3 samples" in said.err
    assert len((tmp_path / "rows.csv").read_text().splitlines()) == 1 + 4
    monkeypatch.setenv("OMGSR_CACHE", str(tmp_path / "other"))
    assert timestep(*command, "--overwrite").records == said.records
    # What is finished is the user's.
    assert timestep(*command).code == 2


def test_parts_are_measured_one_by_one_and_the_whole_is_put_together(
    timestep: Command, crops: tuple[str | Path, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = timestep(*crops, "--json", "--batch", "1")
    monkeypatch.setenv("OMGSR_CACHE", str(tmp_path / "cache"))
    for number, samples in ((1, 2), (2, 1), (3, 1)):
        said = timestep(*crops, "--json", "--batch", "1", "--shard", f"{number}/3")
        assert (said.code, said.records[0]["samples"]) == (0, samples), said.err
        assert f"part {number}/3" in said.err
    together = timestep(*crops, "--json", "--batch", "1")
    assert "reused 4 samples" in together.err
    assert together.records == whole.records


def test_processes_find_what_one_finds(
    timestep: Command, crops: tuple[str | Path, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("omgsr_cli.engines.local.Processes", Pickled)
    monkeypatch.setenv("OMGSR_CACHE", str(tmp_path / "one"))
    (tmp_path / "photos" / "broken.png").write_bytes(b"no image at all")
    one = timestep(*crops, "--json", "--batch", "2", "--csv", tmp_path / "one.csv")
    monkeypatch.setenv("OMGSR_CACHE", str(tmp_path / "two"))
    two = timestep(*crops, "--json", "--batch", "2", "--csv", tmp_path / "two.csv", "--workers", "2")
    assert (one.code, two.code) == (1, 1), two.err
    assert two.records == one.records
    assert two.errors == one.errors
    assert (tmp_path / "two.csv").read_text() == (tmp_path / "one.csv").read_text()
    # What they measured is kept for whoever asks next.
    assert "reused 5 samples" in timestep(*crops, "--json").err


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("--shard", "5/5"), "--shard 5/5: "),
        (("--shard", "3/2"), "--shard 3/2 is not a valid part"),
        (("--shard", "1/2", "--until-stable", "9"), "--shard 1/2 and --until-stable 9 exclude each other"),
        (("--shard", "1/2", "--write", "train.toml"), "--shard 1/2 and --write train.toml exclude each other"),
    ],
)
def test_an_invalid_part_is_wrong_usage(
    timestep: Command, crops: tuple[str | Path, ...], arguments: tuple[str, ...], reason: str
) -> None:
    said = timestep(*crops, *arguments)
    assert (said.code, said.out) == (2, b"")
    assert reason in said.err
    assert "hint: " in said.err


def test_samples_are_measured_again_after_any_change(
    timestep: Command, crops: tuple[str | Path, ...], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OMGSR_CACHE", str(tmp_path / "cache"))
    (tmp_path / "photos" / "broken.png").write_bytes(b"no image at all")
    kept = "reused 5 samples"
    monkeypatch.setattr(progress, "_LOG_EVERY_S", 0.0)
    first = timestep(*crops)
    assert kept not in first.err
    assert "1 of 5 samples, about" in first.err
    again = timestep(*crops)
    assert kept in again.err
    assert len(again.errors) == 1
    for other in (("--seed", "1"), ("--degradation", "light"), ("--scale", "2"), ("--on-small", "pad")):
        assert "reused" not in timestep(*crops, *other).err
    draw(tmp_path / "photos" / "broken.png", 40, 40)
    assert kept not in timestep(*crops).err


def test_the_limits_of_an_estimate_are_reported(timestep: Command, crops: tuple[str | Path, ...]) -> None:
    (note,) = [line for line in timestep(*crops).err.splitlines() if "hardly moves" in line]
    assert note.startswith("note: a wavelet transform")
    assert "give --base or --vae" in note
    assert "hardly moves" not in timestep(*PAIRS).err


def test_corrupt_images_are_named_and_the_others_count(
    timestep: Command, crops: tuple[str | Path, ...], tmp_path: Path
) -> None:
    draw(tmp_path / "photos" / "small.png", width=20, height=50)
    (tmp_path / "photos" / "broken.png").write_bytes(b"no image at all")
    said = timestep(*crops, "--json")
    assert said.code == 1
    assert said.records[0]["samples"] == 4
    assert len(said.errors) == 2
    assert any("small.png has 20x50 pixels, smaller than a crop of 32" in line for line in said.errors)
    for how in ("resize", "pad"):
        assert timestep(*crops, "--json", "--on-small", how).records[0]["samples"] == 5


def test_identical_pairs_are_named_and_left_out(timestep: Command, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "model")
    for part, phase in (("hq", 0), ("lq", 3)):
        draw(tmp_path / part / "a.png", width=32, height=32)
        draw(tmp_path / part / "b.png", width=32 + phase, height=32).replace(tmp_path / part / "b.png")
    Image.open(tmp_path / "lq" / "b.png").crop((3, 0, 35, 32)).save(tmp_path / "lq" / "b.png")
    call = ("--data", tmp_path / "hq", "--lq", tmp_path / "lq", "--model", model, "--device", "cpu", "--json")
    said = timestep(*call)
    assert (said.code, said.records[0]["samples"]) == (1, 1)
    assert "a.png is identical to its low-quality partner" in said.errors[0]
    (tmp_path / "hq" / "b.png").unlink()
    (tmp_path / "lq" / "b.png").unlink()
    said = timestep(*call)
    assert (said.code, said.out) == (2, b"")
    assert "none of the 1 " in said.errors[-1]


WRONG_CALLS: list[tuple[tuple[str, ...], str]] = [
    (("--data", "photos", "--resolution", "33"), "--resolution 33 is not a multiple of "),
    (("--data", "photos", "--resolution", "8"), "--resolution 8"),
    (("--data", "photos", "--scale", "0"), "--scale 0"),
    (("--data", "photos", "--on-small", "drop"), "--on-small drop"),
    (("--data", "photos", "--until-stable", "0"), "--until-stable 0"),
    (("--data", "photos", "--plot", "curve.jpg"), "curve.jpg"),
    (("--data", "photos", "--csv", "photos"), "is a folder"),
    (("--data", "photos", "--write", "absent/config.toml"), "absent/config.toml"),
    (("--data", "photos", "--degradation", "strong"), "'strong'"),
    (("--data", "photos", "--device", "abacus"), "abacus"),
    (("--data", "photos", "--workers", "0"), "--workers 0"),
    (("--data", "photos", "--vae", "absent"), "absent"),
    (("--data", "photos", "--model", "a", "--base", "b"), "both"),
    (("--data", "photos", "--lq", "photos/deep/0.png"), "3 of 4 images without a partner in --lq"),
    (("--data", "absent"), "no images were found: absent"),
    (("--data", "empty"), "empty"),
    ((), "--data"),
]


def test_user_errors_are_one_line(
    timestep: Command, crops: tuple[str | Path, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for call, message in WRONG_CALLS:
        said = timestep(*call)
        assert said.code in (1, 2), call
        assert said.out == b"", call
        assert message in said.errors[-1], call


def test_plot_without_matplotlib(timestep: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("omgsr_cli.cli.timestep.find_spec", lambda name: None)
    said = timestep("--data", "anything", "--plot", "curve.png")
    assert said.code == 1
    assert "omgsr-cli[plot]" in said.err


def test_the_value_is_written_to_a_configuration(
    timestep: Command, crops: tuple[str | Path, ...], tmp_path: Path
) -> None:
    config = tmp_path / "config.toml"
    config.write_text('# mine\n[model]\nbase = "x"  # keep\nmid_timestep = 5 # old\n\n[train]\nsteps = 3\n')
    said = timestep(*crops, "--json", "--write", config)
    found = said.records[0]["mid_timestep"]
    assert config.read_text() == (
        f'# mine\n[model]\nbase = "x"  # keep\nmid_timestep = {found} # old\n\n[train]\nsteps = 3\n'
    )
    assert f"mid_timestep = {found}" in said.err


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[train]\nsteps = 3\n",
        "[model]",
        '[model]\r\nbase = "x"\r\n[train]\r\nmid_timestep = 1\r\n',
        "model.base = 'x'\n[train]\nsteps = 3\n",
        "[ model ] # here\n'mid_timestep'=7\n",
        '[train]\nnote = """\n# no table\n"""\n[model]\n[model.more]\nmid_timestep = 2\n',
    ],
)
def test_only_the_value_changes(tmp_path: Path, text: str) -> None:
    config = tmp_path / "config.toml"
    config.write_bytes(text.encode())
    changed = changed_text(config, 123)
    after, before = tomllib.loads(changed), tomllib.loads(text)
    assert after["model"].pop("mid_timestep") == 123
    before.setdefault("model", {}).pop("mid_timestep", None)
    assert after == before
    assert ("\r\n" in changed) == ("\r\n" in text)
    assert changed.count("\n") <= text.count("\n") + 4


@pytest.mark.parametrize("text", ["model = 3\n", "model = {base = 'x'}\n", "[[model]]\n", "[x\n"])
def test_an_uneditable_configuration_is_not_changed(tmp_path: Path, text: str) -> None:
    config = tmp_path / "config.toml"
    config.write_text(text)
    with pytest.raises(UsageError, match=r"config\.toml"):
        changed_text(config, 123)
