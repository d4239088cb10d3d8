"""The schedule and samplers against hand-worked numbers and laws; see `test_diffusion_peer.py` for `diffusers`."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from clamp_ros.contract.errors import ConfigError
from clamp_ros.policy.diffusion import CLEAN, DiffusionSchedule, ddim_step, ddpm_step, sample


@pytest.mark.parametrize("steps", [1, 2, 50, 100, 1000])
def test_signal_fades_step_by_step(steps: int) -> None:
    schedule = DiffusionSchedule(steps)
    assert ((schedule.alpha_bar > 0.0) & (schedule.alpha_bar < 1.0)).all()
    assert (np.diff(schedule.alpha_bar) < 0.0).all()


def test_schedule_by_hand() -> None:
    # u = (t/100 + 0.008) / 1.008: alpha_bar is cos^2 of it over cos^2 at t = 0, while no beta is capped.
    alpha_bar = DiffusionSchedule(100).alpha_bar
    assert alpha_bar[49] == pytest.approx(0.493844, abs=1e-6)
    assert alpha_bar[0] == pytest.approx(0.999361, abs=1e-5)


def test_steps_are_even_and_end_at_zero() -> None:
    schedule = DiffusionSchedule(100)
    assert schedule.steps(10).tolist() == [90, 80, 70, 60, 50, 40, 30, 20, 10, 0]
    assert schedule.steps(100).tolist() == list(range(99, -1, -1))
    for bad in (0, 101):
        with pytest.raises(ConfigError, match=str(bad)):
            schedule.steps(bad)


def noised(
    schedule: DiffusionSchedule, clean: NDArray[np.float64], noise: NDArray[np.float64], step: int
) -> NDArray[np.float64]:
    """The forward process."""
    a = schedule.alpha_bar[step]
    return math.sqrt(a) * clean + math.sqrt(1.0 - a) * noise


def test_the_true_noise_leads_back_to_the_clean_sample() -> None:
    schedule = DiffusionSchedule(100)
    rng = np.random.default_rng(1)
    clean, noise = rng.uniform(-1, 1, (1, 50, 14)), rng.standard_normal((1, 50, 14))
    for step in (0, 10, 50, 90):
        noisy = noised(schedule, clean, noise, step)
        np.testing.assert_allclose(schedule.predict_clean(noisy, noise, step), clean, atol=1e-9)
        np.testing.assert_allclose(ddim_step(schedule, noisy, noise, step, CLEAN), clean, atol=1e-9)


def test_ddim_moves_along_the_forward_process() -> None:
    """With the true noise a DDIM step lands on the forward process' sample of the next step."""
    schedule = DiffusionSchedule(100)
    rng = np.random.default_rng(2)
    clean, noise = rng.uniform(-1, 1, (1, 4, 3)), rng.standard_normal((1, 4, 3))
    moved = ddim_step(schedule, noised(schedule, clean, noise, 80), noise, 80, 30)
    np.testing.assert_allclose(moved, noised(schedule, clean, noise, 30), atol=1e-9)


def test_ddpm_step_draws_from_the_posterior() -> None:
    """Mean and variance of q(x_s | x_t, x_0) by Bayes' rule for scalars, precisions added, not Ho et al.'s formula."""
    schedule = DiffusionSchedule(100)
    t, s, x_t, eps = 60, 50, 0.7, 0.4
    a_t, a_s = schedule.alpha_bar[t], schedule.alpha_bar[s]
    x_0 = np.clip((x_t - math.sqrt(1 - a_t) * eps) / math.sqrt(a_t), -1, 1)
    alpha = a_t / a_s
    # prior x_s ~ N(sqrt(a_s) x_0, 1 - a_s); likelihood x_t ~ N(sqrt(alpha) x_s, 1 - alpha)
    precision = 1.0 / (1.0 - a_s) + alpha / (1.0 - alpha)
    mean = (math.sqrt(a_s) * x_0 / (1.0 - a_s) + math.sqrt(alpha) * x_t / (1.0 - alpha)) / precision
    n = 200_000
    draws = ddpm_step(schedule, np.full(n, x_t), np.full(n, eps), t, s, np.random.default_rng(3))
    sigma = 1.0 / math.sqrt(precision)
    assert draws.mean() == pytest.approx(mean, abs=5 * sigma / math.sqrt(n))
    assert draws.std() == pytest.approx(sigma, rel=0.02)


def test_the_last_ddpm_step_adds_no_noise() -> None:
    schedule = DiffusionSchedule(100)
    x, eps = np.full(4, 0.3), np.full(4, 0.1)
    out = ddpm_step(schedule, x, eps, 0, CLEAN, np.random.default_rng(0))
    np.testing.assert_allclose(out, schedule.predict_clean(x, eps, 0))


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_an_ideal_network_samples_its_target(sampler: str) -> None:
    """For data that is one point the ideal noise prediction is known in closed form, and every sampler must find it."""
    schedule = DiffusionSchedule(100)
    target = np.random.default_rng(4).uniform(-0.9, 0.9, (1, 50, 14))

    def denoise(x: np.ndarray, step: int) -> np.ndarray:
        a = schedule.alpha_bar[step]
        return ((x - math.sqrt(a) * target) / math.sqrt(1.0 - a)).astype(np.float32)

    for count in (1, 5, 10, 100):
        drawn = sample(denoise, target.shape, np.random.default_rng(5), schedule, count, sampler)
        assert drawn.dtype == np.float32
        np.testing.assert_allclose(drawn, target, atol=2e-4)


def test_samples_are_seeded_bounded_and_ordered() -> None:
    schedule, seen = DiffusionSchedule(20, clip=1.0), []

    def wild(x: np.ndarray, step: int) -> np.ndarray:
        seen.append(step)
        return -5.0 * x

    a = sample(wild, (1, 3), np.random.default_rng(6), schedule, 4)
    b = sample(wild, (1, 3), np.random.default_rng(6), schedule, 4)
    c = sample(wild, (1, 3), np.random.default_rng(7), schedule, 4)
    assert seen[:4] == [15, 10, 5, 0]
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)
    assert np.abs(a).max() <= 1.0


def test_bad_settings_are_named() -> None:
    with pytest.raises(ConfigError, match="euler"):
        sample(lambda x, t: x, (1,), np.random.default_rng(0), DiffusionSchedule(), 5, "euler")
    with pytest.raises(ConfigError, match="train_steps"):
        DiffusionSchedule(0)
    with pytest.raises(ConfigError, match="clip"):
        DiffusionSchedule(clip=math.nan)
