"""The configuration of a training: the record, its presets and its schema. Importing this loads no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from omgsr_cli.errors import UsageError
from omgsr_cli.models.families import family_of
from omgsr_cli.presets import PRESETS
from omgsr_cli.training.config_errors import Draft, draft_config
from omgsr_cli.training.config_file import Sheet, read_sheet
from omgsr_cli.training.fields import Section, refuse
from omgsr_cli.training.heads import UNET_MULTIPLE_PX, check_discriminator
from omgsr_cli.training.loss_sections import GanConfig, LossConfig
from omgsr_cli.training.sections import (
    DataConfig,
    DegradationConfig,
    LogConfig,
    LoraConfig,
    ModelConfig,
    OptimConfig,
    SaveConfig,
    StepsConfig,
)

PRESET_CONFIGS = ("omgsr-s-512", "omgsr-tiny")
"""Names that `--print-config` takes."""


class TrainConfig(Section):
    """One training run, checked and frozen; each attribute is a table of the TOML file."""

    model: ModelConfig = Field(description="which model is trained, and from which weights")
    lora: LoraConfig | None = Field(default=None, description="the adapters; left out, they are as published")
    data: DataConfig = Field(description="the pictures")
    degradation: DegradationConfig = Field(default=DegradationConfig(), description="how low-quality pictures are made")
    loss: LossConfig = Field(default=LossConfig(), description="the weight of each loss")
    gan: GanConfig = Field(default=GanConfig(), description="the discriminator")
    optim: OptimConfig = Field(default=OptimConfig(), description="AdamW and its learning rate")
    train: StepsConfig = Field(default=StepsConfig(), description="how long and how it is computed")
    save: SaveConfig = Field(default=SaveConfig(), description="checkpoints")
    log: LogConfig = Field(default=LogConfig(), description="what is written down")

    @model_validator(mode="after")
    def _fits_the_model(self) -> Self:
        name = self.model.preset
        if name in PRESETS:
            family = family_of(PRESETS[name], name)
            if self.lora is not None and not family.adapter_parts:
                raise refuse(f"{name} is trained whole and takes no adapters: leave [lora] out", "lora", _PRESET)
            if self.model.prompt and not family.takes_prompt:
                raise refuse(f"{name} takes no prompt", "model.prompt", _PRESET)
            if self.train.gradient_checkpointing and not family.has_checkpointing:
                raise refuse(f"{name} has no gradient checkpointing", "train.gradient_checkpointing", _PRESET)
            if self.train.shard_backbone and not family.adapter_parts:
                reason = f"{name} is trained whole and has no frozen weights to share out"
                raise refuse(reason, "train.shard_backbone", _PRESET)
        multiple = PRESETS[name].multiple_of_px if name in PRESETS else 8
        if self.data.resolution % multiple:
            near = max(multiple, round(self.data.resolution / multiple) * multiple)
            reason = f"{name or 'the model'} takes multiples of {multiple}: try {near}"
            raise refuse(reason, "data.resolution", _PRESET)
        return self

    @model_validator(mode="after")
    def _fits_the_discriminator(self) -> Self:
        if self.loss.gan == 0:
            return self
        if self.gan.start_step >= self.train.steps:
            reason = f"the discriminator never begins: there are {self.train.steps} steps; or set loss.gan = 0"
            raise refuse(reason, "gan.start_step", "train.steps", "loss.gan")
        if self.gan.start_step + self.gan.alone_steps >= self.train.steps:
            reason = f"the model never learns from the discriminator: there are {self.train.steps} steps"
            raise refuse(reason, "gan.alone_steps", "gan.start_step", "train.steps")
        if self.gan.px > self.data.resolution:
            raise refuse(f"larger than a crop, whose side is {self.data.resolution} px", "gan.px", "data.resolution")
        seen = "gan.px" if self.gan.px else "data.resolution"
        if self.loss.discriminator == "unet":
            if self.gan.px % UNET_MULTIPLE_PX:
                raise refuse(f"the U-Net takes multiples of {UNET_MULTIPLE_PX}", seen, "loss.discriminator")
            return self
        try:
            check_discriminator(self.gan.px or self.data.resolution)
        except UsageError as error:
            reason = f"{error.message}; {error.hint}" if error.hint else error.message
            raise refuse(reason, seen, "loss.gan") from error
        return self

    @model_validator(mode="after")
    def _shards_or_compiles(self) -> Self:
        if self.train.shard_backbone and self.train.compile:
            reason = "a compiled network cannot be shared out among processes: set one of them to false"
            raise refuse(reason, "train.compile", "train.shard_backbone")
        return self

    @model_validator(mode="after")
    def _validates_what_it_logs(self) -> Self:
        if self.log.noise_pattern and not (self.data.validation and self.log.validate_every):
            reason = "there are no validations: give data.validation and log.validate_every"
            raise refuse(reason, "log.noise_pattern", "data.validation", "log.validate_every")
        return self

    @model_validator(mode="after")
    def _warms_up_and_then_trains(self) -> Self:
        if self.optim.warmup_steps >= self.train.steps:
            reason = f"all of the {self.train.steps} steps would be warm-up"
            raise refuse(reason, "optim.warmup_steps", "train.steps")
        return self


_PRESET = "model.preset"
_STAND_INS = {"model": {"preset": "omgsr-s-512"}, "data": {"train": ["."]}}
"""For required keys, where a configuration with errors is searched for more of them."""


def load_config(path: Path, sets: Sequence[str] = ()) -> TrainConfig:
    """Read and check the configuration of a training.

    Args:
        path: a TOML file.
        sets: changes of it, "a.b=v", as typed after `--set`.
    Raises:
        ConfigError: it has errors; `problems` has a line for each of them.
        UsageError: it is not TOML at all, or a change is not of the form "a.b=v".
        FileError: it cannot be read.
    """
    return draft_run(read_sheet(path, sets)).check()


def draft_run(sheet: Sheet) -> Draft[TrainConfig]:
    """Check the configuration of a training; what looks at files may add to what is found."""
    return draft_config(TrainConfig, sheet, _STAND_INS)


def read_preset_config(name: str) -> str:
    """The text of a complete, commented configuration.

    Args:
        name: one of PRESET_CONFIGS.
    Raises:
        UsageError: there is none of that name.
    """
    if name not in PRESET_CONFIGS:
        raise UsageError(f"no configuration is called {name!r}", f"there are {', '.join(PRESET_CONFIGS)}")
    return (resources.files("omgsr_cli.training") / "configs" / f"{name}.toml").read_text("utf-8")


def config_schema() -> dict[str, Any]:
    """The JSON schema of the configuration, for editors that complete and check TOML."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **TrainConfig.model_json_schema()}


def format_config(config: TrainConfig) -> str:
    """Write a configuration as TOML that `load_config` reads to an equal one; keys without a value are left out."""
    parts = []
    for name, section in config:
        if section is not None:
            values = section.model_dump(exclude_none=True)
            parts.append("\n".join([f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in values.items())]))
    return "\n\n".join(parts) + "\n"


def compare_configs(before: Path, now: TrainConfig) -> dict[str, tuple[object, object]]:
    """List the keys whose values differ between a checkpoint's configuration and the one that goes on from it.

    Args:
        before: the checkpoint's `config.toml`.
        now: of the run.
    Returns:
        "section.key" to the value before and now; None stands for a key without a value.
    Raises:
        ConfigError, UsageError, FileError: as for `load_config`.
    """
    first, second = (_flatten(config.model_dump(mode="json")) for config in (load_config(before), now))
    return {
        key: (first.get(key), second.get(key))
        for key in [*first, *(second.keys() - first.keys())]
        if first.get(key) != second.get(key)
    }


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for name, value in values.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_toml(key)} = {_toml(item)}" for key, item in value.items()) + " }"
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    # JSON's texts, numbers, true and false are TOML's; but for DEL, which TOML wants escaped.
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
