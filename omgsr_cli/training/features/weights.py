"""Reading published weight files: safetensors, and torch's own format where it holds nothing but tensors."""

from __future__ import annotations

import struct
from pathlib import Path
from pickle import UnpicklingError

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from omgsr_cli.errors import ModelError

SUFFIXES = (".safetensors", ".pth", ".pt")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read a file of named tensors onto the CPU.

    Feature networks are published as `.pth`. torch reads these without running anything that they contain.

    Args:
        path: a `.safetensors`, or a `.pth` or `.pt` with one dictionary of tensors.
    Raises:
        ModelError: it is not there, not readable or holds something else.
    """
    if not path.is_file():
        raise ModelError(f"there is no file {path}")
    try:
        found = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except UnpicklingError as error:
        raise ModelError(
            f"{path} is not a file of tensors alone, and others can run code when they are read",
            hint="convert it to .safetensors where you trust it",
        ) from error
    # A cut or foreign file fails wherever the reader happens to be.
    except (OSError, EOFError, RuntimeError, LookupError, ValueError, struct.error, SafetensorError) as error:
        reason = str(error).strip().partition("\n")[0] or "it ends too early"
        raise ModelError(f"{path} cannot be read: {reason}", hint="fetch it again") from error
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise ModelError(f"{path} is not one dictionary of tensors")
    return {str(name): value.detach() for name, value in found.items()}


def find_weights(source: Path, stem: str) -> Path:
    """Find a weight file.

    Args:
        source: the file itself, or a folder with it.
        stem: how its name begins, for a folder; `vgg16` finds `vgg16.safetensors` and `vgg16-397923af.pth`.
    Raises:
        ModelError: there is none.
    """
    if source.is_file():
        return source
    found = find_optional_weights(source, stem)
    if found is None:
        names = " or ".join(f"{stem}*{suffix}" for suffix in SUFFIXES[:2])
        raise ModelError(f"{source} has no weights of {stem}", hint=f"it needs a file {names}")
    return found


def find_optional_weights(folder: Path, stem: str) -> Path | None:
    """Find a weight file in a folder as `find_weights` does, or None."""
    # A longer name belongs to another network (vgg16_bn) unless a hash follows, as torch publishes its files.
    patterns = [f"{stem}{mark}{suffix}" for suffix in SUFFIXES for mark in ("", "-*")]
    return next((file for pattern in patterns for file in sorted(folder.glob(pattern))), None)


def fill(module: nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Copy tensors into a module's weights, float32; every one must be there and have its shape.

    Args:
        module: whose `state_dict` has the same names.
        tensors: by name; others than the module's are left alone.
        path: where they are from, for the message.
    Raises:
        ModelError: one is missing or has another shape.
    """
    wanted = module.state_dict()
    for name, weight in wanted.items():
        found = tensors.get(name)
        if found is None:
            raise ModelError(f"{path} has no {name}")
        if found.shape != weight.shape:
            raise ModelError(f"{path}: {name} has the shape {tuple(found.shape)}, not {tuple(weight.shape)}")
    module.load_state_dict({name: tensors[name].float() for name in wanted}, assign=True)
