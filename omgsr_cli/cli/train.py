"""`omgsr train`: a configuration to a run, its events to lines."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from omgsr_cli.cli import params as shared
from omgsr_cli.cli import train_params as own
from omgsr_cli.cli.output import Output
from omgsr_cli.errors import FileError, UsageError

if TYPE_CHECKING:
    from omgsr_cli.training.config import TrainConfig
    from omgsr_cli.training.config_errors import Draft


_LISTED = 20
"""Images that cannot be read are named up to this many."""


def train(
    config: own.Config = None,
    sets: own.Sets = None,
    check: own.Check = False,
    print_config: own.PrintConfig = None,
    schema: own.Schema = False,
    resume: own.Resume = "auto",
    device: own.Device = None,
    export: own.Export = None,
    push_to_hub: own.PushToHub = None,
    report: own.Report = None,
    as_json: own.AsJson = False,
    quiet: shared.Quiet = False,
) -> int:
    """Train a model, going on from its newest checkpoint.

    The folder of the last checkpoint is printed; `omgsr upscale --model` takes it. On several GPUs:
    torchrun --nproc_per_node 2 -m omgsr_cli train CONFIG.toml, or accelerate launch -m omgsr_cli train CONFIG.toml.
    """
    # Of several processes of a launcher the first one speaks.
    is_first = os.environ.get("RANK", "0") == "0"
    talk = Output(as_json=as_json, quiet=quiet) if is_first else Output(mute=True)
    if schema or print_config is not None:
        return _print_form(talk, print_config)
    if report is not None:
        if config is not None or check or export or push_to_hub:
            raise UsageError("--report stands alone", f"omgsr train --report {report}")
        return _write_report(talk, report)
    if config is None:
        raise UsageError("there is no configuration", "omgsr train --print-config omgsr-tiny > config.toml")
    if check and (export or push_to_hub):
        raise UsageError("--check has no place beside --export and --push-to-hub", "give one of them")
    draft = _read(config, sets or [])
    if draft.problems and (export or push_to_hub):
        return _say_problems(talk, draft)
    if export is not None or push_to_hub is not None:
        from omgsr_cli.cli.train_results import export_or_push

        return export_or_push(talk, draft.check(), resume, export, push_to_hub)
    from omgsr_cli.cli.train_run import choose_training_device, run_training
    from omgsr_cli.training.check import check_files

    choose_training_device(device)
    check_files(draft, resume)
    if draft.problems:
        return _say_problems(talk, draft)
    from omgsr_cli.training.data import UnreadableImagesError

    try:
        if check:
            from omgsr_cli.cli.train_check import say_check

            return say_check(talk, draft.check(), resume)
        return run_training(talk, draft.check(), resume)
    except UnreadableImagesError as error:
        for problem in error.problems[:_LISTED]:
            talk.error(FileError(problem.message))
        if len(error.problems) > _LISTED:
            talk.note(f"... and {len(error.problems) - _LISTED} more")
        raise


def _print_form(talk: Output, name: str | None) -> int:
    import json

    from omgsr_cli.training.config import config_schema, read_preset_config

    if name is None:
        schema = config_schema()
        talk.result(json.dumps(schema, indent=2, ensure_ascii=False), schema)
    else:
        text = read_preset_config(name)
        talk.result(text.rstrip("\n"), {"name": name, "config": text})
    return 0


def _write_report(talk: Output, folder: Path) -> int:
    from omgsr_cli.packages import install_command
    from omgsr_cli.training.logs import read_history
    from omgsr_cli.training.report import can_plot, write_run_page

    page = write_run_page(read_history(folder))
    if not can_plot():
        talk.note(f"The page has no curves: matplotlib is not installed. Install it with: {install_command('plot')}")
    talk.result(str(page), {"event": "reported", "page": str(page)})
    return 0


def _read(path: Path, sets: list[str]) -> Draft[TrainConfig]:
    """The configuration with whatever is wrong with it: from a file, or a preset's by its name."""
    from omgsr_cli.training.config import PRESET_CONFIGS, draft_run, parse_table, read_preset_config, read_table

    name = str(path)
    if name in PRESET_CONFIGS and not path.exists():
        return draft_run(parse_table(read_preset_config(name), name, sets))
    return draft_run(read_table(path, sets))


def _say_problems(talk: Output, draft: Draft[TrainConfig]) -> int:
    """Report every error of a configuration on a line of its own."""
    problems = draft.lines()
    for problem in problems:
        talk.error(UsageError(problem))
    talk.note(f"{len(problems)} error{'s' if len(problems) > 1 else ''} in the configuration; nothing was trained")
    talk.note("`omgsr train --schema` lists what each key takes")
    return 2
