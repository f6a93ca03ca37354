"""A report as JSON: one object, plain values, names as in the records."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path

from omgsr_cli.benchmark.results import Report


def report_record(report: Report) -> dict[str, object]:
    """The JSON object of a report: every field by its name, paths as text, what could not be had as null."""
    record = _plain(report)
    assert isinstance(record, dict)
    return record


def _plain(value: object) -> object:
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: _plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value
