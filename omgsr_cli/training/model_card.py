"""The model card: README.md of a checkpoint, in the hub's layout, from the configuration and the run's state."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from omgsr_cli.models.record import ModelRecord, load_record
from omgsr_cli.presets import PRESETS
from omgsr_cli.store.hub import is_repository_name
from omgsr_cli.training.config import TrainConfig, format_config
from omgsr_cli.training.fields import Section
from omgsr_cli.training.losses import loss_weights

CARD_NAME = "README.md"
CONFIG_NAME = "config.toml"

_LOSSES = {
    "lrr": "LRR (pre-trained noisy latent v. low-quality latent)",
    "l1": "L1",
    "dv3cd": "structure-texture distance on {features}",
    "gan": "GAN on {features}",
    "lpips": "LPIPS-AlexNet",
    "teacher": "L1 to a teacher's picture",
    "teacher_lpips": "LPIPS-AlexNet to a teacher's picture",
    "teacher_encoder": "L1 of the encoder's picture to a teacher's",
    "denoise": "noise foreseen in latents of sharp pictures (pre-training)",
    "teacher_dists": "structure-texture distance to a teacher's picture on {features}",
}
_METRICS = {
    "psnr_y": "PSNR-Y (dB)",
    "ssim_y": "SSIM-Y",
    "dv3cd": "Dv3CD",
    "lpips": "LPIPS-AlexNet",
    "dists": "DISTS",
    "noise_pattern_db": "strongest direction in restored noise (dB)",
}


@dataclass(frozen=True)
class RunFacts:
    """What a card tells of a run besides its configuration.

    Attributes:
        step: optimiser steps done.
        samples: crops seen by all processes.
        pictures: that crops were taken of.
        features: what the feature network is called; empty without one.
        held_out: pictures that were measured on; 0 without validation.
        scores: metric to its mean over these, of the newest validation; empty where there was none.
        scored_at: the step of that validation.
    """

    step: int
    samples: int
    pictures: int
    features: str = ""
    held_out: int = 0
    scores: Mapping[str, float] = field(default_factory=dict)
    scored_at: int = 0


def write_description(folder: Path, config: TrainConfig, facts: RunFacts) -> None:
    """Write `config.toml` and the card into a checkpoint that holds its `omgsr.json` already.

    Raises:
        OSError: they cannot be written.
        ModelError: `omgsr.json` is not a record.
    """
    (folder / CONFIG_NAME).write_text(format_config(config), encoding="utf-8")
    record = load_record(folder)
    assert record is not None, "the model was saved before its description"
    (folder / CARD_NAME).write_text(build_card(record, config, facts), encoding="utf-8")


def build_card(record: ModelRecord, config: TrainConfig | None = None, facts: RunFacts | None = None) -> str:
    """Give a card's text: front matter for the hub, then prose and tables for people.

    Args:
        record: of the model.
        config: of the run; absolute paths in it are cut down to their last part, as cards are published.
        facts: of the run.
    """
    title = Path(config.save.out).name if config is not None else "A restoration model"
    parts = [_front_matter(record), f"# {title}\n\n{_introduction(record)}"]
    if config is not None and facts is not None:
        parts += [_training(config, facts), _figures(facts)]
    parts += [_limits(), _licence(record)]
    if config is not None:
        parts.append(f"## Configuration\n\n```toml\n{format_config(hide_paths(config))}```")
    return "\n\n".join(parts) + "\n"


def hide_paths(config: TrainConfig) -> TrainConfig:
    """Cut absolute paths down to their last part: they tell of a person's machine and of nothing else."""
    return config.model_copy(update={name: _hide(section) for name, section in config})


def hide_path(text: str) -> str:
    """Cut an absolute path down to its last part; any other text stays."""
    for kind in (PurePosixPath, PureWindowsPath):
        path = kind(text)
        if path.is_absolute() or text.startswith("~"):
            return path.name
    return text


def _hide(value: Any) -> Any:
    if isinstance(value, str):
        return hide_path(value)
    if isinstance(value, tuple):
        return tuple(_hide(item) for item in value)
    if isinstance(value, Section):
        return value.model_copy(update={key: _hide(item) for key, item in value})
    if isinstance(value, dict):
        return {_hide(key): item for key, item in value.items()}
    return value


def find_licence(record: ModelRecord) -> str | None:
    """Give the weights' licence in the hub's spelling: the record's, or that of a base that is known; else None."""
    if record.licence:
        return record.licence.lower()
    names = {record.base, *record.made_from}
    known = (preset.licence for preset in PRESETS.values() if names & {preset.name, *preset.base_sources})
    return next(known, None)


def _front_matter(record: ModelRecord) -> str:
    entries: dict[str, Any] = {
        "license": find_licence(record),
        "library_name": "omgsr-cli",
        "pipeline_tag": "image-to-image",
        "tags": ["super-resolution", "image-restoration", "diffusion", *(["lora"] if record.base else [])],
        "base_model": _hub_base(record),
    }
    # JSON's texts and lists are YAML's.
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in entries.items() if value]
    return "\n".join(["---", *lines, "---"])


def _hub_base(record: ModelRecord) -> str | None:
    """The base's hub repository; a local folder is none, though it may have a name like one."""
    names = (record.base, *record.made_from[:1])
    return next((name for name in names if name and is_repository_name(name) and not Path(name).is_dir()), None)


def _introduction(record: ModelRecord) -> str:
    base = f" Its base is {hide_path(record.base)}." if record.base else ""
    prompt = f", prompt {record.prompt!r}" if record.prompt else ""
    sizes = f"enlargement {record.scale:g}, tiles of {record.native_tile_px} px"
    return (
        "Restores and enlarges photographs with one step of a diffusion model, after OMGSR (arXiv:2508.08227), "
        f"trained with `omgsr train`.{base}\n\n"
        "```sh\nomgsr upscale photo.jpg --model FOLDER   # this folder, or the one that you downloaded\n```\n\n"
        f"Mid-timestep {record.mid_timestep}, {sizes}{prompt}."
    )


def _training(config: TrainConfig, facts: RunFacts) -> str:
    data, optim = config.data, config.optim
    presets = config.degradation.presets.items()
    made = ", ".join(f"{hide_path(name)} ({share:g})" for name, share in presets)
    low = "real low-quality partners" if data.train_lq else f"degraded by {made}"
    rows = [
        ("steps", f"{facts.step} of {config.train.steps}"),
        ("crops", f"{facts.samples} of {data.resolution} px, from {facts.pictures} pictures, {low}"),
        ("losses", "; ".join(_loss_terms(config, facts.features))),
        ("optimiser", f"AdamW, learning rate {optim.lr:g}, {optim.schedule}, clipped to {optim.clip:g}"),
        ("precision", config.train.precision),
        ("seed", str(config.train.seed)),
    ]
    if config.train.ema:
        rows.append(("weights", f"exponential average, decay {config.train.ema:g}"))
    if config.lora is not None:
        rows.append(
            ("LoRA", f"rank {config.lora.vae_rank} in the encoder, {config.lora.backbone_rank} in the backbone")
        )
    return _table("Training", ("", ""), rows)


def _loss_terms(config: TrainConfig, features: str) -> list[str]:
    weights = loss_weights(config.loss)
    texts = _LOSSES | ({"gan": "GAN with a U-Net"} if config.loss.discriminator == "unet" else {})
    return [
        f"{weights[name]:g} x {text.format(features=features)}" for name, text in texts.items() if weights.get(name)
    ]


def _figures(facts: RunFacts) -> str:
    if not facts.scores:
        return "## Figures\n\nNone were measured: the run had no held-out pictures."
    rows = [(_METRICS.get(name, name), f"{value:.4f}") for name, value in facts.scores.items()]
    note = f"Means over {facts.held_out} held-out pictures after step {facts.scored_at}, degraded as in training."
    return _table("Figures", ("metric", "mean"), rows) + f"\n\n{note}"


def _limits() -> str:
    return (
        "## Limits\n\nWhat the model adds is plausible, not measured: it is no evidence, and no use in medicine. "
        "Degradations and subjects that the training pictures did not have may come out worse than they went in."
    )


def _licence(record: ModelRecord) -> str:
    licence = find_licence(record)
    said = f"The weights are under {licence}." if licence else "The licence of the weights is not stated."
    return f"## Licence\n\n{said} The training pictures have licences of their own."


def _table(title: str, head: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    lines = [f"| {left} | {right} |" for left, right in (head, ("---", "---"), *rows)]
    return f"## {title}\n\n" + "\n".join(lines)
