"""One folder of a base and its adapter, complete and with a manifest, or no folder at all."""

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
    """Merge a model with its adapter and write all that runs it into one folder.

    The sums are taken in float32 and rounded once where `half` asks for it. The folder is written under another name
    and renamed: it exists whole or not at all, its manifest last.

    Args:
        source: from `find_model`, with or without an adapter.
        folder: must not exist yet.
        half: write float16, half the size.
        text_encoder: copy the text encoder too, so that the folder takes any prompt.
        provenance: kept in the folder as `sources.json`.
    Raises:
        UsageError: the folder exists.
        ModelError: the parts do not make a model, or the folder cannot be written.
    """
    if os.path.lexists(folder):
        raise UsageError(f"{folder} already exists", "give another name, or remove it first")

    def finish(model: Path) -> None:
        if provenance is not None:
            write_provenance(provenance, model)
        write_manifest(model)

    save_merged(source, folder, half=half, text_encoder=text_encoder, finish=finish)
