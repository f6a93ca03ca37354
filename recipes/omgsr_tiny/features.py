"""Perceptual networks without torchvision: VGG16 and AlexNet features, LPIPS v0.1 and DISTS.

The weights are the files that `fetch_features.sh` unpacks into one folder. Every module here is frozen (no weight
gradients) and differentiable with respect to its input.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

# ImageNet's mean and deviation for images in [-1, 1]: 2 * mean - 1 and 2 * std; LPIPS calls them shift and scale.
SHIFT = (-0.030, -0.088, -0.188)
SCALE = (0.458, 0.448, 0.450)

VGG16_WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
VGG16_LAYERS = (
    *("relu1_1", "relu1_2", "relu2_1", "relu2_2", "relu3_1", "relu3_2", "relu3_3"),
    *("relu4_1", "relu4_2", "relu4_3", "relu5_1", "relu5_2", "relu5_3"),
)
STAGE_ENDS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")
DISTS_CHANNELS = [3, 64, 128, 256, 512, 512]

Pooling = Literal["max", "l2"]


def _empty_array(*_: object) -> np.ndarray[Any, Any]:
    """Stand in for numpy's private `_reconstruct`: an array whose state the pickle sets afterwards."""
    return np.empty(0, dtype=np.int8)


class _ArrayUnpickler(pickle.Unpickler):
    """Reads dictionaries of numpy arrays and nothing else, so that a foreign pickle cannot run code."""

    _ALLOWED: ClassVar[dict[tuple[str, str], Any]] = {
        ("numpy.core.multiarray", "_reconstruct"): _empty_array,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        """Return one of the three names that an array needs; refuse every other."""
        if (module, name) not in self._ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not part of an array")
        return self._ALLOWED[module, name]


def _load_arrays(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return cast("dict[str, Any]", _ArrayUnpickler(file).load())


def _to_conv_weight(kernel: np.ndarray[Any, Any]) -> Tensor:
    """Turn a (H, W, in, out) kernel into torch's (out, in, H, W)."""
    return torch.from_numpy(np.array(kernel, dtype=np.float32)).permute(3, 2, 0, 1).contiguous()


def _build_frozen_conv(layer: dict[str, Any], stride: int, padding: int, dtype: torch.dtype) -> nn.Conv2d:
    weight = _to_conv_weight(layer["kernel"])
    out_channels, in_channels, size, _ = weight.shape
    conv = nn.Conv2d(in_channels, out_channels, size, stride=stride, padding=padding)
    conv.load_state_dict({"weight": weight, "bias": torch.from_numpy(np.array(layer["bias"], dtype=np.float32))})
    return conv.to(dtype).requires_grad_(False)


class _Features(nn.Module):
    """What both networks share: frozen convolutions behind one normalisation of the input."""

    shift: Tensor
    scale: Tensor

    def __init__(self, convs: Sequence[nn.Conv2d]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(convs)
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1))

    def _normalise(self, image: Tensor) -> Tensor:
        first = cast("nn.Conv2d", self.convs[0])
        return ((image - self.shift) / self.scale).to(first.weight.dtype)


def pool_l2(features: Tensor) -> Tensor:
    """Halve features by an antialiased root mean square.

    out = sqrt(blur(x^2) + 1e-12) with the outer product of hanning(5)[1:-1], normalised to sum 1, stride 2, padding 1.
    Source: DISTS, arXiv:2004.07728, section II-A.

    Args:
        features: (B, C, H, W), float.
    Returns:
        (B, C, ceil(H/2), ceil(W/2)), dtype of features (of autocast where that is on), not negative.
    """
    taps = torch.tensor((0.25, 0.5, 0.25), dtype=features.dtype, device=features.device)
    channels = features.shape[1]
    kernel = (taps[:, None] * taps[None, :]).expand(channels, 1, 3, 3).contiguous()
    return (F.conv2d(features.square(), kernel, stride=2, padding=1, groups=channels) + 1e-12).sqrt()


def pool_max(features: Tensor) -> Tensor:
    """Halve features by the largest of each 2x2 block: (B, C, H, W) -> (B, C, H//2, W//2)."""
    return F.max_pool2d(features, 2)


class Vgg16Features(_Features):
    """VGG16 after the ReLUs that are asked for, built only as deep as the last of them.

    Args:
        folder: where `fetch_features.sh` put `vgg16.ckpt`.
        layers: names out of VGG16_LAYERS, in the order in which `forward` returns them.
        pooling: "max" as VGG16 was trained and LPIPS uses it, or "l2" as DISTS uses it.
        dtype: of the convolutions' weights; torch.bfloat16 where the hardware multiplies in it.
    """

    def __init__(
        self,
        folder: Path | str,
        layers: Sequence[str] = STAGE_ENDS,
        pooling: Pooling = "max",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.layers = tuple(layers)
        depth = 1 + max(VGG16_LAYERS.index(name) for name in self.layers)
        network = _load_arrays(Path(folder) / "vgg16.ckpt")["VGG16_0"]
        super().__init__([_build_frozen_conv(network[f"Conv_{i}"], 1, 1, dtype) for i in range(depth)])
        self._pool: Callable[[Tensor], Tensor] = pool_l2 if pooling == "l2" else pool_max

    def forward(self, image: Tensor) -> list[Tensor]:
        """Compute the features of an image.

        Args:
            image: (B, 3, H, W) float32, sRGB in [-1, 1]; H and W at least 16.
        Returns:
            One (B, C, H/2^k, W/2^k) for each of `layers`, dtype of the convolutions, not negative.
        """
        hidden = self._normalise(image)
        by_name: dict[str, Tensor] = {}
        for name, conv in zip(VGG16_LAYERS, self.convs, strict=False):
            if name.endswith("_1") and name != "relu1_1":
                hidden = self._pool(hidden)
            hidden = F.relu(conv(hidden), inplace=True)
            if name in self.layers:
                by_name[name] = hidden
        return [by_name[name] for name in self.layers]


class AlexNetFeatures(_Features):
    """AlexNet after its five ReLUs.

    Args:
        folder: where `fetch_features.sh` put `alexnet.ckpt`.
        dtype: of the convolutions' weights.
    """

    def __init__(self, folder: Path | str, dtype: torch.dtype = torch.float32) -> None:
        network = _load_arrays(Path(folder) / "alexnet.ckpt")["AlexNet_0"]
        strides_paddings = ((4, 2), (1, 2), (1, 1), (1, 1), (1, 1))
        super().__init__(
            [_build_frozen_conv(network[f"Conv_{i}"], *geometry, dtype) for i, geometry in enumerate(strides_paddings)]
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """Compute the five feature maps of an image.

        Args:
            image: (B, 3, H, W) float32, sRGB in [-1, 1]; H and W at least 31.
        Returns:
            Five tensors with 64, 192, 384, 256 and 256 channels, dtype of the convolutions, not negative.
        """
        hidden = self._normalise(image)
        outputs: list[Tensor] = []
        for index, conv in enumerate(self.convs):
            if index in (1, 2):
                hidden = F.max_pool2d(hidden, 3, stride=2)
            hidden = F.relu(conv(hidden), inplace=True)
            outputs.append(hidden)
        return outputs


def lpips_layer_distance(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """Weigh the squared difference of unit-length feature vectors and average it over space.

    Source: LPIPS, arXiv:1801.03924, Eq. 1.

    Args:
        first: (B, C, H, W), any float type; computed in float32.
        second: same shape.
        weight: (1, C, 1, 1), not negative.
    Returns:
        (B,) float32, not negative.
    """
    # F.normalize has a zero gradient for an all-zero feature vector, where a bare square root would give NaN.
    difference = F.normalize(first.float(), dim=1, eps=1e-10) - F.normalize(second.float(), dim=1, eps=1e-10)
    return (difference.square() * weight).sum(dim=1).mean(dim=(1, 2))


class Lpips(nn.Module):
    """LPIPS v0.1 with its published linear weights.

    Args:
        folder: where `fetch_features.sh` put the networks.
        net: "alex" (the one to report) or "vgg" (smoother, the usual one to train with).
        dtype: of the convolutions' weights; the distance itself is always float32.
    """

    def __init__(
        self, folder: Path | str, net: Literal["alex", "vgg"] = "alex", dtype: torch.dtype = torch.float32
    ) -> None:
        super().__init__()
        self.features = AlexNetFeatures(folder, dtype) if net == "alex" else Vgg16Features(folder, dtype=dtype)
        arrays = _load_arrays(Path(folder) / ("alexnet.ckpt" if net == "alex" else "vgg16.ckpt"))
        for index in range(5):
            weight = _to_conv_weight(arrays[f"NetLinLayer_{index}"]["Conv_0"]["kernel"])
            self.register_buffer(f"weight{index}", weight)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Measure the distance of two batches of images.

        Args:
            first: (B, 3, H, W) float32, sRGB in [-1, 1].
            second: same shape.
        Returns:
            (B,) float32; 0 for equal images.
        """
        pairs = list(zip(self.features(first), self.features(second), strict=True))
        with torch.autocast(first.device.type, enabled=False):
            distances = [lpips_layer_distance(a, b, self.get_buffer(f"weight{i}")) for i, (a, b) in enumerate(pairs)]
        return torch.stack(distances).sum(dim=0)


def dists_layer_similarity(first: Tensor, second: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Weigh the texture (means) and structure (covariance) similarity of two feature maps.

    Source: DISTS, arXiv:2004.07728, Eq. 6 to 8, c1 = c2 = 1e-6.

    Args:
        first: (B, C, H, W), any float type; computed in float32.
        second: same shape.
        alpha: (C,) weights of the texture term.
        beta: (C,) weights of the structure term.
    Returns:
        (B,) float32.
    """
    first, second = first.float(), second.float()
    first_mean, second_mean = first.mean(dim=(2, 3), keepdim=True), second.mean(dim=(2, 3), keepdim=True)
    first_centred, second_centred = first - first_mean, second - second_mean
    variances = first_centred.square().mean(dim=(2, 3)) + second_centred.square().mean(dim=(2, 3))
    covariance = (first_centred * second_centred).mean(dim=(2, 3))
    structure = (2 * covariance + 1e-6) / (variances + 1e-6)
    means_product = (first_mean * second_mean).flatten(1)
    texture = (2 * means_product + 1e-6) / ((first_mean.square() + second_mean.square()).flatten(1) + 1e-6)
    return texture @ alpha + structure @ beta


class Dists(nn.Module):
    """DISTS with its published weights.

    Args:
        folder: where `fetch_features.sh` put `vgg16.ckpt` and `dists.pt`.
        dtype: of the convolutions' weights; the statistics are always float32.
    """

    alpha: Tensor
    beta: Tensor

    def __init__(self, folder: Path | str, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.features = Vgg16Features(folder, pooling="l2", dtype=dtype)
        weights = torch.load(Path(folder) / "dists.pt", map_location="cpu", weights_only=True)
        total = weights["alpha"].sum() + weights["beta"].sum()
        self.register_buffer("alpha", (weights["alpha"] / total).detach().flatten())
        self.register_buffer("beta", (weights["beta"] / total).detach().flatten())

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Measure the distance of two batches of images.

        Args:
            first: (B, 3, H, W) float32, sRGB in [0, 1].
            second: same shape.
        Returns:
            (B,) float32; 0 for equal images.
        """
        first_maps = [first, *self.features(first * 2 - 1)]
        second_maps = [second, *self.features(second * 2 - 1)]
        alphas, betas = torch.split(self.alpha, DISTS_CHANNELS), torch.split(self.beta, DISTS_CHANNELS)
        with torch.autocast(first.device.type, enabled=False):
            similarities = [
                dists_layer_similarity(*layer) for layer in zip(first_maps, second_maps, alphas, betas, strict=True)
            ]
        return 1 - torch.stack(similarities).sum(dim=0)
