"""Check an adapter's folder and configuration, without torch and without reading large files."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from omgsr_cli.errors import ModelError, UnknownModelError
from omgsr_cli.models.record import read_json
from omgsr_cli.models.weight_files import refuse_pickles
from omgsr_cli.validation import first_mistake

Number = TypeVar("Number", int, float)
Alpha = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Pattern = Annotated[str, AfterValidator(lambda pattern: _compilable(pattern))]

#: Peft's names for the files of one part of an adapter.
WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"
#: Parts of a published adapter of the SD family: for the VAE's encoder and for the UNet.
SD_PARTS = ("vae_encoder_lora_adapter", "unet_lora_adapter")
#: Of the FLUX family: for the VAE's encoder and for the transformer.
FLUX_PARTS = ("vae_encoder_adapter", "flux_adapter")

_CONVERT = "convert it if you trust its source: torch.load(..., weights_only=True), then safetensors' save_file"

_KEEPS_THE_BASE = (True, False, "gaussian", "eva", "orthogonal", "mica")
"""Values of `init_lora_weights` that leave the base weights unchanged. The others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA)
subtract the new B A from the base weights, or quantise them: the adapter then needs that changed base.
Source: `LoraLayer.update_layer` of peft 0.18 to 0.21."""

_ABOUT_TRAINING = (
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision", "task_type"),
    *("eva_config", "lora_dropout", "megatron_core", "qalora_group_size"),
)
"""Options that do not change the merged weights, for any value."""


class LoraConfig(BaseModel):
    """The part of `adapter_config.json` that determines the merged weights.

    Attributes:
        init_lora_weights: kind of initialisation, which shows whether the training changed the base weights.
        target_modules: names or name endings of modules, or a regular expression for whole names; None is any module.
        exclude_modules: modules without an adapter, in the same form.
    """

    # Strict, because JSON's true is a number in Python, and peft does not accept "16" as a rank.
    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    peft_type: str
    r: int = Field(gt=0)
    lora_alpha: Alpha
    bias: str = "none"
    use_rslora: bool = False
    rank_pattern: dict[Pattern, Annotated[int, Field(gt=0)]] | None = None
    alpha_pattern: dict[Pattern, Alpha] | None = None
    target_modules: list[str] | Pattern | None = None
    exclude_modules: list[str] | Pattern | None = None
    init_lora_weights: bool | str = True

    def rank(self, module: str) -> int:
        """The rank of a module's adapter, from the first pattern that matches its name."""
        return _by_pattern(self.rank_pattern or {}, module, self.r)

    def scale(self, module: str) -> float:
        """The factor of B A for a module: alpha / rank, or alpha / sqrt(rank) for rank-stabilised LoRA."""
        alpha, rank = _by_pattern(self.alpha_pattern or {}, module, self.lora_alpha), self.rank(module)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def targets(self, module: str) -> bool:
        """Whether the configuration allows an adapter for this module."""
        is_target = self.target_modules is None or _is_named(module, self.target_modules)
        return is_target and not _is_named(module, self.exclude_modules or [])


def _is_named(module: str, names: list[str] | str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names)


def _by_pattern(patterns: dict[str, Number], module: str, default: Number) -> Number:
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def check_adapter_folder(folder: Path, parts: Iterable[str]) -> None:
    """Check that an adapter's folders and files exist, before anything large is read.

    Raises:
        ModelError: a folder or file is missing, its weights are a pickle, or its configuration is not a plain LoRA.
    """
    if not folder.is_dir():
        raise UnknownModelError(f"the adapter folder {folder} does not exist", f"an adapter has: {', '.join(parts)}")
    for part in parts:
        if not (folder / part).is_dir():
            raise ModelError(
                f"the adapter {folder} has no folder {part}", hint=f"a published adapter has: {', '.join(parts)}"
            )
        if not (folder / part / WEIGHTS_NAME).is_file():
            refuse_pickles(folder / part, _CONVERT)
            raise ModelError(f"the adapter folder {folder / part} has no {WEIGHTS_NAME}")
        load_lora_config(folder / part)


def load_lora_config(folder: Path) -> LoraConfig:
    """Read `adapter_config.json` of one part of an adapter.

    Raises:
        ModelError: the file is missing or unreadable, or its options mean more than adding scale * B A.
    """
    path = folder / CONFIG_NAME
    options = read_json(path)
    try:
        config = LoraConfig.model_validate(options)
    except ValidationError as error:
        raise ModelError(f"{path} is not a LoRA configuration: {first_mistake(error).line()}") from error
    if config.peft_type != "LORA":
        raise ModelError(f"{path}: peft_type {config.peft_type!r} is not LORA")
    init = config.init_lora_weights
    if not any(init is known or (isinstance(init, str) and init.lower() == known) for known in _KEEPS_THE_BASE):
        raise ModelError(
            f"{path}: init_lora_weights {init!r} may have changed the weights of the base",
            hint="convert it with peft's save_pretrained(..., path_initial_model_for_weight_conversion=...), or merge "
            "it with peft and use the result as the model",
        )
    others = config.model_extra or {}
    refused = [name for name, value in others.items() if name not in _ABOUT_TRAINING and not _is_off(value)]
    if config.bias != "none":
        refused.append("bias")
    if refused:
        name = refused[0]
        raise ModelError(
            f"{path}: option {name!r} is not supported ({options[name]!r})",
            hint="only plain LoRA can be merged: merge this adapter with peft, and use the result as the model",
        )
    return config


def _is_off(value: object) -> bool:
    """Whether an option has no effect: null, false or empty; 0 may be the number of a layer."""
    return value is None or value is False or (isinstance(value, str | list | dict) and not value)


def _compilable(pattern: str) -> str:
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from error
    return pattern
