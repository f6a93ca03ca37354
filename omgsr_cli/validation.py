"""Turn pydantic's reports into one readable line."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError

_LONGEST = 60
_IN_OUR_WORDS = {"extra_forbidden": "unknown key", "missing": "this key is missing"}


@dataclass(frozen=True)
class Mistake:
    """The first error in a record.

    Attributes:
        place: the keys that lead to the value; empty for the record itself.
        reason: what is wrong, without the value.
        value: the given value; None if there was none.
        kind: pydantic's name for the error, such as "extra_forbidden".
        others: number of further errors.
    """

    place: tuple[str, ...]
    reason: str
    value: object
    kind: str
    others: int

    def line(self) -> str:
        """One line, such as `first.blur_prob: should be less than or equal to 1 (got 2) (and 1 more)`."""
        where = ".".join(self.place) or "file"
        got = "" if self.value is None or not self.place else f" (got {_short(self.value)})"
        more = f" (and {self.others} more)" if self.others else ""
        return f"{where}: {self.reason}{got}{more}"


def first_mistake(error: ValidationError) -> Mistake:
    """The first error of a report."""
    first, *others = error.errors(include_url=False)
    value = None if first["type"] == "missing" else first["input"]
    reason = _IN_OUR_WORDS.get(first["type"]) or first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return Mistake(tuple(str(part) for part in first["loc"]), reason, value, first["type"], len(others))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
