"""LoRA adapters: merge one into the weights of a model, and add new ones to a network for training.

The sum W + scale * B A is computed here instead of by peft: nothing in an adapter's configuration is ever executed, and
options that would change the sum are refused instead of ignored. A test compares the result with that of peft.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from omgsr_cli.errors import ModelError
from omgsr_cli.models.adapter_files import WEIGHTS_NAME, LoraConfig, check_adapter_folder, load_lora_config
from omgsr_cli.models.libraries import explained_imports, quiet_libraries
from omgsr_cli.models.weight_files import check_finite, is_finite

if TYPE_CHECKING:
    from peft import PeftModel

_PREFIX = "base_model.model."
_NAMED = 3
"""Maximum number of wrong keys in an error message."""


@dataclass(frozen=True)
class LoraOptions:
    """The adapters in the VAE's encoder and in the backbone, the network that takes the step.

    None takes the family's own value, as published; for an alpha, which gives B A the factor alpha / rank, the rank.
    Targets are name endings of the layers with an adapter.
    """

    vae_rank: int | None = None
    backbone_rank: int | None = None
    vae_alpha: float | None = None
    backbone_alpha: float | None = None
    vae_targets: tuple[str, ...] | None = None
    backbone_targets: tuple[str, ...] | None = None


def inject_adapters(
    networks: Sequence[nn.Module], parts: Sequence[str], options: LoraOptions | None, published: LoraOptions
) -> dict[str, PeftModel]:
    """Put adapters into the VAE's encoder and into the backbone, in place.

    Args:
        networks: these two.
        parts: names of their adapters on disk.
        options: the adapters that the user asked for.
        published: the adapters of the family.
    Returns:
        peft's wrappers of both, by the names of their parts.
    Raises:
        ModelError: a target fits no layer.
    """
    chosen = replace(published, **{name: value for name, value in vars(options or published).items() if value})
    ranks, alphas = (chosen.vae_rank, chosen.backbone_rank), (chosen.vae_alpha, chosen.backbone_alpha)
    targets = (chosen.vae_targets, chosen.backbone_targets)
    with quiet_libraries():
        return {
            part: inject_lora(network, rank or 0, alpha, names or ())
            for part, network, rank, alpha, names in zip(parts, networks, ranks, alphas, targets, strict=True)
        }


@torch.no_grad()
def adapter_weights(adapters: Mapping[str, PeftModel]) -> dict[str, nn.Parameter]:
    """The weights of all adapters, by part and name."""
    return {
        f"{part}.{name}": weight
        for part, adapter in adapters.items()
        for name, weight in adapter.named_parameters()
        if "lora_" in name
    }


def merge_lora(network: nn.Module, folder: Path) -> int:
    """Merge one part of an adapter into the weights of a network, in place; errors as for `open_adapter` and `add`.

    Returns:
        The number of weights that changed; 0 for an adapter that was never trained.
    """
    with open_adapter(network, folder) as part:
        for name, module in part.modules.items():
            merged = part.add(f"{name}.weight", module.weight)
            if merged is not module.weight:
                # Make a new tensor, because the old one may be a memory-mapped file.
                module.weight = nn.Parameter(merged, requires_grad=module.weight.requires_grad)
    return part.changed


class AdapterPart:
    """One part of an adapter, which is added to weights one at a time, whether a network holds them or a file.

    Attributes:
        modules: the layers that it has factors for, by name.
        changed: how many weights it has changed so far.
    """

    def __init__(
        self, file: Any, factors: dict[str, tuple[str, str]], modules: dict[str, nn.Linear | nn.Conv2d], where: Path
    ) -> None:
        self.modules, self.changed = modules, 0
        self._file, self._factors, self._where, self._config = file, factors, where, load_lora_config(where)

    @torch.no_grad()
    def add(self, key: str, weight: Tensor) -> Tensor:
        """W + alpha / r * B A, summed in float32 on the weight's device; W itself where nothing is added.

        Source: LoRA, arXiv:2106.09685, Eq. 3; for a convolution A has its kernel and B is 1x1.

        Args:
            key: name of the weight in the network, such as "conv_in.weight".
            weight: (out, in) of a linear layer or (out, in, h, w) of a convolution.
        Raises:
            ModelError: a shape or type does not fit, or a value is not finite.
        """
        name, _, kind = key.rpartition(".")
        if kind != "weight" or name not in self.modules:
            return weight
        a, b = (self._file.get_tensor(factor) for factor in self._factors[name])
        scale, rank = self._config.scale(name), self._config.rank(name)
        merged = _sum(self.modules[name], weight, a, b, scale, rank, f"{self._where.name}: {name}")
        self.changed += merged is not weight
        return merged


@contextmanager
def open_adapter(network: nn.Module, folder: Path) -> Iterator[AdapterPart]:
    """Open one part of an adapter and check that it fits a network, which may be on the meta device.

    Raises:
        ModelError: a key has no place in the network, a module that the configuration names has no key, or the file
            cannot be read, then or later.
    """
    config = load_lora_config(folder)
    try:
        with safe_open(folder / WEIGHTS_NAME, framework="pt") as file:
            factors = _pair_factors(list(file.keys()), folder)
            yield AdapterPart(file, factors, _find_modules(network, factors, config, folder), folder)
    except (SafetensorError, OSError) as error:
        raise ModelError(f"{folder / WEIGHTS_NAME} cannot be read: {error}") from error


def _pair_factors(keys: list[str], folder: Path) -> dict[str, tuple[str, str]]:
    """Map each module's name to the keys of its A and B."""
    pattern = re.compile(rf"{re.escape(_PREFIX)}(.+)\.lora_[AB]\.weight")
    matches = {key: pattern.fullmatch(key) for key in keys}
    strange = [key for key, match in matches.items() if match is None]
    if strange:
        raise _misfit(folder, strange, "are not weights of a LoRA adapter", len(keys))
    names = sorted({match[1] for match in matches.values() if match is not None})
    factors = {name: (f"{_PREFIX}{name}.lora_A.weight", f"{_PREFIX}{name}.lora_B.weight") for name in names}
    alone = [key for pair in factors.values() for key in pair if key not in matches]
    if alone:
        raise _misfit(folder, alone, "are missing", len(factors) * 2)
    if not factors:
        raise ModelError(f"{folder / WEIGHTS_NAME} has no weights")
    return factors


def _find_modules(
    network: nn.Module, names: Iterable[str], config: LoraConfig, folder: Path
) -> dict[str, nn.Linear | nn.Conv2d]:
    """The layer of each name; every name must have a layer and be a target, and every target must have a name."""
    layers: dict[str, nn.Linear | nn.Conv2d] = {
        name: module for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)
    }
    wanted = list(names)
    foreign = [name for name in wanted if name not in layers]
    if foreign:
        raise _misfit(folder, foreign, f"have no place in the {type(network).__name__}", len(wanted))
    stray = [name for name in wanted if not config.targets(name)]
    if stray:
        raise _misfit(folder, stray, "are not among the target_modules of its configuration", len(wanted))
    absent = [name for name in layers if config.targets(name) and name not in set(wanted)]
    if absent and config.target_modules is not None:
        raise _misfit(folder, absent, "are targets without weights in the file", len(absent) + len(wanted))
    return {name: layers[name] for name in wanted}


def _sum(
    module: nn.Linear | nn.Conv2d, weight: Tensor, a: Tensor, b: Tensor, scale: float, rank: int, where: str
) -> Tensor:
    """The weight plus scale * B A; the weight itself where that is zero or rounds to it."""
    tail = (1,) * (weight.ndim - 2)
    expected_a, expected_b = (rank, *weight.shape[1:]), (weight.shape[0], rank, *tail)
    if a.shape != expected_a or b.shape != expected_b:
        raise ModelError(
            f"{where}: shapes {tuple(a.shape)}, {tuple(b.shape)} do not match {expected_a}, {expected_b}",
            hint="the adapter was trained on another base model",
        )
    if not (a.is_floating_point() and b.is_floating_point()):
        raise ModelError(f"{where}: weights of {a.dtype} and {b.dtype} are not supported", "save them as float32")
    if isinstance(module, nn.Conv2d) and module.groups != 1:
        raise ModelError(f"{where}: adapters of grouped convolutions are not supported")
    down, up = (factor.to(weight.device).flatten(1).float() for factor in (a, b))
    delta = (up @ down).mul_(scale).view(weight.shape)
    if not is_finite(delta):
        raise ModelError(f"{where}: the adapter has values that are not finite")
    if not bool(delta.any()):
        return weight
    merged = (weight.float() + delta).to(weight.dtype)
    return weight if torch.equal(merged, weight) else merged


def _misfit(folder: Path, names: list[str], what: str, total: int) -> ModelError:
    shown = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
    return ModelError(
        f"{folder}: {len(names)} of {total} entries {what}: {shown}",
        hint="the adapter belongs to another base model, or to another part of it",
    )


def inject_lora(network: nn.Module, rank: int, alpha: float | None, targets: Iterable[str]) -> PeftModel:
    """Add an adapter to every target layer, in place; only the adapters' weights are trained, in float32.

    A is drawn from the global random state, and B is zero, so the network's output does not change.

    Returns:
        peft's wrapper of the same network, which can save the adapter and switch it off.
    Raises:
        ModelError: a target matches no layer.
    """
    wanted = tuple(targets)
    layers = [f".{name}" for name, module in network.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    absent = [target for target in wanted if not any(name.endswith(f".{target}") for name in layers)]
    if absent:
        reason = f"{absent[0]!r} is not a convolution or linear layer of the {type(network).__name__}"
        raise ModelError(reason, "correct the targets in [lora]")
    with explained_imports():
        from peft import LoraConfig, get_peft_model
    config = LoraConfig(
        r=rank,
        # Both peft and our reader accept fractions, too.
        lora_alpha=rank if alpha is None else alpha,  # type: ignore[arg-type]  # declared as a whole number
        target_modules=sorted(set(wanted)),
        init_lora_weights="gaussian",
    )
    model: PeftModel = get_peft_model(network, config)
    return model


def load_lora(model: PeftModel, folder: Path) -> None:
    """Load one part of an adapter into the adapters of a network from `inject_lora`, in place.

    Raises:
        ModelError: rank, alpha or layers differ from those of the network, or the file cannot be read.
    """
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    check_adapter_folder(folder.parent, (folder.name,))
    own: Any = model.peft_config["default"]
    found = load_lora_config(folder)
    for what, here, there in (("rank", own.r, found.r), ("alpha", own.lora_alpha, found.lora_alpha)):
        if here != there:
            raise ModelError(
                f"{folder}: {what} {there:g} differs from {here:g} in the configuration",
                f"set the {what} of [lora] to {there:g}, or start from another adapter",
            )
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
            f"{folder}: {len(strange)} weights do not match the adapters to train: {strange[0]}",
            hint="the adapter has other targets, or belongs to another base model",
        )
    with torch.no_grad():
        set_peft_model_state_dict(model, weights)
