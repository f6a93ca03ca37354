"""Restore files and folders from Python, as `omgsr upscale` does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from omgsr_cli.batch.finished import FinishedResults, Settings
from omgsr_cli.batch.results import FileResult
from omgsr_cli.batch.upscaler import Upscaler, UpscaleWork, writers_for
from omgsr_cli.engines.local import choose_local, plan_places
from omgsr_cli.engines.work import say_nothing
from omgsr_cli.errors import UsageError
from omgsr_cli.files.jobs import Job, JobOptions, clear_leftovers, plan_jobs
from omgsr_cli.files.naming import scale_label
from omgsr_cli.files.remembered import Remembered
from omgsr_cli.library.arguments import names_arguments, with_arguments
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


@names_arguments
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
    """Restore and upscale the images of a folder, or of several files and folders.

    Metadata, profile, transparency and 16 bits are kept. An image that fails does not stop the others, and results that
    an earlier call with the same model and settings finished are skipped.

    Args:
        model: from `load`; or a name or folder, as several `workers` need it.
        inputs: folders, files, globs or .txt lists.
        output: a folder, or a file for a single image; None writes beside the input, as NAME_x4.EXT or FOLDER_x4/.
        scale: as for `upscale_image`, like `size`, `process_scale`, `strength`, `color_fix`, `tile` and `seed`.
        recursive: search subfolders.
        suffix: added to names.
        format: "same" as the input's, or "png", "jpg", "webp", "tiff", "avif".
        quality: 1 to 100, for lossy formats; None uses the format's default.
        metadata: "keep" or "none".
        overwrite: replace existing files that are not finished results of this call.
        workers: number of processes, each of which loads the model; None uses one per device. A script that uses
            several must run under `if __name__ == "__main__":`.
        device: for a model given by name; as for `load`, or several: "cuda:0,cuda:1" or "all".
        on_result: called with each result.
    Returns:
        One result for each image, and one for each input that has no image; `error` is the reason of a failure.
    Raises:
        UsageError: a value is out of range, or arguments exclude each other.
    """
    options = build_options(EngineOptions, workers=workers, device=device)
    if isinstance(model, str | Path):
        source: ModelSource | Restorer = find_model(ModelOptions(model=str(model)))
    else:
        source = model
    info = describe_model(source) if isinstance(source, ModelSource) else source.info
    if not isinstance(source, ModelSource) and options != EngineOptions():
        raise UsageError(
            "a loaded model stays in its process and on its device", "pass its name to use --workers or --device"
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
    for problem in plan.problems:
        with_arguments(problem)
    for result in _do_jobs(source, info, settings, plan.jobs, options, remembered):
        if result.error is not None:
            with_arguments(result.error)
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
        results = FinishedResults(settings, info, remembered)
        upscaler = Upscaler(settings, info, results, lambda: loaded, writers=writers_for(loaded.device, settings))
        return upscaler.stream(jobs, lambda job: None)
    engine = choose_local(plan_places(named_devices(options.device), options.workers))
    work = UpscaleWork(settings, model, info)
    return engine.run(work, jobs, on_start=lambda job: None, say=say_nothing)


def _model_options(info: RestorerInfo) -> ModelOptions:
    """The model's part of the settings that identify a result."""
    return ModelOptions(model=info.name, mid_timestep=info.mid_timestep, prompt=info.prompt)
