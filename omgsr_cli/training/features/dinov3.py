"""DINOv3's ConvNeXt, arXiv:2508.10104: from a folder, from the hub, or from the file as Meta publishes it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from omgsr_cli.errors import ModelError, reason_of
from omgsr_cli.models.libraries import explained_imports, quiet_libraries
from omgsr_cli.models.record import read_json
from omgsr_cli.store.hub import download_files, is_repository_name
from omgsr_cli.training.features.base import FeatureNet, pool_l2
from omgsr_cli.training.features.weights import SUFFIXES, fill, read_tensors

if TYPE_CHECKING:
    from transformers import DINOv3ConvNextModel

DINOV3_REPOSITORY = "facebook/dinov3-convnext-large-pretrain-lvd1689m"
"""What OMGSR was trained with. Its page asks for consent to Meta's licence."""

MODEL_TYPE = "dinov3_convnext"
"""What `config.json` calls it."""

_STAGES = 3
"""The fourth is the one nearest to what the picture shows, and the least to how it looks."""

# Meta's names to those of transformers, applied to every name from the first rule to the last.
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
        stages: modules from map to map.
        channels: of their maps.
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


def load_dinov3(source: str | Path = DINOV3_REPOSITORY, dtype: torch.dtype = torch.float32) -> DinoV3:
    """Read a DINOv3 ConvNeXt of any size.

    Args:
        source: a folder as transformers writes it, a hub repository OWNER/NAME, or the file that Meta publishes.
        dtype: of the weights, in which it will run.
    Raises:
        ModelError: it is not there, cannot be fetched or is another network.
    """
    path = Path(source)
    if path.is_file() or path.suffix in SUFFIXES:
        model = _load_published(path)
    elif path.is_dir():
        model = _load_folder(path)
    elif is_repository_name(str(source)):
        model = _load_folder(download_files(str(source), None, ["config.json", "*.safetensors*"]))
    else:
        raise ModelError(
            f"there is no feature network {str(source)!r}",
            hint=f"give a folder, a published .pth file, or a hub repository such as {DINOV3_REPOSITORY}",
        )
    return _first_stages(model).freeze(dtype)


def rename_published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the weights that Meta publishes the names that they have in transformers.

    Args:
        tensors: such as `downsample_layers.0.0.weight` and `stages.2.4.dwconv.bias`.
    Returns:
        Such as `stages.0.downsample_layers.0.weight` and `stages.2.layers.4.depthwise_conv.bias`.
    """
    renamed = {}
    for name, value in tensors.items():
        # `norms.3` is `norm` a second time, under the name of its stage.
        if name.startswith("norms."):
            continue
        for pattern, replacement in _RENAMES:
            name = re.sub(pattern, replacement, name)
        renamed[name] = value
    return renamed


def infer_sizes(tensors: Mapping[str, Tensor]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Tell the depths and the widths of the four stages from weights with transformers' names.

    Args:
        tensors: as from `rename_published`.
    Raises:
        ModelError: they are not a ConvNeXt's.
    """
    depths, widths = [0] * 4, [0] * 4
    for name, value in tensors.items():
        match = re.fullmatch(r"stages\.([0-3])\.layers\.(\d+)\.gamma", name)
        if match:
            stage = int(match[1])
            depths[stage] = max(depths[stage], int(match[2]) + 1)
            widths[stage] = value.numel()
    if not all(depths):
        raise ModelError("the weights are not a DINOv3 ConvNeXt's: they have not four stages")
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
            reason = reason_of(error)
            raise ModelError(f"{folder} cannot be read: {reason}") from error
    model: DINOv3ConvNextModel = loaded[0]
    missing = sorted(loaded[1]["missing_keys"])
    if missing:
        raise ModelError(f"{folder} has no {missing[0]}", hint="fetch its model.safetensors again")
    return model


def _encoder(model: DINOv3ConvNextModel) -> nn.Module:
    """The module that has `stages`: some versions of transformers put one between."""
    inner = getattr(model, "model", model)
    assert isinstance(inner, nn.Module)
    return inner


def _first_stages(model: DINOv3ConvNextModel) -> DinoV3:
    stages, widths = _encoder(model).get_submodule("stages"), model.config.hidden_sizes
    assert widths is not None
    return DinoV3(list(stages.children())[:_STAGES], widths[:_STAGES])
