"""Configurations of a base model are obeyed or refused, never guessed."""

from __future__ import annotations

import inspect
import json
import math
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from random_sd import write_sd_model
from safetensors.torch import load_file, save_file

from omgsr_cli.errors import ModelError
from omgsr_cli.models.autoencoders import load_tiny_decoder
from omgsr_cli.models.loading import describe_model, load_encoder, load_restorer
from omgsr_cli.models.sources import find_model
from omgsr_cli.options import ModelOptions
from omgsr_cli.schedules import DdpmSchedule
from omgsr_cli.schedules.ddpm import _SAMPLERS
from omgsr_cli.store.hub import Listing, ModelFiles, RemoteFile, choose_files

NAN, INF = float("nan"), float("inf")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sd_model(tmp_path_factory.mktemp("models") / "sd")


@pytest.fixture
def folder(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "sd"))


def edit(path: Path, **options: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | options))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("scaling_factor", value) for value in (0, -0.18215, NAN, None, "0.18215", True)),
        *(("shift_factor", value) for value in (NAN, "0.1")),
        ("latents_mean", [0.1] * 4),
        ("latents_std", [0.9] * 4),
        ("in_channels", 4),
        ("out_channels", 1),
        ("block_out_channels", []),
        ("latent_channels", 16),
    ],
)
def test_an_unusable_vae_is_refused(folder: Path, key: str, value: object) -> None:
    edit(folder / "vae" / "config.json", **{key: value})
    with pytest.raises(ModelError, match=r"vae|VAE"):
        describe_model(find_model(ModelOptions(model=str(folder))))
    if key not in ("latent_channels", "out_channels"):
        with pytest.raises(ModelError, match="vae"):
            load_encoder(vae=str(folder / "vae"), device="cpu")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("out_channels", 8),
        ("block_out_channels", None),
        ("addition_embed_type", "text_time"),
        ("class_embed_type", "timestep"),
        ("num_class_embeds", 10),
        ("encoder_hid_dim_type", "text_proj"),
        *(("sample_size", value) for value in ([64, 32], 0, 64.5, "64", True)),
    ],
)
def test_a_unet_with_other_inputs_or_outputs_is_refused(folder: Path, key: str, value: object) -> None:
    edit(folder / "unet" / "config.json", **{key: value})
    with pytest.raises(ModelError, match=key if key != "out_channels" else "gives 8"):
        describe_model(find_model(ModelOptions(model=str(folder))))


@pytest.mark.parametrize("size", [24, [24, 24]])
def test_the_size_of_a_unet_is_a_side_or_a_square(folder: Path, size: object) -> None:
    edit(folder / "unet" / "config.json", sample_size=size)
    assert describe_model(find_model(ModelOptions(model=str(folder)))).native_tile_px == 24 * 4


@pytest.mark.parametrize(
    "options",
    [
        {"_class_name": "EDMEulerScheduler"},
        {"_class_name": "NextYearsScheduler"},
        {"_class_name": "FlowMatchEulerDiscreteScheduler"},
        {"use_flow_sigmas": True},
        {"prediction_type": "flow_prediction"},
        {"prediction_type": None},
        {"num_train_timesteps": 1000.5},
        {"num_train_timesteps": True},
        {"beta_start": "0.00085"},
        {"beta_end": NAN},
        {"beta_start": 0},
        {"beta_schedule": "sqrt_linear"},
        {"rescale_betas_zero_snr": "yes"},
    ],
)
def test_an_unknown_scheduler_is_refused(folder: Path, options: dict[str, Any]) -> None:
    edit(folder / "scheduler" / "scheduler_config.json", **options)
    with pytest.raises(ModelError, match="schedule"):
        load_restorer(folder, device="cpu", precision="fp32")


def test_missing_betas_take_the_defaults_of_the_scheduler() -> None:
    keys = ("beta_start", "beta_end", "beta_schedule", "prediction_type", "num_train_timesteps")
    compared = 0
    for name in _SAMPLERS:
        parameters = inspect.signature(getattr(diffusers, name).__init__).parameters
        # A stand-in for a scheduler whose library is not installed has other parameters.
        if "beta_start" in parameters:
            ours = DdpmSchedule.from_config({"_class_name": name})
            assert [getattr(ours, key) for key in keys] == [parameters[key].default for key in keys], name
            compared += 1
    assert compared > 5


def test_a_missing_scaling_factor_takes_the_default_of_diffusers(folder: Path) -> None:
    path = folder / "vae" / "config.json"
    config = json.loads(path.read_text())
    del config["scaling_factor"]
    path.write_text(json.dumps(config))
    image = torch.rand(1, 3, 16, 16)
    theirs = AutoencoderKL.from_pretrained(folder / "vae")
    with torch.no_grad():
        expected = theirs.encode(image).latent_dist.mean * theirs.config.scaling_factor
        torch.testing.assert_close(load_encoder(vae=str(folder / "vae"), device="cpu").encode(image), expected)


def test_a_tiny_decoder_with_a_scale_of_its_own_is_refused(tmp_path: Path) -> None:
    for number, options in enumerate(({"scaling_factor": 0.5}, {"shift_factor": 0.1}, {"scaling_factor": 0})):
        AutoencoderTiny(latent_channels=4).save_pretrained(tmp_path / str(number))
        edit(tmp_path / str(number) / "config.json", **options)
        with pytest.raises(ModelError, match="scal"):
            load_tiny_decoder(tmp_path / str(number), 4, torch.device("cpu"), torch.float32)


@pytest.mark.parametrize(
    ("variant", "sharded"), [("bf16", False), ("fp32", True), ("non_ema", False), ("my-own", True)]
)
def test_every_variant_of_weights_is_found(folder: Path, variant: str, sharded: bool) -> None:
    image = torch.rand(1, 3, 16, 16) * 2 - 1
    plain = load_restorer(folder, device="cpu", precision="fp32").encode(image)
    for part in ("unet", "vae"):
        stem = folder / part / "diffusion_pytorch_model"
        weights = load_file(f"{stem}.safetensors")
        Path(f"{stem}.safetensors").unlink()
        if not sharded:
            save_file(weights, f"{stem}.{variant}.safetensors")
            continue
        names, places = sorted(weights), {}
        for number, share in enumerate((names[::2], names[1::2]), 1):
            file = Path(f"{stem}.{variant}-{number:05d}-of-00002.safetensors")
            save_file({name: weights[name] for name in share}, file)
            places |= dict.fromkeys(share, file.name)
        size = sum(weight.numel() * weight.itemsize for weight in weights.values())
        index = json.dumps({"metadata": {"total_size": size}, "weight_map": places})
        Path(f"{stem}.safetensors.index.{variant}.json").write_text(index)
    source = find_model(ModelOptions(model=str(folder)))
    assert describe_model(source).parameters > 0
    torch.testing.assert_close(load_restorer(folder, device="cpu", precision="fp32").encode(image), plain)


def test_ambiguous_variants_are_named(folder: Path) -> None:
    stem = folder / "unet" / "diffusion_pytorch_model"
    shutil.move(f"{stem}.safetensors", f"{stem}.ema.safetensors")
    shutil.copy(f"{stem}.ema.safetensors", f"{stem}.non_ema.safetensors")
    with pytest.raises(ModelError, match="ema, non_ema"):
        find_model(ModelOptions(model=str(folder)))
    shutil.copy(f"{stem}.ema.safetensors", f"{stem}.bf16.safetensors")
    assert math.isfinite(load_restorer(folder, device="cpu", precision="fp32").encode(torch.zeros(1, 3, 8, 8)).sum())


@pytest.mark.parametrize(("variant", "sharded"), [("bf16", False), ("fp32", True)])
def test_a_repository_with_one_variant_gives_that(variant: str, sharded: bool) -> None:
    stem = "unet/diffusion_pytorch_model"
    weights = (
        [
            f"{stem}.safetensors.index.{variant}.json",
            *(f"{stem}.{variant}-{number:05d}-of-00002.safetensors" for number in (1, 2)),
        ]
        if sharded
        else [f"{stem}.{variant}.safetensors"]
    )
    files = tuple(RemoteFile(path, 1, None, None) for path in ("unet/config.json", *weights))
    chosen = choose_files(
        Listing("a/b", "main", None, files), ModelFiles(("*/config.json",), {"unet": "diffusion_pytorch_model"})
    )
    assert {file.path for file in chosen} == {file.path for file in files}
