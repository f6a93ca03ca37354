"""The model card, `--export merged` and `--push-to-hub`; published files contain no local paths."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from hashlib import sha256
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from omgsr_cli.errors import ModelError, OmgsrError, UsageError, reason_of, write_error
from omgsr_cli.files.addresses import redact
from omgsr_cli.files.atomic import partial_folder
from omgsr_cli.models.adapter_files import CONFIG_NAME as ADAPTER_CONFIG_NAME
from omgsr_cli.models.families import family_of
from omgsr_cli.models.loading import save_merged
from omgsr_cli.models.record import ModelRecord, load_record, read_json
from omgsr_cli.models.sources import find_model
from omgsr_cli.models.weight_files import check_file_finite
from omgsr_cli.options import ModelOptions
from omgsr_cli.presets import PRESETS
from omgsr_cli.store.hub import http_errors, is_repository_name
from omgsr_cli.store.installed import RECORD_NAME
from omgsr_cli.store.manifest import MANIFEST_NAME, FileEntry, Manifest, read_entry, to_json, write_manifest
from omgsr_cli.training.checkpoints import Progress, verify_checkpoint
from omgsr_cli.training.config import CONFIG_NAME, Section, TrainConfig, format_config
from omgsr_cli.training.losses import loss_weights

CARD_NAME = "README.md"

_LOSSES = {
    "lrr": "LRR (pre-trained noisy latent vs. low-quality latent)",
    "l1": "L1",
    "dv3cd": "structure-texture distance on {loss}",
    "gan": "GAN on {gan}",
    "lpips": "LPIPS-AlexNet",
    "teacher": "L1 to a teacher's image",
    "teacher_lpips": "LPIPS-AlexNet to a teacher's image",
    "teacher_encoder": "L1 of the encoder's image to a teacher's",
    "denoise": "noise predicted in latents of sharp images (pre-training)",
    "teacher_dists": "structure-texture distance to a teacher's image on {loss}",
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
    """What a card shows of a run in addition to its configuration: progress, numbers of images, names of networks."""

    progress: Progress
    images: int
    held_out: int
    features: Mapping[str, str]


def write_description(folder: Path, config: TrainConfig, facts: RunFacts) -> None:
    """Write `config.toml` and the card into a checkpoint that already contains its `omgsr.json`.

    Raises:
        OSError: the files cannot be written.
        ModelError: `omgsr.json` is not a record.
    """
    (folder / CONFIG_NAME).write_text(format_config(config), encoding="utf-8")
    record = load_record(folder)
    assert record is not None, "the model was saved before its description"
    (folder / CARD_NAME).write_text(build_card(record, config, facts), encoding="utf-8")


def build_card(record: ModelRecord, config: TrainConfig | None = None, facts: RunFacts | None = None) -> str:
    """Build the text of a card: front matter for the hub, then text and tables for readers.

    Args:
        record: record of the model.
        config: configuration of the run; absolute paths are reduced to their last part, because cards are published.
        facts: facts about the run.
    """
    title = Path(config.save.out).name if config is not None else "A restoration model"
    parts = [_front_matter(record), f"# {title}\n\n{_introduction(record)}"]
    if config is not None and facts is not None:
        parts += [_training(record, config, facts), _figures(facts)]
    parts += [_LIMITS, _licence(record)]
    if config is not None:
        parts.append(f"## Configuration\n\n```toml\n{format_config(hide_paths(config))}```")
    return "\n\n".join(parts) + "\n"


def hide_paths(config: TrainConfig) -> TrainConfig:
    """Reduce absolute paths in a configuration to their last part, because the rest describes a private machine."""
    return config.model_copy(update={name: _hide(section) for name, section in config})


def hide_path(text: str) -> str:
    """Reduce an absolute path to its last part; other text is unchanged."""
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
    """Return the licence of the weights in the hub's spelling: from the record or a known base model, or None."""
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
    # JSON strings and lists are valid YAML.
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in entries.items() if value]
    return "\n".join(["---", *lines, "---"])


def _hub_base(record: ModelRecord) -> str | None:
    """Return the base model's hub repository; a local folder is not one, even if its name has the same form."""
    names = (record.base, *record.made_from[:1])
    return next((name for name in names if name and is_repository_name(name) and not Path(name).is_dir()), None)


def _introduction(record: ModelRecord) -> str:
    base = f" Its base is {hide_path(record.base)}." if record.base else ""
    prompt = f", prompt {record.prompt!r}" if record.prompt else ""
    sizes = f"scale {record.scale:g}, tiles of {record.native_tile_px} px"
    return (
        "Restores and upscales photographs with one step of a diffusion model, after OMGSR (arXiv:2508.08227), "
        f"trained with `omgsr train`.{base}\n\n"
        "```sh\nomgsr upscale photo.jpg --model FOLDER   # this folder, or the one that you downloaded\n```\n\n"
        f"Mid-timestep {record.mid_timestep}, {sizes}{prompt}."
    )


def _training(record: ModelRecord, config: TrainConfig, facts: RunFacts) -> str:
    data, optim = config.data, config.optim
    presets = config.degradation.presets.items()
    made = ", ".join(f"{hide_path(name)} ({share:g})" for name, share in presets)
    low = "real low-quality partners" if data.train_lq else f"degraded by {made}"
    rows = [
        ("steps", f"{facts.progress.step} of {config.train.steps}"),
        ("crops", f"{facts.progress.samples} of {data.resolution} px, from {facts.images} images, {low}"),
        ("losses", "; ".join(_loss_terms(config, facts.features))),
        ("optimiser", f"AdamW, learning rate {optim.lr:g}, {optim.schedule}, clipped to {optim.clip:g}"),
        ("precision", config.train.precision),
        ("seed", str(config.train.seed)),
    ]
    if config.train.ema:
        rows.append(("weights", f"exponential average, decay {config.train.ema:g}"))
    published = family_of(record, CONFIG_NAME).adapter_ranks
    if published:
        asked = (config.lora.vae_rank, config.lora.backbone_rank) if config.lora else (None, None)
        ranks = [rank or own for rank, own in zip(asked, published, strict=True)]
        rows.append(("LoRA", f"rank {ranks[0]} in the encoder, {ranks[1]} in the backbone"))
    return _table("Training", ("", ""), rows)


def _loss_terms(config: TrainConfig, features: Mapping[str, str]) -> list[str]:
    weights = loss_weights(config.loss)
    texts = _LOSSES | ({"gan": "GAN with a U-Net"} if config.loss.discriminator == "unet" else {})
    return [f"{weights[name]:g} x {text.format(**features)}" for name, text in texts.items() if weights.get(name)]


def _figures(facts: RunFacts) -> str:
    scores = facts.progress.scores
    if not scores:
        return "## Scores\n\nNo scores were measured: the run had no held-out images."
    rows = [(_METRICS.get(name, name), f"{value:.4f}") for name, value in scores.items()]
    note = f"Means over {facts.held_out} held-out images after step {facts.progress.scored_at}."
    return _table("Scores", ("metric", "mean"), rows) + f"\n\n{note}"


_LIMITS = (
    "## Limits\n\nDetails that the model adds are plausible, not measured. Do not use them as evidence or in medicine. "
    "For degradations and subjects without training images, results can be worse than the input."
)


def _licence(record: ModelRecord) -> str:
    licence = find_licence(record)
    terms = f"The weights are under {licence}." if licence else "The licence of the weights is not stated."
    return f"## Licence\n\n{terms} The training images have their own licences."


def _table(title: str, head: tuple[str, str], rows: list[tuple[str, str]]) -> str:
    lines = [f"| {left} | {right} |" for left, right in (head, ("---", "---"), *rows)]
    return f"## {title}\n\n" + "\n".join(lines)


_PARTS = ("unet", "vae", "scheduler", "text_encoder", "tokenizer", "*_adapter")
_KINDS = (".safetensors", ".json", ".txt")
_FILES = (RECORD_NAME, CARD_NAME, "config.json", "model.safetensors", "prompt_embeds.safetensors")
"""Files of a checkpoint or model folder that are published: not the optimisers or the configuration with its paths."""

_PATH_KEYS = ("_name_or_path", "base_model_name_or_path", "base", "made_from")
_WITH_PATHS = (RECORD_NAME, "config.json", ADAPTER_CONFIG_NAME)


def push_to_hub(folder: Path, repository: str, *, note: Callable[[str], None] = lambda _: None) -> str:
    """Publish a checkpoint's model or a merged folder in one commit: weights, record, card, manifest.

    Args:
        folder: a checkpoint, a merged model or an adapter.
        repository: OWNER/NAME; it is created if it does not exist.
        note: called with the size of the upload before it starts.
    Returns:
        The URL of the commit.
    Raises:
        ModelError: the folder is incomplete or is not a model.
        UsageError: the name is not that of a repository.
        OmgsrError: the hub refuses or cannot be reached.
    """
    if not is_repository_name(repository):
        raise UsageError(f"{repository!r} is not the name of a hub repository", "use OWNER/NAME")
    if (folder / MANIFEST_NAME).is_file():
        verify_checkpoint(folder)
    contents = collect_files(folder)
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.utils.tqdm import disable_progress_bars

    operations = [
        CommitOperationAdd(name, content if isinstance(content, bytes) else str(content))
        for name, content in contents.items()
    ]
    size_bytes = sum(len(each) if isinstance(each, bytes) else each.stat().st_size for each in contents.values())
    # An interrupted bar would share a line with the error.
    disable_progress_bars()
    with _explained(repository):
        HfApi().create_repo(repository, exist_ok=True)
        note(f"uploading {len(contents)} files, {size_bytes / 2**20:.1f} MiB, to {repository}")
        message = f"Upload {folder.resolve().name} with omgsr"
        done = HfApi().create_commit(repository, operations, commit_message=message)
    return str(done.commit_url)


@contextmanager
def _explained(repository: str) -> Iterator[None]:
    """Convert errors of the hub to one line."""
    try:
        yield
    # Uploads of single files raise the latter.
    except (*http_errors(), RuntimeError, ValueError, OSError) as error:  # type: ignore[misc]  # all are exceptions
        status = getattr(getattr(error, "response", None), "status_code", None)
        hint = "nothing was committed: push again when the hub can be reached"
        if status in (401, 403):
            hint = "run `hf auth login` with a token that has write permission"
        # URLs of the hub's storage contain signatures.
        reason = redact(reason_of(error.__cause__ or error))
        raise OmgsrError(f"{repository} cannot be written on the hub: {reason}", hint) from error


def collect_files(folder: Path) -> dict[str, Path | bytes]:
    """List the published files of a folder: name in the repository to the path, or to the content if it is changed.

    Raises:
        ModelError: the folder has no `omgsr.json`, contains no weights, or a weight is not finite.
    """
    record = load_record(folder)
    if record is None:
        raise ModelError(f"{folder} has no {RECORD_NAME}", "use a checkpoint, or a folder that `--export merged` wrote")
    names = (path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file())
    contents: dict[str, Path | bytes] = {name: _content(folder, name) for name in names if _is_published(name)}
    if not any(name.endswith(".safetensors") and name != "prompt_embeds.safetensors" for name in contents):
        raise ModelError(f"{folder} has no weights to publish")
    for path in contents.values():
        if isinstance(path, Path) and path.suffix == ".safetensors":
            check_file_finite(path)
    contents.setdefault(CARD_NAME, build_card(record).encode())
    entries = {name: _entry(content) for name, content in contents.items()}
    contents[MANIFEST_NAME] = to_json(Manifest(files=entries)).encode()
    return contents


def _is_published(name: str) -> bool:
    part, _, rest = name.partition("/")
    if not rest:
        return name in _FILES
    return any(fnmatch(part, pattern) for pattern in _PARTS) and Path(name).suffix in _KINDS


def _content(folder: Path, name: str) -> Path | bytes:
    path = folder / name
    if path.name not in _WITH_PATHS:
        return path
    options = read_json(path)
    shown = options | {key: _without_place(key, options[key]) for key in _PATH_KEYS if key in options}
    return path if shown == options else (json.dumps(shown, indent=2, ensure_ascii=False) + "\n").encode()


def _without_place(key: str, value: Any) -> Any:
    """Remove local folders from a value."""
    if isinstance(value, list):
        return [_without_place(key, item) for item in value]
    if not isinstance(value, str) or hide_path(value) == value:
        return value
    # A base model in a local folder is of no use to others; they must pass their own.
    return None if key == "base" else hide_path(value)


def _entry(content: Path | bytes) -> FileEntry:
    if isinstance(content, Path):
        return read_entry(content)
    return FileEntry(bytes=len(content), sha256=sha256(content).hexdigest())


def export_merged(checkpoint: Path, folder: Path, *, base: str | None = None) -> None:
    """Write a checkpoint's model, with averaged weights if it has them, its card and a manifest.

    The folder is written under a temporary name and renamed, so that it is never incomplete.

    Args:
        checkpoint: a checkpoint, or an adapter's folder.
        folder: output folder, which must not exist.
        base: base model of the adapter, instead of the one in the checkpoint.
    Raises:
        UsageError: the folder exists.
        ModelError: the checkpoint is incomplete, or does not fit its base model.
        FileError: the folder cannot be written.
    """
    if os.path.lexists(folder):
        raise UsageError(f"{folder} already exists", "choose another name for the merged model, or remove it first")
    if (checkpoint / MANIFEST_NAME).is_file():
        verify_checkpoint(checkpoint)
    source = find_model(ModelOptions(model=str(checkpoint), base=base))
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with partial_folder(folder) as beside:
            # The folder's name is written to the model's record.
            partial = beside / folder.name
            save_merged(source, partial)
            if (checkpoint / CARD_NAME).is_file():
                shutil.copyfile(checkpoint / CARD_NAME, partial / CARD_NAME)
            write_manifest(partial)
            os.rename(partial, folder)
    except OSError as error:
        raise write_error(folder, error) from error
