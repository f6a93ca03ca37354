"""Check a run before it starts: find all missing files and packages at once, and with `--check` try the first steps."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from omgsr_cli.degradation import load_degradation
from omgsr_cli.errors import ModelError, OmgsrError
from omgsr_cli.models.devices import is_out_of_memory
from omgsr_cli.models.families import family_of, is_model_file, recognise_adapter
from omgsr_cli.models.lora import LoraOptions
from omgsr_cli.models.record import load_record
from omgsr_cli.models.sources import find_model, start_folder
from omgsr_cli.options import ModelOptions
from omgsr_cli.packages import install_command
from omgsr_cli.presets import FEATURE_NETWORKS, PRESETS
from omgsr_cli.store.hub import is_cached, is_repository_name
from omgsr_cli.training.assembly import Run, check_measurable, load_run
from omgsr_cli.training.checkpoints import check_adapter_ranks, list_checkpoints, optimizer_tensors
from omgsr_cli.training.config import SourceConfig, TrainConfig
from omgsr_cli.training.config_errors import Draft
from omgsr_cli.training.data import Numbers, load_batches
from omgsr_cli.training.distributed import build_accelerator, device_of
from omgsr_cli.training.loop import StopRequest, make_teacher_images, peak_memory_mib
from omgsr_cli.training.model import build_lora_options, load_run_model
from omgsr_cli.training.perceptual import FeatureSource, find_features, load_features, load_lpips
from omgsr_cli.training.sources import Stored, check_source
from omgsr_cli.training.step import Stepper
from omgsr_cli.training.teacher import load_teacher
from omgsr_cli.training.validation import build_measures, choose_log_metrics


def check_files(draft: Draft[TrainConfig], resume: str = "auto") -> None:
    """Add errors about files and packages to a draft.

    Args:
        draft: a draft with or without errors; keys with errors are not checked again.
        resume: as for `find_checkpoint`; the ranks of this checkpoint are compared.
    """
    config = draft.config
    if config is None:
        return
    data = config.data
    for source in data.train:
        _note(draft, "data.train", lambda source=source: check_source(source))  # type: ignore[misc]  # bound now
    _note(draft, "model.mid_timestep", lambda: check_measurable(config))
    _check_images(draft, "data.train_lq", data.train_lq or ())
    _check_images(draft, "data.validation", (data.validation,) if data.validation else ())
    _check_images(draft, "data.validation_lq", (data.validation_lq,) if data.validation_lq else ())
    _check_degradations(draft, config)
    _check_features(draft, config)
    _check_teacher(draft, config)
    _check_model(draft, config, resume)
    _check_packages(draft, config)
    folder = Path(config.save.out)
    if not _could_be_folder(folder):
        draft.add("save.out", "this is a file, but checkpoints need a folder")


def _check_images(draft: Draft[TrainConfig], key: str, names: Sequence[str]) -> None:
    for name in names:
        _note(draft, key, lambda name=name: check_source(SourceConfig(images=name)))  # type: ignore[misc]  # bound now


def _check_degradations(draft: Draft[TrainConfig], config: TrainConfig) -> None:
    for name in config.degradation.presets:
        _note(draft, "degradation.presets", lambda name=name: load_degradation(name))  # type: ignore[misc]  # bound now


def _check_features(draft: Draft[TrainConfig], config: TrainConfig) -> None:
    loss = config.loss
    for section, (name, path) in config.backbones.items():
        key = f"{section}.backbone_path" if path else f"{section}.backbone"
        _note(draft, key, lambda name=name, path=path: find_features(name, path))  # type: ignore[misc]  # bound now
    if loss.lpips_path and not Path(loss.lpips_path).exists():
        draft.add("loss.lpips_path", f"{loss.lpips_path} does not exist")


def _check_teacher(draft: Draft[TrainConfig], config: TrainConfig) -> None:
    if config.loss.teacher is None:
        return
    name, key = config.loss.teacher.model, "loss.teacher.model"
    if Path(name).is_file():
        if find_spec("spandrel") is None:
            draft.add(key, "spandrel, which reads it, is not installed: pip install 'omgsr-cli[networks]'")
    elif Path(name).is_dir() or not is_repository_name(name):
        _note(draft, key, lambda: find_model(ModelOptions(model=name)))


def _check_model(draft: Draft[TrainConfig], config: TrainConfig, resume: str) -> None:
    base, lora = config.model.base, build_lora_options(config) or LoraOptions()
    if base and not Path(base).is_dir() and not is_repository_name(base):
        is_network = is_model_file(Path(base))
        reason = "has no diffusion step: it is a plain restoration network"
        draft.add(
            "model.base", f"{base} {reason if is_network else 'is neither a folder nor a hub repository OWNER/NAME'}"
        )
    start = start_folder(config.model.start_from)
    if start is not None and not start.is_dir():
        draft.add("model.start_from", f"{start} is not a folder")
    elif start is not None:
        if not draft.is_wrong("model.preset"):
            _note(draft, "model.start_from", lambda: _check_start(start, config.model.preset))
        _note(draft, "lora", lambda: check_adapter_ranks(start, lora))
    checkpoints = list_checkpoints(Path(config.save.out)) if resume == "auto" else [Path(resume)]
    if resume != "none" and checkpoints:
        _note(draft, "lora", lambda: check_adapter_ranks(checkpoints[0], lora))


def _check_start(start: Path, preset: str | None) -> None:
    """Check that a folder has initial weights for a preset; without a preset, nothing is checked."""
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
    _note(draft, "log.metrics", lambda: check_metrics(config))
    for tracker in config.log.trackers:
        if find_spec(tracker) is None:
            package = "'omgsr-cli[train]'" if tracker == "tensorboard" else tracker
            draft.add("log.trackers", f"{tracker} is not installed: pip install {package}, or remove it")


def check_metrics(config: TrainConfig) -> None:
    """Check that the metrics of the log are known, and that pyiqa is installed if one needs it."""
    needs_pyiqa = [known.info.name for known in choose_log_metrics(config) if known.info.source == "pyiqa"]
    if needs_pyiqa and find_spec("pyiqa") is None:
        raise OmgsrError(f"{needs_pyiqa[0]} needs pyiqa, which is not installed", install_command("metrics"))


def _note(draft: Draft[TrainConfig], key: str, check: Callable[[], object]) -> None:
    """Run a check and add its error to the draft as one line."""
    try:
        check()
    except OmgsrError as error:
        draft.add(key, f"{error.message}; {error.hint}" if error.hint else error.message)


def _could_be_folder(path: Path) -> bool:
    """Whether a path is a folder or can become one, because no part of it is a file."""
    nearest = next((each for each in (path, *path.parents) if os.path.lexists(each)), None)
    return nearest is None or nearest.is_dir()


@dataclass(frozen=True)
class Trial:
    """The measurements of the first steps of a run, in each process.

    Attributes:
        images: number of training images.
        parameters: number of weights of the model.
        trained: number of trained weights.
        device: device of this process.
        memory_bytes: peak memory of the process, on the GPU, or on the system for a CPU.
        step_seconds: duration of a step, including the data.
        checkpoint_bytes: size of a checkpoint.
        is_finite: whether all losses and gradients were finite.
        broken: images that could not be read, with the reason.
    """

    images: int
    parameters: int
    trained: int
    device: torch.device
    memory_bytes: int
    step_seconds: float
    checkpoint_bytes: int
    is_finite: bool
    broken: Mapping[Stored, str]


def try_steps(config: TrainConfig, resume: str = "auto") -> Trial:
    """Build the run and take two real steps with all losses, or three if some step has fewer losses.

    Nothing is written, but files that the run needs are fetched from the hub.

    Args:
        config: a valid configuration.
        resume: as for `find_checkpoint`; a resumed run needs no initial weights.
    Raises:
        OmgsrError: a file cannot be read, or a step runs out of memory.
    """
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    resumed = resume != "none" and bool(list_checkpoints(Path(config.save.out)))
    accelerator = build_accelerator(Path(config.save.out), leaves_out=bool(config.loss.denoise))
    device = device_of(accelerator)
    with tempfile.TemporaryDirectory(prefix="omgsr-check-") as folder:
        # All processes share the teacher's images that the first process makes.
        shared = Path(broadcast_object_list([folder])[0])
        config = _without_traces(config, shared, accelerator.num_processes)
        try:
            run = load_run(config, accelerator, resumed=resumed)
            if config.loss.teacher is not None:
                make_teacher_images(run.crops, config.loss.teacher, accelerator, lambda _: None, StopRequest())
            seconds, is_finite = _time_steps(config, run, accelerator)
            accelerator.wait_for_everyone()
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            hint = "lower data.batch_size or data.resolution, or set train.gradient_checkpointing = true"
            raise OmgsrError(f"a step needs more memory than {device} has", hint) from error
        finally:
            accelerator.end_training()
    learner = run.learner
    saved = [*learner.weights.values(), *optimizer_tensors(learner.optimizer).values()]
    saved += [] if learner.average is None else learner.average.values.values()
    if learner.adversary is not None:
        saved += [*learner.adversary.state().values(), *optimizer_tensors(learner.adversary.optimizer).values()]
    # Trained weights are saved twice, for use and for resuming.
    saved += learner.weights.values()
    return Trial(
        images=run.images,
        parameters=sum(weight.numel() for weight in run.trainable.networks.parameters()),
        trained=sum(weight.numel() for weight in learner.weights.values()),
        device=device,
        memory_bytes=peak_memory_mib(device) * 2**20,
        step_seconds=seconds,
        checkpoint_bytes=sum(value.numel() * value.element_size() for value in saved),
        is_finite=is_finite,
        broken=run.crops.broken,
    )


def find_missing(config: TrainConfig) -> list[OmgsrError]:
    """Try to load each part of a run, and list all errors; a run would stop at the first."""
    teacher, lpips = config.loss.teacher, config.loss.lpips_path
    parts: list[Callable[[], object]] = [
        lambda: load_run_model(config, torch.device("cpu"), resumed=False),
        *(lambda source=source: load_features(source) for source in _feature_sources(config)),
    ]
    if config.log.metrics:
        parts.append(lambda: build_measures(config, {}, torch.device("cpu"), has_references=True))
    if lpips is not None:
        parts.append(lambda: load_lpips(Path(lpips)))
    if teacher is not None:
        parts.append(lambda: load_teacher(teacher.model, torch.device("cpu"), teacher.precision))
    found = []
    for load in parts:
        try:
            load()
        except OmgsrError as error:
            found.append(error)
    return found


def _feature_sources(config: TrainConfig) -> list[FeatureSource]:
    found = []
    for named in config.backbones.values():
        with suppress(ModelError):  # reported with the configuration's errors
            found.append(find_features(*named))
    return list(dict.fromkeys(found))


def list_unfetched(config: TrainConfig) -> list[str]:
    """List the files that a run would fetch from the hub and how to fetch them beforehand; this uses no network."""
    model, found = config.model, []
    preset = PRESETS.get(model.preset or "")
    bases = (model.base,) if model.base else preset.base_sources if preset else ()
    if bases and not any(Path(base).exists() or is_cached(base) for base in bases):
        found.append(f"model.base: {bases[0]} is not on this machine; the run will fetch it")
    for source in _feature_sources(config):
        if is_repository_name(source.place) and not Path(source.place).exists() and not is_cached(source.place):
            name = next((name for name, each in FEATURE_NETWORKS.items() if each.repository == source.place), None)
            how = f"omgsr models pull {name}" if name else "the run will fetch it"
            found.append(f"loss.backbone: {source.place} is not on this machine; {how}")
    return found


def _without_traces(config: TrainConfig, folder: Path, processes: int) -> TrainConfig:
    """Return the configuration without the pixel cache, and with as few of the teacher's images as a step needs."""
    model, data, loss = config.model, config.data.model_copy(update={"cache": None}), config.loss
    if model.mid_timestep == "auto":
        # The value does not affect time and memory.
        model = model.model_copy(update={"mid_timestep": None})
    if loss.teacher is not None:
        crops = min(loss.teacher.crops, data.batch_size * processes)
        teacher = loss.teacher.model_copy(update={"cache": str(folder), "crops": crops})
        loss = loss.model_copy(update={"teacher": teacher})
    return config.model_copy(update={"model": model, "data": data, "loss": loss})


def _time_steps(config: TrainConfig, run: Run, accelerator: Accelerator) -> tuple[float, bool]:
    """Return the seconds per step, and whether all losses and gradients were finite."""
    device, teacher, gan = device_of(accelerator), config.loss.teacher, config.gan
    every = teacher.dists_every if teacher is not None and teacher.dists else 1
    # The first step with the discriminator and all losses.
    first = -(-(gan.start_step + gan.alone_steps if config.loss.gan else 0) // every) * every
    numbers = Numbers(config.data.batch_size, 0, accelerator.process_index, accelerator.num_processes)
    batches = load_batches(run.crops, numbers, config.data.workers, device)
    stepper = Stepper(accelerator, run.learner, config)
    seconds, is_finite = [], True
    # The first step is slow, because it allocates memory and searches for the fastest algorithms.
    for step in (first, first, *([first + 1] if every > 1 else ())):
        began = time.perf_counter()
        is_finite &= stepper.take(step, batches, 0).is_finite
        # Reading a value waits until an asynchronous device has finished.
        torch.zeros((), device=device).item()
        seconds.append(time.perf_counter() - began)
    return (seconds[1] + (every - 1) * seconds[-1]) / every, is_finite
