"""The degradation: its kernels, blur, noise and JPEG against other implementations, and its determinism."""

from __future__ import annotations

import importlib.util
import math
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - the name that every torch program gives it
from PIL import Image
from places import ROOT
from pydantic import ValidationError
from scipy import special, stats

from omgsr_cli.degradation import (
    PRESETS,
    DegradationConfig,
    StageConfig,
    degrade,
    describe_degradation,
    in_one_thread,
    load_degradation,
)
from omgsr_cli.degradation.kernels import KernelPlan, blur, build_kernel, draw_kernel, fast_length
from omgsr_cli.degradation.noise import gaussian_noise, poisson_noise
from omgsr_cli.degradation.pipeline import (
    _LUMA_STEPS,
    HalftonePlan,
    draw_plan,
    interpolate,
    jpeg,
    print_halftone,
    sample_rng,
    simulate_jpeg,
)
from omgsr_cli.errors import ShapeError, UsageError

REFERENCE = PRESETS["reference"]


def crops(count: int, height: int, width: int, seed: int = 0) -> torch.Tensor:
    """Smooth random images with edges: noise alone would hide blur and JPEG."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, height // 8 + 2, width // 8 + 2, generator=generator)
    return F.interpolate(coarse, size=(height, width), mode="bicubic", align_corners=False).clamp(0, 1)


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    path = ROOT / "benchmarks" / "degradation.py"
    spec = importlib.util.spec_from_file_location("degradation_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


# Determinism


@pytest.mark.parametrize("preset", PRESETS)
def test_a_sample_does_not_depend_on_its_neighbours(preset: str) -> None:
    config, images, indices = PRESETS[preset], crops(5, 61, 47), [9, 2, 1000003, 0, 77]
    together = degrade(images, 4, config, seed=3, epoch=1, indices=indices)
    for position, index in enumerate(indices):
        torch.manual_seed(position)
        alone = degrade(images[position : position + 1], 4, config, seed=3, epoch=1, indices=[index])
        assert torch.equal(alone[0], together[position])
    order = [3, 1, 4, 0, 2]
    shuffled = degrade(images[order], 4, config, seed=3, epoch=1, indices=[indices[i] for i in order])
    assert torch.equal(shuffled, together[order])


def test_memory_layout_does_not_matter() -> None:
    images = crops(3, 40, 56)
    strided = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    first, second = (degrade(x, 4, REFERENCE, seed=0, epoch=0, indices=[4, 5, 6]) for x in (images, strided))
    assert torch.equal(first, second)


def test_seed_epoch_and_index_each_change_the_sample() -> None:
    image = crops(1, 64, 64)
    base = degrade(image, 4, REFERENCE, seed=1, epoch=2, indices=[3])
    for seed, epoch, index in [(2, 2, 3), (1, 3, 3), (1, 2, 4), (2, 1, 3), (3, 2, 1)]:
        assert not torch.equal(base, degrade(image, 4, REFERENCE, seed=seed, epoch=epoch, indices=[index]))
    assert torch.equal(base, degrade(image, 4, REFERENCE, seed=1, epoch=2, indices=[3]))


def test_no_global_state_is_read_or_changed_and_the_input_stays() -> None:
    images = crops(6, 48, 48)
    before, torch_state, threads = images.clone(), torch.get_rng_state(), torch.get_num_threads()
    numpy_state = np.random.get_state()[1].copy()  # type: ignore[index]
    degrade(images, 1, REFERENCE, seed=0, epoch=0, indices=range(6))
    assert torch.equal(images, before)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)  # type: ignore[index]
    assert torch.get_num_threads() == threads


def test_the_number_of_threads_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    image, before, used = crops(1, 208, 208), torch.get_num_threads(), []

    def noted(*arguments: Any) -> torch.Tensor:
        used.append(torch.get_num_threads())
        return blur(*arguments)

    monkeypatch.setattr("omgsr_cli.degradation.pipeline.blur", noted)
    try:
        made = []
        for threads in (1, 2, 3, 1):
            torch.set_num_threads(threads)
            made.append([degrade(image, 4, REFERENCE, seed=0, epoch=0, indices=[i]) for i in range(6)])
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    for other in made[1:]:
        assert all(map(torch.equal, made[0], other))
    assert set(used) == {1}, "blurs are FFTs, which round by their threads"


def test_concurrent_degradations_keep_their_number_of_threads() -> None:
    before, image = torch.get_num_threads(), crops(1, 96, 96)
    torch.set_num_threads(3)
    try:
        with ThreadPoolExecutor(4) as pool:
            made = list(pool.map(lambda i: degrade(image, 4, REFERENCE, seed=0, epoch=0, indices=[i % 2]), range(12)))
            counts = set(pool.map(lambda _: torch.get_num_threads(), range(12)))
        with ThreadPoolExecutor(1) as new:
            counts.add(new.submit(torch.get_num_threads).result())
        assert counts | {torch.get_num_threads()} == {3}
    finally:
        torch.set_num_threads(before)
    for position, one in enumerate(made):
        assert torch.equal(one, made[position % 2])


def test_an_error_in_a_thread_reaches_the_caller() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with pytest.raises(ZeroDivisionError):
            in_one_thread(divmod, 1, 0)
        assert in_one_thread(in_one_thread, divmod, 7, 2) == (3, 1)
    finally:
        torch.set_num_threads(before)


def test_the_description_lists_what_is_drawn() -> None:
    told = describe_degradation(REFERENCE, seed=5, epoch=6, index=7)
    plan = draw_plan(REFERENCE, sample_rng(5, 6, 7))
    assert told["first"]["quality"] == plan.first.quality
    assert told["second"]["factor"] == plan.second.factor


def test_the_published_numbers_of_omgsr() -> None:
    """All 26 that its configuration gives, in its own order and spelling; each is a literal from there."""
    published = {
        "resize_prob": (0.2, 0.7, 0.1), "resize_range": (0.3, 1.5), "gaussian_noise_prob": 0.5, "noise_range": (1, 15),
        "poisson_scale_range": (0.05, 2.0), "gray_noise_prob": 0.4, "jpeg_range": (60, 95),
        "kernel_prob": (0.45, 0.25, 0.12, 0.03, 0.12, 0.03), "sinc_prob": 0.1, "blur_sigma": (0.2, 3),
        "betag_range": (0.5, 4), "betap_range": (1, 2),
    }  # fmt: skip
    second = {
        "blur_prob": 0.5, "resize_prob": (0.3, 0.4, 0.3), "resize_range": (0.6, 1.2), "gaussian_noise_prob": 0.5,
        "noise_range": (1, 12), "poisson_scale_range": (0.05, 1.0), "gray_noise_prob": 0.4, "jpeg_range": (60, 100),
        "kernel_prob": (0.45, 0.25, 0.12, 0.03, 0.12, 0.03), "sinc_prob": 0.1, "blur_sigma": (0.2, 1.5),
        "betag_range": (0.5, 4), "betap_range": (1, 2),
    }  # fmt: skip
    omgsr = PRESETS["omgsr"]
    assert {name: getattr(omgsr.first, name) for name in published} == published
    assert {name: getattr(omgsr.second, name) for name in second} == second
    assert omgsr.final_sinc_prob == 0.8
    # Ours alone, of which Real-ESRGAN and OMGSR know nothing.
    assert omgsr.halftone_prob == 0
    for stage in (omgsr.first, omgsr.second):
        assert StageConfig.model_validate(stage.model_dump()) == stage


# Sizes and values


@pytest.mark.parametrize(
    ("height", "width", "scale"),
    [
        (1, 1, 4),
        (2, 3, 1),
        (3, 700, 4),
        (127, 129, 4),
        (64, 97, 2.5),
        (33, 34, 1.3),
        (20, 21, 0.5),
    ],
)
def test_size_is_exact(height: int, width: int, scale: float) -> None:
    for config in PRESETS.values():
        lq = degrade(crops(3, height, width), scale, config, seed=0, epoch=0, indices=[0, 1, 2])
        assert lq.shape == (3, 3, max(1, round(height / scale)), max(1, round(width / scale)))
        assert lq.dtype == torch.float32
        assert float(lq.min()) >= 0
        assert float(lq.max()) <= 1
        assert torch.equal(lq, (lq * 255).round() / 255)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 1, 8, 8), (1, 3, 0, 8), (0, 3, 8, 8)])
def test_wrong_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match="shape"):
        degrade(torch.zeros(shape), 4, REFERENCE, seed=0, epoch=0, indices=[0])


def test_wrong_indices_and_scales_are_refused() -> None:
    with pytest.raises(ShapeError, match="2 images, but 1 indices"):
        degrade(crops(2, 8, 8), 4, REFERENCE, seed=0, epoch=0, indices=[0])
    for scale in (0, -1.0, math.nan):
        with pytest.raises(ShapeError, match="scale"):
            degrade(crops(1, 8, 8), scale, REFERENCE, seed=0, epoch=0, indices=[0])


# Kernels and blur


def weight_at(plan: KernelPlan, y: int, x: int) -> float:
    """A kernel's weight by the written formula, through the covariance matrix and scipy's Bessel function."""
    if plan.shape == "sinc":
        radius = math.hypot(y, x)
        if radius == 0:
            return plan.cutoff**2 / (4 * math.pi)
        return float(plan.cutoff * special.j1(plan.cutoff * radius) / (2 * math.pi * radius))
    c, s = math.cos(plan.rotation), math.sin(plan.rotation)
    turn = np.array([[c, -s], [s, c]])
    covariance = turn @ np.diag([plan.sigma_x**2, plan.sigma_y**2]) @ turn.T
    q = float(np.array([x, y]) @ np.linalg.inv(covariance) @ np.array([x, y])) ** plan.beta
    return 1 / (1 + q) if plan.shape == "plateau" else math.exp(-q / 2)


@pytest.mark.parametrize(
    "plan",
    [
        KernelPlan("gaussian", 7, 0.2, 0.2),
        KernelPlan("gaussian", 21, 2.9, 0.7, 0.4),
        KernelPlan("generalized", 13, 1.7, 1.7, 0.0, 0.6),
        KernelPlan("generalized", 9, 0.5, 2.0, -2.5, 3.9),
        KernelPlan("plateau", 15, 2.2, 2.2, 0.0, 1.8),
        KernelPlan("plateau", 11, 0.9, 2.4, 3.0, 1.0),
        KernelPlan("sinc", 7, cutoff=math.pi / 3),
        KernelPlan("sinc", 21, cutoff=math.pi),
    ],
)
def test_kernel_is_the_formula(plan: KernelPlan) -> None:
    half = plan.size_px // 2
    expected = np.array([[weight_at(plan, y, x) for x in range(-half, half + 1)] for y in range(-half, half + 1)])
    np.testing.assert_allclose(build_kernel(plan).numpy(), expected / expected.sum(), rtol=1e-5, atol=1e-8)


def test_every_drawn_kernel_sums_to_one() -> None:
    rng = np.random.default_rng(0)
    shapes = set()
    for stage in (REFERENCE.first, REFERENCE.second, PRESETS["light"].first):
        for _ in range(60):
            plan = draw_kernel(stage, rng)
            kernel = build_kernel(plan)
            shapes.add(plan.shape)
            assert kernel.shape == (plan.size_px, plan.size_px)
            assert float(kernel.sum()) == pytest.approx(1, abs=1e-5)
            torch.testing.assert_close(kernel, kernel.flip(0, 1))
    assert shapes == {"gaussian", "generalized", "plateau", "sinc"}


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (2, 5), (3, 40), (10, 11), (11, 21), (64, 49), (127, 130)])
def test_fft_blur_is_conv2d_on_the_reflected_image(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(3, *size, generator=generator)
    for kernel_px in (1, 7, 13, 21):
        # Without symmetry, so that a flipped or shifted kernel is seen.
        kernel = torch.rand(kernel_px, kernel_px, generator=generator)
        kernel /= kernel.sum()
        half = kernel_px // 2
        padded = torch.from_numpy(np.pad(image.numpy(), ((0, 0), (half, half), (half, half)), mode="reflect"))
        expected = F.conv2d(padded[:, None], kernel[None, None])[:, 0]
        torch.testing.assert_close(blur(image, kernel), expected, rtol=0, atol=2e-6)


def test_fast_length_is_the_next_even_smooth_number() -> None:
    smooth = sorted(2**a * 3**b * 5**c for a in range(1, 12) for b in range(8) for c in range(6))
    for length in range(1, 2000):
        assert fast_length(length) == next(n for n in smooth if n >= length)


# Noise


@pytest.mark.parametrize("gray", [False, True])
def test_gaussian_noise_has_its_strength(gray: bool) -> None:
    noise = gaussian_noise(torch.zeros(3, 200, 200), 12.0, gray, np.random.default_rng(0))
    assert noise.shape[0] == (1 if gray else 3)
    assert float(noise.std() * 255) == pytest.approx(12, rel=0.02)
    assert abs(float(noise.mean() * 255)) < 0.3


@pytest.mark.parametrize("distinct", [1, 3, 16, 256])
def test_poisson_noise_has_the_distribution_of_a_sampler(distinct: int) -> None:
    levels = np.linspace(255, 30, distinct).round()
    image = torch.from_numpy(levels / 255).float().repeat_interleave(60_000 // distinct).reshape(1, 1, -1)
    image = image.expand(3, -1, -1)
    values = 2 ** math.ceil(math.log2(distinct))
    noise = poisson_noise(image, 1.0, False, np.random.default_rng(0))
    expected = torch.poisson(image.double() * values, generator=torch.Generator().manual_seed(0)) / values - image
    for level in {0, distinct // 2, distinct - 1}:
        here = slice(level * (60_000 // distinct), (level + 1) * (60_000 // distinct))
        ours, theirs = noise[..., here].double().flatten(), expected[..., here].flatten()
        variance = levels[level] / 255 / values
        count = len(ours)
        # Of the sample variance: that of a normal distribution, and Poisson's excess kurtosis.
        tolerance = 6 / math.sqrt(count) + 2 / math.sqrt(count * variance * values**2)
        assert float(ours.var()) == pytest.approx(variance, rel=tolerance)
        assert abs(float(ours.mean())) < 5 * math.sqrt(variance / count)
        # Photon counts, so that both are on one grid.
        counts = [torch.round((x + levels[level] / 255) * values).numpy() for x in (ours, theirs)]
        assert stats.ks_2samp(*counts).pvalue > 1e-3


def test_gray_poisson_noise_follows_the_luma() -> None:
    image = torch.zeros(3, 100, 100)
    image[1, :, 50:] = 1.0
    noise = poisson_noise(image, 2.0, True, np.random.default_rng(0))
    assert noise.shape == (1, 100, 100)
    assert float(noise[..., :50].abs().max()) == 0
    assert float(noise[..., 50:].std()) == pytest.approx(2 * math.sqrt(round(0.587 * 255) / 255 / 2), rel=0.05)


def test_noise_scale_is_linear() -> None:
    image = crops(1, 30, 30)[0]
    one, three = (poisson_noise(image, scale, False, np.random.default_rng(1)) for scale in (1.0, 3.0))
    torch.testing.assert_close(three, one * 3)


# JPEG and the order of things


def quiet(**changes: object) -> DegradationConfig:
    """A configuration that only compresses."""
    stage = {
        "blur_prob": 0.0,
        "blur_sigma": (0.2, 1.0),
        "resize_prob": (0.0, 0.0, 1.0),
        "resize_range": (1.0, 1.0),
        "gaussian_noise_prob": 1.0,
        "noise_range": (0.0, 0.0),
        "poisson_scale_range": (0.0, 0.0),
        "jpeg_range": (30.0, 40.0),
        **changes,
    }
    return DegradationConfig.model_validate({"first": stage, "second": stage, "final_sinc_prob": 0.0})


def pillow_jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


@pytest.mark.parametrize("index", range(2))
def test_without_the_rest_the_result_is_libjpeg_twice(index: int) -> None:
    image = (crops(1, 45, 38, seed=index) * 255).round() / 255
    told = describe_degradation(quiet(), seed=0, epoch=0, index=index)
    pixels = (image[0] * 255).round().byte().permute(1, 2, 0).contiguous().numpy()
    expected = pillow_jpeg(pillow_jpeg(pixels, told["first"]["quality"]), told["second"]["quality"])
    ours = degrade(image, 1, quiet(), seed=0, epoch=0, indices=[index])
    assert np.array_equal((ours[0] * 255).round().byte().permute(1, 2, 0).numpy(), expected)
    assert not np.array_equal(expected, pixels)


def test_simulated_jpeg_quantises_the_cosine_transform() -> None:
    from scipy.fft import dctn, idctn

    rng = np.random.default_rng(0)
    gray = torch.from_numpy(rng.random((1, 21, 35), dtype=np.float32)).expand(3, -1, -1)
    # The standard's first row and column of luma, at quality 75: half of the steps.
    padded = np.zeros((32, 48))
    padded[:21, :35] = gray[0].numpy() * 255
    blocks = padded.reshape(4, 8, 6, 8).transpose(0, 2, 1, 3) - 128
    steps = np.array(_LUMA_STEPS) / 2
    assert (steps[0, :3] * 2).tolist() == [16, 12, 14]
    coded = np.round(dctn(blocks, axes=(2, 3), norm="ortho") / steps) * steps
    expected = (idctn(coded, axes=(2, 3), norm="ortho") + 128).transpose(0, 2, 1, 3).reshape(32, 48)[:21, :35]
    found = simulate_jpeg(gray, 75)
    np.testing.assert_allclose(found[1].numpy() * 255, expected.clip(0, 255), atol=0.01)
    tones = torch.from_numpy(rng.random((3, 6, 8), dtype=np.float32)) * 0.2 + 0.4
    smooth = interpolate(tones, (96, 128), "bilinear")
    for quality, largest in ((95, 1.0), (60, 2.5)):
        difference = (simulate_jpeg(smooth, quality) - jpeg(smooth, quality)).abs().mean() * 255
        assert float(difference) < largest
    assert bool(simulate_jpeg(smooth, 100).isfinite().all())
    config = load_degradation("omgsr")
    simulated = config.model_copy(update={"jpeg": "simulated"})
    made = [degrade(smooth[None], 2.0, each, seed=0, epoch=0, indices=[3]) for each in (config, simulated)]
    assert 0 < float((made[0] - made[1]).abs().mean()) * 255 < 12


def test_jpeg_gets_worse_with_less_quality() -> None:
    image = crops(1, 64, 64)[0]
    errors = [float((jpeg(image, quality) - image).square().mean()) for quality in (98, 75, 40, 10)]
    assert errors == sorted(errors)
    assert errors[-1] > 4 * errors[0]


def test_each_step_shows_in_the_result() -> None:
    image, indices = crops(1, 96, 96), [0]
    base = degrade(image, 1, quiet(), seed=0, epoch=0, indices=indices)
    for change in (
        {"blur_prob": 1.0, "blur_sigma": (2.0, 3.0)},
        {"resize_prob": (0.0, 1.0, 0.0), "resize_range": (0.3, 1.0)},
        {"noise_range": (10.0, 20.0)},
        {"gaussian_noise_prob": 0.0, "poisson_scale_range": (1.0, 2.0)},
    ):
        changed = degrade(image, 1, quiet(**change), seed=0, epoch=0, indices=indices)
        assert float((changed - base).abs().mean()) > 2 / 255, change


def test_gray_noise_is_gray() -> None:
    image = torch.full((1, 3, 64, 64), 0.5)
    results = [
        degrade(
            image, 1, quiet(noise_range=(20.0, 20.0), gray_noise_prob=p, jpeg_range=(100.0, 100.0)),
            seed=0, epoch=0, indices=[0],
        )
        for p in (0.0, 1.0)
    ]  # fmt: skip
    spread = [float((x - x.mean(1, keepdim=True)).std() * 255) for x in results]
    assert spread[1] < 1 < 5 < spread[0]


# What is drawn, against the configuration


def assert_share(count: int, total: int, probability: float) -> None:
    assert abs(count - total * probability) < 4.5 * math.sqrt(total * probability * (1 - probability)) + 1e-9


@pytest.mark.parametrize("preset", PRESETS)
def test_draws_follow_the_probabilities(preset: str) -> None:
    config, total = PRESETS[preset], 2500
    plans = [draw_plan(config, sample_rng(0, 0, index)) for index in range(total)]
    assert_share(sum(p.final_kernel is not None for p in plans), total, config.final_sinc_prob)
    assert_share(sum(p.jpeg_last for p in plans), total, 0.5)
    for stage, drawn in ((config.first, [p.first for p in plans]), (config.second, [p.second for p in plans])):
        kernels = [s.kernel for s in drawn if s.kernel is not None]
        assert_share(len(kernels), total, stage.blur_prob)
        assert_share(sum(k.shape == "sinc" for k in kernels), len(kernels), stage.sinc_prob)
        blurs: Counter[tuple[str, bool]] = Counter(
            (k.shape, k.sigma_x == k.sigma_y) for k in kernels if k.shape != "sinc"
        )
        names = [(shape, iso) for shape in ("gaussian", "generalized", "plateau") for iso in (True, False)]
        for name, probability in zip(names, stage.kernel_prob, strict=True):
            assert_share(blurs[name], blurs.total(), probability)
        for size_px in stage.kernel_sizes:
            assert_share(sum(k.size_px == size_px for k in kernels), len(kernels), 1 / len(stage.kernel_sizes))
        up, down, keep = stage.resize_prob
        assert_share(sum(s.factor > 1 for s in drawn), total, up)
        assert_share(sum(s.factor < 1 for s in drawn), total, down)
        assert_share(sum(s.factor == 1 for s in drawn), total, keep)
        assert_share(sum(s.gaussian for s in drawn), total, stage.gaussian_noise_prob)
        assert_share(sum(s.gray for s in drawn), total, stage.gray_noise_prob)
        for mode in ("area", "bilinear", "bicubic"):
            assert_share(sum(s.mode == mode for s in drawn), total, 1 / 3)


@pytest.mark.parametrize("preset", PRESETS)
def test_draws_fill_their_ranges_evenly(preset: str) -> None:
    plans = [draw_plan(PRESETS[preset], sample_rng(1, 0, index)) for index in range(1200)]
    for stage, drawn in (
        (PRESETS[preset].first, [p.first for p in plans]),
        (PRESETS[preset].second, [p.second for p in plans]),
    ):
        low, high = stage.resize_range
        samples = [
            ([s.strength for s in drawn if s.gaussian], stage.noise_range),
            ([s.strength for s in drawn if not s.gaussian], stage.poisson_scale_range),
            ([s.factor for s in drawn if s.factor > 1], (1.0, high)),
            ([s.factor for s in drawn if s.factor < 1], (low, 1.0)),
            ([s.kernel.sigma_x for s in drawn if s.kernel and s.kernel.shape != "sinc"], stage.blur_sigma),
            ([s.quality + 0.0 for s in drawn], (stage.jpeg_range[0] - 0.5, stage.jpeg_range[1] + 0.5)),
        ]
        for values, (start, end) in samples:
            assert start <= min(values) <= max(values) <= end
            distance = stats.kstest(values, stats.uniform(start, end - start).cdf).statistic
            # Qualities are whole numbers, which alone makes a step of about 1/40.
            assert distance < 2.0 / math.sqrt(len(values)) + 0.025


def test_statistics_equal_those_of_a_direct_implementation(bench: ModuleType) -> None:
    measured = []
    for index, image in enumerate(bench.synthetic_crops(128, 90)):
        ours, plain = bench.pair(image, REFERENCE, index)
        first, second = bench.measure(ours, image), bench.measure(plain, image)
        measured.append([[s.psnr_db, s.noise_level, s.spectrum_slope] for s in (first, second)])
    values = np.array(measured)
    for column in range(3):
        assert stats.ks_2samp(values[:, 0, column], values[:, 1, column]).pvalue > 0.2
    # The plans are the same, so that means can be compared far below their spread.
    difference = np.abs((values[:, 0] - values[:, 1]).mean(0))
    assert difference[0] < 0.1, "PSNR, dB"
    assert difference[1] < 0.15, "noise level, grey levels"
    assert difference[2] < 0.08, "slope of the spectrum"


# Configuration


def test_reference_has_the_published_numbers() -> None:
    first, second = REFERENCE.first, REFERENCE.second
    assert (first.blur_prob, second.blur_prob, REFERENCE.final_sinc_prob) == (1.0, 0.8, 0.8)
    assert (first.resize_prob, first.resize_range) == ((0.2, 0.7, 0.1), (0.15, 1.5))
    assert (second.resize_prob, second.resize_range) == ((0.3, 0.4, 0.3), (0.3, 1.2))
    assert (first.noise_range, second.noise_range) == ((1, 30), (1, 25))
    assert (first.poisson_scale_range, second.poisson_scale_range) == ((0.05, 3.0), (0.05, 2.5))
    assert (first.blur_sigma, second.blur_sigma) == ((0.2, 3.0), (0.2, 1.5))
    for stage in (first, second):
        assert stage.kernel_sizes == (7, 9, 11, 13, 15, 17, 19, 21)
        assert stage.kernel_prob == (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
        assert (stage.sinc_prob, stage.gaussian_noise_prob, stage.gray_noise_prob) == (0.1, 0.5, 0.4)
        assert (stage.betag_range, stage.betap_range, stage.jpeg_range) == ((0.5, 4.0), (1.0, 2.0), (30, 95))


def test_the_light_preset_degrades_less(bench: ModuleType) -> None:
    images = torch.stack(list(bench.synthetic_crops(128, 24)))
    psnr_db = {}
    for name, config in PRESETS.items():
        results = degrade(images, 4, config, seed=0, epoch=0, indices=range(24))
        measured = [bench.measure(lq, hq).psnr_db for lq, hq in zip(results, images, strict=True)]
        psnr_db[name] = np.mean(measured)
    assert psnr_db["light"] > psnr_db["reference"] + 2


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_presets_load_by_name() -> None:
    for name, config in PRESETS.items():
        assert load_degradation(name) is config


def test_toml_changes_the_named_fields_only(tmp_path: Path) -> None:
    path = write(tmp_path, 'extends = "light"\nfinal_sinc_prob = 0.25\n[second]\njpeg_range = [50, 60]\n')
    config = load_degradation(path)
    assert config.first == PRESETS["light"].first
    assert config.second == PRESETS["light"].second.model_copy(update={"jpeg_range": (50.0, 60.0)})
    assert config.final_sinc_prob == 0.25
    assert load_degradation(str(write(tmp_path, "final_sinc_prob = 0.8\n"))) == REFERENCE


INVALID: list[tuple[str, str]] = [
    ("final_sinc = 1\n", "final_sinc"),
    ("final_sinc_prob = 1.5\n", "1.5"),
    ("final_kernel_sizes = []\n", "final_kernel_sizes"),
    ("first = 3\n", "first"),
    ('extends = "heavy"\n', "heavy"),
    ("extends = 3\n", "extends"),
    ("[first]\nnoise = [1, 2]\n", "first.noise"),
    ("[first]\nnoise_range = [30, 1]\n", "30"),
    ("[first]\nnoise_range = [1]\n", "noise_range"),
    ("[first]\nnoise_range = [nan, 1]\n", "noise_range"),
    ("[first]\nresize_prob = [0.5, 0.5, 0.5]\n", "1.5"),
    ("[first]\nkernel_prob = [1.0]\n", "kernel_prob"),
    ("[first]\nkernel_sizes = [8]\n", "8"),
    ("[first]\nresize_range = [0.2, 0.9]\n", "resize_range"),
    ("[first]\nresize_range = [1.1, 1.9]\n", "resize_range"),
    ("[first]\nbetag_range = [2, 3]\n", "betag_range"),
    ("[first]\nblur_sigma = [0, 1]\n", "blur_sigma"),
    ("[second]\njpeg_range = [0, 95]\n", "jpeg_range"),
    ("final_sinc_prob = \n", "TOML"),
]


def test_an_invalid_file_is_one_line(tmp_path: Path) -> None:
    for text, named in INVALID:
        path = write(tmp_path, text)
        with pytest.raises(UsageError) as caught:
            load_degradation(path)
        assert named in caught.value.message
        assert "mine.toml" in caught.value.message
        assert "\n" not in caught.value.message


def test_an_unknown_field_lists_the_fields(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_degradation(write(tmp_path, "[first]\nnoise = [1, 2]\n"))
    assert "noise_range" in str(caught.value.hint)


def test_an_unknown_name_lists_the_presets(tmp_path: Path) -> None:
    for wrong in ("refrence", tmp_path):
        with pytest.raises(UsageError) as caught:
            load_degradation(wrong)
        assert all(name in str(caught.value.hint) for name in PRESETS)


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "image.toml"
    path.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(UsageError, match="not a TOML file"):
        load_degradation(path)


def test_configurations_are_frozen_and_closed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        REFERENCE.final_sinc_prob = 0.1
    with pytest.raises(ValidationError, match="extra_forbidden"):
        DegradationConfig.model_validate({**REFERENCE.model_dump(), "usm": True})


def test_a_printed_image_has_dots_where_it_is_neither_black_nor_white() -> None:
    plan = HalftonePlan(pitch_px=8.0, angle=0.0, strength=0.4)
    black, middle, white = (print_halftone(torch.full((3, 64, 64), tone), plan) for tone in (0.0, 0.5, 1.0))
    assert torch.equal(black, torch.zeros(3, 64, 64))
    assert torch.equal(white, torch.ones(3, 64, 64))
    assert float(middle.mean()) == pytest.approx(0.5, abs=1e-5)
    assert float(middle.max()) == pytest.approx(0.5 + 0.4 * 0.5, abs=1e-5)
    # One dot every eight pixels, in both directions.
    torch.testing.assert_close(middle[:, :, 8:], middle[:, :, :-8], atol=1e-5, rtol=0)
    torch.testing.assert_close(middle[:, 8:], middle[:, :-8], atol=1e-5, rtol=0)


def test_halftone_is_drawn_by_its_probability_and_changes_no_other_draw() -> None:
    light = PRESETS["light"]
    half = light.model_copy(update={"halftone_prob": 0.5, "halftone_pitch": (6.0, 7.0)})
    plans = [(draw_plan(half, sample_rng(3, 0, n)), draw_plan(light, sample_rng(3, 0, n))) for n in range(300)]
    screens = [plan.halftone for plan, _ in plans if plan.halftone is not None]
    assert 120 < len(screens) < 180
    assert all(6 <= screen.pitch_px <= 7 and 0.15 <= screen.strength <= 0.5 for screen in screens)
    assert all(replace(plan, halftone=None) == plain for plan, plain in plans)
    always = light.model_copy(update={"halftone_prob": 1.0})
    hq = torch.full((1, 3, 64, 64), 0.5)
    plain, printed = (degrade(hq, 1, config, seed=1, epoch=0, indices=[0]) for config in (light, always))
    assert (plain - printed).abs().max() > 0.02
