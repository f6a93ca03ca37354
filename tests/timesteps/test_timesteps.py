"""Matching signal-to-noise ratios against plain loops, other implementations and golden figures."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from places import GOLDEN
from safetensors.torch import save_file

from omgsr_cli.datasets import ImagePair, PairSource, draw_window, fit_small, trim, whole_factor
from omgsr_cli.degradation import load_degradation
from omgsr_cli.errors import DeviceError, FileError, ModelError, OmgsrError, ShapeError, UsageError
from omgsr_cli.files.inputs import FoundInput
from omgsr_cli.files.pairs import pair_by_name
from omgsr_cli.files.remembered import Remembered
from omgsr_cli.models.base import ImageEncoder
from omgsr_cli.models.loading import NamedEncoder, load_encoder
from omgsr_cli.options import TimestepOptions
from omgsr_cli.schedules import DdpmSchedule, FlowSchedule
from omgsr_cli.timesteps import (
    Measured,
    latent_snr,
    match_snr,
    measure,
    own_timesteps,
    plan_samples,
    spread_by,
)
from omgsr_cli.timesteps.find import KeptSamples, Survey
from omgsr_cli.timesteps.measure import MeasureWork

GOLDEN_SD = GOLDEN / "sd"
EXPECTED = json.loads((GOLDEN_SD / "pairs" / "expected.json").read_text())
POWER = torch.tensor(EXPECTED["per_image_power"], dtype=torch.float64)
SNR = torch.tensor(EXPECTED["per_image_snr_lq"], dtype=torch.float64)


def random_numbers(count: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    power = torch.rand(count, generator=generator, dtype=torch.float64) + 0.5
    return power, power * (torch.randn(count, generator=generator, dtype=torch.float64) * 0.5 + 1).exp()


def test_the_golden_timesteps() -> None:
    found = match_snr(POWER, SNR, DdpmSchedule())
    assert (found.mid_timestep, found.samples) == (24, 6)
    torch.testing.assert_close(found.curve, torch.tensor(EXPECTED["curve_ddpm"]).double(), rtol=1e-4, atol=0)
    flow = match_snr(POWER, SNR, FlowSchedule())
    assert flow.mid_timestep == 45
    assert flow.loss == pytest.approx(EXPECTED["loss_flow"], rel=1e-4)
    assert flow.level == FlowSchedule().sigma(45)


@pytest.mark.parametrize("schedule", [DdpmSchedule(), FlowSchedule()], ids=["ddpm", "flow"])
@pytest.mark.parametrize("count", [1, 7, 5000])
def test_the_curve_is_the_formula(schedule: Any, count: int) -> None:
    power, snr = random_numbers(count)
    found = match_snr(power, snr, schedule, draws=3)
    for t in (0, 1, 24, 500, 998):
        by_hand = (
            sum(abs(p * schedule.snr_at(t) - s) for p, s in zip(power.tolist(), snr.tolist(), strict=True)) / count
        )
        assert float(found.curve[t]) == pytest.approx(by_hand, rel=1e-9)
    assert found.mid_timestep == int(found.curve.argmin())
    assert found.loss == float(found.curve.min())
    first, last = found.flat_region
    inside = found.curve[first : last + 1]
    assert bool((inside <= found.loss * 1.01).all())
    assert all(not 0 <= t < 1000 or float(found.curve[t]) > found.loss * 1.01 for t in (first - 1, last + 1))


def test_the_interval_follows_resampled_sets() -> None:
    power, snr = random_numbers(40)
    found = match_snr(power, snr, DdpmSchedule(), seed=5)
    rng = np.random.default_rng(1)
    table = DdpmSchedule().snr().numpy()
    distances = np.abs(power.numpy()[:, None] * table - snr.numpy()[:, None])
    minima = [distances[rng.integers(40, size=40)].mean(0).argmin() for _ in range(2000)]
    low, high = np.quantile(minima, [0.025, 0.975])
    assert found.interval[0] == pytest.approx(low, abs=6)
    assert found.interval[1] == pytest.approx(high, abs=6)
    assert found.interval[0] <= found.mid_timestep <= found.interval[1]
    assert match_snr(power, snr, DdpmSchedule(), seed=5).interval == found.interval


def test_the_interval_narrows_with_more_samples() -> None:
    widths = []
    for count in (16, 400):
        low, high = match_snr(*random_numbers(count), DdpmSchedule()).interval
        widths.append(high - low)
    assert widths[1] < widths[0] / 2


def test_crops_of_one_image_do_not_count_as_many_images() -> None:
    power, snr = random_numbers(8)
    schedule = DdpmSchedule()
    alone = match_snr(power, snr, schedule, seed=1)
    crops = match_snr(power.repeat(50), snr.repeat(50), schedule, images=[*range(8)] * 50, seed=1)
    assert (crops.samples, crops.images) == (400, 8)
    assert crops.interval == alone.interval
    unaware = match_snr(power.repeat(50), snr.repeat(50), schedule, seed=1).interval
    assert alone.interval is not None
    assert unaware is not None
    assert unaware[1] - unaware[0] < (alone.interval[1] - alone.interval[0]) / 2


def test_a_handful_of_images_has_no_interval() -> None:
    power, snr = random_numbers(64)
    for count in (1, 7):
        found = match_snr(power, snr, DdpmSchedule(), images=[i % count for i in range(64)])
        assert (found.images, found.interval) == (count, None)
    assert match_snr(power, snr, DdpmSchedule(), images=[i % 8 for i in range(64)]).interval is not None


def test_in_this_process_torch_keeps_its_threads(tmp_path: Path) -> None:
    source = source_of(write_images(tmp_path, [(40, 60)]), count=1)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert isinstance(source[0], ImagePair)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_identical_sets_have_no_spread() -> None:
    found = match_snr(torch.ones(9), torch.full((9,), 2.0), DdpmSchedule())
    assert found.interval == (found.mid_timestep, found.mid_timestep)


@pytest.mark.parametrize("schedule", [DdpmSchedule(), FlowSchedule()], ids=["ddpm", "flow"])
def test_individual_timesteps_are_those_of_each_image(schedule: Any) -> None:
    power, snr = random_numbers(30)
    snr[0], snr[1] = 1e9, 1e-9
    alone = [match_snr(power[i : i + 1], snr[i : i + 1], schedule, draws=0).mid_timestep for i in range(30)]
    assert own_timesteps(power, snr, schedule).tolist() == alone


def test_the_spread_is_by_group() -> None:
    power, snr = random_numbers(10)
    groups = ["b", "a"] * 5
    spread = spread_by(groups, power, snr, DdpmSchedule())
    assert list(spread) == ["a", "b"]
    assert spread["b"] == (match_snr(power[::2], snr[::2], DdpmSchedule(), draws=0).mid_timestep, 5)


def test_unmatchable_curves_are_reported() -> None:
    with pytest.raises(UsageError, match="no image"):
        match_snr(torch.zeros(0), torch.zeros(0), DdpmSchedule())
    with pytest.raises(UsageError, match="not finite"):
        match_snr(torch.ones(2), torch.tensor([1.0, torch.inf]), DdpmSchedule())
    with pytest.raises(ShapeError):
        match_snr(torch.ones(2), torch.ones(3), DdpmSchedule())
    with pytest.raises(ShapeError, match="differ"):
        latent_snr(torch.ones(1, 4, 2, 2), torch.ones(1, 4, 2, 3))


def test_latent_snr_is_the_ratio_of_powers() -> None:
    clean, noise = torch.randn(3, 4, 5, 6), torch.randn(3, 4, 5, 6)
    power, snr = latent_snr(clean, clean + 0.1 * noise)
    assert power.dtype == snr.dtype == torch.float64
    assert power[1] == pytest.approx(float((clean[1] ** 2).mean()), rel=1e-5)
    assert snr[2] == pytest.approx(float((clean[2] ** 2).mean() / (0.01 * noise[2] ** 2).mean()), rel=1e-4)
    assert latent_snr(clean, clean)[1].tolist() == [torch.inf] * 3


# Encoders.


def test_the_golden_encoder_gives_the_golden_numbers() -> None:
    encoder = load_encoder(base=str(GOLDEN_SD / "base"), device="cpu")
    for number in (0, 3):
        clean, low = (
            torch.from_numpy(np.array(Image.open(GOLDEN_SD / "pairs" / part / f"{number:02}.png")))
            for part in ("hq", "lq")
        )
        images = (image.permute(2, 0, 1)[None].float() / 127.5 - 1 for image in (clean, low))
        with torch.inference_mode():
            power, snr = latent_snr(*(encoder.encode(image) for image in images))
        assert float(power) == pytest.approx(float(POWER[number]), rel=1e-4)
        assert float(snr) == pytest.approx(float(SNR[number]), rel=1e-4)


def tiny_encoder_state(channels: int) -> dict[str, torch.Tensor]:
    from diffusers.models.autoencoders.vae import EncoderTiny

    torch.manual_seed(0)
    network = EncoderTiny(3, channels, (1, 3, 3, 3), (64,) * 4, "relu")
    return {name: value.contiguous() for name, value in network.state_dict().items()}


@pytest.mark.parametrize(("channels", "level"), [(4, "alpha_bar"), (16, "sigma")])
def test_a_single_file_gives_the_same_network_as_diffusers(tmp_path: Path, channels: int, level: str) -> None:
    from diffusers import AutoencoderTiny

    state = tiny_encoder_state(channels)
    file = tmp_path / "encoder.safetensors"
    save_file({name.removeprefix("layers."): value for name, value in state.items()}, file)
    whole = AutoencoderTiny(latent_channels=channels)
    whole.encoder.load_state_dict(state)
    whole.save_pretrained(tmp_path / "any name")
    image = torch.rand(2, 3, 32, 40) * 2 - 1
    by_file, by_folder = (load_encoder(vae=str(path), device="cpu") for path in (file, tmp_path / "any name"))
    with torch.inference_mode():
        expected = whole.encode(image).latents
        torch.testing.assert_close(by_file.encode(image), expected)
        torch.testing.assert_close(by_folder.encode(image), expected)
    assert by_file.schedule.level_name == by_folder.schedule.level_name == level
    assert by_file.multiple_of_px == by_folder.multiple_of_px == 8


def test_another_autoencoder_takes_the_schedule_of_the_model(tmp_path: Path) -> None:
    file = tmp_path / "encoder.safetensors"
    save_file({name.removeprefix("layers."): value for name, value in tiny_encoder_state(4).items()}, file)
    encoder = load_encoder(base=str(GOLDEN_SD / "base"), vae=str(file), device="cpu")
    assert torch.equal(encoder.schedule.snr(), load_encoder(base=str(GOLDEN_SD / "base"), device="cpu").schedule.snr())


def test_the_default_is_the_embedded_model() -> None:
    encoder = load_encoder(device="cpu")
    assert encoder.name == "omgsr-tiny"
    assert encoder.encode(torch.zeros(1, 3, 32, 48)).shape == (1, 48, 8, 12)


def test_an_unusable_encoder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bad.safetensors").write_bytes(b"no weights")
    save_file({"0.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "config.json").write_text('{"_class_name": "VQModel"}')
    for vae, message in [
        ("bad.safetensors", "not the encoder"),
        ("other.safetensors", "not the encoder"),
        ("odd", "is a VQModel"),
        ("absent", "not an autoencoder"),
    ]:
        with pytest.raises(ModelError, match=message):
            load_encoder(vae=str(tmp_path / vae), device="cpu")
    with pytest.raises(UsageError, match="both"):
        load_encoder("omgsr-tiny", base="x")
    with pytest.raises(ModelError, match="no model is called 'nothing at all'"):
        load_encoder("nothing at all")


# Samples.


def write_images(folder: Path, sizes: list[tuple[int, int]]) -> tuple[Path, ...]:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    paths = []
    for number, (height, width) in enumerate(sizes):
        paths.append(folder / f"{number}.png")
        small = rng.integers(0, 256, (4, 5, 3)).astype(np.uint8)
        Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC).save(paths[-1])
    return tuple(paths)


def source_of(images: tuple[Path, ...], **changes: Any) -> PairSource:
    values: dict[str, Any] = {
        "images": images,
        "partners": None,
        "config": load_degradation("light"),
        "resolution_px": 32,
        "scale": 4.0,
        "on_small": "skip",
        "multiple_of_px": 8,
        "seed": 0,
        "count": len(images),
    }
    return PairSource(**(values | changes))


def encoder_of(encode: Callable[[torch.Tensor], torch.Tensor]) -> ImageEncoder:
    return ImageEncoder("a test's", encode, DdpmSchedule(), 8, torch.device("cpu"))


# Images are their own latents.
IDENTITY = encoder_of(lambda image: image)


def test_samples_depend_on_the_seed_alone(tmp_path: Path) -> None:
    images = write_images(tmp_path, [(40, 60), (33, 47), (50, 36)])
    source = source_of(images, count=6)
    one = list(measure(source, IDENTITY, batch=1))
    assert one == list(measure(source, IDENTITY, batch=4))
    assert one[2:4] == list(measure(source, IDENTITY, (2, 3)))
    assert {item.path for item in one[:3] if isinstance(item, Measured)} == set(images)
    # A second epoch has the same images, other crops and another degradation.
    assert one[0].path == one[3].path
    assert one[0] != one[3]
    assert one != list(measure(source_of(images, count=6, seed=1), IDENTITY))


def test_sampled_latents_depend_on_the_seed_and_their_number(tmp_path: Path) -> None:
    def encode(image: torch.Tensor, draws: Sequence[torch.Generator] = ()) -> torch.Tensor:
        noise = [torch.randn(image.shape[1:], generator=draw) for draw in draws]
        return image + torch.stack(noise) if noise else image

    source = source_of(write_images(tmp_path, [(40, 60), (33, 47), (50, 36)]), count=4)
    encoder = replace(encoder_of(encode), has_posterior=True)
    alone, together, last = (
        list(measure(source, encoder, items, batch=batch, latents="sample"))
        for items, batch in ((None, 1), (None, 4), ((3,), 1))
    )
    assert alone == together
    assert alone[3:] == last
    assert not any(one == other for one, other in zip(alone, measure(source, encoder), strict=True))
    # An encoder without a posterior has nothing to sample.
    assert list(measure(source, IDENTITY, latents="sample")) == list(measure(source, IDENTITY))
    golden = load_encoder(base=str(GOLDEN_SD / "base"), device="cpu")
    assert golden.has_posterior
    image = torch.zeros(1, 3, 32, 32)
    one, again = (golden.encode(image, [torch.Generator().manual_seed(1)]) for _ in range(2))
    assert torch.equal(one, again)
    assert not torch.equal(one, golden.encode(image))


def test_a_sample_equals_that_of_the_pipeline(tmp_path: Path) -> None:
    (photo,) = write_images(tmp_path, [(64, 64)])
    sample = source_of((photo,))[0]
    assert isinstance(sample, ImagePair)
    top, left = sample.window
    with Image.open(photo) as image:
        crop = np.asarray(image)[top : top + 32, left : left + 32]
    assert torch.equal(sample.clean, torch.from_numpy(crop.copy()).permute(2, 0, 1).float() / 255 * 2 - 1)
    assert sample.degraded.shape == sample.clean.shape
    assert not torch.equal(sample.degraded, sample.clean)
    assert set(sample.drawn) == {"first noise", "first resize", "last JPEG", "final sinc"}


def test_small_corrupt_and_identical_images_are_named(tmp_path: Path) -> None:
    images = write_images(tmp_path / "hq", [(40, 40), (20, 40), (40, 40)])
    images[2].write_bytes(b"no image")
    results = list(measure(source_of(images), IDENTITY))
    problems = [item.message for item in results if isinstance(item, FileError)]
    assert len(problems) == 2
    assert any("1.png has 40x20 pixels, smaller than a crop of 32" in text for text in problems)
    pairs = source_of(images[:1], partners=images[:1], resolution_px=None)
    (problem,) = measure(pairs, IDENTITY)
    assert isinstance(problem, OmgsrError)
    assert "infinite" in problem.message


class Kept(dict[int, Any]):
    """What is kept, by the sample's number, without files."""

    find = dict.get
    keep = dict.__setitem__


def survey_of(source: PairSource, kept: Any, **options: Any) -> Survey:
    return Survey(source, IDENTITY, TimestepOptions(**options), kept)


@pytest.mark.parametrize("known", [(), (0, 1), (1, 2, 5), (0, 2, 3, 4, 5), range(6)])
def test_only_uncached_samples_are_measured_in_order(tmp_path: Path, known: Sequence[int]) -> None:
    images = write_images(tmp_path, [(40, 60), (33, 47), (50, 36)])
    broken = write_images(tmp_path / "broken", [(40, 40)])
    broken[0].write_bytes(b"no image")
    source = source_of((images[0], *broken, *images[1:]), count=6)
    everything = Kept()
    whole = survey_of(source, everything)
    results = list(whole.run())
    assert list(everything) == list(range(6))
    assert list(everything.values()) == results
    # Each is kept under its own number, also behind one that was left out.
    for item, result in everything.items():
        told = str(getattr(result, "path", result))
        assert str(source.files_of(item)[0]) in told
    new: list[int] = []

    class Noting(Kept):
        def keep(self, item: int, result: Any) -> None:
            new.append(item)

    again = survey_of(source, Noting({item: everything[item] for item in known}), batch=4)
    assert [getattr(result, "snr", None) for result in again.run()] == [getattr(one, "snr", None) for one in results]
    assert new == [item for item in range(6) if item not in known]
    assert again.found_kept == len(known)
    assert again.answer().mid_timestep == whole.answer().mid_timestep


def test_the_cache_is_read_lazily(tmp_path: Path) -> None:
    """An answer that is stable early does not wait for a million files to be looked at."""
    source = source_of(write_images(tmp_path, [(40, 60)]), count=1000)
    asked: list[int] = []
    result = next(survey_of(source, None).run())

    class Noting:
        def find(self, item: int) -> Any:
            asked.append(item)
            return result

    survey = survey_of(source, Noting())
    assert [next(run := survey.run()), next(run), next(run)] == [result] * 3
    assert asked == [0, 1, 2]


def test_samples_of_a_dead_process_are_lost_and_not_cached(tmp_path: Path) -> None:
    source = source_of(write_images(tmp_path, [(40, 60), (33, 47)]))
    lost = MeasureWork(source, NamedEncoder()).lost((1, 0), DeviceError("its process was killed", "less"))
    assert [item for item, _ in lost] == [1, 0]
    for item, problem in lost:
        assert isinstance(problem, OmgsrError)
        assert str(problem) == f"{source.files_of(item)[0]}: its process was killed"
        assert problem.hint == "less"
    (weights := tmp_path / "weights.bin").write_bytes(b"weights")
    remembered = Remembered(tmp_path / "cache")
    kept = KeptSamples(source, replace(IDENTITY, files=(weights,)), remembered)
    kept.keep(*lost[0])
    assert kept.find(1) is None
    kept.keep(1, FileError("it is broken", "repair it"))
    assert isinstance(kept.find(1), FileError)
    remembered.close()


def test_a_latent_that_is_not_finite_ends_it(tmp_path: Path) -> None:
    source = source_of(write_images(tmp_path, [(40, 40)]))
    with pytest.raises(ModelError, match=r"0\.png is not finite"):
        list(measure(source, encoder_of(lambda image: image * float("nan"))))


def test_partners_are_enlarged_by_a_whole_factor(tmp_path: Path) -> None:
    hq = write_images(tmp_path / "hq", [(40, 64)])
    lq = write_images(tmp_path / "lq", [(10, 16)])
    sample = source_of(hq, partners=lq, resolution_px=None)[0]
    assert isinstance(sample, ImagePair)
    assert sample.degraded.shape == sample.clean.shape == (3, 40, 64)
    assert sample.drawn == {}
    ill_sized = write_images(tmp_path / "ill", [(11, 16)])
    problem = source_of(hq, partners=ill_sized, resolution_px=None)[0]
    assert isinstance(problem, FileError)
    assert "16x11 pixels, its partner 64x40" in problem.message
    cut = source_of(hq, partners=lq)[0]
    assert isinstance(cut, ImagePair)
    assert cut.degraded.shape == cut.clean.shape == (3, 32, 32)


def test_the_number_of_samples() -> None:
    def plan(**changes: Any) -> int:
        return plan_samples(
            10, **({"paired": False, "whole": False, "max_samples": None, "until_stable": False} | changes)
        )

    assert plan() == 10
    assert plan(max_samples=4) == 4
    assert plan(max_samples=25) == 25
    assert plan(until_stable=True) == 4096
    # Whole pairs have nothing new in a second epoch.
    assert plan(paired=True, whole=True, max_samples=25, until_stable=True) == 10


# Crops and pairs.


def test_windows_reach_every_place_and_no_further() -> None:
    rng = np.random.default_rng(0)
    windows = {draw_window((10, 9), 8, rng) for _ in range(300)}
    assert windows == {(y, x) for y in range(3) for x in range(2)}
    with pytest.raises(ShapeError, match="9x7"):
        draw_window((7, 9), 8, rng)


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (7, 13), (16, 15), (16, 16), (40, 9)])
def test_small_images_become_large_enough(size: tuple[int, int]) -> None:
    image = torch.rand(3, *size)
    resized, padded = (fit_small(image, 16, how) for how in ("resize", "pad"))
    assert resized is not None
    assert padded is not None
    assert min(resized.shape[1:]) >= 16
    assert torch.equal(padded[:, : size[0], : size[1]], image)
    assert min(padded.shape[1:]) >= 16
    expected = np.pad(
        image.numpy(), ((0, 0), *((0, n - m) for n, m in zip(padded.shape[1:], size, strict=True))), "reflect"
    )
    assert np.array_equal(padded.numpy(), expected)
    assert (fit_small(image, 16, "skip") is None) == (min(size) < 16)
    assert fit_small(image, 1, "skip") is image


@pytest.mark.parametrize("size", [(1, 3), (8, 8), (15, 17), (24, 9)])
def test_sizes_become_multiples(size: tuple[int, int]) -> None:
    image = torch.rand(3, *size)
    trimmed = trim(image, 8)
    assert all(length % 8 == 0 and length >= 8 for length in trimmed.shape[1:])
    height, width = (min(a, b) for a, b in zip(size, trimmed.shape[1:], strict=True))
    assert torch.equal(trimmed[:, :height, :width], image[:, :height, :width])


def test_whole_factors() -> None:
    assert whole_factor((40, 64), (10, 16)) == 4
    assert whole_factor((40, 64), (40, 64)) == 1
    assert whole_factor((40, 64), (11, 16)) is None
    assert whole_factor((40, 64), (10, 17)) is None
    assert whole_factor((10, 16), (40, 64)) is None
    assert whole_factor((15, 15), (10, 10)) is None


def named(*paths: str, folder: str) -> list[FoundInput]:
    return [FoundInput(Path(folder, path), Path(path), Path(folder)) for path in paths]


@pytest.mark.parametrize(
    ("first", "second", "names"),
    [
        (("2.png", "1.png"), ("1.jpg", "2.webp"), ("2", "1")),
        (("Nikon/001.png", "Canon/001.png"), ("Canon/001.png", "Nikon/001.png"), ("Nikon/001", "Canon/001")),
        (("Canon_001_HR.png", "Canon_002_HR.png"), ("Canon_002_LR4.png", "Canon_001_LR4.png"), None),
        (("0001.png", "0002.png"), ("0002x4.png", "0001x4.png"), ("0001", "0002")),
        (("0001.png",), ("0001_x4.png",), ("0001",)),
        (("a/1_HR.png", "b/1_HR.png"), ("b/1_LR2.png", "a/1_LR2.png"), ("a/1_HR", "b/1_HR")),
        (("img_x4.png", "img_x2.png"), ("img_x2.png", "img_x4.png"), ("img_x4", "img_x2")),
    ],
)
def test_pairs_are_matched_by_name(
    first: tuple[str, ...], second: tuple[str, ...], names: tuple[str, ...] | None
) -> None:
    pairs = pair_by_name(named(*first, folder="hq"), named(*second, folder="lq"))
    assert [pair.first for pair in pairs] == [Path("hq", name) for name in first]
    assert sorted(pair.second for pair in pairs) == sorted(Path("lq", name) for name in second)
    for pair in pairs:
        plain = [
            re.sub(r"(_HR|_LR[0-9]|(?<=0[0-9])_?x4)$", "", p.with_suffix("").as_posix()[3:])
            for p in (pair.first, pair.second)
        ]
        assert plain[0] == plain[1]
    assert names is None or tuple(pair.name for pair in pairs) == names


def test_unpaired_images_are_named() -> None:
    first, second = named("2.png", "1.png", folder="a"), named("1.jpg", "2.webp", folder="b")
    with pytest.raises(UsageError, match=r"1 of 2 images without a partner in --lq: a/2\.png"):
        pair_by_name(first, second[:1], names=("--data", "--lq"))
    with pytest.raises(UsageError, match=r"without a partner in --data: b/2\.webp"):
        pair_by_name(first[1:], second, names=("--data", "--lq"))
    with pytest.raises(UsageError, match=r"the same name: a/1\.png, c/1\.png"):
        pair_by_name([*first, *named("1.png", folder="c")], second)
