"""`--report`: one page of a run, with its curves and its validation pictures, that opens from the disk."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from omgsr_cli.errors import FileError, reason_of
from omgsr_cli.imaging import Picture, encode_picture, read_picture, resize, write_atomically
from omgsr_cli.pages.template import data_address, definitions, escape, fill_page
from omgsr_cli.training.curves import draw_curve, mean_of_ends
from omgsr_cli.training.history import Curve, History

PAGE_NAME = "report.html"
_MARK = '<meta name="generator" content="omgsr train">'

_MOST_GRIDS = 6
_LARGEST_PX = 1200
_QUALITY = 85


def write_run_page(history: History) -> Path:
    """Write a run's page into its folder, over the one that an earlier call wrote.

    Returns:
        The page.
    Raises:
        FileError: a picture cannot be read, the page cannot be written, or what is there is none of ours.
    """
    path = history.folder / PAGE_NAME
    _check_own(path)
    last = max((curve.steps[-1] for curve in (*history.losses, *history.scores)), default=0)
    steps = history.settings.get("train.steps")
    # Before the first checkpoint, how many there will be is not written down.
    of_all = "" if steps is None else f" of {steps}"
    text = fill_page(
        resources.files("omgsr_cli") / "training" / "page_files",
        "run.html",
        title=escape(history.folder.resolve().name),
        summary=escape(f"omgsr train, {last}{of_all} steps"),
        losses=_section(history.losses, "No row has been written yet."),
        validation=_section(history.scores, "None were measured."),
        grids=_grids(history.grids),
        about=definitions(history.settings.items()),
    )
    write_atomically(path, [text.encode("utf-8", "backslashreplace")], overwrite=True)
    return path


def choose_grids(grids: Sequence[tuple[int, Path]]) -> list[tuple[int, Path]]:
    """Take the newest, the oldest and some between them, evenly; the newest first."""
    if len(grids) <= _MOST_GRIDS:
        return list(reversed(grids))
    share = (len(grids) - 1) / (_MOST_GRIDS - 1)
    return [grids[round(number * share)] for number in reversed(range(_MOST_GRIDS))]


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
    return (
        f'<div class="plots">{"".join(draw_curve(curve) for curve in curves)}</div>'
        '<div class="scroll"><table><caption>first and last: means of a tenth of the rows</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _grids(grids: Sequence[tuple[int, Path]]) -> str:
    drawn = []
    for number, (step, path) in enumerate(choose_grids(grids)):
        address, height, width = _shrink(path)
        opened = "" if number else " open"
        drawn.append(
            f'<details class="grid"{opened}><summary>step {step}</summary><img src="{address}" width="{width}" '
            f'height="{height}" alt="low quality, output and reference after step {step}"></details>'
        )
    return "".join(drawn) or '<p class="none">There are none.</p>'


def _shrink(path: Path) -> tuple[str, int, int]:
    """A picture as a JPEG in an address, not wider than a page shows it; its height and width in px."""
    image = read_picture(path).rgb
    height, width = image.shape[1:]
    if width > _LARGEST_PX:
        height, width = max(1, round(height * _LARGEST_PX / width)), _LARGEST_PX
        image = resize(image, (height, width))
    parts, _ = encode_picture(Picture(image), name=str(path), format="jpg", quality=_QUALITY)
    return data_address("image/jpeg", b"".join(parts)), height, width


def _check_own(path: Path) -> None:
    """Refuse to write over what is not a page of a run."""
    try:
        own = not path.exists() or _MARK in path.read_text("utf-8", errors="replace")[:2000]
    except OSError as error:
        raise FileError(f"{path} cannot be written: {reason_of(error)}") from error
    if not own:
        raise FileError(f"{path} is not a page that omgsr train wrote", "move it away")
