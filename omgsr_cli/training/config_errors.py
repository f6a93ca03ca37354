"""Checking a configuration to the end: every error at once, each told in one line with its place."""

from __future__ import annotations

import difflib
import json
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from types import NoneType, UnionType
from typing import Any, Generic, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from omgsr_cli.errors import UsageError
from omgsr_cli.files.addresses import shown
from omgsr_cli.training.config_file import Sheet, without
from omgsr_cli.training.toml_lines import Key

_ROUNDS = 64
"""How often a configuration is checked again without what was wrong."""

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

Record = TypeVar("Record", bound=BaseModel)


class ConfigError(UsageError):
    """A configuration with errors.

    Args:
        problems: one line each.
    """

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("; ".join(problems), "omgsr train --schema tells what each key takes")
        self.problems = problems


@dataclass
class Draft(Generic[Record]):
    """A configuration under examination.

    Attributes:
        sheet: as written.
        config: what is right of it, with stand-ins for the rest: good for finding more errors, and for nothing else
            where there are problems. None where not even that can be had.
        problems: key and line of text of each error.
    """

    sheet: Sheet
    config: Record | None = None
    problems: list[tuple[Key, str]] = field(default_factory=list)

    def is_wrong(self, dotted: str) -> bool:
        """Whether a key, or the table that it stands in, has an error."""
        key = tuple(dotted.split("."))
        return any(key[: len(wrong)] == wrong or wrong[: len(key)] == key for wrong, _ in self.problems)

    def add(self, dotted: str, reason: str) -> None:
        """Note what is wrong with a value, unless something is known to be already."""
        if not self.is_wrong(dotted):
            key = tuple(dotted.split("."))
            self.problems.append((key, _line(self.sheet, key, reason)))

    def check(self) -> Record:
        """Give the configuration.

        Raises:
            ConfigError: it has errors.
        """
        if self.problems or self.config is None:
            raise ConfigError(self.in_order())
        return self.config

    def in_order(self) -> tuple[str, ...]:
        """The problems' lines, in the order in which they stand in the file."""
        in_order = sorted(self.problems, key=lambda problem: self.sheet.line(problem[0]))
        return tuple(text for _, text in in_order)


def draft_config(kind: type[Record], sheet: Sheet, stand_ins: dict[str, Any]) -> Draft[Record]:
    """Check a configuration; what is wrong is left out and the rest checked again, until nothing more is found.

    Args:
        kind: the record that it should become.
        sheet: as written.
        stand_ins: values for keys that are required, where they are missing or wrong.
    """
    draft: Draft[Record] = Draft(sheet)
    table = sheet.table
    for _ in range(_ROUNDS):
        try:
            draft.config = kind.model_validate(table)
            break
        except ValidationError as error:
            known: Draft[Record] = Draft(sheet, None, list(draft.problems))
            for place, reason, details in _told(kind, error.errors(include_url=False)):
                keys = [tuple(key.split(".")) for key in details.get("ctx", {}).get("keys", ())]
                key = keys[0] if keys else place
                if not any(known.is_wrong(".".join(other)) for other in (*keys, key)):
                    draft.problems.append((key, _line(sheet, key, reason)))
                table = without(table, _key_of_section(key), stand_ins)
    return draft


def _told(kind: type[BaseModel], found: Iterable[ErrorDetails]) -> Iterator[tuple[Key, str, ErrorDetails]]:
    """Where and what each error is.

    Of a value that may be of several kinds pydantic tells an error for each: it is one here, without the kinds' names.
    """
    of_kinds: dict[Key, list[ErrorDetails]] = {}
    for details in found:
        place = tuple(str(part) for part in details["loc"])
        if len(place) > 2 and _has_kinds(kind, place):
            of_kinds.setdefault(place[:2], []).append(details)
        else:
            yield place, _reason(kind, details), details
    for key, several in of_kinds.items():
        # An element that is wrong says which kind the whole is of.
        elements = [details for details in several if len(details["loc"]) > 3]
        for details in elements:
            yield (*key, *(str(part) for part in details["loc"][3:])), _reason(kind, details), details
        if not elements:
            reasons = (_reason(kind, details).removeprefix("should be ") for details in several)
            yield key, f"should be {' or '.join(reasons)}", several[0]


def _has_kinds(kind: type[BaseModel], place: Key) -> bool:
    annotation = section_of(kind, place[0]).model_fields[place[1]].annotation
    return get_origin(annotation) in (Union, UnionType) and len(set(get_args(annotation)) - {NoneType}) > 1


def _key_of_section(key: Key) -> Key:
    """What is left out for an error: a whole value of a section, even where only an element of it is wrong."""
    return key[:2]


def _line(sheet: Sheet, key: Key, reason: str) -> str:
    place, value = sheet.place(key), _find_value(sheet.table, key)
    name = ".".join(key)
    if place.startswith("--set ") and key in sheet.sets:
        return f"{place}: {reason}"
    return f"{place}: {shown(name)}{'' if value is None else f' = {_notation(value)}'}: {reason}"


def _find_value(table: object, key: Key) -> object:
    """The value that was written under a key; None for a table and for what is not there."""
    for part in key:
        if isinstance(table, dict):
            table = table.get(part)
        elif isinstance(table, list | tuple) and part.isdigit() and int(part) < len(table):
            table = table[int(part)]
        else:
            return None
    return None if isinstance(table, dict) else table


def _notation(value: object) -> str:
    """A value nearly as TOML writes it, shortened."""
    if isinstance(value, bool | str):
        text = json.dumps(value, ensure_ascii=False)
        return shown(text if len(text) <= 60 else text[:56] + '..."')
    return shown(reprlib.repr(value).replace("'", '"'))


def _reason(kind: type[BaseModel], details: ErrorDetails) -> str:
    """Say what a value should have been."""
    code, context = details["type"], details.get("ctx", {})
    place = tuple(str(part) for part in details["loc"])
    if code == "refused":
        return str(context["reason"])
    if code == "extra_forbidden":
        return _unknown_key(kind, place)
    if code == "missing":
        return f"this key is missing: {_describe(kind, place)}"
    if code == "literal_error":
        return _not_among(str(details["input"]), _allowed(str(context["expected"])))
    if code in _BOUNDS:
        name, words = _BOUNDS[code]
        return f"should be {words} {context[name]:g}"
    if code == "too_short":
        return "should not be empty"
    if code in ("too_long", "tuple_length"):
        return f"should have {context.get('max_length', 'fewer')} values"
    return f"should be {_KINDS[code]}" if code in _KINDS else details["msg"]


def _allowed(expected: str) -> list[str]:
    """The values in pydantic's "'a', 'b' or 'c'"."""
    return [part.strip().strip("'") for part in expected.replace(" or ", ", ").split(", ")]


def _not_among(value: str, allowed: list[str]) -> str:
    listed = ", ".join(f'"{name}"' for name in allowed)
    return f"should be {'one of ' if len(allowed) > 1 else ''}{listed}{_did_you_mean(value, allowed, quoted=True)}"


def _did_you_mean(word: str, known: list[str], *, quoted: bool = False) -> str:
    near = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.6)
    if not near:
        return ""
    return f'; did you mean "{near[0]}"?' if quoted else f"; did you mean {near[0]}?"


def _unknown_key(kind: type[BaseModel], place: Key) -> str:
    """Name the keys that there are, and the one that may have been meant, in this section or in another."""
    owner = _owner(kind, place)
    keys = list(owner.model_fields)
    name = place[-1]
    elsewhere = [dotted for dotted, _, _ in walk_keys(kind) if dotted.split(".")[-1] == name]
    hint = f"; did you mean {' or '.join(elsewhere)}?" if elsewhere else _did_you_mean(name, keys)
    table = f"[{'.'.join(place[:-1])}] has" if len(place) > 1 else "the tables are"
    return f"there is no such key{hint or ';'} {table} {', '.join(keys)}"


def _owner(kind: type[BaseModel], place: Key) -> type[BaseModel]:
    for part in place[:-1]:
        kind = section_of(kind, part)
    return kind


def _describe(kind: type[BaseModel], place: Key) -> str:
    return _owner(kind, place).model_fields[place[-1]].description or "it has no default"


def section_of(kind: type[BaseModel], name: str) -> type[BaseModel]:
    """The record of a table of the configuration, whether it may be left out or not."""
    annotation = kind.model_fields[name].annotation
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    raise KeyError(name)


def walk_keys(kind: type[BaseModel]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Every key of every table: its full name, its description, and its part of the JSON schema."""
    for table in kind.model_fields:
        section = section_of(kind, table)
        properties = section.model_json_schema()["properties"]
        for key, details in section.model_fields.items():
            yield f"{table}.{key}", details.description or "", properties[key]
