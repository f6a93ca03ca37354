"""`omgsr timestep`: find the mid-timestep of a dataset, print it, and write its curve."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from omgsr_cli.cli import options as shared
from omgsr_cli.cli.help import Command
from omgsr_cli.cli.options import DATA, FILES, MANY, MODEL
from omgsr_cli.cli.output import Output
from omgsr_cli.errors import FileError, OmgsrError, UsageError, reason_of
from omgsr_cli.files.pairs import find_images
from omgsr_cli.files.remembered import Remembered
from omgsr_cli.files.shards import Shard, parse_shard
from omgsr_cli.presets import DEFAULT_PRESET, default_degradation

if TYPE_CHECKING:
    from omgsr_cli.options import TimestepOptions
    from omgsr_cli.timesteps.find import Survey

INTERRUPTED = 130
_UNFINISHED = "omgsr timestep, interrupted"


class TimestepCommand(Command):
    """The help of `omgsr timestep`."""

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
        list[str], shared.option(DATA, "High-quality images: folder, file or .txt list; repeatable.", metavar="HQ")
    ],
    lq: Annotated[
        list[str] | None,
        shared.option(
            DATA,
            "Real low-quality images with the same names; repeatable.",
            metavar="LQ",
            shown="degraded crops of --data",
        ),
    ] = None,
    degradation: Annotated[
        str | None,
        shared.option(
            DATA,
            "Degradation: omgsr, reference, light or a TOML file.",
            metavar="NAME|FILE",
            shown="omgsr; reference for omgsr-tiny",
        ),
    ] = None,
    resolution: Annotated[
        int | None,
        shared.option(DATA, "Side of the crops in pixels.", metavar="N", shown="512; whole images with --lq"),
    ] = None,
    scale: Annotated[
        float, shared.option(DATA, "Reduce crops by this factor.", metavar="F", parser=shared.parse_factor)
    ] = 4.0,
    on_small: Annotated[
        str, shared.option(DATA, "Treatment of images smaller than a crop.", metavar="skip|resize|pad")
    ] = "skip",
    max_samples: Annotated[
        int | None, shared.option(DATA, "Measure at most N samples.", metavar="N", shown="one per image")
    ] = None,
    until_stable: Annotated[
        int | None,
        shared.option(
            DATA, "Stop as soon as the interval is narrower than N.", metavar="N", shown="measure all samples"
        ),
    ] = None,
    seed: Annotated[int, shared.option(DATA, "Seed of crops, degradation and interval.", metavar="N")] = 0,
    latents: Annotated[
        str, shared.option(DATA, "Use the mean of the autoencoder's posterior, or a sample.", metavar="mean|sample")
    ] = "mean",
    model: Annotated[
        str | None, shared.option(MODEL, "Preset or model folder.", metavar="NAME|FOLDER", shown=DEFAULT_PRESET)
    ] = None,
    base: Annotated[
        str | None, shared.option(MODEL, "Pre-trained model, for its VAE and schedule.", metavar="FOLDER|REPO")
    ] = None,
    vae: Annotated[
        str | None, shared.option(MODEL, "Another AutoencoderKL or AutoencoderTiny.", metavar="FOLDER|FILE")
    ] = None,
    device: shared.Devices = None,
    batch: Annotated[int, shared.option(MODEL, "Images per batch.", metavar="N")] = 4,
    workers: shared.Workers = None,
    shard: Annotated[
        str | None,
        shared.option(
            MANY,
            "Measure only part I of N, such as 1/8; the command without --shard then uses all parts.",
            metavar="I/N|auto",
        ),
    ] = None,
    plot: Annotated[Path | None, shared.option(FILES, "Draw the curve.", metavar="FILE.png|svg")] = None,
    csv: Annotated[Path | None, shared.option(FILES, "Write one row per sample.", metavar="FILE")] = None,
    write: Annotated[
        Path | None, shared.option(FILES, "Write the value to a training configuration.", metavar="CONFIG.toml")
    ] = None,
    overwrite: Annotated[bool, shared.option(FILES, "Replace existing --plot and --csv files.", "--overwrite")] = False,
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
        latents=latents,
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
    if options.latents == "sample" and not survey.encoder.has_posterior:
        output.note(f"--latents sample has no effect: {survey.encoder.name} has one latent for an image")
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
    """Return the part to measure; refuse options that need the samples of all parts."""
    part = parse_shard(shard, os.environ)
    if write is not None:
        raise UsageError(
            f"--shard {part} and --write {write} exclude each other",
            "write the value of all parts: run the command without --shard when all are measured",
        )
    if options.until_stable is not None:
        raise UsageError(
            f"--shard {part} and --until-stable {options.until_stable} exclude each other",
            "use --max-samples: one part cannot estimate the interval of all images",
        )
    return part


def _run(survey: Survey, output: Output) -> bool:
    """Measure until all samples are finished or the result is stable; return whether Ctrl-C stopped it."""
    try:
        with output.progress(len(survey.planned()), "samples") as progress:
            for result in survey.run():
                progress.finish()
                if isinstance(result, OmgsrError):
                    output.error(result)
    except KeyboardInterrupt:
        return True
    return False


def _finish(
    survey: Survey, files: _Files, settings: dict[str, Any], output: Output, *, has_failed: bool, is_interrupted: bool
) -> int:
    """Print and write the result; return the exit code."""
    if is_interrupted and not survey.measured:
        return INTERRUPTED
    from omgsr_cli.timesteps.report import describe, draw_text

    found = survey.answer()
    record = describe(survey, found, settings)
    output.result(draw_text(record), record)
    if found.mid_timestep in (0, len(found.curve) - 1):
        # An argmin at an end is not a match, because the curve would fall further beyond it.
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
    """The files to write; they are checked before anything is computed."""

    plot: Path | None
    csv: Path | None
    write: Path | None
    overwrite: bool
    remembered: Remembered

    def check(self) -> None:
        """Raise a UsageError if a file cannot be written."""
        for option, path in (("--plot", self.plot), ("--csv", self.csv)):
            if path is not None and path.is_dir():
                raise UsageError(f"{option} {path} is a folder", "give a file name")
            if path is not None and path.exists() and not self._may_replace(path):
                raise UsageError(f"{option} {path} exists", "give --overwrite or another name")
        if self.plot is not None:
            if self.plot.suffix.lower() not in (".png", ".svg"):
                raise UsageError(f"--plot {self.plot}: not a .png or .svg file", "use --plot curve.png or curve.svg")
            if find_spec("matplotlib") is None:
                from omgsr_cli.packages import install_command

                raise OmgsrError("--plot needs matplotlib, which is not installed", install_command("plot"))
        if self.write is not None:
            changed_text(self.write, 0)

    def save(self, survey: Survey, record: dict[str, Any]) -> None:
        """Write all files."""
        from omgsr_cli.files.atomic import write_atomically
        from omgsr_cli.timesteps.report import write_csv, write_plot

        if self.csv is not None:
            write_csv(self.csv, survey, overwrite=self._may_replace(self.csv))
        if self.plot is not None:
            write_plot(self.plot, record, survey, overwrite=self._may_replace(self.plot))
        if self.write is not None:
            text = changed_text(self.write, record["mid_timestep"])
            write_atomically(self.write, [text.encode("utf-8")], overwrite=True)

    def mark_as_unfinished(self) -> None:
        """Record that the files come from an interrupted run, so that the same command may replace them."""
        for path in (self.plot, self.csv):
            if path is not None:
                self.remembered.keep_result(path, _UNFINISHED)

    def _may_replace(self, path: Path) -> bool:
        return self.overwrite or (path.exists() and self.remembered.result(path) == _UNFINISHED)


def changed_text(path: Path, mid_timestep: int) -> str:
    """Return a configuration's text with [model] mid_timestep set and everything else unchanged; "" if it is missing.

    Raises:
        UsageError: the file is not TOML, or its [model] is not a table.
        FileError: it cannot be read, or its folder does not exist.
    """
    import tomlkit
    from tomlkit.exceptions import TOMLKitError
    from tomlkit.items import Table

    if not path.parent.is_dir():
        raise FileError(f"{path} cannot be written: its folder does not exist")
    try:
        document = tomlkit.parse(path.read_bytes().decode("utf-8") if path.exists() else "")
    except (TOMLKitError, RecursionError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not a TOML file: {reason_of(error)}", "fix the file and try again") from error
    except OSError as error:
        raise FileError(f"{path} cannot be read: {reason_of(error)}") from error
    section = document.setdefault("model", tomlkit.table())
    if not isinstance(section, Table):
        raise UsageError(f"{path}: [model] is not a table of its own", "set mid_timestep by hand")
    section["mid_timestep"] = mid_timestep
    return tomlkit.dumps(document)
