"""Frozen feature networks and image distances on their features.

The networks are DINOv3 ConvNeXt, VGG16 and AlexNet. DISTS compares structure and texture: on DINOv3 with equal weights
it is OMGSR's Dv3CD, on VGG16 with learned weights it is DISTS as published. The weights of LPIPS v0.1 are learned from
human judgements.
"""

from __future__ import annotations

import re
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from omgsr_cli.errors import ModelError, ShapeError, reason_of
from omgsr_cli.models.libraries import explained_imports, quiet_libraries
from omgsr_cli.models.record import read_json
from omgsr_cli.presets import FEATURE_NETWORKS, FeatureNetwork
from omgsr_cli.store.hub import download_files, is_repository_name
from omgsr_cli.training.config import BACKBONES, TrainConfig

if TYPE_CHECKING:
    from transformers import DINOv3ConvNextModel

# Mean and standard deviation of ImageNet for images in [-1, 1]: 2 * mean - 1 and 2 * deviation.
_SHIFT = tuple(2 * mean - 1 for mean in (0.485, 0.456, 0.406))
_SCALE = tuple(2 * deviation for deviation in (0.229, 0.224, 0.225))


class FrozenNet(nn.Module):
    """A network on normalised images whose weights are frozen; gradients reach its input.

    It computes in the dtype of its weights, also inside an autocast context, unless the caller requests autocast. A
    measurement is therefore the same wherever it is called.

    Attributes:
        min_px: smallest side of an image.
    """

    min_px: int = 1
    shift: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(_SHIFT).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE).view(1, 3, 1, 1), persistent=False)

    def freeze(self, dtype: torch.dtype = torch.float32) -> Self:
        """Turn off the gradients of all weights and convert them to a dtype; return the network."""
        for weight in self.parameters():
            # The buffers stay float32, because images are normalised before they are rounded.
            weight.data = weight.data.to(dtype)
        return self.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Self:
        """Keep evaluation mode: a frozen network has no training mode."""
        return super().train(False)

    def normalise(self, image: Tensor) -> Tensor:
        """Normalise images with the mean and standard deviation of ImageNet, and convert them to the weights' dtype.

        Args:
            image: (B, 3, H, W) float, sRGB in [-1, 1].
        Raises:
            ShapeError: the shape is different, or a side is below `min_px`.
        """
        if image.ndim != 4 or image.shape[1] != 3 or min(image.shape[2:]) < self.min_px:
            shape = tuple(image.shape)
            raise ShapeError(f"images must be (B, 3, H, W) with sides from {self.min_px} px on, not {shape}")
        return ((image.float() - self.shift) / self.scale).to(next(self.parameters()).dtype)


class FeatureNet(FrozenNet, ABC):
    """A frozen network with one feature map per stage.

    Attributes:
        title: display name.
        channels: channels of each stage's map.
        strides: image pixels per element of each stage's map, along each side.
    """

    title: str
    channels: tuple[int, ...]
    strides: tuple[int, ...]

    def forward(self, image: Tensor, pooled: bool = False, autocast: bool = False) -> list[Tensor]:
        """Compute the feature maps of images.

        Args:
            image: (B, 3, H, W) float, sRGB in [-1, 1]; sides at least `min_px`.
            pooled: use L2 pooling, as DISTS does, instead of the network's original pooling.
            autocast: compute in bf16 where torch's autocast does.
        Returns:
            For each stage (B, channels, H // stride, W // stride) in the dtype of the weights, or bf16 with autocast;
            with `pooled`, sides may be rounded up.
        Raises:
            ShapeError: the image has a different shape.
        """
        with torch.autocast(image.device.type, torch.bfloat16, enabled=autocast):
            return self._maps(self.normalise(image), pooled)

    @abstractmethod
    def _maps(self, image: Tensor, pooled: bool) -> list[Tensor]:
        """Compute the maps of a normalised image."""


def pool_l2(features: Tensor, stride: int) -> Tensor:
    """Pool features by an antialiased root mean square.

    out = sqrt(blur(x^2) + 1e-12). The kernel is the outer product of hanning(5)[1:-1], normalised to sum 1; padding 1.
    Source: DISTS, arXiv:2004.07728, section II-A.

    Args:
        features: (B, C, H, W) float.
        stride: 1 keeps the size.
    Returns:
        (B, C, ceil(H / stride), ceil(W / stride)), dtype of features, positive.
    """
    # 1/4, 1/2, 1/4, computed on the device of the features, because a copy to it would block.
    taps = (2 - torch.arange(-1, 2, device=features.device).abs()).to(features.dtype) / 4
    channels = features.shape[1]
    kernel = (taps[:, None] * taps[None, :]).expand(channels, 1, 3, 3).contiguous()
    return (F.conv2d(features.square(), kernel, stride=stride, padding=1, groups=channels) + 1e-12).sqrt()


SUFFIXES = (".safetensors", ".pth", ".pt")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a file of named tensors onto the CPU.

    Feature networks are published as `.pth`. torch reads these without executing code from the file.

    Args:
        path: a `.safetensors` file, or a `.pth` or `.pt` file with one dictionary of tensors.
    Raises:
        ModelError: the file does not exist, cannot be read or contains something else.
    """
    if not path.is_file():
        raise ModelError(f"{path} does not exist")
    try:
        found = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except UnpicklingError as error:
        raise ModelError(
            f"{path} contains more than tensors; such files can run code when they are read",
            hint="convert it to .safetensors where you trust it",
        ) from error
    # A truncated file or a file of another format can fail with any of these.
    except (OSError, EOFError, RuntimeError, LookupError, ValueError, struct.error, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0] or "the file is truncated"
        raise ModelError(f"{path} cannot be read: {reason}", hint="fetch it again") from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ModelError(f"{path} is not a dictionary of tensors")
    return {str(name): value.detach() for name, value in found.items()}


def find_weights(source: Path, stem: str) -> Path:
    """Return a weight file: the source itself, or the one of that name in a folder.

    Raises:
        ModelError: no weight file exists.
    """
    found = source if source.is_file() else find_optional_weights(source, stem)
    if found is None:
        names = " or ".join(f"{stem}*{suffix}" for suffix in SUFFIXES[:2])
        raise ModelError(f"{source} has no weights of {stem}", hint=f"it needs a file {names}")
    return found


def find_optional_weights(folder: Path, stem: str) -> Path | None:
    """Find a weight file: the stem `vgg16` finds `vgg16.safetensors` and `vgg16-397923af.pth`."""
    # A longer name belongs to another network (vgg16_bn), unless a hash follows as in torch's published files.
    patterns = [f"{stem}{mark}{suffix}" for suffix in SUFFIXES for mark in ("", "-*")]
    return next((file for pattern in patterns for file in sorted(folder.glob(pattern))), None)


def fill(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Load tensors as float32 into a module; every weight must exist with the right shape.

    Args:
        module: module whose `state_dict` has the same names.
        tensors: tensors by name; names that the module does not have are ignored.
        path: file of the tensors, for the error message.
    Raises:
        ModelError: a tensor is missing or has a different shape.
    """
    wanted = module.state_dict()
    for name, weight in wanted.items():
        found = tensors.get(name)
        if found is None:
            raise ModelError(f"{path} has no {name}")
        if found.shape != weight.shape:
            raise ModelError(f"{path}: {name} must have the shape {tuple(weight.shape)}, not {tuple(found.shape)}")
    module.load_state_dict({name: tensors[name].float() for name in wanted}, assign=True)


MODEL_TYPE = "dinov3_convnext"
"""`model_type` in `config.json`."""

_STAGES = 3
"""Number of stages; the fourth is left out, because it encodes the content of an image rather than its appearance."""

# Rules that convert Meta's names to those of transformers; all are applied in order to every name.
_RENAMES = (
    (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample_layers."),
    (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.layers.\2."),
    (r"\.dwconv\.", ".depthwise_conv."),
    (r"\.pwconv(\d)\.", r".pointwise_conv\1."),
    (r"(^|\.)norm\.", r"\1layer_norm."),
)


class DinoV3(FeatureNet):
    """The first three stages of a DINOv3 ConvNeXt.

    Args:
        stages: modules, each from one map to the next.
        channels: channels of their maps.
    """

    title = "DINOv3-ConvNeXt"
    strides = (4, 8, 16)
    min_px = 16

    def __init__(self, stages: Iterable[nn.Module], channels: Iterable[int]) -> None:
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.channels = tuple(channels)

    def _maps(self, image: Tensor, pooled: bool) -> list[Tensor]:
        hidden, maps = image, list[Tensor]()
        for stage in self.stages:
            hidden = stage(hidden)
            if pooled:
                hidden = pool_l2(hidden, stride=1)
            maps.append(hidden)
        return maps


def load_dinov3(source: str | Path, dtype: torch.dtype = torch.float32) -> DinoV3:
    """Load a DINOv3 ConvNeXt of any size.

    Args:
        source: a folder in the layout of transformers, a hub repository OWNER/NAME, or the file that Meta publishes.
        dtype: dtype of the weights and of the computation.
    Raises:
        ModelError: the network does not exist, cannot be fetched or is of another kind.
    """
    path = Path(source)
    if path.is_file() or path.suffix in SUFFIXES:
        model = _load_published(path)
    elif path.is_dir():
        model = _load_folder(path)
    elif is_repository_name(str(source)):
        model = _load_folder(fetch_network(FEATURE_NETWORKS["dinov3-convnext-large"], str(source)))
    else:
        raise ModelError(
            f"{str(source)!r} is neither a folder, a weight file nor a hub repository",
            hint="give a folder, a published .pth file, or a hub repository OWNER/NAME",
        )
    stages, widths = _encoder(model).get_submodule("stages"), model.config.hidden_sizes
    assert widths is not None
    return DinoV3(list(stages.children())[:_STAGES], widths[:_STAGES]).freeze(dtype)


def rename_published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights that Meta publishes to the names in transformers.

    `stages.2.4.dwconv.bias` becomes `stages.2.layers.4.depthwise_conv.bias`.
    """
    renamed = {}
    for name, value in tensors.items():
        # `norms.3` is a copy of `norm` under the name of its stage.
        if name.startswith("norms."):
            continue
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


def infer_sizes(tensors: Mapping[str, Tensor]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Infer the depths and widths of the four stages from renamed weights.

    Raises:
        ModelError: the weights are not those of a ConvNeXt.
    """
    depths, widths = [0] * 4, [0] * 4
    for name, value in tensors.items():
        match = re.fullmatch(r"stages\.([0-3])\.layers\.(\d+)\.gamma", name)
        if match:
            stage = int(match[1])
            depths[stage] = max(depths[stage], int(match[2]) + 1)
            widths[stage] = value.numel()
    if not all(depths):
        raise ModelError("the weights are not those of a DINOv3 ConvNeXt, which has four stages")
    return tuple(depths), tuple(widths)


def _load_published(path: Path) -> DINOv3ConvNextModel:
    with explained_imports():
        from transformers import DINOv3ConvNextConfig, DINOv3ConvNextModel
    tensors = rename_published(read_tensors(path))
    try:
        depths, widths = infer_sizes(tensors)
    except ModelError as error:
        raise ModelError(f"{path}: {error.message}", hint="give one of dinov3_convnext_*.pth") from error
    config = DINOv3ConvNextConfig(depths=list(depths), hidden_sizes=list(widths))
    with torch.device("meta"):
        model = DINOv3ConvNextModel(config)
    fill(_encoder(model), tensors, path)
    return model


def _load_folder(folder: Path) -> DINOv3ConvNextModel:
    kind = read_json(folder / "config.json").get("model_type")
    if kind != MODEL_TYPE:
        raise ModelError(f"{folder} is a {kind}, not a {MODEL_TYPE}")
    with quiet_libraries():
        from transformers import DINOv3ConvNextModel

        try:
            loaded: Any = DINOv3ConvNextModel.from_pretrained(
                folder, local_files_only=True, use_safetensors=True, output_loading_info=True, dtype=torch.float32
            )
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise ModelError(f"{folder} cannot be read: {reason_of(error)}") from error
    missing = sorted(loaded[1]["missing_keys"])
    if missing:
        raise ModelError(f"{folder} has no {missing[0]}", hint="fetch its model.safetensors again")
    model: DINOv3ConvNextModel = loaded[0]
    return model


def _encoder(model: DINOv3ConvNextModel) -> nn.Module:
    """Return the module that has `stages`; some versions of transformers nest it in another module."""
    inner = getattr(model, "model", model)
    assert isinstance(inner, nn.Module)
    return inner


_Net = TypeVar("_Net", bound=FrozenNet)

_VGG16_CONVOLUTIONS = (2, 2, 3, 3, 3)
_ALEXNET_GEOMETRIES = ((11, 4, 2), (5, 1, 2), (3, 1, 1), (3, 1, 1), (3, 1, 1))
"""Kernel size, stride and padding of each convolution."""

# Indices of the convolutions in torchvision's checkpoints, which also count ReLUs and poolings.
_VGG16_PLACES = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_ALEXNET_PLACES = (0, 3, 6, 8, 10)


class Vgg16(FeatureNet):
    """VGG16, arXiv:1409.1556, with maps after the last ReLU of each of its five stages: relu1_2 to relu5_3."""

    title = "VGG16"
    channels = (64, 128, 256, 512, 512)
    strides = (1, 2, 4, 8, 16)
    min_px = 16

    def __init__(self) -> None:
        super().__init__()
        stages, before = [], 3
        for channels, count in zip(self.channels, _VGG16_CONVOLUTIONS, strict=True):
            inputs = (before, *[channels] * (count - 1))
            stages.append(nn.ModuleList(nn.Conv2d(each, channels, 3, padding=1) for each in inputs))
            before = channels
        self.stages = nn.ModuleList(stages)

    def _maps(self, image: Tensor, pooled: bool) -> list[Tensor]:
        hidden, maps = image, list[Tensor]()
        for number, stage in enumerate(self.stages):
            if number:
                hidden = pool_l2(hidden, stride=2) if pooled else F.max_pool2d(hidden, 2)
            for convolution in stage.children():
                hidden = F.relu(convolution(hidden), inplace=True)
            maps.append(hidden)
        return maps


class AlexNet(FrozenNet):
    """AlexNet as in torchvision, with maps after each of its five ReLUs; published LPIPS scores use this network."""

    channels = (64, 192, 384, 256, 256)
    min_px = 31

    def __init__(self) -> None:
        super().__init__()
        inputs = (3, *self.channels[:-1])
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, kernel, stride, padding)
            for before, after, (kernel, stride, padding) in zip(inputs, self.channels, _ALEXNET_GEOMETRIES, strict=True)
        )

    def forward(self, image: Tensor) -> list[Tensor]:
        """Compute the five feature maps of images.

        Args:
            image: (B, 3, H, W) float, sRGB in [-1, 1]; sides at least `min_px`.
        Returns:
            For each of `channels` (B, channels, h, w), dtype of the weights, not negative.
        Raises:
            ShapeError: the image has a different shape.
        """
        with torch.autocast(image.device.type, enabled=False):
            hidden, maps = self.normalise(image), list[Tensor]()
            for number, convolution in enumerate(self.convolutions):
                if number in (1, 2):
                    hidden = F.max_pool2d(hidden, 3, stride=2)
                hidden = F.relu(convolution(hidden), inplace=True)
                maps.append(hidden)
        return maps


def load_vgg16(source: Path, dtype: torch.dtype = torch.float32) -> Vgg16:
    """Load VGG16 from a file in torchvision's layout (`features.0.weight`, ...) or from a folder with `vgg16*`.

    Args:
        source: the file or folder.
        dtype: dtype of the weights and of the computation.
    Raises:
        ModelError: no weight file exists, or it does not fit.
    """
    return _load(Vgg16(), _VGG16_PLACES, find_weights(source, "vgg16")).freeze(dtype)


def load_alexnet(source: Path, dtype: torch.dtype = torch.float32) -> AlexNet:
    """Load AlexNet as `load_vgg16` does, from a file or a folder with `alexnet*`."""
    return _load(AlexNet(), _ALEXNET_PLACES, find_weights(source, "alexnet")).freeze(dtype)


def _load(net: _Net, places: tuple[int, ...], path: Path) -> _Net:
    tensors = read_tensors(path)
    own = [name.rpartition(".")[0] for name in net.state_dict() if name.endswith(".weight")]
    theirs = {f"features.{place}": name for place, name in zip(places, own, strict=True)}
    renamed = {}
    for name, value in tensors.items():
        layer, _, part = name.rpartition(".")
        if layer in theirs:
            renamed[f"{theirs[layer]}.{part}"] = value
    fill(net, renamed, path)
    return net


@dataclass(frozen=True)
class FeatureSource:
    """The kind of a feature network, and its place: a folder, a file or a hub repository."""

    kind: Literal["dinov3", "vgg16"]
    place: str


def find_features(backbone: str, path: str | None = None) -> FeatureSource:
    """Find a feature network without reading or fetching weights.

    Args:
        backbone: one of BACKBONES, or a folder, whose network is recognised by its files.
        path: place of a named network; None uses its repository.
    Raises:
        ModelError: the network does not exist, or the folder contains neither network.
    """
    if backbone not in BACKBONES:
        return FeatureSource(_recognise(Path(backbone)), backbone)
    network = FEATURE_NETWORKS["dinov3-convnext-large" if backbone == "dinov3" else backbone]
    place = path or network.repository
    if path is not None and not Path(path).exists() and not (network.kind == "dinov3" and is_repository_name(path)):
        raise ModelError(f"{path} does not exist", "without dv3cd and gan (both 0) none is needed")
    return FeatureSource(network.kind, place)


def load_features(source: FeatureSource, dtype: torch.dtype = torch.float32) -> FeatureNet:
    """Load a feature network.

    Args:
        source: result of `find_features`.
        dtype: dtype of VGG16; DINOv3 is always float32, because Dv3CD is defined in float32.
    Raises:
        ModelError: the network does not exist, cannot be fetched or is of another kind.
    """
    if source.kind == "dinov3":
        return load_dinov3(source.place)
    vgg16 = FEATURE_NETWORKS["vgg16"]
    if source.place == vgg16.repository:
        return load_vgg16(fetch_network(vgg16) / vgg16.files[0], dtype)
    return load_vgg16(Path(source.place), dtype)


def load_networks(config: TrainConfig, device: torch.device) -> dict[str, FeatureNet]:
    """Load the feature networks of a run, by the section that uses them; a shared one is loaded once.

    Raises:
        ModelError: as for `load_features`.
    """
    sources = {section: find_features(*named) for section, named in config.backbones.items()}
    dtype = torch.bfloat16 if config.loss.backbone_precision == "bf16" else torch.float32
    loaded = {source: load_features(source, dtype).to(device) for source in dict.fromkeys(sources.values())}
    return {section: loaded[source] for section, source in sources.items()}


def fetch_network(network: FeatureNetwork, repository: str | None = None) -> Path:
    """Fetch the files of a feature network from its repository or a copy of it, or find them in the hub's cache."""
    return download_files(repository or network.repository, None, list(network.files))


def _recognise(folder: Path) -> Literal["dinov3", "vgg16"]:
    """Recognise the network in a folder."""
    if folder.is_file():
        raise ModelError(
            f"{folder} is a file, but backbone must be a folder",
            f'set backbone to "dinov3" or "vgg16", and backbone_path to {folder}',
        )
    if not folder.is_dir():
        raise ModelError(f'{folder} is neither "dinov3" nor "vgg16", nor a folder')
    config = folder / "config.json"
    if config.is_file() and read_json(config).get("model_type") == MODEL_TYPE:
        return "dinov3"
    if find_optional_weights(folder, "vgg16") is not None:
        return "vgg16"
    raise ModelError(
        f"{folder} has no feature network",
        f"DINOv3 is a config.json of model_type {MODEL_TYPE} with its weights, VGG16 a file vgg16*.pth or .safetensors",
    )


_C1 = _C2 = 1e-6


def texture_structure_distance(
    first: Tensor, second: Tensor, texture_weight: Tensor, structure_weight: Tensor
) -> Tensor:
    """Compute the weighted distance of two feature maps in texture (means) and structure (covariance).

    Source: one minus the similarities of DISTS, arXiv:2004.07728, Eq. 6 to 8, c1 = c2 = 1e-6. The sum of distances is
    exactly 0 for equal maps.

    Args:
        first: (B, C, H, W), any float type; computed in float32, also under autocast.
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
    """The DISTS distance of images: on their pixels and on every stage of a feature network, with L2 pooling.

    Args:
        features: the network.
        texture: (3 + sum of the network's channels,) weights of the means, pixels first; None weights all equally.
        structure: same shape, weights of the covariances. All weights together are scaled to a sum of 1.
    Raises:
        ModelError: the number of weights is different.
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
            raise ModelError(f"DISTS has weights of the shapes {shapes}, but the network needs {len(alike)} of each")
        total = weights[0].sum() + weights[1].sum()
        self.register_buffer("texture", weights[0] / total)
        self.register_buffer("structure", weights[1] / total)
        self._compare = self._compare_maps

    def compile_statistics(self) -> None:
        """Compile the statistics, which then take a seventh of the time on a CPU; compiled networks are no faster."""
        self._compare = torch.compile(self._compare_maps, dynamic=False)

    def maps(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return what is compared of (B, 3, H, W) in [-1, 1]: pixels in [0, 1], then the pooled map of each stage."""
        return (image.float() / 2 + 0.5, *self.features(image, pooled=True))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Measure the distance of two batches of images.

        Args:
            first: (B, 3, H, W) float, sRGB in [-1, 1].
            second: same shape.
        Returns:
            (B,) float32; 0 for equal images.
        """
        return self._compare(self.maps(first), self.maps(second))

    def _compare_maps(self, first: tuple[Tensor, ...], second: tuple[Tensor, ...]) -> Tensor:
        textures, structures = (torch.split(weights, list(self.channels)) for weights in (self.texture, self.structure))
        layers = zip(first, second, textures, structures, strict=True)
        return torch.stack([texture_structure_distance(*layer) for layer in layers]).sum(dim=0)


def load_dists(features: FeatureNet, source: Path | None) -> Dists:
    """Load DISTS with its learned weights if they are next to those of the network, else weight all channels equally.

    Args:
        features: VGG16 for the published weights.
        source: file or folder of the network, with a file `dists*` next to or in it that contains `alpha` and `beta`
            as published by DISTS; None uses equal weights.
    Raises:
        ModelError: the file cannot be read or is for another network.
    """
    folder = source.parent if source is not None and source.is_file() else source
    path = None if folder is None else find_optional_weights(folder, "dists")
    if path is None:
        return Dists(features)
    tensors = read_tensors(path)
    if not {"alpha", "beta"} <= tensors.keys():
        raise ModelError(f"{path} has no weights of DISTS: alpha and beta")
    return Dists(features, tensors["alpha"], tensors["beta"])


def feature_distance(first: Tensor, second: Tensor, weight: Tensor) -> Tensor:
    """Compute the weighted squared difference of unit-length feature vectors, averaged over space.

    Source: LPIPS, arXiv:1801.03924, Eq. 1.

    Args:
        first: (B, C, H, W), any float type; computed in float32, also under autocast.
        second: same shape.
        weight: (1, C, 1, 1) float32, not negative.
    Returns:
        (B,) float32, not negative.
    """
    with torch.autocast(first.device.type, enabled=False):
        # F.normalize has a zero gradient for an all-zero feature vector; a plain square root would return NaN.
        difference = F.normalize(first.float(), dim=1, eps=1e-10) - F.normalize(second.float(), dim=1, eps=1e-10)
        return (difference.square() * weight).sum(dim=1).mean(dim=(1, 2))


class Lpips(nn.Module):
    """LPIPS on a frozen network.

    Args:
        features: AlexNet, which published scores use, or VGG16.
        weights: for each of its five maps (1, C, 1, 1), not negative.
    Raises:
        ModelError: the weights do not fit the network.
    """

    def __init__(self, features: AlexNet | Vgg16, weights: list[Tensor]) -> None:
        super().__init__()
        self.features = features
        if tuple(weight.numel() for weight in weights) != features.channels:
            found = [tuple(weight.shape) for weight in weights]
            raise ModelError(
                f"LPIPS has weights of the shapes {found}, but the network has channels {features.channels}"
            )
        for number, weight in enumerate(weights):
            self.register_buffer(f"weight{number}", weight.float().view(1, -1, 1, 1))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Measure the distance of two batches of images.

        Args:
            first: (B, 3, H, W) float, sRGB in [-1, 1].
            second: same shape.
        Returns:
            (B,) float32; 0 for equal images.
        """
        pairs = zip(self.features(first), self.features(second), strict=True)
        distances = [feature_distance(*pair, self.get_buffer(f"weight{number}")) for number, pair in enumerate(pairs)]
        return torch.stack(distances).sum(dim=0)


def load_lpips(source: Path, net: Literal["alex", "vgg"] = "alex", dtype: torch.dtype = torch.float32) -> Lpips:
    """Load LPIPS from its published files.

    Args:
        source: folder with torchvision's `alexnet*` (or `vgg16*`) and the `alex.pth` (or `vgg.pth`) of LPIPS, each
            optionally as `.safetensors`; or one file with the contents of both.
        net: name of the network.
        dtype: dtype of the network's weights; the distance itself is always float32.
    Raises:
        ModelError: a file is missing or does not fit.
    """
    features = load_alexnet(source, dtype) if net == "alex" else load_vgg16(source, dtype)
    path = find_weights(source, net)
    tensors, names = read_tensors(path), [f"lin{number}.model.1.weight" for number in range(5)]
    missing = [name for name in names if name not in tensors]
    if missing:
        raise ModelError(f"{path} has no weights of LPIPS: {missing[0]}")
    return Lpips(features, [tensors[name] for name in names])
