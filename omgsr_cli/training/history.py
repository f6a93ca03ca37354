"""What a run has written down: its tables as curves, and the pictures of its validations."""

from __future__ import annotations

import csv
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omgsr_cli.errors import FileError, UsageError
from omgsr_cli.training.checkpoints import list_checkpoints
from omgsr_cli.training.logs import STEP, STEPS_NAME, VALIDATION_NAME
from omgsr_cli.training.model_card import CONFIG_NAME


@dataclass(frozen=True)
class Curve:
    """A column of a table; rows without a finite number are left out.

    Attributes:
        name: of the column.
        steps: after which each value was written, rising.
        values: as many.
    """

    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class History:
    """A run.

    Attributes:
        folder: of the run.
        losses: of the steps, one curve a column; those that have a value.
        scores: of the validations, likewise.
        grids: step and picture of each validation, rising.
        settings: of the newest checkpoint, "section.key" to value; empty before the first.
    """

    folder: Path
    losses: tuple[Curve, ...]
    scores: tuple[Curve, ...]
    grids: tuple[tuple[int, Path], ...]
    settings: Mapping[str, Any]


def read_history(folder: Path) -> History:
    """Read what a run has written so far; it may still be going on.

    Args:
        folder: of the run, the one that [save] out names.
    Raises:
        UsageError: no run has written there.
        FileError: a table cannot be read.
    """
    if not (folder / STEPS_NAME).is_file():
        raise UsageError(f"{folder} is not a run's folder: it has no {STEPS_NAME}", "give what [save] out names")
    scores = folder / VALIDATION_NAME
    grids = [
        (int(match[1]), path)
        for path in sorted((folder / "validation").glob("step-*.png"))
        if (match := re.fullmatch(r"step-(\d+)\.png", path.name))
    ]
    return History(
        folder=folder,
        losses=_read_curves(folder / STEPS_NAME),
        scores=_read_curves(scores) if scores.is_file() else (),
        grids=tuple(grids),
        settings=_read_settings(folder),
    )


def _read_curves(path: Path) -> tuple[Curve, ...]:
    try:
        with open(path, encoding="utf-8", newline="") as file:
            table = csv.DictReader(file)
            columns = [name for name in table.fieldnames or () if name != STEP]
            points: dict[str, list[tuple[int, float]]] = {name: [] for name in columns}
            for row in table:
                step = row.get(STEP) or ""
                for name in columns:
                    value = _number(row.get(name))
                    if step.isdecimal() and value is not None:
                        points[name].append((int(step), value))
    except (OSError, ValueError, csv.Error) as error:
        raise FileError(f"{path} cannot be read: {error}") from error
    return tuple(Curve(name, *map(tuple, zip(*found, strict=True))) for name, found in points.items() if found)


def _number(text: str | None) -> float | None:
    """A cell's finite number; None for an empty one, and for a line that is still being written."""
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _read_settings(folder: Path) -> dict[str, Any]:
    checkpoints = list_checkpoints(folder)
    path = checkpoints[0] / CONFIG_NAME if checkpoints else None
    if path is None or not path.is_file():
        return {}
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise FileError(f"{path} cannot be read: {error}") from error
    return {f"{section}.{key}": value for section, values in tables.items() for key, value in values.items()}
