"""From pictures to their mid-timestep: what is read, by whom, and in which crops."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from omgsr_cli.datasets.crops import OnSmall
from omgsr_cli.datasets.pair_source import PairSource
from omgsr_cli.degradation import DegradationConfig, load_degradation
from omgsr_cli.engines.local import Here, choose_local, plan_places
from omgsr_cli.errors import UsageError
from omgsr_cli.files.pairs import FoundPictures, find_pictures
from omgsr_cli.models.base import ImageEncoder
from omgsr_cli.models.devices import named_devices
from omgsr_cli.models.loading import NamedEncoder
from omgsr_cli.options import EngineOptions, TimestepOptions, build_options
from omgsr_cli.presets import default_degradation
from omgsr_cli.timesteps.matching import MidTimestep
from omgsr_cli.timesteps.measure import Measured, Problem, plan_samples
from omgsr_cli.timesteps.survey import Spread, Survey

Pictures = str | Path | Sequence[str | Path]

DEFAULT_CROP_PX = 512


def find_mid_timestep(
    source: PairSource | Pictures,
    encoder: ImageEncoder | str | None = None,
    *,
    lq: Pictures | None = None,
    degradation: str | Path | None = None,
    resolution: int | None = None,
    scale: float = 4.0,
    on_small: OnSmall = "skip",
    max_samples: int | None = None,
    until_stable: int | None = None,
    batch: int = 4,
    workers: int | None = None,
    seed: int = 0,
    device: str | None = None,
    on_result: Callable[[Measured | Problem], None] | None = None,
) -> MidTimestep:
    """Find the timestep at which a model's noise is as strong as the pictures' degradation.

    Source: OMGSR, arXiv:2508.08227.

    Args:
        source: sharp pictures: folders, files or .txt lists; or pairs that are made already, for which only `batch`,
            `workers`, `until_stable` and `seed` count.
        encoder: of the pre-trained model, or the name of a preset, folder or hub repository; None takes the default.
            One that is loaded works in this process alone.
        lq: real low-quality partners of the pictures, by stem; None degrades crops of them.
        degradation: preset or TOML file; None takes that of the encoder's model.
        resolution: side of the crops; None takes 512, and with real pairs the whole pictures.
        scale: the side of a crop over that of the degraded one.
        on_small: what becomes of pictures that are smaller than a crop.
        max_samples: upper bound; None takes one sample of each picture.
        until_stable: goes on until the interval is narrower than this many timesteps.
        batch: images that are encoded together.
        workers: processes, each with an encoder of its own; None takes one for each device.
        seed: of crops, degradation and the interval.
        device: for an encoder that is given by name; as for `load`, or several: "cuda:0,cuda:1" or "all".
        on_result: told of each sample, those that are left out included.
    Returns:
        The value, its curve and interval.
    Raises:
        FileError: an input cannot be read.
        UsageError: a value is out of range, or no picture can be used.
        ModelError, DeviceError: as for `load`.
    """
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
    if isinstance(encoder, ImageEncoder):
        if processes.workers not in (None, 1):
            raise UsageError(f"{workers} workers cannot share one loaded encoder", "give the encoder by its name")
        spread = None
    else:
        encoder, spread = open_encoder(NamedEncoder(encoder), processes)
    if not isinstance(source, PairSource):
        found = find_pictures(_listed(source), _listed(lq))
        if found.problems:
            raise found.problems[0]
        config = load_degradation(degradation or default_degradation(encoder.name))
        source = open_pairs(found, encoder, config, options)
    survey = Survey(source, encoder, options, spread=spread)
    for result in survey.run():
        if on_result:
            on_result(result)
    return survey.answer()


def open_pairs(
    found: FoundPictures, encoder: ImageEncoder, degradation: DegradationConfig, options: TimestepOptions
) -> PairSource:
    """Make the samples of what was found, in sizes that the encoder takes.

    Raises:
        UsageError: the resolution does not suit the encoder.
    """
    crop_px = options.resolution or (None if found.partners else DEFAULT_CROP_PX)
    multiple = encoder.multiple_of_px
    if crop_px is not None and crop_px % multiple:
        raise UsageError(
            f"--resolution {crop_px} is not a multiple of {multiple}",
            f"try --resolution {max(1, crop_px // multiple) * multiple}",
        )
    count = plan_samples(
        len(found.pictures),
        paired=found.partners is not None,
        whole=crop_px is None,
        max_samples=options.max_samples,
        until_stable=options.until_stable is not None,
    )
    return PairSource(
        pictures=found.pictures,
        partners=found.partners,
        config=degradation,
        resolution_px=crop_px,
        scale=options.scale,
        on_small=options.on_small,
        multiple_of_px=multiple,
        seed=options.seed,
        count=count,
    )


def open_encoder(named: NamedEncoder, options: EngineOptions) -> tuple[ImageEncoder, Spread | None]:
    """Load an encoder, and say which processes are to measure with their own; None where this one is enough.

    Args:
        named: the encoder.
        options: how many processes, and on which devices; the first of these is this process's.
    Raises:
        ModelError, UsageError, DeviceError: as for `load_encoder` and `named_devices`.
    """
    devices = named_devices(options.device)
    engine = choose_local(plan_places(devices, options.workers))
    return named.load(devices[0]), None if isinstance(engine, Here) else Spread(engine, named)


def _listed(pictures: Pictures | None) -> list[str]:
    if pictures is None:
        return []
    return [str(pictures)] if isinstance(pictures, str | Path) else [str(one) for one in pictures]
