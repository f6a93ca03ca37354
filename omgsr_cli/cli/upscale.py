"""`omgsr upscale`: options to records, and these to a plan of its jobs."""

from __future__ import annotations

import os
import re

from omgsr_cli.cli import params as shared
from omgsr_cli.cli import upscale_params as own
from omgsr_cli.cli.output import Output
from omgsr_cli.cli.spread import PartsOfPlan, failed_inputs, first_device, open_report
from omgsr_cli.cli.upscale_run import Session
from omgsr_cli.errors import FileError, UsageError
from omgsr_cli.files.folders import FORMAT_OF_SUFFIX
from omgsr_cli.files.jobs import JobOptions, JobPlan, plan_in_parts
from omgsr_cli.files.naming import STREAM, scale_label
from omgsr_cli.files.shards import parse_shard


def upscale(
    inputs: own.Inputs,
    output: own.Output = None,
    scale: own.Scale = None,
    size: own.Size = None,
    long_side: own.LongSide = None,
    short_side: own.ShortSide = None,
    print_: own.Print = None,
    process_scale: own.ProcessScale = "auto",
    process_size: own.ProcessSize = None,
    model: own.Model = None,
    base: shared.Base = None,
    adapter: shared.Adapter = None,
    mid_timestep: own.MidTimestep = None,
    prompt: own.Prompt = None,
    vae: own.Vae = None,
    seed: own.Seed = None,
    device: own.Devices = None,
    precision: shared.Precision = "auto",
    compile_: own.Compile = False,
    color_fix: own.ColorFix = None,
    strength: own.Strength = 1.0,
    tile: own.Tile = "auto",
    overlap: own.Overlap = None,
    batch: own.Batch = 1,
    memory: own.Memory = None,
    recursive: own.Recursive = False,
    suffix: own.Suffix = None,
    format_: own.Format = "same",
    quality: own.Quality = None,
    metadata: own.Metadata = "keep",
    dpi: own.Dpi = "keep",
    keep_times: own.KeepTimes = False,
    overwrite: own.Overwrite = False,
    compare: own.Compare = False,
    workers: own.Workers = None,
    engine: own.Engine = "local",
    address: own.Address = None,
    shard: own.Shard = None,
    report: own.Report = None,
    retry_failed: own.RetryFailed = False,
    dry_run: own.DryRun = False,
    as_json: shared.AsJson = False,
    quiet: shared.Quiet = False,
    verbose: shared.Verbose = False,
) -> int:
    """Restore and enlarge pictures.

    Without -o a result lies beside its input as NAME_x4.EXT, or for a folder in FOLDER_x4/. What is finished is
    skipped on the next run; nothing else is overwritten without --overwrite.
    """
    from omgsr_cli.options import EngineOptions, ModelOptions, RestoreOptions, SizeOptions, WriteOptions, build_options

    spread = build_options(EngineOptions, workers=workers, device=device, engine=engine, address=address)
    part = None if shard is None else parse_shard(shard, os.environ)
    if retry_failed and report is None:
        raise UsageError("--retry-failed needs to know what has failed", "give the --report of the run before")
    model_options = build_options(
        ModelOptions,
        model=model,
        base=base,
        adapter=adapter,
        mid_timestep=mid_timestep,
        prompt=prompt,
        device=first_device(device),
        precision=precision,
        compile=compile_,
        process_size=process_size,
        vae=vae,
    )
    dots = _parse_dpi(dpi) if print_ is None or dpi != "keep" else 300.0
    sizes = build_options(
        SizeOptions,
        scale=scale,
        size=_parse_size(size),
        long_side=long_side,
        short_side=short_side,
        print=None if print_ is None else _parse_print(print_, dots),
    )
    restore = build_options(
        RestoreOptions,
        size=sizes,
        process_scale=_parse_process_scale(process_scale),
        strength=strength,
        color_fix=color_fix,
        tile=_parse_tile(tile),
        overlap=overlap,
        batch=batch,
        memory=_parse_memory(memory),
        seed=seed,
    )
    write = build_options(
        WriteOptions,
        format=format_,
        quality=quality,
        metadata=metadata,
        dpi=dots,
        keep_times=keep_times,
        overwrite=overwrite,
        compare=compare,
    )
    talk = Output(as_json=as_json, quiet=quiet, verbose=verbose)
    # What a folder of results is called needs the scale, and a default one is the model's: ask its record.
    from omgsr_cli.batch.finished import Settings

    to_stdout = output == STREAM or (output is None and STREAM in inputs)
    if compare and to_stdout:
        raise UsageError("--compare has no place beside stdout", "give -o FILE")
    if keep_times and to_stdout:
        raise UsageError("--keep-times has no effect on stdout", "give -o FILE, or leave it out")
    if as_json and to_stdout and not dry_run:
        talk.note("note: --json has no effect: the picture takes stdout")
    session = Session(Settings(model_options, restore, write), talk, to_stdout)
    names = JobOptions(recursive, suffix, scale_label(sizes, session.info.scale), write.format)
    parts = plan_in_parts(inputs, output, names, session.remembered)
    plan = PartsOfPlan(parts, part, failed_inputs(report) if retry_failed and report else None)
    _check_quality(quality, plan.first)
    if dry_run:
        return session.plan(plan)
    with open_report(report, lambda text: talk.note(f"note: {text}")) as kept:
        kept.begin(plan.total, None if part is None else str(part), retry=retry_failed)
        code = session.run(plan, spread, kept)
    if kept.missing:
        hint = "what is finished stays: give another --report, and the next run lists it as skipped"
        talk.error(FileError(f"--report {report} lacks {kept.missing} lines", hint))
    return code or int(kept.missing > 0)


def _check_quality(quality: int | None, plan: JobPlan) -> None:
    """Refuse a quality where everything that will be written is lossless."""
    if quality is None or not plan.jobs:
        return
    written = {FORMAT_OF_SUFFIX.get(job.destination.suffix.lower()) for job in plan.jobs if job.destination is not None}
    if written and written <= {"png", "tiff"}:
        kinds = " and ".join(sorted(str(kind) for kind in written))
        raise UsageError(
            f"--quality {quality} has no effect on {kinds}", "leave it out, or give --format jpg, webp or avif"
        )


def _parse_size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    width, _, height = text.lower().partition("x")
    if not (width.isdecimal() and height.isdecimal()):
        raise UsageError(f"--size {text}: not a width and a height", "write it like 1920x1080")
    return int(height), int(width)


def _parse_dpi(text: str) -> str | float:
    if text in ("keep", "scale"):
        return text
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(f"--dpi {text}: not keep, scale or a number", "try --dpi 300") from error


_MM_OF_UNIT = {"mm": 1.0, "cm": 10.0, "in": 25.4}


def _parse_print(text: str, dpi: str | float) -> tuple[int, int]:
    """The longer and the shorter side of a sheet in pixels, from a width, a height and a unit."""
    if isinstance(dpi, str):
        raise UsageError(f"--print {text} needs a number of dots per inch, not --dpi {dpi}", "try --dpi 300")
    found = re.fullmatch(r"([0-9.]+)x([0-9.]+)(mm|cm|in)", text.strip().lower())
    try:
        sides = [float(side) for side in found.groups()[:2]] if found else []
    except ValueError:
        sides = []
    if found is None or not sides or not all(side > 0 for side in sides):
        raise UsageError(f"--print {text}: not a width, a height and a unit", "write it like 30x20cm or 12x8in")
    long, short = (max(1, round(side * _MM_OF_UNIT[found[3]] / 25.4 * dpi)) for side in sorted(sides, reverse=True))
    return long, short


def _parse_memory(text: str | None) -> int | None:
    """MiB, from a number with M or G."""
    if text is None:
        return None
    number, unit = text[:-1], text[-1:].upper()
    if not number.isdecimal() or unit not in ("M", "G"):
        raise UsageError(f"--memory {text}: not a number with M or G", "try --memory 4G")
    return int(number) * (1024 if unit == "G" else 1)


def _parse_process_scale(text: str) -> str | float:
    if text == "auto":
        return text
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(
            f"--process-scale {text}: not auto or a number", "try --process-scale 1, or leave it out"
        ) from error


def _parse_tile(text: str) -> str | int:
    if text in ("auto", "off"):
        return text
    if not text.isdecimal():
        raise UsageError(f"--tile {text}: not auto, off or a number of pixels", "try --tile 512")
    return int(text)
