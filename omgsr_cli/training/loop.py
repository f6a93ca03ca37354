"""A run: build its parts, resume, step, save, validate, stop; and the events that it reports."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from omgsr_cli.benchmark.cases import Case
from omgsr_cli.errors import OmgsrError, UsageError
from omgsr_cli.models.base import Trainable
from omgsr_cli.models.lora import LoraOptions
from omgsr_cli.training.checkpoints import (
    Progress,
    check_adapter_ranks,
    checkpoint_name,
    find_checkpoint,
    finished_steps,
    load_state,
    lock_run,
    write_checkpoint,
    write_state,
)
from omgsr_cli.training.config import CONFIG_NAME, TrainConfig, compare_configs
from omgsr_cli.training.data import Batch, TrainingCrops, build_crop_options, is_broken, load_batches, number_batches
from omgsr_cli.training.distributed import (
    agree,
    build_accelerator,
    device_of,
    share,
    share_backbone,
    share_broken,
    share_sums,
)
from omgsr_cli.training.logs import RunLog
from omgsr_cli.training.losses import build_losses
from omgsr_cli.training.model import build_lora_options, load_run_model, settle_mid_timestep
from omgsr_cli.training.perceptual import find_features, load_networks
from omgsr_cli.training.publish import RunFacts, write_description
from omgsr_cli.training.sources import Stored, TrainingImage, UnreadableImagesError, find_training_images
from omgsr_cli.training.step import Learner, Stepper, StepResult, build_learner
from omgsr_cli.training.teacher import Restore, load_teacher
from omgsr_cli.training.validation import (
    PATTERN,
    ImageMeasure,
    best_column,
    build_measures,
    find_held_out,
    has_references,
    measure_noise_pattern,
    validate,
    write_grid,
)


@dataclass(frozen=True)
class Started:
    """The run starts, or resumes after `step` finished steps.

    `device` is that of the first process, `trained` the number of trained weights, and `folder` has checkpoints and
    logs. `changed` has the keys whose values differ from the checkpoint's configuration: the value before and now.
    """

    step: int
    steps: int
    processes: int
    device: str
    images: int
    trained: int
    folder: Path
    resumed_from: Path | None
    changed: Mapping[str, tuple[object, object]] = field(default_factory=dict)


@dataclass(frozen=True)
class StepDone:
    """One optimiser step is finished.

    Attributes:
        step: step number, from 1.
        losses: unweighted means over all processes and the step's forward passes; "total" is their weighted sum.
        gradient_norm: gradient norm of the generator before clipping.
        images_per_s: images per second of all processes, smoothed.
        memory_mib: peak memory of the first process: of the GPU, or of the system on a CPU.
        skipped: a loss or a gradient was not finite, and no weight was changed.
    """

    step: int
    steps: int
    losses: Mapping[str, float]
    learning_rate: float
    gradient_norm: float
    images_per_s: float
    seconds_left: float
    memory_mib: int
    skipped: bool


@dataclass(frozen=True)
class Validated:
    """The held-out images were restored; `scores` are means over them, and `grid` shows some: LQ | output | HQ."""

    step: int
    scores: Mapping[str, float]
    grid: Path


@dataclass(frozen=True)
class Saved:
    """A complete checkpoint was written; `omgsr upscale --model` accepts its folder."""

    step: int
    folder: Path


@dataclass(frozen=True)
class Noticed:
    """A notice to the user in one line; the run continues."""

    text: str


Event = Noticed | Started | StepDone | Validated | Saved

Report = Callable[[Event], None]
"""Called with each event, in the first process only."""

if sys.platform != "win32":
    import resource

_REPORTED_EVERY_S = 30.0
_BROKEN_SHARE = 0.01
"""Largest fraction of broken images; above it the run ends with an error."""


@dataclass(frozen=True)
class TrainResult:
    """Result of a run.

    Attributes:
        step: number of finished steps, of `steps`.
        checkpoint: newest checkpoint; `omgsr upscale --model` accepts it.
        signal: number of the signal that ended the run early, or 0; the exit code is 128 + signal.
        broken: number of images that could not be read and were skipped.
        best: best checkpoint by save.best, or None.
    """

    step: int
    steps: int
    checkpoint: Path | None
    signal: int
    broken: int = 0
    best: Path | None = None


def train(config: TrainConfig, *, resume: str = "none", report: Report = lambda _: None) -> TrainResult:
    """Train a model; a launcher calls this in every process.

    After SIGINT or SIGTERM the current step finishes and a checkpoint is saved; a second signal has its usual effect.

    Args:
        config: configuration of the run.
        resume: "auto" resumes from the newest complete checkpoint in the run's folder, if any; "none" starts anew; a
            path resumes from that checkpoint.
        report: called with each event, in the first process only.
    Raises:
        OmgsrError: a file cannot be read or written, or too many consecutive steps were not finite.
    """
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    accelerator = build_accelerator(Path(config.save.out), config.log.trackers, leaves_out=bool(config.loss.denoise))
    with ExitStack() as stack:
        # All processes of a launcher belong to one run: the first one holds the lock.
        agree(accelerator, lambda: stack.enter_context(lock_run(Path(config.save.out))))
        stop = stack.enter_context(StopRequest())
        report = report if accelerator.is_main_process else lambda _: None
        found = find_checkpoint(Path(config.save.out), resume, note=lambda text: report(Noticed(text)))
        if found is not None:
            check_adapter_ranks(found, build_lora_options(config) or LoraOptions())
            done = finished_steps(found)
            if config.train.steps < done:
                raise UsageError(
                    f"train.steps is {config.train.steps}, but {found} has already finished {done}",
                    f"set train.steps to {done} or more, or start a new run in another [save] out",
                )
        config = settle_mid_timestep(config, accelerator, found)
        run = load_run(config, accelerator, resumed=found is not None)
        trainer = Trainer(run, accelerator, found, report)
        if config.loss.teacher is not None:
            make_teacher_images(run.crops, accelerator, report, stop)
            trainer.note_broken(run.crops.broken)
        # Steps need the teacher's images, so all processes stop here if one of them received a signal.
        _, signal = share(accelerator, {}, stop.signal)
        return trainer.stopped(signal) if signal else trainer.go_on(stop)


@dataclass(frozen=True)
class Run:
    """The parts of a run; without validation, `held_out` and `measures` are empty.

    `features` is the name of the feature network of each section that uses one.
    """

    config: TrainConfig
    trainable: Trainable
    learner: Learner
    crops: TrainingCrops
    held_out: Sequence[TrainingImage | Case]
    measures: Mapping[str, ImageMeasure]
    features: Mapping[str, str]


def load_run(config: TrainConfig, accelerator: Accelerator, *, resumed: bool) -> Run:
    """Load and build the parts of a run; if it is resumed, its weights will be loaded from a checkpoint.

    Raises:
        UnreadableImagesError: headers of images cannot be read.
        OmgsrError: the model, the data or a feature network cannot be read.
    """
    options = build_crop_options(config)
    # Other processes use the sizes that the first one has cached.
    images, held_out = agree(accelerator, partial(_find_images, config)) or _find_images(config)
    device, shards = device_of(accelerator), config.train.shard_backbone
    # The whole network may not fit on the device.
    trainable = load_run_model(config, torch.device("cpu") if shards else device, resumed=resumed)
    if shards:
        share_backbone(trainable, device, accelerator.num_processes)
    networks = load_networks(config, device)
    source = find_features(*config.backbones["loss"]) if "loss" in networks else None
    # The published weights of DISTS are for VGG16.
    learned = Path(source.place) if source is not None and source.kind == "vgg16" else None
    losses = build_losses(config.loss, networks.get("loss"), learned).to(device)
    if config.train.compile and losses.dists is not None:
        losses.dists.compile_statistics()
    measures = {}
    if held_out:
        measures = build_measures(config, losses.measures(), device, has_references=has_references(held_out))
    learner = build_learner(config, trainable, losses, networks.get("gan"), device)
    crops = TrainingCrops(images, options, config.train.seed)
    titles = {section: network.title for section, network in networks.items()}
    return Run(config, trainable, learner, crops, held_out, measures, titles)


def _find_images(
    config: TrainConfig,
) -> tuple[Sequence[TrainingImage], Sequence[TrainingImage | Case]]:
    """List the training and the held-out images; an error lists all unreadable ones of both."""
    data, lists, unreadable = config.data, list[Sequence[Any]](), list[UnreadableImagesError]()
    of_training = partial(find_training_images, data.train, data.train_lq, data.resolution, data.on_small)
    for find in (of_training, partial(find_held_out, config)):
        try:
            lists.append(find())
        except UnreadableImagesError as error:
            unreadable.append(error)
    if unreadable:
        problems = [problem for error in unreadable for problem in error.problems]
        raise UnreadableImagesError(problems, sum(error.count for error in unreadable))
    return lists[0], lists[1]


class Trainer:
    """A run in one process."""

    def __init__(self, run: Run, accelerator: Accelerator, found: Path | None, report: Report) -> None:
        self._run, self._accelerator, self._report = run, accelerator, report
        self._config = run.config
        self._folder = Path(run.config.save.out)
        self._progress = Progress() if found is None else load_state(found, run.learner)
        self._checkpoint = found
        self._stepper = Stepper(accelerator, run.learner, run.config)
        measures = [*run.measures, *([PATTERN] if run.config.log.noise_pattern else [])]
        names = [*run.learner.losses.names, *(("gan", "discriminator") if run.learner.adversary else ())]
        self._log = RunLog(accelerator, run.config, names, measures, self._progress.step)
        # An image may have been repaired since the checkpoint.
        known = {str(stored): stored for image in run.crops.images for stored in image.files}
        for name, reason in list(self._progress.broken.items()):
            stored = known.get(name, Path(name))
            if is_broken(stored, run.crops.options.cache):
                run.crops.broken[stored] = reason
            else:
                del self._progress.broken[name]
        self._found_broken: dict[Stored, str] = {}

    def go_on(self, stop: StopRequest) -> TrainResult:
        """Run the remaining steps."""
        self._report(self._started())
        steps, progress = self._config.train.steps, self._progress
        batches = self._batches()
        pace, signal = Pace(), 0
        while progress.step < steps and not signal:
            result = self._stepper.take(progress.step, batches, stop.signal)
            done = self._count(result, pace.step())
            self._report(done)
            if result.broken:
                self.note_broken(self._found_broken)
            self._log.step(progress.step, result, done.images_per_s, len(progress.broken))
            self._give_up_if_stuck()
            signal = result.signal
            if self._at_end_of_step(ends=bool(signal) or progress.step == steps):
                pace.restart()
        return self.stopped(signal if progress.step < steps else 0)

    def stopped(self, signal: int) -> TrainResult:
        """Close the log and return the result."""
        self._log.close()
        progress = self._progress
        best = self._folder / checkpoint_name(progress.best_step) if progress.best_step else None
        return TrainResult(
            progress.step, self._config.train.steps, self._checkpoint, signal, len(progress.broken), best
        )

    def note_broken(self, broken: Mapping[Stored, str]) -> None:
        """Report the broken images that this process found; every process must call this at the same time.

        Raises:
            OmgsrError: more than 1 % of all images are broken.
        """
        run, count = self._run, len(self._run.crops.images) + len(self._run.held_out)
        for path, reason in share_broken(self._accelerator, broken).items():
            if str(path) not in self._progress.broken:
                self._progress.broken[str(path)] = reason
                self._report(Noticed(f"skipped a broken image, {len(self._progress.broken)} of {count}: {reason}"))
            run.crops.broken[path] = reason
        self._found_broken = {}
        if len(self._progress.broken) > _BROKEN_SHARE * count:
            raise OmgsrError(
                f"{len(self._progress.broken)} of {count} images are broken, more than {_BROKEN_SHARE:.0%}, the first: "
                f"{next(iter(self._progress.broken.values()))}",
                "repair them or move them out of the data, then start again",
            )

    def _batches(self) -> Iterator[Batch]:
        """Read batches; their `broken` holds only images that no process has reported yet."""
        reported, accelerator, config = self._progress.broken, self._accelerator, self._config
        numbers = number_batches(
            config.data.batch_size, self._progress.samples, accelerator.process_index, accelerator.num_processes
        )
        for batch in load_batches(self._run.crops, numbers, config.data.workers, device_of(accelerator)):
            new = {path: reason for path, reason in batch.broken.items() if str(path) not in reported}
            self._found_broken |= new
            yield replace(batch, broken=new)

    def _count(self, result: StepResult, seconds: float) -> StepDone:
        config, progress = self._config, self._progress
        images = config.data.batch_size * config.optim.accumulate * self._accelerator.num_processes
        progress.step += 1
        progress.samples += images
        progress.skipped = 0 if result.is_finite else progress.skipped + 1
        progress.skipped_in_all += not result.is_finite
        return StepDone(
            step=progress.step,
            steps=config.train.steps,
            losses=result.losses,
            learning_rate=result.learning_rate,
            gradient_norm=result.gradient_norm,
            images_per_s=images / seconds,
            seconds_left=(config.train.steps - progress.step) * seconds,
            memory_mib=peak_memory_mib(device_of(self._accelerator)),
            skipped=not result.is_finite,
        )

    def _give_up_if_stuck(self) -> None:
        skipped, step = self._progress.skipped, self._progress.step
        if skipped < self._config.train.nan_limit:
            return
        kept = f"the last checkpoint is {self._checkpoint}" if self._checkpoint else "there is no checkpoint yet"
        raise OmgsrError(
            f"{skipped} consecutive steps were not finite, the last of them step {step}",
            f"lower the learning rate, or set precision to fp32; {kept}",
        )

    def _at_end_of_step(self, *, ends: bool) -> bool:
        """Validate and save when they are due; return whether either was done."""
        config, step = self._config, self._progress.step
        saves = ends or step % config.save.every == 0
        measures = bool(self._run.held_out) and (step % config.log.validate_every == 0 or step == config.train.steps)
        if measures:
            saves |= self._validate()
        if saves:
            self._save()
        return measures or saves

    def _save(self) -> None:
        progress = self._progress
        written: list[Path | None] = [None]
        if self._accelerator.is_main_process:
            keep, best = self._config.save.keep, progress.best_step
            written[0] = write_checkpoint(self._folder, progress.step, self._write_parts, keep=keep, spare=best)
        # The other processes wait here until the checkpoint is complete.
        self._checkpoint = broadcast_object_list(written)[0]
        if self._checkpoint is not None:
            self._report(Saved(progress.step, self._checkpoint))

    def _write_parts(self, folder: Path) -> None:
        """Write all files of a checkpoint except its manifest."""
        run, progress = self._run, self._progress
        write_state(folder, run.trainable, run.learner, progress)
        facts = RunFacts(progress, len(run.crops.images), len(run.held_out), run.features)
        write_description(folder, self._config, facts)

    def _validate(self) -> bool:
        """Measure the held-out images; return whether the weights are the best so far."""
        run, accelerator, average = self._run, self._accelerator, self._run.learner.average
        restore, device = run.learner.generator.restore, device_of(accelerator)
        pattern = {}
        with average.applied() if average else nullcontext():
            found = validate(
                restore,
                run.held_out,
                run.crops.options,
                run.measures,
                multiple_px=run.trainable.restorer.info.multiple_of_px,
                device=device,
                seed=self._config.train.seed,
                rank=accelerator.process_index,
                processes=accelerator.num_processes,
                together=self._config.train.shard_backbone,
            )
            if self._config.log.noise_pattern:
                # Runs in every process, because the network's weights may be sharded over them.
                pattern[PATTERN] = measure_noise_pattern(restore, device)
        self.note_broken(found.broken)
        for name, reason in found.failed.items():
            self._report(Noticed(f"{name} has no mean at this validation: {reason}"))
        scores = share_sums(accelerator, found.sums, found.images, tuple(run.measures)) | pattern
        self._progress.scores, self._progress.scored_at = scores, self._progress.step
        grid = self._folder / "validation" / f"step-{self._progress.step:08d}.png"
        if accelerator.is_main_process:
            if found.rows:
                write_grid(found.rows, grid)
            self._log.validation(self._progress.step, scores)
            self._report(Validated(self._progress.step, scores, grid))
        return self._is_best(scores)

    def _is_best(self, scores: Mapping[str, float]) -> bool:
        """Return whether the weights are the best so far by the configured metric; if so, record it in the progress."""
        progress, measures = self._progress, self._run.measures
        column = best_column(self._config.save.best or "", measures)
        if column is None:
            return False
        score, sign = scores[column], -1 if measures[column].lower_is_better else 1
        if math.isnan(score) or (progress.best is not None and sign * score <= sign * progress.best):
            return False
        progress.best, progress.best_step = score, progress.step
        return True

    def _started(self) -> Started:
        return Started(
            step=self._progress.step,
            steps=self._config.train.steps,
            processes=self._accelerator.num_processes,
            device=str(device_of(self._accelerator)),
            images=len(self._run.crops.images),
            trained=sum(weight.numel() for weight in self._run.learner.weights.values()),
            folder=self._folder,
            resumed_from=self._checkpoint,
            changed=self._changed_keys(),
        )

    def _changed_keys(self) -> dict[str, tuple[object, object]]:
        if self._checkpoint is None:
            return {}
        try:
            return compare_configs(self._checkpoint / CONFIG_NAME, self._config)
        except OmgsrError as error:
            self._report(Noticed(f"the configuration of {self._checkpoint} cannot be compared: {error.message}"))
            return {}


def make_teacher_images(crops: TrainingCrops, accelerator: Accelerator, report: Report, stop: StopRequest) -> None:
    """Restore the images that are not cached yet with the teacher; each process makes its share until `stop`.

    The teacher is loaded only if an image is missing.

    Raises:
        ModelError: the teacher cannot be read.
        FileError: an image cannot be read or written.
    """
    images, reported = crops.options.teacher, time.monotonic()
    assert images is not None
    teacher = images.config
    restore: Restore | None = None
    mine = range(accelerator.process_index, teacher.crops, accelerator.num_processes)
    for done, number in enumerate(mine):
        if stop.signal:
            break
        crop = crops.crop_key(number)
        if images.path(crop).is_file():
            continue
        if restore is None:
            report(Noticed(f"the teacher {teacher.model} makes {teacher.crops} images, cached in {images.folder}"))
            restore = load_teacher(teacher.model, device_of(accelerator), teacher.precision)
        lq, hq = crops.draw_pair(number)
        # A broken image is replaced when it is read, which changes the key of the crop.
        crop = crops.crop_key(number)
        if not images.path(crop).is_file():
            images.make(crop, lq, hq.shape[1], hq.shape[2], restore)
        if time.monotonic() - reported > _REPORTED_EVERY_S:
            reported = time.monotonic()
            report(Noticed(f"the teacher: {done + 1} of {len(mine)} images"))
    accelerator.wait_for_everyone()


_WATCHED = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Context manager that records the number of the first signal; a second signal of its kind has its usual effect.

    Python handles signals only in the main thread, so it records none in other threads.
    """

    def __init__(self) -> None:
        self.signal = 0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {kind: signal.signal(kind, self._hear) for kind in _WATCHED}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for watched, handler in self._before.items():
            signal.signal(watched, handler)

    def _hear(self, number: int, _: FrameType | None) -> None:
        self.signal = self.signal or number
        heard = signal.Signals(number)
        signal.signal(heard, self._before[heard])


_NEWEST = 0.1
"""Weight of the newest step in the running mean."""


class Pace:
    """Running mean of the seconds per step; for the first steps it is the plain mean."""

    def __init__(self) -> None:
        self._mean = 0.0
        self._count = 0
        self._since = time.perf_counter()

    def restart(self) -> None:
        """Restart the clock, so that work between steps, such as saving, is not counted."""
        self._since = time.perf_counter()

    def step(self) -> float:
        """Count a step; return the running mean of the seconds per step."""
        now = time.perf_counter()
        self._count += 1
        share = max(_NEWEST, 1 / self._count)
        self._mean += (now - self._since - self._mean) * share
        self._since = now
        return self._mean


def peak_memory_mib(device: torch.device) -> int:
    """Return the peak memory of this process in MiB: of the GPU, or of the system on a CPU; 0 on a CPU on Windows."""
    if device.type in ("cuda", "xpu"):
        return int(getattr(torch, device.type).max_memory_allocated(device)) // 2**20
    if sys.platform == "win32":
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux reports kibibytes, macOS bytes.
    return peak // (2**20 if sys.platform == "darwin" else 2**10)
