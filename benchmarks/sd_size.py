"""Measure time and memory of a model with Stable Diffusion 2.1-base's size and random weights.

Its results are noise, but it needs as much time and memory as the real model. `--make` writes the model as a folder
(3.8 GB in fp32). `--run` loads it in this process, which should be a fresh one, and restores two images.

    python benchmarks/sd_size.py --make /tmp/sd_size
    python benchmarks/sd_size.py --run /tmp/sd_size --precision fp32
    python benchmarks/sd_size.py --run /tmp/sd_size --precision bf16
    python benchmarks/sd_size.py --layouts 192

`--layouts` times only the VAE, on an image with this side, in torch's default layout and channels last, in fp32 and
bf16.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import stages
import torch
from stages import Row, count_flops, peak_memory_gib, print_table, restoration_rows, timed
from torch import nn

from omgsr_cli.geometry import Size
from omgsr_cli.models.base import Restorer
from omgsr_cli.models.latent import SEQUENCE, save_features
from omgsr_cli.models.libraries import quiet_libraries
from omgsr_cli.models.loading import load_restorer
from omgsr_cli.models.record import ModelRecord, write_record
from omgsr_cli.models.sd import SdRestorer
from omgsr_cli.options import RestoreOptions
from omgsr_cli.planning import plan_restoration, usable_memory

_TOKENS = 77

# The public configuration of Stable Diffusion 2.1-base; both it and this file use diffusers' defaults for other values.
_SD21_UNET: dict[str, Any] = {
    "sample_size": 64,
    "block_out_channels": (320, 640, 1280, 1280),
    "attention_head_dim": (5, 10, 20, 20),
    "cross_attention_dim": 1024,
    "use_linear_projection": True,
    "layers_per_block": 2,
}
_SD21_VAE: dict[str, Any] = {
    "sample_size": 768,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "scaling_factor": 0.18215,
}
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "sd21": (_SD21_UNET, _SD21_VAE),
    # The same layout with few channels, to test this program.
    "toy": (
        _SD21_UNET
        | {
            "sample_size": 8,
            "block_out_channels": (32, 32, 64, 64),
            "layers_per_block": 1,
            "attention_head_dim": 2,
            "cross_attention_dim": 16,
        },
        _SD21_VAE | {"sample_size": 64, "block_out_channels": (32, 32, 64, 64), "layers_per_block": 1},
    ),
}
_SCHEDULE = {
    "_class_name": "DDIMScheduler",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "num_train_timesteps": 1000,
    "prediction_type": "epsilon",
}


def build_networks(shape: str) -> tuple[nn.Module, nn.Module]:
    """Return UNet and VAE on the meta device: shapes without values, which are built quickly."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    unet_config, vae_config = SHAPES[shape]
    with torch.device("meta"):
        return UNet2DConditionModel(**unet_config), AutoencoderKL(**vae_config)


@torch.no_grad()
def fill_randomly(network: nn.Module, seed: int = 0) -> nn.Module:
    """Fill a network of the meta device with values that keep the size of activations: N(0, 1/fan_in), biases 0."""
    network.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(0, 1 / math.sqrt(parameter[0].numel()), generator=generator)
        else:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
    return network


def make(folder: Path, shape: str, weights: str) -> None:
    """Write a merged model folder that needs no text encoder."""
    folder.mkdir(parents=True)
    unet_config, _ = SHAPES[shape]
    with quiet_libraries():
        for part, network in zip(("unet", "vae"), build_networks(shape), strict=True):
            filled: Any = fill_randomly(network)
            if weights == "fp16":
                filled = filled.half()
            filled.save_pretrained(folder / part, variant="fp16" if weights == "fp16" else None)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(_SCHEDULE), encoding="utf-8")
    generator = torch.Generator().manual_seed(1)
    embeds = torch.randn(1, _TOKENS, unet_config["cross_attention_dim"], generator=generator)
    save_features({SEQUENCE: embeds}, "", folder)
    native_px = unet_config["sample_size"] * 8
    write_record(ModelRecord(family="sd", mid_timestep=273, native_tile_px=native_px, scale=4.0, prompt=""), folder)


def without_numbers(restorer: SdRestorer, shape: str) -> SdRestorer:
    """Return a copy of the restorer on the meta device, for counting; the original stays unchanged."""
    with quiet_libraries():
        unet, vae = (network.to(restorer.backbone.dtype) for network in build_networks(shape))
    parts: Any = (unet, vae)
    info, precision, source = restorer.info, restorer.precision, restorer.source
    return SdRestorer(*parts, restorer.schedule, restorer.features, info, precision, source)


def find_shape(restorer: SdRestorer) -> str:
    """Return the name of the shape of a folder."""
    width = restorer.backbone.config["cross_attention_dim"]
    return next(name for name, (unet, _) in SHAPES.items() if unet["cross_attention_dim"] == width)


def run(folder: Path, precision: str, size_px: int) -> None:
    """Load the folder, restore two images and print the table."""
    load_s, restorer = timed(lambda: load_restorer(folder, device=str(stages.device), precision=precision))
    loaded = Row("load", load_s, peak_memory_gib())
    assert isinstance(restorer, SdRestorer)
    describe(restorer, size_px)
    enlarged_px = max(round(size_px * restorer.info.scale), restorer.info.native_tile_px)
    flops = count_flops(without_numbers(restorer, find_shape(restorer)), enlarged_px)
    print_table([loaded, *restoration_rows(restorer, size_px, flops)])


def describe(restorer: Restorer, size_px: int) -> None:
    """Print the measured setup, and refuse a size at which the step needs more than one tile."""
    info = restorer.info
    output = Size(size_px, size_px).times(info.scale)
    plan = plan_restoration(info, Size(size_px, size_px), output, RestoreOptions(), usable_memory(restorer.device))
    if plan.tiles != 3:
        raise SystemExit(f"{output} pixels take {plan.tiles} tiles here; stages are compared in one tile each")
    print(f"{info.parameters / 1e6:.0f} M parameters, {restorer.precision}, {torch.get_num_threads()} threads")
    print(f"{size_px}x{size_px} to {output}\n")


@torch.inference_mode()
def compare_layouts(size_px: int) -> None:
    """Print the VAE's time with the default layout of weights, divided by its time with channels last."""
    clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter
    vae: Any = fill_randomly(build_networks("sd21")[1]).eval()
    image, latent = torch.rand(1, 3, size_px, size_px), torch.randn(1, 4, size_px // 8, size_px // 8)
    for dtype in (torch.float32, torch.bfloat16):
        taken: dict[tuple[str, torch.memory_format], float] = {}
        given = image.to(dtype), latent.to(dtype)
        for layout in (torch.contiguous_format, torch.channels_last):
            vae.to(dtype).to(memory_format=layout)
            for name, work, tensor in (("encode", vae.encode, given[0]), ("decode", vae.decode, given[1])):
                least = math.inf
                for _ in range(2):
                    started = clock()
                    work(tensor)
                    least = min(least, clock() - started)
                taken[name, layout] = least
        for name in ("encode", "decode"):
            built, last = taken[name, torch.contiguous_format], taken[name, torch.channels_last]
            print(f"{dtype}, {name}: {built:.2f} s as built, {last:.2f} channels last, {built / last:.2f}")


def main() -> None:
    """Run the requested action."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--make", type=Path, metavar="FOLDER", help="write the model; the folder must not exist")
    task.add_argument("--run", type=Path, metavar="FOLDER", help="measure it")
    task.add_argument("--layouts", type=int, metavar="PX", help="compare layouts of the VAE")
    parser.add_argument("--shape", choices=tuple(SHAPES), default="sd21", help="of --make")
    parser.add_argument("--weights", choices=("fp32", "fp16"), default="fp32", help="in the file, of --make")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of --run")
    parser.add_argument("--size", type=int, default=128, help="side of the image in px, of --run")
    parser.add_argument("--threads", type=int, default=2)
    stages.add_device(parser)
    options = parser.parse_args()
    stages.use_device(options.device)
    torch.set_num_threads(options.threads)
    if options.layouts:
        compare_layouts(options.layouts)
    elif options.make:
        make(options.make, options.shape, options.weights)
    else:
        run(options.run, options.precision, options.size)


if __name__ == "__main__":
    main()
