"""The schedule, its samplers and the training targets against `diffusers`' own schedulers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import pytest
import tiny_store
import torch
from clamp_training import config
from clamp_training.networks.policy import Context, DiffusionPolicy
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch.nn import functional as F

from clamp_ros.contract.robot import CHUNK_SIZE, NUM_JOINTS
from clamp_ros.policy.diffusion import CLEAN, DiffusionSchedule, ddim_step, ddpm_step, sample

pytestmark = pytest.mark.training

SHAPE = (2, CHUNK_SIZE, NUM_JOINTS)
Scheduler = DDIMScheduler | DDPMScheduler


def peer(sampler: str, steps: int = 100, clip: float = 1.0, prediction: str = "epsilon") -> Scheduler:
    kind = {"ddim": DDIMScheduler, "ddpm": DDPMScheduler}[sampler]
    return kind(
        num_train_timesteps=steps, beta_schedule="squaredcos_cap_v2", clip_sample=True, clip_sample_range=clip,
        prediction_type=cast(Any, prediction),
    )  # fmt: skip


class TorchNormals:
    """The one method of a numpy generator that the samplers use, drawing what torch's generator of a seed draws."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def standard_normal(self, shape: tuple[int, ...]) -> np.ndarray:
        return torch.randn(shape, generator=self.generator).numpy()


def normals(seed: int) -> np.random.Generator:
    return cast(np.random.Generator, TorchNormals(seed))


def network(x: np.ndarray, step: int) -> np.ndarray:
    """Stands in for one: bounded, not linear, different at every step and entry."""
    return np.tanh(0.9 * x + np.linspace(-1.0, 1.0, x.shape[-1], dtype=np.float32) + 0.01 * step).astype(np.float32)


@pytest.mark.parametrize("steps", [1, 2, 50, 100, 1000])
def test_signal_left_after_each_step(steps: int) -> None:
    expected = peer("ddpm", steps).alphas_cumprod.numpy()
    np.testing.assert_allclose(DiffusionSchedule(steps).alpha_bar, expected, rtol=1e-4)


@pytest.mark.parametrize("count", [1, 3, 10, 30, 100])
def test_steps_of_an_inference(count: int) -> None:
    for sampler in ("ddim", "ddpm"):
        scheduler = peer(sampler)
        scheduler.set_timesteps(count)
        assert DiffusionSchedule(100).steps(count).tolist() == scheduler.timesteps.tolist()


@pytest.mark.parametrize("clip", [0.3, 1.0])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_single_steps(sampler: str, clip: float) -> None:
    """From ten steps of an inference, the last among them; the smaller clip is reached by most entries."""
    schedule, scheduler = DiffusionSchedule(100, clip), peer(sampler, clip=clip)
    scheduler.set_timesteps(10)
    x, noise = torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(1))
    for step in schedule.steps(10).tolist():
        towards = step - 10 if step else CLEAN
        if isinstance(scheduler, DDIMScheduler):
            found = ddim_step(schedule, x.numpy(), noise.numpy(), step, towards)
            expected = scheduler.step(noise, step, x, return_dict=False)[0]
        else:
            found = ddpm_step(schedule, x.numpy(), noise.numpy(), step, towards, normals(step))
            generator = torch.Generator().manual_seed(step)
            expected = scheduler.step(noise, step, x, generator=generator, return_dict=False)[0]
        np.testing.assert_allclose(found, expected.numpy(), atol=2e-5, rtol=1e-4)


def peers_sample(scheduler: Scheduler, denoise: Callable[[np.ndarray, int], np.ndarray], count: int) -> np.ndarray:
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(SHAPE, generator=generator)
    scheduler.set_timesteps(count)
    for step in scheduler.timesteps.tolist():
        answer = torch.from_numpy(denoise(x.numpy(), step))
        x = scheduler.step(answer, step, x, generator=generator, return_dict=False)[0]
    return x.numpy()


@pytest.mark.parametrize("count", [1, 7, 10, 50, 100])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_whole_trajectories(sampler: str, count: int) -> None:
    found = sample(network, SHAPE, normals(5), DiffusionSchedule(100), count, sampler)
    np.testing.assert_allclose(found, peers_sample(peer(sampler), network, count), atol=1e-3)


def policies(parametrization: str) -> tuple[DiffusionPolicy, DiffusionPolicy, Context]:
    """A policy that sees proprioception alone, one of equal weights whose answer is its network's, and a context."""
    blind = {"tokens": "none", "rgb": {**tiny_store.EXPERIMENT["policy"]["rgb"], "cameras": []}}
    values = tiny_store.changed(tiny_store.EXPERIMENT, policy=blind, diffusion={"train_steps": 100})
    tiny = config.from_dict(config.Experiment, values)
    torch.manual_seed(0)
    diffusion = config.DiffusionConfig(parametrization=parametrization)
    policy, raw = (DiffusionPolicy(tiny.policy, d, 80).eval() for d in (diffusion, config.DiffusionConfig()))
    with torch.no_grad():
        policy.head.weight.normal_()  # answers as large as noise
    raw.load_state_dict(policy.state_dict())
    return policy, raw, policy.context(None, None, {}, torch.randn(SHAPE[0], NUM_JOINTS))


@pytest.mark.parametrize("parametrization", ["epsilon", "velocity"])
@torch.no_grad()
def test_training_targets(parametrization: str) -> None:
    policy, raw, context = policies(parametrization)
    scheduler = peer("ddpm")
    clean, noise, step = 2.0 * torch.rand(SHAPE) - 1.0, torch.randn(SHAPE), torch.tensor([12, 93])
    noisy = scheduler.add_noise(clean, noise, cast(Any, step))
    target = noise if parametrization == "epsilon" else scheduler.get_velocity(clean, noise, cast(Any, step))
    expected = F.mse_loss(raw.denoise(noisy, step, context), target)
    torch.testing.assert_close(policy.noise_loss(clean, noise, step, context), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
@torch.no_grad()
def test_a_velocity_network_is_sampled_alike(sampler: str) -> None:
    policy, raw, context = policies("velocity")

    def answers(network: DiffusionPolicy) -> Callable[[np.ndarray, int], np.ndarray]:
        return lambda x, step: network.denoise(torch.from_numpy(x), torch.full((len(x),), step), context).numpy()

    found = sample(answers(policy), SHAPE, normals(5), DiffusionSchedule(100), 10, sampler)
    expected = peers_sample(peer(sampler, prediction="v_prediction"), answers(raw), 10)
    np.testing.assert_allclose(found, expected, atol=1e-3)
