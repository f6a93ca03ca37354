"""`omgsr.json`, the record of a model folder that omgsr wrote."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from omgsr_cli.errors import ModelError, reason_of
from omgsr_cli.store.installed import RECORD_NAME
from omgsr_cli.validation import first_mistake


class ModelRecord(BaseModel):
    """The contents of `omgsr.json`; other keys are an error.

    Attributes:
        format: version of this record.
        family: a name in `families.FAMILIES`.
        mid_timestep: index into the schedule for the single step.
        native_tile_px: side of the square images that the step was trained at.
        scale: magnification that it was trained for.
        prompt: text whose embedding is in `prompt_embeds.safetensors`; None for a family without prompts.
        schedule: configuration as in diffusers' `scheduler_config.json`; None if `scheduler/` contains such a file.
        licence: licence of the weights, or None if it is unknown.
        made_from: names of the base model and of the adapter, for information.
        base: for an adapter: folder or hub repository of its base model.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1] = 1
    family: str
    mid_timestep: int = Field(ge=0, le=999)
    native_tile_px: int = Field(gt=0)
    scale: float = Field(default=4.0, gt=0)
    prompt: str | None = None
    schedule: dict[str, Any] | None = None
    licence: str | None = None
    made_from: tuple[str, ...] = ()
    base: str | None = None


def load_record(folder: Path) -> ModelRecord | None:
    """Read `omgsr.json` of a model folder.

    Returns:
        The record, or None if the folder has none.
    Raises:
        ModelError: the file is not a valid record; the message has its name and the first wrong key.
    """
    path = folder / RECORD_NAME
    if not path.is_file():
        return None
    try:
        return ModelRecord.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise ModelError(f"{path} is not a model record: {first_mistake(error).line()}") from error


def write_record(record: ModelRecord, folder: Path) -> None:
    """Write `omgsr.json` into a folder."""
    text = json.dumps(record.model_dump(mode="json"), indent=2, ensure_ascii=False)
    (folder / RECORD_NAME).write_text(text + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a configuration file of a model.

    Raises:
        ModelError: the file cannot be read or is not a JSON object.
    """
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {reason_of(error)}") from error
    except ValueError as error:
        raise ModelError(f"{path} is not JSON: {error}") from error
    except RecursionError as error:
        raise ModelError(f"{path} is nested too deeply") from error
    if not isinstance(content, dict):
        raise ModelError(f"{path} is not a JSON object")
    return content
