"""What a configuration says about files, checked before anything large is read: all that is wrong, with its place."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

from omgsr_cli.errors import OmgsrError
from omgsr_cli.files.inputs import find_inputs
from omgsr_cli.options import ModelOptions
from omgsr_cli.training.config import TrainConfig
from omgsr_cli.training.config_errors import Draft


def check_files(draft: Draft[TrainConfig], resume: str = "auto") -> None:
    """Add to a draft what is wrong with the files and packages that it names.

    Args:
        draft: with or without errors of its own; keys that are wrong already are left alone.
        resume: as for `find_checkpoint`; the ranks of the checkpoint that it means are compared.
    """
    config = draft.config
    if config is None:
        return
    data = config.data
    _check_pictures(draft, "data.train", data.train)
    _check_pictures(draft, "data.train_lq", data.train_lq or ())
    _check_pictures(draft, "data.validation", (data.validation,) if data.validation else ())
    _check_pictures(draft, "data.validation_lq", (data.validation_lq,) if data.validation_lq else ())
    _check_degradations(draft, config)
    _check_features(draft, config)
    _check_teacher(draft, config)
    _check_model(draft, config, resume)
    _check_packages(draft, config)
    folder = Path(config.save.out)
    if not _could_be_folder(folder):
        draft.add("save.out", "this is a file, checkpoints need a folder")


def _check_pictures(draft: Draft[TrainConfig], key: str, names: Sequence[str]) -> None:
    def search() -> None:
        found, problems, _ = find_inputs(names, recursive=True)
        if problems:
            more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
            raise OmgsrError(problems[0].message + more, problems[0].hint)
        if names and not found:
            raise OmgsrError("there are no pictures")

    _note(draft, key, search)


def _check_degradations(draft: Draft[TrainConfig], config: TrainConfig) -> None:
    from omgsr_cli.degradation import load_degradation

    for name in config.degradation.presets:
        _note(draft, "degradation.presets", lambda name=name: load_degradation(name))  # type: ignore[misc]  # bound now


def _check_features(draft: Draft[TrainConfig], config: TrainConfig) -> None:
    from omgsr_cli.training.perceptual import find_features

    loss = config.loss
    _note(draft, "loss.backbone_path" if loss.backbone_path else "loss.backbone", lambda: find_features(loss))
    if loss.lpips_path and not Path(loss.lpips_path).exists():
        draft.add("loss.lpips_path", "there is no such file or folder")


def _check_teacher(draft: Draft[TrainConfig], config: TrainConfig) -> None:
    from omgsr_cli.models.sources import find_model
    from omgsr_cli.store.hub import is_repository_name

    if config.loss.teacher is None:
        return
    name, key = config.loss.teacher.model, "loss.teacher.model"
    if Path(name).is_file():
        if find_spec("spandrel") is None:
            draft.add(key, "spandrel, which reads it, is not installed: pip install 'omgsr-cli[compare]'")
    elif Path(name).is_dir() or not is_repository_name(name):
        _note(draft, key, lambda: find_model(ModelOptions(model=name)))


def _check_model(draft: Draft[TrainConfig], config: TrainConfig, resume: str) -> None:
    from omgsr_cli.models.lora import LoraOptions
    from omgsr_cli.models.sources import start_folder
    from omgsr_cli.store.hub import is_repository_name
    from omgsr_cli.training.checkpoints import check_adapter_ranks, list_checkpoints
    from omgsr_cli.training.model import build_lora_options

    base, lora = config.model.base, build_lora_options(config) or LoraOptions()
    if base and not Path(base).is_dir() and not is_repository_name(base):
        draft.add("model.base", "there is no such folder, and it is no hub repository OWNER/NAME")
    start = start_folder(config.model.start_from)
    if start is not None and not start.is_dir():
        draft.add("model.start_from", "there is no such folder")
    elif start is not None:
        if not draft.is_wrong("model.preset"):
            _note(draft, "model.start_from", lambda: _check_start(start, config.model.preset))
        _note(draft, "lora", lambda: check_adapter_ranks(start, lora))
    checkpoints = list_checkpoints(Path(config.save.out)) if resume == "auto" else [Path(resume)]
    if resume != "none" and checkpoints:
        _note(draft, "lora", lambda: check_adapter_ranks(checkpoints[0], lora))


def _check_start(start: Path, preset: str | None) -> None:
    """Whether a folder has what training a preset can begin with; without one the folder says itself what it is."""
    from omgsr_cli.models.families import family_of, recognise_adapter
    from omgsr_cli.models.record import load_record
    from omgsr_cli.presets import PRESETS

    if preset not in PRESETS:
        return
    parts = family_of(PRESETS[preset], preset).adapter_parts
    if parts and recognise_adapter(start) is None:
        raise OmgsrError(f"the folder has no {' and no '.join(parts)}")
    if not parts and load_record(start) is None:
        raise OmgsrError("the folder has no omgsr.json, as a checkpoint has")


def _check_packages(draft: Draft[TrainConfig], config: TrainConfig) -> None:
    if config.optim.eight_bit and find_spec("bitsandbytes") is None:
        draft.add("optim.eight_bit", "bitsandbytes is not installed: pip install bitsandbytes, or set it to false")
    for tracker in config.log.trackers:
        if find_spec(tracker) is None:
            package = "'omgsr-cli[train]'" if tracker == "tensorboard" else tracker
            draft.add("log.trackers", f"{tracker} is not installed: pip install {package}, or leave it out")


def _note(draft: Draft[TrainConfig], key: str, check: Callable[[], object]) -> None:
    """Make a check, and turn its error into one line of the draft."""
    try:
        check()
    except OmgsrError as error:
        draft.add(key, f"{error.message}; {error.hint}" if error.hint else error.message)


def _could_be_folder(path: Path) -> bool:
    """Whether a path is a folder, or nothing on the way to it is a file."""
    nearest = next((each for each in (path, *path.parents) if os.path.lexists(each)), None)
    return nearest is None or nearest.is_dir()
