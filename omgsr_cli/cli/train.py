"""`omgsr train`: train a model from a configuration, check it, and export or publish the result."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from omgsr_cli.cli import options as shared
from omgsr_cli.cli.help import Command
from omgsr_cli.cli.options import OUTPUT
from omgsr_cli.cli.output import Output
from omgsr_cli.cli.progress import ShowsStep, duration
from omgsr_cli.errors import FileError, OmgsrError, UsageError

if TYPE_CHECKING:
    from omgsr_cli.training.config import TrainConfig
    from omgsr_cli.training.loop import Event, StepDone

CONFIGURATION, RUN, RESULT = "Configuration", "Run", "Export and publish"

# At most this many unreadable images are listed.
_LISTED = 20
_SIGNALLED = 128
_GIB = 2**30


class TrainCommand(Command):
    """The help of `omgsr train`."""

    examples: ClassVar[Mapping[str, str]] = {
        "omgsr train --print-config omgsr-tiny > my.toml": "begin here",
        "omgsr train my.toml --check": "estimate first",
        "omgsr train my.toml": "train, or resume",
        "omgsr train my.toml --set optim.lr=1e-4": "change a value",
    }


def train(
    config: Annotated[
        Path | None,
        typer.Argument(
            metavar="CONFIG.toml", help="Configuration of the run; --print-config prints one to begin with."
        ),
    ] = None,
    sets: Annotated[
        list[str] | None,
        shared.option(
            CONFIGURATION,
            "Change a value of the configuration, such as optim.lr=1e-4; repeatable.",
            "--set",
            metavar="KEY=VALUE",
        ),
    ] = None,
    check: Annotated[
        bool,
        shared.option(
            CONFIGURATION,
            "Validate the configuration and the data, take two steps, and estimate memory, time and disk.",
            "--check",
        ),
    ] = False,
    print_config: Annotated[
        str | None,
        shared.option(
            CONFIGURATION, "Print a complete configuration: omgsr-s-512, omgsr-f-1024 or omgsr-tiny.", metavar="NAME"
        ),
    ] = None,
    schema: Annotated[
        bool, shared.option(CONFIGURATION, "Print the JSON schema of the configuration, for editors.", "--schema")
    ] = False,
    resume: Annotated[
        str,
        shared.option(RUN, "Checkpoint to resume from; auto is the newest, if there is one.", metavar="auto|none|PATH"),
    ] = "auto",
    device: Annotated[
        str | None,
        shared.option(RUN, "Device: cuda, cuda:1, mps, xpu or cpu.", metavar="NAME", shown="the first available"),
    ] = None,
    export: Annotated[
        tuple[str, Path] | None,
        shared.option(
            RESULT,
            "Write the newest checkpoint, or the one of --resume, as one folder without a base model.",
            metavar="merged FOLDER",
        ),
    ] = None,
    push_to_hub: Annotated[
        str | None, shared.option(RESULT, "Upload the checkpoint or export with its model card.", metavar="OWNER/NAME")
    ] = None,
    report: Annotated[
        Path | None,
        shared.option(
            RESULT, "Write report.html with the curves and validation images of the run in FOLDER.", metavar="FOLDER"
        ),
    ] = None,
    as_json: Annotated[bool, shared.option(OUTPUT, "Print one JSON object per event on stdout.", "--json")] = False,
    quiet: shared.Quiet = False,
) -> int:
    """Train a model, or resume from its newest checkpoint.

    The folder of the last checkpoint is printed, for omgsr upscale --model FOLDER. On several GPUs: torchrun
    --nproc_per_node 2 -m omgsr_cli train CONFIG.toml, or accelerate launch -m omgsr_cli train CONFIG.toml.
    """
    # Only the first of several processes prints.
    is_first = os.environ.get("RANK", "0") == "0"
    output = Output(as_json=as_json, quiet=quiet) if is_first else Output(mute=True)
    if schema or print_config is not None:
        return _print_config(output, print_config)
    if report is not None:
        if config is not None or check or export or push_to_hub:
            raise UsageError("--report takes no configuration and no other action", f"omgsr train --report {report}")
        return _write_report(output, report)
    if config is None:
        raise UsageError("no configuration given", "omgsr train --print-config omgsr-tiny > config.toml")
    if check and (export or push_to_hub):
        raise UsageError("--check and --export or --push-to-hub exclude each other", "give one of them")
    from omgsr_cli.training.config import ConfigError, load_config

    try:
        settings = load_config(config, sets or [])
        if export is not None or push_to_hub is not None:
            return _export_or_push(output, settings, resume, export, push_to_hub)
        with output.loading("PyTorch"):
            from omgsr_cli.training.check import check_files
            from omgsr_cli.training.sources import UnreadableImagesError

            _choose_device(device)
            check_files(settings, resume)
    except ConfigError as error:
        for line in error.problems:
            output.error(UsageError(line))
        count = len(error.problems)
        output.message(f"{count} error{'s' if count > 1 else ''} in the configuration; nothing was trained")
        output.message(error.hint or "")
        return 2
    try:
        return (_check if check else _run)(output, settings, resume)
    except UnreadableImagesError as error:
        for problem in error.problems[:_LISTED]:
            output.error(FileError(problem.message))
        if len(error.problems) > _LISTED:
            output.message(f"... and {len(error.problems) - _LISTED} more")
        raise


def _print_config(output: Output, name: str | None) -> int:
    """Print a preset's configuration, or the JSON schema."""
    from omgsr_cli.training.config import config_schema, read_preset_config

    if name is None:
        schema = config_schema()
        output.result(json.dumps(schema, indent=2, ensure_ascii=False), schema)
    else:
        text = read_preset_config(name)
        output.result(text.rstrip("\n"), {"name": name, "config": text})
    return 0


def _write_report(output: Output, folder: Path) -> int:
    from omgsr_cli.packages import install_command
    from omgsr_cli.training.logs import can_plot, write_run_page

    page = write_run_page(folder)
    if not can_plot():
        output.note(f"the page has no curves: matplotlib is not installed; {install_command('plot')}")
    output.result(str(page), {"event": "reported", "page": str(page)})
    return 0


def _choose_device(name: str | None) -> None:
    """Set the environment variables with which accelerate chooses the device.

    Raises:
        DeviceError: the device does not exist.
        UsageError: a launcher has already assigned a device to each process.
    """
    if name is None:
        return
    from omgsr_cli.models.devices import choose_device

    device = choose_device(name)
    if device.type == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    elif int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(f"--device {name}: the launcher gives each process its device", "remove --device")
    else:
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(device)


def _run(output: Output, config: TrainConfig, resume: str) -> int:
    """Train and print the events of the run.

    Returns:
        0, or 130 or 143 if SIGINT or SIGTERM ended the run after saving.
    """
    with output.loading("PyTorch"):
        from omgsr_cli.training.loop import train

    with output.steps(config.train.steps) as view:
        result = train(config, resume=resume, report=partial(_show_event, output, view))
    skipped = f"; skipped {result.broken} unreadable image{'s' * (result.broken > 1)}" if result.broken else ""
    output.message(f"{result.step} of {result.steps} steps are finished{skipped}")
    if result.checkpoint is not None:
        folder = str(result.checkpoint)
        best = None if result.best is None else str(result.best)
        if best is not None:
            output.message(f"the best by {config.save.best} is {best}")
        record = {"event": "finished", "step": result.step, "folder": folder, "broken_images": result.broken}
        output.result(folder, record | ({} if best is None else {"best": best}))
    return _SIGNALLED + result.signal if result.signal else 0


def _show_event(output: Output, view: ShowsStep, event: Event) -> None:
    """Print an event of a run: a step in the live line, others as notes; or as JSON."""
    from omgsr_cli.training.loop import StepDone

    if output.as_json:
        output.result("", _event_record(event))
    if isinstance(event, StepDone):
        view(event.step, _step_line(event))
    else:
        output.message(_event_line(event))


def _event_record(event: Event) -> dict[str, object]:
    """Return an event as a JSON object: its kind in "event", and its fields."""
    from omgsr_cli.training.loop import StepDone

    fields = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(event).items()}
    return {"event": "step" if isinstance(event, StepDone) else type(event).__name__.lower(), **fields}


def _step_line(event: StepDone) -> str:
    """Describe a finished step: losses, speed, time left and memory."""
    if event.skipped:
        return "skipped: a loss or a gradient was not finite"
    pace = f"{event.images_per_s:.3g} images/s, {duration(event.seconds_left)} left, {event.memory_mib} MiB"
    return f"{_figures(event.losses)}, {pace}"


def _event_line(event: Event) -> str:
    """Return the line of an event that is not a step."""
    from omgsr_cli.training.loop import Noticed, Saved, Started, Validated

    if isinstance(event, Noticed):
        return event.text
    if isinstance(event, Validated):
        return f"step {event.step}: {_figures(event.scores)}; {event.grid}"
    if isinstance(event, Saved):
        return f"step {event.step}: saved {event.folder}"
    assert isinstance(event, Started)
    begin = f"resuming from {event.resumed_from}" if event.resumed_from else "starting"
    changed = "; ".join(
        f"{key} was {_value(before)}, now {_value(now)}" for key, (before, now) in event.changed.items()
    )
    share = f" in each of {event.processes} processes" if event.processes > 1 else ""
    return f"{begin}: {event.images} images, {event.trained:,} trained parameters, on {event.device}{share}" + (
        f"\nchanged since that checkpoint: {changed}" if changed else ""
    )


def _value(value: object) -> str:
    return "not set" if value is None else json.dumps(value, ensure_ascii=False)


def _figures(values: Mapping[str, float]) -> str:
    return " ".join(f"{name} {value:.4g}" for name, value in values.items())


def _check(output: Output, config: TrainConfig, resume: str) -> int:
    """Build the run, take two steps, and print memory, time and disk.

    Returns:
        0, or 1 if several parts are missing or the disk is too small for the checkpoints.
    Raises:
        OmgsrError: the data or the model's files cannot be used.
    """
    from omgsr_cli.training.check import find_missing, try_steps
    from omgsr_cli.training.sources import UnreadableImagesError

    try:
        trial = try_steps(config, resume)
    except UnreadableImagesError:
        raise
    except OmgsrError as error:
        missing = find_missing(config)
        if len(missing) < 2:
            raise error
        for problem in missing:
            output.error(problem)
        return 1
    for reason in trial.broken:
        output.note(f"skipped a corrupt image: {reason}")
    if not trial.is_finite:
        output.note(
            "a loss or a gradient of the first steps is not finite: lower optim.lr, or set train.precision to fp32"
        )
    memory, disk, free = (f"{size / _GIB:.2f}" for size in (trial.memory_bytes, trial.disk_bytes, trial.free_bytes))
    step, run = duration(trial.step_seconds), duration(trial.run_seconds)
    lines = (
        f"data: {trial.images} images, {trial.samples_per_step} samples per step",
        f"model: {trial.parameters:,} parameters, {trial.trained:,} of them trained",
        f"memory: {memory} GiB on {trial.device}, per process",
        f"time: about {step} per step, {run} for {config.train.steps} steps",
        f"disk: {disk} GiB of {free} GiB free for checkpoints in {config.save.out}",
    )
    output.result("\n".join(lines), {"event": "checked", **asdict(trial)})
    if trial.disk_bytes > trial.free_bytes:
        output.error(
            OmgsrError(
                f"the disk of {config.save.out} has too little space", "set another save.out, or a smaller save.keep"
            )
        )
        return 1
    return 0


def _export_or_push(
    output: Output, config: TrainConfig, resume: str, export: tuple[str, Path] | None, repository: str | None
) -> int:
    """Merge a checkpoint into a folder, upload the checkpoint, or upload the merged folder.

    Raises:
        UsageError: no checkpoint exists, or the kind of export is unknown.
        OmgsrError: writing or uploading failed.
    """
    if export is not None and export[0] != "merged":
        raise UsageError(f"--export {export[0]}: not a kind of export", "use --export merged FOLDER")
    from omgsr_cli.training.checkpoints import find_checkpoint
    from omgsr_cli.training.publish import export_merged, push_to_hub

    root = Path(config.save.out)
    folder = find_checkpoint(root, "auto", note=output.message) if resume in ("auto", "none") else Path(resume)
    if folder is None:
        raise UsageError(f"{root} has no checkpoint yet", "train first, or give --resume PATH")
    if export is not None:
        export_merged(folder, export[1], base=config.model.base)
        folder = export[1]
        output.result(str(folder), {"event": "exported", "folder": str(folder)})
    if repository is not None:
        address = push_to_hub(folder, repository, note=output.message)
        output.result(address, {"event": "pushed", "address": address})
    return 0
