"""Rollouts in process: a policy that knows the expert's plan succeeds, by chunks and gate; a seed is an episode."""

from __future__ import annotations

import numpy as np
import pytest
from tiny_artifact import build_tiny_artifact

from clamp_ros.contract.observation import ActionChunk
from clamp_ros.contract.robot import CHUNK_SIZE, CONTROL_PERIOD_NS
from clamp_ros.contract.views import FusionConfig
from clamp_ros.rollout import Rollout, RolloutConfig
from clamp_ros.sim.experts import make_expert

TASK = "mug_on_plate_easy"


class Oracle:
    """In place of the networks: the expert's plan, cut into chunks."""

    def __init__(self, world) -> None:
        self._world = world
        self.observations = []
        self.prefixes = []

    def infer(self, observation, rng, prefix) -> ActionChunk:
        self.prefixes.append(prefix)
        if observation.stamp_ns == 0:
            self._plan = make_expert(self._world, np.random.default_rng(0)).plan
        self.observations.append(observation)
        rows = np.arange(CHUNK_SIZE) + observation.stamp_ns // CONTROL_PERIOD_NS
        return ActionChunk(observation.stamp_ns, self._plan[np.minimum(rows, len(self._plan) - 1)].copy())


@pytest.fixture(scope="module")
def rollout(tmp_path_factory):
    artifact = build_tiny_artifact(tmp_path_factory.mktemp("artifact") / "tiny")
    return Rollout(artifact, TASK, RolloutConfig(look="primitive"), threads=1)


@pytest.mark.parametrize("seed", [1, 2])
def test_the_experts_plan_succeeds_through_chunks_and_gate(rollout, monkeypatch, seed):
    oracle = Oracle(rollout.world)
    monkeypatch.setattr(rollout, "_runtime", oracle)
    sent: list[np.ndarray] = []
    step = rollout.world.step
    monkeypatch.setattr(rollout.world, "step", lambda action: (sent.append(action.copy()), step(action)))
    outcome = rollout.play(seed)
    assert outcome.success, outcome
    assert outcome.stage == "done"
    stages = rollout.world.task.stages
    assert list(rollout.reached) == sorted(rollout.reached, key=stages.index)
    assert {"reaching", "grasped", "done"} <= set(rollout.reached)
    assert list(rollout.reached.values()) == sorted(rollout.reached.values())
    assert outcome.held_ticks == 0
    stamps = [o.stamp_ns // CONTROL_PERIOD_NS for o in oracle.observations]
    assert stamps == list(range(0, 25 * len(stamps), 25))  # one observation for 25 executed actions
    actions = np.array(sent)
    # once the gate's soft start is over
    np.testing.assert_allclose(actions[50:], oracle._plan[50 : len(actions)], rtol=0.0, atol=1e-6)
    for k, observation in enumerate(oracle.observations[:4]):
        tick = 25 * k
        history = np.zeros((CHUNK_SIZE, 14), np.float32)
        n = min(tick, CHUNK_SIZE)
        history[:n] = actions[tick - n : tick][::-1]
        assert np.array_equal(observation.action_history, history)
        assert (observation.views[..., 0] > 0).mean() > 0.3


def test_the_same_seed_gives_the_same_episode(rollout, monkeypatch):
    states = []
    monkeypatch.setattr(rollout.world.task, "max_seconds", 2.5)
    for _ in range(2):
        rollout.play(5, lambda r: r.world.time_ns == 2_000_000_000 and states.append(r.world.get_state()))
    assert np.array_equal(states[0], states[1])


def test_what_is_sent_meanwhile_is_given_to_a_policy_that_continues_it(tmp_path, monkeypatch):
    artifact = build_tiny_artifact(tmp_path / "tiny", prefix=8)
    rollout = Rollout(artifact, TASK, RolloutConfig(look="primitive", latency_ticks=4), threads=1)
    oracle = Oracle(rollout.world)
    monkeypatch.setattr(rollout, "_runtime", oracle)
    assert rollout.play(1).success
    ticks = [o.stamp_ns // CONTROL_PERIOD_NS for o in oracle.observations]
    assert len(oracle.prefixes[0]) == 0
    for tick, prefix in list(zip(ticks, oracle.prefixes, strict=True))[2:5]:
        assert np.array_equal(prefix, oracle._plan[tick : tick + 4])


def test_a_policy_that_reads_the_cloud_sees_what_the_views_are_rendered_from(tmp_path, monkeypatch):
    fusion = FusionConfig(max_points=20_000)
    artifact = build_tiny_artifact(tmp_path / "tiny", scene="cloud", fusion=fusion)
    rollout = Rollout(artifact, TASK, RolloutConfig(look="primitive"), threads=1)
    oracle = Oracle(rollout.world)
    monkeypatch.setattr(rollout, "_runtime", oracle)
    monkeypatch.setattr(rollout.world.task, "max_seconds", 0.1)
    rollout.play(1)
    cloud, views = oracle.observations[0].cloud, oracle.observations[0].views
    assert 1000 < len(cloud) <= 20_000
    shown = {tuple(point) for point in views[views[..., 0] > 0][::97, 1:]}
    assert shown <= {tuple(point) for point in cloud}
