"""`omgsr upscale`: models, sizes and options that change pixels."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import MID_TIMESTEP, Command, Said, draw, files_below, pixels, size_of
from PIL import Image
from torch import Tensor

from omgsr_cli.models.tiny import TinyRestorer


@pytest.fixture
def golden(shared: Path) -> Path:
    return shared / "golden" / "sd"


# Size


@pytest.mark.parametrize(("width", "height"), [(1, 1), (3, 70), (127, 129)])
def test_the_result_is_exactly_four_times_the_input(omgsr: Command, tmp_path: Path, width: int, height: int) -> None:
    draw(tmp_path / "a.png", width, height)
    assert omgsr(tmp_path / "a.png").code == 0
    assert size_of(tmp_path / "a_x4.png") == (4 * width, 4 * height)


@pytest.mark.parametrize(
    ("options", "name", "size"),
    [
        (("--scale", "0.5"), "a_x0.5.png", (10, 7)),
        (("--scale", "1"), "a_x1.png", (20, 14)),
        (("--scale", "2.5"), "a_x2.5.png", (50, 35)),
        (("--scale", "16"), "a_x16.png", (320, 224)),
        (("--scale", "2x"), "a_x2.png", (40, 28)),
        (("--scale", "X2"), "a_x2.png", (40, 28)),
        (("--size", "33x57"), "a_33x57.png", (33, 57)),
        (("--long-side", "41"), "a_41px.png", (41, 29)),
        (("--short-side", "41"), "a_41px.png", (59, 41)),
    ],
)
def test_size_options(
    omgsr: Command, tmp_path: Path, options: tuple[str, str], name: str, size: tuple[int, int]
) -> None:
    source = draw(tmp_path / "a.png", 20, 14)
    said = omgsr(source, *options)
    assert (said.code, said.lines) == (0, [str(tmp_path / name)])
    assert size_of(tmp_path / name) == size


WRONG: list[tuple[tuple[str, ...], str]] = [
    (("--scale", "0.49"), "--scale 0.49"),
    (("--scale", "16.1"), "--scale 16.1"),
    (("--scale", "nan"), "--scale nan"),
    (("--scale", "big"), "--scale"),
    (("--scale", "2xx"), "--scale"),
    (("--scale", "2", "--size", "5x5"), "--scale and --size"),
    (("--long-side", "9", "--short-side", "9"), "--long-side and --short-side"),
    (("--size", "5"), "--size 5"),
    (("--size", "0x7"), "--size 0x7"),
    (("--size", "-3x7"), "--size -3x7"),
    (("--long-side", "0"), "--long-side 0"),
    (("--short-side", "0"), "--short-side 0"),
    (("--process-size", "7"), "--process-size 7"),
    (("--mid-timestep", "1000"), "--mid-timestep 1000"),
    (("--seed", "-1"), "--seed -1"),
    (("--tile", "63"), "--tile 63"),
    (("--tile", "whole"), "--tile whole"),
    (("--tile", "64", "--overlap", "33"), "--overlap 33"),
    (("--overlap", "-1"), "--overlap -1"),
    (("--overlap", "100000"), "--overlap 100000"),
    (("--quality", "50", "-o", "x.png"), "--quality 50"),
    (("--quality", "50", "--format", "tiff"), "--quality 50"),
    (("--batch", "0"), "--batch 0"),
    (("--color-fix", "hsv"), "--color-fix hsv"),
    (("--precision", "int8"), "--precision int8"),
    (("--format", "gif"), "--format gif"),
    (("--quality", "0"), "--quality 0"),
    (("--quality", "101"), "--quality 101"),
    (("--metadata", "some"), "--metadata some"),
    (("--suffix", "a/b"), "--suffix a/b"),
    (("--no-such-option",), "--no-such-option"),
    (("-o", "-", "--compare"), "--compare"),
    (("--prompt", "a cat"), "prompt"),
    (("--process-scale", "0.5"), "--process-scale 0.5"),
    (("--process-scale", "nan"), "--process-scale nan"),
    (("--strength", "1.1"), "--strength 1.1"),
    (("--strength", "nan"), "--strength nan"),
]


def test_a_wrong_option_is_a_usage_error_that_names_it(omgsr: Command, tmp_path: Path) -> None:
    source = draw(tmp_path / "a.png")
    for options, wrong in WRONG:
        said = omgsr(source, *options)
        assert (said.code, said.out) == (2, b""), options
        [error] = said.errors
        assert wrong in error, options
        assert said.err.splitlines()[-1].startswith("hint: "), options
        assert files_below(tmp_path) == ["a.png"], options


def test_a_small_image_is_restored_at_the_process_size(omgsr: Command, tmp_path: Path) -> None:
    draw(tmp_path / "a.png", 20, 14)
    [plan] = omgsr(tmp_path / "a.png", "--scale", "1", "--process-size", "64", "--dry-run", "--json").records
    assert (plan["output_size"], plan["restored_size"]) == ([20, 14], [91, 64])
    for side in ("16", "64"):
        assert omgsr(tmp_path / "a.png", "--process-size", side, "-o", tmp_path / f"{side}.png").code == 0
        assert size_of(tmp_path / f"{side}.png") == (80, 56)
    assert (pixels(tmp_path / "16.png") != pixels(tmp_path / "64.png")).any()


def test_a_thin_image_is_upscaled_and_an_extreme_one_refused(omgsr: Command, tmp_path: Path) -> None:
    draw(tmp_path / "thin.png", 600, 1)
    assert omgsr(tmp_path / "thin.png", "--scale", "1", "--process-size", "64").code == 0
    assert size_of(tmp_path / "thin_x1.png") == (600, 1)
    draw(tmp_path / "strip.png", 20_000, 1)
    [plan] = omgsr(tmp_path / "strip.png", "--process-size", "64", "--dry-run", "--json").records
    assert plan["restored_size"] == plan["output_size"] == [80_000, 4]
    said = omgsr(tmp_path / "strip.png", "--process-size", "512", "--dry-run")
    assert said.code == 1
    assert "80000x4 would be restored as" in said.errors[0]
    assert "42 megapixels" in said.errors[0]
    assert "hint: cut it" in said.err


# Working size and strength


@pytest.mark.parametrize(
    ("options", "output", "restored"),
    [
        (("--scale", "1"), [20, 14], [80, 56]),
        (("--scale", "1.5"), [30, 21], [80, 56]),
        (("--scale", "8"), [160, 112], [160, 112]),
        (("--size", "200x14"), [200, 14], [200, 56]),
        (("--scale", "2", "--process-scale", "3"), [40, 28], [60, 42]),
        (("--scale", "2", "--process-scale", "1"), [40, 28], [40, 28]),
        (("--scale", "2", "--strength", "0"), [40, 28], [40, 28]),
    ],
)
def test_the_working_size_is_four_times_the_input(
    omgsr: Command, tmp_path: Path, options: tuple[str, ...], output: list[int], restored: list[int]
) -> None:
    source = draw(tmp_path / "a.png", 20, 14)
    [plan] = omgsr(source, *options, "--dry-run", "--json").records
    assert (plan["output_size"], plan["restored_size"]) == (output, restored)
    [done] = omgsr(source, *options, "-o", tmp_path / "r.png", "--json").records
    assert (done["status"], done["output_size"], done["restored_size"]) == ("done", output, restored)
    assert list(size_of(tmp_path / "r.png")) == output


def test_a_dry_run_counts_tiles_of_the_working_size(omgsr: Command, tmp_path: Path) -> None:
    Image.new("RGB", (1500, 1000)).save(tmp_path / "a.png")

    def plan(*options: str) -> dict[str, Any]:
        [record] = omgsr(tmp_path / "a.png", "--dry-run", "--json", *options).records
        return record

    cost = [(plan("--scale", scale)["tiles"], plan("--scale", scale)["memory_mib"]) for scale in ("1", "2", "4")]
    assert cost[0] == cost[1] == cost[2]
    assert plan("--scale", "1", "--process-scale", "1")["tiles"] * 8 < cost[0][0]
    said = omgsr(tmp_path / "a.png", "--scale", "1", "--dry-run")
    assert "restored at 6000x4000" in said.out.decode()
    assert "restored at 24." in said.err


def test_too_much_work_is_refused_with_its_size(
    omgsr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("omgsr_cli.batch.checks._MOST_PX", 4000)
    source = draw(tmp_path / "a.png", 20, 14)
    said = omgsr(source, "--scale", "2")
    assert said.code == 1
    assert "80x56" in said.errors[0]
    assert "--process-scale" in said.err
    assert omgsr(source, "--scale", "2", "--process-scale", "1").code == 0


@pytest.mark.parametrize(
    ("mode", "scale"), [("RGB", "0.5"), ("RGB", "1"), ("L", "1"), ("RGBA", "2.5"), ("I;16", "1"), ("I;16", "4")]
)
def test_strength_blends_the_restored_image_with_plain_upscaling(
    omgsr: Command, tmp_path: Path, scale: str, mode: str
) -> None:
    rng = np.random.default_rng(0)
    shape = {"RGB": (14, 20, 3), "L": (14, 20), "RGBA": (14, 20, 4), "I;16": (14, 20)}[mode]
    samples = rng.integers(0, 65_536 if mode == "I;16" else 256, shape)
    source = tmp_path / "a.png"
    Image.fromarray(samples.astype(np.uint16 if mode == "I;16" else np.uint8)).save(source)
    made = {}
    for strength in ("0", "0.4", "1", None):
        asked = () if strength is None else ("--strength", strength)
        assert omgsr(source, "--scale", scale, *asked, "-o", tmp_path / f"{strength}.png").code == 0
        made[strength] = pixels(tmp_path / f"{strength}.png").astype(float)
    assert (made["1"] == made[None]).all()
    assert (made["0"] != made["1"]).any()
    size = (round(20 * float(scale)), round(14 * float(scale)))
    if mode in ("RGB", "L"):
        plain = np.asarray(Image.open(source).resize(size, Image.Resampling.BICUBIC))
        assert (made["0"] == plain).all()
    if scale == "1":
        assert (made["0"] == samples).all()
    between = made["0"] + 0.4 * (made["1"] - made["0"])
    assert np.abs(made["0.4"] - between).max() <= 1.001


def test_strength_zero_does_not_run_the_network(
    omgsr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    encode = TinyRestorer.encode
    monkeypatch.setattr(TinyRestorer, "encode", lambda *args: calls.append(1) or encode(*args))
    source = draw(tmp_path / "a.png")
    assert omgsr(source, "--strength", "0", "-o", tmp_path / "0.png").code == 0
    assert not calls
    assert omgsr(source, "-o", tmp_path / "1.png").code == 0
    assert calls


@pytest.mark.parametrize("option", [("--strength", "0.5"), ("--process-scale", "2")])
def test_working_size_and_strength_identify_a_result(omgsr: Command, tmp_path: Path, option: tuple[str, str]) -> None:
    call = (draw(tmp_path / "a.png"), "--scale", "1", "-o", tmp_path / "r.png", "--json")
    assert omgsr(*call, *option).records[0]["status"] == "done"
    assert omgsr(*call, *option).records[0]["status"] == "skipped"
    made = (tmp_path / "r.png").read_bytes()
    assert omgsr(*call).code == 1
    assert (tmp_path / "r.png").read_bytes() == made
    assert omgsr(*call, "--overwrite").records[0]["status"] == "done"
    assert (tmp_path / "r.png").read_bytes() != made


def test_the_comparison_shows_plain_upscaling_at_the_results_size(omgsr: Command, tmp_path: Path) -> None:
    source = draw(tmp_path / "a.png", 20, 14)
    assert omgsr(source, "--scale", "1", "--compare", "-o", tmp_path / "r.png").code == 0
    both = pixels(tmp_path / "r_compare.png")
    assert both.shape[:2] == (14, 44)
    assert (both[:, :20] == pixels(source)).all()
    assert (both[:, 24:] == pixels(tmp_path / "r.png")).all()


# Model


def test_the_model_is_taken_from_the_option_or_the_environment(
    omgsr: Command, tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = draw(tmp_path / "a.png")
    assert "random on cpu, fp32" in omgsr(source, "--verbose", "-o", tmp_path / "1.png", "--device", "cpu").err
    monkeypatch.setenv("OMGSR_MODEL", str(tmp_path / "nowhere"))
    said = omgsr(source, "-o", tmp_path / "2.png")
    assert said.code == 2
    assert "nowhere" in said.errors[0]
    assert omgsr(source, "--model", model, "-o", tmp_path / "2.png").code == 0
    assert (pixels(tmp_path / "1.png") == pixels(tmp_path / "2.png")).all()


@pytest.mark.parametrize(
    "options", [("--base", "nowhere"), ("--adapter", "nowhere"), ("--base", "nowhere", "--adapter", "nowhere")]
)
def test_a_missing_base_or_adapter_is_one_line(
    omgsr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[str, ...]
) -> None:
    monkeypatch.delenv("OMGSR_MODEL")
    said = omgsr(draw(tmp_path / "a.png"), *options)
    assert said.code == 2
    assert "nowhere" in said.errors[0]
    assert "hint: " in said.err


@pytest.mark.parametrize("options", [("--device", "quantum"), ("--device", "cpu:x"), ("--precision", "fp16")])
def test_a_missing_device_or_precision_is_one_line(omgsr: Command, tmp_path: Path, options: tuple[str, ...]) -> None:
    said = omgsr(draw(tmp_path / "a.png"), *options, *(() if "--device" in options else ("--device", "cpu")))
    assert said.code == (1 if options[0] == "--precision" else 2)
    assert options[1] in said.errors[0]
    assert "hint: " in said.err


def test_the_mid_timestep_changes_the_result_and_is_recorded(omgsr: Command, tmp_path: Path) -> None:
    source = draw(tmp_path / "a.png")
    said = omgsr(source, "--mid-timestep", "100", "-o", tmp_path / "100.png")
    assert "mid-timestep 100" in said.err
    assert str(MID_TIMESTEP) in said.err
    said = omgsr(source, "--mid-timestep", str(MID_TIMESTEP), "-o", tmp_path / "own.png")
    assert "mid-timestep" not in said.err
    assert (pixels(tmp_path / "100.png") != pixels(tmp_path / "own.png")).any()


def test_compile_is_called_once_for_many_images(
    omgsr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[TinyRestorer] = []
    monkeypatch.setattr(TinyRestorer, "compile", lambda self: calls.append(self))
    sources = [draw(tmp_path / f"{name}.png") for name in "ab"]
    assert omgsr(*sources, "--scale", "1").code == 0
    assert calls == []
    assert omgsr(*sources, "--compile").code == 0
    assert len(calls) == 1


# Pixels


def test_every_colour_fix_changes_the_result(omgsr: Command, tmp_path: Path) -> None:
    source = draw(tmp_path / "a.png", 40, 30)
    results = {}
    for fix in ("none", "adain", "wavelet"):
        assert omgsr(source, "--color-fix", fix, "-o", tmp_path / f"{fix}.png").code == 0
        results[fix] = pixels(tmp_path / f"{fix}.png")
    with Image.open(source) as image:
        wanted = np.asarray(image.resize((160, 120), Image.Resampling.BICUBIC)).mean((0, 1))
    away = {fix: np.abs(result.mean((0, 1)) - wanted).max() for fix, result in results.items()}
    assert away["adain"] < 0.5
    assert away["wavelet"] < 0.5
    assert (results["adain"] != results["wavelet"]).any()
    assert (results["adain"] != results["none"]).any()


def test_memory_limits_are_parsed(omgsr: Command, tmp_path: Path) -> None:
    source = draw(tmp_path / "a.png", 40, 30)
    assert omgsr(source, "--memory", "800M").code == 0
    said = omgsr(source, "--memory", "5x", "--overwrite")
    assert said.code == 2
    assert "5x" in said.errors[0]


def test_tiles_and_batches_do_not_change_the_result(
    omgsr: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together: list[int] = []
    restore = TinyRestorer.restore

    def spy(self: TinyRestorer, lq_latent: Tensor) -> Tensor:
        together.append(len(lq_latent))
        return restore(self, lq_latent)

    monkeypatch.setattr(TinyRestorer, "restore", spy)
    source = draw(tmp_path / "a.png", 60, 16)
    runs = {
        "whole": ("--tile", "off"),
        "tiles": ("--tile", "64"),
        "thin": ("--tile", "64", "--overlap", "16"),
        "thin_batch": ("--tile", "64", "--overlap", "16", "--batch", "3"),
    }
    counts = {}
    for name, options in runs.items():
        together.clear()
        assert omgsr(source, *options, "-o", tmp_path / f"{name}.png").code == 0
        counts[name] = together.copy()
    assert counts["whole"] == [1]
    assert counts["thin"] == [1] * len(counts["tiles"])
    assert len(counts["tiles"]) >= 4
    assert max(counts["thin_batch"]) in (2, 3)
    assert sum(counts["thin_batch"]) == len(counts["thin"])
    for name, other in (("tiles", "whole"), ("thin_batch", "thin")):
        assert np.abs(pixels(tmp_path / f"{name}.png") - pixels(tmp_path / f"{other}.png")).max() <= 1


def test_the_requested_overlap_is_planned(omgsr: Command, tmp_path: Path) -> None:
    source = draw(tmp_path / "a.png", 60, 60)
    plans = [
        omgsr(source, "--tile", "64", *options, "--dry-run", "--json").records[0]
        for options in ((), ("--overlap", "32"), ("--overlap", "0"))
    ]
    assert [plan["overlap_px"] for plan in plans] == [160, 32, 0]
    assert {plan["tile_px"] for plan in plans} == {64}
    assert plans[0]["tiles"] >= 16
    assert plans[0]["memory_mib"] >= plans[1]["memory_mib"] >= plans[2]["memory_mib"]


# Stable Diffusion


@pytest.fixture
def restored(omgsr: Command, golden: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """`omgsr upscale` with the golden model."""
    monkeypatch.delenv("OMGSR_MODEL")
    model = ("--base", golden / "base", "--adapter", golden / "adapter", "--precision", "fp32", "--device", "cpu")
    return lambda name, *options: omgsr(golden / "in" / name, *model, *options)


def test_golden_images(restored: Callable[..., Said], golden: Path, tmp_path: Path) -> None:
    cases = json.loads((golden / "cases.json").read_text())
    assert sorted(case["case"] for case in cases) == ["adain", "none", "none_prompt", "none_t195", "wavelet"]
    for case in cases:
        # One case has the whole folder; the others differ from it in what they do to any image.
        names = ["0.png", "1.png", "2.png"] if case["case"] == "none" else ["1.png"]
        options = [*("--scale", case["scale"], "--color-fix", case["color_fix"], "--process-size", "256")]
        options += [*("--mid-timestep", case["mid_timestep"], "--prompt", case["prompt"])]
        out = tmp_path / case["case"]
        out.mkdir()
        said = restored("." if len(names) > 1 else names[0], *options, "-o", out)
        assert (said.code, [Path(line).name for line in said.lines]) == (0, names), said.err
        for name in names:
            away = np.abs(pixels(out / name) - pixels(golden / "expected" / case["case"] / name))
            assert (away <= 1).mean() >= 0.999
            assert away.max() <= 3


def test_blended_tiles_and_a_seed(restored: Callable[..., Said], tmp_path: Path) -> None:
    options = ["--scale", "1.5", "--process-size", "64", "--seed", "1", "-o", tmp_path / "a.png"]
    [plan] = restored("0.png", *options, "--dry-run", "--json").records
    assert plan["overlap_px"] * 2 == plan["tile_px"] == 64
    assert restored("0.png", *options).code == 0
    assert restored("0.png", *options[:-1], tmp_path / "b.png", "--batch", "4").code == 0
    assert size_of(tmp_path / "a.png") == (96, 96)
    assert np.abs(pixels(tmp_path / "a.png") - pixels(tmp_path / "b.png")).max() <= 1
    # Tiles identify a result, but not how many are computed together.
    assert "already finished" in restored("0.png", *options, "--batch", "2").err
    for other in (("--tile", "96"), ("--overlap", "8"), ("--seed", "2")):
        assert restored("0.png", *options, *other).code == 1


def test_a_mismatched_adapter_is_reported(
    omgsr: Command, golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMGSR_MODEL")
    adapter = tmp_path / "adapter"
    for part, other in (("unet", "vae_encoder"), ("vae_encoder", "unet")):
        shutil.copytree(golden / "adapter" / f"{other}_lora_adapter", adapter / f"{part}_lora_adapter")
    for path in (adapter, *adapter.rglob("*")):
        os.chmod(path, 0o755)
    said = omgsr(draw(tmp_path / "a.png"), "--base", golden / "base", "--adapter", adapter)
    assert said.code == 1
    assert len(said.errors) == 1
    assert not (tmp_path / "a_x4.png").exists()
