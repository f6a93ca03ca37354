"""Measure a restorer, or a folder of its results, on pairs of low-quality and high-quality images.

    python evaluate.py --features DIR --data benchmarks/realsr --method bicubic
    python evaluate.py --features DIR --data benchmarks/realsr --data benchmarks/drealsr --sr osediff --json
    python evaluate.py --features DIR --data benchmarks/realsr --model FOLDER

A dataset is a folder with `lr/` and `hr/`, whose files have the same names. The protocol follows publications on
one-step restoration: 8-bit images, PSNR and SSIM on BT.601's Y, no border cropping, means over images.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from features import convert_missing
from PIL import Image
from torch import Tensor

from omgsr_cli.training.perceptual import load_dists, load_lpips, load_vgg16

METRICS = ("psnr_y", "ssim_y", "lpips_alex", "lpips_vgg", "dists")
SCALE = 4

Restore = Callable[[Image.Image], Image.Image]
Measure = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Pair:
    """One image to restore, or a restored image, and its high-quality image."""

    name: str
    source: Path
    hr: Path


def find_pairs(data: Path, source: Path | str = "lr") -> list[Pair]:
    """List a dataset's pairs in the order of their names.

    Args:
        data: the folder with `hr/`.
        source: the other folder, inside `data` or elsewhere.
    Raises:
        FileNotFoundError: an image of `hr/` has no counterpart in the other folder, or `hr/` has no images.
    """
    folder = data / source if (data / source).is_dir() else Path(source)
    pairs = [Pair(hr.name, folder / hr.name, hr) for hr in sorted((data / "hr").glob("*.png"))]
    missing = [str(pair.source) for pair in pairs if not pair.source.is_file()]
    if missing or not pairs:
        raise FileNotFoundError(missing[0] if missing else str(data / "hr" / "*.png"))
    return pairs


def to_tensor(image: Image.Image) -> Tensor:
    """Convert an image to (1, 3, H, W) float32, sRGB in [0, 1]."""
    pixels = np.array(image.convert("RGB"), dtype=np.float32) / 255
    return torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0).contiguous()


def to_image(image: Tensor) -> Image.Image:
    """Convert (1, 3, H, W), sRGB in [0, 1], to an 8-bit image: clamp and round to the nearest value."""
    pixels = (image[0].detach().float().clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


def luma(image: Tensor) -> Tensor:
    """Compute BT.601's Y with studio swing.

    Args:
        image: (B, 3, H, W), sRGB in [0, 1].
    Returns:
        (B, 1, H, W) float64 in [16, 235], not rounded.
    """
    weights = torch.tensor((65.481, 128.553, 24.966), dtype=torch.float64, device=image.device)
    return 16 + (image.double() * weights.view(1, 3, 1, 1)).sum(dim=1, keepdim=True)


def psnr_y(first: Tensor, second: Tensor) -> Tensor:
    """Compute the PSNR of Y in dB: two (B, 3, H, W) in [0, 1] -> (B,) float64, infinite for equal images."""
    return 10 * torch.log10(255**2 / (luma(first) - luma(second)).square().mean(dim=(1, 2, 3)))


def _gaussian_11(like: Tensor) -> Tensor:
    offsets = torch.arange(-5, 6, dtype=like.dtype, device=like.device)
    taps = torch.exp(-offsets.square() / (2 * 1.5**2))
    return taps / taps.sum()


def ssim_y(first: Tensor, second: Tensor) -> Tensor:
    """Compute the SSIM of Y: Gaussian window of 11x11 with sigma 1.5, only at positions fully inside the image.

    Source: Wang et al., "Image quality assessment: from error visibility to structural similarity", TIP 2004.

    Args:
        first: (B, 3, H, W), sRGB in [0, 1]; H and W at least 11.
        second: same shape.
    Returns:
        (B,) float64, in [0, 1].
    """
    # Follow the toolbox of the published tables, or scores differ in the third decimal: it rounds Y (for SSIM, not for
    # PSNR) and clips negative structure.
    a, b = luma(first).round(), luma(second).round()
    taps = _gaussian_11(a)

    def blur(plane: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(plane, taps.view(1, 1, 11, 1)), taps.view(1, 1, 1, 11))

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mean_a, mean_b = blur(a), blur(b)
    variances = blur(a * a) - mean_a.square() + blur(b * b) - mean_b.square()
    covariance = blur(a * b) - mean_a * mean_b
    luminance = (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
    structure = ((2 * covariance + c2) / (variances + c2)).clamp(min=0)
    return (luminance * structure).mean(dim=(1, 2, 3))


def load_measures(features: Path | str, names: Sequence[str] = METRICS) -> dict[str, Measure]:
    """Load the named metrics.

    Args:
        features: the folder that `fetch_features.sh` writes.
        names: names from METRICS; `lpips_vgg` and `dists`, which use VGG16, need nearly all of the time.
    Returns:
        Functions of (restored, hr), both (B, 3, H, W) float32 in [0, 1], to (B,).
    """
    convert_missing(Path(features))

    def on_signed(distance: Measure) -> Measure:
        return lambda first, second: distance(first * 2 - 1, second * 2 - 1)

    loaders: dict[str, Callable[[], Measure]] = {
        "psnr_y": lambda: psnr_y,
        "ssim_y": lambda: ssim_y,
        "lpips_alex": lambda: on_signed(load_lpips(Path(features), "alex")),
        "lpips_vgg": lambda: on_signed(load_lpips(Path(features), "vgg")),
        "dists": lambda: on_signed(load_dists(load_vgg16(Path(features)), Path(features))),
    }
    return {name: loaders[name]() for name in names}


@torch.inference_mode()
def evaluate_pairs(
    restore: Restore, pairs: Iterable[Pair], measures: dict[str, Measure]
) -> dict[str, dict[str, float]]:
    """Restore every pair's source and measure the result against its HR image.

    Args:
        restore: maps a source image to an image of the HR image's size.
        pairs: from `find_pairs`.
        measures: from `load_measures`.
    Returns:
        Image name -> metric -> score.
    Raises:
        ValueError: the size of a restored image differs from that of its HR image.
    """
    scores: dict[str, dict[str, float]] = {}
    for pair in pairs:
        with Image.open(pair.source) as source, Image.open(pair.hr) as target:
            restored, hr = restore(source.convert("RGB")), target.convert("RGB")
        if restored.size != hr.size:
            raise ValueError(f"{pair.name}: restored to {restored.size}, its HR image has {hr.size}")
        first, second = to_tensor(restored), to_tensor(hr)
        scores[pair.name] = {name: float(measure(first, second)) for name, measure in measures.items()}
    return scores


def mean_scores(scores: dict[str, dict[str, float]]) -> dict[str, float]:
    """Average each metric over the images."""
    names = next(iter(scores.values()))
    return {name: sum(score[name] for score in scores.values()) / len(scores) for name in names}


def enlarge_bicubic(image: Image.Image) -> Image.Image:
    """Upscale an image four times with the bicubic filter."""
    return image.resize((image.width * SCALE, image.height * SCALE), Image.Resampling.BICUBIC)


def load_model(folder: Path) -> Restore:
    """Load a model folder of omgsr-cli, which runs in the same way as in `omgsr upscale`."""
    from omgsr_cli.geometry import Size
    from omgsr_cli.models.loading import load_restorer
    from omgsr_cli.upscaling import upscale_image

    restorer = load_restorer(str(folder), precision="fp32")

    def restore(image: Image.Image) -> Image.Image:
        size = Size(image.height * SCALE, image.width * SCALE)
        return to_image(upscale_image(restorer, to_tensor(image)[0], size)[None])

    return restore


def load_spandrel(file: Path) -> Restore:
    """Load a network with the package `spandrel`, which is not a dependency of omgsr-cli."""
    from spandrel import ModelLoader

    model = ModelLoader(device="cpu").load_from_file(file).float()
    return lambda image: to_image(model(to_tensor(image)))


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--features", type=Path, required=True, help="folder that fetch_features.sh filled")
    parser.add_argument("--data", type=Path, action="append", required=True, help="folder with lr/ and hr/; repeatable")
    parser.add_argument("--metrics", nargs="+", choices=METRICS, default=METRICS)
    parser.add_argument("--json", action="store_true", help="a JSON object a set, with every image's scores")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--sr", type=Path, help="images restored already: a folder inside each set, or anywhere")
    what.add_argument("--method", choices=("bicubic",))
    what.add_argument("--model", type=Path, help="model folder of omgsr-cli")
    what.add_argument("--spandrel", type=Path, help="x4 network for the package spandrel")
    return parser.parse_args(arguments)


def choose_restore(options: argparse.Namespace) -> Restore:
    """Load the restorer that the command line selects; restored images stay unchanged."""
    if options.model:
        return load_model(options.model)
    if options.spandrel:
        return load_spandrel(options.spandrel)
    return enlarge_bicubic if options.method else lambda image: image


def main() -> None:
    """Print one line, or one JSON object, for each dataset."""
    options = parse_arguments()
    restore, measures = choose_restore(options), load_measures(options.features, options.metrics)
    for data in options.data:
        scores = evaluate_pairs(restore, find_pairs(data, options.sr or "lr"), measures)
        means = mean_scores(scores)
        if options.json:
            line = json.dumps({"data": data.name, "pairs": len(scores), "mean": means, "scores": scores})
        else:
            line = f"{data.name} ({len(scores)}): " + "  ".join(f"{name} {value:.4f}" for name, value in means.items())
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
