"""Scores through the whole running system: those of the rollout in process; a system that dies costs one episode."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

import cv2
import numpy as np
import pytest
from tiny_artifact import build_tiny_artifact

from clamp_ros import evaluate as evaluation
from clamp_ros.bringup import evaluate
from clamp_ros.bringup.evaluate import evaluate_ros
from clamp_ros.bringup.session import Session, SystemDiedError
from clamp_ros.contract.errors import ClampError
from clamp_ros.contract.robot import CHUNK_SIZE, JOINT_NAMES, REST_POSE
from clamp_ros.evaluate import NOT_DONE, Player, Watching
from clamp_ros.rollout import Rollout, RolloutConfig
from clamp_ros.score.results import DIED, TIMEOUT
from clamp_ros.sim.tasks import TASKS
from clamp_ros.sim.tasks.mug_on_plate import REACHING_M
from clamp_ros.sim.world import World

TASK = "mug_on_plate_easy"


@pytest.mark.slow
def test_a_system_that_dies_costs_one_episode_and_another_plays_the_rest(tmp_path, monkeypatch):
    artifact = build_tiny_artifact(tmp_path / "tiny").folder
    monkeypatch.setattr(TASKS[TASK], "max_seconds", 1.5)
    play, sessions = Session.play, []

    def die_in_the_second_episode(self, max_seconds, on_state=None):
        sessions.append(self)
        if len(sessions) == 2:
            self._child.kill()
        return play(self, max_seconds, on_state)

    monkeypatch.setattr(Session, "play", die_in_the_second_episode)
    out = tmp_path / "scores" / "r.json"
    results = evaluate_ros(artifact, TASK, [7, 8, 9], out, rollout=RolloutConfig(), progress=False)
    assert [results.rows[seed]["reason"] for seed in (7, 9)] == [NOT_DONE, NOT_DONE]
    assert results.rows[7]["stage"] == "idle"
    assert results.rows[7]["seconds"] == pytest.approx(1.5)
    assert results.rows[8]["outcome"] == DIED
    assert "the system ended with exit code -9" in results.rows[8]["reason"]
    assert sessions[0] is sessions[1] is not sessions[2]
    assert sorted(p.name for p in out.parent.iterdir()) == ["r.json", "r.log", "r_failures"]
    assert results.settings.way == "ros"
    for seed in (7, 9):
        assert_strip(out.parent / results.rows[seed]["picture"], f"{seed:07d}.jpg")


def assert_strip(path: Path, name: str) -> None:
    """Four different pictures of a scene, side by side, as in process."""
    assert (path.name, path.parent.name) == (name, "r_failures")
    picture = cv2.imread(str(path))
    assert picture is not None and picture.shape == (180, 4 * 320, 3)
    assert all(part.std() > 5 for part in np.split(picture, 4, axis=1))


@pytest.mark.slow
def test_a_policy_that_dies_is_named_as_the_reason_though_it_is_started_again(tmp_path, monkeypatch):
    artifact = build_tiny_artifact(tmp_path / "tiny").folder
    monkeypatch.setattr(TASKS[TASK], "max_seconds", 2.0)
    play, killed = Session.play, []

    def kill_the_policy_in_the_first_episode(self, max_seconds, on_state):
        def look(state):
            if not killed:
                killed.append(process_of(self, "clamp_ros.policy.policy_node"))
                os.kill(killed[0], signal.SIGKILL)
                self.spin_until(self.deaths, 20.0, "the log to tell of it")
            on_state(state)

        return play(self, max_seconds, look)

    monkeypatch.setattr(Session, "play", kill_the_policy_in_the_first_episode)
    results = evaluate_ros(
        artifact, TASK, [7, 8], tmp_path / "r.json", rollout=RolloutConfig(), pictures=False, progress=False
    )
    first, second = results.rows[7], results.rows[8]
    assert first["outcome"] == DIED
    assert first["reason"] == "policy_node was killed by SIGKILL; the episode ends with it"
    assert first["seconds"] < 1.0, "nobody waits for it"
    assert (second["outcome"], second["reason"], second["picture"]) == (TIMEOUT, NOT_DONE, "")
    assert not (tmp_path / "r_failures").exists()


def process_of(session: Session, module: str) -> int:
    """The node of that module that a session's system runs."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            child = f"\nPPid:\t{session._child.pid}\n" in path.with_name("status").read_text()
            if child and module in path.read_text().split("\0"):
                return int(path.parent.name)
    raise AssertionError(f"{module} does not run")


HOVERING = {"right/shoulder": -0.2, "right/elbow": 0.9}
"""Joints, in rad, that bring the right fingertips to HOVER_M: near some of the task's mugs, and far from others."""
HOVER_M = np.array([0.047, -0.019, 0.156])


def hovering_target() -> np.ndarray:
    """(50, 14): go there, and stay."""
    pose = REST_POSE.copy()
    for name, angle in HOVERING.items():
        pose[JOINT_NAMES.index(name)] = angle
    return np.tile(pose, (CHUNK_SIZE, 1))


def seeds_by_stage(count: int) -> dict[str, list[int]]:
    """Seeds whose mug is near enough to be called reached from there, and seeds whose mug is not, by 2 cm at least."""
    world, found, seed = World(TASK, look="primitive"), {"reaching": [], "idle": []}, 0
    while any(len(seeds) < count for seeds in found.values()):
        world.reset(seed)
        margin = float(np.linalg.norm(world.data.body("mug").xpos - HOVER_M)) - REACHING_M
        if abs(margin) > 0.02:
            found["reaching" if margin < 0.0 else "idle"].append(seed)
        seed += 1
    return {stage: seeds[:count] for stage, seeds in found.items()}


@pytest.mark.slow
def test_an_episode_comes_as_far_through_ros_as_in_process(tmp_path, monkeypatch):
    """The same artifact and seeds, both ways: the same stages and partial success, and times within the noise.

    A policy that the machine lets wait acts later in that episode, so that one of the two that reach may be late.
    """
    monkeypatch.setattr(TASKS[TASK], "max_seconds", 3.0)
    artifact = build_tiny_artifact(tmp_path / "tiny", target=hovering_target())
    expected = seeds_by_stage(2)
    seeds = [seed for pair in zip(*expected.values(), strict=True) for seed in pair]
    config = RolloutConfig(look="primitive")
    job = evaluation._Job(artifact.folder, TASK, config, Watching(pictures=False), tmp_path, threads=1)
    play = Player(job, Rollout(artifact, TASK, config, threads=1))
    here = {seed: play(seed, lambda *_: None) for seed in seeds}
    there = evaluate_ros(artifact.folder, TASK, seeds, tmp_path / "r.json", rollout=config, progress=False).rows
    for stage, mine in expected.items():  # the layout decides, so that agreement means something
        assert [here[seed]["stage"] for seed in mine] == [stage] * len(mine)
    for seed in seeds:
        for key in ("outcome", "success", "stage", "partial", "reason"):
            assert there[seed][key] == here[seed][key], (seed, key)
        assert there[seed]["seconds"] == pytest.approx(here[seed]["seconds"], abs=0.1)
    late = [there[seed]["reached"]["reaching"] - here[seed]["reached"]["reaching"] for seed in expected["reaching"]]
    assert min(late) == pytest.approx(0.0, abs=0.5) and max(late) > -0.5, late


def test_a_system_that_never_starts_ends_the_run(tmp_path, monkeypatch):
    def never(*_args):
        raise SystemDiedError("the system ended with exit code 1")

    monkeypatch.setattr(evaluate, "Session", never)
    artifact = build_tiny_artifact(tmp_path / "tiny").folder
    with pytest.raises(ClampError, match="does not start: the system ended with exit code 1"):
        evaluate_ros(artifact, TASK, range(5), tmp_path / "r.json", rollout=RolloutConfig(), progress=False)
    assert not (tmp_path / "r.json").exists()
