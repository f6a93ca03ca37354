"""OMGSR-F through every command, with a small random base in diffusers' layout."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from command_line import Command, draw, files_below, size_of
from diffusers import FluxPipeline
from hub_server import Repository, read_folder, serve_hub
from huggingface_hub import constants
from random_flux import write_flux_adapter, write_flux_model, write_text_encoders
from safetensors.torch import load_file
from training_run import Table, differing, run_here, settings, tensors, write_images
from transformers import AutoTokenizer, CLIPTextModel, T5EncoderModel

from omgsr_cli.models import flux, large
from omgsr_cli.models.adapter_files import FLUX_PARTS
from omgsr_cli.models.flux import load_features
from omgsr_cli.models.latent import POOLED, SEQUENCE
from omgsr_cli.models.sources import find_model
from omgsr_cli.options import ModelOptions
from omgsr_cli.presets import PRESETS
from omgsr_cli.schedules import FlowSchedule

NAME = "omgsr-f-1024"
CPU = ("--device", "cpu", "--precision", "fp32")
REPOSITORY = PRESETS[NAME].base_sources[0]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_flux_model(tmp_path_factory.mktemp("flux") / "base")


@pytest.fixture(scope="module")
def adapter(base: Path) -> Path:
    return write_flux_adapter(base, base.parent / "adapter")


@pytest.fixture
def command(capfdbinary: pytest.CaptureFixture[bytes]) -> Any:
    def run(name: str, *arguments: object) -> Any:
        said = Command(capfdbinary, name)(*arguments)
        assert said.code == 0, said.err
        return said

    return run


@pytest.fixture
def texts(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the base that has text encoders instead of features, and nothing that an earlier run kept."""
    monkeypatch.setenv("OMGSR_CACHE", str(tmp_path / "cache"))
    return write_text_encoders(shutil.copytree(base, tmp_path / "with_text"))


def test_several_images_are_upscaled_at_any_size(command: Any, base: Path, adapter: Path, tmp_path: Path) -> None:
    sizes = [(17, 40), (33, 21), (50, 64), (200, 31)]
    images = [draw(tmp_path / f"{index}.png", width=size[0], height=size[1]) for index, size in enumerate(sizes)]
    model = ("--base", base, "--adapter", adapter, "--mid-timestep", "244", "--process-size", "64")
    chosen = (*model, *CPU, "--process-scale", "1", "--scale", "1.5")
    said = command("upscale", *images, *chosen, "-o", tmp_path / "out", "--json")
    assert len(said.records) == 4
    for index, (width, height) in enumerate(sizes):
        assert size_of(tmp_path / "out" / f"{index}.png") == (round(1.5 * width), round(1.5 * height))
    again = command("upscale", *images, *chosen, "--offload", "none", "-o", tmp_path / "out", "--json")
    assert {record["status"] for record in again.records} <= {"skipped"}
    (plan,) = command("upscale", images[0], *chosen, "--dry-run", "--json", "-o", tmp_path / "b.png").records
    assert plan["tile_px"] == 64


def test_placement_is_refused_for_small_models(capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path) -> None:
    upscale = Command(capfdbinary, "upscale")
    for option in (("--quantize", "nf4"), ("--offload", "group"), ("--quantize", "int7")):
        said = upscale(draw(tmp_path / "a.png"), "-o", tmp_path / "b.png", *option)
        assert (said.code, len(said.errors)) == (2, 1)


def test_what_does_not_fit_is_one_error(
    capfdbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch, base: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(large, "free_memory_bytes", lambda device: 1000)
    images = [draw(tmp_path / f"{index}.png") for index in range(2)]
    said = Command(capfdbinary, "upscale")(*images, "--base", base, *CPU, "-o", tmp_path / "out")
    assert (said.code, len(said.errors)) == (1, 1)
    assert "GiB" in said.errors[0]
    assert not list(tmp_path.glob("out/*"))


def test_the_mid_timestep_is_the_flow_familys(command: Any, base: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "hq")
    chosen = ("--data", tmp_path / "hq", "--base", base, "--resolution", "64", "--device", "cpu", "--json")
    (record,) = command("timestep", *chosen).records
    assert record["samples"] == 3
    assert record["sigma"] == pytest.approx(FlowSchedule().sigma(record["mid_timestep"]))


def training(base: Path, world: Path, run: Path, **changes: Any) -> Table:
    tables = settings(
        world,
        run,
        model={"base": str(base), "mid_timestep": 244},
        lora={"vae_rank": 2, "backbone_rank": 2},
        data={"resolution": 32, "batch_size": 1},
        loss={"dv3cd": 0.0, "gan": 0.0, "backbone_path": None},
        train={"steps": 2, "ema": 0.0, "gradient_checkpointing": True},
        save={"every": 1},
        **changes,
    )
    del tables["model"]["start_from"]
    return tables


def test_adapters_are_trained_resumed_and_used(command: Any, base: Path, tmp_path: Path) -> None:
    write_images(tmp_path / "hq")
    result, _ = run_here(training(base, tmp_path, tmp_path / "run"))
    assert result.checkpoint is not None
    assert {*FLUX_PARTS, "omgsr.json", "prompt_embeds.safetensors"} <= {
        path.name for path in result.checkpoint.iterdir()
    }
    first = tmp_path / "run" / "step-00000001"
    learned = differing(tensors(first), tensors(result.checkpoint))
    assert {"lora_A", "lora_B"} <= {name.rsplit(".", 2)[-2] for name in learned if "lora" in name}
    resumed, _ = run_here(training(base, tmp_path, tmp_path / "again"), resume=str(first))
    assert resumed.checkpoint is not None
    assert differing(tensors(resumed.checkpoint), tensors(result.checkpoint)) == []
    image = draw(tmp_path / "a.png")
    command("upscale", image, "--model", result.checkpoint, "-o", tmp_path / "b.png", *CPU, "--scale", "1")


def test_it_is_compared_listed_and_merged(
    bench: Command, command: Any, base: Path, adapter: Path, tmp_path: Path
) -> None:
    merged = tmp_path / "merged"
    command("models", "merge", base, adapter, merged, "--mid-timestep", "200")
    about = json.loads(command("models", "info", merged, "--json").lines[0])
    assert (about["mid_timestep"], about["native_tile_px"]) == (200, 1024)
    assert {"transformer", "vae"} <= {part["part"] for part in about["parts"]}
    assert "intact" in command("models", "verify", merged).out.decode()
    assert NAME in command("models", "list").out.decode()
    record = json.loads((merged / "omgsr.json").read_text())
    (merged / "omgsr.json").write_text(json.dumps(record | {"native_tile_px": 64}))
    draw(tmp_path / "lq" / "a.png", width=20, height=18)
    said = bench("--data", tmp_path / "lq", "--model", merged, "--scale", "2", *CPU)
    assert said.code == 0, said.err


def test_features_are_the_pipelines_and_are_computed_once(texts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = find_model(ModelOptions(base=str(texts), prompt="a b"))
    features = load_features(source)
    pipeline = FluxPipeline(
        scheduler=None,
        vae=None,
        transformer=None,
        text_encoder=CLIPTextModel.from_pretrained(texts / "text_encoder"),
        tokenizer=AutoTokenizer.from_pretrained(texts / "tokenizer"),
        text_encoder_2=T5EncoderModel.from_pretrained(texts / "text_encoder_2", dtype=torch.bfloat16),
        tokenizer_2=AutoTokenizer.from_pretrained(texts / "tokenizer_2"),
    )
    with torch.no_grad():
        sequence, pooled, _ = pipeline.encode_prompt("a b", prompt_2=None)
    assert features[SEQUENCE].shape == (1, 512, 12)
    torch.testing.assert_close(features[SEQUENCE], sequence.bfloat16().float())
    torch.testing.assert_close(features[POOLED], pooled.bfloat16().float())
    monkeypatch.setattr(flux, "_encode", None)
    assert torch.equal(load_features(source)[SEQUENCE], features[SEQUENCE])


def test_a_pulled_model_needs_neither_network_nor_text_encoders(
    command: Any, texts: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMGSR_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setitem(PRESETS, NAME, dataclasses.replace(PRESETS[NAME], vae_rank=2, backbone_rank=2))
    files = read_folder(texts) | {"flux1-dev.safetensors": b"all of it once more"}
    with serve_hub({REPOSITORY: Repository(files)}) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        said = command("models", "pull", NAME, "--from", adapter)
    assert "licence" in said.err
    assert "flux1-dev.safetensors" not in hub.fetched()
    folder = tmp_path / "home" / "models" / NAME
    assert said.lines == [str(folder)]
    names = {name.partition("/")[0] for name in files_below(folder)}
    assert {"transformer", "vae", "scheduler", "prompt_embeds.safetensors", "omgsr.json"} <= names
    assert not [name for name in names if name.startswith(("text_encoder", "tokenizer"))]
    assert load_file(folder / "prompt_embeds.safetensors")["prompt_embeds"].shape == (1, 512, 12)
    image = draw(tmp_path / "a.png")
    chosen = ("--model", NAME, "--process-size", "64", "--scale", "1", *CPU)
    command("upscale", image, *chosen, "-o", tmp_path / "b.png")
