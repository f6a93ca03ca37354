"""pydantic's reports as one line for people."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError

_LONGEST = 60
_IN_OUR_WORDS = {"extra_forbidden": "there is no such key", "missing": "this key is missing"}


@dataclass(frozen=True)
class Mistake:
    """The first thing that is wrong with a record.

    Attributes:
        place: the keys that lead to the value; none where it is the whole.
        reason: what is wrong, without the value.
        value: what was given; None where nothing was.
        kind: pydantic's name for it, such as "extra_forbidden".
        others: how many more things are wrong.
    """

    place: tuple[str, ...]
    reason: str
    value: object
    kind: str
    others: int

    def line(self) -> str:
        """Such as `first.blur_prob: should be less than or equal to 1 (got 2) (and 1 more)`."""
        where = ".".join(self.place) or "file"
        got = "" if self.value is None or not self.place else f" (got {_short(self.value)})"
        more = f" (and {self.others} more)" if self.others else ""
        return f"{where}: {self.reason}{got}{more}"


def first_mistake(error: ValidationError) -> Mistake:
    """Take the first thing out of a report."""
    first, *others = error.errors(include_url=False)
    value = None if first["type"] == "missing" else first["input"]
    reason = _IN_OUR_WORDS.get(first["type"]) or first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return Mistake(tuple(str(part) for part in first["loc"]), reason, value, first["type"], len(others))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
