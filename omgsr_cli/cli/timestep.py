"""`omgsr timestep`: the mid-timestep of a dataset, as a number, a curve and files."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omgsr_cli.cli import params as shared
from omgsr_cli.cli import timestep_params as own
from omgsr_cli.cli.output import Output
from omgsr_cli.errors import OmgsrError, UsageError
from omgsr_cli.files.pairs import FoundPictures, find_pictures
from omgsr_cli.files.shards import Shard, parse_shard

if TYPE_CHECKING:
    from omgsr_cli.files.remembered import Remembered
    from omgsr_cli.options import TimestepOptions
    from omgsr_cli.timesteps.survey import Survey

INTERRUPTED = 130
_UNFINISHED = "omgsr timestep, interrupted"


def timestep(
    data: own.Data,
    lq: own.Lq = None,
    degradation: own.Degradation = None,
    resolution: own.Resolution = None,
    scale: own.Scale = 4.0,
    on_small: own.OnSmall = "skip",
    max_samples: own.MaxSamples = None,
    until_stable: own.UntilStable = None,
    seed: own.Seed = 0,
    model: own.Model = None,
    base: own.Base = None,
    vae: own.Vae = None,
    device: shared.Device = None,
    batch: own.Batch = 4,
    workers: own.Workers = None,
    shard: own.Shard = None,
    plot: own.Plot = None,
    csv: own.Csv = None,
    write: own.Write = None,
    overwrite: own.Overwrite = False,
    as_json: shared.AsJson = False,
    quiet: shared.Quiet = False,
) -> int:
    """Find the mid-timestep of a dataset: where the model's noise is as strong as the degradation of the images.

    Train and run a model at this timestep. Without --lq, random crops of the images are degraded.
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
    processes = build_options(EngineOptions, workers=workers, device=device)
    part = None if shard is None else _part(shard, options, write)
    output = Output(as_json=as_json, quiet=quiet)
    from omgsr_cli.files.remembered import Remembered

    remembered = Remembered()
    files = _Files(plot, csv, write, overwrite, remembered)
    files.check()
    found = _find(data, lq, output)
    from omgsr_cli.degradation import load_degradation
    from omgsr_cli.models.loading import NamedEncoder
    from omgsr_cli.presets import DEFAULT_PRESET, default_degradation
    from omgsr_cli.timesteps.find import open_encoder, open_pairs
    from omgsr_cli.timesteps.kept import KeptSamples
    from omgsr_cli.timesteps.survey import Survey

    # A missing degradation is an error before an encoder is loaded.
    named = DEFAULT_PRESET if model is base is vae is None else str(model or base or vae)
    degradation = degradation or default_degradation(named)
    config = load_degradation(degradation)
    encoder, spread = open_encoder(NamedEncoder(model, base, vae), processes)
    for text in encoder.notes:
        output.note(f"note: {text}")
    source = open_pairs(found, encoder, config, options)
    settings = {
        "data": data,
        "lq": lq,
        "encoder": encoder.name,
        "degradation": None if found.partners else degradation,
        **options.model_dump(),
        "resolution": source.resolution_px,
    }
    items = None if part is None else _items(part, len(source))
    survey = Survey(source, encoder, options, KeptSamples(source, encoder, remembered), items, spread)
    interrupted = _run(survey, output)
    if part is not None:
        output.note(f"note: this is part {part} only; run the command without --shard once all parts are measured")
    if survey.found_kept:
        output.note(f"note: reused {survey.found_kept} samples of an earlier run")
    failed = bool(found.problems or survey.problems)
    return _finish(survey, files, settings, output, failed=failed, interrupted=interrupted)


def _part(shard: str, options: TimestepOptions, write: Path | None) -> Shard:
    """The requested part; refuses options that would use its value as that of the whole dataset."""
    part = parse_shard(shard, os.environ)
    if write is not None:
        raise UsageError(
            f"--shard {part} and --write {write} exclude each other",
            "run the command without --shard once all parts are measured",
        )
    if options.until_stable is not None:
        raise UsageError(
            f"--shard {part} and --until-stable {options.until_stable} exclude each other",
            "a part does not know the interval of the whole: use --max-samples",
        )
    return part


def _items(part: Shard, samples: int) -> Sequence[int]:
    """The indices of the samples in a part."""
    items = part.indices(samples)
    if not items:
        raise UsageError(f"--shard {part}: this part has none of the {samples} samples", "use fewer parts")
    return items


def _find(data: list[str], lq: list[str] | None, output: Output) -> FoundPictures:
    """Find the images, and report those that cannot be used."""
    found = find_pictures(data, lq)
    for note in found.notes:
        output.note(f"note: {note}")
    for problem in found.problems:
        output.error(problem)
    return found


def _run(survey: Survey, output: Output) -> bool:
    """Measure all samples, or until the result is stable; return whether the run was interrupted."""
    from omgsr_cli.timesteps import Problem

    try:
        with output.progress(len(survey.planned()), "samples") as view:
            for result in survey.run():
                view.finish()
                if isinstance(result, Problem):
                    output.error(result.error)
    except KeyboardInterrupt:
        return True
    return False


def _finish(
    survey: Survey, files: _Files, settings: dict[str, Any], output: Output, *, failed: bool, interrupted: bool
) -> int:
    """Print and write the result; return the exit code."""
    if interrupted and not survey.measured:
        return INTERRUPTED
    from omgsr_cli.timesteps.report import describe, draw_text

    found = survey.answer()
    record = describe(survey, found, settings)
    output.result(draw_text(record), record)
    if found.mid_timestep in (0, len(found.curve) - 1):
        # An argmin at an end is not a match: the curve is still falling there.
        output.note(f"note: {found.mid_timestep} is an end of the schedule: no timestep is as noisy as these images")
    if interrupted:
        output.note(
            f"interrupted after {len(survey.measured)} of {len(survey.planned())} samples; re-run the command to resume"
        )
        files.save(survey, record)
        files.mark_as_unfinished()
        return INTERRUPTED
    wanted = survey.options.until_stable
    if wanted is not None and not survey.is_stable():
        few = found.interval is None
        reason = "an interval needs more images" if few else f"the interval is not narrower than {wanted}"
        output.note(f"note: --until-stable {wanted}: {reason} after all {found.samples} samples")
    files.save(survey, record)
    if files.write is not None:
        output.note(f"{files.write}: mid_timestep = {found.mid_timestep}")
    return 1 if failed else 0


@dataclass(frozen=True)
class _Files:
    """The output files, checked before anything is computed."""

    plot: Path | None
    csv: Path | None
    write: Path | None
    overwrite: bool
    remembered: Remembered

    def check(self) -> None:
        """Raise a UsageError if a file cannot be written."""
        for option, path in (("--plot", self.plot), ("--csv", self.csv)):
            if path is not None and path.is_dir():
                raise UsageError(f"{option} {path} is a folder", "use a file name")
            if path is not None and path.exists() and not self._may_replace(path):
                raise UsageError(f"{option} {path} exists", "use --overwrite or another name")
        if self.plot is not None:
            if self.plot.suffix.lower() not in (".png", ".svg"):
                raise UsageError(f"--plot {self.plot} is not a .png or .svg file", "use one of these formats")
            _check_matplotlib()
        if self.write is not None:
            from omgsr_cli.timesteps.config_file import check_config

            check_config(self.write)

    def save(self, survey: Survey, record: dict[str, Any]) -> None:
        """Write the requested files."""
        from omgsr_cli.timesteps.config_file import write_mid_timestep
        from omgsr_cli.timesteps.report import write_csv, write_plot

        if self.csv is not None:
            write_csv(self.csv, survey, overwrite=self._may_replace(self.csv))
        if self.plot is not None:
            write_plot(self.plot, record, survey, overwrite=self._may_replace(self.plot))
        if self.write is not None:
            write_mid_timestep(self.write, record["mid_timestep"])

    def mark_as_unfinished(self) -> None:
        """Remember that the files belong to an interrupted run, so the resumed run may replace them."""
        for path in (self.plot, self.csv):
            if path is not None:
                self.remembered.keep_result(path, _UNFINISHED)

    def _may_replace(self, path: Path) -> bool:
        return self.overwrite or (path.exists() and self.remembered.is_result(path, _UNFINISHED))


def _check_matplotlib() -> None:
    from importlib.util import find_spec

    from omgsr_cli.packages import install_command

    if find_spec("matplotlib") is None:
        raise OmgsrError("--plot needs matplotlib, which is not installed", install_command("plot"))
