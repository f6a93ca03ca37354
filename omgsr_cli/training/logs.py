"""The log of a run: tables of its steps and validations, trackers, and `--report`, a self-contained page of them."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import tomllib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator

from omgsr_cli.errors import FileError, UsageError, reason_of
from omgsr_cli.files.atomic import write_atomically
from omgsr_cli.imaging import SourceImage, encode_image, read_image, resize
from omgsr_cli.packages import install_command
from omgsr_cli.pages.template import data_address, definitions, escape, fill_page, printable
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
    """The log of a run: means over steps and processes, written by the first process to the tables and the trackers.

    Args:
        accelerator: accelerator of the process.
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
    """A column of a table: its finite values with their steps, ascending."""

    name: str
    steps: tuple[int, ...]
    values: tuple[float, ...]


def read_curves(path: Path) -> list[Curve]:
    """Read the columns of a table that have a value; the run may still write it.

    Raises:
        FileError: the table cannot be read.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            table = csv.DictReader(file)
            points: dict[str, list[tuple[int, float]]] = {n: [] for n in table.fieldnames or () if n != STEP}
            for row in table:
                step = row.get(STEP) or ""
                for name, found in points.items():
                    value = _number(row.get(name))
                    if step.isdecimal() and value is not None:
                        found.append((int(step), value))
    except (OSError, ValueError, csv.Error) as error:
        raise FileError(f"{path} cannot be read: {error}") from error
    return [Curve(name, *map(tuple, zip(*found, strict=True))) for name, found in points.items() if found]


def _number(text: str | None) -> float | None:
    """Parse a cell as a finite number; None if it is empty or not fully written yet."""
    try:
        value = float(text or "nan")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


PAGE_NAME = "report.html"
_MARK = '<meta name="generator" content="omgsr train">'
_MOST_GRIDS, _LARGEST_PX, _QUALITY = 6, 1200, 85

_FEW_POINTS = 30
"""Largest number of values that are drawn as dots without a running mean."""

_WIDE = 30
"""Ratio of the largest to the smallest positive value above which the axis is logarithmic."""


def can_plot() -> bool:
    """Return whether matplotlib is installed, which draws the curves."""
    return find_spec("matplotlib") is not None


def write_run_page(folder: Path) -> Path:
    """Write the self-contained page of a run into its folder: curves and validation images, also during the run.

    Returns:
        The path of the page; without matplotlib it has tables but no curves.
    Raises:
        UsageError: the folder is not the folder of a run.
        FileError: a table or an image cannot be read, the page cannot be written, or another program's page exists.
    """
    path, table = folder / PAGE_NAME, folder / VALIDATION_NAME
    if not (folder / STEPS_NAME).is_file():
        raise UsageError(f"{folder} is not the folder of a run: it has no {STEPS_NAME}", "use the folder in [save] out")
    try:
        is_own = not path.is_file() or _MARK in path.read_text("utf-8", errors="replace")[:2000]
    except OSError as error:
        raise FileError(f"{path} cannot be replaced: {reason_of(error)}") from error
    if not is_own:
        raise FileError(f"{path} is not a page that omgsr train wrote", "move it away")
    losses, scores = read_curves(folder / STEPS_NAME), read_curves(table) if table.is_file() else []
    grids = [grid for grid in sorted((folder / "validation").glob("step-*.png")) if grid.stem[5:].isdecimal()]
    settings = _read_settings(folder)
    last = max((curve.steps[-1] for curve in (*losses, *scores)), default=0)
    # The total is unknown before the first checkpoint.
    of_all = f" of {settings['train.steps']}" if "train.steps" in settings else ""
    text = fill_page(
        resources.files("omgsr_cli") / "training" / "page_files",
        "run.html",
        title=escape(folder.resolve().name),
        summary=escape(f"omgsr train, {last}{of_all} steps"),
        losses=_section(losses, "No row has been written yet."),
        validation=_section(scores, "None were measured."),
        grids="".join(_grid(grid, is_open=not n) for n, grid in enumerate(choose_grids(grids)))
        or '<p class="none">None were written.</p>',
        about=definitions(settings.items()),
    )
    write_atomically(path, [text.encode("utf-8", "backslashreplace")], overwrite=True)
    return path


def _read_settings(folder: Path) -> dict[str, Any]:
    """Read the newest checkpoint's configuration: "section.key" to value; empty before the first checkpoint."""
    path = next((each / CONFIG_NAME for each in list_checkpoints(folder)), folder / CONFIG_NAME)
    if not path.is_file():
        return {}
    try:
        return flatten(tomllib.loads(path.read_text("utf-8")))
    except (OSError, ValueError) as error:
        raise FileError(f"{path} cannot be read: {error}") from error


def choose_grids(grids: Sequence[Path]) -> list[Path]:
    """Choose the newest, the oldest and evenly spaced grids between them, newest first."""
    return [grids[round(number)] for number in np.linspace(len(grids) - 1, 0, min(len(grids), _MOST_GRIDS))]


def plot_curves(curves: Sequence[Curve]) -> bytes:
    """Plot values over steps as a PNG; long curves also have a running mean over a twentieth of their values."""
    # pyplot is avoided, because it would select a window system and keep the figure in memory.
    from matplotlib.figure import Figure

    rows = math.ceil(len(curves) / 2)
    figure = Figure(figsize=(11, 2.6 * rows), layout="constrained")
    panels = list(figure.subplots(rows, 2, squeeze=False).flat)
    for curve, axes in zip(curves, panels, strict=False):
        values = np.array(curve.values)
        few = len(values) <= _FEW_POINTS
        axes.plot(curve.steps, values, color="#0072b2", alpha=1 if few else 0.35, lw=1, marker="o" if few else None)
        if not few:
            axes.plot(curve.steps, running_mean(values, max(3, len(values) // 20)), color="#0072b2", lw=1.8)
        if values.min() > 0 and values.max() > _WIDE * values.min():
            axes.set_yscale("log")
        axes.set_title(printable(curve.name), loc="left", fontsize=10, parse_math=False)
        axes.set_title(f"{values[-1]:.4g}", loc="right", fontsize=10)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    for axes in panels[len(curves) :]:
        axes.set_axis_off()
    drawn = io.BytesIO()
    with warnings.catch_warnings():
        # The warnings are about glyphs that the font does not have.
        warnings.simplefilter("ignore", UserWarning)
        figure.savefig(drawn, format="png", dpi=110)
    return drawn.getvalue()


def running_mean(values: np.ndarray[tuple[int], np.dtype[np.float64]], reach: int) -> list[float]:
    """Compute the mean of each value and the values before it, `reach` values in total, fewer at the start."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    ends = np.arange(1, len(sums))
    starts = np.maximum(0, ends - reach)
    means: list[float] = ((sums[ends] - sums[starts]) / (ends - starts)).tolist()
    return means


def mean_of_ends(values: Sequence[float]) -> tuple[float, float]:
    """Return the means of the first and the last tenth of the values, each of at least one value."""
    count = max(1, len(values) // 10)
    return math.fsum(values[:count]) / count, math.fsum(values[-count:]) / count


def _section(curves: Sequence[Curve], otherwise: str) -> str:
    if not curves:
        return f'<p class="none">{otherwise}</p>'
    rows = []
    for curve in curves:
        first, last = mean_of_ends(curve.values)
        cells = (first, last, min(curve.values), max(curve.values))
        numbers = "".join(f"<td>{value:.4g}</td>" for value in cells)
        rows.append(f'<tr><th scope="row">{escape(curve.name)}</th>{numbers}</tr>')
    head = "".join(f'<th scope="col">{name}</th>' for name in ("", "first", "last", "least", "most"))
    if can_plot():
        names = ", ".join(escape(curve.name) for curve in curves)
        plot = f'<img class="plot" src="{data_address("image/png", plot_curves(curves))}" alt="{names} over steps">'
    else:
        plot = f'<p class="none">Curves need matplotlib: {escape(install_command("plot"))}</p>'
    return (
        f'{plot}<div class="scroll"><table><caption>first and last: means of a tenth of the rows</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _grid(path: Path, *, is_open: bool) -> str:
    """Return a validation grid as a JPEG, at most `_LARGEST_PX` wide."""
    image = read_image(path).rgb
    height, width = image.shape[1:]
    if width > _LARGEST_PX:
        height, width = max(1, round(height * _LARGEST_PX / width)), _LARGEST_PX
        image = resize(image, (height, width))
    parts, _ = encode_image(SourceImage(image), name=str(path), format="jpg", quality=_QUALITY)
    address, step = data_address("image/jpeg", b"".join(parts)), int(path.stem[5:])
    return (
        f'<details class="grid"{" open" * is_open}><summary>step {step}</summary><img src="{address}" width="{width}" '
        f'height="{height}" alt="low quality, output and reference after step {step}"></details>'
    )
