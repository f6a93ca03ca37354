"""What becomes of a checkpoint: one folder for use, or a repository on the hub."""

from __future__ import annotations

from pathlib import Path

from omgsr_cli.cli.output import Output
from omgsr_cli.errors import UsageError
from omgsr_cli.training.config import TrainConfig


def export_or_push(
    talk: Output, config: TrainConfig, resume: str, export: tuple[str, Path] | None, repository: str | None
) -> int:
    """Merge a checkpoint into a folder, upload it, or upload what was merged.

    Args:
        talk: of the command.
        config: of the run.
        resume: a checkpoint's path, or "auto" for the newest whole one.
        export: "merged" and the folder to write.
        repository: OWNER/NAME on the hub.
    Raises:
        UsageError: there is no checkpoint, or no such kind of export.
        OmgsrError: writing or uploading failed.
    """
    if export is not None and export[0] != "merged":
        raise UsageError(f"--export {export[0]}: there is no such kind", "write --export merged FOLDER")
    from omgsr_cli.training.checkpoints import find_checkpoint
    from omgsr_cli.training.publish import export_merged, push_to_hub

    root = Path(config.save.out)
    folder = find_checkpoint(root, "auto", note=talk.note) if resume in ("auto", "none") else Path(resume)
    if folder is None:
        raise UsageError(f"{root} has no checkpoint yet", "train first, or name one: --resume PATH")
    if export is not None:
        export_merged(folder, export[1], base=config.model.base)
        folder = export[1]
        talk.result(str(folder), {"event": "exported", "folder": str(folder)})
    if repository is not None:
        address = push_to_hub(folder, repository, note=talk.note)
        talk.result(address, {"event": "pushed", "address": address})
    return 0
