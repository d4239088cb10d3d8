"""The diffusion schedule and its samplers, in numpy: training adds noise with them, the runtime removes it.

Notation: ``alpha_bar[t]`` is the share of signal left at step t, so that
``noisy = sqrt(alpha_bar[t]) * clean + sqrt(1 - alpha_bar[t]) * noise``. The network predicts `noise` (epsilon).

Sources: squared-cosine schedule, Nichol and Dhariwal 2021 (arXiv 2102.09672) Eq. 17; DDPM, Ho et al. 2020 (arXiv
2006.11239) Eq. 6, 7; DDIM, Song et al. 2021 (arXiv 2010.02502) Eq. 12 with eta 0. The paper uses DDPM (Section III-C).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clamp_ros.contract.errors import ConfigError

SCHEDULE = "squared_cosine"
PREDICTION = "epsilon"
SAMPLERS = ("ddim", "ddpm")
CLEAN = -1
"""The step after the last: no noise left."""

Denoise = Callable[[NDArray[np.float32], int], NDArray[np.float32]]
"""(noisy sample, step) -> predicted noise of the same shape."""


@dataclass(frozen=True)
class DiffusionSchedule:
    """Squared-cosine noise over `train_steps` steps; predictions of the clean sample are clipped to +-`clip`."""

    train_steps: int = 100
    clip: float = 1.0

    def __post_init__(self) -> None:
        if not 1 <= self.train_steps <= 10_000:
            raise ConfigError(f"train_steps is {self.train_steps}, expected 1 to 10,000")
        if not (math.isfinite(self.clip) and self.clip > 0.0):
            raise ConfigError(f"clip is {self.clip}, expected a positive number")

    @cached_property
    def alpha_bar(self) -> NDArray[np.float64]:
        """(train_steps,) share of signal after each step, strictly decreasing within (0, 1)."""
        edges = np.cos((np.arange(self.train_steps + 1) / self.train_steps + 0.008) / 1.008 * math.pi / 2.0) ** 2
        betas = np.minimum(1.0 - edges[1:] / edges[:-1], 0.999)
        return np.cumprod(1.0 - betas, dtype=np.float64)

    def alpha_bar_at(self, step: int) -> float:
        """Share of signal at a step; 1 at `CLEAN`."""
        return 1.0 if step == CLEAN else float(self.alpha_bar[step])

    def steps(self, count: int) -> NDArray[np.int64]:
        """(count,) steps of an inference, from the noisiest down, evenly spaced and ending at 0.

        Raises:
            ConfigError: count is not within 1..train_steps.
        """
        if not 1 <= count <= self.train_steps:
            raise ConfigError(f"inference steps are {count}, expected 1 to the {self.train_steps} of training")
        return (np.arange(count, dtype=np.int64) * (self.train_steps // count))[::-1].copy()

    def predict_clean(self, noisy: NDArray[Any], noise: NDArray[Any], step: int) -> NDArray[Any]:
        """The clean sample that the predicted noise implies, clipped to +-`clip`."""
        a = self.alpha_bar_at(step)
        return np.clip((noisy - math.sqrt(1.0 - a) * noise) / math.sqrt(a), -self.clip, self.clip)


def ddim_step(
    schedule: DiffusionSchedule, noisy: NDArray[Any], noise: NDArray[Any], step: int, next_step: int
) -> NDArray[Any]:
    """One deterministic step from `step` to `next_step` (`CLEAN` for the last); all arrays of one shape."""
    a = schedule.alpha_bar_at(next_step)
    return math.sqrt(a) * schedule.predict_clean(noisy, noise, step) + math.sqrt(1.0 - a) * noise


def ddpm_step(
    schedule: DiffusionSchedule,
    noisy: NDArray[Any],
    noise: NDArray[Any],
    step: int,
    next_step: int,
    rng: np.random.Generator,
) -> NDArray[Any]:
    """One draw from the posterior of `next_step` given `step` and the predicted clean sample (the small variance)."""
    a, a_next = schedule.alpha_bar_at(step), schedule.alpha_bar_at(next_step)
    alpha = a / a_next
    mean = (
        math.sqrt(a_next) * (1.0 - alpha) / (1.0 - a) * schedule.predict_clean(noisy, noise, step)
        + math.sqrt(alpha) * (1.0 - a_next) / (1.0 - a) * noisy
    )
    if next_step == CLEAN:
        return mean
    sigma = math.sqrt((1.0 - a_next) / (1.0 - a) * (1.0 - alpha))
    return mean + sigma * rng.standard_normal(noisy.shape)


def sample(
    denoise: Denoise,
    shape: tuple[int, ...],
    rng: np.random.Generator,
    schedule: DiffusionSchedule,
    inference_steps: int,
    sampler: str = "ddim",
    prefix: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Draws one sample by denoising Gaussian noise.

    Args:
        denoise: the network.
        shape: of the sample, batch included.
        rng: source of every random number; the same seed gives the same sample.
        schedule: the one of training.
        inference_steps: 1 to `schedule.train_steps`.
        sampler: "ddim" or "ddpm".
        prefix: (B, d, ...) what the sample begins with along its second axis: given clean to the network at every step.

    Returns:
        float32 sample within +-`schedule.clip`, but for the prefix, which is as given.

    Raises:
        ConfigError: the sampler is unknown or the number of steps out of range.
    """
    if sampler not in SAMPLERS:
        raise ConfigError(f"sampler is {sampler!r}, expected one of {SAMPLERS}")
    steps = [int(t) for t in schedule.steps(inference_steps)]
    x = rng.standard_normal(shape).astype(np.float32)
    known = 0 if prefix is None else prefix.shape[1]
    for step, next_step in zip(steps, [*steps[1:], CLEAN], strict=True):
        if prefix is not None:
            x[:, :known] = prefix
        noise = denoise(x, step)
        if sampler == "ddim":
            x = ddim_step(schedule, x, noise, step, next_step).astype(np.float32)
        else:
            x = ddpm_step(schedule, x, noise, step, next_step, rng).astype(np.float32)
    x = np.clip(x, -schedule.clip, schedule.clip)
    if prefix is not None:
        x[:, :known] = prefix
    return x
