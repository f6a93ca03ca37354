"""Train every configuration of this folder, one after the other, and print a table of their last validations.

    python recipes/ablations/run.py --set data.train=photos --set data.validation=validation
    python recipes/ablations/run.py --toy

Re-run the command to resume. `--toy` takes random networks and drawn images, and a few seconds for each run: it shows
that all of them work before a GPU is reserved.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file
from transformers import DINOv3ConvNextConfig, DINOv3ConvNextModel

from omgsr_cli.models.latent import SEQUENCE, save_features
from omgsr_cli.training.config import load_config
from omgsr_cli.training.loop import train
from omgsr_cli.training.perceptual import AlexNet, Vgg16

HERE = Path(__file__).parent
TOY = (
    *("data.resolution=64", "data.workers=0", "lora.vae_rank=2", "lora.backbone_rank=2", "optim.accumulate=1"),
    *("train.steps=1", "train.precision=fp32", "train.gradient_checkpointing=false", "log.validate_every=1"),
)


def main() -> int:
    """Train and print the table."""
    parser = argparse.ArgumentParser(description="Train every configuration of this folder.")
    parser.add_argument("--out", type=Path, default=Path("runs/ablations"), help="Folder of the runs.")
    parser.add_argument("--toy", action="store_true", help="Use random networks and drawn images.")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="Change a value of all runs.")
    arguments = parser.parse_args()
    common = [*(write_toy(arguments.out / "toy") if arguments.toy else ()), *arguments.set]
    rows: dict[str, dict[str, str]] = {}
    for path in sorted(HERE.glob("*.toml"), key=lambda path: (path.stem != "omgsr", path.stem)):
        folder = arguments.out / path.stem
        sets = [*common, f"save.out={folder}"]
        if arguments.toy:
            sets += toy_places(arguments.out / "toy", path)
        sys.stderr.write(f"{path.stem}\n")
        result = train(load_config(path, sets), resume="auto")
        if result.signal:
            return 128 + result.signal
        table = folder / "validation.csv"
        rows[path.stem] = list(csv.DictReader(table.open(encoding="utf-8")))[-1] if table.is_file() else {}
    sys.stdout.write(format_table(rows))
    return 0


def format_table(rows: dict[str, dict[str, str]]) -> str:
    """Format the last validation of each run as a Markdown table."""
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    lines = [["run", *names], ["---"] * (len(names) + 1)]
    lines += [[run, *(row.get(name, "") for name in names)] for run, row in rows.items()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_toy(folder: Path) -> Sequence[str]:
    """Write a base model, feature networks and images of toy size; returns the values that name them."""
    if not (folder / "photos").is_dir():
        torch.manual_seed(0)
        write_base(folder / "base")
        for name, width in (("tiny", 8), ("small", 12), ("base", 16), ("large", 24)):
            sizes = [width, 2 * width, 4 * width, 8 * width]
            network = DINOv3ConvNextModel(DINOv3ConvNextConfig(hidden_sizes=sizes, depths=[1, 1, 1, 1]))
            network.save_pretrained(folder / f"dinov3-convnext-{name}")
        write_published(Vgg16(), (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28), folder / "vgg16.safetensors")
        linear = {f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1) for i, c in enumerate(AlexNet.channels)}
        write_published(AlexNet(), (0, 3, 6, 8, 10), folder / "lpips.safetensors", linear)
        for number, place in enumerate(("validation", "photos")):
            (folder / place).mkdir()
            pixels = np.random.default_rng(number).integers(0, 256, (12, 12, 3), np.uint8)
            Image.fromarray(pixels).resize((96, 96), Image.Resampling.BICUBIC).save(folder / place / "0.png")
    return (
        *(f"model.base={folder / 'base'}", f"data.train={folder / 'photos'}"),
        *(f"data.validation={folder / 'validation'}", *TOY),
    )


def toy_places(folder: Path, path: Path) -> list[str]:
    """Name the toy's weights for the networks that a configuration names."""
    config = load_config(path)
    sets = [] if config.loss.lpips_path is None else [f"loss.lpips_path={folder / 'lpips.safetensors'}"]
    for section, (name, _) in config.backbones.items():
        place = folder / ("vgg16.safetensors" if name == "vgg16" else name)
        sets.append(f"{section}.backbone_path={place}")
    return sets


def write_base(folder: Path) -> None:
    """Write a random base model of a few channels in diffusers' layout, with the embedding of an empty prompt."""
    sizes = {"layers_per_block": 1, "norm_num_groups": 4}
    UNet2DConditionModel(
        **sizes,
        sample_size=8,
        block_out_channels=(8, 16),
        cross_attention_dim=12,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).save_pretrained(folder / "unet")
    AutoencoderKL(
        **sizes,
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
    ).save_pretrained(folder / "vae")
    schedule = {"_class_name": "DDPMScheduler", "beta_schedule": "scaled_linear", "beta_start": 0.00085}
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(schedule | {"beta_end": 0.012}))
    save_features({SEQUENCE: torch.randn(1, 5, 12)}, "", folder)


def write_published(
    network: torch.nn.Module, places: Sequence[int], path: Path, more: dict[str, torch.Tensor] | None = None
) -> None:
    """Write a network's convolutions under the names of torchvision's checkpoints, and more tensors beside them."""
    layers = [module for module in network.modules() if isinstance(module, torch.nn.Conv2d)]
    tensors = {
        f"features.{place}.{name}": value.contiguous()
        for place, layer in zip(places, layers, strict=True)
        for name, value in layer.state_dict().items()
    }
    save_file(tensors | (more or {}), path)


if __name__ == "__main__":
    sys.exit(main())
