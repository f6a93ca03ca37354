"""Errors of pydantic in one line."""

from __future__ import annotations

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from omgsr_cli.validation import Mistake, first_mistake


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")

    share: float = Field(default=0.5, le=1)
    name: str = "a"

    @field_validator("name")
    @classmethod
    def _short(cls, name: str) -> str:
        if len(name) > 200:
            raise ValueError("too long a name")
        return name


class Outer(BaseModel):
    inner: Inner = Inner()
    count: int


def mistake(**values: object) -> Mistake:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(values)
    return first_mistake(caught.value)


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({}, "count: this key is missing"),
        ({"count": "x"}, "count: should be a valid integer, unable to parse string as an integer (got 'x')"),
        ({"inner": {"share": 2}}, "inner.share: should be less than or equal to 1 (got 2) (and 1 more)"),
        ({"count": 1, "inner": {"shore": 2}}, "inner.shore: unknown key (got 2)"),
    ],
)
def test_the_first_mistake_is_reported_with_its_place(values: dict[str, object], line: str) -> None:
    assert mistake(**values).line() == line


def test_a_long_value_is_cut_and_our_own_reason_stands_alone() -> None:
    found = mistake(count=1, inner={"name": "x" * 300})
    assert found.reason == "too long a name"
    assert len(found.line()) < 110
    assert found.kind == "value_error"


def test_a_file_that_is_not_json_is_not_shown() -> None:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate_json(b"{")
    assert first_mistake(caught.value).line().startswith("file: Invalid JSON")
    assert "got" not in first_mistake(caught.value).line()
