"""Errors of a configuration: all errors are reported together, each in one line `section.key: reason`."""

from __future__ import annotations

import difflib
import json
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import Any, Generic, Self, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, model_validator
from pydantic_core import ErrorDetails, InitErrorDetails, PydanticCustomError, PydanticKnownError

from omgsr_cli.errors import UsageError
from omgsr_cli.files.addresses import shown

Key = tuple[str, ...]

_VALUES_ALONE = "values alone"
"""Context of a validation that does not check conflicts; the caller checks them."""

_KINDS = {
    "int_type": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": 'a text in "quotation marks"',
    "string_too_short": "a text that is not empty",
    "tuple_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
    "model_attributes_type": "a table",
}
_BOUNDS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


class ConfigError(UsageError):
    """A configuration with errors.

    Args:
        problems: one line each.
    """

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("; ".join(problems), "`omgsr train --schema` lists what each key takes")
        self.problems = problems


def refuse(reason: str, *keys: str) -> PydanticCustomError:
    """Build the error of a value that is rejected for a specific reason.

    Args:
        reason: one line without a full stop.
        keys: keys of a conflict of several values, as in `Conflict`.
    """
    return PydanticCustomError("refused", "{reason}", {"reason": reason, "keys": keys})


def not_among(*allowed: str) -> PydanticKnownError:
    """Build the error of a string that is not one of the allowed values."""
    return PydanticKnownError("literal_error", {"expected": ", ".join(f"'{name}'" for name in allowed)})


class Conflict:
    """Values that are valid individually but conflict with each other.

    Args:
        reason: one line without a full stop.
        keys: full names, starting with the key to change. If one of them has its own error, the conflict is not
            reported.
    """

    def __init__(self, reason: str, *keys: str) -> None:
        self.reason, self.keys = reason, keys


class Section(BaseModel):
    """A table of the configuration: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def conflicts(self) -> Iterator[Conflict]:
        """Yield the conflicts between values."""
        yield from ()

    @model_validator(mode="after")
    def _goes_together(self, info: ValidationInfo) -> Self:
        found = () if info.context == _VALUES_ALONE else tuple(self.conflicts())
        if found:
            raise ValidationError.from_exception_data(
                type(self).__name__,
                [InitErrorDetails(type=refuse(each.reason, *each.keys), loc=(), input=None) for each in found],
            )
        return self


Record = TypeVar("Record", bound=Section)


@dataclass
class Draft(Generic[Record]):
    """A configuration that may have errors.

    Attributes:
        kind: class of the configuration.
        config: the valid values, with stand-ins for the others; while problems exist, it serves only to find more
            errors. None if it cannot be built.
        problems: key and reason of each error.
    """

    kind: type[Record]
    config: Record | None = None
    problems: list[tuple[Key, str]] = field(default_factory=list)

    def is_wrong(self, dotted: str) -> bool:
        """Return whether a key, its table or a value in it has an error."""
        key = tuple(dotted.split("."))
        return any(key[: len(wrong)] == wrong or wrong[: len(key)] == key for wrong, _ in self.problems)

    def add(self, dotted: str, reason: str) -> None:
        """Add the error of a value, unless it already has one."""
        if not self.is_wrong(dotted):
            self.problems.append((tuple(dotted.split(".")), reason))

    def check(self) -> Record:
        """Return the configuration if it has no errors.

        Raises:
            ConfigError: the configuration has errors.
        """
        if self.problems or self.config is None:
            raise ConfigError(self.lines())
        return self.config

    def lines(self) -> tuple[str, ...]:
        """Return one line per problem, ordered by section."""
        sections = list(self.kind.model_fields)
        in_order = sorted(self.problems, key=lambda each: sections.index(each[0][0]) if each[0][0] in sections else -1)
        return tuple(f"{shown('.'.join(key))}: {reason}" for key, reason in in_order)


def draft_config(kind: type[Record], table: Mapping[str, Any], stand_ins: Mapping[str, Any]) -> Draft[Record]:
    """Check every value of a configuration, and conflicts between valid values.

    Args:
        kind: class of the configuration.
        table: table from TOML.
        stand_ins: values that replace missing or wrong values of required keys.
    """
    draft = Draft(kind)
    try:
        draft.config = kind.model_validate(table)
        return draft
    except ValidationError as error:
        draft.problems = list(_find_wrong_values(kind, error.errors(include_url=False)))
    valid = deepcopy(dict(table))
    for key, _ in draft.problems:
        _remove(valid, key[:2], stand_ins)
    try:
        draft.config = kind.model_validate(valid, context=_VALUES_ALONE)
    except ValidationError:
        return draft
    wrong_by_itself = Draft(kind, None, list(draft.problems))
    for conflict in _find_conflicts(draft.config):
        if not any(map(wrong_by_itself.is_wrong, conflict.keys)):
            draft.add(conflict.keys[0], conflict.reason)
    return draft


def _remove(table: dict[str, Any], key: Key, stand_ins: Mapping[str, Any]) -> None:
    """Remove a key or replace its value with the stand-in."""
    *sections, name = key
    for section in sections:
        table, stand_ins = table.setdefault(section, {}), stand_ins.get(section, {})
    table.pop(name, None)
    if name in stand_ins:
        table[name] = deepcopy(stand_ins[name])


def _find_conflicts(section: Section) -> Iterator[Conflict]:
    for _, value in section:
        if isinstance(value, Section):
            yield from _find_conflicts(value)
    yield from section.conflicts()


def _find_wrong_values(kind: type[Section], found: Iterable[ErrorDetails]) -> Iterator[tuple[Key, str]]:
    """Yield the key and the reason of each error, except conflicts.

    For a value of a union type, pydantic reports an error per type; they are merged into one.
    """
    of_kinds: dict[Key, list[ErrorDetails]] = {}
    for details in found:
        key = tuple(str(part) for part in details["loc"])
        if details.get("ctx", {}).get("keys"):
            continue
        if len(key) > 2 and _has_kinds(_section_of(kind, key[0]), key[1]):
            of_kinds.setdefault(key[:2], []).append(details)
        else:
            yield key, _reason(kind, key, details)
    for key, several in of_kinds.items():
        # An error of an element shows which type of the union applies.
        elements = [details for details in several if len(details["loc"]) > 3]
        for details in elements:
            element = (*key, *(str(part) for part in details["loc"][3:]))
            yield element, _reason(kind, element, details)
        if not elements:
            kinds = " or ".join(_expected(details).removeprefix("should be ") for details in several)
            yield key, f"should be {kinds}{_not(several[0]['input'])}"


def _has_kinds(section: type[BaseModel] | None, name: str) -> bool:
    annotation = section.model_fields[name].annotation if section is not None else None
    return get_origin(annotation) in (Union, UnionType) and len(set(get_args(annotation)) - {NoneType}) > 1


def _reason(kind: type[Section], key: Key, details: ErrorDetails) -> str:
    code = details["type"]
    if code == "extra_forbidden":
        return _unknown_key(kind, key)
    if code == "missing":
        owner = _owner(kind, key)
        if owner is None:
            return "this value is missing"
        return f"this key is missing: {owner.model_fields[key[-1]].description}"
    if code == "refused":
        return str(details["ctx"]["reason"])
    near = ""
    if code == "literal_error":
        near = _did_you_mean(str(details["input"]), _allowed(details))
    return _expected(details) + _not(details["input"]) + near


def _expected(details: ErrorDetails) -> str:
    """Describe the expected value."""
    code, context = details["type"], details.get("ctx", {})
    if code == "literal_error":
        allowed = [f'"{name}"' for name in _allowed(details)]
        return f"should be {'one of ' if len(allowed) > 1 else ''}{', '.join(allowed)}"
    if code in _BOUNDS:
        name, words = _BOUNDS[code]
        return f"should be {words} {context[name]:g}"
    if code == "too_short":
        return "should not be empty"
    if code in ("too_long", "tuple_length"):
        return f"should have {context.get('max_length', 'fewer')} values"
    return f"should be {_KINDS[code]}" if code in _KINDS else details["msg"]


def _allowed(details: ErrorDetails) -> list[str]:
    """Parse the values in pydantic's "'a', 'b' or 'c'"."""
    expected = str(details["ctx"]["expected"])
    return [part.strip().strip("'") for part in expected.replace(" or ", ", ").split(", ")]


def _not(value: object) -> str:
    """Return ", not VALUE", shortened and close to TOML syntax; empty for a table or an empty value."""
    if isinstance(value, dict) or value in ((), [], None):
        return ""
    if isinstance(value, bool | str):
        text = json.dumps(value, ensure_ascii=False)
        return ", not " + shown(text if len(text) <= 60 else text[:56] + '..."')
    return ", not " + shown(reprlib.repr(value).replace("'", '"'))


def _did_you_mean(word: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def _unknown_key(kind: type[Section], key: Key) -> str:
    """Describe an unknown key: a similar key of this table or the same key in another one, and the table's keys."""
    owner, name = _owner(kind, key) or kind, key[-1]
    known = list(owner.model_fields)
    sections = {table: _section_of(kind, table) for table in kind.model_fields}
    elsewhere = [f"{table}.{name}" for table, section in sections.items() if section and name in section.model_fields]
    hint = f"; did you mean {' or '.join(elsewhere)}?" if elsewhere else _did_you_mean(name, known)
    table = f"[{'.'.join(key[:-1])}] has" if len(key) > 1 else "the tables are"
    return f"unknown key{hint or ';'} {table} {', '.join(known)}"


def _owner(kind: type[BaseModel], key: Key) -> type[BaseModel] | None:
    """Return the class of the table that contains a key."""
    owner: type[BaseModel] | None = kind
    for part in key[:-1]:
        # The index of a list element does not change the class.
        owner = owner if part.isdigit() else _section_of(owner, part)
    return owner


def _section_of(kind: type[BaseModel] | None, name: str) -> type[BaseModel] | None:
    """Return the class of a table of the configuration, optional or not; None for a value."""
    if kind is None or name not in kind.model_fields:
        return None
    return next(_records_of(kind.model_fields[name].annotation), None)


def _records_of(annotation: Any) -> Iterator[type[BaseModel]]:
    """Yield the model classes in an annotation: itself, members of a union, or elements of a tuple."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _records_of(part)
