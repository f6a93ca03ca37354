"""Initialise omgsr-tiny's encoder with a free network: write a model folder for training.

    python recipes/omgsr_tiny/encoder.py x4v3.safetensors --photos PHOTOS --denoiser PRETRAINED --out START

The network has SRVGGNetCompact's shape: 32 convolutions of 64 channels at the size of the low-quality image
(realesr-general-x4v3, BSD-3-Clause, or a version of it with more training). The encoder uses 26 of them and omits the
six whose removal changes the image least. Its first and last convolution read the upscaled image instead of the
low-quality image; they are fitted by least squares, so that the untrained encoder's output is that of the network
without those six layers.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from omgsr_cli.imaging.resize import resize
from omgsr_cli.models.tiny_network import TinyConfig, TinyNetwork

LEFT_OUT = (2, 6, 11, 12, 15, 16)
CROP_PX, CROPS = 64, 96


def low_quality_crops(photos: Path) -> Tensor:
    """Return (N, 3, 64, 64) in [0, 1]: crops of reduced photographs, half of them with noise."""
    generator = torch.Generator().manual_seed(0)
    files = sorted(path for path in photos.rglob("*") if path.suffix.lower() in {".webp", ".png", ".jpg"})
    crops = []
    for index in range(CROPS):
        with Image.open(files[index % len(files)]) as photo:
            photo.thumbnail((512, 512))
            photo = photo.convert("RGB").resize((CROP_PX * 2, CROP_PX * 2))
        pixels = torch.frombuffer(bytearray(photo.tobytes()), dtype=torch.uint8)
        image = pixels.view(2 * CROP_PX, 2 * CROP_PX, 3).permute(2, 0, 1).float() / 255
        y, x = torch.randint(CROP_PX + 1, (2,), generator=generator).tolist()
        crop = image[:, y : y + CROP_PX, x : x + CROP_PX]
        if index % 2:
            crop = (crop + torch.randn(crop.shape, generator=generator) * 15 / 255).clamp(0, 1)
        crops.append(crop)
    return (torch.stack(crops) * 255).round() / 255


def solve_ends(weights: dict[str, Tensor], lq: Tensor) -> tuple[Tensor, Tensor]:
    """Fit convolutions on the upscaled image that do the same as the network's ends on the low-quality image.

    Args:
        weights: weights of the network.
        lq: (N, 3, h, w) in [0, 1].
    Returns:
        weight (112, 48, 3, 3) and bias (112,): 64 channels for the network's first convolution, and 48 channels for the
        difference between two bases: repeated pixels, to which the network adds, minus the bicubic image, to which the
        encoder adds.
    """
    size = (4 * lq.shape[2], 4 * lq.shape[3])
    enlarged = torch.stack([resize(image, size) for image in lq]) * 2 - 1
    known = F.unfold(F.pixel_unshuffle(enlarged, 4), 3).transpose(1, 2).reshape(-1, 48 * 9)
    known = torch.cat((known, torch.ones(len(known), 1)), 1).double()
    first = F.conv2d(lq, weights["body.0.weight"], weights["body.0.bias"])
    repeated = F.pixel_unshuffle(F.interpolate(lq, scale_factor=4.0, mode="nearest") * 2 - 1 - enlarged, 4)
    wanted = torch.cat((first, repeated[:, :, 1:-1, 1:-1]), 1).permute(0, 2, 3, 1).reshape(len(known), -1).double()
    ridge = torch.eye(known.shape[1], dtype=torch.float64) * len(known) * 1e-6
    solution = torch.linalg.solve(known.T @ known + ridge, known.T @ wanted).float()
    return solution[:-1].T.reshape(-1, 48, 3, 3).contiguous(), solution[-1]


@torch.no_grad()
def fill_encoder(network: TinyNetwork, weights: dict[str, Tensor], lq: Tensor) -> None:
    """Copy the network's layers to the encoder."""
    encoder = network.encoder
    weight, bias = solve_ends(weights, lq)
    encoder.conv_in.weight.copy_(weight[:64])
    encoder.conv_in.bias.copy_(bias[:64])
    encoder.acts[0].weight.copy_(weights["body.1.weight"])
    kept = [layer for layer in range(1, 33) if layer not in LEFT_OUT]
    for place, layer in enumerate(kept):
        encoder.convs[place].weight.copy_(weights[f"body.{2 * layer}.weight"])
        encoder.convs[place].bias.copy_(weights[f"body.{2 * layer}.bias"])
        encoder.acts[place + 1].weight.copy_(weights[f"body.{2 * layer + 1}.weight"])
    # The network's images are in [0, 1], the encoder's in [-1, 1].
    encoder.conv_out.weight.copy_(torch.cat((2 * weights["body.66.weight"], weight[64:]), 1))
    encoder.conv_out.bias.copy_(2 * weights["body.66.bias"] + bias[64:])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("network", type=Path)
    parser.add_argument("--photos", type=Path, required=True, help="folder of photographs to fit the ends on")
    parser.add_argument("--denoiser", type=Path, required=True, help="model folder with a pre-trained denoiser")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    config = TinyConfig()
    network = TinyNetwork(config)
    network.load_state_dict(load_file(options.denoiser / "model.safetensors"))
    weights = {name: value.float() for name, value in load_file(options.network).items()}
    fill_encoder(network, weights, low_quality_crops(options.photos))
    options.out.mkdir(parents=True)
    save_file(
        {name: value.contiguous() for name, value in network.state_dict().items()}, options.out / "model.safetensors"
    )
    (options.out / "config.json").write_text(json.dumps(config.model_dump(), indent=2) + "\n")
    (options.out / "omgsr.json").write_bytes((options.denoiser / "omgsr.json").read_bytes())


if __name__ == "__main__":
    main()
