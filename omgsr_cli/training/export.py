"""`--export merged`: a checkpoint as one folder that upscale loads without its base and without peft."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from omgsr_cli.errors import UsageError, write_error
from omgsr_cli.files.atomic import partial_folder
from omgsr_cli.models.loading import save_standalone
from omgsr_cli.models.sources import find_model
from omgsr_cli.store.manifest import MANIFEST_NAME, write_manifest
from omgsr_cli.training.checkpoints import verify_checkpoint
from omgsr_cli.training.model_card import CARD_NAME


def export_merged(checkpoint: Path, folder: Path, *, base: str | None = None) -> None:
    """Write a checkpoint's model, averaged weights where it has them, with its card and a manifest.

    The folder appears whole or not at all: it is written beside and renamed.

    Args:
        checkpoint: a checkpoint, or an adapter's folder.
        folder: must not exist yet.
        base: of the adapter, instead of the one that the checkpoint names.
    Raises:
        UsageError: the folder exists.
        ModelError: the checkpoint is not whole, or it and its base do not make a model.
        FileError: the folder cannot be written.
    """
    if os.path.lexists(folder):
        raise UsageError(f"{folder} already exists", "give another name for the merged model, or remove it first")
    if (checkpoint / MANIFEST_NAME).is_file():
        verify_checkpoint(checkpoint)
    source = find_model(checkpoint, base=base)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with partial_folder(folder) as beside:
            # Its name goes into the model's record.
            partial = beside / folder.name
            save_standalone(source, partial)
            if (checkpoint / CARD_NAME).is_file():
                shutil.copyfile(checkpoint / CARD_NAME, partial / CARD_NAME)
            write_manifest(partial)
            os.rename(partial, folder)
    except OSError as error:
        raise write_error(folder, error) from error
