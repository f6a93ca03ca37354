"""Read and check the header of a safetensors file without torch and without reading weights."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from omgsr_cli.errors import ModelError, reason_of

_MAX_HEADER_BYTES = 100_000_000
"""The limit of the safetensors library; no model has a longer list of tensors."""

ELEMENT_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("I16", "U16", "F16", "BF16"), 2),
    **dict.fromkeys(("I32", "U32", "F32"), 4),
    **dict.fromkeys(("I64", "U64", "F64"), 8),
}


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
    ends with the file. So no bytes are hidden between tensors, and none belong to two.
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
