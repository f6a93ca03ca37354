"""`mid_timestep = "auto"`: measured on the pictures that will be trained on, before the first step."""

from __future__ import annotations

import json
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from omgsr_cli.errors import FileError, ModelError, reason_of
from omgsr_cli.models.families import family_of
from omgsr_cli.models.record import load_record
from omgsr_cli.timesteps import MidTimestep
from omgsr_cli.timesteps.find import find_mid_timestep
from omgsr_cli.training.assembly import find_run_model
from omgsr_cli.training.config import TrainConfig
from omgsr_cli.training.processes import device_of

RECORD_NAME = "mid_timestep.json"
_SAMPLES = 64
"""Enough for an interval of a few timesteps, and no long wait."""


def settle_mid_timestep(config: TrainConfig, accelerator: Accelerator, resumed: Path | None) -> TrainConfig:
    """Put a number in the place of "auto": a checkpoint's own where the run goes on, else what the first process finds.

    Value, interval and curve are written into the run's folder.

    Args:
        config: of the run.
        accelerator: of the process.
        resumed: the checkpoint that the run goes on from, or None.
    Raises:
        OmgsrError: no picture can be measured, or the record cannot be written.
    """
    if config.model.mid_timestep != "auto":
        return config
    values: list[int | None] = [None]
    if resumed is not None:
        record = load_record(resumed)
        if record is None:
            raise ModelError(f"{resumed} has no omgsr.json", "set mid_timestep to the number of the run")
        values[0] = record.mid_timestep
    elif accelerator.is_main_process:
        found = _measure(config, accelerator)
        _write(found, Path(config.save.out))
        values[0] = found.mid_timestep
    settled = broadcast_object_list(values)[0]
    return config.model_copy(update={"model": config.model.model_copy(update={"mid_timestep": settled})})


def _measure(config: TrainConfig, accelerator: Accelerator) -> MidTimestep:
    data, shares = config.data, config.degradation.presets
    source = find_run_model(config)
    return find_mid_timestep(
        data.train,
        family_of(source.record, source.name).load_encoder(source, device_of(accelerator)),
        lq=data.train_lq,
        # Of several, the one that most crops get.
        degradation=max(shares, key=lambda name: shares[name]),
        resolution=data.resolution,
        scale=data.scales[0][0],
        on_small=data.on_small,
        max_samples=_SAMPLES,
        seed=config.train.seed,
    )


def _write(found: MidTimestep, folder: Path) -> None:
    # The curve may begin with infinity, which JSON does not know.
    curve = [value if value < float("inf") else None for value in found.curve.tolist()]
    record = {
        "mid_timestep": found.mid_timestep,
        "interval": found.interval,
        "flat_region": found.flat_region,
        "samples": found.samples,
        "pictures": found.pictures,
        "curve": curve,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RECORD_NAME).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise FileError(f"{folder / RECORD_NAME} cannot be written: {reason_of(error)}") from error
