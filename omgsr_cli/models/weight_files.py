"""Weight files: find and check them, refuse those that could run code, and read one part of a model."""

from __future__ import annotations

import json
import math
import stat
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from omgsr_cli.errors import ModelError, reason_of
from omgsr_cli.store.hub import PREFERRED_VARIANTS, find_variants
from omgsr_cli.store.installed import RECORD_NAME

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

NETWORK_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt")
"""Of the files of restoration networks, which spandrel reads."""

NETWORK_STEM = "diffusion_pytorch_model"
"""Name of a network's weight file in Diffusers folders, without the suffix."""

PICKLE_SUFFIXES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")

_CONVERT = "if you trust its source, save it with diffusers' save_pretrained(folder, safe_serialization=True)"

_NOT_FINITE_HINT = "copy or download it again; if that does not help, the model was saved after its training diverged"

_MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library; no model has a longer list of tensors."""

ELEMENT_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64"), 8),
}

Network = TypeVar("Network", bound="nn.Module")


@dataclass(frozen=True)
class TensorEntry:
    """One tensor's entry in the header.

    Attributes:
        dtype: the format's name, such as "F32", "F16" or "BF16".
        shape: may be empty.
    """

    dtype: str
    shape: tuple[int, ...]

    @property
    def elements(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


class _Fields(BaseModel):
    # Strict, because Python treats JSON's true as an int, and lax validation accepts 4.0 as one.
    model_config = ConfigDict(extra="forbid", strict=True)

    dtype: str
    shape: list[Annotated[int, Field(ge=0)]]
    data_offsets: Annotated[list[int], Field(min_length=2, max_length=2)]


def read_header(path: Path) -> dict[str, TensorEntry]:
    """Read the list of tensors and check that the file contains exactly these.

    Each tensor's size follows from its type and shape, each tensor starts where the previous one ends, and the last
    ends with the file. So no bytes are hidden between tensors, and none belong to two. Neither torch nor weights are
    read.
    Source: the safetensors format, github.com/huggingface/safetensors.

    Raises:
        ModelError: the file cannot be read or is truncated, or its header is corrupt.
    """
    try:
        size = path.stat().st_size
        with open(path, "rb") as file:
            start = file.read(8)
            (length,) = struct.unpack("<Q", start) if len(start) == 8 else (0,)
            if not 2 <= length <= min(_MAX_HEADER_BYTES, size - 8):
                raise ModelError(f"{path} is no safetensors file, or is cut short: a header of {length} bytes")
            header = json.loads(file.read(length))
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {reason_of(error)}") from error
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is no safetensors file: its header is not JSON") from error
    if not isinstance(header, dict):
        raise ModelError(f"{path} is no safetensors file: its header is not a JSON object")
    header.pop("__metadata__", None)
    entries = sorted((_read_entry(path, name, fields) for name, fields in header.items()), key=lambda found: found[1])
    position = 0
    for name, (begin, end), _ in entries:
        if begin != position:
            raise ModelError(f"{path}: corrupt header: {name!r} begins at byte {begin}, not {position}")
        position = end
    if position != size - 8 - length:
        raise ModelError(
            f"{path}: corrupt header: it lists {position} bytes of weights, but the file has {size - 8 - length}"
        )
    return {name: entry for name, _, entry in entries}


def _read_entry(path: Path, name: str, fields: Any) -> tuple[str, tuple[int, int], TensorEntry]:
    try:
        listed = _Fields.model_validate(fields)
    except ValidationError as error:
        raise ModelError(f"{path}: corrupt header: {name!r} has no type, shape or position") from error
    entry = TensorEntry(listed.dtype, tuple(listed.shape))
    begin, end = listed.data_offsets
    if listed.dtype not in ELEMENT_BYTES or end - begin != entry.elements * ELEMENT_BYTES[listed.dtype]:
        raise ModelError(f"{path}: corrupt header: the type and shape of {name!r} do not match its number of bytes")
    return name, (begin, end), entry


def weight_variant(folder: Path, part: str, stem: str = NETWORK_STEM) -> str | None:
    """The variant of a part's weight files to read: None for the plain one, otherwise "fp16", "bf16" or another one.

    Raises:
        ModelError: no safetensors file exists (the hint shows how to convert a pickle), or several variants exist and
            none of them is a preferred one.
    """
    variants = find_variants((path.name for path in (folder / part).glob("*")), stem)
    if variants and (variants[0] in PREFERRED_VARIANTS or len(variants) == 1):
        return variants[0] or None
    if variants:
        raise ModelError(
            f"{folder / part} has weights of several kinds: {', '.join(variants)}",
            hint=f"rename the file that you want to {stem}.safetensors",
        )
    refuse_pickles(folder / part)
    raise ModelError(f"{folder / part} has no weights ({stem}.safetensors)")


def weight_files(folder: Path, part: str) -> tuple[Path, ...]:
    """The weight files of a network, one or several shards.

    Raises:
        ModelError: as for `weight_variant`.
    """
    variant = weight_variant(folder, part)
    mark = f".{variant}" if variant else ""
    whole = folder / part / f"{NETWORK_STEM}{mark}.safetensors"
    return (whole,) if whole.is_file() else tuple(sorted((folder / part).glob(f"{NETWORK_STEM}{mark}-*.safetensors")))


def part_entries(folder: Path, part: str) -> Iterator[tuple[str, TensorEntry]]:
    """Names and headers of a part's tensors."""
    for path in weight_files(folder, part):
        yield from read_header(path).items()


def refuse_pickles(path: Path, hint: str = _CONVERT) -> None:
    """Raise a ModelError if a file is a pickle, or a folder contains one; the hint shows how to convert it."""
    for file in sorted(path.glob("*")) if path.is_dir() else [path]:
        if file.suffix in PICKLE_SUFFIXES:
            raise ModelError(f"{file} is a pickle, which can run code when it is read", hint)


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor has neither NaN nor infinity, in one pass without a mask; always true for integers."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    # torch cannot compute the minimum of 8-bit floats.
    low, high = (tensor.float() if tensor.itemsize == 1 else tensor.detach()).aminmax()
    return math.isfinite(low.item()) and math.isfinite(high.item())


def check_finite(tensors: Iterable[tuple[str, Tensor]], where: object) -> None:
    """Refuse weights with NaN or infinity.

    Args:
        tensors: names and values.
        where: name of the weights in messages.
    Raises:
        ModelError: a tensor is not finite; the message names the first.
    """
    broken = next((name for name, tensor in tensors if not is_finite(tensor)), None)
    if broken is not None:
        raise ModelError(f"{where}: the weight {broken} is not finite (NaN or infinity)", _NOT_FINITE_HINT)


def read_tensors(paths: Iterable[Path]) -> Iterator[tuple[str, Tensor]]:
    """The names and tensors of safetensors files, one at a time, mapped into memory.

    Raises:
        ModelError: a file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                for name in file.keys():  # noqa: SIM118 - not a dictionary
                    yield name, file.get_tensor(name)
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{path} cannot be read: {error}") from error


def check_file_finite(path: Path) -> None:
    """Refuse a weight file with NaN or infinity.

    Raises:
        ModelError: a tensor is not finite, and the message names the first; or as for `read_header`.
    """
    read_header(path)
    check_finite(read_tensors([path]), path)


def apply_umask(folder: Path) -> None:
    """Give the weights in a folder the permissions of its record; safetensors creates files for the owner only.

    Raises:
        OSError: a permission cannot be set.
    """
    mode = stat.S_IMODE((folder / RECORD_NAME).stat().st_mode)
    for path in folder.rglob("*.safetensors"):
        path.chmod(mode)


def load_part(kind: type[Network], folder: Path, part: str, dtype: torch.dtype) -> Network:
    """Load one part of a Diffusers folder; weights are memory-mapped instead of copied if the type allows it.

    Raises:
        ModelError: a weight is missing, unexpected, not finite or of another shape, or a file cannot be read.
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
    # Exceptions of diffusers for files that are missing, truncated, or do not match the configuration.
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"{folder / part} cannot be loaded: {reason_of(error)}") from error
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        keys = sorted(str(key) for key in report[what])
        if keys:
            shown = ", ".join(keys[:3]) + (", ..." if len(keys) > 3 else "")
            raise ModelError(f"{folder / part}: {len(keys)} {what.replace('_', ' ')}: {shown}")
    check_finite(network.named_parameters(), folder / part)
    loaded: Network = network.eval().requires_grad_(False)
    return loaded


def find_weight_file(model: Path) -> Path:
    """The weight file of a restoration network: the path itself, or the one such file in an installed model's folder.

    Raises:
        ModelError: the folder has none.
    """
    if model.is_file():
        return model
    found = sorted(path for path in model.glob("*") if path.suffix.lower() in NETWORK_SUFFIXES)
    if not found:
        raise ModelError(f"{model} has no weight file", f"remove the folder, then: omgsr models pull {model.name}")
    return found[0]
