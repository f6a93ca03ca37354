"""Running a training from the command line: where it computes, and its events as lines."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from omgsr_cli.cli.output import Output
from omgsr_cli.cli.progress import StepView, duration
from omgsr_cli.errors import UsageError
from omgsr_cli.training.config import TrainConfig
from omgsr_cli.training.events import Event, Noticed, Saved, Started, StepDone, Validated

_SIGNALLED = 128


def choose_training_device(name: str | None) -> None:
    """Tell accelerate which device to take, by the environment that it reads.

    Raises:
        DeviceError: it is not there.
        UsageError: a launcher has given each process its own already.
    """
    if name is None:
        return
    from omgsr_cli.models.devices import choose_device

    device = choose_device(name)
    if device.type == "cpu":
        os.environ["ACCELERATE_USE_CPU"] = "true"
    elif int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise UsageError(f"--device {name}: the launcher gives each process its device", "leave --device out")
    else:
        os.environ["ACCELERATE_TORCH_DEVICE"] = str(device)


def run_training(talk: Output, config: TrainConfig, resume: str) -> int:
    """Train, showing what happens.

    Returns:
        0, or 130 or 143 where SIGINT or SIGTERM ended the run after saving.
    """
    from omgsr_cli.training.loop import train

    with talk.steps(config.train.steps) as view:
        result = train(config, resume=resume, report=EventView(talk, view))
    skipped = f"; skipped {result.broken} broken image{'s' * (result.broken > 1)}" if result.broken else ""
    talk.note(f"{result.step} of {result.steps} steps are done{skipped}")
    if result.checkpoint is not None:
        folder = str(result.checkpoint)
        talk.result(
            folder, {"event": "finished", "step": result.step, "folder": folder, "broken_images": result.broken}
        )
    return _SIGNALLED + result.signal if result.signal else 0


class EventView:
    """Shows the events of a run: as a live line and notes, or as JSON.

    Args:
        talk: of the command.
        view: the live line.
    """

    def __init__(self, talk: Output, view: StepView) -> None:
        self._talk, self._view = talk, view

    def __call__(self, event: Event) -> None:
        """Show one."""
        if self._talk.as_json:
            self._talk.result("", event_record(event))
        if isinstance(event, StepDone):
            self._view(event.step, step_line(event))
        else:
            self._talk.note(_note(event))


def event_record(event: Event) -> dict[str, object]:
    """An event as a JSON object: its kind in "event", and its fields."""
    kinds = {Noticed: "noticed", Started: "started", StepDone: "step", Validated: "validated", Saved: "saved"}
    fields = {key: str(value) if isinstance(value, Path) else value for key, value in asdict(event).items()}
    return {"event": kinds[type(event)], **fields}


def step_line(event: StepDone) -> str:
    """What a step gave: its losses, the pace, the time left and the memory."""
    if event.skipped:
        return "skipped: a loss or a gradient was not finite"
    pace = f"{event.images_per_s:.3g} images/s, {duration(event.seconds_left)} left, {event.memory_mib} MiB"
    return f"{_figures(event.losses)}, {pace}"


def _note(event: Noticed | Started | Validated | Saved) -> str:
    if isinstance(event, Noticed):
        return event.text
    if isinstance(event, Validated):
        return f"step {event.step}: {_figures(event.scores)}; {event.grid}"
    if isinstance(event, Saved):
        return f"step {event.step}: saved {event.folder}"
    begin = f"resuming from {event.resumed_from}" if event.resumed_from else "beginning"
    changed = "; ".join(
        f"{key} was {_value(before)}, now {_value(now)}" for key, (before, now) in event.changed.items()
    )
    share = f" in each of {event.processes} processes" if event.processes > 1 else ""
    return f"{begin}: {event.pictures} images, {event.trained:,} weights to train, on {event.device}{share}" + (
        f"\nchanged since that checkpoint: {changed}" if changed else ""
    )


def _value(value: object) -> str:
    return "not set" if value is None else json.dumps(value, ensure_ascii=False)


def _figures(values: Mapping[str, float]) -> str:
    return " ".join(f"{name} {value:.4g}" for name, value in values.items())
