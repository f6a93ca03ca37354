"""Turn pydantic's reports into one readable line."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pydantic import ValidationError

_LONGEST = 60
_IN_OUR_WORDS = {
    "extra_forbidden": "unknown key",
    "missing": "this key is missing",
    "bool_type": "should be true or false",
    "tuple_type": "should be a list",
    "dict_type": "should be a table",
    "model_type": "should be a table",
}


@dataclass(frozen=True)
class Mistake:
    """An error in a record.

    Attributes:
        place: the keys that lead to the value; empty for the record itself.
        reason: what is wrong, without the value.
        value: the given value; None if there was none.
        kind: pydantic's name for the error, such as "extra_forbidden".
        others: number of further errors that a line mentions.
    """

    place: tuple[str, ...]
    reason: str
    value: object
    kind: str
    others: int = 0

    def line(self) -> str:
        """One line, such as `first.blur_prob: should be less than or equal to 1 (got 2) (and 1 more)`."""
        where = ".".join(self.place) or "file"
        got = "" if self.value is None or not self.place else f" (got {_short(self.value)})"
        more = f" (and {self.others} more)" if self.others else ""
        return f"{where}: {self.reason}{got}{more}"


def first_mistake(error: ValidationError) -> Mistake:
    """The first error of a report."""
    first, *others = list_mistakes(error)
    return replace(first, others=len(others))


def list_mistakes(error: ValidationError) -> list[Mistake]:
    """All errors of a report."""
    return [
        Mistake(
            place=tuple(str(part) for part in each["loc"]),
            reason=_IN_OUR_WORDS.get(each["type"]) or each["msg"].removeprefix("Value error, ").removeprefix("Input "),
            value=None if each["type"] == "missing" else each["input"],
            kind=each["type"],
        )
        for each in error.errors(include_url=False)
    ]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
