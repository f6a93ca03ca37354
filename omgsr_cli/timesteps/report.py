"""Show a mid-timestep with its evidence as a record, text, CSV and a plot."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omgsr_cli.files.atomic import write_atomically
from omgsr_cli.timesteps.find import Survey
from omgsr_cli.timesteps.matching import MIN_IMAGES, MidTimestep, own_timesteps, spread_by

_WIDTH, _HEIGHT = 64, 10
_BLOCKS = " ▁▂▃▄▅▆▇█"


def describe(survey: Survey, found: MidTimestep, settings: dict[str, Any]) -> dict[str, Any]:
    """Return all results as plain values for JSON; an infinite loss becomes None.

    Args:
        survey: the measured samples.
        found: the mid-timestep of the survey.
        settings: the options as readable text.
    """
    schedule = survey.encoder.schedule
    return {
        "mid_timestep": found.mid_timestep,
        "loss": found.loss,
        "samples": found.samples,
        "images": found.images,
        "interval": None if found.interval is None else list(found.interval),
        "flat_region": list(found.flat_region),
        schedule.level_name: found.level,
        "curve": [value if math.isfinite(value) else None for value in found.curve.tolist()],
        "spread": _spread(survey),
        "schedule": schedule.to_config(),
        "settings": settings,
    }


def _spread(survey: Survey) -> dict[str, dict[str, dict[str, int]]]:
    """Return the mid-timestep of groups of samples, by kind of random choice and then by its value."""
    spread = {}
    for choice in survey.measured[0].drawn:
        drawn = [item.drawn[choice] for item in survey.measured]
        groups = spread_by(drawn, *survey.numbers(), survey.encoder.schedule)
        spread[choice] = {name: {"mid_timestep": t, "samples": count} for name, (t, count) in groups.items()}
    return spread


def draw_text(record: dict[str, Any]) -> str:
    """Return the result as text: a few lines and the curve."""
    level = "alpha_bar" if "alpha_bar" in record else "sigma"
    first, last = record["flat_region"]
    lines = [
        f"mid-timestep  {record['mid_timestep']}",
        f"95 % interval {_interval_text(record)}",
        f"loss          {record['loss']:.4g}, within 1 % of it from {first} to {last}",
        f"{level:13} {record[level]:.4f}",
    ]
    for choice, groups in record["spread"].items():
        values = ", ".join(f"{name} {group['mid_timestep']} ({group['samples']})" for name, group in groups.items())
        lines.append(f"{choice:13} {values}")
    return "\n".join([*lines, "", *_draw_curve(record["curve"], record["mid_timestep"])])


def _interval_text(record: dict[str, Any]) -> str:
    counts = f"{_counted(record['samples'], 'sample')} of {_counted(record['images'], 'image')}"
    if record["interval"] is None:
        return f"none: {counts}; an interval needs {MIN_IMAGES} images"
    low, high = record["interval"]
    return f"{low} to {high}, from {counts}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _draw_curve(curve: Sequence[float | None], best: int) -> list[str]:
    """Draw the logarithm of the loss over the timesteps as rows of block characters."""
    step = len(curve) / _WIDTH
    # Each column shows its minimum, so a narrow valley stays visible.
    columns = [
        min((v for v in curve[int(i * step) : int((i + 1) * step)] if v is not None), default=math.inf)
        for i in range(_WIDTH)
    ]
    finite = [math.log10(max(value, 1e-12)) for value in columns if math.isfinite(value)]
    low, high = min(finite), max(finite)
    scale = _HEIGHT * 8 / (high - low) if high > low else 0.0
    heights = [
        _HEIGHT * 8 if not math.isfinite(value) else round((math.log10(max(value, 1e-12)) - low) * scale)
        for value in columns
    ]
    rows = []
    for row in reversed(range(_HEIGHT)):
        rows.append("".join(_BLOCKS[min(8, max(0, height - row * 8))] for height in heights).rstrip())
    mark = min(_WIDTH - 1, int(best / step))
    label = f"{'':{mark}}^ {best}"
    return [f"loss {10**high:.3g} to {10**low:.3g}, logarithmic; timesteps 0 to {len(curve) - 1}", *rows, label]


def write_csv(path: Path, survey: Survey, *, overwrite: bool) -> None:
    """Write one row per sample: image, crop, power, ratio, own timestep, and the random choices of the degradation.

    Raises:
        FileError: the file exists and may not be replaced, or cannot be written.
    """
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(["image", "top", "left", "power", "snr_lq", "mid_timestep", *survey.measured[0].drawn])
    own_steps = own_timesteps(*survey.numbers(), survey.encoder.schedule).tolist()
    for item, own in zip(survey.measured, own_steps, strict=True):
        writer.writerow([item.path, *item.window, repr(item.power), repr(item.snr), own, *item.drawn.values()])
    write_atomically(path, [table.getvalue().encode("utf-8", "backslashreplace")], overwrite=overwrite)


def write_plot(path: Path, record: dict[str, Any], survey: Survey, *, overwrite: bool) -> None:
    """Plot the curve with its interval and flat region above a histogram of the samples' own timesteps.

    Args:
        path: a .png or .svg file.
        record: from `describe`.
        survey: the measured samples.
        overwrite: whether an existing file is replaced.
    Raises:
        FileError: the file exists and may not be replaced, or cannot be written.
    """
    # Do not use pyplot: it chooses a window system and keeps the figure.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5.5), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    best, interval, (first, last) = record["mid_timestep"], record["interval"], record["flat_region"]
    curve = [math.nan if value is None else value for value in record["curve"]]
    if interval is not None:
        low, high = interval
        above.axvspan(low, high, color="#e69f00", alpha=0.35, lw=0, label=f"95 % interval, {low} to {high}")
    above.axvspan(first, last, color="#56b4e9", alpha=0.25, lw=0, label=f"loss within 1 %, {first} to {last}")
    above.plot(range(len(curve)), curve, color="#0072b2", lw=1.8)
    above.axvline(best, color="#d55e00", lw=1.2, label=f"mid-timestep {best}")
    above.set(yscale="log", ylabel="mean |SNR(z_t) - SNR(z_L)|")
    above.set_title(f"{record['samples']} samples, {record['settings'].get('encoder', '')}", fontsize=10)
    above.legend(fontsize=9)
    own_steps = own_timesteps(*survey.numbers(), survey.encoder.schedule).tolist()
    below.hist(own_steps, bins=50, range=(0, len(curve) - 1), color="#999999")
    below.axvline(best, color="#d55e00", lw=1.2)
    below.set(xlabel="timestep", ylabel="samples", xlim=(0, len(curve) - 1))
    for axes in (above, below):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    drawn = io.BytesIO()
    figure.savefig(drawn, format=path.suffix.lower()[1:], dpi=150)
    write_atomically(path, [drawn.getvalue()], overwrite=overwrite)
