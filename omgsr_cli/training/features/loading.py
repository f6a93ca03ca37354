"""The feature network that a configuration asks for."""

from __future__ import annotations

from pathlib import Path

import torch

from omgsr_cli.training.features.base import FeatureNet
from omgsr_cli.training.features.dinov3 import DINOV3_REPOSITORY, load_dinov3
from omgsr_cli.training.features.imagenet import load_vgg16
from omgsr_cli.training.sections import LossConfig


def load_features(config: LossConfig, precision: str = "fp32") -> FeatureNet | None:
    """Read the feature network of the losses and the discriminator.

    Args:
        config: the section [loss]: `backbone` says which, `backbone_path` where.
        precision: "bf16" runs VGG16 in it; DINOv3 is float32 always, as Dv3CD is defined.
    Returns:
        None where nothing needs one: no loss and no discriminator.
    Raises:
        ModelError: it is not there, cannot be fetched or is another network.
    """
    path = config.backbone_path
    if not config.needs_backbone:
        return None
    if config.backbone == "dinov3":
        return load_dinov3(path or DINOV3_REPOSITORY)
    assert path is not None, "the configuration was checked: VGG16 has a path"
    return load_vgg16(Path(path), torch.bfloat16 if precision == "bf16" else torch.float32)
