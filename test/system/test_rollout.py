"""Rollouts in process: a policy that knows the expert's plan succeeds, one that does nothing fails, one that crashes
fails its episode alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny_artifact import build_tiny_artifact

from clamp_ros.contract.errors import ArtifactError, ConfigError
from clamp_ros.contract.observation import ActionChunk
from clamp_ros.contract.robot import CHUNK_SIZE, CONTROL_PERIOD_NS
from clamp_ros.evaluate import TIMEOUT, evaluate
from clamp_ros.policy.artifact import CameraSpec
from clamp_ros.rollout import Rollout, RolloutConfig
from clamp_ros.sim.experts import make_expert
from clamp_ros.sim.tasks import TASKS

TASK = "mug_on_plate_easy"


class Oracle:
    """In place of the networks: the expert's plan, cut into chunks."""

    def __init__(self, world) -> None:
        self._world = world
        self.observations = []

    def infer(self, observation, rng) -> ActionChunk:
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


def test_what_fails_fails_its_episode_alone_and_the_run_continues(tmp_path, monkeypatch):
    artifact = build_tiny_artifact(tmp_path / "tiny").folder
    out, video = tmp_path / "r.json", tmp_path / "film"
    play = Rollout.play

    def crash_on_seed_2(self, seed, on_tick=None):
        if seed == 2:
            raise ZeroDivisionError("in the policy")
        return play(self, seed, on_tick)

    monkeypatch.setattr(Rollout, "play", crash_on_seed_2)
    monkeypatch.setattr(TASKS[TASK], "max_seconds", 2.0)
    config = RolloutConfig(look="primitive")
    results = evaluate(artifact, TASK, [1, 2], out, rollout=config, video=video, progress=False)
    assert results.rows[1]["reason"] == TIMEOUT
    assert results.rows[2]["reason"] == "ZeroDivisionError: in the policy"
    assert json.loads(out.read_text())["summary"]["episodes"] == 2
    assert [f.name for f in video.iterdir()] == [f"{TASK}_0000001.mp4"]
    monkeypatch.setattr(Rollout, "play", None)  # nothing is left to be played
    assert evaluate(artifact, TASK, [1, 2], out, rollout=config, progress=False).rows == results.rows


@pytest.mark.slow
def test_workers_give_the_rows_of_one_process(tmp_path):
    artifact = build_tiny_artifact(tmp_path / "tiny").folder
    rows = []
    for workers in (1, 2):
        out = tmp_path / f"{workers}.json"
        config = RolloutConfig(look="primitive")
        results = evaluate(artifact, TASK, [3, 4], out, rollout=config, workers=workers, progress=False)
        rows.append([{k: v for k, v in results.rows[s].items() if k != "wall_s"} for s in (3, 4)])
    assert rows[0] == rows[1]


def test_an_artifact_for_other_cameras_is_refused(tmp_path):
    other = {"front_left": CameraSpec(424, 240, 200.0, 200.0, 211.5, 119.5, rgb=False)}
    artifact = build_tiny_artifact(tmp_path / "tiny", cameras=other).folder
    with pytest.raises(ArtifactError, match=r"front_left.*200\.0"):
        evaluate(artifact, TASK, [1], tmp_path / "r.json")
    with pytest.raises(ConfigError, match="did you mean 'mug_on_plate_easy'"):
        evaluate(build_tiny_artifact(tmp_path / "good").folder, "mug_on_plate_eas", [1], tmp_path / "r.json")
    assert not (tmp_path / "r.json").exists()
