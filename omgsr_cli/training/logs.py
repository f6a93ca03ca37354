"""The tables of a run: one CSV file for steps and one for validations, which are always written."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from omgsr_cli.errors import FileError, UsageError, reason_of
from omgsr_cli.imaging import write_atomically
from omgsr_cli.training.checkpoints import list_checkpoints
from omgsr_cli.training.config import CONFIG_NAME, TrainConfig, flatten
from omgsr_cli.training.step import StepResult

STEP = "step"
STEPS_NAME, VALIDATION_NAME = "log.csv", "validation.csv"
_OF_A_STEP = ("total", "gradient_norm", "learning_rate", "images_per_s", "broken_images")


class CsvLog:
    """A CSV table with one row per step; each row is written to disk immediately.

    Rows after the step from which a run resumes are removed, because these steps are repeated.

    Args:
        path: path of the file; an existing table is continued with its columns and the new ones.
        columns: names of the columns, without the step.
        step: last step to keep.
    Raises:
        FileError: the file cannot be read or written.
    """

    def __init__(self, path: Path, columns: Sequence[str], step: int) -> None:
        self.path = path
        before, rows = _read_rows(path, step) if step else ([], [])
        self._columns = [STEP, *dict.fromkeys([*(name for name in before if name != STEP), *columns])]
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, self._columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_atomically(path, [text.getvalue().encode()], overwrite=True)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append a row; a column without a value stays empty.

        Raises:
            FileError: the disk is full, or the file is no longer writable.
        """
        line = io.StringIO(newline="")
        row = {STEP: step} | {name: f"{value:.6g}" for name, value in values.items() if name in self._columns}
        csv.DictWriter(line, self._columns, lineterminator="\n").writerow(row)
        try:
            # A line is written in one call, so that readers see complete rows, even after an interruption.
            with open(self.path, "ab", buffering=0) as file:
                file.write(line.getvalue().encode())
        except OSError as error:
            raise FileError(f"{self.path}: cannot be written: {reason_of(error)}") from error


class RunLog:
    """The log of a run: means over steps and processes, written to the tables and the trackers.

    Args:
        accelerator: accelerator of the process; only the first process writes.
        config: configuration of the run; trackers store it.
        losses: names of the losses.
        measures: names of the validation scores.
        step: number of finished steps.
    """

    def __init__(
        self, accelerator: Accelerator, config: TrainConfig, losses: Sequence[str], measures: Sequence[str], step: int
    ) -> None:
        self._accelerator, self._every = accelerator, config.log.every
        self._means = Means()
        self._steps = self._validations = None
        if not accelerator.is_main_process:
            return
        folder = Path(config.save.out)
        self._steps = CsvLog(folder / STEPS_NAME, [*losses, *_OF_A_STEP], step)
        if measures:
            self._validations = CsvLog(folder / VALIDATION_NAME, measures, step)
        if config.log.trackers:
            accelerator.init_trackers("omgsr", _tracked(config))

    def step(self, step: int, result: StepResult, images_per_s: float, broken: int) -> None:
        """Add a step to the means, and write a row when it is due.

        Args:
            step: step number, from 1.
            result: result of the step.
            images_per_s: images per second of all processes.
            broken: number of images that could not be read so far.
        """
        if self._steps is None:
            return
        self._means.add(result.losses | {"gradient_norm": result.gradient_norm, "images_per_s": images_per_s})
        if step % self._every:
            return
        values = self._means.take() | {"learning_rate": result.learning_rate}
        if broken:
            values["broken_images"] = float(broken)
        self._steps.write(step, values)
        self._accelerator.log({f"train/{name}": value for name, value in values.items()}, step=step)

    def validation(self, step: int, scores: Mapping[str, float]) -> None:
        """Write the scores of the held-out images."""
        if self._validations is None:
            return
        self._validations.write(step, scores)
        self._accelerator.log({f"validation/{name}": value for name, value in scores.items()}, step=step)

    def close(self) -> None:
        """Close the trackers."""
        self._accelerator.end_training()


class Means:
    """Means of the values of all steps since the last row."""

    def __init__(self) -> None:
        self._sums: dict[str, tuple[float, int]] = {}

    def add(self, values: Mapping[str, float]) -> None:
        """Add the values of a step."""
        for name, value in values.items():
            total, count = self._sums.get(name, (0.0, 0))
            self._sums[name] = (total + value, count + 1)

    def take(self) -> dict[str, float]:
        """Return the means and reset them."""
        means = {name: total / count for name, (total, count) in self._sums.items()}
        self._sums.clear()
        return means


def _read_rows(path: Path, step: int) -> tuple[list[str], list[dict[str, str]]]:
    """Read the columns and the rows up to a step; both are empty if the file is not such a table."""
    if not path.is_file():
        return [], []
    try:
        with open(path, encoding="utf-8", newline="") as file:
            table = csv.DictReader(file)
            rows = [row for row in table if _is_kept(row, step)]
            columns = list(table.fieldnames or ())
    except (OSError, ValueError, csv.Error) as error:
        raise FileError(f"{path} cannot be continued: {error}", f"move it away: {os.fspath(path)}.old") from error
    return (columns, rows) if columns[:1] == [STEP] else ([], [])


def _is_kept(row: Mapping[str, str | None], step: int) -> bool:
    number = row.get(STEP) or ""
    # A row that was truncated by an interruption lacks its last columns.
    return number.isdigit() and int(number) <= step and None not in row.values()


def _tracked(config: TrainConfig) -> dict[str, int | float | bool | str]:
    """Flatten settings to "section.name" with values that every tracker can store."""
    flat = flatten(config.model_dump(mode="json"))
    return {
        name: value if isinstance(value, int | float | bool | str) else json.dumps(value)
        for name, value in flat.items()
    }


@dataclass(frozen=True)
class Curve:
    """A column of a table, without rows that have no finite number.

    Attributes:
        name: name of the column.
        steps: step of each value, ascending.
        values: the values, as many as steps.
    """

    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class History:
    """The history of a run.

    Attributes:
        folder: folder of the run.
        losses: curves of the columns of the step table that have a value.
        scores: curves of the columns of the validation table that have a value.
        grids: step and image of each validation, ascending.
        settings: configuration of the newest checkpoint, "section.key" to value; empty before the first checkpoint.
    """

    folder: Path
    losses: tuple[Curve, ...]
    scores: tuple[Curve, ...]
    grids: tuple[tuple[int, Path], ...]
    settings: Mapping[str, Any]


def read_history(folder: Path) -> History:
    """Read the history of a run, which may still be in progress.

    Args:
        folder: folder of the run, as in [save] out.
    Raises:
        UsageError: the folder is not the folder of a run.
        FileError: a table cannot be read.
    """
    if not (folder / STEPS_NAME).is_file():
        raise UsageError(f"{folder} is not the folder of a run: it has no {STEPS_NAME}", "use the folder in [save] out")
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
    """Parse a cell as a finite number; None if it is empty or not fully written yet."""
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
