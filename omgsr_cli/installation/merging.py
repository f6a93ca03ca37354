"""Merge a base and its adapter into one complete folder with a manifest."""

from __future__ import annotations

import os
from pathlib import Path

from omgsr_cli.errors import UsageError
from omgsr_cli.models.family import ModelSource
from omgsr_cli.models.loading import save_merged
from omgsr_cli.store.installed import Provenance, write_provenance
from omgsr_cli.store.manifest import write_manifest


def write_merged(
    source: ModelSource,
    folder: Path,
    *,
    half: bool = False,
    text_encoder: bool = False,
    provenance: Provenance | None = None,
) -> None:
    """Merge a model with its adapter and write a self-contained folder.

    The sums are computed in float32 and rounded once if `half` is set. The folder is written under another name, the
    manifest last, and renamed, so it is complete or absent.

    Args:
        source: from `find_model`, with or without an adapter.
        folder: must not exist yet.
        half: write float16, half the size.
        text_encoder: copy the text encoder too, so the folder supports any prompt.
        provenance: written to the folder as `sources.json`.
    Raises:
        UsageError: the folder exists.
        ModelError: the parts do not match, or the folder cannot be written.
    """
    if os.path.lexists(folder):
        raise UsageError(f"{folder} already exists", "choose another name, or remove it first")

    def finish(model: Path) -> None:
        if provenance is not None:
            write_provenance(provenance, model)
        write_manifest(model)

    save_merged(source, folder, half=half, text_encoder=text_encoder, finish=finish)
