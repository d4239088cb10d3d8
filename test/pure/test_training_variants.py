"""Variants of the policy beyond the paper's own: what each trains, and that it is off unless asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tiny_store
import torch
from clamp_training import config
from clamp_training.networks.image import ImageEncoder
from clamp_training.networks.policy import DiffusionPolicy
from clamp_training.store import Store
from clamp_training.train_policy import Objective, PolicyData

from clamp_ros.contract.errors import ConfigError
from clamp_ros.contract.robot import CHUNK_SIZE, NUM_JOINTS
from clamp_ros.policy.diffusion import sample

pytestmark = pytest.mark.training


@pytest.fixture(autouse=True)
def seeded() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # networks so small are slower on more
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return Store([tiny_store.write_store(tmp_path_factory.mktemp("store"), tiny_store.grid(2), rows=4)])


def experiment(**sections: Any) -> config.Experiment:
    return config.from_dict(config.Experiment, tiny_store.changed(tiny_store.EXPERIMENT, **sections))


# --- action-prefix conditioning

BLIND = {"tokens": "none", "rgb": {**tiny_store.EXPERIMENT["policy"]["rgb"], "cameras": []}}
"""A policy that sees proprioception alone."""


def blind(prefix: int, parametrization: str = "epsilon") -> DiffusionPolicy:
    tiny = experiment(policy={**BLIND, "prefix": prefix}, diffusion={"parametrization": parametrization})
    return DiffusionPolicy(tiny.policy, tiny.diffusion, ImageEncoder.count_tokens(tiny.image))


def context_of(policy: DiffusionPolicy, batch: int) -> Any:
    return policy.context(None, None, {}, torch.zeros(batch, NUM_JOINTS))


def test_a_clean_action_has_no_diffusion_step() -> None:
    policy = blind(10).eval()
    context, chunk = context_of(policy, 2), torch.randn(2, CHUNK_SIZE, NUM_JOINTS)
    a, b = (policy.denoise(chunk, torch.full((2,), step), context, torch.tensor([50, 50])) for step in (1, 19))
    torch.testing.assert_close(a, b)
    a, b = (policy.denoise(chunk, torch.full((2,), step), context, torch.tensor([0, 49])) for step in (1, 19))
    assert (a[0] - b[0]).abs().max() > 1e-3 and (a[1] - b[1]).abs().max() > 1e-5
    torch.testing.assert_close(
        policy.denoise(chunk, torch.tensor([1, 1]), context, torch.tensor([0, 0])),
        policy.denoise(chunk, torch.tensor([1, 1]), context),
    )


@pytest.mark.parametrize("parametrization", ["epsilon", "velocity"])
def test_the_loss_is_on_the_rest_alone(parametrization: str) -> None:
    policy = blind(10, parametrization).eval()
    with torch.no_grad():
        policy.head.weight.zero_()  # the network answers zero
    context, prefix, step = context_of(policy, 2), torch.tensor([7, 0]), torch.tensor([4, 9])
    noise = torch.randn(2, CHUNK_SIZE, NUM_JOINTS)
    loss = policy.noise_loss(torch.zeros_like(noise), noise, step, context, prefix)
    share = policy.alpha_bar[step] if parametrization == "velocity" else torch.ones(2)
    rest = [noise[i, int(d) :].square().mean() * share[i] for i, d in enumerate(prefix)]
    torch.testing.assert_close(loss, torch.stack(rest).mean())
    other = noise.clone()
    other[0, :7] = 100.0
    torch.testing.assert_close(policy.noise_loss(torch.zeros_like(noise), other, step, context, prefix), loss)


def test_prefixes_are_drawn_up_to_the_longest_and_not_at_all_by_default(store: Store) -> None:
    data = PolicyData(experiment(policy={"tokens": "none", "prefix": 3}), store, None, store.normalization())
    rows = np.zeros(64, np.int64)
    drawn = data.batch(rows, np.random.default_rng(0))["prefix"]
    assert drawn.shape == (64, 2) and set(drawn.unique().tolist()) == {0, 1, 2, 3}
    assert "prefix" not in data.batch(rows[:2])  # as the robot sees it
    plain = PolicyData(experiment(policy={"tokens": "none"}), store, None, store.normalization())
    assert "prefix" not in plain.batch(rows, np.random.default_rng(0))
    for value in (-1, CHUNK_SIZE):
        with pytest.raises(ConfigError, match=r"policy\.prefix"):
            experiment(policy={"prefix": value})


def test_a_policy_learns_to_continue_what_is_committed() -> None:
    """Two ways are as likely as each other; the prefix says which was begun, and the policy goes on with it."""
    policy = blind(8, "velocity")
    objective = Objective(policy, None)
    optimizer = torch.optim.Adam(policy.parameters(), lr=1e-2)
    rng = np.random.default_rng(0)
    for _ in range(100):
        way = np.where(rng.random(16) < 0.5, -0.7, 0.7).astype(np.float32)
        loss = objective(
            {
                "actions": torch.from_numpy(way)[:, None, None].expand(-1, CHUNK_SIZE, NUM_JOINTS),
                "proprio": torch.zeros(16, NUM_JOINTS),
                "rgb": {},
                "steps": torch.from_numpy(rng.integers(20, size=(16, 1))),
                "noise": torch.from_numpy(rng.standard_normal((16, 1, CHUNK_SIZE, NUM_JOINTS), dtype=np.float32)),
                "prefix": torch.from_numpy(rng.integers(9, size=(16, 1))),
            }
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    policy.eval()
    way = np.array([-0.7, 0.7] * 8, np.float32)
    committed = np.tile(way[:, None, None], (1, 6, NUM_JOINTS))
    with torch.no_grad():
        context = context_of(policy, len(way))

        def denoise(noisy: np.ndarray, step: int) -> np.ndarray:
            steps = torch.full((len(way),), step)
            return policy.denoise(torch.from_numpy(noisy), steps, context, torch.full((len(way),), 6)).numpy()

        schedule = experiment().diffusion.noise_schedule()
        drawn = sample(denoise, (len(way), CHUNK_SIZE, NUM_JOINTS), rng, schedule, 5, prefix=committed)
    np.testing.assert_array_equal(drawn[:, :6], committed)
    rest = drawn[:, 6:].mean(axis=(1, 2))
    assert (np.sign(rest) == np.sign(way)).all(), rest
