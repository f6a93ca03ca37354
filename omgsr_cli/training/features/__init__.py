"""Frozen networks whose features training and validation measure with."""

from omgsr_cli.training.features.base import FeatureNet
from omgsr_cli.training.features.dinov3 import DinoV3, load_dinov3
from omgsr_cli.training.features.imagenet import AlexNet, Vgg16, load_alexnet, load_vgg16
from omgsr_cli.training.features.loading import FeatureSource, find_features, load_features

__all__ = [
    "AlexNet",
    "DinoV3",
    "FeatureNet",
    "FeatureSource",
    "Vgg16",
    "find_features",
    "load_alexnet",
    "load_dinov3",
    "load_features",
    "load_vgg16",
]
