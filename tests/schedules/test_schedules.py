"""The noise schedules against diffusers' own, and against the golden mid-timesteps."""

from __future__ import annotations

import json
import math
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler

from omgsr_cli.errors import ModelError, ShapeError, UsageError
from omgsr_cli.schedules import (
    BETA_SCHEDULES,
    PREDICTION_TYPES,
    DdpmSchedule,
    FlowSchedule,
    Schedule,
    build_schedule,
)

STEPS = [0, 1, 24, 273, 500, 998]


def latents(seed: int, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 4, 7, 5, generator=torch.Generator().manual_seed(seed))


def diffusers_scheduler(**config: object) -> DDPMScheduler:
    return DDPMScheduler(clip_sample=False, **config)


@pytest.mark.parametrize("betas", BETA_SCHEDULES)
@pytest.mark.parametrize(("rescale", "count"), [(False, 1000), (True, 1000), (True, 37)])
def test_alpha_bar_equals_diffusers(betas: str, rescale: bool, count: int) -> None:
    reference = diffusers_scheduler(
        beta_schedule=betas,
        beta_start=0.00085,
        beta_end=0.012,
        num_train_timesteps=count,
        rescale_betas_zero_snr=rescale,
    )
    schedule = DdpmSchedule.from_config(dict(reference.config))
    ours = torch.tensor([schedule.alpha_bar(t) for t in range(count)])
    torch.testing.assert_close(ours, reference.alphas_cumprod, rtol=2e-4, atol=1e-6)
    assert schedule.num_timesteps == count


@pytest.mark.parametrize("betas", BETA_SCHEDULES)
@pytest.mark.parametrize("prediction", PREDICTION_TYPES)
def test_step_equals_the_clean_sample_of_diffusers(betas: str, prediction: str) -> None:
    rescale = betas == "linear"
    reference = diffusers_scheduler(
        beta_schedule=betas,
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type=prediction,
        rescale_betas_zero_snr=rescale,
    )
    schedule = DdpmSchedule.from_config(dict(reference.config))
    noisy, predicted = latents(1), latents(2)
    for t in STEPS[:-1]:
        expected = reference.step(predicted, t, noisy).pred_original_sample
        torch.testing.assert_close(schedule.clean_latent(noisy, predicted, t), expected, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("betas", BETA_SCHEDULES)
def test_add_noise_equals_diffusers(betas: str) -> None:
    reference = diffusers_scheduler(beta_schedule=betas, beta_start=0.0001, beta_end=0.02)
    schedule = DdpmSchedule.from_config(dict(reference.config))
    clean, noise, steps = latents(3, len(STEPS)), latents(4, len(STEPS)), torch.tensor(STEPS)
    noisy = schedule.add_noise(clean, noise, steps)
    torch.testing.assert_close(noisy, reference.add_noise(clean, noise, steps), rtol=1e-5, atol=1e-5)
    for sample, t in enumerate(STEPS):
        alone = schedule.add_noise(clean[sample : sample + 1], noise[sample : sample + 1], t)
        torch.testing.assert_close(noisy[sample : sample + 1], alone, rtol=0, atol=0)


def true_prediction(prediction: str, clean: torch.Tensor, noise: torch.Tensor, alpha_bar: float) -> torch.Tensor:
    if prediction == "epsilon":
        return noise
    if prediction == "sample":
        return clean
    return math.sqrt(alpha_bar) * noise - math.sqrt(1 - alpha_bar) * clean


@pytest.mark.parametrize("prediction", PREDICTION_TYPES)
def test_the_true_prediction_recovers_the_clean_latent(prediction: str) -> None:
    schedule = DdpmSchedule(prediction_type=prediction)
    clean, noise = latents(5).double(), latents(6).double()
    for t in [*STEPS, 999]:
        predicted = true_prediction(prediction, clean, noise, schedule.alpha_bar(t))
        noisy = schedule.add_noise(clean, noise, t)
        torch.testing.assert_close(schedule.clean_latent(noisy, predicted, t), clean, rtol=1e-9, atol=1e-9)


def test_the_flow_velocity_recovers_the_clean_latent() -> None:
    schedule = FlowSchedule()
    clean, noise = latents(7).double(), latents(8).double()
    for t in [*STEPS, 999]:
        noisy = schedule.add_noise(clean, noise, t)
        torch.testing.assert_close(schedule.clean_latent(noisy, noise - clean, t), clean, rtol=1e-9, atol=1e-9)
    steps = torch.tensor([3, 990])
    noisy = schedule.add_noise(clean, noise, steps)
    torch.testing.assert_close(schedule.clean_latent(noisy, noise - clean, steps), clean, rtol=1e-9, atol=1e-9)


def test_flow_sigmas_follow_the_published_formula() -> None:
    schedule = FlowSchedule()
    shift = math.exp(1.15)
    sigmas = [shift / (shift + 1 / s - 1) if s > 0 else 0.0 for s in torch.linspace(1, 0, 1000).double().tolist()]
    for index in [0, 1, 45, 244, 999]:
        assert schedule.sigma(index) == pytest.approx(sigmas[-(index + 1)], abs=1e-6)
    assert schedule.sigma(0) == 0.0
    assert schedule.sigma(999) == 1.0


@pytest.mark.parametrize("tokens", [256, 1024, 4096])
def test_flow_shift_equals_diffusers(tokens: int) -> None:
    reference = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    schedule = FlowSchedule.from_config({**reference.config, "tokens": tokens})
    expected_mu = {256: 0.5, 1024: 0.63, 4096: 1.15}[tokens]
    assert schedule.mu == pytest.approx(expected_mu)
    reference.set_timesteps(sigmas=torch.linspace(1, 1 / 999, 999).tolist(), mu=schedule.mu)
    ours = torch.tensor([schedule.sigma(t) for t in range(999, 0, -1)])
    torch.testing.assert_close(ours, reference.sigmas[:-1], rtol=1e-5, atol=1e-6)


def test_flow_without_dynamic_shifting_takes_the_constant_shift() -> None:
    config = dict(FlowMatchEulerDiscreteScheduler(shift=3.0, num_train_timesteps=3).config)
    for tokens in (256, 4096):
        # Half way between no noise and noise alone, shifted: 3/2 / (1 + 2/2).
        assert FlowSchedule.from_config({**config, "tokens": tokens}).sigma(1) == pytest.approx(0.75)
    assert FlowSchedule.from_config({}).sigma(333) == pytest.approx(333 / 999)


@pytest.mark.parametrize("schedule", [DdpmSchedule(), FlowSchedule()])
def test_snr_is_the_power_ratio_of_clean_latent_and_noise(schedule: Schedule) -> None:
    snr = schedule.snr()
    assert snr.shape == (1000,)
    assert snr.dtype == torch.float64
    assert bool((snr[1:] < snr[:-1]).all())
    one, zero = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, 1, dtype=torch.float64)
    for t in [1, 45, 273, 999]:
        signal, noise = schedule.add_noise(one, zero, t), schedule.add_noise(zero, one, t)
        assert float((signal / noise) ** 2) == pytest.approx(schedule.snr_at(t), rel=1e-9, abs=1e-15)
    assert isinstance(schedule, Schedule)


def test_levels_are_named() -> None:
    assert (DdpmSchedule().level_name, FlowSchedule().level_name) == ("alpha_bar", "sigma")
    assert DdpmSchedule().level(273) == DdpmSchedule().alpha_bar(273)
    assert FlowSchedule().level(244) == FlowSchedule().sigma(244)


def test_golden_mid_timesteps(shared: Path) -> None:
    golden = json.loads((shared / "golden" / "sd" / "pairs" / "expected.json").read_text())
    power = torch.tensor(golden["per_image_power"], dtype=torch.float64)
    snr_lq = torch.tensor(golden["per_image_snr_lq"], dtype=torch.float64)
    for schedule, family in ((DdpmSchedule(), "ddpm"), (FlowSchedule(), "flow")):
        curve = (schedule.snr()[:, None] * power - snr_lq).abs().mean(1)
        assert int(curve.argmin()) == golden[f"mid_timestep_{family}"]
        assert float(curve.min()) == pytest.approx(golden[f"loss_{family}"], rel=1e-4)
    curve = (DdpmSchedule().snr()[:, None] * power - snr_lq).abs().mean(1)
    torch.testing.assert_close(curve, torch.tensor(golden["curve_ddpm"], dtype=torch.float64), rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("schedule", [DdpmSchedule(), DdpmSchedule(prediction_type="v_prediction"), FlowSchedule()])
def test_the_dtype_is_kept(schedule: Schedule, dtype: torch.dtype) -> None:
    latent, other = latents(9).to(dtype), latents(10).to(dtype)
    for t in (273, torch.tensor([273, 3])):
        assert schedule.add_noise(latent, other, t).dtype == dtype
        assert schedule.clean_latent(latent, other, t).dtype == dtype


def test_gradients_flow_through_the_step() -> None:
    noisy, predicted = latents(11).requires_grad_(), latents(12).requires_grad_()
    DdpmSchedule().clean_latent(noisy, predicted, 273).sum().backward()
    alpha_bar = DdpmSchedule().alpha_bar(273)
    assert noisy.grad is not None
    assert predicted.grad is not None
    assert float(noisy.grad[0, 0, 0, 0]) == pytest.approx(alpha_bar**-0.5)
    assert float(predicted.grad[0, 0, 0, 0]) == pytest.approx(-((1 - alpha_bar) ** 0.5) * alpha_bar**-0.5)


@pytest.mark.parametrize("schedule", [DdpmSchedule(num_train_timesteps=50), FlowSchedule(num_train_timesteps=50)])
def test_timestep_out_of_range_names_the_range(schedule: Schedule) -> None:
    schedule.check_timestep(0)
    schedule.check_timestep(49)
    latent = latents(13)
    for bad in (-1, 50):
        with pytest.raises(UsageError, match=f"timestep {bad} ") as caught:
            schedule.check_timestep(bad)
        assert "0 to 49" in str(caught.value.hint)
        with pytest.raises(UsageError):
            schedule.snr_at(bad)
        with pytest.raises(UsageError):
            schedule.add_noise(latent, latent, torch.tensor([0, bad]))
        with pytest.raises(UsageError):
            schedule.clean_latent(latent, latent, bad)


@pytest.mark.parametrize("schedule", [DdpmSchedule(), FlowSchedule()])
def test_shapes_are_checked(schedule: Schedule) -> None:
    latent = latents(14)
    with pytest.raises(ShapeError):
        schedule.add_noise(latent, latent[:, :1], 3)
    with pytest.raises(ShapeError):
        schedule.clean_latent(latent, latent[..., :1], 3)
    for bad in (torch.tensor([1, 2, 3]), torch.tensor([1.0, 2.0]), torch.tensor(3)):
        with pytest.raises(ShapeError):
            schedule.add_noise(latent, latent, bad)


def test_zero_terminal_snr_has_no_noise_prediction() -> None:
    latent = latents(15)
    schedule = DdpmSchedule(rescale_betas_zero_snr=True)
    assert schedule.alpha_bar(999) == 0.0
    with pytest.raises(UsageError, match="no signal"):
        schedule.clean_latent(latent, latent, 999)
    by_velocity = DdpmSchedule(rescale_betas_zero_snr=True, prediction_type="v_prediction")
    torch.testing.assert_close(by_velocity.clean_latent(latent, latent, 999), -latent)


@pytest.mark.parametrize(
    "config",
    [
        {"beta_schedule": "sigmoid"},
        {"prediction_type": "score"},
        {"trained_betas": [0.1, 0.2]},
        {"num_train_timesteps": 1},
        {"beta_start": 0.5, "beta_end": 0.1},
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 0},
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "base_image_seq_len": 4096},
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 0},
    ],
)
def test_unsupported_configurations_are_refused(config: dict[str, object]) -> None:
    with pytest.raises(ModelError, match="scheduler"):
        build_schedule(config)


@pytest.mark.parametrize(
    "schedule",
    [
        DdpmSchedule(),
        DdpmSchedule(0.0002, 0.03, "linear", 77, "v_prediction", True),
        FlowSchedule(),
        FlowSchedule(tokens=1024, max_shift=1.3),
    ],
)
def test_configuration_round_trip(schedule: Schedule) -> None:
    assert build_schedule(json.loads(json.dumps(schedule.to_config()))) == schedule


def test_missing_keys_take_diffusers_defaults() -> None:
    assert build_schedule({"_class_name": "PNDMScheduler"}).snr_at(500) == pytest.approx(
        float(DDPMScheduler().alphas_cumprod[500] / (1 - DDPMScheduler().alphas_cumprod[500])), rel=1e-4
    )


def test_schedules_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        DdpmSchedule().beta_end = 0.5  # type: ignore[misc]


def test_linear_time_shifting_equals_diffusers() -> None:
    config = {"use_dynamic_shifting": True, "time_shift_type": "linear", "base_shift": 0.5, "max_shift": 3.0}
    theirs = FlowMatchEulerDiscreteScheduler(**config)
    ours = FlowSchedule.from_config(theirs.config)
    assert FlowSchedule.from_config(ours.to_config()) == ours
    linear = torch.linspace(0, 1, 1000, dtype=torch.float64)[1:]
    expected = theirs.time_shift(ours.mu, 1.0, linear)
    found = torch.tensor([ours.sigma(t) for t in range(1, 1000)], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    exponential = FlowSchedule.from_config({**config, "time_shift_type": "exponential"})
    assert abs(exponential.sigma(500) - ours.sigma(500)) > 0.05
    with pytest.raises(ModelError, match="time_shift_type is 'cubic'"):
        FlowSchedule.from_config({**config, "time_shift_type": "cubic"})
