"""DISTS: how alike two pictures are in structure and texture, on the features of any network.

On DINOv3's ConvNeXt with equal weights it is OMGSR's Dv3CD; on VGG16 with learned weights it is DISTS as published.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from omgsr_cli.errors import ModelError
from omgsr_cli.training.features import FeatureNet
from omgsr_cli.training.features.weights import find_optional_weights, read_tensors

_C1 = _C2 = 1e-6


def layer_distance(first: Tensor, second: Tensor, texture_weight: Tensor, structure_weight: Tensor) -> Tensor:
    """Weigh how far two feature maps differ in texture (means) and structure (covariance).

    Source: one minus the similarities of DISTS, arXiv:2004.07728, Eq. 6 to 8, c1 = c2 = 1e-6. Summed as distances, they
    are exactly 0 for equal maps.

    Args:
        first: (B, C, H, W), any float type; computed in float32, under autocast too.
        second: same shape.
        texture_weight: (C,) float32.
        structure_weight: (C,) float32.
    Returns:
        (B,) float32, not negative.
    """
    with torch.autocast(first.device.type, enabled=False):
        first, second = first.float(), second.float()
        first_mean, second_mean = first.mean(dim=(2, 3), keepdim=True), second.mean(dim=(2, 3), keepdim=True)
        first_centred, second_centred = first - first_mean, second - second_mean
        variances = first_centred.square().mean(dim=(2, 3)) + second_centred.square().mean(dim=(2, 3))
        covariance = (first_centred * second_centred).mean(dim=(2, 3))
        structure = (2 * covariance + _C2) / (variances + _C2)
        squares = (first_mean.square() + second_mean.square()).flatten(1)
        texture = (2 * (first_mean * second_mean).flatten(1) + _C1) / (squares + _C1)
        return (1 - texture) @ texture_weight + (1 - structure) @ structure_weight


class Dists(nn.Module):
    """The distance of pictures, of their pixels and of every stage of a feature network.

    Args:
        features: the network; its chain with L2 pooling is compared.
        texture: (3 + sum of the network's channels,) weights of the means, the pixels' first; None weighs all alike.
        structure: likewise, of the covariances. All weights together are scaled to the sum 1.
    Raises:
        ModelError: the weights are not as many.
    """

    texture: Tensor
    structure: Tensor

    def __init__(self, features: FeatureNet, texture: Tensor | None = None, structure: Tensor | None = None) -> None:
        super().__init__()
        self.features = features
        self.channels = (3, *features.channels)
        alike = torch.ones(sum(self.channels))
        weights = [alike if weight is None else weight.flatten().float() for weight in (texture, structure)]
        if any(weight.shape != alike.shape for weight in weights):
            shapes = [tuple(weight.shape) for weight in weights]
            raise ModelError(f"DISTS has weights of the shapes {shapes}, the network needs {len(alike)} of each")
        total = weights[0].sum() + weights[1].sum()
        self.register_buffer("texture", weights[0] / total)
        self.register_buffer("structure", weights[1] / total)
        self._compare = self._compare_maps

    def compile_statistics(self) -> None:
        """Compile the statistics: on a CPU they then take a seventh of the time; the networks would gain nothing."""
        self._compare = torch.compile(self._compare_maps, dynamic=False)

    def maps(self, image: Tensor) -> list[Tensor]:
        """Compute what is compared.

        Args:
            image: (B, 3, H, W) float, sRGB in [-1, 1].
        Returns:
            The pixels in [0, 1], then the pooled map of each stage.
        """
        return [image.float() / 2 + 0.5, *self.features(image, pooled=True)]

    def compare(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> Tensor:
        """Compare what `maps` gave of two batches: (B,) float32; 0 for equal pictures."""
        return self._compare(tuple(first), tuple(second))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Measure the distance of two batches of pictures.

        Args:
            first: (B, 3, H, W) float, sRGB in [-1, 1].
            second: same shape.
        Returns:
            (B,) float32; 0 for equal pictures.
        """
        return self.compare(self.maps(first), self.maps(second))

    def _compare_maps(self, first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> Tensor:
        textures, structures = (torch.split(weights, list(self.channels)) for weights in (self.texture, self.structure))
        layers = zip(first, second, textures, structures, strict=True)
        return torch.stack([layer_distance(*layer) for layer in layers]).sum(dim=0)


def build_dv3cd(features: FeatureNet) -> Dists:
    """Build OMGSR's distance, arXiv:2508.08227: all channels weigh alike, 1 / (2 * sum of channels) each."""
    return Dists(features)


def load_dists(features: FeatureNet, source: Path | None) -> Dists:
    """Read the learned weights of DISTS where they lie beside the network's, else weigh all channels alike.

    Args:
        features: VGG16, for the published weights.
        source: the network's file or folder, with `dists*` beside or in it, holding `alpha` and `beta` as DISTS
            publishes them; None has none.
    Raises:
        ModelError: the file cannot be read or is for another network.
    """
    folder = source.parent if source is not None and source.is_file() else source
    path = None if folder is None else find_optional_weights(folder, "dists")
    if path is None:
        return build_dv3cd(features)
    tensors = read_tensors(path)
    if not {"alpha", "beta"} <= tensors.keys():
        raise ModelError(f"{path} has no weights of DISTS: alpha and beta")
    return Dists(features, tensors["alpha"], tensors["beta"])
