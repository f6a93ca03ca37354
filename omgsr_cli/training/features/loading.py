"""The feature network that a configuration asks for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from omgsr_cli.errors import ModelError
from omgsr_cli.models.record import read_json
from omgsr_cli.store.hub import is_repository_name
from omgsr_cli.training.features.base import FeatureNet
from omgsr_cli.training.features.dinov3 import DINOV3_REPOSITORY, MODEL_TYPE, load_dinov3
from omgsr_cli.training.features.imagenet import load_vgg16
from omgsr_cli.training.features.weights import find_optional_weights
from omgsr_cli.training.loss_sections import BACKBONES, LossConfig


@dataclass(frozen=True)
class FeatureSource:
    """Which feature network is meant, and where its weights are.

    Attributes:
        kind: one of BACKBONES.
        place: a folder, a file, or a hub repository.
    """

    kind: str
    place: str


def find_features(config: LossConfig) -> FeatureSource | None:
    """Find the feature network of the losses and the discriminator, without reading a weight.

    Args:
        config: the section [loss]: `backbone` names the network, and `backbone_path` its place; or `backbone` is the
            folder of one, which tells by what is in it which it is.
    Returns:
        None where nothing needs one: no loss and no discriminator.
    Raises:
        ModelError: it is not there, or the folder is of neither network.
    """
    name, place = config.backbone, config.backbone_path
    if not config.needs_backbone:
        return None
    if name not in BACKBONES:
        return FeatureSource(_recognise(Path(name)), name)
    if place is None:
        assert name == "dinov3", "the configuration was checked: VGG16 has a path"
        return FeatureSource(name, DINOV3_REPOSITORY)
    if not Path(place).exists() and not (name == "dinov3" and is_repository_name(place)):
        raise ModelError(f"there is no file or folder {place}", "without dv3cd and gan (both 0) none is needed")
    return FeatureSource(name, place)


def load_features(config: LossConfig) -> FeatureNet | None:
    """Read the feature network of the losses and the discriminator.

    Args:
        config: as for `find_features`; its precision is VGG16's, while DINOv3 is float32 always, as Dv3CD is defined.
    Returns:
        None where nothing needs one.
    Raises:
        ModelError: it is not there, cannot be fetched or is another network.
    """
    source = find_features(config)
    if source is None:
        return None
    if source.kind == "dinov3":
        return load_dinov3(source.place)
    return load_vgg16(Path(source.place), torch.bfloat16 if config.backbone_precision == "bf16" else torch.float32)


def _recognise(folder: Path) -> str:
    """Tell which network a folder has."""
    if folder.is_file():
        raise ModelError(
            f"{folder} is a file, backbone takes a folder",
            f'set backbone to "dinov3" or "vgg16", and backbone_path to {folder}',
        )
    if not folder.is_dir():
        raise ModelError(f'{folder} is neither "dinov3" nor "vgg16", nor is there such a folder')
    config = folder / "config.json"
    if config.is_file() and read_json(config).get("model_type") == MODEL_TYPE:
        return "dinov3"
    if find_optional_weights(folder, "vgg16") is not None:
        return "vgg16"
    raise ModelError(
        f"{folder} has no feature network",
        f"DINOv3 is a config.json of model_type {MODEL_TYPE} with its weights, VGG16 a file vgg16*.pth or .safetensors",
    )
