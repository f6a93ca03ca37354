"""What an adapter's folder holds, and what its configuration asks for; nothing large is read, and no torch needed."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from omgsr_cli.errors import ModelError
from omgsr_cli.models.record import read_json
from omgsr_cli.validation import first_mistake

Number = TypeVar("Number", int, float)

#: The files of one part of an adapter, as peft calls them.
WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"

_CHANGES_THE_SUM = (
    "alora_invocation_tokens",
    "arrow_config",
    "corda_config",
    "fan_in_fan_out",
    "kasa_config",
    "layer_replication",
    "lora_bias",
    "modules_to_save",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_dora",
    "use_qalora",
    "velora_config",
)
"""Options under which a merged weight is not W + scale * B A."""


class LoraConfig(BaseModel):
    """What of `adapter_config.json` decides the merged weights; the rest is about training."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    peft_type: str
    r: int = Field(gt=0)
    lora_alpha: float
    bias: str = "none"
    use_rslora: bool = False
    rank_pattern: dict[str, int] = {}
    alpha_pattern: dict[str, float] = {}
    target_modules: list[str] | str | None = None
    exclude_modules: list[str] | str | None = None
    layers_to_transform: list[int] | int | None = None

    def rank(self, module: str) -> int:
        """Rank of the adapter of a module, by the first pattern that fits its name."""
        return _by_pattern(self.rank_pattern, module, self.r)

    def scale(self, module: str) -> float:
        """Factor of B A for a module: alpha / rank, or alpha / sqrt(rank) for rank-stabilised LoRA."""
        alpha, rank = _by_pattern(self.alpha_pattern, module, self.lora_alpha), self.rank(module)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    def targets(self, module: str) -> bool:
        """Whether the configuration says that this module has an adapter."""
        if self.target_modules is None or self.exclude_modules or self.layers_to_transform is not None:
            return False
        if isinstance(self.target_modules, str):
            return re.fullmatch(self.target_modules, module) is not None
        return any(module == name or module.endswith(f".{name}") for name in self.target_modules)


def _by_pattern(patterns: dict[str, Number], module: str, default: Number) -> Number:
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return default


def check_adapter_folder(folder: Path, parts: Iterable[str]) -> None:
    """Check that an adapter's folders and files are there, before anything large is read.

    Raises:
        ModelError: a folder or file is missing, its weights are a pickle, or its configuration is not a plain LoRA.
    """
    if not folder.is_dir():
        raise ModelError(f"the adapter folder {folder} does not exist")
    for part in parts:
        if not (folder / part).is_dir():
            raise ModelError(
                f"the adapter {folder} has no folder {part}", hint=f"a published adapter has: {', '.join(parts)}"
            )
        if not (folder / part / WEIGHTS_NAME).is_file():
            raise _missing_weights(folder / part)
        load_lora_config(folder / part)


def _missing_weights(folder: Path) -> ModelError:
    pickles = sorted(p.name for ending in ("bin", "pt", "pth", "ckpt") for p in folder.glob(f"*.{ending}"))
    if pickles:
        return ModelError(
            f"{folder / pickles[0]} is a pickle, which can run code when it is read",
            hint="where you trust it: torch.load(..., weights_only=True), then safetensors save_file",
        )
    return ModelError(f"the adapter folder {folder} has no {WEIGHTS_NAME}")


def load_lora_config(folder: Path) -> LoraConfig:
    """Read `adapter_config.json` of one part of an adapter.

    Raises:
        ModelError: it is missing, unreadable, or asks for more than adding scale * B A.
    """
    path = folder / CONFIG_NAME
    options = read_json(path)
    try:
        config = LoraConfig.model_validate(options)
    except ValidationError as error:
        raise ModelError(f"{path} is not a LoRA configuration: {first_mistake(error).line()}") from error
    if config.peft_type != "LORA":
        raise ModelError(f"{path}: peft_type {config.peft_type!r} is not LORA")
    refused = [name for name in _CHANGES_THE_SUM if options.get(name)]
    if config.bias != "none":
        refused.append("bias")
    if refused:
        raise ModelError(f"{path}: option {refused[0]!r} is not supported", hint="only plain LoRA can be merged")
    return config
