"""Training samples: reproducible, aligned, from any offset, every image in its turn."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from scipy.ndimage import gaussian_filter
from torch import Tensor

from omgsr_cli.degradation import DegradationConfig, load_degradation
from omgsr_cli.errors import FileError, OmgsrError, UsageError
from omgsr_cli.files.atomic import partial_name
from omgsr_cli.training.config import DataConfig, LqNoise, TeacherConfig
from omgsr_cli.training.data import (
    CropOptions,
    Order,
    TrainingCrops,
    _turn,
    add_lq_noise,
    draw_surface,
    load_batches,
    number_batches,
    read_pixels,
)
from omgsr_cli.training.sources import TrainingImage, find_training_images, plan_epoch
from omgsr_cli.training.teacher import TeacherImages, teacher_target

LIGHT = load_degradation("light")
DATA = DataConfig.model_validate({"train": ["photos"], "resolution": 32})
OPTIONS = CropOptions(DATA, ((LIGHT, 0.5), (load_degradation("reference"), 0.5)))


def write(path: Path, pixels: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3))


def coordinates(height: int, width: int) -> np.ndarray:
    """Red is the column, green the row."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([columns, rows, np.full_like(rows, 128)], 2)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index, (height, width) in enumerate([(50, 70), (64, 48), (33, 90)]):
        write(tmp_path / "hq" / f"{index}.png", noise(height, width, index))
    return tmp_path


def options_with(**changes: object) -> CropOptions:
    """The options with other keys of [data], and other degradations, noise or teacher."""
    data = {name: value for name, value in changes.items() if name in DataConfig.model_fields}
    others = {name: value for name, value in changes.items() if name not in data}
    return replace(OPTIONS, data=DATA.model_copy(update=data), **others)  # type: ignore[arg-type]  # test's shorthand


def build(folder: Path, seed: int = 0, **changes: object) -> TrainingCrops:
    return TrainingCrops(find_training_images([str(folder / "hq")], None, 32, "skip"), options_with(**changes), seed)


def taught(folder: Path, crops: int, low_frequencies: str = "hq", teacher: str = "one") -> TeacherImages:
    config = {"model": "m", "cache": str(folder / "kept"), "crops": crops, "low_frequencies": low_frequencies}
    return TeacherImages(TeacherConfig.model_validate(config), teacher)


def test_a_sample_is_decided_by_seed_and_number(folder: Path) -> None:
    options = {"turn": True, "detail": 0.5, "halve": 0.5}
    first, again, other = build(folder, **options), build(folder, **options), build(folder, seed=1, **options)
    torch.manual_seed(1)
    np.random.seed(1)
    expected = [first[number] for number in range(12)]
    before = torch.get_rng_state()
    np.random.seed(2)
    for number in (11, 3, 0):
        for one, two in zip(again[number][1:], expected[number][1:], strict=True):
            assert torch.equal(one, two)
    assert torch.equal(before, torch.get_rng_state()), "the global random state was used"
    assert not any(torch.equal(other[number][2], expected[number][2]) for number in range(12))
    assert len({image.numpy().tobytes() for _, _, image in expected}) == 12
    for number, lq, hq in expected:
        assert lq.shape == hq.shape == (3, 32, 32)
        assert -1 <= float(lq.min()) < float(lq.max()) <= 1, number


def test_a_sample_does_not_depend_on_the_number_of_threads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []

    def noted(*arguments: object) -> list[Tensor]:
        used.append(torch.get_num_threads())
        return _turn(*arguments)  # type: ignore[arg-type]  # as they come

    monkeypatch.setattr("omgsr_cli.training.data._turn", noted)
    crops, before = build(folder, detail=0.5, halve=0.5, gray=0.3, smooth=0.3), torch.get_num_threads()
    try:
        made = []
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            made.append([crops[number] for number in range(8)])
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for samples in made[1:]:
        for one, other in zip(made[0], samples, strict=True):
            assert all(map(torch.equal, one[1:], other[1:]))
    assert set(used) == {1}


def test_targets_are_blurred_if_the_degradation_asks_for_it(folder: Path) -> None:
    soft = LIGHT.model_copy(update={"target_blur_sigma": (0.6, 1.2)})
    plain = build(folder, degradations=((LIGHT, 1.0),))
    softened = build(folder, degradations=((soft, 1.0),))
    found = []
    for number in range(8):
        (lq, hq), (same_lq, blurred) = plain.draw_pair(number), softened.draw_pair(number)
        assert torch.equal(lq, same_lq), "the low-quality image is made of the sharp one"
        sigmas = np.arange(0.5, 1.35, 0.05)
        errors = [
            float(np.abs(gaussian_filter(hq.numpy(), (0, sigma, sigma), mode="nearest") - blurred.numpy()).mean())
            for sigma in sigmas
        ]
        assert min(errors) < 0.01
        found.append(float(sigmas[int(np.argmin(errors))]))
    assert 0.55 <= min(found) < max(found) <= 1.25
    assert max(found) - min(found) > 0.2
    mixed = build(folder, degradations=((LIGHT, 0.5), (soft, 0.5)))
    changed = [not torch.equal(mixed.draw_pair(n)[1], plain.draw_pair(n)[1]) for n in range(24)]
    assert 4 < sum(changed) < 20


def test_workers_give_the_same_samples_and_keep_global_state(folder: Path) -> None:
    crops = build(folder)
    before = torch.get_rng_state()
    for workers in (0, 2):
        batches = load_batches(crops, number_batches(3, 6, 0, 1), workers, torch.device("cpu"))
        for batch, first in zip(islice(batches, 3), (6, 9, 12), strict=True):
            assert batch.numbers == (first, first + 1, first + 2)
            for position, number in enumerate(batch.numbers):
                assert torch.equal(batch.lq[position], crops[number][1])
                assert torch.equal(batch.hq[position], crops[number][2])
        del batches
    assert torch.equal(before, torch.get_rng_state())


def test_processes_share_one_stream_of_samples() -> None:
    alone = [number for batch in islice(number_batches(2, 10, 0, 1), 6) for number in batch]
    both = [list(islice(number_batches(2, 10, rank, 2), 3)) for rank in (0, 1)]
    together = [number for step in zip(*both, strict=True) for batch in step for number in batch]
    assert alone == together == list(range(10, 22))
    assert not set(np.ravel(both[0])) & set(np.ravel(both[1]))
    # Going on after four steps of two processes.
    assert next(iter(number_batches(2, 10 + 4 * 4, 1, 2))) == list(islice(number_batches(2, 10, 1, 2), 5))[-1]


def test_every_image_comes_in_every_epoch_and_no_batch_is_short() -> None:
    images = [TrainingImage(Path(), None, side, side) for side in (32, 40, 128, 320)]
    epoch = plan_epoch(images, 32)
    assert Counter(epoch) == {0: 1, 1: 1, 2: 4, 3: 10}
    order = Order(epoch, seed=3)
    epochs = [[order.index(number) for number in range(16 * e, 16 * (e + 1))] for e in range(3)]
    assert all(Counter(one) == Counter(epoch) for one in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert [Order(epoch, seed=3).index(number) for number in (47, 0, 20)] == [order.index(n) for n in (47, 0, 20)]
    # 16 samples in an epoch, batches of 5: the fourth continues in the next epoch.
    assert all(len(batch) == 5 for batch in islice(number_batches(5, 0, 0, 1), 8))


def test_crops_begin_at_any_offset(folder: Path) -> None:
    write(folder / "hq" / "0.png", coordinates(90, 120))
    for name in ("1.png", "2.png"):
        (folder / "hq" / name).unlink()
    crops = build(folder, flip=False)
    corners = [((crops[n][2][:2, 0, 0] + 1) / 2 * 255).round().int().tolist() for n in range(64)]
    assert {left % 4 for left, _ in corners} == {top % 4 for _, top in corners} == {0, 1, 2, 3}
    assert max(left for left, _ in corners) > 60
    for _, _, image in (crops[n] for n in range(4)):
        grid = ((image + 1) / 2 * 255).round()
        assert torch.equal(grid[0, 0].diff(), torch.ones(31))
        assert torch.equal(grid[1, :, 0].diff(), torch.ones(31))


@pytest.mark.parametrize("turn", [False, True])
def test_both_crops_are_augmented_equally(folder: Path, turn: bool) -> None:
    for path in (folder / "hq").iterdir():
        path.unlink()
    # Smooth, so that the degraded crop is close to the sharp one where they are aligned, and far where they are not.
    write(folder / "hq" / "0.png", coordinates(90, 120) * 2)
    crops = build(folder, degradations=((LIGHT, 1.0),), turn=turn)
    seen = set()
    for number in range(24):
        _, lq, hq = crops[number]
        assert float((lq - hq).abs().mean()) < 0.08
        # Which way red or green, whichever it is after a turn, grows along the columns and the rows.
        right, down = ((hq[:2].sum(0)[a] - hq[:2].sum(0)[0, 0]).sign() for a in ((0, -1), (-1, 0)))
        seen.add((int(right), int(down)))
    assert seen == ({(1, 1), (1, -1), (-1, 1), (-1, -1)} if turn else {(1, 1), (-1, 1)})


def test_degradations_and_scales_are_drawn_by_their_probabilities(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[float, DegradationConfig]] = []

    def spy(hq: Tensor, scale: float, config: DegradationConfig, **_: object) -> Tensor:
        drawn.append((scale, config))
        return hq[:, :, ::2, ::2]

    monkeypatch.setattr("omgsr_cli.training.data.degrade", spy)
    reference = load_degradation("reference")
    crops = build(folder, degradations=((LIGHT, 0.25), (reference, 0.75)), scale={"4": 0.6, "2.5": 0.4})
    for number in range(400):
        crops[number]
    found = Counter(drawn_scale for drawn_scale, _ in drawn)
    assert found[4.0] / 400 == pytest.approx(0.6, abs=0.08)
    assert found[4.0] + found[2.5] == 400
    assert sum(config == LIGHT for _, config in drawn) / 400 == pytest.approx(0.25, abs=0.08)
    both = sum(scale == 4.0 and config == LIGHT for scale, config in drawn) / 400
    assert both == pytest.approx(0.15, abs=0.06), "the two are not drawn apart"


def test_detail_takes_the_most_detailed_of_three_places(folder: Path) -> None:
    (folder / "hq" / "1.png").unlink()
    (folder / "hq" / "2.png").unlink()
    half_flat = np.full((100, 200, 3), 90)
    half_flat[:, 100:] = noise(100, 100)
    write(folder / "hq" / "0.png", half_flat)
    mean = {p: np.mean([float(build(folder, detail=p)[n][2].std()) for n in range(40)]) for p in (0.0, 1.0)}
    assert mean[1.0] > 1.3 * mean[0.0]


def test_halving_is_the_mean_of_four(folder: Path) -> None:
    for name in ("1.png", "2.png"):
        (folder / "hq" / name).unlink()
    pixels = coordinates(100, 120) * 2
    write(folder / "hq" / "0.png", pixels)
    _, _, hq = build(folder, halve=1.0, flip=False)[0]
    grid = (hq + 1) / 2 * 255
    assert torch.allclose(grid[0, 0].diff(), torch.full((31,), 4.0), atol=1e-3)
    assert float(grid[0, 0, 0]) % 2 == pytest.approx(1, abs=1e-3)


def test_real_pairs_stay_aligned(tmp_path: Path) -> None:
    pixels = coordinates(96, 132)
    write(tmp_path / "hq" / "a.png", pixels)
    small = pixels.reshape(32, 3, 44, 3, 3).mean((1, 3)).round()
    write(tmp_path / "lq" / "a.jpg.png", small)
    with pytest.raises(UsageError, match=r"without a partner in their counterparts: .*a\.png"):
        find_training_images([str(tmp_path / "hq")], [str(tmp_path / "lq")], 32, "skip")
    (tmp_path / "lq" / "a.jpg.png").rename(tmp_path / "lq" / "a.bmp")
    images = find_training_images([str(tmp_path / "hq")], [str(tmp_path / "lq")], 32, "skip")
    assert images[0].lq_scale == 3
    crops = TrainingCrops(images, options_with(turn=True), 0)
    for number in range(12):
        _, lq, hq = crops[number]
        assert hq.shape == (3, 32, 32)
        # In the middle, where the enlargement does not end: within half a level of a ramp.
        assert float((lq - hq)[:, 4:-4, 4:-4].abs().max()) < 1.6 / 127.5
    write(tmp_path / "lq" / "a.bmp", noise(31, 44))
    with pytest.raises(FileError, match="44x31 is no whole part"):
        find_training_images([str(tmp_path / "hq")], [str(tmp_path / "lq")], 32, "skip")
    write(tmp_path / "lq" / "deeper" / "a.png", noise(32, 44))
    with pytest.raises(UsageError, match="of the same name"):
        find_training_images([str(tmp_path / "hq")], [str(tmp_path / "lq")], 32, "skip")


@pytest.mark.parametrize("on_small", ["skip", "resize", "pad"])
def test_small_images(tmp_path: Path, on_small: str) -> None:
    write(tmp_path / "hq" / "a.png", noise(7, 60))
    write(tmp_path / "hq" / "b.png", noise(32, 32))
    images = find_training_images([str(tmp_path / "hq")], None, 32, on_small)  # type: ignore[arg-type]  # parametrised
    assert len(images) == (1 if on_small == "skip" else 2)
    crops = TrainingCrops(images, options_with(on_small=on_small), 0)
    assert all(crops[number][2].shape == (3, 32, 32) for number in range(4))
    if on_small == "skip":
        (tmp_path / "hq" / "b.png").unlink()
        with pytest.raises(OmgsrError, match="32 px on its shorter side") as told:
            find_training_images([str(tmp_path / "hq")], None, 32, "skip")
        assert "on_small" in str(told.value.hint)


def test_decoded_pixels_are_kept_and_renewed(folder: Path, tmp_path: Path) -> None:
    path, cache = folder / "hq" / "0.png", tmp_path / "cache"
    direct, first, second = read_pixels(path), read_pixels(path, cache), read_pixels(path, cache)
    assert np.array_equal(direct, first)
    assert np.array_equal(direct, second)
    assert isinstance(second, np.memmap)
    assert not second.flags.writeable
    assert [entry.suffix for entry in cache.iterdir()] == [".npy"]
    write(path, noise(40, 41, 9))
    os.utime(path, ns=(1, 1))
    assert read_pixels(path, cache).shape == (40, 41, 3)
    with_cache, without = build(folder, cache=str(cache)), build(folder)
    assert torch.equal(with_cache[5][1], without[5][1])
    with pytest.raises(FileError):
        read_pixels(folder / "absent.png", cache)


def test_pixels_that_windows_does_not_replace_are_those_of_the_other_worker(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, replace, written = folder / "hq" / "0.png", os.replace, [True, False]

    def refuse(source: Path, target: Path) -> None:
        if written.pop(0):
            replace(source, target)
        raise PermissionError(13, "Access is denied")

    monkeypatch.setattr(os, "replace", refuse)
    assert np.array_equal(read_pixels(path, tmp_path / "first"), read_pixels(path))
    with pytest.raises(FileError):
        read_pixels(path, tmp_path / "second")


def test_noise_is_on_the_lq_and_never_on_the_target(folder: Path) -> None:
    quiet = build(folder)
    noisy = build(folder, noise=LqNoise(probability=1.0, sigma=(20.0, 20.0), kinds={"grey": 1.0}))
    for number in range(4):
        (_, lq, hq), (_, noisy_lq, noisy_hq) = quiet[number], noisy[number]
        assert torch.equal(hq, noisy_hq)
        # Enlarging by bicubic filtering keeps about two thirds of the deviation.
        assert 5 < float((noisy_lq - lq).std()) * 127.5 < 25


@pytest.mark.parametrize(("kind", "alike"), [("white", False), ("grey", True), ("blurred", False), ("grain", True)])
def test_every_kind_of_noise_has_its_deviation(kind: str, alike: bool) -> None:
    noise = LqNoise(probability=1.0, sigma=(10.0, 10.0), kinds={kind: 1.0})  # type: ignore[dict-item]  # parametrised
    flat = torch.full((3, 64, 64), 0.5)
    added = add_lq_noise(flat, noise, np.random.default_rng(1)) - flat
    assert float(added.std()) * 255 == pytest.approx(10, rel=0.05)
    assert torch.equal(added[0], added[1]) == alike
    along = float((added[:, :, 1:] * added[:, :, :-1]).mean() / added.square().mean())
    assert along == pytest.approx(0.5 if kind in ("blurred", "grain") else 0.0, abs=0.05)
    assert torch.equal(add_lq_noise(flat, LqNoise(), np.random.default_rng(1)), flat)


def test_grain_is_strongest_in_middle_tones() -> None:
    noise = LqNoise(probability=1.0, sigma=(10.0, 10.0), kinds={"grain": 1.0})
    middle, light = (
        add_lq_noise(torch.full((3, 64, 64), tone), noise, np.random.default_rng(1)).std() for tone in (0.5, 0.8)
    )
    assert float(light / middle) == pytest.approx((0.7 + 1.2 * 0.8 * 0.2) / 1.0, rel=0.02)


def test_a_sample_may_be_saved_as_jpeg_and_its_target_never_is(folder: Path) -> None:
    plain, saved = build(folder), build(folder, noise=LqNoise(jpeg=1.0, quality=(10, 10)))
    light = build(folder, noise=LqNoise(jpeg=1.0, quality=(95, 95)))
    for number in range(3):
        (_, lq, hq), (_, jpeg_lq, jpeg_hq), (_, light_lq, _) = plain[number], saved[number], light[number]
        assert torch.equal(hq, jpeg_hq)
        assert (jpeg_lq - lq).abs().mean() > 2 * (light_lq - lq).abs().mean() > 0


def test_flat_surfaces_are_their_own_target(folder: Path, tmp_path: Path) -> None:
    _, lq, hq, target = build(folder, smooth=1.0, teacher=taught(tmp_path, 2))[5]
    assert torch.equal(hq, target), "no teacher was asked"
    assert lq.shape == hq.shape == (3, 32, 32)
    for index in range(20):
        lq, hq = draw_surface(48, 4.0, np.random.default_rng(index))
        assert (lq.shape, hq.shape) == ((3, 12, 12), (3, 48, 48))
        assert max(float(hq.diff(dim=axis).abs().max()) for axis in (1, 2)) < 0.06
        assert float((lq - torch.nn.functional.avg_pool2d(hq, 4)).abs().mean()) < 12 / 255
        assert torch.equal((lq * 255).round() / 255, lq)
    few = [number for number in range(200) if build(folder, smooth=0.1)._draw_images(number)[1].shape[1] == 32]
    assert 5 < len(few) < 40


@pytest.mark.parametrize("pairs", [False, True])
def test_gray_crops_are_gray_on_both_sides(folder: Path, pairs: bool) -> None:
    photo = TrainingImage(folder / "hq" / "0.png", folder / "hq" / "0.png" if pairs else None, 50, 70, 1)
    coloured, gray = (TrainingCrops([photo], options_with(gray=share), 0) for share in (0.0, 1.0))
    for image, original in zip(gray.draw_pair(0), coloured.draw_pair(0), strict=True):
        assert torch.equal(image[0], image[1])
        assert torch.equal(image[0], image[2])
        assert torch.equal((image * 255).round() / 255, image)
        assert not torch.equal(original[0], original[1])
    luma = (coloured.draw_pair(0)[1] * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0)
    torch.testing.assert_close(gray.draw_pair(0)[1][0], luma, atol=0.5 / 255 + 1e-6, rtol=0)


def test_without_a_degradation_both_images_are_the_sharp_one(folder: Path) -> None:
    _, lq, hq = build(folder, degradations=())[3]
    assert torch.equal(lq, hq)


def test_several_enlargements_are_drawn_by_their_shares() -> None:
    several = DataConfig.model_validate({"train": ["x"], "scale": {"2": 0.25, "4": 0.75}})
    assert several.scales == ((4.0, 0.75), (2.0, 0.25))
    assert DataConfig(train=("x",)).scales == ((4.0, 1.0),)
    for wrong, reason in (
        ({"4": 0.5}, "sum to 0.5"),
        ({"0.5": 1.0}, "scale"),
        ({}, "not a scale"),
    ):
        with pytest.raises(ValidationError, match=reason):
            DataConfig.model_validate({"train": ["x"], "scale": wrong})


def test_with_a_teacher_samples_are_windows_of_its_crops(folder: Path, tmp_path: Path) -> None:
    images = taught(tmp_path, 2, "none")
    crops = build(folder, teacher=images, turn=True, noise=LqNoise(probability=1.0))
    with pytest.raises(FileError, match="cannot be read"):
        crops[0]
    asked = []

    def invert(lq: Tensor, height: int, width: int) -> Tensor:
        asked.append(lq)
        return 1 - next(hq for seen, hq in map(crops.draw_pair, range(2)) if torch.equal(seen, lq))

    for _ in range(2):
        for number in range(2):
            lq, hq = crops.draw_pair(number)
            if not images.path(crops.crop_key(number)).is_file():
                images.make(crops.crop_key(number), lq, *hq.shape[1:], invert)
    assert len(asked) == 2, "the teacher is paid once"
    seen = set()
    for number in range(8):
        _, _, hq, target = crops[number]
        # The kept image of the inverting teacher, in the same window and orientation.
        assert torch.allclose(target, -hq, atol=1e-6)
        seen.add(hq.numpy().tobytes())
    assert len(seen) > 4, "windows and turns differ"


def test_the_cache_key_of_a_crop_is_its_definition(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def keys(seed: int = 0, teacher: str = "one", **changes: object) -> list[Path]:
        images = taught(folder, 4, teacher=teacher)
        crops = build(folder, seed, teacher=images, **changes)
        return [images.path(crops.crop_key(number)) for number in range(4)]

    base = keys()
    assert len(set(base)) == 4
    # None of these changes what the teacher sees.
    assert keys(flip=False, turn=True, smooth=0.5, noise=LqNoise(probability=1.0), cache="cache") == base
    monkeypatch.setattr("omgsr_cli.training.data.degrade", lambda *_, **__: pytest.fail("a key needs no pixels"))
    assert keys() == base
    changed = OPTIONS.degradations[0][0].model_copy(update={"final_sinc_prob": 0.1})
    for other in (
        keys(seed=1),
        keys(teacher="two"),
        keys(resolution=24),
        keys(scale=2.0),
        keys(degradations=((changed, 1.0),)),
        keys(detail=0.5),
        keys(halve=0.5),
        keys(gray=0.5),
        keys(margin=8),
        keys(on_small="pad"),
    ):
        assert not set(other) & set(base)
    # The same name, size and time, with one other pixel.
    path = folder / "hq" / "0.png"
    state, pixels = path.stat(), np.array(Image.open(path))
    pixels[25, 35, 0] ^= 1
    write(path, pixels)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    after = keys()
    assert set(after) != set(base)
    assert set(after) & set(base), "crops of the other images stay"


def test_a_corrupt_teacher_image_is_made_again_by_the_next_run(folder: Path, tmp_path: Path) -> None:
    images = taught(tmp_path, 1)
    crops = build(folder, teacher=images)
    path = images.path(crops.crop_key(0))
    write(path, noise(48, 48))
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(FileError, match=path.name):
        crops[0]
    assert not path.exists()


def test_a_target_has_the_photographs_low_frequencies() -> None:
    torch.manual_seed(0)
    hq, made = torch.rand(3, 40, 50), torch.rand(3, 40, 50) * 0.5
    target = teacher_target(made, hq, 3.0)
    expected = gaussian_filter((hq - made).numpy(), (0, 3, 3), mode="nearest", truncate=3.0)
    np.testing.assert_allclose((target - made).numpy(), expected, atol=1e-5)


def test_low_quality_crops_can_be_enlarged_by_the_published_filters(folder: Path) -> None:
    plain, random = build(folder), build(folder, upscale="random")
    differ = 0
    for number in range(12):
        (_, lq, hq), (_, other, same) = plain[number], random[number]
        assert torch.equal(hq, same)
        assert torch.equal(random[number][1], other), "it is drawn by the number"
        assert float(other.abs().max()) <= 1
        differ += not torch.equal(lq, other)
    assert differ == 12
    # A constant image stays what it is, by every filter.
    write(folder / "flat" / "0.png", np.full((60, 60, 3), 100))
    flat = TrainingCrops(
        find_training_images([str(folder / "flat")], None, 32, "skip"),
        options_with(upscale="random", scale=2.0, degradations=((replace_noise(), 1.0),)), 0,
    )  # fmt: skip
    for number in range(6):
        _, lq, hq = flat[number]
        assert float((lq - hq).abs().max()) < 2.5 / 127.5


def replace_noise() -> DegradationConfig:
    """A degradation that leaves a constant image as it is, up to JPEG's rounding."""
    quiet = {"noise_range": (0.0, 0.0), "poisson_scale_range": (0.0, 0.0), "jpeg_range": (95.0, 95.0)}
    first, second = (stage.model_copy(update=quiet) for stage in (LIGHT.first, LIGHT.second))
    return LIGHT.model_copy(update={"first": first, "second": second})


def test_images_can_be_drawn_equally_often(folder: Path) -> None:
    write(folder / "hq" / "large.png", noise(320, 320))
    shares = {}
    for sampling in ("area", "equal"):
        crops = build(folder, sampling=sampling)
        counts = Counter(crops._image_of(number).hq.name for number in range(400))
        shares[sampling] = counts["large.png"] / 400
    assert shares["equal"] == pytest.approx(1 / 4, abs=0.01)
    assert shares["area"] > 0.5


def test_partial_files_of_a_killed_run_are_removed_from_the_caches_of_pixels_and_teachers(tmp_path: Path) -> None:
    write(tmp_path / "a.png", noise(8, 6))
    for cache in ("pixels", "kept"):
        (tmp_path / cache).mkdir()
        own = partial_name("a.npy")
        (tmp_path / cache / own).write_bytes(b"half")
        (tmp_path / cache / own.replace(f"-{os.getpid()}-", "-4194305-")).write_bytes(b"half")
    read_pixels(tmp_path / "a.png", tmp_path / "pixels")
    kept = taught(tmp_path, 1)
    kept.make("crop", torch.zeros(3, 4, 4), 8, 8, lambda lq, height, width: torch.zeros(3, height, width))
    for cache in ("pixels", "kept"):
        # The live process's own file stays.
        assert sum(path.suffix == ".partial" for path in (tmp_path / cache).iterdir()) == 1
        assert len(list((tmp_path / cache).iterdir())) == 2
