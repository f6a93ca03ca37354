"""The result of one file, as an object and as a JSON record."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from omgsr_cli.errors import OmgsrError
from omgsr_cli.files.addresses import Location

if TYPE_CHECKING:
    from omgsr_cli.geometry import Size
    from omgsr_cli.planning import TilePlan

Status = Literal["done", "skipped", "planned", "failed"]


@dataclass(frozen=True)
class FileResult:
    """The result of one file.

    Attributes:
        source: the input, a path or an address; None is standard input.
        destination: the output; None is standard output, or an input that was never planned.
        status: "done", "skipped" (finished before, with the same settings), "planned" (dry run) or "failed".
        input_px: height and width of the upright input; None if it could not be read.
        output_px: height and width of the result.
        working_px: height and width at which it is restored.
        seconds: from opening the input to the finished output, without the loading of the model.
        notes: notes for the user, one line each.
        error: the reason of a failure.
        plan: the tiles, in a dry run.
        is_own: the input is a result of an earlier run that a folder or glob contained.
    """

    source: Location | None
    destination: Location | None
    status: Status
    input_px: Size | None = None
    output_px: Size | None = None
    working_px: Size | None = None
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    error: OmgsrError | None = None
    plan: TilePlan | None = None
    is_own: bool = False


def result_record(result: FileResult) -> dict[str, object]:
    """The JSON object of one file; sizes are [width, height]."""
    sizes = {"input_size": result.input_px, "output_size": result.output_px, "restored_size": result.working_px}
    record: dict[str, object] = {
        "input": None if result.source is None else str(result.source),
        "output": None if result.destination is None else str(result.destination),
        "status": result.status,
        **{name: size and [size.width, size.height] for name, size in sizes.items()},
        "seconds": round(result.seconds, 3),
        "notes": [*result.notes, *(["the input is a result of an earlier run"] if result.is_own else [])],
        "error": result.error and result.error.message,
        "hint": result.error and result.error.hint,
    }
    if result.plan:
        record |= {
            "tiles": result.plan.tiles,
            "tile_px": result.plan.step.side_px,
            "overlap_px": result.plan.step.margin_px,
            "memory_mib": result.plan.memory_bytes >> 20,
            "in_strips": result.plan.in_strips,
        }
    return record
