"""Find the mid-timestep of images: the library function, and the functions that open samples and encoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from omgsr_cli.datasets.crops import OnSmall
from omgsr_cli.datasets.pair_source import PairSource
from omgsr_cli.degradation import DegradationConfig, load_degradation
from omgsr_cli.engines.local import Here, choose_local, plan_places
from omgsr_cli.engines.work import Engine, Place
from omgsr_cli.errors import UsageError
from omgsr_cli.files.pairs import FoundImages, find_images
from omgsr_cli.files.remembered import Remembered
from omgsr_cli.files.shards import Shard
from omgsr_cli.models.base import ImageEncoder
from omgsr_cli.models.devices import named_devices
from omgsr_cli.models.loading import NamedEncoder
from omgsr_cli.options import EngineOptions, TimestepOptions, build_options
from omgsr_cli.presets import DEFAULT_PRESET, default_degradation
from omgsr_cli.timesteps.matching import MidTimestep
from omgsr_cli.timesteps.measure import Measured, MeasureWork, Problem, plan_samples
from omgsr_cli.timesteps.survey import KeptSamples, Survey

Images = str | Path | Sequence[str | Path]

DEFAULT_CROP_PX = 512


def find_mid_timestep(
    source: PairSource | Images,
    encoder: ImageEncoder | str | None = None,
    *,
    lq: Images | None = None,
    degradation: str | Path | None = None,
    resolution: int | None = None,
    scale: float = 4.0,
    on_small: OnSmall = "skip",
    max_samples: int | None = None,
    until_stable: int | None = None,
    batch: int = 4,
    workers: int | None = None,
    seed: int = 0,
    latents: Literal["mean", "sample"] = "mean",
    device: str | None = None,
    on_result: Callable[[Measured | Problem], None] | None = None,
) -> MidTimestep:
    """Find the timestep at which a model's noise is as strong as the degradation of the images.

    Source: OMGSR, arXiv:2508.08227.

    Args:
        source: high-quality images: folders, files or .txt lists; or a `PairSource`, which uses only `batch`,
            `workers`, `until_stable`, `seed` and `latents`.
        encoder: the pre-trained model's encoder, or the name of a preset, folder or hub repository; None uses the
            default. A loaded encoder works in this process only.
        lq: real low-quality partners of the images, matched by stem; None degrades crops of the images.
        degradation: preset or TOML file; None uses the degradation of the encoder's model.
        resolution: side of the crops in pixels; None uses 512, and whole images with real pairs.
        scale: the side of a crop divided by the side of the degraded crop.
        on_small: what to do with images that are smaller than a crop.
        max_samples: upper bound; None takes one sample per image.
        until_stable: add samples until the interval is narrower than this many timesteps.
        batch: number of images that are encoded together.
        workers: number of processes, each with its own encoder; None uses one per device.
        seed: seed of crops, degradation, sampled latents and the interval.
        latents: the mean of the autoencoder's posterior or, as published, a sample of it.
        device: device of an encoder given by name; as for `load`, or several: "cuda:0,cuda:1" or "all".
        on_result: called with each sample, skipped ones included.
    Returns:
        The mid-timestep with its curve and interval.
    Raises:
        FileError: an input cannot be read.
        UsageError: a value is out of range, or no image can be used.
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
        latents=latents,
    )
    engine_options = build_options(EngineOptions, workers=workers, device=device)
    named = encoder if isinstance(encoder, ImageEncoder) else NamedEncoder(encoder)
    images: PairSource | FoundImages = (
        source if isinstance(source, PairSource) else find_images(*map(_listed, (source, lq)))
    )
    if isinstance(images, FoundImages) and images.problems:
        raise images.problems[0]
    name = encoder.name if isinstance(encoder, ImageEncoder) else encoder or DEFAULT_PRESET
    config = load_degradation(degradation or default_degradation(name))
    survey = open_survey(images, named, config, options, engine_options)
    for result in survey.run():
        if on_result:
            on_result(result)
    return survey.answer()


def open_survey(
    images: FoundImages | PairSource,
    encoder: NamedEncoder | ImageEncoder,
    degradation: DegradationConfig,
    options: TimestepOptions,
    engine_options: EngineOptions,
    *,
    remembered: Remembered | None = None,
    shard: Shard | None = None,
) -> Survey:
    """Load the encoder and plan the samples of images; `Survey.run` measures them.

    Args:
        images: from `find_images`, or planned samples.
        encoder: an encoder's name, or a loaded encoder, which works in this process only.
        degradation: degradation of crops; not used for real pairs.
        options: options of the samples.
        engine_options: number of processes and their devices; this process uses the first device.
        remembered: keeps samples between runs; None keeps none.
        shard: the part of the samples to measure; None measures all.
    Raises:
        UsageError: the encoder does not support the resolution, the part has no samples, or several processes cannot
            share the loaded encoder.
        ModelError, DeviceError: as for `load`.
    """
    engine: Engine = Here(Place())
    if isinstance(encoder, NamedEncoder):
        devices = named_devices(engine_options.device)
        engine = choose_local(plan_places(devices, engine_options.workers))
        loaded: ImageEncoder = encoder.load(devices[0])
    elif engine_options.workers in (None, 1):
        loaded = encoder
    else:
        message = f"{engine_options.workers} workers cannot share one loaded encoder"
        raise UsageError(message, "give the encoder by its name")
    source = images if isinstance(images, PairSource) else _pair_source(images, loaded, degradation, options)
    items = None if shard is None else shard.indices(len(source))
    if items is not None and not items:
        raise UsageError(f"--shard {shard}: none of {len(source)} samples is in this part", "use fewer parts")
    is_sampled = options.latents == "sample" and loaded.has_posterior
    kept = None if remembered is None else KeptSamples(source, loaded, remembered, is_sampled=is_sampled)
    # This process uses the encoder that is already loaded; other processes load their own.
    elsewhere = loaded if engine.in_this_process else encoder
    return Survey(source, loaded, options, kept, items, engine, MeasureWork(source, elsewhere, options.latents))


def _pair_source(
    found: FoundImages, encoder: ImageEncoder, degradation: DegradationConfig, options: TimestepOptions
) -> PairSource:
    """Plan the samples of the found images in sizes that the encoder supports."""
    crop_px = options.resolution or (None if found.partners else DEFAULT_CROP_PX)
    multiple = encoder.multiple_of_px
    if crop_px is not None and crop_px % multiple:
        raise UsageError(
            f"--resolution {crop_px} is not a multiple of {multiple}",
            f"try --resolution {max(1, crop_px // multiple) * multiple}",
        )
    count = plan_samples(
        len(found.images),
        paired=found.partners is not None,
        whole=crop_px is None,
        max_samples=options.max_samples,
        until_stable=options.until_stable is not None,
    )
    return PairSource(
        images=found.images,
        partners=found.partners,
        config=degradation,
        resolution_px=crop_px,
        scale=options.scale,
        on_small=options.on_small,
        multiple_of_px=multiple,
        seed=options.seed,
        count=count,
    )


def _listed(images: Images | None) -> list[str]:
    if images is None:
        return []
    return [str(images)] if isinstance(images, str | Path) else [str(one) for one in images]
