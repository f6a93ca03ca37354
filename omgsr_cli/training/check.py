"""Check a run before it starts: find all missing files and packages at once, and with `--check` try the first steps."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from omgsr_cli.degradation import load_degradation
from omgsr_cli.errors import OmgsrError, UsageError
from omgsr_cli.files.addresses import shown
from omgsr_cli.models.devices import is_out_of_memory
from omgsr_cli.models.families import family_of, is_model_file, recognise_adapter
from omgsr_cli.models.lora import LoraOptions
from omgsr_cli.models.record import load_record
from omgsr_cli.models.sources import find_model, start_folder
from omgsr_cli.options import ModelOptions
from omgsr_cli.packages import install_command
from omgsr_cli.presets import PRESETS
from omgsr_cli.store.hub import is_repository_name
from omgsr_cli.training.checkpoints import check_adapter_ranks, list_checkpoints, optimizer_tensors
from omgsr_cli.training.config import ConfigError, SourceConfig, TrainConfig
from omgsr_cli.training.data import load_batches, number_batches
from omgsr_cli.training.discriminator import plan_heads
from omgsr_cli.training.distributed import build_accelerator, device_of
from omgsr_cli.training.loop import Run, StopRequest, load_run, make_teacher_images, peak_memory_mib
from omgsr_cli.training.model import build_lora_options, check_measurable, load_run_model
from omgsr_cli.training.perceptual import find_features, load_features, load_lpips
from omgsr_cli.training.sources import check_source
from omgsr_cli.training.step import Stepper
from omgsr_cli.training.teacher import load_teacher
from omgsr_cli.training.validation import build_measures, choose_log_metrics


def check_files(config: TrainConfig, resume: str = "auto") -> None:
    """Check that the files and packages of a run exist and fit, without reading weights.

    Args:
        config: a valid configuration.
        resume: as for `find_checkpoint`; the ranks of this checkpoint are compared.
    Raises:
        ConfigError: some do not, with a line for each.
    """
    model, data, loss, lora = config.model, config.data, config.loss, build_lora_options(config) or LoraOptions()
    problems: list[str] = []

    def note(key: str, check: Callable[..., object], *arguments: object) -> None:
        try:
            check(*arguments)
        except OmgsrError as error:
            problems.append(shown(f"{key}: {error.message}" + (f"; {error.hint}" if error.hint else "")))

    for source in data.train:
        note("data.train", check_source, source)
    note("model.mid_timestep", check_measurable, config)
    held_out = {"data.validation": data.validation, "data.validation_lq": data.validation_lq}
    for key, name in (*(("data.train_lq", name) for name in data.train_lq or ()), *held_out.items()):
        if name is not None:
            note(key, check_source, SourceConfig(images=name))
    for name in config.degradation.presets:
        note("degradation.presets", load_degradation, name)
    for section, (name, path) in config.backbones.items():
        note(f"{section}.backbone_path" if path else f"{section}.backbone", find_features, name, path)
    if loss.lpips_path:
        note("loss.lpips_path", _check_exists, Path(loss.lpips_path))
    if loss.gan and loss.discriminator == "heads":
        note("gan.px" if config.gan.px else "data.resolution", plan_heads, config.gan.px or data.resolution)
    if loss.teacher is not None:
        note("loss.teacher.model", _check_teacher, loss.teacher.model)
    if model.base:
        note("model.base", _check_base, model.base)
    start = start_folder(model.start_from)
    if start is not None:
        note("model.start_from", _check_start, start, model.preset)
    checkpoints = list_checkpoints(Path(config.save.out)) if resume == "auto" else [Path(resume)]
    for folder in (start, None if resume == "none" or not checkpoints else checkpoints[0]):
        if folder is not None:
            note("lora", check_adapter_ranks, folder, lora)
    if config.optim.eight_bit:
        note("optim.eight_bit", _check_package, "bitsandbytes")
    for tracker in config.log.trackers:
        note("log.trackers", _check_package, tracker)
    note("log.metrics", _check_metrics, config)
    note("save.out", _check_could_be_folder, Path(config.save.out))
    if problems:
        raise ConfigError(problems)


def _check_exists(path: Path) -> None:
    if not path.exists():
        raise UsageError(f"{path} does not exist")


def _check_package(name: str) -> None:
    if find_spec(name) is None:
        package = "'omgsr-cli[train]'" if name == "tensorboard" else name
        raise UsageError(f"{name} is not installed: pip install {package}, or change this key")


def _check_teacher(name: str) -> None:
    if Path(name).is_file():
        if find_spec("spandrel") is None:
            raise UsageError("spandrel, which reads it, is not installed", install_command("networks"))
    elif Path(name).is_dir() or not is_repository_name(name):
        find_model(ModelOptions(model=name))


def _check_base(base: str) -> None:
    if is_model_file(Path(base)):
        raise UsageError(f"{base} has no diffusion step: it is a plain restoration network")
    if not Path(base).is_dir() and not is_repository_name(base):
        raise UsageError(f"{base} is neither a folder nor a hub repository OWNER/NAME")


def _check_start(start: Path, preset: str | None) -> None:
    """Check that a folder has initial weights for a preset; without one, the folder shows what it has."""
    if not start.is_dir():
        raise UsageError(f"{start} is not a folder")
    if preset is None:
        return
    parts = family_of(PRESETS[preset], preset).adapter_parts
    if parts and recognise_adapter(start) is None:
        raise UsageError(f"the folder has no {' and no '.join(parts)}")
    if not parts and load_record(start) is None:
        raise UsageError("the folder has no omgsr.json, as a checkpoint has")


def _check_metrics(config: TrainConfig) -> None:
    needs_pyiqa = [known.info.name for known in choose_log_metrics(config) if known.info.source == "pyiqa"]
    if needs_pyiqa and find_spec("pyiqa") is None:
        raise UsageError(f"{needs_pyiqa[0]} needs pyiqa, which is not installed", install_command("metrics"))


def _check_could_be_folder(path: Path) -> None:
    nearest = next((each for each in (path, *path.parents) if os.path.lexists(each)), None)
    if nearest is not None and not nearest.is_dir():
        raise UsageError(f"{nearest} is a file, but checkpoints need a folder")


@dataclass(frozen=True)
class Trial:
    """The measurements of the first steps of a run, in each process.

    Attributes:
        images: number of training images.
        parameters: number of weights of the model; `trained` of them are trained.
        memory_bytes: peak memory of the process, on the GPU, or on the system for a CPU.
        step_seconds: duration of a step, including the data.
        disk_bytes: size of the checkpoints to write; their disk has `free_bytes`.
        is_finite: whether all losses and gradients were finite.
        broken: reasons why images could not be read.
    """

    images: int
    samples_per_step: int
    parameters: int
    trained: int
    device: str
    memory_bytes: int
    step_seconds: float
    run_seconds: int
    disk_bytes: int
    free_bytes: int
    is_finite: bool
    broken: tuple[str, ...]


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
    out = Path(config.save.out)
    present = list_checkpoints(out)
    accelerator = build_accelerator(out, leaves_out=bool(config.loss.denoise))
    device = device_of(accelerator)
    with tempfile.TemporaryDirectory(prefix="omgsr-check-") as folder:
        # All processes share the teacher's images that the first process makes.
        shared = Path(broadcast_object_list([folder])[0])
        config = _without_traces(config, shared, accelerator.num_processes)
        try:
            run = load_run(config, accelerator, resumed=resume != "none" and bool(present))
            if config.loss.teacher is not None:
                make_teacher_images(run.crops, accelerator, lambda _: None, StopRequest())
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
    checkpoint_bytes = sum(value.numel() * value.element_size() for value in saved)
    return Trial(
        images=len(run.crops.images),
        samples_per_step=config.data.batch_size * config.optim.accumulate * accelerator.num_processes,
        parameters=sum(weight.numel() for weight in run.trainable.networks.parameters()),
        trained=sum(weight.numel() for weight in learner.weights.values()),
        device=str(device),
        memory_bytes=peak_memory_mib(device) * 2**20,
        step_seconds=float(f"{seconds:.3g}"),
        run_seconds=round(seconds * config.train.steps),
        # One more than are kept, because the oldest checkpoint is removed when the newest is complete.
        disk_bytes=(config.save.keep + 1 - min(config.save.keep, len(present))) * checkpoint_bytes,
        free_bytes=shutil.disk_usage(next(each for each in (out, *out.absolute().parents) if each.is_dir())).free,
        is_finite=is_finite,
        broken=tuple(run.crops.broken.values()),
    )


def find_missing(config: TrainConfig) -> list[OmgsrError]:
    """Try to load each part of a run, and list all errors; a run would stop at the first."""
    teacher, lpips, cpu = config.loss.teacher, config.loss.lpips_path, torch.device("cpu")
    networks = dict.fromkeys(config.backbones.values())
    parts: list[Callable[[], object]] = [
        lambda: load_run_model(config, cpu, resumed=False),
        *(lambda named=named: load_features(find_features(*named)) for named in networks),
    ]
    if config.log.metrics:
        parts.append(lambda: build_measures(config, {}, cpu, has_references=True))
    if lpips is not None:
        parts.append(lambda: load_lpips(Path(lpips)))
    if teacher is not None:
        parts.append(lambda: load_teacher(teacher.model, cpu, teacher.precision))
    found = []
    for load in parts:
        try:
            load()
        except OmgsrError as error:
            found.append(error)
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
    numbers = number_batches(config.data.batch_size, 0, accelerator.process_index, accelerator.num_processes)
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
