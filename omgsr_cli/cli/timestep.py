"""`omgsr timestep`: the mid-timestep of a data set, as a number, a curve and files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from omgsr_cli.cli.output import Output
from omgsr_cli.errors import FileError, OmgsrError, UsageError
from omgsr_cli.files.inputs import find_inputs
from omgsr_cli.files.pairs import pair_by_stem
from omgsr_cli.options import TimestepOptions, build_options
from omgsr_cli.presets import DEFAULT_PRESET

if TYPE_CHECKING:
    from omgsr_cli.datasets.pair_source import PairSource
    from omgsr_cli.models.base import ImageEncoder
    from omgsr_cli.timesteps import Measured, MidTimestep

INTERRUPTED = 130
_DATA, _MODEL, _FILES, _TALK = "Data", "Model", "Files", "What is said"
_DEFAULT_CROP_PX = 512
# A narrow interval of a handful of pictures would be luck.
_STABLE_FROM, _STABLE_EVERY = 32, 16


def timestep(
    data: Annotated[
        list[str],
        typer.Option(
            metavar="HQ", help="Sharp pictures: folder, file or .txt list; repeatable.", rich_help_panel=_DATA
        ),
    ],
    lq: Annotated[
        list[str] | None,
        typer.Option(metavar="LQ", help="Their real low-quality partners, by file stem.", rich_help_panel=_DATA),
    ] = None,
    degradation: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="reference, light or a TOML file.", rich_help_panel=_DATA)
    ] = "reference",
    resolution: Annotated[
        int | None,
        typer.Option(metavar="N", help="Side of the crops [512; pairs: whole pictures].", rich_help_panel=_DATA),
    ] = None,
    scale: Annotated[
        float, typer.Option(metavar="F", help="Crop over its degraded size.", rich_help_panel=_DATA)
    ] = 4.0,
    on_small: Annotated[
        str, typer.Option(metavar="skip|resize|pad", help="Pictures smaller than a crop.", rich_help_panel=_DATA)
    ] = "skip",
    max_samples: Annotated[
        int | None,
        typer.Option(metavar="N", help="No more samples than this [one a picture].", rich_help_panel=_DATA),
    ] = None,
    until_stable: Annotated[
        int | None,
        typer.Option(metavar="N", help="Go on until the interval is narrower than N.", rich_help_panel=_DATA),
    ] = None,
    seed: Annotated[
        int, typer.Option(metavar="N", help="Of crops, degradation and interval.", rich_help_panel=_DATA)
    ] = 0,
    model: Annotated[
        str | None,
        typer.Option(metavar="NAME|FOLDER", help=f"Preset or folder [{DEFAULT_PRESET}].", rich_help_panel=_MODEL),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="FOLDER|REPO", help="Pre-trained model: its VAE and schedule.", rich_help_panel=_MODEL),
    ] = None,
    vae: Annotated[
        str | None,
        typer.Option(metavar="FOLDER|FILE", help="Another AutoencoderKL or AutoencoderTiny.", rich_help_panel=_MODEL),
    ] = None,
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="cuda, mps, xpu or cpu.", rich_help_panel=_MODEL)
    ] = None,
    batch: Annotated[int, typer.Option(metavar="N", help="Images encoded together.", rich_help_panel=_MODEL)] = 4,
    workers: Annotated[
        int, typer.Option(metavar="N", help="Processes that read and degrade.", rich_help_panel=_MODEL)
    ] = 0,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE.png|svg", help="Draw the curve.", rich_help_panel=_FILES)
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(metavar="FILE", help="One line a picture.", rich_help_panel=_FILES)
    ] = None,
    write: Annotated[
        Path | None,
        typer.Option(
            metavar="CONFIG.toml", help="Put the value into a training configuration.", rich_help_panel=_FILES
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace --plot and --csv files.", rich_help_panel=_FILES)
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.", rich_help_panel=_TALK)] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Errors only.", rich_help_panel=_TALK)] = False,
) -> int:
    """Find the mid-timestep of a data set: where the model's noise is as strong as the pictures' degradation.

    It is the timestep that a model should be trained and run at. Without --lq random crops are degraded.
    """
    options = build_options(
        TimestepOptions,
        resolution=resolution,
        scale=scale,
        on_small=on_small,
        max_samples=max_samples,
        until_stable=until_stable,
        batch=batch,
        workers=workers,
        seed=seed,
    )
    talk = Output(as_json=as_json, quiet=quiet)
    files = _Files(plot, csv, write, overwrite)
    files.check()
    pictures, partners, problems = _find_pictures(data, lq)
    for problem in problems:
        talk.error(problem)
    from omgsr_cli.datasets.pair_source import PairSource
    from omgsr_cli.degradation import load_degradation
    from omgsr_cli.models.encoders import load_encoder
    from omgsr_cli.timesteps import plan_samples

    config = load_degradation(degradation)
    encoder = load_encoder(model, base=base, vae=vae, device=device)
    crop_px = options.resolution or (None if partners else _DEFAULT_CROP_PX)
    if crop_px is not None and crop_px % encoder.multiple_of_px:
        raise UsageError(
            f"--resolution {crop_px} is not a multiple of {encoder.multiple_of_px}",
            f"try --resolution {max(1, crop_px // encoder.multiple_of_px) * encoder.multiple_of_px}",
        )
    source = PairSource(
        pictures=pictures,
        partners=partners,
        config=config,
        resolution_px=crop_px,
        scale=options.scale,
        on_small=options.on_small,
        multiple_of_px=encoder.multiple_of_px,
        seed=options.seed,
        count=plan_samples(
            len(pictures),
            paired=partners is not None,
            whole=crop_px is None,
            max_samples=options.max_samples,
            until_stable=options.until_stable is not None,
        ),
    )
    settings = {
        "data": data,
        "lq": lq,
        "encoder": encoder.name,
        "degradation": None if partners else degradation,
        **options.model_dump(),
        "resolution": crop_px,
    }
    run = _Run(source, encoder, options, talk, failed=len(problems))
    return run.finish(files, settings, interrupted=run.measure())


def _find_pictures(
    data: list[str], lq: list[str] | None
) -> tuple[tuple[Path, ...], tuple[Path, ...] | None, tuple[FileError, ...]]:
    """The pictures, the partner of each where there are real ones, and what was typed that names none."""
    found, problems = find_inputs(data, recursive=True)
    pictures = tuple(item.path for item in found)
    partners = None
    if lq:
        others, more = find_inputs(lq, recursive=True)
        problems += more
        if pictures and others:
            pairs = pair_by_stem(pictures, [item.path for item in others], names=("--data", "--lq"))
            partners = tuple(pair.second for pair in pairs)
    if not pictures or (lq and partners is None):
        reason = f": {problems[0].message}" if problems else ""
        raise UsageError(f"no pictures to find the mid-timestep from{reason}", "give folders, files or .txt lists")
    return pictures, partners, problems


@dataclass
class _Run:
    """The samples that were measured so far, and what they say."""

    source: PairSource
    encoder: ImageEncoder
    options: TimestepOptions
    talk: Output
    failed: int = 0
    measured: list[Measured] = field(default_factory=list)

    def measure(self) -> bool:
        """Measure until all is done or the answer is stable; tell whether it was interrupted before."""
        try:
            with self.talk.progress(len(self.source)) as view:
                for result in self._results():
                    view.finish()
                    self._take(result)
                    if self._is_stable():
                        break
        except KeyboardInterrupt:
            return True
        return False

    def _results(self) -> Iterator[Any]:
        from omgsr_cli.timesteps import measure

        return measure(
            self.source,
            self.encoder.encode,
            self.encoder.device,
            batch=self.options.batch,
            workers=self.options.workers,
        )

    def _take(self, result: Any) -> None:
        from omgsr_cli.timesteps import Problem

        if isinstance(result, Problem):
            self.failed += 1
            self.talk.error(result.error)
        else:
            self.measured.append(result)

    def _is_stable(self) -> bool:
        wanted, count = self.options.until_stable, len(self.measured)
        if wanted is None or count < _STABLE_FROM or count % _STABLE_EVERY:
            return False
        low, high = self.match().interval
        return high - low < wanted

    def tensors(self) -> tuple[Any, Any]:
        """Powers and ratios, (N,) float64 each."""
        import torch

        rows = [(item.power, item.snr) for item in self.measured]
        power, snr = torch.tensor(rows, dtype=torch.float64).reshape(-1, 2).T
        return power, snr

    def match(self) -> MidTimestep:
        """The answer so far."""
        from omgsr_cli.timesteps import match_snr

        return match_snr(*self.tensors(), self.encoder.schedule, seed=self.options.seed)

    def finish(self, files: _Files, settings: dict[str, Any], *, interrupted: bool) -> int:
        """Say and write the answer; the exit code."""
        if not self.measured:
            if interrupted:
                return INTERRUPTED
            raise UsageError(
                f"none of {len(self.source)} pictures can be used, for the reasons above",
                "give other pictures, or --on-small resize where they are smaller than a crop",
            )
        from omgsr_cli.cli.timestep_report import describe, draw_text, write_csv, write_plot

        found = self.match()
        record = describe(found, self.measured, self.tensors(), self.encoder.schedule, settings)
        self.talk.result(draw_text(record), record)
        if interrupted:
            self.talk.note(f"interrupted after {len(self.measured)} of {len(self.source)} samples: known so far")
            return INTERRUPTED
        wanted = self.options.until_stable
        if wanted is not None and found.interval[1] - found.interval[0] >= wanted:
            self.talk.note(f"note: the interval is not narrower than {wanted} after all {found.samples} samples")
        if files.csv is not None:
            write_csv(files.csv, self.measured, self.tensors(), self.encoder.schedule, overwrite=files.overwrite)
        if files.plot is not None:
            write_plot(files.plot, record, self.measured, self.tensors(), self.encoder.schedule, files.overwrite)
        if files.write is not None:
            from omgsr_cli.cli.timestep_config import write_mid_timestep

            write_mid_timestep(files.write, found.mid_timestep)
            self.talk.note(f"{files.write}: mid_timestep = {found.mid_timestep}")
        return 1 if self.failed else 0


@dataclass(frozen=True)
class _Files:
    """What is to be written, checked before anything is computed."""

    plot: Path | None
    csv: Path | None
    write: Path | None
    overwrite: bool

    def check(self) -> None:
        """Raise UsageError or FileError where something cannot be written."""
        from omgsr_cli.cli.timestep_config import check_config

        for option, path in (("--plot", self.plot), ("--csv", self.csv)):
            if path is not None and path.is_dir():
                raise UsageError(f"{option} {path} is a folder", "give the name of a file")
            if path is not None and path.exists() and not self.overwrite:
                raise FileError(f"{path}: exists already", "use --overwrite to replace it")
        if self.plot is not None:
            if self.plot.suffix.lower() not in (".png", ".svg"):
                raise UsageError(f"--plot {self.plot}: not a .png or .svg file", "a curve is drawn in these")
            _check_matplotlib()
        if self.write is not None:
            check_config(self.write)


def _check_matplotlib() -> None:
    from importlib.util import find_spec

    if find_spec("matplotlib") is None:
        raise OmgsrError("--plot needs matplotlib, which is not installed", "pip install 'omgsr-cli[plot]'")
