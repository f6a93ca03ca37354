"""Writing a model as one folder that runs by itself: without its base, its adapter's folder and peft."""

from __future__ import annotations

import shutil
from pathlib import Path

from omgsr_cli.errors import ModelError, reason_of
from omgsr_cli.models.families import family_of
from omgsr_cli.models.loading import load_found, save_merged
from omgsr_cli.models.record import RECORD_NAME
from omgsr_cli.models.sources import ModelSource
from omgsr_cli.models.weight_files import check_file_finite


def save_standalone(source: ModelSource, folder: Path) -> None:
    """Write a model as a folder that `load_restorer` reads without anything else; an adapter is added in float32.

    Args:
        source: from `find_model`.
        folder: must not exist yet.
    Raises:
        ModelError: the model cannot be read, a weight is not finite, or the folder exists or cannot be written.
    """
    family = family_of(source.record, source.name)
    if family.adapter_parts:
        save_merged(load_found(source, device="cpu", precision="fp32"), folder)
        return
    try:
        folder.mkdir(parents=True)
        for path in (*family.find_files(source.folder), source.folder / "config.json", source.folder / RECORD_NAME):
            shutil.copyfile(path, folder / path.name)
            if path.suffix == ".safetensors":
                check_file_finite(folder / path.name)
    except OSError as error:
        raise ModelError(f"{source.folder} cannot be copied to {folder}: {reason_of(error)}") from error
