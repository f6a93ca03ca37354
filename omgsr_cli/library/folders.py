"""Folders and files from Python: what `omgsr upscale` does, returned instead of told."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from omgsr_cli.batch.finished import FinishedResults, Settings
from omgsr_cli.batch.results import FileResult
from omgsr_cli.batch.upscaler import Upscaler, UpscaleWork
from omgsr_cli.engines.local import choose_local, plan_places
from omgsr_cli.engines.work import say_nothing
from omgsr_cli.errors import UsageError
from omgsr_cli.files.jobs import Job, JobOptions, clear_leftovers, plan_jobs
from omgsr_cli.files.naming import scale_label
from omgsr_cli.files.remembered import Remembered
from omgsr_cli.models.base import Restorer, RestorerInfo
from omgsr_cli.models.devices import named_devices
from omgsr_cli.models.family import ModelSource
from omgsr_cli.models.loading import describe_model
from omgsr_cli.models.sources import find_model
from omgsr_cli.options import (
    ColorFix,
    EngineOptions,
    ModelOptions,
    OutputFormat,
    RestoreOptions,
    SizeOptions,
    WriteOptions,
    build_options,
)


def upscale_folder(
    model: Restorer | str | Path,
    inputs: str | Path | Sequence[str | Path],
    output: str | Path | None = None,
    *,
    scale: float | None = None,
    size: tuple[int, int] | None = None,
    process_scale: Literal["auto"] | float = "auto",
    strength: float = 1.0,
    color_fix: ColorFix | None = None,
    tile: Literal["auto", "off"] | int = "auto",
    seed: int | None = None,
    recursive: bool = False,
    suffix: str | None = None,
    format: OutputFormat = "same",
    quality: int | None = None,
    metadata: Literal["keep", "none"] = "keep",
    overwrite: bool = False,
    workers: int | None = None,
    device: str | None = None,
    on_result: Callable[[FileResult], None] | None = None,
) -> list[FileResult]:
    """Restore and enlarge the images of a folder, or of several files and folders, with all that they carry.

    One image that fails does not end the others. What an earlier call with the same model and settings finished is
    skipped.

    Args:
        model: from `load`; or what `load` would be given, as `workers` needs it.
        inputs: folders, files, globs or .txt lists.
        output: a folder, or a file for a single image; None writes beside the input, as NAME_x4.EXT or FOLDER_x4/.
        scale: as for `upscale_image`; likewise `size`, `process_scale`, `strength`, `color_fix`, `tile` and `seed`.
        recursive: whether sub-folders are searched too.
        suffix: added to names.
        format: "same" as the input's, or "png", "jpg", "webp", "tiff", "avif".
        quality: 1 to 100, for formats that lose something.
        metadata: "keep" or "none".
        overwrite: whether other files that are there are replaced.
        workers: how many processes, each of which loads the model; None takes one for each device. A script that asks
            for several keeps what it does under `if __name__ == "__main__":`.
        device: of a model that is named: as for `load`, or several as "cuda:0,cuda:1", or "all".
        on_result: told of each image as it ends.
    Returns:
        One result for each image, and one for each input that is none; `error` says why one failed.
    Raises:
        UsageError: a value is out of range, or values do not go together.
    """
    options = build_options(EngineOptions, workers=workers, device=device)
    if isinstance(model, str | Path):
        source: ModelSource | Restorer = find_model(ModelOptions(model=str(model)))
    else:
        source = model
    info = describe_model(source) if isinstance(source, ModelSource) else source.info
    if not isinstance(source, ModelSource) and options != EngineOptions():
        raise UsageError(
            "a loaded model stays in its process and on its device", "give its name, which is loaded there"
        )
    sizes = build_options(SizeOptions, scale=scale, size=size)
    settings = Settings(
        _model_options(info),
        build_options(
            RestoreOptions,
            size=sizes,
            process_scale=process_scale,
            strength=strength,
            color_fix=color_fix,
            tile=tile,
            seed=seed,
        ),
        build_options(WriteOptions, format=format, quality=quality, metadata=metadata, overwrite=overwrite),
    )
    remembered = Remembered()
    plan = plan_jobs(
        [str(inputs)] if isinstance(inputs, str | Path) else [str(one) for one in inputs],
        None if output is None else str(output),
        JobOptions(recursive, suffix, scale_label(sizes, info.scale), settings.write.format),
        remembered,
    )
    clear_leftovers(plan.jobs)
    results = [FileResult(None, None, "failed", error=problem) for problem in plan.problems]
    for result in _do_jobs(source, info, settings, plan.jobs, options, remembered):
        results.append(result)
        if on_result:
            on_result(result)
    return results


def _do_jobs(
    model: ModelSource | Restorer,
    info: RestorerInfo,
    settings: Settings,
    jobs: Sequence[Job],
    options: EngineOptions,
    remembered: Remembered,
) -> Iterator[FileResult]:
    """Run jobs with a loaded model in this process, or with a model that each of several processes loads."""
    if not isinstance(model, ModelSource):
        loaded = model
        upscaler = Upscaler(settings, info, FinishedResults(settings, info, remembered), lambda: loaded)
        return upscaler.stream(jobs, lambda job: None)
    engine = choose_local(plan_places(named_devices(options.device), options.workers))
    work = UpscaleWork(settings, model, info)
    return engine.run(work, jobs, on_start=lambda job: None, say=say_nothing)


def _model_options(info: RestorerInfo) -> ModelOptions:
    """What the record of a result names of its model."""
    return ModelOptions(model=info.name, mid_timestep=info.mid_timestep, prompt=info.prompt)
