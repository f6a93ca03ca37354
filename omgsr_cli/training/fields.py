"""What a configuration's values may be: strict kinds of numbers and texts, and refusals of what does not go together.

Plain records: importing this loads no torch.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError, PydanticKnownError

_SUM_TOLERANCE = 1e-6


def refuse(reason: str, *keys: str) -> PydanticCustomError:
    """Make the error of a value that is refused for a reason of its own.

    Args:
        reason: one line without a full stop.
        keys: full names of the keys that it follows from, the one to change first. None for the validated key
            itself. Where one of them is wrong by itself, this is not said on top.
    """
    return PydanticCustomError("refused", "{reason}", {"reason": reason, "keys": keys})


def not_among(*allowed: str) -> PydanticKnownError:
    """Make the error of a text that is none of those which are allowed."""
    return PydanticKnownError("literal_error", {"expected": ", ".join(f"'{name}'" for name in allowed)})


def check_shares(value: dict[str, float]) -> dict[str, float]:
    """Refuse probabilities that do not sum to 1."""
    total = math.fsum(value.values())
    if abs(total - 1) > _SUM_TOLERANCE:
        raise refuse(f"the probabilities sum to {total:g}, not to 1")
    return value


def is_scale(text: str) -> bool:
    """Whether a key is a number that `Scale` takes."""
    try:
        return 1 <= float(text) <= 16
    except ValueError:
        return False


def _listed(value: object) -> object:
    return (value,) if isinstance(value, str) else value


# Strict: in TOML "4" is a text and true is no number, and guessing what was meant would hide a slip.
Whole = Annotated[int, Field(strict=True, ge=0)]
Count = Annotated[int, Field(strict=True, ge=1)]
Number = Annotated[float, Field(strict=True, ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]
Quality = Annotated[int, Field(strict=True, ge=1, le=100)]
Scale = Annotated[float, Field(strict=True, ge=1, le=16)]
Momentum = Annotated[float, Field(strict=True, ge=0, lt=1, allow_inf_nan=False)]
Switch = Annotated[bool, Field(strict=True)]
Text = Annotated[str, Field(min_length=1)]
Texts = Annotated[tuple[Text, ...], BeforeValidator(_listed), Field(min_length=1)]
Betas = tuple[Momentum, Momentum]


class Section(BaseModel):
    """A table: a key that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)
