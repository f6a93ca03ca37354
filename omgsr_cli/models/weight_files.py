"""Files of weights: how they are called, refusing those that could run code, and reading one part of a model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from omgsr_cli.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import nn

NETWORK_STEM = "diffusion_pytorch_model"
"""How diffusers calls the weights of a network, without the ending."""

PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")

_CONVERT = "save it with diffusers' save_pretrained(folder, safe_serialization=True) on a machine that trusts it"


Network = TypeVar("Network", bound="nn.Module")


def weight_variant(folder: Path, part: str, stem: str = NETWORK_STEM) -> str | None:
    """Which of a part's weight files to read: None for the plain one, "fp16" where only that is there.

    Raises:
        ModelError: there is no safetensors file; the hint tells how to convert a pickle.
    """
    for variant in (None, "fp16"):
        mark = f".{variant}" if variant else ""
        if (folder / part / f"{stem}{mark}.safetensors").is_file():
            return variant
        if (folder / part / f"{stem}.safetensors.index{mark}.json").is_file():
            return variant
    pickles = [file for file in sorted((folder / part).glob("*")) if file.suffix in PICKLE_SUFFIXES]
    if pickles:
        raise pickle_error(pickles[0])
    raise ModelError(f"{folder / part} has no weights ({stem}.safetensors)")


def weight_files(folder: Path, part: str) -> tuple[Path, ...]:
    """The files of a network's weights, one or several shards.

    Raises:
        ModelError: as for `weight_variant`.
    """
    variant = weight_variant(folder, part)
    mark = f".{variant}" if variant else ""
    whole = folder / part / f"{NETWORK_STEM}{mark}.safetensors"
    return (whole,) if whole.is_file() else tuple(sorted((folder / part).glob(f"{NETWORK_STEM}{mark}-*.safetensors")))


def refuse_pickles(folder: Path) -> None:
    """Raise a ModelError where a folder holds a pickle in the place of a model."""
    for file in sorted(folder.iterdir()):
        if file.suffix in PICKLE_SUFFIXES:
            raise pickle_error(file)


def pickle_error(path: Path) -> ModelError:
    """What to say of weights that are a pickle."""
    return ModelError(f"{path} is a pickle, which can run code when it is read", hint=_CONVERT)


def load_part(kind: type[Network], folder: Path, part: str, dtype: torch.dtype) -> Network:
    """Read one part of a diffusers folder, weights mapped from the file rather than copied where the type allows it.

    Raises:
        ModelError: a weight is missing, superfluous or of another shape, or a file cannot be read.
    """
    from safetensors import SafetensorError

    try:
        network, report = kind.from_pretrained(  # type: ignore[attr-defined]  # diffusers' mixin is not typed
            folder / part,
            torch_dtype=dtype,
            variant=weight_variant(folder, part),
            use_safetensors=True,
            local_files_only=True,
            low_cpu_mem_usage=True,
            output_loading_info=True,
        )
    # What diffusers raises for a file that is missing, truncated, or not of the configuration's shape.
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{folder / part} cannot be loaded: {str(error).strip().partition(chr(10))[0]}") from error
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = sorted(str(key) for key in report[what])
        if keys:
            shown = ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
            raise ModelError(f"{folder / part}: {len(keys)} {what.replace('_', ' ')}: {shown}")
    loaded: Network = network.eval().requires_grad_(False)
    return loaded
