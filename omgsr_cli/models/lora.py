"""LoRA adapters that learn: putting them into a network with peft, and reading them in the published layout."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from omgsr_cli.errors import ModelError
from omgsr_cli.models.adapter_files import WEIGHTS_NAME, check_adapter_folder, load_lora_config
from omgsr_cli.models.libraries import explained_imports
from omgsr_cli.models.weight_files import check_finite

if TYPE_CHECKING:
    from peft import PeftModel

SD_TARGETS = (
    *("conv1", "conv2", "conv_in", "conv_shortcut", "conv", "conv_out"),
    *("to_k", "to_q", "to_v", "to_out.0"),
)
"""Layers of the SD family that have an adapter, in both networks, as published."""


@dataclass(frozen=True)
class LoraOptions:
    """How large the adapters are and where they sit; the defaults are OMGSR-S's.

    Attributes:
        vae_rank: of the adapters in the VAE's encoder.
        backbone_rank: of those in the network that takes the step.
        vae_alpha: B A counts alpha / rank times; None takes the rank.
        backbone_alpha: likewise.
        vae_targets: ends of the names of the layers that get one.
        backbone_targets: likewise.
    """

    vae_rank: int = 16
    backbone_rank: int = 32
    vae_alpha: float | None = None
    backbone_alpha: float | None = None
    vae_targets: tuple[str, ...] = SD_TARGETS
    backbone_targets: tuple[str, ...] = SD_TARGETS


def inject_lora(network: nn.Module, rank: int, alpha: float | None, targets: Iterable[str]) -> PeftModel:
    """Put an adapter beside every targeted layer, in place; only the adapters' weights learn, in float32.

    A is drawn from the global random state, B is zero, so that the network's output does not change yet.

    Args:
        network: the VAE's encoder or the UNet.
        rank: of every adapter.
        alpha: None takes the rank.
        targets: ends of the layers' names.
    Returns:
        peft's view of the same network, which saves the adapter and switches it off.
    Raises:
        ModelError: a target fits no layer.
    """
    wanted = tuple(targets)
    absent = [target for target in wanted if not _find_layers(network, target)]
    if absent:
        name = type(network).__name__
        raise ModelError(f"{absent[0]!r} is no convolution or linear layer of the {name}", "correct [lora]'s targets")
    with explained_imports():
        from peft import LoraConfig, get_peft_model
    config = LoraConfig(
        r=rank,
        # peft takes a fraction too, and the adapters' reader as well.
        lora_alpha=rank if alpha is None else alpha,  # type: ignore[arg-type]  # declared as a whole number
        target_modules=sorted(set(wanted)),
        init_lora_weights="gaussian",
    )
    model: PeftModel = get_peft_model(network, config)
    return model


def load_lora(model: PeftModel, folder: Path) -> None:
    """Read one part of an adapter into the adapters of a network, in place.

    Args:
        model: from `inject_lora`.
        folder: with `adapter_config.json` and `adapter_model.safetensors`.
    Raises:
        ModelError: rank, alpha or layers differ from those that were injected, or the file cannot be read.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    check_adapter_folder(folder.parent, (folder.name,))
    own: Any = model.peft_config["default"]
    found = load_lora_config(folder)
    for what, here, there in (("rank", own.r, found.r), ("alpha", own.lora_alpha, found.lora_alpha)):
        if here != there:
            raise ModelError(f"{folder}: {what} {there:g} is not the configuration's {here:g}", _same(what, there))
    if found.use_rslora or found.rank_pattern or found.alpha_pattern:
        raise ModelError(f"{folder}: its adapters differ in rank or scale", "it can be merged, but not trained on")
    try:
        weights = load_file(folder / WEIGHTS_NAME)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{folder / WEIGHTS_NAME} cannot be read: {error}") from error
    check_finite(weights.items(), folder / WEIGHTS_NAME)
    whole = next((key for key, weight in weights.items() if not weight.is_floating_point()), None)
    if whole is not None:
        raise ModelError(f"{folder / WEIGHTS_NAME}: {whole} holds {weights[whole].dtype}", "save it as float32")
    expected = get_peft_model_state_dict(model)
    strange = sorted(weights.keys() ^ expected.keys())
    strange += [key for key in weights.keys() & expected.keys() if weights[key].shape != expected[key].shape]
    if strange:
        raise ModelError(
            f"{folder}: {len(strange)} weights do not fit the adapters to train: {strange[0]}",
            hint="the adapter has other targets, or belongs to another base model",
        )
    with torch.no_grad():
        set_peft_model_state_dict(model, weights)


def _same(what: str, value: float) -> str:
    return f"set the {what} of [lora] to {value:g}, or start from another adapter"


def _find_layers(network: nn.Module, target: str) -> list[str]:
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d) and (name == target or name.endswith(f".{target}"))
    ]
