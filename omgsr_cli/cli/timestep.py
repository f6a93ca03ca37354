"""`omgsr timestep`: find the mid-timestep of a data set, print it, and write its curve."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import typer

from omgsr_cli.cli import options as shared
from omgsr_cli.cli.help import Command
from omgsr_cli.cli.options import DATA, FILES, MANY, MODEL
from omgsr_cli.cli.output import Output
from omgsr_cli.errors import OmgsrError, UsageError
from omgsr_cli.files.pairs import find_images
from omgsr_cli.files.remembered import Remembered
from omgsr_cli.files.shards import Shard, parse_shard
from omgsr_cli.presets import DEFAULT_PRESET, default_degradation

if TYPE_CHECKING:
    from omgsr_cli.options import TimestepOptions
    from omgsr_cli.timesteps.survey import Survey

INTERRUPTED = 130
_UNFINISHED = "omgsr timestep, interrupted"


class TimestepCommand(Command):
    """How the help of `omgsr timestep` looks."""

    examples: ClassVar[Mapping[str, str]] = {
        "omgsr timestep --data hq/": "degrade crops of sharp images",
        "omgsr timestep --data hq/ --lq lq/": "real pairs with the same names",
        "omgsr timestep --data hq/ --plot c.png": "draw the curve",
    }
    common: ClassVar[Collection[str]] = (
        *("data", "lq", "degradation", "resolution", "max_samples", "until_stable", "model", "base", "device"),
        *("plot", "csv", "write", "overwrite", "quiet", "help_all", "help"),
    )


def timestep(
    data: Annotated[
        list[str],
        typer.Option(
            metavar="HQ",
            help="High-quality images: folder, file or .txt list; repeatable.",
            rich_help_panel=DATA,
        ),
    ],
    lq: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LQ",
            help="Real low-quality images with the same names; repeatable.",
            show_default="degraded crops of --data",
            rich_help_panel=DATA,
        ),
    ] = None,
    degradation: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FILE",
            help="Degradation: omgsr, reference, light or a TOML file.",
            show_default="omgsr; reference for omgsr-tiny",
            rich_help_panel=DATA,
        ),
    ] = None,
    resolution: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Side of the crops in pixels.",
            show_default="512; whole images with --lq",
            rich_help_panel=DATA,
        ),
    ] = None,
    scale: Annotated[
        float,
        typer.Option(
            metavar="F",
            parser=shared.parse_factor,
            help="Reduce crops by this factor.",
            rich_help_panel=DATA,
        ),
    ] = 4.0,
    on_small: Annotated[
        str,
        typer.Option(metavar="skip|resize|pad", help="Treatment of images smaller than a crop.", rich_help_panel=DATA),
    ] = "skip",
    max_samples: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Measure at most N samples.",
            show_default="one per image",
            rich_help_panel=DATA,
        ),
    ] = None,
    until_stable: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Stop as soon as the interval is narrower than N.",
            show_default="measure all samples",
            rich_help_panel=DATA,
        ),
    ] = None,
    seed: Annotated[
        int, typer.Option(metavar="N", help="Seed of crops, degradation and interval.", rich_help_panel=DATA)
    ] = 0,
    model: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|FOLDER", help="Preset or model folder.", show_default=DEFAULT_PRESET, rich_help_panel=MODEL
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="FOLDER|REPO", help="Pre-trained model, for its VAE and schedule.", rich_help_panel=MODEL),
    ] = None,
    vae: Annotated[
        str | None,
        typer.Option(metavar="FOLDER|FILE", help="Another AutoencoderKL or AutoencoderTiny.", rich_help_panel=MODEL),
    ] = None,
    device: shared.Devices = None,
    batch: Annotated[int, typer.Option(metavar="N", help="Images per batch.", rich_help_panel=MODEL)] = 4,
    workers: shared.Workers = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N|auto",
            help="Measure only part I of N, such as 1/8; the command without --shard then uses all parts.",
            rich_help_panel=MANY,
        ),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png|svg", help="Draw the curve.", rich_help_panel=FILES)
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write one row per sample.", rich_help_panel=FILES)
    ] = None,
    write: Annotated[
        Path | None,
        typer.Option(metavar="CONFIG.toml", help="Write the value to a training configuration.", rich_help_panel=FILES),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace existing --plot and --csv files.", rich_help_panel=FILES)
    ] = False,
    as_json: shared.AsJson = False,
    quiet: shared.Quiet = False,
    help_all: shared.HelpAll = False,
) -> int:
    """Find the mid-timestep of a data set, at which the model's noise is as strong as the degradation of the images.

    Train and run a model at this timestep. Re-run the command to resume.
    """
    from omgsr_cli.options import EngineOptions, TimestepOptions, build_options

    options = build_options(
        TimestepOptions,
        resolution=resolution,
        scale=scale,
        on_small=on_small,
        max_samples=max_samples,
        until_stable=until_stable,
        batch=batch,
        seed=seed,
    )
    engine_options = build_options(EngineOptions, workers=workers, device=device)
    part = None if shard is None else _part(shard, options, write)
    output = Output(as_json=as_json, quiet=quiet)
    remembered = Remembered()
    files = _Files(plot, csv, write, overwrite, remembered)
    files.check()
    found = find_images(data, lq)
    for note in found.notes:
        output.note(note)
    for problem in found.problems:
        output.error(problem)
    degradation = degradation or default_degradation(
        DEFAULT_PRESET if model is base is vae is None else str(model or base or vae)
    )
    with output.loading("model"):
        from omgsr_cli.degradation import load_degradation
        from omgsr_cli.models.loading import NamedEncoder
        from omgsr_cli.timesteps.find import open_survey

        survey = open_survey(
            found,
            NamedEncoder(model, base, vae),
            load_degradation(degradation),
            options,
            engine_options,
            remembered=remembered,
            shard=part,
        )
    for text in survey.encoder.notes:
        output.note(text)
    is_interrupted = _run(survey, output)
    if part is not None:
        output.note(f"measured part {part}; run the command without --shard when all parts are measured")
    if survey.found_kept:
        output.note(f"reused {survey.found_kept} samples of an earlier run")
    settings = {
        "data": data,
        "lq": lq,
        "encoder": survey.encoder.name,
        "degradation": None if found.partners else degradation,
        **options.model_dump(),
        "resolution": survey.source.resolution_px,
    }
    has_failed = bool(found.problems or survey.problems)
    return _finish(survey, files, settings, output, has_failed=has_failed, is_interrupted=is_interrupted)


def _part(shard: str, options: TimestepOptions, write: Path | None) -> Shard:
    """The part to measure; refuses options whose values are those of all parts."""
    part = parse_shard(shard, os.environ)
    if write is not None:
        raise UsageError(
            f"--shard {part} and --write {write} exclude each other",
            "write the value of all parts: run the command without --shard when all are measured",
        )
    if options.until_stable is not None:
        raise UsageError(
            f"--shard {part} and --until-stable {options.until_stable} exclude each other",
            "use --max-samples: a part does not know the interval of the whole",
        )
    return part


def _run(survey: Survey, output: Output) -> bool:
    """Measure until all samples are finished or the answer is stable; returns whether Ctrl-C stopped it."""
    from omgsr_cli.timesteps import Problem

    try:
        with output.progress(len(survey.planned()), "samples") as progress:
            for result in survey.run():
                progress.finish()
                if isinstance(result, Problem):
                    output.error(result.error)
    except KeyboardInterrupt:
        return True
    return False


def _finish(
    survey: Survey, files: _Files, settings: dict[str, Any], output: Output, *, has_failed: bool, is_interrupted: bool
) -> int:
    """Print and write the answer; returns the exit code."""
    if is_interrupted and not survey.measured:
        return INTERRUPTED
    from omgsr_cli.timesteps.report import describe, draw_text

    found = survey.answer()
    record = describe(survey, found, settings)
    output.result(draw_text(record), record)
    if found.mid_timestep in (0, len(found.curve) - 1):
        # An argmin at an end is not a match: the curve would continue to fall.
        output.note(f"{found.mid_timestep} is an end of the schedule: no timestep is as noisy as these images")
    if is_interrupted:
        output.message(
            f"interrupted after {len(survey.measured)} of {len(survey.planned())} samples; re-run the command to resume"
        )
        files.save(survey, record)
        files.mark_as_unfinished()
        return INTERRUPTED
    wanted = survey.options.until_stable
    if wanted is not None and not survey.is_stable():
        reason = (
            "an interval needs more images" if found.interval is None else f"the interval is not narrower than {wanted}"
        )
        output.note(f"--until-stable {wanted}: {reason} after all {found.samples} samples")
    files.save(survey, record)
    if files.write is not None:
        output.message(f"{files.write}: mid_timestep = {found.mid_timestep}")
    return 1 if has_failed else 0


@dataclass(frozen=True)
class _Files:
    """The files to write, checked before anything is computed."""

    plot: Path | None
    csv: Path | None
    write: Path | None
    overwrite: bool
    remembered: Remembered

    def check(self) -> None:
        """Raise UsageError where something cannot be written."""
        for option, path in (("--plot", self.plot), ("--csv", self.csv)):
            if path is not None and path.is_dir():
                raise UsageError(f"{option} {path} is a folder", "give a file name")
            if path is not None and path.exists() and not self._may_replace(path):
                raise UsageError(f"{option} {path} exists", "give --overwrite or another name")
        if self.plot is not None:
            if self.plot.suffix.lower() not in (".png", ".svg"):
                raise UsageError(f"--plot {self.plot}: not a .png or .svg file", "use --plot curve.png or curve.svg")
            _check_matplotlib()
        if self.write is not None:
            from omgsr_cli.timesteps.config_file import check_config

            check_config(self.write)

    def save(self, survey: Survey, record: dict[str, Any]) -> None:
        """Write all files."""
        from omgsr_cli.timesteps.config_file import write_mid_timestep
        from omgsr_cli.timesteps.report import write_csv, write_plot

        if self.csv is not None:
            write_csv(self.csv, survey, overwrite=self._may_replace(self.csv))
        if self.plot is not None:
            write_plot(self.plot, record, survey, overwrite=self._may_replace(self.plot))
        if self.write is not None:
            write_mid_timestep(self.write, record["mid_timestep"])

    def mark_as_unfinished(self) -> None:
        """Remember that the files are of an interrupted run: the same command may replace them."""
        for path in (self.plot, self.csv):
            if path is not None:
                self.remembered.keep_result(path, _UNFINISHED)

    def _may_replace(self, path: Path) -> bool:
        return self.overwrite or (path.exists() and self.remembered.result(path) == _UNFINISHED)


def _check_matplotlib() -> None:
    from importlib.util import find_spec

    from omgsr_cli.packages import install_command

    if find_spec("matplotlib") is None:
        raise OmgsrError("--plot needs matplotlib, which is not installed", install_command("plot"))
